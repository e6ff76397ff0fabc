"""Every kind of task from rows to what a trial leaves, on tiny bases with random weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from spaces.plan import Plan
from tests.trainables.tasks.kinds.examples import EXAMPLES, MadeKind, make_kind
from tests.trainables.trained_examples import assert_same, plan_of
from trainables.adaptations.registry import adaptation_for
from trainables.bases.loading import Base, fresh_head
from trainables.bases.parts import auto_class
from trainables.engine.workers import Workers
from trainables.tasks.measured_rows import MeasuredRows, read_measured_rows
from trainables.tasks.split import outputs_of
from trainables.trained.merged_checkpoint import write_merged_checkpoint
from trainables.trained.peft_checkpoint import write_peft_checkpoint
from trainables.trained.restored import load_its_base, restored
from trainables.trained.weights import Trained, TrainedFacts, read_trained
from trainables.training.evaluate import evaluate_rows
from trainables.training.finetune import finetune
from trainables.training.settings import TrainSettings

CHOICES: Mapping[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 3},
    "taso": {"method": "taso", "retention": 0.3, "rounds": 1, "alpha": 2},
}
SETTINGS = TrainSettings(epochs=2, batch_size=5, dropout=0.0, warmup_ratio=0.0)
SEED = 3
ROUNDING = 1e-5  # of float32: a block that trains is not computed in the order of a frozen one


@dataclass(frozen=True)
class Trial:
    """A trial: its plan, the report of its last epoch, the rows of dev, and what it has left."""

    made: MadeKind
    plan: Plan
    report: Mapping[str, float]
    untouched: Mapping[str, float]
    rows: MeasuredRows
    left: bytes


@pytest.fixture(scope="module", params=EXAMPLES)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeKind:
    return make_kind(request.param, tmp_path_factory.mktemp("kind"))


@pytest.fixture(scope="module", params=CHOICES)
def trial(request: pytest.FixtureRequest, kind: MadeKind, alone: Workers) -> Trial:
    """A trial of two epochs of each kind, by a plan of one stage and by one of two."""
    choice, base = CHOICES[request.param], kind.base()
    task = kind.fitted(base)
    plan = plan_of(base, kind.example.suffixes, choice)
    assert len(plan.stages) == (2 if choice["method"] == "taso" else 1)
    head = fresh_head(base, SEED)
    with adaptation_for(plan, base.model, seed=SEED, head=head) as adaptation:
        untouched, _ = evaluate_rows(base.model, adaptation, task, "dev", alone)
        report = finetune(
            base.model, adaptation, task, SETTINGS, learning_rate=2e-2, seed=SEED, workers=alone
        )
        _, rows = evaluate_rows(base.model, adaptation, task, "dev", alone)
        weights = adaptation.weights()
    facts = TrainedFacts(
        base_uri=base.uri, base_fingerprint=base.fingerprint, model_kind=base.model_kind,
        task_kind=task.kind, labels=task.labels, head_modules=tuple(head),
        method=choice["method"], dtype="float32", seed=SEED,
    )  # fmt: skip
    states = {name: module.state_dict() for name, module in head.items()}
    assert rows is not None
    return Trial(kind, plan, report, untouched, rows, Trained(facts, weights, states).to_bytes())


def test_a_trial_learns_and_its_report_has_the_metric(trial: Trial) -> None:
    task = trial.made.task
    assert {"train_loss", "dev_loss", task.metric} <= trial.report.keys()
    assert all(np.isfinite(value) for value in trial.report.values())
    assert set(trial.untouched) <= set(trial.report)
    assert trial.report["dev_loss"] != trial.untouched["dev_loss"]
    assert trial.report["train_loss"] > 0


def test_rows_read_back_give_the_metric_of_the_report(trial: Trial) -> None:
    again = read_measured_rows(trial.rows.to_bytes())
    assert again.is_of(trial.rows)
    assert again.rows == trial.made.task.fingerprint
    assert len(again) == len(trial.made.task.splits["dev"])
    (value,) = again.on(np.ones((1, len(again))))
    assert value == pytest.approx(trial.report[trial.made.task.metric], rel=ROUNDING)


def test_what_a_trial_leaves_gives_its_report_again(trial: Trial, alone: Workers) -> None:
    trained = read_trained(trial.left)
    base = load_its_base(trained.facts)
    task = trial.made.fitted(base)
    with restored(trained, trial.plan, base) as adaptation:
        report, rows = evaluate_rows(base.model, adaptation, task, "dev", alone)
    assert report == pytest.approx({key: trial.report[key] for key in report}, rel=ROUNDING)
    assert rows is not None
    assert rows.is_of(trial.rows)


# -- export ----------------------------------------------------------------------------------------


@torch.no_grad()
def dev_outputs(trial: Trial, model: Any) -> torch.Tensor:
    """What a model gives for the targets of dev, its rows padded in one pass."""
    split = trial.made.task.splits["dev"]
    batch = split.batch(np.arange(len(split)))
    batch.pop("labels")
    return outputs_of(model.eval(), batch)


@dataclass(frozen=True)
class Restored:
    """A trial put together again, with the base it stands on and what it gives for dev."""

    adaptation: Any
    base: Base
    outputs: torch.Tensor


@pytest.fixture
def again(trial: Trial) -> Iterator[Restored]:
    trained = read_trained(trial.left)
    base = load_its_base(trained.facts)
    with restored(trained, trial.plan, base) as adaptation:
        yield Restored(adaptation, base, dev_outputs(trial, base.model))


def plainly_loaded(trial: Trial, folder: str | Path) -> Any:
    """The checkpoint as transformers loads it by itself, padding as the task does."""
    task = trial.made.task
    arguments = {} if task.head == "causal" else {"num_labels": len(task.labels) or 1}
    if trial.made.example.base != "vit":
        # A decoder's classifier finds the last token of a row by the padding token.
        arguments["pad_token_id"] = vars(task.splits["dev"])["pad_token_id"]
    return auto_class(task.head).from_pretrained(folder, **arguments)


def test_peft_computes_what_was_trained(trial: Trial, again: Restored, tmp_path: Path) -> None:
    kind = trial.made.task.kind
    write_peft_checkpoint(tmp_path, again.adaptation, trial.plan, again.base, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted = peft.PeftModel.from_pretrained(
            plainly_loaded(trial, trial.made.uri.removeprefix("path:")), tmp_path
        )
    assert_same(dev_outputs(trial, adapted), again.outputs)


def test_transformers_computes_what_was_trained(
    trial: Trial, again: Restored, tmp_path: Path
) -> None:
    labels = trial.made.task.labels
    write_merged_checkpoint(tmp_path, again.adaptation, again.base, labels)
    assert_same(dev_outputs(trial, plainly_loaded(trial, tmp_path)), again.outputs)
