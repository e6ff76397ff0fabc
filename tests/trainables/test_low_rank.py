"""The product written by hand is that of autograd, and drops what dropout would."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from trainables.low_rank import add_low_rank, dropped_entries

SHAPE = (3, 5)  # rows and tokens
OUT, IN, RANK = 7, 6, 2


def drawn(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """y, x, A and B in float64, all of which ask for a gradient."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((*SHAPE, OUT), (*SHAPE, IN), (RANK, IN), (OUT, RANK))
    made = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return tuple(tensor.requires_grad_(True) for tensor in made)


def kept(probability: float, seed: int) -> torch.Tensor:
    """What the product's draw leaves of each entry of x, scaled as dropout scales it."""
    torch.manual_seed(seed)
    mask = torch.ones(math.prod(SHAPE) * IN, dtype=torch.float64)
    mask[dropped_entries(len(mask), probability)] = 0
    return mask.view(*SHAPE, IN) / (1 - probability)


@pytest.mark.parametrize("probability", [0.0, 0.05, 0.2, 0.5, 0.9])
def test_value_and_gradients_are_those_of_autograd_with_the_same_entries_dropped(
    probability: float,
) -> None:
    y, x, A, B = drawn()
    mask = kept(probability, seed=3) if probability else torch.ones_like(x)
    expected = y + (x * mask) @ A.T @ B.T
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), (y, x, A, B))
    torch.manual_seed(3)
    value = add_low_rank(y * 1, x, A, B, probability)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad((value * weights).sum(), (y, x, A, B))
    for each, oracle in zip(found, gradients, strict=True):
        torch.testing.assert_close(each, oracle, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (3,), (2, 3), (0, 2), (1, 3)])
def test_only_the_gradients_that_are_asked_for_are_made(asked: tuple[int, ...]) -> None:
    tensors = [tensor.detach() for tensor in drawn()]
    for i in asked:
        tensors[i].requires_grad_(True)
    y, x, A, B = tensors
    expected = torch.autograd.grad((y + x @ A.T @ B.T).square().sum(), [tensors[i] for i in asked])
    value = add_low_rank(y * 1, x, A, B)
    found = torch.autograd.grad(value.square().sum(), [tensors[i] for i in asked])
    for each, oracle in zip(found, expected, strict=True):
        torch.testing.assert_close(each, oracle)


def test_inputs_and_gradients_may_lie_in_any_order() -> None:
    y, x, A, B = drawn()
    turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(True)
    weights = torch.randn(SHAPE[1], SHAPE[0], OUT, dtype=torch.float64).transpose(0, 1)
    expected = torch.autograd.grad(((y + x @ A.T @ B.T) * weights).sum(), (x, A, B))
    value = add_low_rank(y * 1, turned, A, B)
    for each, oracle in zip(
        torch.autograd.grad((value * weights).sum(), (turned, A, B)), expected, strict=True
    ):
        torch.testing.assert_close(each, oracle)


def test_the_input_is_left_as_it_is() -> None:
    y, x, A, B = drawn()
    before = x.detach().clone()
    add_low_rank(y * 1, x, A, B, 0.3).sum().backward()
    torch.testing.assert_close(x.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_of_16_bits_with_factors_of_32_keeps_its_precision(dtype: torch.dtype) -> None:
    y, x, A, B = (tensor.detach() for tensor in drawn())
    y, x, A, B = y.to(dtype), x.to(dtype), A.float(), B.float()
    value = add_low_rank(y.clone(), x, A, B)
    assert value.dtype == dtype
    expected = y.double() + x.double() @ A.double().T @ B.double().T
    torch.testing.assert_close(value.double(), expected, rtol=2e-2, atol=2e-2)


# Which entries are dropped ----------------------------------------------------------------------


@pytest.mark.parametrize("probability", [1e-4, 0.01, 0.05, 0.1, 0.25, 0.3, 0.9])
def test_every_entry_is_dropped_with_the_same_probability_on_its_own(probability: float) -> None:
    torch.manual_seed(0)
    number, times = 2000, 400
    counts = torch.zeros(number)
    lag = first = both = 0
    for _ in range(times):
        entries = dropped_entries(number, probability)
        assert torch.equal(entries, torch.unique(entries))
        dropped = torch.zeros(number, dtype=torch.bool)
        dropped[entries] = True
        counts += dropped
        lag += int((dropped[1:] & dropped[:-1]).sum())
        first += int(dropped[0])
        both += int(dropped[0] & dropped[-1])
    draws = number * times

    def likely(count: int, of: int, share: float) -> bool:
        return bool(stats.binomtest(count, of, share).pvalue > 1e-4)

    assert likely(int(counts.sum()), draws, probability)
    assert likely(lag, draws - times, probability**2)
    assert likely(first, times, probability)
    assert likely(both, times, probability**2)
    # how often each place was dropped is binomial: its variance over places tells
    spread = float(counts.var()) / (times * probability * (1 - probability))
    assert abs(spread - 1) < 6 * math.sqrt(2 / number) + 3 * math.sqrt(
        1 / (number * times * probability)
    )


@pytest.mark.parametrize("number", [0, 1, 2, 17])
@pytest.mark.parametrize("probability", [1e-6, 0.05, 0.25, 0.99])
def test_few_entries_are_drawn_too(number: int, probability: float) -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        entries = dropped_entries(number, probability)
        assert entries.dtype == torch.long
        assert all(0 <= int(entry) < number for entry in entries)


def test_the_draw_follows_torchs_seed() -> None:
    torch.manual_seed(5)
    first = dropped_entries(10_000, 0.05)
    second = dropped_entries(10_000, 0.05)
    torch.manual_seed(5)
    assert torch.equal(dropped_entries(10_000, 0.05), first)
    assert not torch.equal(first, second)
