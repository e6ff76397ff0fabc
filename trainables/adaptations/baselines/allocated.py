"""Baselines that look at training rows first: how many ranks a module gets, and where they start.

They train LoRA's two factors, W + (alpha / rank) B A, of another rank in every module; `rank` is
that of the budget, so that the scale does not depend on what a module got.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.functional import linear

from spaces.errors import JobError
from spaces.target import TargetModule
from trainables.adaptations.adaptation import Factors
from trainables.adaptations.baselines.factors import FactorAdaptation, FactorTuner
from trainables.adaptations.training_rows import TrainingRows


class ScaledTuner(FactorTuner):
    """LoRA's two factors."""

    def __init__(self, A: nn.Parameter, B: nn.Parameter, scale: float, dropout: float) -> None:
        super().__init__(dropout)
        self.A, self.B, self.scale = A, B, scale

    def delta(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return linear(linear(self.dropped(x).to(self.A.dtype), self.A), self.B) * self.scale

    def factors(self) -> Factors:
        return self.A, self.B * self.scale


class AllocatedAdaptation(FactorAdaptation[ScaledTuner]):
    """Two factors of an own rank for each module that gets any."""

    _start: Mapping[str, Factors] | None = None

    def look(self, rows: TrainingRows) -> None:
        self.start_with(self._found(rows))

    def start_with(self, start: Mapping[str, Factors]) -> None:
        """Have the stage start from A [r_i, in] and B [out, r_i] of each module i that gets ranks.

        That is what `look` finds.
        """
        self._start = start

    @abstractmethod
    def _found(self, rows: TrainingRows) -> Mapping[str, Factors]:
        """What the rows say: the start of every module that gets ranks, alike on all workers."""

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._start = {
            target.name: (torch.zeros(rank, target.shape[1]), torch.zeros(target.shape[0], rank))
            for target in self._targets.values()
            if (rank := stored_rank(weights, target.name))
        }
        super().load(weights)

    def figures(self) -> dict[str, float]:
        return {"kept_params": float(sum(each.numel() for each in self.trained.values()))}

    def _adapted(self) -> Iterable[TargetModule]:
        if self._start is None:
            raise JobError(
                f"method: {self._tuner.name} has seen no training rows; let it look before it "
                "trains"
            )
        return [target for target in self._targets.values() if target.name in self._start]

    def _tuned(self, target: TargetModule, fresh: bool) -> ScaledTuner:
        assert self._start is not None
        A, B = (self._parameter(factor) for factor in self._start[target.name])
        scale = self._settings["alpha"] / self._settings["rank"]
        return ScaledTuner(A, B, scale, self._dropout)


def stored_rank(weights: Mapping[str, torch.Tensor], module: str) -> int:
    """The rank that a module has in `weights`, 0 where it is not among them."""
    for factor, axis in (("A", 0), ("B", 1)):
        if (tensor := weights.get(f"tuner/{module}/{factor}")) is not None:
            return int(tensor.shape[axis])
    return 0
