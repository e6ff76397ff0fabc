"""The tasks that lm-eval is asked for: that they are there, run no code unasked, and load.

lm-eval is an optional package, imported where it is first needed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from spaces.errors import ConfigError, nearest, one_line
from trainables.training.lm_eval_settings import LmEvalSettings, is_file

KEY = "confirm.lm_eval"
VERSION = "0.4.13"
"""The version of lm-eval whose inner workings this package knows."""
_FILES = ("json", "csv", "parquet", "arrow", "text", "pandas")
"""Loaders of `datasets` that read files."""


def check_package() -> None:
    """Raise ConfigError where lm-eval is missing, or is of another version."""
    remedy = 'pip install "ranksweep[lm-eval]"'
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(f"{KEY}: needs the package lm-eval; {remedy}")
    if version("lm_eval") != VERSION:
        raise ConfigError(
            f"{KEY}: lm-eval {version('lm_eval')} is installed, and {VERSION} is needed; {remedy}"
        )


@dataclass(frozen=True)
class LmEvalTasks:
    """What lm-eval is asked for; `folder` is where the launch was started."""

    settings: LmEvalSettings
    folder: str

    def check(self, *, load_all: bool = False) -> None:
        """Raise ConfigError for a task that cannot be measured.

        Names, files and metrics are looked at, and data that are local are loaded; with `load_all`
        those too that must first be fetched.
        """
        index, owners = _Index(self.settings.include_path), dict[str, str]()
        for task in self.settings.tasks:
            leaves = list(_leaves(self._entry(task, index), index, task))
            for leaf in leaves:
                self._check_leaf(leaf, task)
                if owners.setdefault(leaf.name, task) != task:
                    raise ConfigError(
                        f"{KEY}.tasks: {owners[leaf.name]} and {task} both have the task "
                        f"{leaf.name}; leave one out"
                    )
            if load_all or all(_is_local(leaf.config) for leaf in leaves):
                self._load([task], index)

    def load(self) -> Any:
        """lm-eval's tasks and groups, as its `evaluate` takes them, each with its rows.

        Raises ConfigError where one cannot be loaded.
        """
        return self._load(self.settings.tasks, _Index(self.settings.include_path))

    def _entry(self, task: str, index: _Index) -> Any:
        """What lm-eval knows of a task, a group or a tag that the section names."""
        if not is_file(task):
            if (entry := index.get(task)) is None:
                raise ConfigError(f"{KEY}.tasks: lm-eval knows no {task!r}; {index.nearest(task)}")
            return entry
        config, path = _read(task, task), Path(task).resolve()
        name = config.get("group" if _kind(config) == "GROUP" else "task")
        if not isinstance(name, str):
            raise ConfigError(f"{KEY}.tasks: {task} does not name its task; give it `task: NAME`")
        return _entry_of(name, path, config)

    def _check_leaf(self, leaf: _Leaf, task: str) -> None:
        config, which = leaf.config, f"{KEY}.tasks: {task}"
        allowed = self.settings.allow_code
        if not allowed and (file := _file_with_code(leaf.file)) is not None:
            raise ConfigError(
                f"{which}: {file} has !function, which runs code; write it without, or set "
                f"{KEY}.allow_code: true"
            )
        if config.get("unsafe_code"):
            raise ConfigError(
                f"{which}: {leaf.name} runs what the model writes as a program; leave it out, and "
                "run lm-eval on an exported model where that can do no harm"
            )
        if config.get("doc_to_image") is not None or config.get("doc_to_audio"):
            raise ConfigError(f"{which}: {leaf.name} is no task of text alone; leave it out")
        for metric in _fetched_metrics(config) if not allowed else ():
            raise ConfigError(
                f"{which}: {leaf.name} has the metric {metric!r}, which lm-eval would download as "
                f"a script and run; use one of {', '.join(_own_metrics())}, or set "
                f"{KEY}.allow_code: true"
            )

    def _load(self, tasks: Sequence[str], index: _Index) -> Any:
        from lm_eval.tasks import TaskManager

        from trainables.training.lm_eval_state import undisturbed

        built: list[Any] = []
        for task in tasks:
            entry = self._entry(task, index)
            own = [leaf for leaf in _leaves(entry, index, task) if leaf.is_own]
            known = {entry.name: entry} | {
                leaf.name: self._in_memory(leaf, task) for leaf in own if leaf.is_whole
            }
            manager = TaskManager(include_defaults=False)
            manager.task_index.update({**index.entries, **known})
            try:
                with undisturbed():
                    found = manager.load([entry.name])
                    _check_metrics(found, task)
            except ConfigError:
                raise
            except Exception as error:  # of lm-eval, datasets, a task's own code, the network
                raise ConfigError(
                    f"{KEY}.tasks: {task} cannot be loaded ({one_line(error)}); correct it, or "
                    "fetch its data where there is a network"
                ) from error
            built += [*found["groups"].values()] or [*found["tasks"].values()]
        return manager.load(built)

    def _in_memory(self, leaf: _Leaf, task: str) -> Any:
        """The entry of a task file of the user's own, with the paths of its data absolute."""
        config = _read(str(leaf.file), task, resolve=True)
        data = config.get("dataset_kwargs")
        if isinstance(data, dict) and "data_files" in data and leaf.file is not None:
            beside = (Path(self.folder), leaf.file.parent)
            files = _absolute(data["data_files"], beside)
            config["dataset_kwargs"] = {**data, "data_files": files}
        return _entry_of(leaf.name, None, config)


