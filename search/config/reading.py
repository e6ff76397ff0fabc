"""From a sweep's file, overrides and environment to a SweepConfig."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from search.config.lm_eval_section import with_files_located
from search.config.refusal import refusal
from search.config.sweep import DEFAULT_STORE, DEFAULT_TRACKING, SweepConfig, known_store
from search.config.yaml_file import parse_yaml, read_mapping
from spaces.errors import ConfigError
from trainables.tasks.language.chat_template import is_template_file, read_chat_template
from trainables.tasks.suite import data_of_member, member_errors

STORE_VARIABLE = "RANKSWEEP_STORE"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`raw` with each "a.b=value" put in; the value is read as YAML."""
    values: list[tuple[str, Sequence[str], Any]] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(
                f"--set {override}: is not KEY=VALUE; write for example train.epochs=3"
            )
        where = f"--set {path.strip()}"
        if not text.strip():
            raise ConfigError(f"{where}: has no value; write one, or null for none")
        values.append((where, keys, parse_yaml(text, where)))
    return _with_values(raw, values)


def with_values(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with each value put in at its dotted key, such as "train.epochs"."""
    for name in values:
        if not all(name.split(".")):
            raise ConfigError(f"overrides: {name!r} is no key; write for example train.epochs")
    return _with_values(
        raw, [(f"overrides {name}", name.split("."), value) for name, value in values.items()]
    )


def _with_values(
    raw: Mapping[str, Any], values: Iterable[tuple[str, Sequence[str], Any]]
) -> dict[str, Any]:
    result = dict(raw)
    for where, keys, value in values:
        _put(result, where, keys, value)
    return result


def _put(mapping: dict[str, Any], given: str, keys: Sequence[str], value: Any) -> None:
    inner = mapping
    for depth, key in enumerate(keys[:-1]):
        below = inner.get(key)
        if below is not None and not isinstance(below, Mapping):
            where = ".".join(keys[: depth + 1])
            raise ConfigError(f"{given}: {where} is not a mapping; set {where} as a whole")
        inner[key] = dict(below or {})
        inner = inner[key]
    inner[keys[-1]] = value


def resolve_store(option: str | None = None, configured: str | None = None) -> str:
    """The store to use: the option, else the sweep's, else RANKSWEEP_STORE, else the default.

    Raises ConfigError for a URI of an unknown kind.
    """
    uri = option or configured or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE
    try:
        return known_store(uri)
    except ValueError as error:
        raise ConfigError(f"store: {error}") from None


def resolve_tracking(option: str | None = None, configured: str | None = None) -> str:
    """The tracking URI: the option, the sweep's, MLFLOW_TRACKING_URI or the default, in order."""
    return option or configured or os.environ.get(TRACKING_VARIABLE) or DEFAULT_TRACKING


def load_sweep(
    path: str | Path,
    overrides: Iterable[str] = (),
    *,
    store: str | None = None,
    tracking: str | None = None,
) -> SweepConfig:
    """Read a sweep file, put in the `--set` overrides and check every key.

    `store` and `tracking` are those of the command line; they win over the file. Raises ConfigError
    or ChoiceError, one line with the full path of the key.
    """
    return sweep_of(written_sweep(path, overrides), store=store, tracking=tracking)


def sweep_of(
    raw: dict[str, Any], *, store: str | None = None, tracking: str | None = None
) -> SweepConfig:
    """The sweep that plain data say, with files where they are; the rest as in `load_sweep`."""
    configured = raw.get("store")
    if configured is None or isinstance(configured, str):
        raw["store"] = resolve_store(store, configured)
    section = raw.get("tracking")
    if section is None or isinstance(section, Mapping):
        section = dict(section or {})
        section["uri"] = resolve_tracking(tracking, section.get("uri"))
        raw["tracking"] = section
    return parse_sweep(raw)


def written_sweep(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a sweep file and the `--set` overrides say, with files where they are; not checked yet.

    Raises ConfigError where the file or an override cannot be read.
    """
    path = Path(path)
    return with_files(apply_overrides(read_mapping(path), overrides), path.parent)


def with_files(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A sweep in plain data with its files where they are: here, or in `folder`.

    Raises ConfigError where a chat template cannot be read.
    """
    result = dict(raw)
    _locate_files(result, folder)
    return result


def parse_sweep(raw: Mapping[str, Any]) -> SweepConfig:
    """Check a sweep that is already plain data; errors as in `load_sweep`."""
    try:
        return SweepConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(refusal(error, raw)) from None


def _locate_files(raw: dict[str, Any], folder: Path) -> None:
    """Point relative paths that are missing here, but are beside the sweep file, to the latter.

    A base's path is made absolute, for workers run in a directory of their own. Of a file of a chat
    template the text is taken. Raises ConfigError where that cannot be read.
    """

    def located(file: str) -> str:
        beside = folder / file
        # of os.path, for they never raise
        is_beside = not os.path.exists(file) and os.path.exists(beside)
        return str(beside.resolve()) if is_beside else file

    base = raw.get("base")
    if isinstance(base, str) and base.startswith("path:") and base != "path:":
        path = os.path.expanduser(located(base.removeprefix("path:")))
        raw["base"] = f"path:{Path(path).resolve()}" if os.path.exists(path) else base
    if "confirm" in raw:
        raw["confirm"] = with_files_located(raw["confirm"], located)
    task = raw.get("task")
    if not isinstance(task, Mapping):
        return
    raw["task"] = task = _with_template(task, located)
    data, suite = task.get("data"), task.get("suite")
    if isinstance(data, Mapping):
        task["data"] = _with_files(data, data, located)
    if isinstance(suite, list):
        task["suite"] = [_located_member(i, each, data, located) for i, each in enumerate(suite)]


def _located_member(index: int, member: Any, data: Any, located: Callable[[str], str]) -> Any:
    """A member of a suite whose task has the section `data`, with its files where they are."""
    if not isinstance(member, Mapping):
        return member
    with member_errors(index):
        found = _with_template(member, located)
    own = member.get("data")
    if isinstance(own, Mapping) and isinstance(data, Mapping):
        found["data"] = _with_files(own, data_of_member(data, own), located)
    return found


def _with_template(section: Mapping[str, Any], located: Callable[[str], str]) -> dict[str, Any]:
    """A section that may give a chat template, with the text of the template."""
    given = section.get("chat_template")
    if not (isinstance(given, str) and is_template_file(given)):
        return dict(section)
    return {**section, "chat_template": read_chat_template(located(given))}


def _with_files(
    data: Mapping[str, Any], whole: Mapping[str, Any], located: Callable[[str], str]
) -> dict[str, Any]:
    """A section `data`, as it is `whole`, with the files that it names where they are."""
    if whole.get("hub") is not None:
        return dict(data)
    files = {
        key: located(value)
        for key in ("train", "dev", "test")
        if isinstance(value := data.get(key), str) and not value.startswith("package:")
    }
    return {**data, **files}
