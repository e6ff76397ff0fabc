"""What a sweep has learned: what moved its metric, how sure that is, what would be tried next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kruskal, spearmanr

from search.objective import Objective
from search.queries.differences import holm
from search.surrogate.draws import Drawn
from search.surrogate.observation import Observation, RelatedSweep
from search.surrogate.worth import Worth, budgets_of, worth_of_more
from search.tracking.facts import flattened
from spaces.alpha import ALPHA_OVER_RANK, over_rank
from spaces.features import FEATURES, has_blocks
from spaces.methods.registry import METHODS

if TYPE_CHECKING:
    from search.surrogate.model import PlanModel

Floats = NDArray[np.float64]

FEWEST = 5
"""Choices with a complete trial that a model takes."""
WORTH_BELOW = 0.2
"""More trials are worth their cost from so much improvement on, in deviations of the noise, where a
sweep has no `search.stop_when`."""
_FOLDS = 10
_REFITTED = 100
"""Of more choices the hyperparameters hardly depend on a tenth of them, and are fitted once."""
_STEPS = 9
_OVER = 80
_SAMPLES = 512
_Z = 1.959964
_KEYS_TRIALS = 6


@dataclass(frozen=True)
class Tried:
    """A complete trial: its number, its choice in plain values, and what it tells."""

    number: int
    choice: Mapping[str, Any]
    observation: Observation


@dataclass(frozen=True)
class FeatureEffect:
    """What one feature of plans does to the metric, by the model.

    `share` is its part of what moves the predicted metric; the shares of all sum to 1. `swing` is
    how much the prediction, averaged over the tried choices, differs between the best and the worst
    value of the feature alone, and `best` is the best value; `low` and `high` are tried.
    """

    name: str
    share: float
    swing: float
    best: float
    low: float
    high: float


@dataclass(frozen=True)
class KeyEffect:
    """What a key of one method has to do with the metric, by rank, whatever the model.

    `correlation` is Spearman's of a number's with the gain, so that more is better where it is
    above 0; None of a key with other values, of which `best` has the best mean. `p_value` is
    adjusted for all keys that were looked at (Holm).
    """

    method: str
    key: str
    trials: int
    correlation: float | None
    best: Any
    p_value: float


@dataclass(frozen=True)
class Sureness:
    """How well the model tells the value of choices that it has not seen.

    `r2` and `rank_correlation` are of predictions for one part of the choices by a model of the
    others; None where the values do not differ. `covered` is the share of values within their 95 %
    intervals. `noise_sd` is the deviation between seeds, in the metric's own units, that the model
    assumes, and `repeated` how many choices were trained with several seeds, which tell it.
    """

    trials: int
    choices: int
    repeated: int
    noise_sd: float
    r2: float | None
    rank_correlation: float | None
    covered: float


@dataclass(frozen=True)
class Predicted:
    """What a choice is worth by the model: its mean over seeds, with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BestTried:
    """The tried choice that the model holds for the best; `measured` is its mean over `seeds`."""

    number: int
    method: str
    choice: Mapping[str, Any]
    trainable_params: int
    measured: float
    seeds: int
    predicted: Predicted


@dataclass(frozen=True)
class NextTrial:
    """A choice that would be tried next.

    `gain` is what it is expected to add to the best, together with those before it, in the metric's
    own units; of a search for two objectives it is the mean over budgets of parameters. `by_value`
    is the part of the gain, from 0 to 1, that its predicted mean alone would bring; the rest is
    what it may be worth because it is not known well.
    """

    method: str
    arm: str
    choice: Mapping[str, Any]
    trainable_params: int
    predicted: Predicted
    gain: float
    by_value: float
    why: str


@dataclass(frozen=True)
class More:
    """Whether the next `trials` trials are worth their cost: where `in_noise`, the expected
    improvement `gain` in deviations of the noise between seeds, is `at_least` so much."""

    trials: int
    gain: float
    in_noise: float
    at_least: float
    are_worth_it: bool


@dataclass(frozen=True)
class Earlier:
    """An earlier sweep that the model has learned from as well, and how far it believes it: from 0,
    given up for it misleads, to 1."""

    run_id: str
    relation: str
    trials: int
    believed: float


