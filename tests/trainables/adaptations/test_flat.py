"""The factors of a stage as flat parameters, against matrices written entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from spaces.plan import Block
from trainables.adaptations.flat import BlockFactors, FlatFactors, ModuleBlocks

SHAPES = ((90, 70), (70, 90), (70, 70), (64, 90))
CPU = torch.device("cpu")


def drawn_blocks(rng: np.random.Generator, shape: tuple[int, int], rates: Sequence[float]) -> Block:
    """A block of any rank, whose rows and columns are all or any; scale and rate among a few."""
    rows, cols = (
        np.arange(size) if rng.random() < 0.4 else np.flatnonzero(rng.random(size) < 0.4)
        for size in shape
    )
    rank = int(rng.integers(1, 64))
    scale = float(rng.choice([0.5, 3.0]))
    rate = float(rng.choice(rates))
    return Block(rank, rows.astype(np.int32), cols.astype(np.int32), scale, rate)


def drawn_modules(seed: int, rates: Sequence[float]) -> list[ModuleBlocks]:
    rng = np.random.default_rng(seed)
    modules = []
    for shape in SHAPES:
        blocks = [drawn_blocks(rng, shape, rates) for _ in range(rng.integers(1, 4))]
        ranks = rng.integers(1, 5, rng.integers(0, 3))
        frozen = [
            (torch.as_tensor(rng.random((r, shape[1]))), torch.as_tensor(rng.random((shape[0], r))))
            for r in ranks
        ]
        modules.append(ModuleBlocks(shape, blocks, frozen))
    # Two that need no placing, one of them with two blocks.
    rows, cols = (np.arange(size, dtype=np.int32) for size in SHAPES[0])
    modules.append(ModuleBlocks(SHAPES[0], [Block(5, rows, cols, 2.0, rates[0])]))
    modules.append(ModuleBlocks(SHAPES[0], [Block(r, rows, cols, 2.0, rates[0]) for r in (1, 37)]))
    return modules


def dense(module: ModuleBlocks, blocks: Sequence[BlockFactors]) -> torch.Tensor:
    """The update of a module: scale * B A of every block in its place, and what is frozen."""
    total = torch.zeros(module.shape, dtype=torch.float64)
    for own in blocks:
        A, B = (factor.double() for factor in own.now())
        place = np.ix_(own.block.rows, own.block.cols)
        total = total.index_put(
            tuple(torch.as_tensor(each, dtype=torch.long) for each in place),
            own.block.scale * (B @ A),
            accumulate=True,
        )
    return total + sum(B @ A for A, B in module.frozen)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rates", [(1.0,), (1.0, 2.0, 4.0)], ids=["one rate", "three rates"])
def test_matrices_and_gradients_are_those_of_the_blocks(
    seed: int, rates: tuple[float, ...]
) -> None:
    modules = drawn_modules(seed, rates)
    factors = FlatFactors(modules, dtype=torch.float64, device=CPU)
    trained = sum(block.params for module in modules for block in module.blocks)
    assert sum(flat.numel() for flat in factors.flats) == trained
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):  # what is placed once more is what it is by then
        with torch.no_grad():
            for flat in factors.flats:
                flat.copy_(torch.randn(flat.shape, generator=generator, dtype=torch.float64))
        factors.place()
        weights = [torch.randn(m.shape, generator=generator).double() for m in modules]
        got = [m.scale * (B @ A) for m, (A, B) in zip(modules, factors.matrices, strict=True)]
        wanted = [dense(*each) for each in zip(modules, factors.blocks, strict=True)]
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        # The third module is read by nobody.
        read = [i for i in range(len(modules)) if i != 2]
        gradients = [
            torch.autograd.grad([(each[i] * weights[i]).sum() for i in read], factors.flats)
            for each in (got, wanted)
        ]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_is_written_is_read_again() -> None:
    modules = drawn_modules(3, (1.0, 2.0))
    factors = FlatFactors(modules, dtype=torch.float64, device=CPU)
    written = []
    for own in (own for blocks in factors.blocks for own in blocks):
        A = torch.randn(own.block.rank, len(own.block.cols), dtype=torch.float64)
        B = torch.randn(len(own.block.rows), own.block.rank, dtype=torch.float64)
        own.write(A=A)
        own.write(B=B)
        written.append((own, A, B))
    for own, A, B in written:
        assert torch.equal(own.now()[0], A)
        assert torch.equal(own.now()[1], B)
        assert torch.equal(own.of([2 * flat for flat in factors.flats])[1], 2 * B)


def test_no_copy_is_made_where_nothing_has_to_be_placed() -> None:
    modules = drawn_modules(0, (1.0,))[-2:]
    factors = FlatFactors(modules, dtype=torch.float32, device=CPU)
    factors.place()
    (flat,) = factors.flats
    memory = {matrix.untyped_storage().data_ptr() for own in factors.matrices for matrix in own}
    assert memory == {flat.untyped_storage().data_ptr()}


def test_a_backward_pass_through_matrices_that_are_written_over_fails() -> None:
    some = np.array([0, 2], dtype=np.int32)
    module = ModuleBlocks((4, 4), [Block(2, some, some, 1.0)])
    factors = FlatFactors([module], dtype=torch.float64, device=CPU)
    factors.place()
    A, B = factors.matrices[0]
    loss = (B @ A).sum()
    factors.place()
    with pytest.raises(RuntimeError, match="modified inplace"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_engine_may_cast_the_parameters(dtype: torch.dtype) -> None:
    modules = drawn_modules(5, (1.0,))
    factors = FlatFactors(modules, dtype=torch.float32, device=CPU)
    for flat in factors.flats:
        flat.data = torch.randn(flat.shape).to(dtype)
    factors.place()
    for module, blocks, (A, B) in zip(modules, factors.blocks, factors.matrices, strict=True):
        assert (A.dtype, B.dtype) == (dtype, dtype)
        got = module.scale * (B.double() @ A.double())
        torch.testing.assert_close(got, dense(module, blocks), rtol=0.02, atol=0.3)
