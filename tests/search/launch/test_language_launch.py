"""Whole launches of tasks that a decoder learns, and what plain transformers and PEFT make of the
adapter of the best."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
import yaml

from search.cli.view import View
from search.config.reading import load_sweep
from search.launch.launch import launch
from search.launch.result import LaunchResult
from search.tracking.runs import RecordedRuns
from search.trained.export import export
from tests.trainables.tasks.kinds.examples import EXAMPLES, Row, write_decoder, write_rows

pytestmark = pytest.mark.ray

ROWS = {"train": 24, "dev": 12, "test": 12}


def launched(folder: Path, name: str, section: Mapping[str, Any]) -> LaunchResult:
    """A launch in `folder`: one epoch of two methods on a tiny Llama, the best with two seeds."""
    rng = np.random.default_rng(0)
    for split, number in ROWS.items():
        rows = [EXAMPLES[name].row(rng, i) for i in range(number)]
        write_rows(folder / f"{split}.jsonl", rows)
    sweep = {
        "name": "tiny",
        "base": write_decoder("llama", folder / "base"),
        "task": {
            "name": "tiny-task",
            "kind": EXAMPLES[name].kind,
            "data": {split: str(folder / f"{split}.jsonl") for split in ROWS},
            "max_length": 96,
            **section,
        },
        "profile": {"target_modules": ["q_proj", "v_proj"], "rank": 2, "calibration_batches": 2},
        "space": {"methods": ["lora", "pilora"]},
        "search": {"trials": 2, "scheduler": "none"},
        "train": {"epochs": 1, "batch_size": 8},
        "confirm": {"seeds": 2},
        "store": f"file://{folder / 'store'}",
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    config = load_sweep(folder / "sweep.yaml", ["cluster.address=auto"])
    with View("tiny", metric=config.task.metric) as view:
        return launch(config, view=view)


def confirmed_runs(result: LaunchResult) -> list[Any]:
    recorded = RecordedRuns(result.tracking_uri)
    return recorded.search({"kind": "confirm", "status": "complete"}, recorded.experiments())


def exported(result: LaunchResult, runs: Sequence[Any], folder: Path) -> tuple[Any, Any, Any]:
    """The confirmation that is exported of the best choice, the base with its adapter as its users
    load them, and the tokenizer."""
    best = result.best[0].run_id
    assert best is not None
    done = export(result.tracking_uri, best, "peft", folder / "out")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    model = peft.PeftModel.from_pretrained(base, folder / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "out")
    (run,) = (run for run in runs if run.run_id == done["run_id"])
    return run, model.eval(), tokenizer


@torch.no_grad()
def log_likelihood(model: Any, prompt: list[int], answer: list[int]) -> float:
    """The summed log-probability of an answer's tokens behind a prompt's."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i][token]) for i, token in enumerate(answer))


def rows_of(folder: Path, split: str) -> list[Row]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_the_adapter_of_the_best_choice_has_the_accuracy_that_was_logged(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "multiple_choice on llama"
    result = launched(tmp_path, name, EXAMPLES[name].section)
    assert result.states == {"complete": 2}
    assert {row.method for row in result.best} == {"lora", "pilora"}
    assert set(result.constant_answers) == {"dev", "test"}
    runs = confirmed_runs(result)
    assert sorted(run.seed for run in runs) == [1, 1, 2, 2]  # each choice with both

    run, model, tokenizer = exported(result, runs, tmp_path)
    hits, losses, targets = [], 0.0, 0
    for row in rows_of(tmp_path, "test"):
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = [tokenizer(f"{row['prompt']} {option}")["input_ids"] for option in row["options"]]
        answers = [ids[len(prompt) :] for ids in whole]
        scores = [log_likelihood(model, prompt, answer) for answer in answers]
        hits.append(int(np.argmax(scores)) == row["label"])
        losses -= scores[row["label"]]
        targets += len(answers[row["label"]])
    with model.disable_adapter():
        assert abs(log_likelihood(model, prompt, answers[0]) - scores[0]) > 1e-3
    assert run.metrics["test_loss"] == pytest.approx(losses / targets, rel=1e-4)
    assert run.metrics["test_accuracy"] == pytest.approx(np.mean(hits))


def test_the_adapter_of_the_best_choice_has_the_loss_that_was_logged(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "causal on llama"
    section = {**EXAMPLES[name].section, "metric": "perplexity"}
    result = launched(tmp_path, name, section)
    assert result.states == {"complete": 2}
    values = [row.value for row in result.best]
    assert values == sorted(values)  # the least perplexity is the best
    runs = confirmed_runs(result)
    assert sorted(run.seed for run in runs) == [1, 1, 2, 2]  # each choice with both

    run, model, tokenizer = exported(result, runs, tmp_path)
    loss, targets = 0.0, 0
    for row in rows_of(tmp_path, "test"):
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = tokenizer(f"{row['prompt']} {row['completion']}")["input_ids"]
        answer = [*whole[len(prompt) :], tokenizer.eos_token_id]
        loss -= log_likelihood(model, prompt, answer)
        targets += len(answer)
    assert run.metrics["test_loss"] == pytest.approx(loss / targets, rel=1e-4)
    perplexity = math.exp(loss / targets)
    assert run.metrics["test_perplexity"] == pytest.approx(perplexity, rel=1e-4)
