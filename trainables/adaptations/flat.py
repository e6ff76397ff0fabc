"""The factors of all blocks of a stage as flat parameters, and their way to the modules.

A stage trains one flat parameter for each factor of the learning rate, so that what an optimizer
step costs does not grow with the number of modules. A module reads whole matrices A [R, in] and
B [out, R]: R lines of `in` numbers and, B being its transpose, R lines of `out` numbers.

Where the blocks of a module take all of a matrix, its lines lie in the flat parameter as they are,
and the module reads a view of it. Otherwise they are placed in a buffer of all such lines of one
length, which is zero where no block lies and holds the frozen ranks. For that the ranks of a block
are cut into bands of 32, 16, 8, 4, 2 or 1. All bands of one width lie side by side in the flat
parameter, [width, positions], and one scatter brings them to the buffer: it is told where each
column of a band begins, one int64, and its other ranks lie a line's length further on. So a placing
takes six launches at most for each length of line (and each flat parameter), and its index is a
fraction of what it places.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.autograd.function import once_differentiable

from spaces.plan import Block
from trainables.adaptations.adaptation import Factors

WIDTHS = (32, 16, 8, 4, 2, 1)
"""Ranks of a band: so few that there are few launches, so many that the index is short."""

A_SIDE, B_SIDE = 0, 1


@dataclass(frozen=True, eq=False)
class ModuleBlocks:
    """What a stage trains of a matrix [out, in], one block at least, and what it finds frozen.

    `frozen` holds the factors of earlier stages, their scale within B.
    """

    shape: tuple[int, int]
    blocks: Sequence[Block]
    frozen: Sequence[Factors] = ()

    @cached_property
    def rank(self) -> int:
        """Ranks that train."""
        return sum(block.rank for block in self.blocks)

    @cached_property
    def frozen_rank(self) -> int:
        """Ranks that do not."""
        return sum(len(A) for A, _ in self.frozen)

    @cached_property
    def scale(self) -> float:
        """The scale that is left to the module: 1 where B is given with its scales within."""
        return 1.0 if self.scales_within else self.blocks[0].scale

    @cached_property
    def scales_within(self) -> bool:
        """Whether one scale does not do for all ranks."""
        return bool(self.frozen) or len({block.scale for block in self.blocks}) > 1

    def length(self, side: int) -> int:
        """Numbers of a line: `in` of A, `out` of B."""
        return self.shape[1 - side]

    def lies_as_is(self, side: int) -> bool:
        """Whether the lines of the blocks, one after another, are those of the whole matrix."""
        return (
            not self.frozen
            and not (side == B_SIDE and self.scales_within)
            and len({block.lr_scale for block in self.blocks}) == 1
            and all(len(positions(b, side)) == self.length(side) for b in self.blocks)
        )


def positions(block: Block, side: int) -> NDArray[np.int32]:
    """Where the numbers of a block's lines lie in whole lines."""
    return block.cols if side == A_SIDE else block.rows


class _Section:
    """A matrix [lines, length] that lies in a flat parameter from `start` on."""

    def __init__(self, lr_scale: float, lines: int, length: int) -> None:
        self.lr_scale, self.lines, self.length = lr_scale, lines, length
        self.flat = self.start = 0

    @property
    def size(self) -> int:
        return self.lines * self.length

    def of(self, flats: Sequence[torch.Tensor]) -> torch.Tensor:
        """It, as a view."""
        whole = flats[self.flat].narrow(0, self.start, self.size)
        return whole.view(self.lines, self.length)


class _Patch(NamedTuple):
    """Lines and numbers of a section: all or a part of what a block has of one side."""

    section: _Section
    line: int
    lines: int
    number: int
    numbers: int

    def of(self, flats: Sequence[torch.Tensor]) -> torch.Tensor:
        """[lines, numbers], as a view."""
        lines = self.section.of(flats).narrow(0, self.line, self.lines)
        return lines.narrow(1, self.number, self.numbers)


