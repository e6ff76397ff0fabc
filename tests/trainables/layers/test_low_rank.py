"""Products written by hand are those of autograd, and drop what dropout would."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainables.layers import low_rank
from trainables.layers.dropout import DrawnAgain, dropped_entries
from trainables.layers.low_rank import LowRank, SharedInput, add_low_rank, linear_with_update

SHAPE = (3, 5)  # rows and tokens
OUT, IN, RANK = 7, 6, 2


def drawn(seed: int = 0, ranks: tuple[int, ...] = (RANK,)) -> list[torch.Tensor]:
    """x, the frozen weight and bias, and A and B of every rank, in float64."""
    generator = torch.Generator().manual_seed(seed)
    factors = [size for rank in ranks for size in ((rank, IN), (OUT, rank))]
    sizes = ((*SHAPE, IN), (OUT, IN), (OUT,), *factors)
    made = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [tensor.requires_grad_(i not in (1, 2)) for i, tensor in enumerate(made)]


WAYS = ("by gaps", "drawn again")


def take(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have inputs dropped as on a CPU, or as on other devices."""
    if way == "drawn again":
        monkeypatch.setattr(low_rank, "input_dropout", lambda _device, p: DrawnAgain(p))


def kept(probability: float, way: str = "by gaps") -> torch.Tensor:
    """What the product's next draw leaves of each entry of x, scaled as dropout scales it."""
    mask = torch.ones(math.prod(SHAPE) * IN, dtype=torch.float64)
    if probability and way == "drawn again":
        return torch.native_dropout(mask.view(-1, IN), probability, True)[0].view(*SHAPE, IN)
    if probability:
        mask[dropped_entries(len(mask), probability)] = 0
    return mask.view(*SHAPE, IN) / (1 - probability)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("probability", [0.0, 0.05, 0.5, 0.9])
def test_value_and_gradients_are_those_of_autograd_with_the_same_entries_dropped(
    probability: float, biased: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(way, monkeypatch)
    x, W, b, A, B = drawn()
    bias = b if biased else None
    torch.manual_seed(3)
    dropped = x * kept(probability, way)
    expected = nn.functional.linear(x, W, bias) + 1.5 * dropped @ A.T @ B.T
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), (x, A, B))
    torch.manual_seed(3)
    value = linear_with_update(x, W, bias, LowRank(A, B, 1.5, probability))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    state = torch.get_rng_state()
    for _ in range(2):  # a graph that is kept can be gone through again
        found = torch.autograd.grad((value * weights).sum(), (x, A, B), retain_graph=True)
        for each, oracle in zip(found, gradients, strict=True):
            torch.testing.assert_close(each, oracle, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("way", WAYS)
def test_layers_of_one_input_share_its_dropped_entries_and_frozen_ranks_read_it_whole(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(way, monkeypatch)
    x, W, b, *factors = drawn(ranks=(2, 3, 1))
    As, Bs, trained = factors[::2], factors[1::2], (1, 3, 0)
    updates = [LowRank(A, B, 0.5, 0.4, t) for A, B, t in zip(As, Bs, trained, strict=True)]
    torch.manual_seed(3)
    dropped = x * kept(0.4, way)
    expected = [
        nn.functional.linear(x, W, b)
        + 0.5 * (dropped @ A[:t].T @ B[:, :t].T + x @ A[t:].T @ B[:, t:].T)
        for A, B, t in zip(As, Bs, trained, strict=True)
    ]
    oracles = torch.autograd.grad(torch.cat(expected, 1).square().sum(), (x, *factors))
    torch.manual_seed(3)
    shared = SharedInput(x, dict(enumerate(updates)))
    values = [shared.layer(key, W, b) for key in (2, 0, 1)]
    values = [values[1], values[2], values[0]]
    found = torch.autograd.grad(torch.cat(values, 1).square().sum(), (x, *factors))
    for each, oracle in zip(values, expected, strict=True):
        torch.testing.assert_close(each, oracle, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0], oracles[0], rtol=1e-12, atol=1e-12)
    for t, A, B, of_A, of_B in zip(
        trained, found[1::2], found[2::2], oracles[1::2], oracles[2::2], strict=True
    ):
        torch.testing.assert_close(A[:t], of_A[:t], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(B[:, :t], of_B[:, :t], rtol=1e-12, atol=1e-12)
        assert A.isfinite().all()
        assert B.isfinite().all()


def test_added_by_torchs_operations_an_update_is_the_same() -> None:
    x, W, b, A, B = drawn(ranks=(3,))
    update = LowRank(A, B, 0.5, 0.3, trained=2)
    torch.manual_seed(4)
    dropped = nn.functional.dropout(x, 0.3)
    expected = 0.5 * (dropped @ A[:2].T @ B[:, :2].T + x @ A[2:].T @ B[:, 2:].T)
    torch.manual_seed(4)
    y = nn.functional.linear(x, W, b)
    torch.testing.assert_close(add_low_rank(y, x, update), y + expected)


def test_factors_that_lie_one_below_another_are_read_there() -> None:
    x, W, b, *_ = drawn()
    flat = torch.randn(6, IN, dtype=torch.float64, requires_grad=True)
    parts = flat.split((3, 1, 2))
    Bs = [torch.randn(OUT, len(part), dtype=torch.float64) for part in parts]
    for order in ((0, 1, 2), (0, 2), (1, 0)):
        expected = sum(x @ parts[i].T @ Bs[i].T for i in order)
        shared = SharedInput(x, {i: LowRank(parts[i], Bs[i]) for i in order})
        value = sum(shared.layer(i, W, b) - nn.functional.linear(x, W, b) for i in order)
        assert isinstance(value, torch.Tensor)
        torch.testing.assert_close(value, expected)
        found, oracle = (torch.autograd.grad(y.square().sum(), flat) for y in (value, expected))
        torch.testing.assert_close(found, oracle)


def test_a_graph_that_is_gone_cannot_be_gone_through_again() -> None:
    x, W, b, A, B = drawn()
    value = linear_with_update(x, W, b, LowRank(A, B)).sum()
    value.backward()
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


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
    assert torch.equal(linear_with_update(x, W, bias, None), nn.functional.linear(x, W, bias))


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
