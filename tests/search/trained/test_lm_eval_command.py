"""lm-eval's own command line, on an exported model, gives the scores of the trial in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.trained.export import export
from tests.search.trial_runs import TrialRuns
from tests.trainables.trained_examples import CHOICES
from tests.trainables.trained_writers import WRITERS, task_on, trained_writer, write_base
from trainables.engine.workers import join
from trainables.trained.restored import restored
from trainables.training.evaluate import evaluate

pytestmark = pytest.mark.command
WORKERS = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TASK: dict[str, Any] = {
    "task": "tiny_films",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{q}}?\nA:",
    "doc_to_choice": ["bad", "a very good one"],
    "doc_to_target": "{{right}}",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ],
}


def test_lm_eval_scores_the_merged_model_as_the_trial(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    uri = write_base("llama", tmp_path / "base")
    made = task_on(
        uri, tmp_path, "multiple_choice", WRITERS["llama"].suffixes, label="right",
        template="Q: {q}?\nA:", options=TASK["doc_to_choice"], label_form="index",
    )  # fmt: skip
    example = trained_writer(made, CHOICES["joint"])
    with restored(example.trained, example.plan, example.base) as adaptation:
        ours = evaluate(example.base.model, adaptation, made.task, "test", join())
    runs = TrialRuns(tmp_path)
    run_id = runs.trial(made, CHOICES["joint"], example.plan, example.trained)
    export(runs.uri, run_id, "merged", tmp_path / "out")

    data = {"data_files": {"test": str(tmp_path / "test.jsonl")}}
    (tmp_path / "films.yaml").write_text(yaml.safe_dump(TASK | {"dataset_kwargs": data}))
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf",
        "--model_args", f"pretrained={tmp_path / 'out'},dtype=float32",
        "--tasks", "tiny_films", "--include_path", str(tmp_path), "--device", "cpu",
        "--output_path", str(tmp_path / "scores.json"),
    ]  # fmt: skip
    # Without what `join` leaves there, by which lm-eval would look for other workers.
    alone = {key: value for key, value in os.environ.items() if key not in WORKERS}
    places = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    told = subprocess.run(
        command, env=alone | places, capture_output=True, text=True, timeout=300, check=False
    )
    assert told.returncode == 0, told.stderr[-2000:]
    (file,) = tmp_path.rglob("scores*.json")
    theirs = json.loads(file.read_text())["results"]["tiny_films"]
    assert theirs["acc,none"] == pytest.approx(ours["accuracy"], abs=1e-9)
    assert theirs["acc_norm,none"] == pytest.approx(ours["accuracy_per_byte"], abs=1e-9)
    assert 0 < ours["accuracy"] < 1  # or any model would do