class BlockFactors:
    """The factors A [rank, cols] and B [rows, rank] of one block, in the flat parameters."""

    def __init__(self, block: Block, flats: Sequence[nn.Parameter]) -> None:
        self.block = block
        self._flats = flats
        self._patches: tuple[list[_Patch], list[_Patch]] = ([], [])

    def now(self) -> Factors:
        """(A, B), known to autograd; for reading."""
        return self.of(self._flats)

    def of(self, flats: Sequence[torch.Tensor]) -> Factors:
        """(A, B) of tensors that are laid out as the flat parameters, as their gradients are."""
        parts = [[patch.of(flats) for patch in patches] for patches in self._patches]
        A, B = (each[0] if len(each) == 1 else torch.cat(each) for each in parts)
        return A, B.T

    @torch.no_grad()
    def write(self, A: torch.Tensor | None = None, B: torch.Tensor | None = None) -> None:
        """Put values in place, before an engine has the parameters."""
        given = (A, None if B is None else B.T)
        for patches, lines in zip(self._patches, given, strict=True):
            if lines is not None:
                parts = lines.split([patch.lines for patch in patches])
                for patch, values in zip(patches, parts, strict=True):
                    patch.of(self._flats).copy_(values)

    def lie_in(self, side: int, patch: _Patch) -> None:
        """Have the next ranks of a side lie in `patch`."""
        self._patches[side].append(patch)


class _Matrices(ABC):
    """Whole matrices, each so many lines of one length, one after another in one tensor."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.modules: list[int] = []
        self.sides: list[int] = []
        self.sizes: list[int] = []

    @property
    def lines(self) -> int:
        return sum(self.sizes)

    def add(self, module: int, side: int, size: int) -> int:
        """Make room for a matrix; returns its first line."""
        first = self.lines
        self.modules.append(module)
        self.sides.append(side)
        self.sizes.append(size)
        return first

    @abstractmethod
    def values(self, flats: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """A [R, in] or B [out, R] of each matrix, of the values of the flat parameters."""

    @abstractmethod
    def give_gradients(
        self, matrices: Sequence[torch.Tensor | None], into: Sequence[torch.Tensor]
    ) -> None:
        """Write what the matrices' gradients say to those of the flat parameters."""

    def _of(self, lines: torch.Tensor) -> Iterator[torch.Tensor]:
        for part, side in zip(lines.split(self.sizes), self.sides, strict=True):
            yield part if side == A_SIDE else part.T

    def _gather(self, matrices: Sequence[torch.Tensor | None], out: torch.Tensor) -> None:
        """The lines of such matrices, zero for those that are None."""
        lines = [
            out.new_zeros(size, self.length)
            if each is None
            else (each if side == A_SIDE else each.T)
            for each, side, size in zip(matrices, self.sides, self.sizes, strict=True)
        ]
        torch.cat(lines, out=out)


