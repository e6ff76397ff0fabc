"""What a user asks of a sweep through its study, from any machine that reaches the database."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from sqlalchemy import make_url

from search.config.database import study_url
from search.config.reading import apply_overrides
from search.config.yaml_file import parse_yaml
from search.paths import SweepPaths
from search.study.as_begun import space_as_begun
from search.study.requested_trials import params_held
from search.study.requests import (
    Answer,
    Listener,
    Request,
    answers_of,
    ask,
    listeners_of,
)
from search.study.study import (
    CHOICE,
    choice_of,
    ended_as,
    existing_study,
)
from search.tracking.liveness import running
from spaces.choice import Choice
from spaces.domain import Fixed
from spaces.errors import ConfigError, UsageError
from spaces.methods.registry import parse_choice
from spaces.search_space import SearchSpace

ANSWER_POLL_S = 0.25


def study_of_sweep(paths: SweepPaths, url: str | None) -> optuna.Study:
    """The study of a sweep: that of its folder, or the one in the database at `url`.

    Raises ConfigError where there is none, or the database cannot be reached.
    """
    name = str(paths.name)
    if url is None:
        url = _url_of_folder(paths)
    else:
        try:
            url = study_url(url)
        except ConfigError as error:
            raise ConfigError(str(error).replace("search.study", "--study", 1)) from None
    file = _sqlite_file(url)
    if file is not None and not file.is_file():  # it would be created
        raise ConfigError(f"--study: there is no file {file}; name the database of the sweep")
    try:
        return existing_study(url, name)
    except ConfigError as error:
        raise ConfigError(str(error).replace("search.study:", "--study:", 1)) from None


def stop_trial(study: optuna.Study, number: int) -> Request:
    """Ask for the end of a trial that runs.

    Raises UsageError where it does not, or nobody runs the sweep.
    """
    trial = _trial(study, number, "stop")
    if (state := ended_as(trial)) is not None:
        raise UsageError(
            f"N: trial {number} has ended ({state}); `ranksweep trials {study.study_name} list` "
            "shows what runs"
        )
    if not listening(study):
        raise UsageError(
            f"N: trial {number} cannot be stopped, for nobody runs the sweep "
            f"{study.study_name!r}; launch --resume goes on with it"
        )
    return ask(study, "stop", number=number)


def enqueue_choice(study: optuna.Study, paths: SweepPaths, written: object) -> Request:
    """Ask for a choice, in plain values, to be trained.

    Raises ChoiceError or UsageError where it is none, or the space does not hold it as far as can
    be told here.
    """
    choice = parse_choice(written)
    _refuse_outside(choice, study, paths)
    return ask(study, "enqueue", choice=choice.as_dict())


def clone_trial(
    study: optuna.Study,
    paths: SweepPaths,
    number: int,
    overrides: Sequence[str],
    *,
    warm: bool = False,
) -> Request:
    """Ask for the choice of a trial with some keys set otherwise; `warm` from its weights.

    Raises ConfigError, ChoiceError or UsageError as `enqueue_choice`, and where nothing is changed
    or the trial has no weights to start from.
    """
    trial = _trial(study, number, "clone")
    before = choice_of(trial)
    choice = parse_choice(apply_overrides(before.as_dict(), overrides))
    if choice == before and not warm:
        raise UsageError(
            f"--set: nothing of trial {number} is changed, and it would be trained as before; set "
            "a key of its choice to another value, or let it go on with --warm"
        )
    state = ended_as(trial)
    if warm and state not in (None, "complete"):
        raise UsageError(
            f"--warm: trial {number} is {state}, and its weights are gone; clone one that trains "
            "or is complete, or clone it without --warm"
        )
    _refuse_outside(choice, study, paths)
    return ask(study, "clone", number=number, choice=choice.as_dict(), warm=warm)


def listening(study: optuna.Study) -> list[Listener]:
    """The drivers that look for requests now."""
    return [each for each in listeners_of(study.user_attrs) if each.is_fresh() and _lives(each)]


def wait_for_answer(study: optuna.Study, request: Request, seconds: float) -> Answer | None:
    """What a driver says to a request within so many seconds; None where none says anything."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        said = answers_of(study.user_attrs).get(request.id)
        if said is not None:
            return said
        time.sleep(ANSWER_POLL_S)
    return None


# -- inside ----------------------------------------------------------------------------------------


def _url_of_folder(paths: SweepPaths) -> str:
    if paths.study_db.is_file():
        return paths.study_uri
    named = _search_of(paths).get("study")
    if named is not None and "***" not in named:
        return str(named)
    if named is not None:
        raise ConfigError(
            f"--study: the study of {paths.name!r} is shared, in {named}; give its URL with the "
            "credentials, --study URL"
        )
    if paths.sweep_file.is_file():
        raise ConfigError(
            f"SWEEP: the search of {paths.name!r} has not begun yet; ask once its profile is there "
            f"(`ranksweep watch {paths.name}` shows how far it is)"
        )
    raise ConfigError(
        f"SWEEP: there is no study of a sweep {paths.name!r} in {paths.root}; run this where it "
        "was launched, or name its search.study with --study URL"
    )


def _search_of(paths: SweepPaths) -> Mapping[str, Any]:
    """The section `search` of the sweep in this folder; empty where there is none."""
    return _section(paths, "search")


def _section(paths: SweepPaths, name: str) -> Mapping[str, Any]:
    if not paths.sweep_file.is_file():
        return {}
    sweep = parse_yaml(paths.sweep_file.read_text(encoding="utf-8"), str(paths.sweep_file))
    section = sweep.get(name) if isinstance(sweep, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def _sqlite_file(url: str) -> Path | None:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database is None:
        return None
    return Path(parsed.database)


def _refuse_outside(choice: Choice, study: optuna.Study, paths: SweepPaths) -> None:
    """Raise where the space that the sweep's file writes does not hold a choice.

    The driver asks the same of the space as it fits the base; of a sweep of another folder it alone
    can tell.
    """
    if not paths.sweep_file.is_file():
        return
    space = SearchSpace.parse(_section(paths, "space") or None)
    if _search_of(paths).get("sampler") == "grid":
        space = space.as_grid()
    space, _ = space_as_begun(space, study)
    if choice.method in space.rates_follow:  # those of the base, which is not looked at here
        space = space.keeping({choice.method: {"learning_rate": Fixed(choice.learning_rate)}})
    params_held(space, choice)


def _trial(study: optuna.Study, number: int, what: str) -> FrozenTrial:
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials) or CHOICE not in trials[number].user_attrs:
        known = f"it has 0 to {len(trials) - 1}" if trials else "it has none yet"
        raise UsageError(
            f"N: there is no trial {number} of {study.study_name!r} to {what}; {known} "
            f"(`ranksweep trials {study.study_name} list`)"
        )
    return trials[number]


def _lives(listener: Listener) -> bool:
    """Whether a driver lives, as far as can be told: the lock of a sweep here tells."""
    if listener.host != socket.gethostname():
        return True
    folder = Path(listener.folder)
    try:
        return running(SweepPaths(folder.parents[1], folder.name)) is not None
    except (OSError, IndexError):  # another user's
        return True
