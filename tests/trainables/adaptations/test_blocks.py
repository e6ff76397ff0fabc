"""Block adapters against a dense float64 reference: forward, gradients, merged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spaces.plan import Block, Plan
from spaces.target import TargetModule
from tests.trainables.conftest import adapters_of
from trainables.adaptations.blocks import BlockAdaptation

OUT, IN = 7, 5


def indices(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


BLOCKS = {
    "whole": [Block(3, np.arange(OUT, dtype=np.int32), np.arange(IN, dtype=np.int32), 2.0)],
    "two row groups": [
        Block(2, indices(0, 3, 4), np.arange(IN, dtype=np.int32), 1.5),
        Block(1, indices(1, 2, 5, 6), np.arange(IN, dtype=np.int32), 1.5),
    ],
    "rows and columns": [
        Block(2, indices(1, 6), indices(0, 4), 0.5, 2.0),
        Block(3, indices(0, 2), indices(0, 4), 0.5, 2.0),
    ],
    "two learning rates": [
        Block(3, np.arange(OUT, dtype=np.int32), np.arange(IN, dtype=np.int32), 2.0, 1.0),
        Block(2, np.arange(OUT, dtype=np.int32), np.arange(IN, dtype=np.int32), 2.0, 4.0),
    ],
    "overlapping": [
        Block(2, indices(1, 6), indices(0, 2, 4), 3.0),
        Block(2, indices(1, 2), indices(2, 3), 0.25),
    ],
}


class Layered(nn.Module):
    """Two target layers around a non-linearity; one may be GPT-2's transposed Conv1D."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.first = Conv1D(OUT, IN) if transposed else nn.Linear(IN, OUT)
        self.second = nn.Linear(OUT, IN)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn_like(parameter))
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


TARGETS = (TargetModule("first", (OUT, IN)), TargetModule("second", (IN, OUT)))


def randomised(adaptation: BlockAdaptation, stage: int) -> Any:
    """Begin a stage and give its B factors values, so that the update is not zero."""
    parameters = adaptation.begin_stage(stage, 1)
    generator = torch.Generator().manual_seed(stage)
    for adapter in adapters_of(parameters):
        for block in adapter.blocks:
            shape = len(block.block.rows), block.block.rank
            block.write(B=torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5)
    parameters.place()
    return parameters


def dense_update(blocks: Sequence[Block], adapter: Any, shape: tuple[int, int]) -> torch.Tensor:
    """scale * B A written entry by entry into a zero matrix: the definition of a block."""
    total = torch.zeros(shape, dtype=torch.float64)
    for block, factors in zip(blocks, adapter.blocks, strict=True):
        A, B = factors.now()
        for i, row in enumerate(block.rows):
            for j, col in enumerate(block.cols):
                total[row, col] = total[row, col] + block.scale * (B[i, :] @ A[:, j])
    return total


def dense_forward(
    model: Layered, x: torch.Tensor, update: torch.Tensor, transposed: bool
) -> torch.Tensor:
    weight = model.first.weight.T if transposed else model.first.weight
    hidden = x @ (weight + update).T + model.first.bias
    return model.second(torch.tanh(hidden))


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("name", BLOCKS)
def test_forward_and_gradients_equal_the_dense_reference(name: str, transposed: bool) -> None:
    torch.manual_seed(0)
    model, blocks = Layered(transposed), BLOCKS[name]
    x = torch.randn(4, 3, IN, dtype=torch.float64, requires_grad=True)
    plan = Plan.of([{"first": blocks}], TARGETS)
    with BlockAdaptation(model, plan, seed=1) as adaptation:
        parameters = randomised(adaptation, 0)
        trained = list(parameters.parameters())
        y = model(x)
        got = torch.autograd.grad(y.square().sum(), [x, *trained])

    (adapter,) = parameters.adapters
    expected = dense_forward(model, x, dense_update(blocks, adapter, (OUT, IN)), transposed)
    wanted = torch.autograd.grad(expected.square().sum(), [x, *trained])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_finished_stages_go_on_adding_their_update_frozen() -> None:
    torch.manual_seed(0)
    model = Layered(False)
    first, second = BLOCKS["two row groups"], BLOCKS["rows and columns"]
    plan = Plan.of([{"first": first}, {"first": second}], TARGETS)
    x = torch.randn(6, IN, dtype=torch.float64)
    with BlockAdaptation(model, plan, seed=1) as adaptation:
        one = randomised(adaptation, 0)
        update_one = dense_update(first, one.adapters[0], (OUT, IN)).detach()
        adaptation.end_stage()
        two = randomised(adaptation, 1)
        update_two = dense_update(second, two.adapters[0], (OUT, IN)).detach()
        y = model(x)
        y.sum().backward()
        assert all(parameter.grad is None for parameter in one.parameters())
        assert all(parameter.grad is not None for parameter in two.parameters())
        adaptation.end_stage()
        merged = adaptation.updates()["first"]
    expected = dense_forward(model, x, update_one + update_two, False)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged, update_one + update_two, rtol=1e-12, atol=1e-12)


