"""Who is champion of a task, on which base, and since when: as MLflow's registry has it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from search.objective import Mode
from search.paths import BASE_PACKAGE
from search.tracking.registry import Registered, Registry, Version
from spaces.errors import nearest
from trainables.bases.naming import scheme_and_place

_NOT_IN_A_NAME = re.compile(r"[^\w.-]+")
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Champion:
    """One version of a registered model that is champion, or was.

    `value` is its mean on test over the seeds of `values`, None where it was never measured there.
    `difference`, with its 95 % interval from `low` to `high`, is how much better it is than version
    `before`, which was champion until then; None where there was none, or it was promoted without
    a comparison. `because` is why it was promoted, in one line. `since_ms` is when, in milliseconds
    of Unix time. `base_name` is what its base is called in the model's name.
    """

    model: str
    version: int
    is_champion: bool
    task: str
    base: str
    base_uri: str
    base_name: str
    run_id: str
    trial_run: str
    sweep: str
    sweep_run: str
    method: str
    choice: Mapping[str, Any]
    trainable_params: int | None
    metric: str
    mode: Mode
    value: float | None
    values: Mapping[str, float]
    profile_key: str | None
    since_ms: int
    before: int | None
    difference: float | None
    low: float | None
    high: float | None
    because: str


def base_name(uri: str, family: str | None = None) -> str:
    """What a base is called in the name of a model: `family`, where it is known what it is a
    version of. Else `org-name` of the hub, a package's name and the folder in it, the last folder
    of a path; the revision of a base of the hub is no part of it, nor that it has travelled to a
    cluster."""
    if family:
        return cleaned(family)
    try:
        scheme, place = scheme_and_place(uri)
    except ValueError:
        scheme, place = "path", uri
    if scheme == "hub":
        place = place.partition("@")[0]
    elif scheme == "path":
        place = place.rstrip("/").rpartition("/")[2]
    else:
        place = place.removeprefix(f"{BASE_PACKAGE}/")
    return cleaned(place)


def model_name(task: str, name: str) -> str:
    """The registered model of a task on a base of this `base_name`, `<task>-<base name>`."""
    return cleaned(f"{task}-{name}")[:_LONGEST_NAME]


def cleaned(name: str) -> str:
    """A name as MLflow's registry and its addresses take it."""
    return _NOT_IN_A_NAME.sub("-", name).strip("-.") or "model"


def champions(tracking_uri: str, task: str, base: str | None = None) -> list[Champion]:
    """The champion of a task on each base that has one, by the model's name.

    `base` is the start of a base's fingerprint, or a part of its URI or of its name. Raises
    TrackingError where MLflow cannot be read.
    """
    registry = Registry(tracking_uri)
    found = []
    for model in registry.models():
        if model.tags["task"] != task or model.champion is None:
            continue
        version = registry.champion(model.name)
        if version is not None:
            found.append(champion_of(version, is_champion=True))
    return [each for each in found if base is None or _is_on(each, base)]


def promoted(tracking_uri: str, task: str) -> list[Champion]:
    """All versions of a task's models that are champions or were, newest first."""
    registry = Registry(tracking_uri)
    found = [
        champion_of(version, is_champion=version.number == model.champion)
        for model in registry.models()
        if model.tags["task"] == task
        for version in registry.versions(model.name)
        if version.number == model.champion or "crowned" in version.tags
    ]
    return sorted(found, key=lambda each: -each.since_ms)


def why_none(tracking_uri: str, task: str, base: str | None = None) -> str:
    """Where `champions` finds nothing: what there is instead, in one line."""
    models = [each for each in Registry(tracking_uri).models() if each.champion is not None]
    of_task = [each for each in models if each.tags["task"] == task]
    if base is not None and of_task:
        bases = ", ".join(sorted(_base_of(each) for each in of_task))
        return f"--base: no champion of task {task!r} is on {base!r}; they are on {bases}"
    tasks = sorted({each.tags["task"] for each in models})
    hint = nearest(task, tasks) if tasks else "there is none of any task"
    return (
        f"TASK: no champion of task {task!r} is registered; {hint}; "
        "`ranksweep promote RUN_ID` makes one"
    )


def _base_of(model: Registered) -> str:
    name, uri = model.tags.get("base_name"), model.tags.get("base_uri")
    # of several bases of one name the model has only the first one's address
    return name if name and uri and name != base_name(uri) else uri or model.name


def _is_on(champion: Champion, base: str) -> bool:
    named = champion.base_uri, champion.base_name
    return champion.base.startswith(base) or any(base in each for each in named)


def champion_of(version: Version, *, is_champion: bool) -> Champion:
    """What a version's tags say of it; what they do not say is empty."""
    tags = version.tags
    values = _parsed(tags, "values", json.loads) or {}
    return Champion(
        model=version.model,
        version=version.number,
        is_champion=is_champion,
        **{name: tags.get(name, "") for name in _TEXTS},
        run_id=version.run_id,
        choice=_parsed(tags, "choice", json.loads) or {},
        trainable_params=_parsed(tags, "trainable_params", int),
        mode="min" if tags.get("mode") == "min" else "max",
        value=sum(values.values()) / len(values) if values else None,
        values=values,
        profile_key=tags.get("profile_key"),
        since_ms=_parsed(tags, "since_ms", int) or version.created_ms,
        before=_parsed(tags, "before", int),
        difference=_parsed(tags, "difference", float),
        low=_parsed(tags, "low", float),
        high=_parsed(tags, "high", float),
    )


_TEXTS = (
    "task", "base", "base_uri", "base_name", "trial_run", "sweep", "sweep_run", "method", "metric",
    "because",
)  # fmt: skip


def _parsed(tags: Mapping[str, str], name: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(tags[name])
    except (KeyError, ValueError):
        return None
