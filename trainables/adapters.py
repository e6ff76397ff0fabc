"""Block adapters: how any plan is trained on a resident base that is never written to.

A block (rank, rows, cols, scale) of one weight matrix W [out, in] adds to the layer's output

    y[..., rows] += scale * B (A x[..., cols]),    A [rank, |cols|], B [|rows|, rank],

which is the low-rank update of LoRA restricted to some rows and columns (PiLoRA Eq. 10, TASO
section 4.2). Adapters are forward hooks on the base's own layers, so that nothing of the base is
replaced, and detaching leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from spaces.plan import Block, Plan
from spaces.target import TargetModule
from trainables.adaptation import (
    Adaptation,
    Factors,
    StageParameters,
    hook_layers,
    lora_draw,
    stage_seed,
    taken,
)
from trainables.low_rank import add_low_rank


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
        self.shape, self.scale, self.lr_scale = shape, block.scale, block.lr_scale
        self._rows = _indices(block.rows, shape[0], device)
        self._cols = _indices(block.cols, shape[1], device)

    def wide_factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(A [rank, in], scale * B [out, rank]) with zeros outside the block's cols and rows."""
        A: torch.Tensor = self.A
        B = self.B * self.scale
        if self._cols is not None:
            A = A.new_zeros(A.shape[0], self.shape[1]).index_copy(1, self._cols, A)
        if self._rows is not None:
            B = B.new_zeros(self.shape[0], B.shape[1]).index_copy(0, self._rows, B)
        return A, B


def _indices(index: NDArray[np.int32], size: int, device: torch.device) -> torch.Tensor | None:
    """The index as a tensor; None where it takes every position."""
    if len(index) == size:
        return None
    return torch.as_tensor(index, dtype=torch.long, device=device)


class ModuleAdapter(nn.Module):
    """All blocks of one target module in one stage, and the frozen blocks of the stages before.

    The trainable blocks share one dropout mask on their input; frozen blocks read it undropped.
    """

    def __init__(self, blocks: Sequence[BlockParameters], dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.trainable = tuple(blocks)
        self.dropout = dropout
        self.frozen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The layer's output y [..., out] with what the blocks add to it for x [..., in]."""
        if len(self.blocks):
            A, B = _side_by_side([block.wide_factors() for block in self.trainable])
            y = add_low_rank(y, x, A, B, self.dropout if self.training else 0.0)
        if self.frozen:
            y = add_low_rank(y, x, *_side_by_side(self.frozen))
        return y


def _side_by_side(
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of several blocks as those of one, of the sum of their ranks."""
    if len(factors) == 1:
        return factors[0]
    return torch.cat([A for A, _ in factors]), torch.cat([B for _, B in factors], dim=1)


class BlockAdaptation(Adaptation):
    """A plan of blocks, stage by stage; those of a finished stage go on adding their update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._frozen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._finished: dict[str, torch.Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self._adapters: dict[str, ModuleAdapter] = {}
        self._index = 0

    def begin_stage(self, index: int, steps: int) -> StageParameters:
        generator = torch.Generator().manual_seed(stage_seed(self._seed, index))
        stage, adapters = self._plan.stages[index], {}
        for name, target in self._targets.items():
            blocks = [
                BlockParameters(
                    block, target.shape, generator, dtype=self._dtype, device=self._device
                )
                for block in stage.get(name, ())
            ]
            if blocks or name in self._frozen:
                adapters[name] = ModuleAdapter(blocks, self._dropout)
                adapters[name].frozen = self._frozen.get(name, [])
        self._attach(adapters)
        self._index = index
        scaled: dict[float, list[nn.Parameter]] = {}
        for adapter in adapters.values():
            for block in adapter.trainable:
                scaled.setdefault(block.lr_scale, []).extend([block.A, block.B])
        return StageParameters(self._model, adapters.values(), scaled, self._head)

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

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        generator = torch.Generator()
        for index, stage in enumerate(self._plan.stages):
            for name, blocks in stage.items():
                place, loaded = f"stage{index}/{name}", []
                for j, block in enumerate(blocks):
                    parameters = BlockParameters(
                        block, self._targets[name].shape, generator,
                        dtype=self._dtype, device=self._device,
                    )  # fmt: skip
                    with torch.no_grad():
                        for factor in ("A", "B"):
                            own = getattr(parameters, factor)
                            own.copy_(taken(weights, f"{place}/block{j}/{factor}", own.shape))
                    loaded.append(parameters)
                self._freeze(name, place, loaded)
        self._attach_frozen()

    def factors(self) -> dict[str, Factors]:
        return {
            name: (
                torch.cat([A.double().cpu() for A, _ in frozen]),
                torch.cat([B.double().cpu() for _, B in frozen], dim=1),
            )
            for name, frozen in self._frozen.items()
        }

    def _freeze(self, name: str, place: str, blocks: Sequence[BlockParameters]) -> None:
        with torch.no_grad():
            for j, block in enumerate(blocks):
                A, B = block.wide_factors()
                self._frozen.setdefault(name, []).append((A.clone(), B.clone()))
                for factor in ("A", "B"):
                    value = getattr(block, factor).detach().clone()
                    self._finished[f"{place}/block{j}/{factor}"] = value

    def _attach_frozen(self) -> None:
        adapters = {}
        for name, frozen in self._frozen.items():
            adapters[name] = ModuleAdapter((), self._dropout)
            adapters[name].frozen = frozen
        self._attach(adapters)

    def _attach(self, adapters: Mapping[str, ModuleAdapter]) -> None:
        self.detach()
        self._adapters = dict(adapters)
        for name, adapter in adapters.items():
            self._hooks += hook_layers(self._model, self._targets[name].names, adapter.add)

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._adapters = [], {}


def plain_lora(targets: Sequence[TargetModule], rank: int, alpha: float) -> Plan:
    """Standard LoRA of one rank on every target: what PiLoRA's initial phase trains."""
    from spaces.methods import make_plan, parse_choice

    choice = parse_choice({"method": "lora", "rank": rank, "alpha": alpha})
    return make_plan(choice, targets, None)