def test_a_weight_of_several_layers_is_updated_in_all_of_them() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(IN, IN, bias=False).double()
            self.two = nn.Linear(IN, IN, bias=False).double()
            self.two.weight = self.one.weight
            self.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(torch.tanh(self.one(x)))

    model = Shared()
    target = TargetModule("one", (IN, IN), ("one", "two"))
    block = Block(2, indices(0, 2), np.arange(IN, dtype=np.int32), 1.0)
    x = torch.randn(3, IN, dtype=torch.float64)
    with BlockAdaptation(model, Plan.of([{"one": [block]}], (target,)), seed=0) as adaptation:
        parameters = randomised(adaptation, 0)
        W = model.one.weight + dense_update([block], parameters.adapters[0], (IN, IN))
        torch.testing.assert_close(model(x), torch.tanh(x @ W.T) @ W.T, rtol=1e-12, atol=1e-12)


def test_one_layer_under_two_names_is_updated_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(IN, IN, bias=False).double().requires_grad_(False)
            self.two = self.one

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x)

    model = Twice()
    target = TargetModule("one", (IN, IN), ("one", "two"))
    block = Block(2, indices(0, 2), np.arange(IN, dtype=np.int32), 1.0)
    x = torch.randn(3, IN, dtype=torch.float64)
    with BlockAdaptation(model, Plan.of([{"one": [block]}], (target,)), seed=0) as adaptation:
        parameters = randomised(adaptation, 0)
        W = model.one.weight + dense_update([block], parameters.adapters[0], (IN, IN))
        torch.testing.assert_close(model(x), x @ W.T, rtol=1e-12, atol=1e-12)


