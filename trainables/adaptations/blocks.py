"""Block adapters: how any plan is trained on a resident base that is never written to.

A block (rank, rows, cols, scale) of one weight matrix W [out, in] adds to the layer's output

    y[..., rows] += scale * B (A x[..., cols]),    A [rank, |cols|], B [|rows|, rank],

which is the low-rank update of LoRA restricted to some rows and columns (PiLoRA Eq. 10, TASO
section 4.2). Adapters stand in for the forward of the base's own layers or hook on to it; the
layers stay as they are, and detaching leaves the base as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

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
from trainables.adaptations.flat import BlockFactors, FlatFactors, ModuleBlocks, stacked
from trainables.layers.adapted import update_layers
from trainables.layers.low_rank import LowRank
from trainables.layers.stand_in import Removable


class ModuleAdapter(nn.Module):
    """All blocks of one target module in one stage, and the frozen blocks of the stages before.

    The trainable blocks share one dropout mask on their input; frozen blocks read it undropped.
    `factors` holds A [R, in] and B [out, R], of the ranks that train and then of those that are
    frozen; who places them puts the present ones there. `trained` is how many train, None where all
    do.
    """

    def __init__(
        self,
        factors: Sequence[torch.Tensor],
        *,
        blocks: Sequence[BlockFactors] = (),
        scale: float = 1.0,
        dropout: float = 0.0,
        trained: int | None = None,
    ) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.scale, self.dropout, self.trained = scale, dropout, trained
        self._factors = factors

    def update(self) -> LowRank:
        """What all blocks add to the layer."""
        A, B = self._factors
        return LowRank(A, B, self.scale, self.dropout if self.training else 0.0, self.trained)


class BlockStage(StageParameters):
    """A stage of blocks: flat parameters, placed once for all modules at every forward."""

    def __init__(
        self,
        model: nn.Module,
        adapters: Iterable[nn.Module],
        factors: FlatFactors,
        head: Mapping[str, nn.Module],
    ) -> None:
        flats = zip(factors.lr_scales, factors.flats, strict=True)
        super().__init__(model, adapters, {scale: [flat] for scale, flat in flats}, head)
        for number, flat in enumerate(factors.flats):
            self.register_parameter(f"flat{number}", flat)
        self._factors = factors

    def place(self) -> None:
        self._factors.place()


class BlockAdaptation(Adaptation):
    """A plan of blocks, stage by stage; those of a finished stage go on adding their update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._frozen: dict[str, list[Factors]] = {}
        self._finished: dict[str, torch.Tensor] = {}
        self._attached: list[Removable] = []
        self._adapters: dict[str, ModuleAdapter] = {}
        self._start: Mapping[str, torch.Tensor] = {}
        self._factors: FlatFactors | None = None
        self._index = 0

    def begin_stage(self, index: int, steps: int) -> StageParameters:
        stage = self._plan.stages[index]
        trained = [name for name in self._targets if name in stage]
        modules = [
            ModuleBlocks(self._targets[name].shape, stage[name], self._frozen.get(name, ()))
            for name in trained
        ]
        factors = FlatFactors(modules, dtype=self._dtype, device=self._device)
        self._draw(index, dict(zip(trained, factors.blocks, strict=True)))
        factors.place()
        adapters = self._frozen_adapters(without=trained)
        for number, (name, module) in enumerate(zip(trained, modules, strict=True)):
            adapters[name] = ModuleAdapter(
                factors.matrices[number],
                blocks=factors.blocks[number],
                scale=module.scale,
                dropout=self._dropout,
                trained=module.rank if module.frozen else None,
            )
        self._attach({name: adapters[name] for name in self._targets if name in adapters})
        self._index, self._factors = index, factors
        return BlockStage(self._model, self._adapters.values(), factors, self._head)

    def _draw(self, index: int, blocks: Mapping[str, Sequence[BlockFactors]]) -> None:
        """Give a stage's factors the values that they start from."""
        generator = torch.Generator().manual_seed(stage_seed(self._seed, index))
        for name, of_module in blocks.items():
            fan_in = self._targets[name].shape[1]
            for j, own in enumerate(of_module):
                block, place = own.block, _place(index, name, j)
                own.write(A=lora_draw(block.rank, len(block.cols), fan_in, generator))
                for side, shape in _shapes(block).items():
                    if f"{place}/{side}" in self._start:
                        own.write(**{side: named_tensor(self._start, f"{place}/{side}", shape)})

    def start_from(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._start = dict(weights)

    def end_stage(self) -> None:
        self._finished |= self._trained_now()
        self._freeze(self._index)
        self._attach_frozen()

    def eval(self) -> None:
        for adapter in self._adapters.values():
            adapter.eval()
        if self._factors is not None:
            with torch.no_grad():
                self._factors.place()

    def weights(self) -> dict[str, torch.Tensor]:
        """`stage<i>/<module>/block<j>/A` [rank, cols] and `/B` [rows, rank]."""
        return dict(self._finished)

    def weights_so_far(self) -> dict[str, torch.Tensor]:
        return super().weights_so_far() | self._trained_now()

    def _trained_now(self) -> dict[str, torch.Tensor]:
        """Copies of the factors of the stage under way, by the names of `weights`."""
        return {
            f"{_place(self._index, name, j)}/{side}": _copy(factor)
            for name, adapter in self._adapters.items()
            for j, own in enumerate(adapter.blocks)
            for side, factor in zip("AB", own.now(), strict=True)
        }

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        for index, stage in enumerate(self._plan.stages):
            for name, blocks in stage.items():
                for j, block in enumerate(blocks):
                    for side, shape in _shapes(block).items():
                        factor = f"{_place(index, name, j)}/{side}"
                        given = named_tensor(weights, factor, shape)
                        self._finished[factor] = _copy(given.to(self._device, self._dtype))
            self._freeze(index)
        self._attach_frozen()

    def factors(self) -> dict[str, Factors]:
        return {
            name: stacked([(A.double().cpu(), B.double().cpu()) for A, B in frozen])
            for name, frozen in self._frozen.items()
        }

    def parts(self) -> dict[str, list[Part]]:
        """Every block of every stage by itself."""
        found: dict[str, list[Part]] = {}
        for index, stage in enumerate(self._plan.stages):
            for name, blocks in stage.items():
                for j, block in enumerate(blocks):
                    A, B = (
                        self._finished[f"{_place(index, name, j)}/{side}"].double().cpu()
                        for side in "AB"
                    )
                    rows, cols = (
                        torch.as_tensor(each, dtype=torch.long) for each in (block.rows, block.cols)
                    )
                    part = Part(A, B * block.scale, rows, cols, self._targets[name].shape)
                    found.setdefault(name, []).append(part)
        return found

    def _freeze(self, index: int) -> None:
        """Keep what a finished stage adds, as factors of whole matrices."""
        for name, blocks in self._plan.stages[index].items():
            parts = []
            for j, block in enumerate(blocks):
                A, B = (self._finished[f"{_place(index, name, j)}/{side}"] for side in "AB")
                rows, cols = (
                    torch.as_tensor(each, dtype=torch.long, device=A.device)
                    for each in (block.rows, block.cols)
                )
                part = Part(A, B * block.scale, rows, cols, self._targets[name].shape)
                parts.append(part.in_whole(part.A, part.B))
            self._frozen.setdefault(name, []).append(stacked(parts))

    def _frozen_adapters(self, without: Sequence[str] = ()) -> dict[str, ModuleAdapter]:
        """Adapters of what earlier stages have left of modules, and nothing else."""
        return {
            name: ModuleAdapter(stacked(frozen), dropout=self._dropout, trained=0)
            for name, frozen in self._frozen.items()
            if name not in without
        }

    def _attach_frozen(self) -> None:
        self._attach(self._frozen_adapters())

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
        if self._factors is not None:
            self._factors.release()
        self._attached, self._adapters, self._factors = [], {}, None


def _place(stage: int, name: str, block: int) -> str:
    """Under what name the factors of a block stand among the weights."""
    return f"stage{stage}/{name}/block{block}"


def _shapes(block: Block) -> dict[str, tuple[int, int]]:
    """The shapes of a block's A and B."""
    return {"A": (block.rank, len(block.cols)), "B": (len(block.rows), block.rank)}


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def plain_lora(targets: Sequence[TargetModule], rank: int, alpha: float) -> Plan:
    """Standard LoRA of one rank on every target: what PiLoRA's initial phase trains."""
    choice = parse_choice({"method": "lora", "rank": rank, "alpha": alpha})
    return make_plan(choice, targets, None)
