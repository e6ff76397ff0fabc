"""How the values of two choices go together, and which hyperparameters are believed beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import torch
from gpytorch.constraints import Interval
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.priors import LogNormalPrior, NormalPrior

_CORRELATED = {"same": 2.5, "task": 1.5, "base": 1.5}
"""Relation of a sweep -> logit of the correlation that is expected of it."""


class PlanKernel(Kernel):  # type: ignore[misc]
    """k(x, x') = s^2 m(x, x') b(t, t') + [both of one tuner] v + [t = t'] o

    m is the Matérn 5/2 with a length of its own for every feature. b is 1 within a task; between
    the sweep and task t it is the correlation c_t, between two other tasks c_t c_t'. So a related
    task is f_t = c_t f + sqrt(1 - c_t^2) g_t, an intrinsic coregionalization of rank one beside a
    part of its own (Bonilla et al. 2007). v is the variance of a tuner's offset, and o that of a
    task's.

    Columns of x: `features` of them, the number of a tuner or -1, the number of the task.
    """

    has_lengthscale = False

    def __init__(self, features: int, relations: Sequence[str]) -> None:
        super().__init__()
        self.features = features
        self._positive("lengthscale", torch.full((features,), 3.0), 1e-2, 1e3)
        self._positive("signal", torch.tensor(1.0), 1e-2, 1e2)
        self._positive("tuner_offset", torch.tensor(0.5), 1e-3, 1e1)
        self._positive("task_offset", torch.tensor(0.1), 1e-3, 1e1)
        self._prior("lengthscale", log(4.0), 0.7)
        self._prior("signal", 0.0, 0.7)
        self._prior("tuner_offset", log(0.5), 0.7)
        self._prior("task_offset", log(0.1), 1.0)
        logits = torch.tensor([_CORRELATED[each] for each in relations], dtype=torch.float64)
        self.register_parameter("raw_correlation", torch.nn.Parameter(logits.clone()))
        if relations:
            self.register_prior(
                "correlation_prior",
                NormalPrior(logits, torch.full_like(logits, 1.5)),
                lambda module: module.raw_correlation,
            )

    def _positive(self, name: str, start: torch.Tensor, low: float, high: float) -> None:
        """A hyperparameter that is optimized as its logarithm."""
        raw = torch.nn.Parameter(start.to(torch.float64).log())
        self.register_parameter(f"raw_{name}", raw)
        self.register_constraint(f"raw_{name}", _Logarithm(low, high))

    def _prior(self, name: str, middle: float, spread: float) -> None:
        prior = LogNormalPrior(middle, spread)
        self.register_prior(f"{name}_prior", prior, lambda m: getattr(m, f"raw_{name}").exp())

    @property
    def lengthscale(self) -> torch.Tensor:
        """[features], in the units of the columns."""
        lengths: torch.Tensor = self.raw_lengthscale.exp()
        return lengths

    @property
    def correlation(self) -> torch.Tensor:
        """[related tasks], from 0 to 1."""
        found: torch.Tensor = torch.sigmoid(self.raw_correlation)
        return found

    def forward(
        self, x1: torch.Tensor, x2: torch.Tensor, diag: bool = False, **_: Any
    ) -> torch.Tensor:
        """The covariance [..., rows of x1, rows of x2], or its diagonal."""
        tuner1, tuner2, task1, task2 = x1[..., -2], x2[..., -2], x1[..., -1], x2[..., -1]
        a, b = (x[..., : self.features] / self.lengthscale for x in (x1, x2))
        if diag:
            square = (a - b).square().sum(-1)
        else:
            square = (
                a.square().sum(-1)[..., :, None]
                + b.square().sum(-1)[..., None, :]
                - 2 * a @ b.transpose(-1, -2)
            )
            tuner1, task1 = tuner1[..., :, None], task1[..., :, None]
            tuner2, task2 = tuner2[..., None, :], task2[..., None, :]
        distance = (5 * square.clamp_min(1e-14)).sqrt()
        smooth = (1 + distance + distance.square() / 3) * torch.exp(-distance)
        same_task = (task1 == task2).to(smooth)
        covariance: torch.Tensor = self.raw_signal.exp() * smooth
        if len(self.raw_correlation):
            to_sweep = torch.cat([self.correlation.new_ones(1), self.correlation])
            between = to_sweep[task1.long()] * to_sweep[task2.long()]
            covariance = covariance * torch.where(task1 == task2, torch.ones_like(between), between)
        same_tuner = ((tuner1 == tuner2) & (tuner1 >= 0)).to(smooth)
        covariance += self.raw_tuner_offset.exp() * same_tuner
        covariance += self.raw_task_offset.exp() * same_task
        return covariance


class _Logarithm(Interval):  # type: ignore[misc]
    """Bounds of a hyperparameter whose logarithm is what is optimized."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__(log(low), log(high), transform=None)


def likelihood() -> GaussianLikelihood:
    """Noise between seeds, learned; about a tenth of the variance of choices is expected."""
    found = GaussianLikelihood(
        noise_prior=LogNormalPrior(log(0.06), 1.0), noise_constraint=Interval(1e-4, 1.0)
    )
    found.noise = torch.tensor(0.06)
    return found
