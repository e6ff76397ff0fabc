"""The compiled products and draws are those of torch's operations, for every build of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from trainables.layers import compiled, small_products
from trainables.layers.dropout import dropped_entries
from trainables.layers.low_rank import linear_with_updates
from trainables.layers.small_products import LowRank

# rows, in, out, the ranks of the updates, dropout
SHAPES = [
    (1, 1, 1, (1,), 0.2),
    (3, 5, 2, (2,), 0.25),
    (31, 33, 70, (3, 1), 0.1),
    (33, 64, 32, (8,), 0.05),
    (70, 100, 130, (1, 9, 5), 0.25),
    (257, 96, 48, (16,), 0.05),
    (90, 40, 50, (21, 2, 9), 0.1),
    (64, 48, 96, (4, 4), 0.6),
    (200, 70, 33, (7,), 0.0),
]


@pytest.fixture(params=["avx2", "avx512"])
def a_build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every build that this machine has made and can run, in turn."""
    if request.param not in compiled.builds() or compiled.build(request.param) is None:
        pytest.skip("this build is not here, or not for this processor")
    monkeypatch.setattr(compiled, "library", lambda: compiled.build(request.param))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many threads for torch's operations and for the library's."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(rows: int, size: int, out: int, ranks: tuple[int, ...]) -> list[torch.Tensor]:
    """x, weights of y, the frozen weight and bias, and A and B of every rank."""
    generator = torch.Generator().manual_seed(rows)
    factors = [shape for rank in ranks for shape in ((rank, size), (out, rank))]
    sizes = ((rows, size), (rows, out), (out, size), (out,), *factors)
    return [torch.randn(shape, generator=generator) for shape in sizes]


def outcome(tensors: list[torch.Tensor], masks: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """y and the gradients of x and every factor, by autograd in float64."""
    x, weights, W, b, *factors = (tensor.double() for tensor in tensors)
    for tensor in (x, *factors):
        tensor.requires_grad_(True)
    y = nn.functional.linear(x, W, b)
    for A, B, mask in zip(factors[::2], factors[1::2], masks, strict=True):
        y = y + 1.5 * (x * mask) @ A.T @ B.T
    return (y.detach(), *torch.autograd.grad((y * weights).sum(), (x, *factors)))


def assert_near(found: torch.Tensor, oracle: torch.Tensor) -> None:
    """Within a few roundings of the largest entry."""
    error = (found.double() - oracle).abs().max()
    assert float(error) <= 5e-6 * float(oracle.abs().max()), float(error)


@pytest.mark.usefixtures("a_build", "threads")
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("rows", "size", "out", "ranks", "probability"), SHAPES)
def test_value_and_gradients_are_those_of_autograd_in_float64(
    rows: int, size: int, out: int, ranks: tuple[int, ...], probability: float, biased: bool
) -> None:
    tensors = drawn(rows, size, out, ranks)
    x, weights, W, b, *factors = tensors
    if not biased:
        b.zero_()
    assert compiled.takes(x, sum(ranks))
    torch.manual_seed(7)
    masks = []
    for _ in ranks:
        mask = torch.ones(rows * size, dtype=torch.float64)
        if probability:
            mask[dropped_entries(rows * size, probability)] = 0
        masks.append(mask.view(rows, size) / (1 - probability))
    expected = outcome(tensors, masks)
    for tensor in (x, *factors):
        tensor.requires_grad_(True)
    updates = [
        LowRank(A, B, 1.5, probability) for A, B in zip(factors[::2], factors[1::2], strict=True)
    ]
    torch.manual_seed(7)
    y = linear_with_updates(x, W, b if biased else None, updates)
    found = torch.autograd.grad((y * weights).sum(), (x, *factors))
    for each, oracle in zip((y.detach(), *found), expected, strict=True):
        assert_near(each, oracle)


