"""What a sweep leaves out is filled in from what it says."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from search.paths import LONGEST_NAME
from trainables.settings import Settings
from trainables.tasks.kinds.registry import metric_of_first, mode_of, usual_metric
from trainables.tasks.settings import TaskSettings
from trainables.tasks.suite import data_of_member

NULLABLE = ("space", "confirm")
"""Sections in which a null means something of its own."""


FEW_TRIALS, MANY_TRIALS = 12, 24
"""Below so few trials none is spent on repetitions: there is too little to find with. From so many
on each leader has three other seeds, below two (docs/sweep.md has what that is worth)."""


USUAL_REPEATS = ({"top": 2, "seeds": 2}, {"top": 2, "seeds": 3})
"""`search.repeats` of few trials, and of many."""


def usual_repeats(trials: int, sampler: str, arms: int) -> dict[str, int] | None:
    """`search.repeats` of a sweep over so many methods and arms that says nothing of it.

    None too where the repetitions would take the only trial of an arm.
    """
    if sampler == "grid" or trials < FEW_TRIALS:
        return None
    usual = USUAL_REPEATS[trials >= MANY_TRIALS]
    return None if trials - usual["top"] * usual["seeds"] < arms else usual


def fill_defaults(raw: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """Defaults that depend on other keys; a null there counts as not given.

    `fields` are those of a sweep: a key that it does not have is kept, to be refused.
    """
    raw = _given(raw, fields, NULLABLE)
    task = raw.get("task")
    name, metric = None, None
    if isinstance(task, TaskSettings):
        name, metric = task.name, task.metric
    elif isinstance(task, Mapping):
        name = task.get("name")
        kind, suite = task.get("kind", "classification"), task.get("suite")
        usual = metric_of_first(suite, kind) if suite else usual_metric(kind)
        metric = task.get("metric") or usual
    if isinstance(name, str):
        raw.setdefault("name", sweep_name_of(name))
        tracking = raw.get("tracking", {})
        if isinstance(tracking, Mapping):
            given = _given(tracking, _fields_of(fields["tracking"]))
            raw["tracking"] = {"experiment": name, **given}
    if not isinstance(raw.get("search", {}), Settings):
        raw["search"] = _fill_search(raw.get("search", {}), metric, _fields_of(fields["search"]))
    if "confirm" not in raw and isinstance(task, Mapping) and not _has_test(task):
        raw["confirm"] = None
    return raw


def sweep_name_of(task: str) -> str:
    """The name of a sweep that says none, from that of its task: the same at every launch.

    Spaces become `-`. Where more than that has to be changed, eight hexadecimal digits of the
    task's name follow, so that two tasks never share a sweep whatever letters they are written in.
    """
    spaced = re.sub(r"[ \t]+", "-", task.strip(" \t"))
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", spaced) and len(spaced) <= LONGEST_NAME:
        return spaced
    letters = "".join(
        char for char in unicodedata.normalize("NFKD", task) if not unicodedata.combining(char)
    )
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", letters)[: LONGEST_NAME - 10].strip("-._")
    digest = hashlib.sha256(task.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{readable or 'sweep'}-{digest}"


def _given(
    raw: Mapping[str, Any], fields: Mapping[str, FieldInfo], nullable: Collection[str] = ()
) -> dict[str, Any]:
    """What is said in a section: without the keys that are null, which are not given."""
    return {
        key: value
        for key, value in raw.items()
        if value is not None or key in nullable or key not in fields
    }


def _fields_of(section: FieldInfo) -> Mapping[str, FieldInfo]:
    assert isinstance(section.annotation, type)
    assert issubclass(section.annotation, Settings)
    return section.annotation.model_fields


def _fill_search(search: Any, task_metric: Any, fields: Mapping[str, FieldInfo]) -> Any:
    if not isinstance(search, Mapping):
        return search
    given = dict(search)
    if "scheduler" in given and given["scheduler"] is None:
        given["scheduler"] = {"name": "none"}
    elif isinstance(given.get("scheduler"), str):
        given["scheduler"] = {"name": given["scheduler"]}
    given = _given(given, fields, ("repeats",))
    if given.get("sampler", fields["sampler"].default) == "plan":
        given.setdefault("allocation", "free")
    objectives = given.get("objectives")
    if isinstance(objectives, str):
        given["objectives"] = objectives = (objectives,)
    first = objectives[0] if isinstance(objectives, list | tuple) and objectives else None
    metric = given.setdefault("metric", first or task_metric)
    if metric is None:
        del given["metric"]
    elif isinstance(metric, str):
        given.setdefault("objectives", (metric,))
        if (mode := mode_of(metric)) is not None:
            given.setdefault("mode", mode)
    has_front = isinstance(objectives, list | tuple) and len(objectives) > 1
    if has_front and given.get("fidelity") is None:
        given.setdefault("scheduler", {"name": "none"})
    return given


def _has_test(task: Mapping[str, Any]) -> bool:
    """Whether the task will have a test split, as far as its settings tell."""
    data, suite = task.get("data"), task.get("suite")
    if isinstance(data, Mapping) and isinstance(suite, list | tuple) and suite:
        each = [member for member in suite if isinstance(member, Mapping)]
        own = [member.get("data") for member in each]
        return all(
            _gives_test(data_of_member(data, given))
            for given in own
            if given is None or isinstance(given, Mapping)
        )
    return not isinstance(data, Mapping) or _gives_test(data)


def _gives_test(data: Mapping[str, Any]) -> bool:
    if data.get("test") is not None:
        return True
    return data.get("hub") is not None and data.get("dev") is None
