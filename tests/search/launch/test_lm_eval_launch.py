"""A whole launch whose confirmations and untouched base are measured by lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from search.cli.view import View
from search.config.reading import load_sweep
from search.launch.dry_run import dry_run
from search.launch.launch import launch
from search.queries.comparison import compare
from search.tracking.runs import RecordedRuns
from search.trained.export import export
from tests.trainables.lm_eval_examples import CHOICE, WORDS, of_lm_eval, save_decoder, write_tasks
from trainables.tasks.kinds.registry import KINDS

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif("multiple_choice" not in KINDS, reason="no kind trains a model that writes"),
]


def write_rows(file: Path, number: int, seed: int) -> str:
    """Questions whose right option is the one that repeats their first word."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        words = [str(word) for word in rng.choice(WORDS, 6, replace=False)]
        label = int(rng.integers(3))
        choices = words[3:]
        choices[label] = words[0]
        rows.append({"question": " ".join(words[:3]), "choices": choices, "label": label})
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def written(folder: Path, **lm_eval: Any) -> Path:
    """A sweep over a tiny decoder, with a task of lm-eval beside it."""
    write_tasks(folder, CHOICE)
    sizes = {"train": 32, "dev": 12, "test": 12}
    data = {
        split: write_rows(folder / f"{split}.jsonl", size, seed)
        for seed, (split, size) in enumerate(sizes.items())
    }
    sweep = {
        "name": "tiny",
        "base": f"path:{save_decoder(folder / 'base')}",
        "task": {
            "name": "tiny-choice", "kind": "multiple_choice", "data": data, "prompt": "question",
            "options": "choices", "label": "label", "max_length": 64,
        },
        "profile": {"target_modules": ["q_proj", "v_proj"], "rank": 2, "calibration_batches": 2},
        "space": {"methods": ["lora"]},
        "search": {"trials": 1, "scheduler": "none"},
        "train": {"epochs": 1, "batch_size": 8},
        "store": f"file://{folder / 'store'}",
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
        "confirm": {"seeds": 2, "lm_eval": {"tasks": ["tiny_choice.yaml"], **lm_eval}},
    }  # fmt: skip
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return folder / "sweep.yaml"


def test_every_confirmed_seed_and_the_base_have_the_scores_of_lm_eval_itself(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = written(tmp_path, num_fewshot=1)
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_sweep(file, ["cluster.address=auto"])
    assert any("lm-eval" in note for note in dry_run(config).notes)
    with View("tiny", metric="accuracy") as view:
        result = launch(config, view=view)

    monkeypatch.chdir(tmp_path)  # where lm-eval itself looks for the rows
    task, uri = [str(tmp_path / "tiny_choice.yaml")], config.tracking.uri
    base = of_lm_eval(tmp_path / "base", task, num_fewshot=1)
    assert dict(result.lm_eval_of_base) == pytest.approx(base, rel=1e-4)
    compared = compare(uri, "tiny")
    rows = compared.rows
    assert dict(compared.lm_eval_of_base) == pytest.approx(base, rel=1e-4)
    assert rows == result.confirmation

    recorded = RecordedRuns(uri)
    runs = recorded.search({"kind": "confirm", "status": "complete"}, recorded.experiments())
    assert sorted(run.seed or 0 for run in runs) == [1, 2]
    for run in runs:
        merged = tmp_path / f"merged-{run.seed}"
        export(uri, run.run_id, "merged", merged, None, as_searched=True)
        wanted = of_lm_eval(merged, task, num_fewshot=1)
        got = {name: run.metrics[f"lm_eval/{name}"] for name in wanted}
        assert got == pytest.approx(wanted, rel=1e-4)
        assert rows[0].lm_eval["tiny_choice/acc"][int(run.seed or 0) - 1] == got["tiny_choice/acc"]
