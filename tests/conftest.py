"""Fixtures that more than one test file needs."""

from __future__ import annotations

import importlib.util
import io
import os
import secrets
import shutil
import signal
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.mlflow_database import copy_where_made
from tests.seaweed import BUCKET, Seaweed

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # where there are GPUs, too
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

# A shell starts what runs in its background with Ctrl-C ignored, and so all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

EXAMPLES = Path(__file__).parents[1] / "examples"


def pytest_runtest_setup() -> None:
    """MLflow is imported by the tests that need it, the first of which makes its tables."""
    copy_where_made()


def tarred(members: dict[str, bytes]) -> bytes:
    """A compressed tar archive of these files, by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def load_example(name: str) -> ModuleType:
    """A script of the examples as a module of its own; it may use the scripts beside it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        spec.loader.exec_module(module)
    sys.modules.pop("prepare_movie", None)
    return module


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for the whole session; it says six CPUs, whatever the machine has."""
    import ray

    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server for the whole session."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a prefix of its own on the session's S3 server, which the environment leads to."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for the sockets that Ray puts into it."""
    folder = Path(tempfile.mkdtemp(prefix="rs-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to create a database; each test copies this one."""
    from mlflow.tracking import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    """URI of an MLflow database of the test's own, in its folder."""
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return f"sqlite:///{tmp_path}/mlflow.db"


NAMED_STORE = "RANKSWEEP_TEST_STORE"
"""Names a bucket of one's own, such as az://container, to run the contract of stores on it too."""

STORES = ["file", pytest.param("s3", marks=pytest.mark.server)]
if NAMED_STORE in os.environ:
    STORES.append(pytest.param("named", marks=pytest.mark.server))


@pytest.fixture(params=STORES)
def store_uri(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """URI of an empty store: in a local folder, and on a real S3 server."""
    monkeypatch.setenv("RANKSWEEP_CACHE", str(tmp_path / "cache"))
    if request.param == "file":
        return f"file://{tmp_path / 'store'}"
    if request.param == "named":
        return f"{os.environ[NAMED_STORE]}/{secrets.token_hex(6)}"
    return str(request.getfixturevalue("s3"))


GOOD, BAD = ("good", "fine", "great"), ("bad", "poor", "awful")
WORDS = (*GOOD, *BAD, "film", "plot", "scene", "actor", "a", "the")


@pytest.fixture(scope="session")
def tiny_sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """That of `write_tiny_sweep`, whose files are written once; it is for tests to copy."""
    return write_tiny_sweep(tmp_path_factory.mktemp("tiny"))


def write_tiny_sweep(folder: Path) -> dict[str, Any]:
    """A sweep on a two-layer BERT with random weights and on sentences of twelve words.

    A sentence is positive when it has more good words than bad ones. Base and data go to `folder`.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "base")
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder / "base")
    rng = np.random.default_rng(0)
    for split, rows in (("train", 96), ("dev", 40), ("test", 40)):
        sentences = [rng.choice(WORDS, rng.integers(5, 12)) for _ in range(rows)]
        labels = [
            "positive" if np.isin(s, GOOD).sum() > np.isin(s, BAD).sum() else "negative"
            for s in sentences
        ]
        table = pa.table({"sentence": [" ".join(s) for s in sentences], "label": labels})
        pq.write_table(table, folder / f"{split}.parquet")
    return {
        "name": "tiny",
        "base": f"path:{folder / 'base'}",
        "task": {
            "name": "tiny-sentiment",
            "data": {split: str(folder / f"{split}.parquet") for split in ("train", "dev", "test")},
            "text": ["sentence"],
            "max_length": 16,
        },
        "profile": {
            "target_modules": ["query", "output.dense"], "rank": 4, "score_every": 2,
            "calibration_batches": 3, "batch_size": 16,
        },
        "space": {"methods": ["pilora", "taso", "sensitivity", "joint"]},
        "search": {"trials": 6},
        "train": {"epochs": 2, "batch_size": 16},
        "confirm": None,
    }  # fmt: skip
