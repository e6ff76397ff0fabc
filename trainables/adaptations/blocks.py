"""Block adapters: how any plan is trained on a resident base that is never written to.

A block (rank, rows, cols, scale) of one weight matrix W [out, in] adds to the layer's output

    y[..., rows] += scale * B (A x[..., cols]),    A [rank, |cols|], B [|rows|, rank],

which is the low-rank update of LoRA restricted to some rows and columns (PiLoRA Eq. 10, TASO
section 4.2). Adapters stand in for the forward of the base's own layers or hook on to it; the
layers stay as they are, and detaching leaves the base as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.autograd.function import once_differentiable

from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Block, Plan
from spaces.target import TargetModule
from trainables.adaptations.adaptation import (
    Adaptation,
    Factors,
    Part,
    StageParameters,
    lora_draw,
    named_tensor,
    stage_seed,
)
from trainables.layers.adapted import update_layers
from trainables.layers.low_rank import LowRank
from trainables.layers.stand_in import Removable


class BlockParameters(nn.Module):
    """The two factors of one block.

    A [rank, cols] ~ U(-1/sqrt(in), 1/sqrt(in)) with the full `in` of the weight (LoRA's Kaiming
    draw), B [rows, rank] = 0.
    """

    def __init__(
        self,
        block: Block,
        shape: tuple[int, int],
        generator: torch.Generator,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        A = lora_draw(block.rank, len(block.cols), shape[1], generator)
        self.A = nn.Parameter(A.to(device=device, dtype=dtype))
        self.B = nn.Parameter(torch.zeros(len(block.rows), block.rank, dtype=dtype, device=device))
        self.block, self.shape, self.scale, self.lr_scale = (
            block, shape, block.scale, block.lr_scale,
        )  # fmt: skip
        self.rows = _indices(block.rows, shape[0], device)
        self.cols = _indices(block.cols, shape[1], device)


def _indices(index: NDArray[np.int32], size: int, device: torch.device) -> torch.Tensor | None:
    """The index as a tensor; None where it takes every position."""
    if len(index) == size:
        return None
    return torch.as_tensor(index, dtype=torch.long, device=device)


class ModuleAdapter(nn.Module):
    """All blocks of one target module in one stage, and the frozen blocks of the stages before.

    The trainable blocks share one dropout mask on their input; frozen blocks read it undropped.
    `frozen` holds the factors A [rank, in] and B [out, rank], its scale within, of each of those.
    """

    def __init__(
        self, blocks: Sequence[BlockParameters], dropout: float, frozen: Sequence[Factors] = ()
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.trainable = tuple(blocks)
        self.dropout = dropout
        self._factors = [factor for block in blocks for factor in (block.A, block.B)]
        self._layout = _Layout(blocks) if blocks else None
        self._frozen: LowRank | None = None
        if frozen:
            A, B = (torch.cat(parts, dim) for dim, parts in enumerate(zip(*frozen, strict=True)))
            self._frozen = LowRank(A, B, trained=0)

    def update(self) -> LowRank | None:
        """What all blocks add to the layer."""
        if self._layout is None:
            return self._frozen
        A, B = self._layout.of_whole_matrix(self._factors)
        dropout, scale = self.dropout if self.training else 0.0, self._layout.scale
        if self._frozen is None:
            return LowRank(A, B, scale, dropout)
        scaled = B if scale == 1 else B * scale
        return LowRank(
            torch.cat([A, self._frozen.A]), torch.cat([scaled, self._frozen.B], 1), 1.0, dropout,
            len(A),
        )  # fmt: skip


class _Layout:
    """Where the blocks of one matrix lie within the factors A [R, in] and B [out, R] of their sum.

    `scale` is that of the sum; where the blocks differ in theirs it is 1, and B holds them.
    """

    def __init__(self, blocks: Sequence[BlockParameters]) -> None:
        self._out, self._in = blocks[0].shape
        self._ranks = [len(block.A) for block in blocks]
        self._rows = [block.rows for block in blocks]
        self._cols = [block.cols for block in blocks]
        self._same_cols = all(np.array_equal(b.block.cols, blocks[0].block.cols) for b in blocks)
        scales = [block.scale for block in blocks]
        same = len(set(scales)) == 1
        self.scale = scales[0] if same else 1.0
        self._scales = [1.0] * len(scales) if same else scales

    def of_whole_matrix(self, factors: Sequence[torch.Tensor]) -> Factors:
        """(A, B), zero where no block lies, of the blocks' own A and B in turn."""
        if len(factors) == 2 and self._rows[0] is None and self._cols[0] is None:
            return factors[0], factors[1]
        A, B = _Placed.apply(self, *factors)
        return A, B

    def place(self, factors: Sequence[torch.Tensor]) -> Factors:
        """`of_whole_matrix`, unknown to autograd."""
        own_A, own_B = factors[::2], factors[1::2]
        if self._same_cols:
            A = self._in_columns(torch.cat(list(own_A)), self._cols[0])
        else:
            A = torch.cat([self._in_columns(*each) for each in zip(own_A, self._cols, strict=True)])
        B = own_B[0].new_zeros(self._out, sum(self._ranks))
        parts = zip(own_B, self._rows, self._scales, B.split(self._ranks, 1), strict=True)
        for own, rows, scale, part in parts:
            scaled = own if scale == 1 else own * scale
            if rows is None:
                part.copy_(scaled)
            else:
                part.index_copy_(0, rows, scaled)
        return A, B

    def gradients(self, A: torch.Tensor, B: torch.Tensor) -> Iterator[torch.Tensor]:
        """The gradients of the blocks' A and B in turn from those of the factors of the sum."""
        if self._same_cols and self._cols[0] is not None:
            A = A.index_select(1, self._cols[0])
        parts = zip(
            A.split(self._ranks), B.split(self._ranks, 1), self._rows, self._cols, self._scales,
            strict=True,
        )  # fmt: skip
        for part_A, part_B, rows, cols, scale in parts:
            whole = self._same_cols or cols is None
            yield part_A if whole else part_A.index_select(1, cols)
            own = part_B if rows is None else part_B.index_select(0, rows)
            yield own if scale == 1 else own * scale

    def _in_columns(self, A: torch.Tensor, cols: torch.Tensor | None) -> torch.Tensor:
        return A if cols is None else A.new_zeros(len(A), self._in).index_copy_(1, cols, A)


