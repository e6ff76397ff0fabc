"""What a sweep that is gone on with keeps of the version of ranksweep that has begun it."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FixedTrial, FrozenTrial

from search.study.study import CHOICE, METHOD, choice_of
from search.tracking.facts import flattened
from spaces.alpha import ALPHA_OVER_RANK
from spaces.domain import Domain, Fixed, Options, Range, listed
from spaces.errors import ChoiceError
from spaces.search_space import SearchSpace, flat_values


def space_as_begun(space: SearchSpace, study: optuna.Study) -> tuple[SearchSpace, tuple[str, ...]]:
    """The space in which the trials of a study mean what they meant when they were trained.

    A key that is not searched has its default, which another version may have changed: it keeps the
    value that the study's trials have. What nobody wrote of a key that is searched keeps the domain
    that they were drawn from, and alpha the value that they have where alpha / rank was not yet
    searched. Returns a line for each method of which that is so, too.
    """
    kept: dict[str, dict[str, Domain]] = {}
    lines: list[str] = []
    for method, trials in _trials_of_methods(space, study).items():
        first = trials[0]
        changed = _domains_as_drawn(space, method, trials)
        as_drawn = space.keeping({method: changed})
        before = flattened(choice_of(first).as_dict())
        try:
            now = flattened(as_drawn.suggest(FixedTrial(dict(first.params))).as_dict())
        except (ValueError, ChoiceError):
            continue  # of another space, which Optuna refuses in words of its own
        searched = as_drawn.domains[method]
        changed |= {
            key: Fixed(value)
            for key, value in before.items()
            if now[key] != value and key not in searched
        }
        kept[method] = changed
        if changed:
            then = ", ".join(f"{key} {_shown(domain)}" for key, domain in changed.items())
            today = ", ".join(_today(space, method, key) for key in changed)
            lines.append(
                f"{method}: goes on with {then}, which this sweep was begun with (the default of a "
                f"new sweep: {today})"
            )
    return space.keeping(kept), tuple(lines)


def _trials_of_methods(space: SearchSpace, study: optuna.Study) -> dict[str, list[FrozenTrial]]:
    found: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        method = trial.user_attrs.get(METHOD)
        if CHOICE in trial.user_attrs and method in space.domains:
            found.setdefault(method, []).append(trial)
    return found


def _domains_as_drawn(
    space: SearchSpace, method: str, trials: list[FrozenTrial]
) -> dict[str, Domain]:
    """What trials were drawn from, of the keys that nobody wrote and that have another domain now;
    alpha where it was not drawn."""
    drawn: dict[str, BaseDistribution] = {}
    for trial in trials:
        drawn = {**trial.distributions, **drawn}
    changed: dict[str, Domain] = {}
    for key, domain in space.domains[method].items():
        distribution = drawn.get(f"{method}.{key}")
        if distribution is not None and _is_default(space, method, key):
            then = _domain_of(distribution)
            if then != domain:
                changed[key] = then
        elif distribution is None and key == ALPHA_OVER_RANK and not isinstance(domain, Fixed):
            changed["alpha"] = Fixed(flat_values(choice_of(trials[0]))["alpha"])
    return changed


def _is_default(space: SearchSpace, method: str, key: str) -> bool:
    if key == "learning_rate":
        return method in space.rates_follow
    return (method, key) not in space.written


def _domain_of(distribution: BaseDistribution) -> Domain:
    if isinstance(distribution, CategoricalDistribution):
        return Options(tuple(distribution.choices))
    if isinstance(distribution, IntDistribution):
        step = None if distribution.step == 1 else distribution.step
        return Range(distribution.low, distribution.high, distribution.log, step, whole=True)
    assert isinstance(distribution, FloatDistribution)
    return Range(distribution.low, distribution.high, distribution.log, distribution.step)


def _today(space: SearchSpace, method: str, key: str) -> str:
    """What a new sweep has for a key, or in its place."""
    domains: Mapping[str, Domain] = space.domains[method]
    if key == "alpha" and ALPHA_OVER_RANK in domains:
        key = ALPHA_OVER_RANK
    value = domains.get(key) or Fixed(flat_values(space.default_choice(method))[key])
    return f"{key} {_shown(value)}"


def _shown(domain: Domain) -> str:
    if isinstance(domain, Range):
        return f"{domain.low:g} to {domain.high:g}"
    values = listed(domain)
    return ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)
