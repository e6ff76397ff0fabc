"""A plan starts from the weights of another where their blocks lie in the same place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from spaces.errors import UsageError
from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Plan
from tests.trainables.conftest import head_of, tiny_bert, tiny_task
from tests.trainables.trained.test_weights import FACTS, two_stages
from trainables.adaptations.registry import adaptation_for
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import Workers
from trainables.trained.warm import agreement, warm_weights
from trainables.trained.weights import Trained, read_trained
from trainables.training.finetune import finetune
from trainables.training.observer import Observer
from trainables.training.settings import TrainSettings


def plan_of(model: Any, **choice: Any) -> Plan:
    targets = resolve_targets(model, ("classifier",), ("query", "key"))
    return make_plan(parse_choice({"method": "lora", "rank": 3, **choice}), targets, None)


def trained(workers: Workers, model: Any, plan: Plan) -> Trained:
    """The weights of a plan, taken at the end of its second epoch of three."""
    taken: list[dict[str, torch.Tensor]] = []

    class Takes(Observer):
        def on_epoch(self, epoch: int, report: dict[str, float]) -> None:
            taken.append(adaptation.weights_so_far())

    with adaptation_for(plan, model, seed=1, head=head_of(model, seed=1)) as adaptation:
        finetune(
            model, adaptation, tiny_task(), TrainSettings(epochs=3, batch_size=4),
            learning_rate=0.05, seed=1, workers=workers, observer=Takes(),
        )  # fmt: skip
        assert all(torch.equal(taken[-1][k], v) for k, v in adaptation.weights().items())
    return Trained(FACTS, taken[1], {})


def updates(model: Any, plan: Plan, start: Trained) -> dict[str, torch.Tensor]:
    """The update of every module before a step was trained."""
    with adaptation_for(plan, model, seed=5) as adaptation:
        adaptation.start_from(start.weights)
        for stage in range(adaptation.stages):
            adaptation.begin_stage(stage, 1)
            adaptation.end_stage()
        return adaptation.updates()


def loaded(model: Any, plan: Plan, weights: Trained) -> dict[str, torch.Tensor]:
    with adaptation_for(plan, model, seed=9) as adaptation:
        adaptation.load(weights.weights)
        return adaptation.updates()


@pytest.mark.parametrize("changed", [{"learning_rate": 1e-2}, {"alpha": 48.0}])
def test_a_changed_copy_starts_as_the_function_that_was_trained(
    alone: Workers, changed: dict[str, Any]
) -> None:
    model = tiny_bert()
    source, plan = plan_of(model), plan_of(model, **changed)
    was = trained(alone, model, source)
    agreed = agreement(source, plan)
    assert agreed.in_words == f"{len(plan.targets)} of {len(plan.targets)} blocks"
    start = read_trained(warm_weights(was, agreed).to_bytes())
    before = loaded(model, source, was)
    for name, update in updates(model, plan, start).items():
        torch.testing.assert_close(update, before[name])
        assert update.abs().max() > 0


def test_blocks_in_another_place_start_afresh_and_stages_to_come_too(alone: Workers) -> None:
    model = tiny_bert()
    whole = two_stages(model)
    targets = whole.targets
    first = {name: list(blocks) for name, blocks in whole.stages[0].items()}
    moved = {
        **first,
        targets[0].name: [replace(first[targets[0].name][0], rows=np.arange(3, dtype=np.int32))],
    }
    plan = Plan.of([moved, *whole.stages[1:]], targets)
    agreed = agreement(whole, plan)
    blocks = sum(len(b) for stage in whole.stages for b in stage.values())
    assert agreed.in_words == f"{blocks - 1} of {blocks} blocks"
    was = Trained(
        FACTS, {f"stage0/{t.name}/block0/{f}": torch.ones(1) for t in targets for f in "AB"}, {}
    )
    taken = {name.rpartition("/")[0] for name in warm_weights(was, agreed).weights}
    assert taken == {f"stage0/{target.name}/block0" for target in targets[1:]}


def test_what_cannot_start_warm_is_refused_in_one_line() -> None:
    model = tiny_bert()
    lora = plan_of(model)
    with pytest.raises(
        UsageError, match=r"--warm: none of the \d+ blocks of the plan has the rank"
    ):
        agreement(lora, plan_of(model, rank=2))
    dora = plan_of(model, method="dora")
    for one, other in ((lora, dora), (dora, lora)):
        with pytest.raises(UsageError, match="--warm: dora is not trained as blocks"):
            agreement(one, other)
    with adaptation_for(dora, model, seed=0) as adaptation, pytest.raises(UsageError):
        adaptation.start_from({})
