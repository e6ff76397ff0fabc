"""The task of a trial, as its sweep says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pydantic import ValidationError

from search.queries.trial_run import TrialRun
from spaces.errors import ConfigError, DataError, UsageError
from trainables.tasks.own import refuse_own_code
from trainables.tasks.settings import TaskSettings


def task_settings(run: TrialRun, *, own_code: bool) -> TaskSettings:
    """The section `task` of a trial's sweep.

    Raises UsageError where it cannot be read any more, and where it names a kind or a metric of a
    user's own, whose code would be run, unless `own_code` is wanted.
    """
    section = run.sweep().get("task")
    if not own_code:
        refuse_own_code(_named(section), run.run_id)
    try:
        return TaskSettings.model_validate(section)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"{run.run_id}: the task of its sweep cannot be read ({reason}); take trials of this "
            "version of ranksweep"
        ) from error
    except ConfigError as error:  # of keys that do not go together
        raise UsageError(
            f"{run.run_id}: the task of its sweep cannot be read ({error}); take trials of this "
            "version of ranksweep"
        ) from error


def _named(section: object) -> Iterator[object]:
    """The kinds and metrics that a section names: the task's, and those of its suite's members."""
    if not isinstance(section, Mapping):
        return
    yield from (section.get("kind"), section.get("metric"))
    suite = section.get("suite")
    for member in suite if isinstance(suite, list) else ():
        yield from _named(member)


@contextmanager
def its_files(run: TrialRun) -> Iterator[None]:
    """While open, an error about a file that a trial's task names says where to look for it."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(
            f"{run.run_id}: {error}; relative paths start where the sweep was launched: run this "
            "there"
        ) from error