class _AsIs(_Matrices):
    """Matrices whose lines lie in a flat parameter as they are."""

    def __init__(self, lr_scale: float, length: int) -> None:
        super().__init__(length)
        self.section = _Section(lr_scale, 0, length)

    def values(self, flats: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        return self._of(self.section.of(flats))

    def give_gradients(
        self, matrices: Sequence[torch.Tensor | None], into: Sequence[torch.Tensor]
    ) -> None:
        self._gather(matrices, self.section.of(into))


class _Bands:
    """What of a buffer comes from one section [width, positions] of a flat parameter."""

    def __init__(self, lr_scale: float, width: int) -> None:
        self.section = _Section(lr_scale, width, 0)
        self.starts: list[NDArray[np.int64]] = []
        self.index = torch.empty(0, dtype=torch.int64)

    def scatter(self, flats: Sequence[torch.Tensor], lines: torch.Tensor) -> None:
        """Write the section's numbers where they belong in a buffer [lines, length]."""
        self._columns(lines).scatter_(1, self.index, _bits(self.section.of(flats)))

    def gather(self, lines: torch.Tensor, flats: Sequence[torch.Tensor]) -> None:
        """Read the section's numbers from where they belong."""
        torch.gather(self._columns(lines), 1, self.index, out=_bits(self.section.of(flats)))

    def _columns(self, lines: torch.Tensor) -> torch.Tensor:
        """[width, numbers]: every number of the buffer and those right below it.

        A view in which numbers appear more than once, and so one of integers: what has 16 bits
        scatter may add up elsewhere, and copy the whole view back.
        """
        width, length = self.section.lines, lines.shape[1]
        size = width, lines.numel() - (width - 1) * length
        return _bits(lines).as_strided(size, (length, 1))


class _Placed(_Matrices):
    """Matrices that are zero, or frozen, where no block of the stage lies."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.bands: dict[tuple[float, int], _Bands] = {}
        self.scales: list[float] = []
        self._buffer = torch.empty(0)
        self._scale: torch.Tensor | None = None

    def make(self, modules: Sequence[ModuleBlocks], dtype: torch.dtype, dev: torch.device) -> None:
        """Make what lies on the device, once all is added."""
        self._buffer = torch.zeros(self.lines, self.length, dtype=dtype, device=dev)
        for number, side, lines in zip(
            self.modules, self.sides, self._buffer.split(self.sizes), strict=True
        ):
            if modules[number].frozen:
                A, B = stacked(modules[number].frozen)
                lines[modules[number].rank :].copy_(A if side == A_SIDE else B.T)
        for bands in self.bands.values():
            index = torch.as_tensor(np.concatenate(bands.starts), device=dev)
            bands.starts, bands.index = [], index.expand(bands.section.lines, -1)
        if any(scale != 1 for scale in self.scales):
            fine = torch.promote_types(dtype, torch.float32)
            self._scale = torch.tensor(self.scales, dtype=fine, device=dev)[:, None]

    def values(self, flats: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        if self._buffer.dtype != flats[0].dtype:  # an engine may cast what it is given
            self._buffer = self._buffer.to(flats[0].dtype)
        for bands in self.bands.values():
            bands.scatter(flats, self._buffer)
        if self._scale is not None:  # all that was not written just now is zero or of scale 1
            self._buffer.mul_(self._scale)
        return self._of(self._buffer)

    def give_gradients(
        self, matrices: Sequence[torch.Tensor | None], into: Sequence[torch.Tensor]
    ) -> None:
        lines = torch.empty_like(self._buffer)
        self._gather(matrices, lines)
        if self._scale is not None:
            lines.mul_(self._scale)
        for bands in self.bands.values():
            bands.gather(lines, into)


class FlatFactors:
    """All that a stage trains of the blocks of `modules`, zero until it is written.

    `flats` holds the parameters, `lr_scales` the factor of the learning rate of each, `blocks` the
    factors of every module's blocks. `matrices` holds A [R, in] and B [out, R] of every module,
    first the ranks that train, then the frozen ones: those of the last `place`. They are good until
    the parameters change; a backward pass that comes after the next `place` fails.
    """

    def __init__(
        self, modules: Sequence[ModuleBlocks], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.flats: list[nn.Parameter] = []
        self.lr_scales = list(dict.fromkeys(b.lr_scale for m in modules for b in m.blocks))
        self.blocks = [[BlockFactors(b, self.flats) for b in module.blocks] for module in modules]
        self.matrices = [[torch.empty(0), torch.empty(0)] for _ in modules]
        as_is: dict[tuple[float, int], _AsIs] = {}
        placed: dict[int, _Placed] = {}
        for side in (A_SIDE, B_SIDE):  # so that the A of neighbours are neighbours
            for number, module in enumerate(modules):
                length, lr_scale = module.length(side), module.blocks[0].lr_scale
                if module.lies_as_is(side):
                    lines = as_is.setdefault((lr_scale, length), _AsIs(lr_scale, length))
                    _lay_as_is(lines, number, module, side, self.blocks[number])
                else:
                    buffer = placed.setdefault(length, _Placed(length))
                    _lay_in_bands(buffer, number, module, side, self.blocks[number])
        self._groups: list[_Matrices] = [*as_is.values(), *placed.values()]
        # Whole lines first: they are read where they lie, and so they lie aligned.
        sections = [group.section for group in as_is.values()]
        sections += [bands.section for group in placed.values() for bands in group.bands.values()]
        for number, lr_scale in enumerate(self.lr_scales):
            size = 0
            for section in sections:
                if section.lr_scale == lr_scale:
                    section.flat, section.start = number, size
                    size += section.size
            self.flats.append(nn.Parameter(torch.zeros(size, dtype=dtype, device=device)))
        for group in placed.values():
            group.make(modules, dtype, device)

    def place(self) -> None:
        """Give all modules the present values of the parameters, known to autograd."""
        if not self.flats:
            return
        values = iter(_Place.apply(self, *self.flats))
        for group in self._groups:
            for module, side in zip(group.modules, group.sides, strict=True):
                self.matrices[module][side] = next(values)

    def release(self) -> None:
        """Hold no values any more, nor what they were made of: nobody reads them again."""
        for matrices in self.matrices:
            matrices[:] = torch.empty(0), torch.empty(0)

    def values(self, flats: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Every matrix, unknown to autograd."""
        return tuple(matrix for group in self._groups for matrix in group.values(flats))

    def gradients(self, matrices: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        """The flat parameters' gradients, of those of `values`."""
        found = [torch.empty_like(flat, requires_grad=False) for flat in self.flats]
        done = 0
        for group in self._groups:
            group.give_gradients(matrices[done : done + len(group.sizes)], found)
            done += len(group.sizes)
        return found


def _lay_as_is(
    group: _AsIs, number: int, module: ModuleBlocks, side: int, blocks: Sequence[BlockFactors]
) -> None:
    line = group.add(number, side, module.rank)
    group.section.lines = group.lines
    for factors in blocks:
        rank = factors.block.rank
        factors.lie_in(side, _Patch(group.section, line, rank, 0, group.length))
        line += rank


def _lay_in_bands(
    group: _Placed, number: int, module: ModuleBlocks, side: int, blocks: Sequence[BlockFactors]
) -> None:
    line = group.add(number, side, module.rank + module.frozen_rank)
    for factors in blocks:
        block = factors.block
        own = positions(block, side).astype(np.int64)
        for width in _widths(block.rank):
            key = block.lr_scale, width
            bands = group.bands.setdefault(key, _Bands(*key))
            factors.lie_in(side, _Patch(bands.section, 0, width, bands.section.length, len(own)))
            bands.section.length += len(own)
            bands.starts.append(line * group.length + own)
            line += width
        within = side == B_SIDE and module.scales_within
        group.scales += [block.scale if within else 1.0] * block.rank
    group.scales += [1.0] * module.frozen_rank


def stacked(factors: Sequence[Factors]) -> Factors:
    """The factors of a sum of updates of whole matrices."""
    if len(factors) == 1:
        return factors[0]
    return torch.cat([A for A, _ in factors]), torch.cat([B for _, B in factors], dim=1)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _widths(rank: int) -> Iterator[int]:
    """Widths that add up to a rank, the largest first."""
    for width in WIDTHS:
        yield from [width] * (rank // width)
        rank %= width


class _Place(torch.autograd.Function):
    """`FlatFactors.values`, with the gradients read from where the blocks lie."""

    @staticmethod
    def forward(ctx: Any, factors: FlatFactors, *flats: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.factors = factors
        ctx.set_materialize_grads(False)
        return factors.values([flat.detach() for flat in flats])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.factors.gradients(grads)
