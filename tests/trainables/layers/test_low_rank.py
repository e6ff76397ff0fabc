"""The product written by hand is that of autograd, and drops what dropout would."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainables.layers.dropout import dropped_entries
from trainables.layers.low_rank import LowRank, linear_with_update

SHAPE = (3, 5)  # rows and tokens
OUT, IN, RANK = 7, 6, 2


def drawn(seed: int = 0, ranks: tuple[int, ...] = (RANK,)) -> list[torch.Tensor]:
    """x, the frozen weight and bias, and A and B of every rank, in float64."""
    generator = torch.Generator().manual_seed(seed)
    factors = [size for rank in ranks for size in ((rank, IN), (OUT, rank))]
    sizes = ((*SHAPE, IN), (OUT, IN), (OUT,), *factors)
    made = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [tensor.requires_grad_(i not in (1, 2)) for i, tensor in enumerate(made)]


def kept(probability: float) -> torch.Tensor:
    """What the product's next draw leaves of each entry of x, scaled as dropout scales it."""
    mask = torch.ones(math.prod(SHAPE) * IN, dtype=torch.float64)
    if probability:
        mask[dropped_entries(len(mask), probability)] = 0
    return mask.view(*SHAPE, IN) / (1 - probability)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("probability", [0.0, 0.05, 0.2, 0.5, 0.9])
def test_value_and_gradients_are_those_of_autograd_with_the_same_entries_dropped(
    probability: float, biased: bool
) -> None:
    x, W, b, A, B = drawn()
    bias = b if biased else None
    torch.manual_seed(3)
    expected = nn.functional.linear(x, W, bias) + 1.5 * (x * kept(probability)) @ A.T @ B.T
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), (x, A, B))
    torch.manual_seed(3)
    value = linear_with_update(x, W, bias, LowRank(A, B, 1.5, probability))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad((value * weights).sum(), (x, A, B))
    for each, oracle in zip(found, gradients, strict=True):
        torch.testing.assert_close(each, oracle, rtol=1e-12, atol=1e-12)


