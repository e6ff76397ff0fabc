"""W + dA + dB against dense sums in float64, written out entry by entry."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from spaces.errors import UsageError
from spaces.plan import Plan
from tests.trainables.families import Made, make
from tests.trainables.trained_examples import CHOICES, Example, plan_of, trained_at_random
from trainables.bases.loading import Base, load_base
from trainables.tasks.task import Task
from trainables.trained.composition import (
    Side,
    Update,
    added,
    compose,
    limited,
    update_of,
)
from trainables.trained.restored import restored


@pytest.fixture(scope="module", params=["bert", "gpt2", "albert"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def base(made: Made) -> Base:
    return load_base(made.uri, made.kind, 2, torch.float64)


@pytest.fixture(scope="module")
def pair(made: Made, base: Base) -> tuple[Example, Example]:
    """Two trials of two methods, which share some modules and not others."""
    one = plan_of(base, made.suffixes, CHOICES["pilora"])
    two = plan_of(base, made.suffixes[1:], CHOICES["taso of two rounds"])
    return trained_at_random(made, base, one, seed=1), trained_at_random(made, base, two, seed=2)


def dense_updates(example: Example) -> dict[str, np.ndarray]:
    """scale * B A of every block, entry by entry, summed in a matrix [out, in] per module."""
    shapes = {target.name: target.shape for target in example.plan.targets}
    updates = {name: np.zeros(shape) for name, shape in shapes.items()}
    for i, stage in enumerate(example.plan.stages):
        for name, blocks in stage.items():
            for j, block in enumerate(blocks):
                A, B = (
                    example.trained.weights[f"stage{i}/{name}/block{j}/{factor}"].numpy()
                    for factor in "AB"
                )
                for r, row in enumerate(block.rows):
                    for c, col in enumerate(block.cols):
                        updates[name][row, col] += block.scale * (B[r] @ A[:, c])
    return updates


def dense_model(base: Base, *examples: Example) -> Any:
    """A copy of the base whose weights are W plus the dense updates."""
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        for example in examples:
            for name, update in dense_updates(example).items():
                layer = model.get_submodule(name)
                laid_out = update.T if isinstance(layer, Conv1D) else update
                layer.weight += torch.from_numpy(laid_out)
    return model


def updates_of(base: Base, *examples: Example) -> list[Update]:
    updates = []
    for example in examples:
        with restored(example.trained, example.plan, base) as adaptation:
            updates.append(update_of(adaptation))
    return updates


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_every_parameter_is_the_sum_of_base_and_updates(
    base: Base, pair: tuple[Example, Example]
) -> None:
    before, wanted = state_of(base.model), state_of(dense_model(base, *pair))
    with added(base.model, updates_of(base, *pair)):
        during = state_of(base.model)
    for name, tensor in during.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-13, atol=1e-13)
    after = state_of(base.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(torch.equal(before[name], during[name]) for name in before)


def accuracy(model: Any, example: Example, task: Task, split: str) -> float:
    rows = task.splits[split]
    batch = rows.batch(np.arange(len(rows)))
    labels = batch.pop("labels")
    for name, module in example.trained.head_for(model).items():
        model.set_submodule(name, module)
    with torch.no_grad():
        predicted = model.eval()(**batch).logits.argmax(-1)
    return float((predicted == labels).double().mean())


@pytest.mark.parametrize("split", ["dev", "test"])
def test_each_task_is_measured_with_its_own_head(
    made: Made, base: Base, pair: tuple[Example, Example], split: str, alone: Any
) -> None:
    one, other = (Side(each.trained, each.plan, made.task, base) for each in pair)
    before = state_of(base.model)
    for example, (own, both) in zip(pair, compose((one, other), split, alone), strict=True):
        assert own == pytest.approx(accuracy(dense_model(base, example), example, made.task, split))
        assert both == pytest.approx(accuracy(dense_model(base, *pair), example, made.task, split))
    after = state_of(base.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


class Whole:
    """An adaptation without low-rank factors: it names what parameters became."""

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        self.values = values

    def factors(self) -> Any:
        raise UsageError("full: has no factors")

    def merged(self) -> Mapping[str, torch.Tensor]:
        return self.values


def test_an_update_of_full_rank_is_the_difference_from_the_base(
    base: Base, pair: tuple[Example, Example]
) -> None:
    one, two = pair
    tuned = state_of(dense_model(base, one))
    bias = next(name for name in tuned if name.endswith("bias"))
    tuned[bias] += 1
    whole = update_of(Whole(tuned))  # type: ignore[arg-type]
    wanted = state_of(dense_model(base, one, two))
    wanted[bias] += 1
    with added(base.model, [whole, *updates_of(base, two)]):
        for name, tensor in state_of(base.model).items():
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-13, atol=1e-13)


def test_an_update_of_another_shape_is_refused(base: Base, pair: tuple[Example, Example]) -> None:
    before = state_of(base.model)
    (update,) = updates_of(base, pair[0])
    name, (A, B) = next(iter(update.factors.items()))
    wider = Update({**update.factors, name: (A, torch.cat([B, B]))}, {})
    with (
        pytest.raises(UsageError, match=r"the update is .*, the base's parameter"),
        added(base.model, [wider]),
    ):
        pass
    after = state_of(base.model)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_limited_split_holds_the_first_rows_alone(made: Made) -> None:
    whole, few = made.task.splits["dev"], limited(made.task, "dev", 3).splits["dev"]
    assert len(few) == len(few.lengths) == len(few.targets) == 3
    indices = np.arange(3)
    for key, tensor in few.batch(indices).items():
        assert torch.equal(tensor, whole.batch(indices)[key])
    assert len(limited(made.task, "dev", 999).splits["dev"]) == len(whole)
    assert limited(made.task, "dev", None) is made.task


def test_plans_of_nothing_leave_the_base_as_it_is(made: Made, base: Base) -> None:
    targets = plan_of(base, made.suffixes, CHOICES["lora"]).targets
    empty = trained_at_random(made, base, Plan.of([{}], targets))
    before = state_of(base.model)
    with added(base.model, updates_of(base, empty, empty)):
        during = state_of(base.model)
    assert all(torch.equal(before[name], during[name]) for name in before)
