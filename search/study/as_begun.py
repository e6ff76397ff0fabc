"""What a sweep that is gone on with keeps of the version of ranksweep that has begun it."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FixedTrial

from search.study.study import CHOICE, METHOD, choice_of
from search.tracking.facts import flattened
from spaces.errors import ChoiceError
from spaces.search_space import SearchSpace


def space_as_begun(space: SearchSpace, study: optuna.Study) -> tuple[SearchSpace, tuple[str, ...]]:
    """The space in which the trials of a study mean what they meant when they were trained.

    A key that is not searched has its default, which another version may have changed: it keeps the
    value that the study's trials have. Returns a line for each method of which that is so, too.
    """
    kept: dict[str, dict[str, Any]] = {}
    lines: list[str] = []
    for trial in study.get_trials(deepcopy=False):
        method = trial.user_attrs.get(METHOD)
        if CHOICE not in trial.user_attrs or method in kept or method not in space.domains:
            continue
        before = flattened(choice_of(trial).as_dict())
        try:
            now = flattened(space.suggest(FixedTrial(dict(trial.params))).as_dict())
        except (ValueError, ChoiceError):
            continue  # of another space, which Optuna refuses in words of its own
        searched = space.domains[method]
        kept[method] = changed = {
            key: value for key, value in before.items() if now[key] != value and key not in searched
        }
        if changed:
            then = ", ".join(f"{key} {_shown(value)}" for key, value in changed.items())
            today = ", ".join(_shown(now[key]) for key in changed)
            lines.append(
                f"{method}: goes on with {then}, which this sweep was begun with (the default of a "
                f"new sweep: {today})"
            )
    return space.keeping(kept), tuple(lines)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