def test_leaving_puts_the_base_back_bit_for_bit_also_after_an_error() -> None:
    model = Layered(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    resident = model.second
    x = torch.randn(2, IN, dtype=torch.float64)
    y = model(x)
    head = {"second": nn.Linear(OUT, IN).double()}
    plan = Plan.of([{"first": BLOCKS["whole"]}], TARGETS[:1])

    def fail() -> None:
        with BlockAdaptation(model, plan, seed=0, head=head) as adaptation:
            randomised(adaptation, 0)
            assert not torch.equal(model(x), y)
            raise RuntimeError("in the middle of a job")

    with pytest.raises(RuntimeError, match="middle"):
        fail()
    assert model.second is resident
    assert torch.equal(model(x), y)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.first._forward_hooks
    assert "forward" not in vars(model.first)


class OwnLinear(nn.Linear):
    """A linear layer of another kind, whose forward is its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_layer_with_a_forward_of_its_own_keeps_it() -> None:
    torch.manual_seed(0)
    model = Layered(False)
    model.first = OwnLinear(IN, OUT).double().requires_grad_(False)
    x = torch.randn(4, IN, dtype=torch.float64)
    plan = Plan.of([{"first": BLOCKS["whole"]}], TARGETS[:1])
    with BlockAdaptation(model, plan, seed=1) as adaptation:
        (adapter,) = randomised(adaptation, 0).adapters
        update = dense_update(BLOCKS["whole"], adapter, (OUT, IN))
        expected = 2 * (x @ model.first.weight.T + model.first.bias) + x @ update.T
        torch.testing.assert_close(model.first(x), expected, rtol=1e-12, atol=1e-12)


def test_others_hooks_on_an_adapted_layer_see_what_it_reads_and_gives() -> None:
    torch.manual_seed(0)
    model, seen = Layered(False), []
    x = torch.randn(4, IN, dtype=torch.float64)
    model.first.register_forward_hook(lambda _layer, inputs, y: seen.append((*inputs, y)))
    plan = Plan.of([{"first": BLOCKS["whole"]}], TARGETS[:1])
    with BlockAdaptation(model, plan, seed=1) as adaptation:
        randomised(adaptation, 0)
        y = model.first(x)
    assert torch.equal(seen[0][0], x)
    assert torch.equal(seen[0][1], y)


def test_a_copy_of_an_adapted_layer_computes_with_its_own_weight() -> None:
    torch.manual_seed(0)
    model = Layered(False)
    x = torch.randn(4, IN, dtype=torch.float64)
    plan = Plan.of([{"first": BLOCKS["whole"]}], TARGETS[:1])
    with BlockAdaptation(model, plan, seed=1) as adaptation:
        randomised(adaptation, 0)
        other = copy.deepcopy(model.first)
        y = model.first(x)
        with torch.no_grad():
            other.weight.add_(1.0)
        assert torch.equal(model.first(x), y)
        shifted = y + x.sum(1, keepdim=True)
        torch.testing.assert_close(other(x), shifted, rtol=1e-12, atol=1e-12)


def test_blocks_start_at_zero_with_the_kaiming_draw_of_the_full_matrix() -> None:
    model = nn.Sequential(nn.Linear(50, 60))
    block = Block(40, indices(1, 2), np.arange(20, dtype=np.int32), 1.0)  # 20 columns of 50
    plan = Plan.of([{"0": [block]}], (TargetModule("0", (60, 50)),))
    with BlockAdaptation(model, plan, seed=3) as adaptation:
        (adapter,) = adapters_of(adaptation.begin_stage(0, 1))
        A, B = (factor.detach() for factor in adapter.blocks[0].now())
    assert B.shape == (2, 40)
    assert not B.any()
    bound = 1 / math.sqrt(50)
    assert A.shape == (40, 20)
    assert float(A.abs().max()) <= bound
    # a uniform draw on [-b, b] has variance b^2 / 3; 800 samples lie well within 15% of it
    assert float(A.var()) == pytest.approx(bound**2 / 3, rel=0.15)


def test_the_draw_depends_on_seed_and_stage_alone() -> None:
    plan = Plan.of([{"first": BLOCKS["whole"]}, {"first": BLOCKS["whole"]}], TARGETS)

    def draws(seed: int) -> list[torch.Tensor]:
        found = []
        with BlockAdaptation(Layered(False), plan, seed=seed) as adaptation:
            for stage in range(2):
                torch.rand(17)  # other uses of the global generator do not matter
                parameters = adaptation.begin_stage(stage, 1)
                found.append(adapters_of(parameters)[0].blocks[0].now()[0].detach().clone())
                adaptation.end_stage()
        return found

    one, again, other = draws(5), draws(5), draws(6)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other[0])


def test_trainable_blocks_share_one_dropout_mask_and_frozen_ones_read_the_whole_input() -> None:
    torch.manual_seed(0)
    model = Layered(False)
    whole = np.arange(IN, dtype=np.int32)
    blocks = [Block(1, indices(0), whole, 1.0), Block(1, indices(1), whole, 1.0)]
    plan = Plan.of([{"first": blocks}, {"first": blocks}], TARGETS)
    x = torch.ones(64, IN, dtype=torch.float64)
    with BlockAdaptation(model, plan, seed=0, dropout=0.5) as adaptation:
        stage = adaptation.begin_stage(0, 1)
        with torch.no_grad():
            for parameter in stage.parameters():
                parameter.fill_(1.0)
        stage.place()
        base = nn.functional.linear(x, model.first.weight, model.first.bias)
        delta = model.first(x) - base
        assert torch.equal(delta[:, 0].round(decimals=9), delta[:, 1].round(decimals=9))
        assert set(delta[:, 0].round().tolist()) <= {0.0, 2.0, 4.0, 6.0, 8.0, 10.0}
        assert len(set(delta[:, 0].round().tolist())) > 2
        adaptation.end_stage()
        adaptation.begin_stage(1, 1)
        frozen = model.first(x) - base  # the new blocks' B is zero
        torch.testing.assert_close(frozen[:, 0], torch.full((64,), 5.0, dtype=torch.float64))


def test_a_stage_trains_one_parameter_for_each_learning_rate() -> None:
    whole = np.arange(IN, dtype=np.int32), np.arange(OUT, dtype=np.int32)
    stage = {
        "first": [Block(2, whole[1], whole[0], 1.0), Block(3, indices(2, 5), whole[0], 1.0, 4.0)],
        "second": [Block(1, whole[0], indices(0, 3), 0.5)],
    }
    plan = Plan.of([stage], TARGETS)
    with BlockAdaptation(Layered(False), plan, seed=0) as adaptation:
        parameters = adaptation.begin_stage(0, 1)
        groups = parameters.parameter_groups(1e-2, 0.1)
        sizes = [(group["lr_scale"], sum(p.numel() for p in group["params"])) for group in groups]
        assert len(list(parameters.parameters())) == 2
        assert [group["lr"] for group in groups] == pytest.approx([1e-2, 4e-2])
    assert sizes == [(1.0, 2 * (OUT + IN) + (IN + 2)), (4.0, 3 * (2 + IN))]


@pytest.mark.parametrize("name", BLOCKS)
def test_measuring_and_the_next_forward_see_what_has_been_trained(name: str) -> None:
    """Also where an engine has put the parameters into memory of its own."""
    layered, blocks = Layered(False), BLOCKS[name]
    model = Outputs(layered)
    x = torch.randn(4, IN, dtype=torch.float64)
    target = TargetModule("model.first", (OUT, IN))
    plan = Plan.of([{"model.first": blocks}], (target,))
    with BlockAdaptation(model, plan, seed=1) as adaptation:
        parameters: Any = adaptation.begin_stage(0, 1)
        for train in (True, False, True):
            for parameter in parameters.parameters():
                parameter.data = torch.randn_like(parameter)
            if train:
                y = parameters({"x": x})
            else:
                adaptation.eval()
                y = model(x).logits
            update = dense_update(blocks, parameters.adapters[0], (OUT, IN))
            expected = dense_forward(layered, x, update, False)
            torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
            assert y.requires_grad == train


class Outputs(nn.Module):
    """A model of layers whose output has logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.model(x))
