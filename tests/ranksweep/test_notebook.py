"""Notebooks: the example runs as it stands, and a launch in a kernel can be interrupted."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

import ranksweep
from tests.conftest import BAD, GOOD, WORDS, write_tiny_sweep

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
pytestmark = [pytest.mark.command, pytest.mark.long]


def write_reviews(folder: Path) -> None:
    """Sentences of the columns and labels that the movie reviews have."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, rows in (("train", 400), ("dev", 250), ("test", 250)):
        sentences = [" ".join(rng.choice(WORDS, 9)) for _ in range(rows)]
        labels = [
            "positive" if sum(w in GOOD for w in s.split()) > sum(w in BAD for w in s.split())
            else "negative"
            for s in sentences
        ]  # fmt: skip
        pq.write_table(
            pa.table({"sentence": sentences, "label": labels}), folder / f"{split}.parquet"
        )


def test_the_example_runs_as_it_stands(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_reviews(short_folder / "data" / "movie")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]
    told = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(short_folder)}}
    ).execute()
    outputs = [out for cell in told.cells for out in cell.get("outputs", [])]
    text = "".join(str(out.get("text", "")) for out in outputs)
    assert "confirmed on test (accuracy)" in text
    assert "\x1b" not in text
    predicted = pq.read_table(short_folder / "predicted.parquet").to_pandas()
    assert {"sentence", "label", "prediction", "score"} <= {*predicted.columns}
    assert len(predicted) == 250
    (page,) = (short_folder / "reports").glob("*/index.html")
    assert page.stat().st_size > 0


@pytest.fixture
def kernel(short_folder: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager = KernelManager()
    manager.start_kernel(cwd=str(short_folder), env={**os.environ, "PYTHONPATH": str(ROOT)})
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def outcome(client: BlockingKernelClient, until: str = "", seconds: float = 300) -> tuple[str, str]:
    """What is printed from now on, up to a text or to the end, and the name of an error."""
    said, error, end = "", "", time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            message: dict[str, Any] = client.get_iopub_msg(timeout=1)
        except queue.Empty:
            continue
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                said += content["text"]
                if until and until in said:
                    return said, error
            case "error":
                error = content["ename"]
            case "status" if content["execution_state"] == "idle" and not until:
                return said, error
    raise AssertionError(f"no {until or 'end'} within {seconds} s:\n{said}")


def test_a_launch_in_a_kernel_is_interrupted_and_gone_on_with(
    kernel: tuple[KernelManager, BlockingKernelClient], short_folder: Path
) -> None:
    manager, client = kernel
    (short_folder / "search.py").write_text("raise ValueError('a module of the user')")
    sweep = write_tiny_sweep(short_folder)
    sweep["space"] = {"methods": ["pilora"]}
    sweep["search"] = {"trials": 4, "scheduler": "none"}
    sweep["train"]["epochs"] = 20
    client.execute(f"import ranksweep\nsweep = {sweep!r}\nresult = ranksweep.launch(sweep)")
    outcome(client, until="trial 1: epoch 1")
    manager.interrupt_kernel()
    _, error = outcome(client)
    assert error == "KeyboardInterrupt"
    client.execute(
        "result = ranksweep.launch(sweep, resume=True, quiet=True)\n"
        "print(result.states, len(result.best))"
    )
    said, error = outcome(client)
    assert not error
    assert "'complete': " in said
    tracking = f"sqlite:///{short_folder}/.ranksweep/mlflow.db"
    assert len(ranksweep.best("tiny-sentiment", tracking=tracking)) == 4