@dataclass(frozen=True)
class Explanation:
    """What a sweep has learned. What cannot be told is None or empty, and `notes` say why.

    `complete` trials were trained to their end, and `next` is best first.
    """

    sweep: str
    run_id: str | None
    metric: str
    mode: str
    complete: int
    history: list[Earlier] = field(default_factory=list)
    best: BestTried | None = None
    features: list[FeatureEffect] = field(default_factory=list)
    keys: list[KeyEffect] = field(default_factory=list)
    sureness: Sureness | None = None
    next: list[NextTrial] = field(default_factory=list)
    more: More | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ahead:
    """What may yet be tried: candidates, whether fewer parameters are an objective, of how many
    trials the worth is told, and from which improvement on they are worth it."""

    candidates: Sequence[Drawn]
    pareto: bool = False
    trials: int = 10
    at_least: float = WORTH_BELOW


def explained(
    start: Explanation,
    tried: Sequence[Tried],
    ahead: Ahead | None,
    *,
    top: int = 5,
    history: Sequence[RelatedSweep] = (),
    seed: int = 0,
) -> Explanation:
    """The explanation that `start` begins, with all that its trials tell.

    Args:
        start: names the sweep, its metric and mode, and has notes already.
        tried: the complete trials whose features are known.
        ahead: what may yet be tried; None where that is not known, as a note in `start` says.
        top: how many trials are proposed.
        history: what earlier sweeps tell.
        seed: of the draws.
    """
    objective = Objective(start.metric, "min" if start.mode == "min" else "max")
    observations = [each.observation for each in tried]
    by_choice = _by_choice(tried)
    notes = [*start.notes, *_what_is_lacking(by_choice)]
    keys = _keys(by_choice, objective)
    if len(by_choice) < FEWEST:
        return replace(start, keys=keys, notes=notes)
    from search.surrogate.model import fit_model  # loads torch

    maximize = objective.mode == "max"
    model = fit_model(observations, maximize=maximize, history=history, seed=seed)
    choices = [trials[0].observation for trials in by_choice.values()]
    best = _best(model, by_choice, objective)
    sureness = _sureness(model, by_choice, objective, history, seed)
    if sureness.r2 is not None and sureness.r2 <= 0:
        notes.append(
            "the model tells choices that it has not seen no better than their mean does: do not "
            "rely on what it says until there are more trials"
        )
    found = replace(
        start,
        history=[
            Earlier(sweep.run_id, sweep.relation, len(sweep.observations), believed)
            for sweep, believed in zip(history, model.correlations(), strict=True)
        ],
        best=best,
        features=_features(model, choices, objective),
        keys=keys,
        sureness=sureness,
        notes=notes,
    )
    if ahead is None:
        return found
    candidates = [each for each in ahead.candidates if _is_new(each, tried)]
    if not candidates:
        why = "nothing new is left to try in the space"
        return replace(found, notes=[*notes, why])
    worth = worth_of_more(
        model,
        choices,
        candidates,
        ahead.trials,
        maximize=maximize,
        pareto=ahead.pareto,
        seed=seed,
    )
    return replace(
        found,
        next=_next(model, choices, candidates, objective, top, pareto=ahead.pareto, seed=seed),
        more=_more(worth, ahead.at_least),
    )


def _by_choice(tried: Sequence[Tried]) -> dict[str, list[Tried]]:
    """The trials of each choice, the first one first."""
    found: dict[str, list[Tried]] = {}
    for each in sorted(tried, key=lambda each: each.number):
        found.setdefault(each.observation.repeat_of or str(each.number), []).append(each)
    return found


def _what_is_lacking(by_choice: Mapping[str, Sequence[Tried]]) -> list[str]:
    """What the trials are too few or too much alike to tell."""
    notes = []
    methods = {trials[0].observation.method for trials in by_choice.values()}
    if len(by_choice) < FEWEST:
        notes.append(
            f"{len(by_choice)} choice{'' if len(by_choice) == 1 else 's'} with a complete trial "
            f"and features are too few to learn from; it takes {FEWEST}"
        )
    if len(methods) == 1:
        notes.append(f"only {min(methods)} has complete trials: methods are not told apart")
    blocks = [trials for trials in by_choice.values() if has_blocks(trials[0].observation.features)]
    if by_choice and not blocks:
        notes.append(
            "only baselines have complete trials: they have no blocks, and of their plans the "
            "parameters and the learning rate alone are known"
        )
    return notes


# -- what moved the metric -------------------------------------------------------------------------