@dataclass(frozen=True)
class _Leaf:
    """One task: its name, its file and what that says, `!function` as a text."""

    name: str
    file: Path | None
    config: Mapping[str, Any]

    is_whole: bool = True
    """Whether it is all that the file describes, and not a part of a group that it writes out."""

    @classmethod
    def of(cls, entry: Any) -> _Leaf:
        return cls(entry.name, entry.yaml_path, entry.cfg or {})

    @property
    def is_own(self) -> bool:
        """Whether it is a file of the user's."""
        return self.file is not None and not _is_of_the_package(self.file)


class _Index:
    """What lm-eval knows by name: the tasks of a folder of the user's, then those that it brings
    along, which take seconds to read and are not read before they are needed."""

    def __init__(self, include_path: str | None) -> None:
        self._own: dict[str, Any] = {}
        if include_path is not None:
            if not Path(include_path).is_dir():
                raise ConfigError(f"{KEY}.include_path: {include_path} is no folder; name one")
            self._own = _entries(include_path, brought_along=False)
        self._others: Mapping[str, Any] = {}

    def get(self, name: str) -> Any:
        """The entry of that name; None where there is none."""
        if name not in self._own:
            self._others = _brought_along()
        return self.entries.get(name)

    @property
    def entries(self) -> dict[str, Any]:
        """All that was read so far."""
        return {**self._others, **self._own}

    def nearest(self, name: str) -> str:
        """What may have been meant, out of the thousands that there are."""
        said = nearest(name, self.entries)
        return said if said.startswith("did") else "`lm-eval ls tasks` lists what it knows"


@lru_cache(maxsize=1)
def _brought_along() -> Mapping[str, Any]:
    return _entries(None, brought_along=True)


def _entries(folder: str | None, *, brought_along: bool) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    from trainables.training.lm_eval_state import undisturbed

    with undisturbed():
        manager = TaskManager(include_path=folder, include_defaults=brought_along)
    return dict(manager.task_index)


def _entry_of(name: str, file: Path | None, config: dict[str, Any]) -> Any:
    """What lm-eval keeps of a task: by its file, or by what the file says."""
    from lm_eval.tasks._index import Entry, Kind

    return Entry(name, getattr(Kind, _kind(config)), file, config)


def _leaves(entry: Any, index: _Index, task: str) -> Iterator[_Leaf]:
    """The tasks below a task, a group or a tag. Raises ConfigError for one that is not there."""
    kind = entry.kind.name
    if kind == "TAG":
        for name in sorted(entry.tags):
            yield from _leaves(index.get(name), index, task)
    elif kind != "GROUP":
        yield _Leaf.of(entry)
    else:
        yield from _members(_Leaf.of(entry), index, task)


def _members(group: _Leaf, index: _Index, task: str) -> Iterator[_Leaf]:
    """The tasks of a group; of one that is written out within it, the group's file."""
    members = group.config.get("task")
    for member in members if isinstance(members, list) else ():
        inline = member if isinstance(member, Mapping) else {}
        name = str(inline.get("group", inline.get("task")) if inline else member)
        if (entry := index.get(name)) is not None:
            yield from _leaves(entry, index, task)
            if inline:  # what it says otherwise may be code too
                yield _Leaf(name, group.file, inline, is_whole=False)
        elif "group" in inline:
            yield from _members(_Leaf(name, group.file, inline), index, task)
        elif len(inline) > 1:
            config = {**group.config, **inline}
            yield _Leaf(name, group.file, config, is_whole=False)
        else:
            raise ConfigError(
                f"{KEY}.tasks: {task} has the member {name!r}, which lm-eval does not know; "
                f"{index.nearest(name)}"
            )


