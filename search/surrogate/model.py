"""A model of what plans are worth: one Gaussian process over the features of plans, for all methods
of blocks, the baselines that train a tuner in place of blocks, and earlier sweeps that are akin.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from math import log10, sqrt
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import torch
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.mlls import ExactMarginalLogLikelihood
from numpy.typing import NDArray

from search.surrogate.acquisition import Outlook
from search.surrogate.covariance import PlanKernel, likelihood
from search.surrogate.observation import Observation, RelatedSweep
from search.surrogate.scale import Scale
from spaces.features import FEATURES, SPREADS, has_blocks

Floats = NDArray[np.float64]

RELATED = 160
"""How many observations of related sweeps are taken at most, over all sweeps."""
GIVEN_UP = 0.3
"""A related sweep whose learned correlation is below misleads more than it tells."""
_STEPS = 40
"""Steps of L-BFGS; the last ones change the likelihood by less than choices differ."""
_ROWS_SPREAD = 0.5
_all_features = itemgetter(*FEATURES)


class Described(Protocol):
    """What a model must know of a choice: an `Observation`, or a candidate that is none yet."""

    @property
    def features(self) -> Mapping[str, float]:
        """Those of spaces/features.py."""

    @property
    def method(self) -> str:
        """The name of its method."""


@dataclass(frozen=True)
class PlanModel:
    """A Gaussian process that was fitted to observations; made by `fit_model`."""

    inputs: _Inputs
    scale: Scale
    process: SingleTaskGP
    believed: tuple[bool, ...]
    """Which sweeps of the history it knows: the others mislead, and were given up."""

    def predict(self, candidates: Sequence[Described]) -> tuple[Floats, Floats]:
        """Mean and standard deviation [candidates] of the metric without the noise of a seed.

        In the metric's own units, for training on all rows.
        """
        with _one_thread(), torch.no_grad():
            found = self._posterior(self.inputs.of_candidates(candidates))
        mean, sd = found.mean.numpy(), found.variance.sqrt().numpy()
        lower, upper = self.scale.undone(mean - sd), self.scale.undone(mean + sd)
        return self.scale.undone(mean), np.abs(upper - lower) / 2

    def sample(self, candidates: Sequence[Described], n: int, rng: np.random.Generator) -> Floats:
        """Joint samples [n, candidates] of what `predict` tells the mean of."""
        return self.scale.undone(self.outlook(candidates, (), n, rng).known)

    def outlook(
        self,
        known: Sequence[Described],
        candidates: Sequence[Described],
        n: int,
        rng: np.random.Generator,
    ) -> Outlook:
        """What the known choices and the candidates may be worth, in `n` samples.

        On the model's own scale: standardised, more is better.
        """
        drawn = torch.from_numpy(rng.standard_normal((n, len(known))))
        with _one_thread(), torch.no_grad():
            first = self._posterior(self.inputs.of_candidates(known))
            second = self._posterior(self.inputs.of_candidates(candidates))
            root = torch.linalg.cholesky(_with_jitter(self._covariance(first, first)))
            cross = self._covariance(first, second)
            weights = torch.linalg.solve_triangular(root, cross, upper=False)
            variance = second.variance - weights.square().sum(dim=0)
            return Outlook(
                (first.mean + drawn @ root.T).numpy(),
                (second.mean + drawn @ weights).numpy(),
                variance.clamp_min(0.0).sqrt().numpy(),
            )

    def gains(self, candidates: Sequence[Described]) -> tuple[Floats, Floats]:
        """As `predict`, on the model's own scale."""
        with _one_thread(), torch.no_grad():
            found = self._posterior(self.inputs.of_candidates(candidates))
        return found.mean.numpy(), found.variance.sqrt().numpy()

    @property
    def noise_sd(self) -> float:
        """Standard deviation between the seeds of one choice, in the metric's own units."""
        return sqrt(float(self.process.likelihood.noise.detach())) * self.scale.width

    def lengthscales(self) -> dict[str, float]:
        """Feature -> how far it must move, in its own units, before values differ much."""
        scales = self.process.covar_module.lengthscale.detach().numpy()
        names = (*FEATURES, "log10_rows")
        widths = (*(SPREADS[name] for name in FEATURES), _ROWS_SPREAD)
        return {
            name: float(length * width)
            for name, length, width in zip(names, scales, widths, strict=True)
        }

    def hyperparameters(self) -> tuple[float, float, float, float, float]:
        """Variance of the signal and of the task's offset, variance of the noise, all on the
        model's own scale; the value that its zero stands for, and the length of its unit."""
        kernel = self.process.covar_module
        constant = float(self.process.mean_module.constant.detach())
        return (
            float(kernel.raw_signal.detach().exp()),
            float(kernel.raw_task_offset.detach().exp()),
            float(self.process.likelihood.noise.detach()),
            self.scale.middle + self.scale.sign * self.scale.width * constant,
            self.scale.width,
        )

    @property
    def size(self) -> int:
        """How many observations it knows, those of the history included."""
        return int(self.process.train_targets.shape[0])

    def correlations(self) -> list[float]:
        """How far each sweep of the history is believed, from 0 to 1; 0 is one given up."""
        found = iter(self.process.covar_module.correlation.detach())
        return [float(next(found)) if believed else 0.0 for believed in self.believed]

    def sensitivity(self, candidates: Sequence[Described], seed: int = 0) -> dict[str, float]:
        """Feature -> its share of what moves the predicted mean over `candidates`; they sum to 1.

        The shares are those of the total effects: half the mean square of what the mean changes by
        where one feature is taken from another candidate (Jansen 1999), here over the features as
        they come, which are not independent.
        """
        points = self.inputs.of_candidates(candidates)
        order = np.random.default_rng(seed).permutation(len(candidates))
        effects = {}
        with _one_thread(), torch.no_grad():
            mean = self._posterior(points).mean
            for column, name in enumerate(FEATURES):
                moved = points.clone()
                moved[:, column] = points[order, column]
                effects[name] = float((self._posterior(moved).mean - mean).square().mean()) / 2
        whole = sum(effects.values())
        return {name: effect / whole if whole else 0.0 for name, effect in effects.items()}

    @cached_property
    def _solved(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The root of the observations' covariance with noise, and its inverse times the values."""
        X, y = self.process.train_inputs[0], self.process.train_targets
        with torch.no_grad():
            covariance = self.process.covar_module(X).to_dense()
            covariance.diagonal().add_(self.process.likelihood.noise)
            root = torch.linalg.cholesky(covariance)
            centred = (y - self.process.mean_module.constant)[:, None]
            return root, torch.cholesky_solve(centred, root)

    def _posterior(self, points: torch.Tensor) -> _Posterior:
        root, solved = self._solved
        kernel = self.process.covar_module
        cross = kernel(self.process.train_inputs[0], points).to_dense()
        reduced = torch.linalg.solve_triangular(root, cross, upper=False)
        mean = self.process.mean_module.constant + (cross.T @ solved)[:, 0]
        variance = kernel(points, diag=True) - reduced.square().sum(dim=0)
        return _Posterior(points, reduced, mean, variance.clamp_min(1e-12))

    def _covariance(self, one: _Posterior, other: _Posterior) -> torch.Tensor:
        prior = self.process.covar_module(one.points, other.points).to_dense()
        covariance: torch.Tensor = prior - one.reduced.T @ other.reduced
        return covariance


@dataclass(frozen=True)
class _Posterior:
    """Mean and variance [points], and what the covariance with other points is made of."""

    points: torch.Tensor
    reduced: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor


def fit_model(
    observations: Sequence[Observation],
    *,
    maximize: bool,
    history: Sequence[RelatedSweep] = (),
    seed: int = 0,
    like: PlanModel | None = None,
) -> PlanModel:
    """The model of a sweep's observations, one of each trial.

    Args:
        observations: those of the sweep itself; a value that is not finite is that of a trial which
            failed, and counts as the worst that was seen.
        maximize: whether more of the metric is better.
        history: earlier sweeps; how far each is believed is learned.
        seed: of which observations are taken where there are too many of them.
        like: a model whose hyperparameters are taken as they are, with the same history.

    Raises:
        ValueError: there is no observation at all.
    """
    if not observations and not any(sweep.observations for sweep in history):
        raise ValueError("no observation to fit a model to; train a choice first")
    rng = np.random.default_rng(seed)
    taken = [_taken(sweep, len(history), rng) for sweep in history]
    if like is None:
        like = _conditioned(observations, maximize, taken, (True,) * len(taken), None)
        _fit(like.process)
        if min(like.correlations(), default=1.0) >= GIVEN_UP:
            return like
    believed = tuple(each >= GIVEN_UP for each in like.correlations())
    if not observations and not any(believed):
        return like
    return _conditioned(observations, maximize, taken, believed, like)


def _conditioned(
    observations: Sequence[Observation],
    maximize: bool,
    history: Sequence[RelatedSweep],
    believed: tuple[bool, ...],
    like: PlanModel | None,
) -> PlanModel:
    """The model of observations and the sweeps that are believed, with given hyperparameters."""
    related = [sweep for sweep, taken in zip(history, believed, strict=True) if taken]
    every = [*observations, *(each for sweep in related for each in sweep.observations)]
    inputs = _Inputs.of(every, None if like is None else like.inputs.tuners)
    others = [
        Scale.of([each.value for each in sweep.observations], maximize=sweep.maximized)
        for sweep in related
    ]
    values = [each.value for each in observations]
    scale = Scale.of(values, maximize=maximize, beside=others)
    tasks = [0] * len(values)
    y = [*scale.done(values)]
    for task, (sweep, other) in enumerate(zip(related, others, strict=True), 1):
        tasks += [task] * len(sweep.observations)
        y += [*other.done([each.value for each in sweep.observations])]
    with _one_thread():
        kernel = PlanKernel(len(FEATURES) + 1, [sweep.relation for sweep in related])
        process = SingleTaskGP(
            inputs.of_observations(every, tasks),
            torch.tensor(y, dtype=torch.float64)[:, None],
            likelihood=likelihood(),
            covar_module=kernel,
            outcome_transform=None,
        )
        if like is not None:
            known = iter(like.process.covar_module.raw_correlation.detach())
            before = [next(known) if had else None for had in like.believed]
            kept = [each for each, had in zip(before, believed, strict=True) if had]
            state = like.process.state_dict()
            state["covar_module.raw_correlation"] = torch.tensor(kept, dtype=torch.float64)
            process.load_state_dict(_without_priors(state), strict=False)
        process.eval()
    return PlanModel(inputs, scale, process, believed)


def _without_priors(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state without its priors, of which a kernel without a history has fewer."""
    return {name: value for name, value in state.items() if "prior" not in name}


def _fit(process: SingleTaskGP) -> None:
    """Move the hyperparameters to the maximum of their posterior, as far as it can be found."""
    mll = ExactMarginalLogLikelihood(process.likelihood, process)
    options = {"maxiter": _STEPS, "ftol": 1e-5}
    process.train()
    with _one_thread(), suppress(ModelFittingError):  # what the priors expect is a model too
        fit_gpytorch_mll(
            mll,
            optimizer_kwargs={"options": options},
            max_attempts=1,
            warning_handler=lambda _: True,
        )
    process.eval()


def _taken(sweep: RelatedSweep, sweeps: int, rng: np.random.Generator) -> RelatedSweep:
    """A related sweep with no more than its part of the observations that may be taken."""
    share = max(1, RELATED // sweeps)
    known = [each for each in sweep.observations if np.isfinite(each.value)]
    if len(known) > share:
        known = [known[index] for index in sorted(rng.choice(len(known), share, replace=False))]
    return RelatedSweep(sweep.run_id, sweep.relation, sweep.maximized, tuple(known))


@dataclass(frozen=True)
class _Inputs:
    """How choices become rows of numbers: features in units of their spread, the share of the rows,
    the number of the tuner (-1 for blocks), the number of the task (0 for the sweep itself)."""

    centre: Floats
    tuners: tuple[str, ...]

    @classmethod
    def of(cls, observations: Sequence[Observation], tuners: Sequence[str] | None) -> _Inputs:
        """A feature that a choice lacks stands at the mean of those that have it."""
        rows = _rows(observations)
        known = np.isfinite(rows)
        count = np.maximum(known.sum(axis=0), 1)
        centre = np.where(known, rows, 0.0).sum(axis=0) / count
        found = {o.method for o in observations if _is_tuner(o)}
        return cls(centre, (*(tuners or ()), *sorted(found - set(tuners or ()))))

    def of_candidates(self, candidates: Sequence[Described]) -> torch.Tensor:
        return self._table(candidates, [0.0] * len(candidates), [0] * len(candidates))

    def of_observations(
        self, observations: Sequence[Observation], tasks: Sequence[int]
    ) -> torch.Tensor:
        return self._table(observations, [log10(each.rows) for each in observations], tasks)

    def _table(
        self, described: Sequence[Described], log_rows: Sequence[float], tasks: Sequence[int]
    ) -> torch.Tensor:
        rows = _rows(described)
        spreads = np.array([SPREADS[name] for name in FEATURES])
        table = np.zeros((len(described), len(FEATURES) + 3))
        table[:, : len(FEATURES)] = (
            np.where(np.isfinite(rows), rows, self.centre) - self.centre
        ) / spreads
        table[:, -3] = np.asarray(log_rows) / _ROWS_SPREAD
        numbers = {name: number for number, name in enumerate(self.tuners)}
        unknown = len(numbers)
        table[:, -2] = [
            numbers.get(each.method, unknown) if _is_tuner(each) else -1 for each in described
        ]
        table[:, -1] = tasks
        return torch.from_numpy(table)


def _rows(described: Sequence[Described]) -> Floats:
    """Features [choices, features], NaN where one lacks it."""
    rows = [_row(each.features) for each in described]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(FEATURES))


def _row(features: Mapping[str, float]) -> Sequence[float]:
    try:
        found: Sequence[float] = _all_features(features)
    except KeyError:
        found = [features.get(name, np.nan) for name in FEATURES]
    return found


def _is_tuner(described: Described) -> bool:
    return not has_blocks(described.features)


def _with_jitter(covariance: torch.Tensor) -> torch.Tensor:
    size = covariance.shape[-1]
    return covariance + 1e-6 * torch.eye(size, dtype=covariance.dtype)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of torch's while open: the matrices are small, and the driver has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)
