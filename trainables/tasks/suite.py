"""Suites: a task that trains on one set of rows and is measured on several.

Each set is a member. A member is a task of its own in all but its training rows: what it says
replaces what the task says, and of all else it is as the task is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any, Self

from pydantic import ValidationError, model_validator
from pydantic_core import InitErrorDetails

from spaces.errors import ConfigError, DataError
from trainables.tasks.kinds.registry import KINDS, check_metric, kind_of, mode_of
from trainables.tasks.saved_datasets import is_saved_dataset
from trainables.tasks.settings import FILE_SUFFIXES, DataSettings, TaskSettings

INPUTS = ("template", "text", "image", "prompt", "messages", "map")
"""Keys that say what a row is read from: a member that has one takes none from its task."""
GOES_WITH = {
    "completion": ("template", "prompt"),
    "delimiter": ("template", "prompt"),
    "chat_template": ("messages", "map"),
}
"""Keys that a member which has an input of its own takes from its task with some of them alone."""
NOT_TAKEN = frozenset({"name", "data", "suite", "metric"})
_NAME = re.compile(r"(?!(dev|test)_|(system|lm_eval)$)[A-Za-z0-9][A-Za-z0-9._-]*")
"""What can stand before a slash in the name of a metric and be told from MLflow's own."""
_OF_A_HUB = ("hub", "name", "revision")


class MemberData(DataSettings):
    """Where the rows of a member are: it has no `train`."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.train is not None:
            raise ValueError("has train, but a member is measured alone; drop it")
        if self.hub is None and self.dev is None and self.test is None:
            raise ValueError("has neither dev nor test; give {test: FILE}, or name a set in hub")
        return self


def member_settings(task: TaskSettings) -> tuple[TaskSettings, ...]:
    """The members of a task's suite, each as a task of its own whose `data` is a `MemberData`.

    Raises ValidationError or ConfigError that names the key of a member.
    """
    return tuple(_member(task, index, given) for index, given in enumerate(task.suite))


def check_suite(task: TaskSettings) -> None:
    """Raise ValidationError or ConfigError where the suite of a task is none."""
    names: dict[Any, int] = {}
    for index, given in enumerate(task.suite):
        name = given.get("name")
        if name in names:
            raise ConfigError(
                f"task.suite[{index}].name: {name!r} is the name of suite[{names[name]}] too; give "
                "each member a name of its own"
            )
        names[name] = index
    members = member_settings(task)
    for index, member in enumerate(members):
        _check_member(task, member, f"task.suite[{index}]")
    named = next((split for split in ("dev", "test") if getattr(task.data, split)), None)
    if named is not None and all("data" in given for given in task.suite):
        raise ConfigError(
            f"task.data.{named}: is measured by no member of the suite; drop it, or add a member "
            "without data, which is measured on the task's own"
        )
    _check_metrics(task, members)


def _check_member(task: TaskSettings, member: TaskSettings, key: str) -> None:
    if not _NAME.fullmatch(member.name):
        raise ConfigError(
            f"{key}.name: {member.name!r} cannot stand in the name of a metric; use letters, "
            "digits, '.', '_' and '-', but not system, lm_eval, or a name that begins with dev_ or "
            "test_"
        )
    ours, its = kind_of(task.kind).head, kind_of(member.kind).head
    if its != ours:
        fitting = " or ".join(name for name, kind in KINDS.items() if kind.head == ours)
        raise ConfigError(
            f"{key}.kind: {member.kind} is measured with another head than {task.kind} trains; "
            f"use {fitting}"
        )
    if member.data.dev is None and member.split.source == "train":
        raise ConfigError(
            f"{key}.split: a member has no train to take dev from; name its dev in data, or take "
            "it from test with split: {source: test}"
        )


def _check_metrics(task: TaskSettings, members: Sequence[TaskSettings]) -> None:
    measured = list(dict.fromkeys(member.metric for member in members))
    if task.metric not in measured:
        raise ConfigError(
            f"task.metric: {task.metric!r} measures no member of the suite; use "
            f"{' or '.join(measured)}, which then names the mean"
        )
    for index, member in enumerate(members):
        if mode_of(member.metric) != mode_of(task.metric):
            raise ConfigError(
                f"task.suite[{index}].metric: less of one of {member.metric} and {task.metric} is "
                "better and more of the other, so their mean says nothing; use metrics of one "
                "direction"
            )


def data_of_member(task: Mapping[str, Any], own: Mapping[str, Any] | None) -> dict[str, Any]:
    """The section `data` of a member: its own, on the hub's set of the task where it names splits
    of that; without one, the task's dev and test."""
    if own is None:
        return {key: value for key, value in task.items() if key != "train"}
    files = (own.get(split) for split in ("train", "dev", "test"))
    if "hub" in own or task.get("hub") is None or any(_is_file(file) for file in files):
        return dict(own)
    return {**{key: task.get(key) for key in _OF_A_HUB}, **own}