@pytest.mark.usefixtures("a_build")
def test_the_same_numbers_come_out_each_time_whatever_the_threads_did(threads: int) -> None:
    x, weights, W, b, A, B = drawn(300, 64, 64, (5,))
    for tensor in (x, A, B):
        tensor.requires_grad_(True)
    outcomes = []
    for _ in range(5):
        torch.manual_seed(1)
        y = linear_with_updates(x, W, b, [LowRank(A, B, 1.0, 0.1)])
        outcomes.append((y, *torch.autograd.grad((y * weights).sum(), (x, A, B))))
    for each in outcomes[1:]:
        assert all(map(torch.equal, each, outcomes[0]))


@pytest.mark.usefixtures("a_build")
@pytest.mark.parametrize(
    "needed",
    [(True, False, False), (False, True, False), (False, False, True), (True, False, True)],
)
def test_only_the_gradients_that_are_asked_for_are_made(needed: tuple[bool, ...]) -> None:
    x, _, _, _, A, B = drawn(40, 32, 48, (3,))
    updates, dropped = [LowRank(A, B, 2.0, 0.1)], [dropped_entries(x.numel(), 0.1)]
    y, inner = compiled.forward(x, 48, None, updates, dropped)
    read = x if needed[1] or needed[2] else None
    found = compiled.backward(torch.ones_like(y), read, inner, updates, dropped, needed)
    oracle = small_products.backward(torch.ones_like(y), x, inner, updates, dropped, needed)
    for each, other, asked in zip(
        (found.x, *found.factors), (oracle.x, *oracle.factors), needed, strict=True
    ):
        assert (each is not None) == (other is not None) == asked
        if each is not None and other is not None:
            torch.testing.assert_close(each, other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("a_build")
def test_factors_may_lie_in_any_order_and_a_batch_may_be_empty() -> None:
    x, _, W, b, A, B = drawn(20, 16, 24, (4,))
    turned = LowRank(A.T.contiguous().T, B.T.contiguous().T, 0.5)
    expected = nn.functional.linear(x, W, b) + 0.5 * x @ A.T @ B.T
    torch.testing.assert_close(linear_with_updates(x, W, b, [turned]), expected)
    empty = x[:0].requires_grad_(True)
    A.requires_grad_(True)
    y = linear_with_updates(empty, W, b, [LowRank(A, B, 0.5, 0.1)])
    assert y.shape == (0, 24)
    (found,) = torch.autograd.grad(y.sum(), A)
    assert torch.equal(found, torch.zeros_like(A))


@pytest.mark.usefixtures("a_build")
def test_a_number_that_is_not_finite_stays_what_it_is() -> None:
    x, _, W, b, A, B = drawn(20, 16, 24, (4,))
    x[3, 2] = math.nan
    y = linear_with_updates(x, W, b, [LowRank(A, B)])
    assert torch.equal(y.isnan().any(1), torch.arange(20) == 3)


@pytest.mark.usefixtures("a_build")
def test_many_ranks_and_other_dtypes_are_left_to_torch() -> None:
    x = torch.ones(2, 3)
    assert compiled.takes(x, 32)
    assert not compiled.takes(x, 33)
    assert not compiled.takes(x, 0)
    assert not compiled.takes(x.double(), 4)
    assert not compiled.takes(x.bfloat16(), 4)
    assert not compiled.takes(x.to("meta"), 4)


@pytest.mark.usefixtures("a_build")
def test_a_draw_that_does_not_fit_writes_nothing_beyond_its_room() -> None:
    library = compiled.library()
    assert library is not None
    entries = torch.full((40,), -7)
    assert library.drawn(10_000, 1 / math.log1p(-0.1), 3, entries.data_ptr(), 30) == -1
    assert bool((entries[:30] >= 0).all())
    assert bool((entries[30:] == -7).all())


def test_what_cannot_be_loaded_is_as_if_it_was_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_FOLDER", tmp_path)
    assert compiled.build.__wrapped__("avx2") is None
    (tmp_path / "_low_rank_avx2.so").write_bytes(b"not a library")
    assert compiled.build.__wrapped__("avx2") is None


def test_a_build_of_other_sources_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [name for name in compiled.builds() if compiled.build(name) is not None]
    if not made:
        pytest.skip("nothing is built here")
    monkeypatch.setattr(compiled, "_INTERFACE", compiled._INTERFACE + 1)
    assert all(compiled.build.__wrapped__(name) is None for name in made)