def test_several_updates_each_read_the_input_with_entries_dropped_of_their_own() -> None:
    x, W, b, A, B, C, D = drawn(ranks=(2, 3))
    torch.manual_seed(3)
    first, second = kept(0.4), kept(0.2)
    expected = nn.functional.linear(x, W, b)
    expected = expected + (x * first) @ A.T @ B.T + 0.5 * (x * second) @ C.T @ D.T
    gradients = torch.autograd.grad(expected.square().sum(), (x, A, B, C, D))
    torch.manual_seed(3)
    value = linear_with_update(x, W, b, LowRank(A, B, 1.0, 0.4), LowRank(C, D, 0.5, 0.2))
    found = torch.autograd.grad(value.square().sum(), (x, A, B, C, D))
    for each, oracle in zip((value, *found), (expected, *gradients), strict=True):
        torch.testing.assert_close(each, oracle, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("asked", [(0,), (3,), (4,), (3, 4), (0, 4), (0, 3)])
def test_only_the_gradients_that_are_asked_for_are_made(asked: tuple[int, ...]) -> None:
    tensors = [tensor.detach() for tensor in drawn()]
    for i in asked:
        tensors[i].requires_grad_(True)
    x, W, b, A, B = tensors
    expected = nn.functional.linear(x, W, b) + x @ A.T @ B.T
    oracles = torch.autograd.grad(expected.square().sum(), [tensors[i] for i in asked])
    value = linear_with_update(x, W, b, LowRank(A, B))
    found = torch.autograd.grad(value.square().sum(), [tensors[i] for i in asked])
    for each, oracle in zip(found, oracles, strict=True):
        torch.testing.assert_close(each, oracle)


def test_a_layer_that_trains_has_gradients_of_its_own() -> None:
    x, W, b, A, B = drawn()
    W.requires_grad_(True)
    expected = nn.functional.linear(x, W, b) + x @ A.T @ B.T
    oracle = torch.autograd.grad(expected.square().sum(), W)
    value = linear_with_update(x, W, b, LowRank(A, B))
    torch.testing.assert_close(torch.autograd.grad(value.square().sum(), W), oracle)


@pytest.mark.parametrize("biased", [True, False])
def test_a_layer_without_updates_is_itself(biased: bool) -> None:
    x, W, b, _, _ = drawn()
    bias = b if biased else None
    assert torch.equal(linear_with_update(x, W, bias, []), nn.functional.linear(x, W, bias))


def test_inputs_weights_and_gradients_may_lie_in_any_order() -> None:
    x, W, b, A, B = drawn()
    turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(True)
    stored = W.T.contiguous().T
    weights = torch.randn(SHAPE[1], SHAPE[0], OUT, dtype=torch.float64).transpose(0, 1)
    torch.manual_seed(1)
    expected = nn.functional.linear(x, W, b) + (x * kept(0.3)) @ A.T @ B.T
    oracles = torch.autograd.grad((expected * weights).sum(), (x, A, B))
    torch.manual_seed(1)
    value = linear_with_update(turned, stored, b, LowRank(A, B, dropout=0.3))
    for each, oracle in zip(
        torch.autograd.grad((value * weights).sum(), (turned, A, B)), oracles, strict=True
    ):
        torch.testing.assert_close(each, oracle)


def test_factors_may_lie_in_any_order_and_a_batch_may_be_empty() -> None:
    x, W, b, A, B = drawn()
    turned = LowRank(A.T.contiguous().T, B.T.contiguous().T, 0.5)
    expected = nn.functional.linear(x, W, b) + 0.5 * x @ A.T @ B.T
    torch.testing.assert_close(linear_with_update(x, W, b, turned), expected)
    y = linear_with_update(x[:0], W, b, LowRank(A, B, 0.5, 0.1))
    assert y.shape == (0, SHAPE[1], OUT)
    (found,) = torch.autograd.grad(y.sum(), A)
    assert torch.equal(found, torch.zeros_like(A))


def test_a_number_that_is_not_finite_stays_what_it_is() -> None:
    x, W, b, A, B = (tensor.detach() for tensor in drawn())
    x[1, 2, 3] = math.nan
    y = linear_with_update(x, W, b, LowRank(A, B))
    assert y.isnan().any(-1).nonzero().tolist() == [[1, 2]]


def test_an_input_that_two_layers_share_is_left_as_it_is() -> None:
    x, W, b, A, B = drawn()
    before, factors = x.detach().clone(), (x, A, B)
    torch.manual_seed(2)
    masks = [kept(0.3), kept(0.3)]
    expected = [nn.functional.linear(x, W, b) + (x * mask) @ A.T @ B.T for mask in masks]
    oracles = torch.autograd.grad(torch.stack(expected).sum(0).square().sum(), factors)
    torch.manual_seed(2)
    read = x * 1
    values = [linear_with_update(read, W, b, LowRank(A, B, dropout=0.3)) for _ in masks]
    assert torch.equal(read, before)
    found = torch.autograd.grad(torch.stack(values).sum(0).square().sum(), factors)
    assert torch.equal(read, before)
    for each, oracle in zip(found, oracles, strict=True):
        torch.testing.assert_close(each, oracle, rtol=1e-12, atol=1e-12)


def test_an_update_of_zero_leaves_the_layer_bit_for_bit() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 30).requires_grad_(False), torch.randn(3, 50, 40)
    update = LowRank(torch.randn(8, 40), torch.zeros(30, 8), 2.0, 0.1)
    assert torch.equal(linear_with_update(x, layer.weight, layer.bias, update), layer(x))


@pytest.mark.parametrize("factors", ["as the base", "float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_of_16_bits_is_read_in_its_precision(dtype: torch.dtype, factors: str) -> None:
    tensors = [tensor.detach().to(dtype) for tensor in drawn()]
    x, W, b, A, B = (tensor.double() for tensor in tensors)
    expected = nn.functional.linear(x, W, b) + x @ A.T @ B.T
    x, W, b, A, B = tensors
    if factors == "float32":
        A, B = A.float(), B.float()
    A.requires_grad_(True)
    value = linear_with_update(x, W, b, LowRank(A, B))
    assert value.dtype == dtype
    torch.testing.assert_close(value.double(), expected, rtol=2e-2, atol=5e-2)
    oracle = expected.new_ones(expected.shape).view(-1, OUT) @ B.double()
    (found,) = torch.autograd.grad(value.sum(), A)
    torch.testing.assert_close(
        found.double(), oracle.T @ x.double().view(-1, IN), rtol=2e-2, atol=2e-1
    )
