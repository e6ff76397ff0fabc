"""Whether a launch may use a sweep's name: as a new one, or to go on with what it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from search.config.defaults import USUAL_REPEATS
from search.config.sweep import RepeatSettings, SweepConfig
from search.launch.begun import Begun, refuse_other_data
from search.launch.prepare import SweepInputs
from search.launch.sweep_lock import refuse_running
from search.paths import SweepPaths
from search.redaction import redacted
from search.study.shared import GROUNDS, attributes_of, refuse_other_settings
from spaces.errors import ConfigError

MAY_CHANGE_ON_RESUME = ("cluster", "confirm", "published", "store", "tracking")
SEARCH_MAY_CHANGE = ("trials", "time_budget", "stop_when")
CHANGES_NO_RESULT = (("train", "activation_checkpointing"),)
COMPARED_BY_CONTENT = (("base",), ("task", "data"))


def check_name(config: SweepConfig, paths: SweepPaths, resume: bool) -> None:
    """A sweep's name is used once; `resume` goes on with it where it asks for the same trials.

    Where the base and the rows lie may differ; `check_data` says what they hold. Raises
    ConfigError.
    """
    if not paths.sweep_file.is_file():
        if resume:
            raise ConfigError(
                f"name: there is no sweep {config.name!r} in {paths.root} to resume; launch it "
                "without --resume"
            )
        return
    refuse_running(paths)
    if not resume:
        raise ConfigError(
            f"name: the sweep {config.name!r} exists in {paths.sweep}; go on with --resume or "
            "launch under another name (--set name=...)"
        )
    before, now = yaml.safe_load(paths.sweep_file.read_text()), config.resolved()
    moved: tuple[tuple[str, ...], ...] = CHANGES_NO_RESULT
    if Begun.of(paths) is not None:
        moved += COMPARED_BY_CONTENT
        before, now = _without_data_of_members(before), _without_data_of_members(now)
    keys = list(_differing(before, now, moved))
    if keys:
        differ, them = ("differs", "it") if len(keys) == 1 else ("differ", "them")
        raise ConfigError(
            f"{', '.join(keys)}: {differ} from the sweep {config.name!r} that is to be resumed; "
            f"set {them} back, or launch under another name (--set name=...)"
        )


def as_begun(config: SweepConfig, paths: SweepPaths) -> SweepConfig:
    """The sweep with the repetitions and the sampler that it was begun with, where it leaves them
    to the default.

    The repetitions depend on `search.trials`, which may change, and older versions had none; they
    had another sampler, too.
    """
    search = config.search
    if not paths.sweep_file.is_file():
        return config
    before, kept = yaml.safe_load(paths.sweep_file.read_text())["search"], dict[str, Any]()
    if search.repeats == config.usual_repeats:
        repeats = before.get("repeats")
        kept["repeats"] = None if repeats is None else RepeatSettings.model_validate(repeats)
    if "sampler" not in search.model_fields_set and before.get("sampler", "grid") != "grid":
        kept["sampler"] = before["sampler"]
        if search.allocation == "free":  # by default, for it follows from the sampler
            kept["allocation"] = before["allocation"]
    return config.model_copy(update={"search": search.model_copy(update=kept)})


def check_data(config: SweepConfig, paths: SweepPaths, inputs: SweepInputs, resume: bool) -> None:
    """Refuse to go on with a sweep over another base or other rows than it was begun with.

    So is one refused that would join a study of other launches. What an older ranksweep has begun
    says nothing of it. Raises ConfigError.
    """
    now = Begun.by(inputs).grounds
    before = Begun.of(paths) if resume else None
    if before is not None:
        refuse_other_data(before.grounds, now, config.name)
    said: Mapping[str, Any] = {}
    if config.search.study is not None:
        said = attributes_of(config.search.study, config.name)
        if GROUNDS in said:
            refuse_other_data(said[GROUNDS], now, config.name)
        refuse_other_settings(said, config.name, shared_settings(config, inputs))
    if resume and paths.journal.is_file() and not (said or paths.study_db.is_file()):
        where = redacted(config.search.study or str(paths.study_db))
        raise ConfigError(
            f"name: the study of the sweep {config.name!r} is gone from {where}, and with it what "
            "was tried; launch under another name (--set name=...)"
        )


def shared_settings(config: SweepConfig, inputs: SweepInputs) -> dict[str, Any]:
    """What launches that share a study have in common.

    Keys that older versions did not know are not among it where they have their default, so that
    studies of theirs go on. The usual repetitions are none here: they depend on `search.trials`,
    which each launch has its own of, and older versions had none.
    """
    resolved = config.resolved()
    free = ("study", *SEARCH_MAY_CHANGE)
    for section, key in CHANGES_NO_RESULT:
        resolved[section].pop(key, None)
    if resolved["train"].get("warmup_steps") is None:
        resolved["train"].pop("warmup_steps", None)
    if resolved["train"].get("tf32"):
        resolved["train"].pop("tf32")
    if resolved["search"].get("fidelity") is None:
        resolved["search"].pop("fidelity", None)
    if resolved["search"].get("repeats") in USUAL_REPEATS:
        resolved["search"]["repeats"] = None
    return {
        "task": inputs.task.fingerprint,
        "base": inputs.base_fingerprint,
        "profile": inputs.key,
        "search": {k: v for k, v in resolved["search"].items() if k not in free},
        **{key: resolved[key] for key in ("space", "train", "deepspeed")},
    }


def _without_data_of_members(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved sweep whose suite's members do not say where their rows are."""
    task = resolved.get("task")
    if not isinstance(task, Mapping) or not task.get("suite"):
        return dict(resolved)
    members = [{k: v for k, v in member.items() if k != "data"} for member in task["suite"]]
    return {**resolved, "task": {**task, "suite": members}}


