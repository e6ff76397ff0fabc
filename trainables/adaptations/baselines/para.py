"""PARA (Kumaravelu et al., 2026): LoRA of a high rank, pruned by the singular values of its update.

Training is LoRA's, W + (alpha / r) B A. What is measured after every epoch, and kept in the end, is
of all modules' singular components the share `keep` with the largest values
(trainables/adaptations/pruning.py); training goes on with all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import linear

from spaces.target import TargetModule
from trainables.adaptations.adaptation import Factors
from trainables.adaptations.baselines.allocated import ScaledTuner, stored_rank
from trainables.adaptations.baselines.factors import FactorAdaptation
from trainables.adaptations.pruning import components_of, kept_ranks


class ParaTuner(ScaledTuner):
    """LoRA's two factors while they train, and what is left of them while they are measured."""

    left: Factors | None = None
    """A and B of what is left, the scale within, as long as the factors have not trained on."""

    def delta(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.training or self.left is None:
            return super().delta(x, y)
        A, B = self.left
        return linear(linear(x.to(A.dtype), A), B)

    def settle(self) -> None:
        """Be what is left, from now on."""
        if self.left is not None:
            self.A, self.B = (nn.Parameter(factor) for factor in self.left)
            self.scale, self.left = 1.0, None


class ParaAdaptation(FactorAdaptation[ParaTuner]):
    """PARA on every target module."""

    _stored: Mapping[str, int] | None = None

    def _tuned(self, target: TargetModule, fresh: bool) -> ParaTuner:
        if self._stored is None:
            A, B = self._lora_factors(target)
            scale = self._settings["alpha"] / self._settings["rank"]
            return ParaTuner(A, B, scale, self._dropout)
        (out, in_), rank = target.shape, self._stored[target.name]
        A, B = (self._parameter(torch.zeros(shape)) for shape in ((rank, in_), (out, rank)))
        return ParaTuner(A, B, 1.0, self._dropout)

    def eval(self) -> None:
        if self._stored is None:
            self._prune()
        super().eval()

    @torch.no_grad()
    def _prune(self) -> None:
        found = [
            components_of(tuned.A, tuned.B.double() * tuned.scale) for tuned in self.tuners.values()
        ]
        kept = kept_ranks([each.S for each in found], self._settings["keep"])
        for tuned, each, rank in zip(self.tuners.values(), found, kept, strict=True):
            A, B = each.first(rank)
            tuned.left = self._placed(A), self._placed(B)

    def _freeze(self) -> None:
        if self._stored is None:
            self._prune()
            self._stored = {}
        for name, tuned in self.tuners.items():
            tuned.settle()
            self.trained |= {f"{name}/A": tuned.A, f"{name}/B": tuned.B}
        super()._freeze()

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._stored = {name: stored_rank(weights, name) for name in self._targets}
        super().load(weights)

    def figures(self) -> dict[str, float]:
        kept = [tuned.left or (tuned.A, tuned.B) for tuned in self.tuners.values()]
        return {"kept_params": float(sum(A.numel() + B.numel() for A, B in kept))}