def _is_file(name: object) -> bool:
    return isinstance(name, str) and (
        PurePosixPath(name).suffix.lower() in FILE_SUFFIXES or is_saved_dataset(name)
    )


def _member(task: TaskSettings, index: int, given: Mapping[str, Any]) -> TaskSettings:
    if given.get("suite"):
        raise ConfigError(f"task.suite[{index}].suite: a member has no suite of its own; drop it")
    own = given.get("data")
    with _told_of(index):
        with _placed("data"):
            if own is not None and not isinstance(own, Mapping):
                MemberData.model_validate(own)
            data = MemberData.model_validate(data_of_member(task.data.model_dump(), own))
        member = type(task).model_validate({**_taken(task, given), **given, "data": task.data})
    return member.model_copy(update={"data": data})


def _taken(task: TaskSettings, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a member is as its task is: the keys that it does not give and that go with its kind."""
    kind = kind_of(str(given.get("kind") or task.kind))
    of_kinds = frozenset[str]().union(*(each.keys for each in KINDS.values()))
    inputs = [key for key in INPUTS if given.get(key)]
    taken = {}
    for key in task.model_fields_set - NOT_TAKEN:
        if key in of_kinds and key not in kind.keys:
            continue
        if inputs and (key in INPUTS or not {*inputs} & {*GOES_WITH.get(key, inputs)}):
            continue
        taken[key] = getattr(task, key)
    with suppress(ConfigError):
        check_metric(task.metric, str(given.get("kind") or task.kind))
        taken["metric"] = task.metric
    return taken


# -- errors that name the key of a member ----------------------------------------------------------


@contextmanager
def _told_of(index: int) -> Iterator[None]:
    """Errors of a member's settings tell where it stands in its task."""
    try:
        with _placed("suite", index):
            yield
    except ConfigError as error:
        raise ConfigError(of_member(str(error), index)) from None


@contextmanager
def _placed(*path: str | int) -> Iterator[None]:
    """What pydantic refuses is told as at `path`."""
    try:
        yield
    except ValidationError as error:
        lines: list[InitErrorDetails] = [
            {
                "type": each["type"], "loc": (*path, *each["loc"]), "input": each["input"],
                "ctx": each.get("ctx", {}),
            }
            for each in error.errors()
        ]  # fmt: skip
        raise ValidationError.from_exception_data(error.title, lines) from None


@contextmanager
def member_errors(index: int) -> Iterator[None]:
    """Errors of a member's rows tell where it stands in its task."""
    try:
        yield
    except DataError as error:
        raise DataError(of_member(str(error), index)) from error
    except ConfigError as error:
        raise ConfigError(of_member(str(error), index)) from error


def of_member(line: str, index: int) -> str:
    """A line about a key of a task, said of the member that has it."""
    keys = "|".join(TaskSettings.model_fields.keys() - {"suite"})
    return re.sub(rf"(?<![^\s(])task\.(?=({keys})\b)", f"task.suite[{index}].", line)