def _read(file: str, task: str, *, resolve: bool = False) -> dict[str, Any]:
    """A task file with what it includes; its functions as texts unless they are to `resolve`."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        found: dict[str, Any] = load_yaml(file, resolve_func=resolve)
        _kind(found)
    except FileNotFoundError as error:
        missing = error.filename or file
        raise ConfigError(f"{KEY}.tasks: {missing} is not there; name a file that is") from None
    except Exception as error:  # of YAML, of lm-eval, or of code that is imported
        raise ConfigError(
            f"{KEY}.tasks: {task} is no task file of lm-eval ({one_line(error)}); correct it"
        ) from error
    return found


def _kind(config: Mapping[str, Any]) -> str:
    """What a file describes, as lm-eval tells it: TASK, PY_TASK or GROUP."""
    from lm_eval.tasks._index import TaskIndex

    return str(TaskIndex._kind_of(dict(config)).name)


def _is_of_the_package(file: Path) -> bool:
    import lm_eval

    return Path(lm_eval.__file__).parent.resolve() in file.resolve().parents


def _file_with_code(file: Path | None) -> Path | None:
    """The task file of the user's own, it or one that it includes, that has a `!function`."""
    if file is None or _is_of_the_package(file):
        return None
    node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    if any(each.tag == "!function" for each in _nodes(node)):
        return file
    for included in _included(node):
        path = file.parent / included  # an absolute one stays
        if (found := _file_with_code(path)) is not None:
            return found
    return None


def _nodes(node: Any) -> Iterator[Any]:
    if node is None:
        return
    yield node
    for child in node.value if isinstance(node.value, list) else ():
        for each in child if isinstance(child, tuple) else (child,):
            yield from _nodes(each)


def _included(node: Any) -> list[str]:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    values = [value for key, value in pairs if key.value == "include"]
    each = [
        v for value in values for v in (value.value if isinstance(value.value, list) else [value])
    ]
    return [str(value.value) for value in each]


def _fetched_metrics(config: Mapping[str, Any]) -> list[str]:
    """The metrics of a task that lm-eval takes from the package `evaluate`, which fetches them."""
    metrics = config.get("metric_list")
    if config.get("process_results") is not None or not isinstance(metrics, list):
        return []
    own = _own_metrics()
    return [
        str(each["metric"])
        for each in metrics
        if isinstance(each, Mapping) and isinstance(each.get("metric"), str)
        # a function's text holds the path of its file
        if each.get("hf_evaluate") is True
        or (each["metric"] not in own and "/" not in each["metric"])
    ]


def _own_metrics() -> list[str]:
    import lm_eval.api.metrics
    from lm_eval.api.registry import metric_registry

    assert lm_eval.api.metrics
    return sorted(metric_registry)


def _check_metrics(loaded: Mapping[str, Any], task: str) -> None:
    """Raise ConfigError for a metric that lm-eval did not find, which it would tell at the end."""
    for name, each in loaded["tasks"].items():
        functions = getattr(each, "_metric_fn_list", {})
        takes_own = getattr(each.config, "process_results", None) is not None
        missing = [metric for metric, function in functions.items() if function is None]
        if missing and not takes_own:
            raise ConfigError(
                f"{KEY}.tasks: {task}: the metric {missing[0]!r} of {name} cannot be had; use one "
                f"of {', '.join(_own_metrics())}, or fetch it where there is a network"
            )


def _is_local(config: Mapping[str, Any]) -> bool:
    """Whether a task's rows are in files of this machine."""
    path, data = config.get("dataset_path"), config.get("dataset_kwargs")
    files = data.get("data_files") if isinstance(data, Mapping) else None
    if not isinstance(path, str) or not (path in _FILES or Path(path).exists()):
        return False
    return files is None or all("://" not in file for file in _texts(files))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _texts(each)
    else:
        yield str(value)


def _absolute(files: Any, folders: Sequence[Path]) -> Any:
    """Paths of data, each in the first of the folders where it is; others as they are."""
    if isinstance(files, Mapping):
        return {key: _absolute(each, folders) for key, each in files.items()}
    if isinstance(files, list):
        return [_absolute(each, folders) for each in files]
    for folder in folders:
        if isinstance(files, str) and "://" not in files and any(_found(folder, files)):
            return str(folder / files)
    return files


def _found(folder: Path, pattern: str) -> Iterator[Path]:
    """What a path, or a pattern such as `*.json`, names below a folder."""
    file = Path(pattern)
    if (folder / file).exists():
        yield folder / file
    elif folder.is_dir() and not file.is_absolute():
        yield from folder.glob(pattern)
