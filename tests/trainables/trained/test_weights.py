"""A trial's weights: the file rebuilds the trained function; a wrong file says what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from spaces.errors import UsageError
from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Plan
from tests.trainables.conftest import head_of, tiny_bert, tiny_task
from trainables.adaptations.registry import adaptation_for
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import Workers
from trainables.trained.weights import Trained, TrainedFacts, read_trained
from trainables.training.finetune import finetune
from trainables.training.settings import TrainSettings

FACTS = TrainedFacts(
    base_uri="path:/bases/tiny", base_fingerprint="b" * 64, model_kind="bert",
    task_kind="classification", labels=("no", "yes"), head_modules=("classifier",),
    method="taso", dtype="float64", seed=3,
)  # fmt: skip


def two_stages(model: Any) -> Plan:
    """Half the rows of every query and key, then half the columns, two rounds."""
    from spaces.plan import Block, all_indices

    targets = resolve_targets(model, ("classifier",), ("query", "key"))
    rows = {
        t.name: [Block(1, all_indices(t.shape[0])[::2], all_indices(t.shape[1]), 1.0, 1.5)]
        for t in targets
    }
    cols = {
        t.name: [Block(1, all_indices(t.shape[0]), all_indices(t.shape[1])[1::2], 1.0, 1.5)]
        for t in targets[:2]
    }
    return Plan.of([rows, cols, {}, cols], targets)


def trained(
    alone: Workers, plan_of: Callable[[Any], Plan]
) -> tuple[Plan, Trained, torch.Tensor, dict[str, torch.Tensor]]:
    """A plan, its weights after training, and what the trained model gives for a batch."""
    model, task = tiny_bert(), tiny_task()
    plan, head = plan_of(model), head_of(model, seed=3)
    with adaptation_for(plan, model, seed=3, dropout=0.1, head=head) as adaptation:
        finetune(
            model, adaptation, task, TrainSettings(epochs=2, batch_size=4, dropout=0.1),
            learning_rate=0.05, seed=3, workers=alone,
        )  # fmt: skip
        batch = task.splits["dev"].batch(np.arange(5))
        batch.pop("labels")
        model.eval()
        with torch.no_grad():
            logits = model(**batch).logits
        states = {name: module.state_dict() for name, module in head.items()}
        return plan, Trained(FACTS, adaptation.weights(), states), logits, batch


@pytest.mark.parametrize(
    "plan_of",
    [
        two_stages,
        lambda model: make_plan(
            parse_choice({"method": "pilora", "rank": 3, "partition": {"rule": "random"}}),
            resolve_targets(model, ("classifier",), ("all-linear",)),
            None,
        ),
    ],
    ids=["stages", "two blocks"],
)
def test_the_file_rebuilds_the_trained_function_on_an_untouched_base(
    alone: Workers, plan_of: Callable[[Any], Plan]
) -> None:
    plan, left, logits, batch = trained(alone, plan_of)
    read = read_trained(left.to_bytes())
    assert read.facts == FACTS
    model = tiny_bert()
    with adaptation_for(
        Plan.from_bytes(plan.to_bytes()), model, seed=99, head=read.head_for(model)
    ) as again:
        again.load(read.weights)
        with torch.no_grad():
            torch.testing.assert_close(model(**batch).logits, logits, rtol=1e-12, atol=1e-12)
        merged = again.merged()
    # merged into a copy, the base computes the same without any adapter
    plain = tiny_bert()
    for name, module in read.head_for(plain).items():
        plain.set_submodule(name, module)
    missing, unexpected = plain.load_state_dict(merged, strict=False)
    assert not unexpected
    assert not set(missing) & set(merged)
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, logits, rtol=1e-10, atol=1e-10)
        base = tiny_bert()(**batch).logits
    assert not torch.allclose(base, logits, atol=1e-3)


def test_weights_of_another_plan_are_refused_by_name(alone: Workers) -> None:
    _, left, _, _ = trained(alone, two_stages)
    model = tiny_bert()
    targets = resolve_targets(model, ("classifier",), ("query", "key"))
    other = make_plan(parse_choice({"method": "lora", "rank": 2}), targets, None)
    with (
        adaptation_for(other, model, seed=0) as adaptation,
        pytest.raises(UsageError, match=r"stage0/.*query/block0/A is \[1, 16\].*\[2, 16\]"),
    ):
        adaptation.load(left.weights)


def test_a_head_of_another_size_is_refused(alone: Workers) -> None:
    _, left, _, _ = trained(alone, two_stages)
    model = tiny_bert()
    model.classifier = torch.nn.Linear(16, 5)
    with pytest.raises(UsageError, match=r"weight is \[2, 16\].*\[5, 16\]"):
        left.head_for(model)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not the weights of a trial"),
        (b"\xff" * 64, "not the weights of a trial"),
        (safetensors.torch.save({"a": torch.zeros(1)}), "not the weights of a trial"),
        (
            safetensors.torch.save({"a": torch.zeros(1)}, metadata={"ranksweep": "{}"}),
            "not the weights of a trial",
        ),
        (
            safetensors.torch.save(
                {"head/other/weight": torch.zeros(1)},
                metadata={"ranksweep": json.dumps({"schema_version": 1, **vars(FACTS)})},
            ),
            "belongs to no head module",
        ),
    ],
    ids=["empty", "no safetensors", "no facts", "facts missing", "stray head"],
)
def test_a_wrong_file_is_refused_on_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refused:
        read_trained(data, "run/weights.safetensors")
    assert str(refused.value).startswith("run/weights.safetensors: ")
    assert "\n" not in str(refused.value)


def test_weights_of_a_kind_of_somebodys_own_are_read_only_where_its_code_is_wanted() -> None:
    data = Trained(replace(FACTS, task_kind="own_of_a_file:Kind"), {}, {}).to_bytes()
    with pytest.raises(UsageError, match=r"^run: .*'own_of_a_file:Kind'.*--own-code"):
        read_trained(data, "run")
    assert read_trained(data, "run", own_code=True).facts.task_kind == "own_of_a_file:Kind"
    assert "own_of_a_file" not in sys.modules