def _differing(
    before: Mapping[str, Any], now: Mapping[str, Any], moved: tuple[tuple[str, ...], ...]
) -> Iterator[str]:
    for key in now:
        if key in MAY_CHANGE_ON_RESUME:
            continue
        if key == "search":
            for inner in now[key]:
                path = (key, inner)
                if inner not in SEARCH_MAY_CHANGE and not _same(before[key], now[key], path):
                    yield f"search.{inner}"
        elif not _same(before, now, (key,), moved):
            yield _first_difference((key,), before.get(key), now[key], moved)


def _same(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    path: tuple[str, ...],
    moved: tuple[tuple[str, ...], ...] = (),
) -> bool:
    """Whether the last key of a path is alike in the two mappings that hold it.

    One that an older ranksweep did not know is as it was where it has its default.
    """
    name = path[-1]
    if path in moved:
        return True
    if name not in before:
        return name in now and _default(path) == to_jsonable_python(now[name])
    old, new = before[name], now.get(name)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return all(_same(old, new, (*path, inner), moved) for inner in {**new, **old})
    return bool(old == new)


def _default(path: tuple[str, ...]) -> Any:
    """The default of a key of the sweep file; the key itself, which no value is, without one."""
    model: type[BaseModel] | None = SweepConfig
    found: Any = path
    for name in path:
        field = None if model is None else model.model_fields.get(name)
        if field is None:
            return path
        found = path if field.is_required() else field.get_default(call_default_factory=True)
        kind = type(found) if isinstance(found, BaseModel) else field.annotation
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return to_jsonable_python(found)


def _first_difference(
    path: tuple[str, ...], before: Any, now: Any, moved: tuple[tuple[str, ...], ...]
) -> str:
    """The key, or that of its first part which differs where it is a mapping."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return ".".join(path)
    inner = next(name for name in {**now, **before} if not _same(before, now, (*path, name), moved))
    return _first_difference((*path, inner), before.get(inner), now.get(inner), moved)
