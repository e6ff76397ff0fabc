"""Baselines that train LoRA's two factors with something beside them: DyLoRA and SoRA.

Both add scale * B A to a weight W [out, in], A [rank, in] drawn as LoRA's, B [out, rank] = 0.

DyLoRA (Valipour et al., 2023, section 3.2 and Algorithm 1) draws a rank b from 1 ... r before every
optimizer step, the same for all modules, and trains the factors cut to it:

    h = W x + (alpha / b) B[:, :b] A[:b] x

so that the first ranks carry most. Of its two updates ours is the one of all b ranks, not of the
b-th alone. It is measured and kept at rank r.

SoRA (Ding et al., 2023, Eqs. 4 to 8) puts a gate g [rank] between the factors, g ~ N(0, 1):

    h = W x + (alpha / r) B (g * (A x)),    g <- T(g - eta grad g),  threshold eta lambda,
    T(g) = sign(g) max(|g| - threshold, 0)

The gradient step is the loop's own; T, the proximal step of lambda |g|_1, follows it.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.nn.functional import linear, softshrink

from spaces.target import TargetModule
from trainables.adaptations.adaptation import Factors, lora_draw
from trainables.adaptations.baselines.tuner import HookedAdaptation, ModuleTuner
from trainables.engine.masters import rewrite


class FactorTuner(ModuleTuner):
    """A module's update that is a product of low-rank factors."""

    def factors(self) -> Factors:
        """A [R, in] and B [out, R] of the update B A, its scale within B."""
        raise NotImplementedError


Factored = TypeVar("Factored", bound=FactorTuner)


class FactorAdaptation(HookedAdaptation[Factored]):
    """A FactorTuner on every target module."""

    def factors(self) -> dict[str, Factors]:
        found = {}
        for name, tuned in self.tuners.items():
            A, B = tuned.factors()
            if len(A):
                found[name] = (A.detach().double().cpu(), B.detach().double().cpu())
        return found

    def _parameter(self, values: torch.Tensor) -> nn.Parameter:
        return nn.Parameter(self._placed(values))

    def _placed(self, values: torch.Tensor) -> torch.Tensor:
        # DeepSpeed wants contiguous parameters; singular vectors often are not.
        return values.to(device=self._device, dtype=self._dtype, copy=True).contiguous()

    def _lora_factors(self, target: TargetModule) -> tuple[nn.Parameter, nn.Parameter]:
        """LoRA's A ~ U(-1/sqrt(in), 1/sqrt(in)) and B = 0."""
        (out, in_), rank = target.shape, self._settings["rank"]
        A = lora_draw(rank, in_, in_, self._generator)
        return self._parameter(A), self._parameter(torch.zeros(out, rank))


class DyloraTuner(FactorTuner):
    """Two factors of which the first `active` ranks train."""

    def __init__(self, A: nn.Parameter, B: nn.Parameter, alpha: float, dropout: float) -> None:
        super().__init__(dropout)
        self.A, self.B, self.alpha = A, B, alpha
        self.active = len(A)

    def delta(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rank = self.active if self.training else len(self.A)
        inner = linear(self.dropped(x).to(self.A.dtype), self.A[:rank])
        return linear(inner, self.B[:, :rank]) * (self.alpha / rank)

    def factors(self) -> Factors:
        return self.A, self.B * (self.alpha / len(self.A))


class DyloraAdaptation(FactorAdaptation[DyloraTuner]):
    """DyLoRA: one rank for all modules, drawn anew for every step from the trial's seed."""

    def _tuned(self, target: TargetModule, fresh: bool) -> DyloraTuner:
        A, B = self._lora_factors(target)
        return DyloraTuner(A, B, self._settings["alpha"], self._dropout)

    def _build(self, fresh: bool) -> None:
        super()._build(fresh)
        self._draw_rank()

    def after_step(self, skipped: bool, learning_rate: float) -> None:
        self._draw_rank()

    def _draw_rank(self) -> None:
        # The generator is the adaptation's own, so that all workers draw the same.
        rank = int(torch.randint(1, self._settings["rank"] + 1, (), generator=self._generator))
        for tuned in self.tuners.values():
            tuned.active = rank


class SoraTuner(FactorTuner):
    """Two factors with a gate between them."""

    def __init__(
        self, A: nn.Parameter, B: nn.Parameter, gate: nn.Parameter, scale: float, dropout: float
    ) -> None:
        super().__init__(dropout)
        self.A, self.B, self.gate, self.scale = A, B, gate, scale

    def delta(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        gated = self.gate * linear(self.dropped(x).to(self.A.dtype), self.A)
        return linear(gated, self.B) * self.scale

    def factors(self) -> Factors:
        """Those of the ranks whose gate is open."""
        is_open = self.gate != 0
        gated = self.gate[is_open, None] * self.A[is_open]
        return gated, self.B[:, is_open] * self.scale


class SoraAdaptation(FactorAdaptation[SoraTuner]):
    """SoRA: the gates' proximal step follows every optimizer step."""

    def _tuned(self, target: TargetModule, fresh: bool) -> SoraTuner:
        A, B = self._lora_factors(target)
        rank = self._settings["rank"]
        gate = torch.randn(rank, generator=self._generator, dtype=torch.float64)
        scale = self._settings["alpha"] / rank
        return SoraTuner(A, B, self._parameter(gate), scale, self._dropout)

    def after_step(self, skipped: bool, learning_rate: float) -> None:
        threshold = self._settings["sparsity"] * learning_rate
        if skipped or threshold == 0:
            return
        for tuned in self.tuners.values():
            rewrite(self._engine, tuned.gate, partial(softshrink, lambd=threshold))
