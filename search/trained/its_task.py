"""The task of a trial, as its sweep says it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from search.queries.trial_run import TrialRun
from spaces.errors import ConfigError, DataError, UsageError
from trainables.tasks.settings import TaskSettings


def task_settings(run: TrialRun) -> TaskSettings:
    """The section `task` of a trial's sweep. Raises UsageError where it cannot be read any more."""
    try:
        return TaskSettings.model_validate(run.sweep().get("task"))
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