class _Placed(torch.autograd.Function):
    """`_Layout.place`, with the gradients read from where the blocks lie."""

    @staticmethod
    def forward(ctx: Any, layout: _Layout, *factors: torch.Tensor) -> Factors:
        ctx.layout = layout
        return layout.place(factors)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_A: torch.Tensor, grad_B: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.layout.gradients(grad_A, grad_B)


class BlockAdaptation(Adaptation):
    """A plan of blocks, stage by stage; those of a finished stage go on adding their update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._frozen: dict[str, list[Factors]] = {}
        self._finished: dict[str, torch.Tensor] = {}
        self._attached: list[Removable] = []
        self._adapters: dict[str, ModuleAdapter] = {}
        self._start: Mapping[str, torch.Tensor] = {}
        self._index = 0

    def begin_stage(self, index: int, steps: int) -> StageParameters:
        generator = torch.Generator().manual_seed(stage_seed(self._seed, index))
        adapters = {}
        for name in self._targets:
            blocks = self._blocks(index, name, generator)
            for factor, own in _factors(f"stage{index}/{name}", blocks):
                if factor in self._start:
                    own.data.copy_(named_tensor(self._start, factor, own.shape))
            if blocks or name in self._frozen:
                adapters[name] = ModuleAdapter(blocks, self._dropout, self._frozen.get(name, ()))
        self._attach(adapters)
        self._index = index
        scaled: dict[float, list[nn.Parameter]] = {}
        for adapter in adapters.values():
            for block in adapter.trainable:
                scaled.setdefault(block.lr_scale, []).extend([block.A, block.B])
        return StageParameters(self._model, adapters.values(), scaled, self._head)

    def start_from(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._start = dict(weights)

    def end_stage(self) -> None:
        for name, adapter in self._adapters.items():
            self._freeze(name, f"stage{self._index}/{name}", adapter.trainable)
        self._attach_frozen()

    def eval(self) -> None:
        for adapter in self._adapters.values():
            adapter.eval()

    def weights(self) -> dict[str, torch.Tensor]:
        """`stage<i>/<module>/block<j>/A` [rank, cols] and `/B` [rows, rank]."""
        return dict(self._finished)

    def weights_so_far(self) -> dict[str, torch.Tensor]:
        found = super().weights_so_far()
        for name, adapter in self._adapters.items():
            for factor, own in _factors(f"stage{self._index}/{name}", adapter.trainable):
                found[factor] = own.detach().clone()
        return found

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        generator = torch.Generator()
        for index, stage in enumerate(self._plan.stages):
            for name in stage:
                place, blocks = f"stage{index}/{name}", self._blocks(index, name, generator)
                for factor, own in _factors(place, blocks):
                    own.data.copy_(named_tensor(weights, factor, own.shape))
                self._freeze(name, place, blocks)
        self._attach_frozen()

    def factors(self) -> dict[str, Factors]:
        return {
            name: (
                torch.cat([A.double().cpu() for A, _ in frozen]),
                torch.cat([B.double().cpu() for _, B in frozen], dim=1),
            )
            for name, frozen in self._frozen.items()
        }

    def parts(self) -> dict[str, list[Part]]:
        """Every block of every stage by itself."""
        found: dict[str, list[Part]] = {}
        for index, stage in enumerate(self._plan.stages):
            for name, blocks in stage.items():
                for j, block in enumerate(blocks):
                    A, B = (
                        self._finished[f"stage{index}/{name}/block{j}/{factor}"].double().cpu()
                        for factor in "AB"
                    )
                    rows, cols = (
                        torch.as_tensor(each, dtype=torch.long) for each in (block.rows, block.cols)
                    )
                    part = Part(A, B * block.scale, rows, cols, self._targets[name].shape)
                    found.setdefault(name, []).append(part)
        return found

    def _blocks(self, stage: int, name: str, generator: torch.Generator) -> list[BlockParameters]:
        """Fresh factors of a module's blocks in a stage."""
        shape = self._targets[name].shape
        return [
            BlockParameters(block, shape, generator, dtype=self._dtype, device=self._device)
            for block in self._plan.stages[stage].get(name, ())
        ]

    def _freeze(self, name: str, place: str, blocks: Sequence[BlockParameters]) -> None:
        if not blocks:
            return
        with torch.no_grad():
            layout = _Layout(blocks)
            A, B = layout.place([factor for block in blocks for factor in (block.A, block.B)])
            self._frozen.setdefault(name, []).append((A, B * layout.scale))
            for factor, own in _factors(place, blocks):
                self._finished[factor] = own.detach().clone()

    def _attach_frozen(self) -> None:
        self._attach(
            {
                name: ModuleAdapter((), self._dropout, frozen)
                for name, frozen in self._frozen.items()
            }
        )

    def _attach(self, adapters: Mapping[str, ModuleAdapter]) -> None:
        self.detach()
        self._adapters = dict(adapters)
        self._attached = update_layers(
            self._model,
            [(self._targets[name].names, adapter.update) for name, adapter in adapters.items()],
        )

    def detach(self) -> None:
        for each in self._attached:
            each.remove()
        self._attached, self._adapters = [], {}


def _factors(place: str, blocks: Sequence[BlockParameters]) -> Iterator[tuple[str, nn.Parameter]]:
    """The factors of a module's blocks by the names that `BlockAdaptation.weights` gives them."""
    for j, block in enumerate(blocks):
        yield f"{place}/block{j}/A", block.A
        yield f"{place}/block{j}/B", block.B


def plain_lora(targets: Sequence[TargetModule], rank: int, alpha: float) -> Plan:
    """Standard LoRA of one rank on every target: what PiLoRA's initial phase trains."""
    choice = parse_choice({"method": "lora", "rank": rank, "alpha": alpha})
    return make_plan(choice, targets, None)
