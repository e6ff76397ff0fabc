"""What a sweep that is gone on with keeps of the version of ranksweep that has begun it."""

from __future__ import annotations

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial, FrozenTrial

from search.study.study import CHOICE, METHOD, choice_of
from search.tracking.facts import flattened
from spaces.alpha import ALPHA_OVER_RANK
from spaces.domain import Domain, Fixed, Range, listed
from spaces.errors import ChoiceError
from spaces.search_space import SearchSpace, flat_values


def space_as_begun(space: SearchSpace, study: optuna.Study) -> tuple[SearchSpace, tuple[str, ...]]:
    """The space in which the trials of a study mean what they meant when they were trained.

    A key that is not searched has its default, which another version may have changed: it keeps the
    value that the study's trials have. So does alpha where they were drawn without
    `alpha_over_rank`, and learning rates that nobody wrote come from where theirs came from.
    Returns a line for each method of which that is so, too.
    """
    kept: dict[str, dict[str, Domain]] = {}
    lines: list[str] = []
    for trial in study.get_trials(deepcopy=False):
        method = trial.user_attrs.get(METHOD)
        if CHOICE not in trial.user_attrs or method in kept or method not in space.domains:
            continue
        changed = {**_rates(space, trial, method), **_alpha(space, trial, method)}
        as_drawn = space.keeping({method: changed})
        before = flattened(choice_of(trial).as_dict())
        try:
            now = flattened(as_drawn.suggest(FixedTrial(dict(trial.params))).as_dict())
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


def _alpha(space: SearchSpace, trial: FrozenTrial, method: str) -> dict[str, Domain]:
    """The alpha of a trial that was drawn where alpha / rank was not yet searched."""
    domain = space.domains[method].get(ALPHA_OVER_RANK, Fixed(None))
    if isinstance(domain, Fixed) or f"{method}.{ALPHA_OVER_RANK}" in trial.params:
        return {}
    return {"alpha": Fixed(flattened(choice_of(trial).as_dict())["alpha"])}


def _rates(space: SearchSpace, trial: FrozenTrial, method: str) -> dict[str, Domain]:
    """The learning rates among which that of a trial was drawn, where nobody wrote them and today's
    are others."""
    drawn = trial.distributions.get(f"{method}.learning_rate")
    if method not in space.rates_follow or not isinstance(drawn, FloatDistribution):
        return {}
    then = Range(drawn.low, drawn.high, drawn.log, drawn.step)
    return {} if then == space.domains[method]["learning_rate"] else {"learning_rate": then}


def _today(space: SearchSpace, method: str, key: str) -> str:
    """What a new sweep has for a key."""
    domains = space.domains[method]
    if key == "alpha" and ALPHA_OVER_RANK in domains:
        return f"{ALPHA_OVER_RANK} {_shown(domains[ALPHA_OVER_RANK])}"
    if key in domains:
        return _shown(domains[key])
    return _shown(Fixed(flat_values(space.default_choice(method))[key]))


def _shown(domain: Domain) -> str:
    if isinstance(domain, Range):
        return f"{domain.low:g} to {domain.high:g}"
    return ", ".join(
        f"{each:g}" if isinstance(each, float) else str(each) for each in listed(domain)
    )