def _features(
    model: PlanModel, choices: Sequence[Observation], objective: Objective
) -> list[FeatureEffect]:
    """The features that the tried choices differ in, what moves most first."""
    shares = model.sensitivity(choices)
    over = choices[:: max(1, len(choices) // _OVER)]
    found = []
    for name in FEATURES:
        values = np.array([c.features[name] for c in choices if name in c.features])
        if values.size == 0 or values.min() == values.max():
            continue
        steps = np.unique(np.quantile(values, np.linspace(0.0, 1.0, _STEPS)))
        moved = [
            replace(each, features={**each.features, name: float(step)})
            for step in steps
            for each in over
            if name in each.features
        ]
        means = model.predict(moved)[0].reshape(len(steps), -1).mean(axis=1)
        gains = np.array([objective.gain(float(mean)) for mean in means])
        found.append(
            FeatureEffect(
                name=name,
                share=shares.get(name, 0.0),
                swing=float(gains.max() - gains.min()),
                best=float(steps[gains.argmax()]),
                low=float(values.min()),
                high=float(values.max()),
            )
        )
    return sorted(found, key=lambda each: -each.share)


def _keys(by_choice: Mapping[str, Sequence[Tried]], objective: Objective) -> list[KeyEffect]:
    """The keys that the choices of a method differ in, what is least by chance first."""
    of_method: dict[str, list[tuple[dict[str, Any], float]]] = {}
    for trials in by_choice.values():
        gain = float(np.mean([objective.gain(each.observation.value) for each in trials]))
        flat = _with_alpha_over_rank(flattened(trials[0].choice))
        of_method.setdefault(trials[0].observation.method, []).append((flat, gain))
    found = []
    for method, rows in of_method.items():
        for key in dict.fromkeys(key for flat, _ in rows for key in flat):
            pairs = [(flat[key], gain) for flat, gain in rows if key in flat]
            if key not in ("method", "seed") and len(pairs) >= _KEYS_TRIALS:
                effect = _key(method, key, pairs)
                found += [] if effect is None else [effect]
    adjusted = holm([each.p_value for each in found])
    told = [replace(each, p_value=p) for each, (p, _) in zip(found, adjusted, strict=True)]
    return sorted(told, key=lambda each: each.p_value)


def _with_alpha_over_rank(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A choice's keys, and the one that default spaces search in place of its alpha."""
    method = METHODS.get(str(flat.get("method")))
    if method is None or "alpha" not in flat:
        return dict(flat)
    return {**flat, ALPHA_OVER_RANK: over_rank(method.choice_class, flat)}


def _key(method: str, key: str, pairs: Sequence[tuple[Any, float]]) -> KeyEffect | None:
    values, gains = [value for value, _ in pairs], np.array([gain for _, gain in pairs])
    groups = {value: gains[[v == value for v in values]] for value in dict.fromkeys(values)}
    if len(groups) < 2 or np.ptp(gains) == 0:
        return None
    best = max(groups, key=lambda value: float(groups[value].mean()))
    is_number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if is_number:
        ranks = spearmanr(values, gains)
        p, correlation = float(ranks.pvalue), float(ranks.statistic)
    else:
        p, correlation = float(kruskal(*groups.values()).pvalue), None
    return KeyEffect(method, key, len(pairs), correlation, best, p) if np.isfinite(p) else None


# -- how sure that is ------------------------------------------------------------------------------


def _best(
    model: PlanModel, by_choice: Mapping[str, Sequence[Tried]], objective: Objective
) -> BestTried:
    every = list(by_choice.values())
    mean, sd = model.predict([trials[0].observation for trials in every])
    at = int(np.argmax([objective.gain(float(each)) for each in mean]))
    first, values = every[at][0], [each.observation.value for each in every[at]]
    return BestTried(
        number=first.number,
        method=first.observation.method,
        choice=first.choice,
        trainable_params=first.observation.params,
        measured=float(np.mean(values)),
        seeds=len(values),
        predicted=_predicted(mean[at], sd[at]),
    )


def _predicted(mean: float, sd: float) -> Predicted:
    return Predicted(float(mean), float(mean - _Z * sd), float(mean + _Z * sd))


def _sureness(
    model: PlanModel,
    by_choice: Mapping[str, Sequence[Tried]],
    objective: Objective,
    history: Sequence[RelatedSweep],
    seed: int,
) -> Sureness:
    """By cross-validation over the choices, each fold with all seeds of its choices."""
    from search.surrogate.model import fit_model  # loads torch

    every = [[trial.observation for trial in trials] for trials in by_choice.values()]
    fold = np.random.default_rng(seed).permutation(len(every)) % min(_FOLDS, len(every))
    value, guess, spread = [], [], []
    for number in range(fold.max() + 1):
        seen = [o for i, each in enumerate(every) if fold[i] != number for o in each]
        held = [o for i, each in enumerate(every) if fold[i] == number for o in each]
        fitted = fit_model(
            seen,
            maximize=objective.mode == "max",
            history=history,
            seed=seed,
            like=model if len(every) > _REFITTED else None,
        )
        mean, sd = fitted.predict(held)
        value += [each.value for each in held]
        guess += [*mean]
        spread += [*np.hypot(sd, fitted.noise_sd)]
    y, f, s = np.array(value), np.array(guess), np.array(spread)
    differ = np.ptp(y) > 0
    return Sureness(
        trials=len(y),
        choices=len(every),
        repeated=sum(len(each) > 1 for each in every),
        noise_sd=model.noise_sd,
        r2=float(1 - np.square(y - f).mean() / y.var()) if differ else None,
        rank_correlation=_rank_correlation(y, f) if differ else None,
        covered=float(np.mean(np.abs(y - f) <= _Z * s)),
    )


def _rank_correlation(a: Floats, b: Floats) -> float | None:
    found = float(spearmanr(a, b).statistic) if np.ptp(b) > 0 else float("nan")
    return found if np.isfinite(found) else None


# -- what comes next -------------------------------------------------------------------------------


def _is_new(candidate: Drawn, tried: Sequence[Tried]) -> bool:
    return all(candidate.choice.as_dict() != each.choice for each in tried)


def _next(
    model: PlanModel,
    tried: Sequence[Observation],
    candidates: Sequence[Drawn],
    objective: Objective,
    top: int,
    *,
    pareto: bool,
    seed: int,
) -> list[NextTrial]:
    """The candidates that together are expected to add most, chosen one after another.

    The gain of each is its expected improvement (with two objectives the mean over budgets, as in
    search/surrogate/worth.py) over the tried choices and those chosen before, in joint samples.
    """
    sign = 1.0 if objective.mode == "max" else -1.0
    rng = np.random.default_rng(seed)
    drawn = sign * model.sample([*tried, *candidates], _SAMPLES, rng)
    mean, sd = model.predict(candidates)
    tried_mean = sign * model.predict(tried)[0]
    budgets = budgets_of(tried, pareto=pareto)
    fits = _fits(candidates, budgets)
    known, mean_known = (
        _best_of_budgets(each, _fits(tried, budgets))
        for each in (drawn[:, : len(tried)], tried_mean[None])
    )
    drawn, gains = drawn[:, len(tried) :], sign * mean
    found: list[NextTrial] = []
    while len(found) < min(top, len(candidates)):
        above = np.maximum(drawn[:, :, None] - known[:, None, :], 0.0) * fits
        expected = above.mean(axis=(0, 2))
        at = int(expected.argmax())
        if found and expected[at] <= 0:
            break  # no other is expected to add anything
        by_mean = float((np.maximum(gains[at] - mean_known[0], 0.0) * fits[at]).mean())
        share = min(1.0, by_mean / expected[at]) if expected[at] > 0 else 0.0
        chosen = candidates[at]
        found.append(
            NextTrial(
                method=chosen.method,
                arm=chosen.arm,
                choice=chosen.choice.as_dict(),
                trainable_params=chosen.params,
                predicted=_predicted(mean[at], sd[at]),
                gain=float(expected[at]),
                by_value=share,
                why=_why(share),
            )
        )
        known = np.where(fits[at], np.maximum(known, drawn[:, at, None]), known)
        mean_known = np.where(fits[at], np.maximum(mean_known, gains[at]), mean_known)
    return found


def _why(by_value: float) -> str:
    if by_value >= 0.5:
        return "it is predicted to be better than what was tried"
    if by_value > 0:
        return "it may be better, and how much so is not known well"
    return "its value is not known well, and may turn out to be better"


def _fits(choices: Sequence[Observation] | Sequence[Drawn], budgets: Floats) -> NDArray[np.bool_]:
    """[choices, budgets]: whether a choice fits in a budget."""
    sizes = np.array([each.params for each in choices], dtype=np.float64)
    return np.asarray(sizes[:, None] <= budgets[None, :])


def _best_of_budgets(gains: Floats, fits: NDArray[np.bool_]) -> Floats:
    """[samples, budgets]: the best gain within each budget."""
    return np.stack([gains[:, fit].max(axis=1) for fit in fits.T], axis=1)


def _more(worth: Worth, at_least: float) -> More:
    return More(
        trials=worth.trials,
        gain=worth.gain,
        in_noise=worth.in_noise,
        at_least=at_least,
        are_worth_it=worth.in_noise >= at_least,
    )
