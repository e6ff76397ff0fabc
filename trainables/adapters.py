"""Block adapters: how any plan is trained on a resident base that is never written to.

A block (rank, rows, cols, scale) of one weight matrix W [out, in] adds to the layer's output

    y[..., rows] += scale * B (A x[..., cols]),    A [rank, |cols|], B [|rows|, rank],

which is the low-rank update of LoRA restricted to some rows and columns (PiLoRA Eq. 10, TASO
section 4.2). Adapters are forward hooks on the base's own layers, so that nothing of the base is
replaced, and detaching leaves it as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from spaces.plan import Block, Plan
from spaces.target import TargetModule


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
        bound = 1.0 / math.sqrt(shape[1])
        uniform = torch.rand(block.rank, len(block.cols), generator=generator, dtype=torch.float64)
        self.A = nn.Parameter(((2 * uniform - 1) * bound).to(device=device, dtype=dtype))
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

    def delta(self, x: torch.Tensor) -> torch.Tensor | None:
        """What the blocks add to the layer's output: x [..., in] -> [..., out]."""
        total = None
        if len(self.blocks):
            factors = [block.wide_factors() for block in self.trainable]
            dropped = nn.functional.dropout(x, self.dropout, training=self.training)
            total = _low_rank(dropped, factors)
        if self.frozen:
            frozen = _low_rank(x, self.frozen)
            total = frozen if total is None else total + frozen
        return total


def _low_rank(
    x: torch.Tensor, factors: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """x A^T B^T with the factors of several blocks side by side, in two products."""
    A = torch.cat([a for a, _ in factors]) if len(factors) > 1 else factors[0][0]
    B = torch.cat([b for _, b in factors], dim=1) if len(factors) > 1 else factors[0][1]
    return nn.functional.linear(nn.functional.linear(x.to(A.dtype), A), B)


class StageParameters(nn.Module):
    """What a stage trains and nothing else: the adapters' blocks and the task's fresh head.

    This is the module that a DeepSpeed engine is given. Its forward runs the resident base, which
    it holds without registering it: the engine then neither casts nor broadcasts the base.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: Mapping[str, ModuleAdapter],
        head: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        object.__setattr__(self, "_model", model)
        self.by_name = dict(adapters)
        self.adapters = nn.ModuleList(adapters.values())
        self.head = nn.ModuleList(head.values())

    def forward(self, **batch: torch.Tensor) -> Any:
        """The resident base's output, the adapters and the head in place."""
        return self._model(**batch)  # type: ignore[operator]

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups, one per learning-rate scale; the head trains at scale 1."""
        by_scale: dict[float, list[nn.Parameter]] = {}
        for adapter in self.by_name.values():
            for block in adapter.trainable:
                by_scale.setdefault(block.lr_scale, []).extend([block.A, block.B])
        head = list(self.head.parameters())
        if head:
            by_scale.setdefault(1.0, []).extend(head)
        return [
            {
                "params": parameters,
                "lr": learning_rate * scale,
                "lr_scale": scale,
                "weight_decay": weight_decay,
            }
            for scale, parameters in by_scale.items()
        ]


class Adaptation:
    """One plan on one resident base, from attaching its first stage to detaching it.

    Use it as a context manager: leaving it removes every hook and puts the base's own head back,
    whatever happened inside.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        seed: int,
        dropout: float = 0.0,
        head: Mapping[str, nn.Module] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._model, self._plan, self._seed, self._dropout = model, plan, seed, dropout
        parameter = next(model.parameters())
        self._dtype, self._device = dtype or parameter.dtype, parameter.device
        self._targets = {target.name: target for target in plan.targets}
        self._head = {} if head is None else dict(head)
        self._resident_head: dict[str, nn.Module] = {}
        self._frozen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._hooks: list[RemovableHandle] = []
        self._stage: StageParameters | None = None

    @property
    def stages(self) -> int:
        """How many stages the plan trains one after another."""
        return len(self._plan.stages)

    def __enter__(self) -> Self:
        for name, module in self._head.items():
            self._resident_head[name] = self._model.get_submodule(name)
            self._model.set_submodule(name, module)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._remove_hooks()
        for name, module in self._resident_head.items():
            self._model.set_submodule(name, module)
        self._resident_head = {}
        self._stage = None

    def begin_stage(self, index: int) -> StageParameters:
        """Attach the blocks of stage `index`, those of finished stages frozen beside them."""
        generator = torch.Generator().manual_seed(_stage_seed(self._seed, index))
        adapters = {}
        stage = self._plan.stages[index]
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
        self._stage = StageParameters(self._model, adapters, self._head)
        return self._stage

    def end_stage(self) -> None:
        """Freeze the current stage's blocks; they go on adding their update."""
        assert self._stage is not None
        with torch.no_grad():
            for name, adapter in self._stage.by_name.items():
                for block in adapter.trainable:
                    A, B = block.wide_factors()
                    self._frozen.setdefault(name, []).append((A.clone(), B.clone()))
        self._remove_hooks()
        self._stage = None

    def eval(self) -> None:
        """Turn the adapters' dropout off until the next training step."""
        if self._stage is not None:
            self._stage.eval()

    def after_backward(self, engine: Any) -> None:
        """Called by the loop after an optimizer step's last backward pass, gradients averaged."""

    def after_step(self, skipped: bool) -> None:
        """Called by the loop after an optimizer step; `skipped` where a loss scaler refused it."""

    def updates(self) -> dict[str, torch.Tensor]:
        """The finished stages' total update per module: float64 [out, in]; for export and tests."""
        return {
            name: torch.stack([B.double() @ A.double() for A, B in factors]).sum(0)
            for name, factors in self._frozen.items()
        }

    def _attach(self, adapters: Mapping[str, ModuleAdapter]) -> None:
        self._remove_hooks()
        for name, adapter in adapters.items():
            for alias in self._targets[name].names:
                layer = self._model.get_submodule(alias)
                self._hooks.append(layer.register_forward_hook(_adding(adapter)))

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _adding(
    adapter: ModuleAdapter,
) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    def hook(
        _layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        delta = adapter.delta(inputs[0])
        return output if delta is None else output + delta.to(output.dtype)

    return hook


def _stage_seed(seed: int, stage: int) -> int:
    """A seed of its own for each stage: TASO's column stage does not repeat its row stage."""
    return (seed * 1_000_003 + stage) % (2**63)


def plain_lora(targets: Sequence[TargetModule], rank: int, alpha: float) -> Plan:
    """Standard LoRA of one rank on every target: what PiLoRA's initial phase trains."""
    from spaces.methods import make_plan, parse_choice

    choice = parse_choice({"method": "lora", "rank": rank, "alpha": alpha})
    return make_plan(choice, targets, None)
