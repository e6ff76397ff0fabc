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
        index = self._index()
        for task in self.settings.tasks:
            leaves = list(_leaves(self._entry(task, index), index, task))
            for leaf in leaves:
                self._check_leaf(leaf, task)
            if load_all or all(_is_local(leaf.config) for leaf in leaves):
                self._load([task], index)

    def load(self) -> Any:
        """lm-eval's tasks and groups, as its `evaluate` takes them, each with its rows.

        Raises ConfigError where one cannot be loaded.
        """
        return self._load(self.settings.tasks, self._index())

    def _index(self) -> dict[str, Any]:
        files_alone = all(is_file(task) for task in self.settings.tasks)
        # Reading what lm-eval brings along takes seconds; a group in a file may name any of it.
        groups = files_alone and any(_kind(_read(task, task)) == "GROUP" for task in self._paths())
        with_own = not files_alone or groups
        return dict(_known(self.settings.include_path, with_own))

    def _paths(self) -> list[str]:
        return [task for task in self.settings.tasks if is_file(task)]

    def _entry(self, task: str, index: Mapping[str, Any]) -> Any:
        if not is_file(task):
            if task not in index:
                raise ConfigError(
                    f"{KEY}.tasks: lm-eval knows no {task!r}; {_nearest(task, index)}"
                )
            return index[task]
        from lm_eval.tasks._index import Entry, Kind

        config, path = _read(task, task), Path(task).resolve()
        name = config.get("task") if _kind(config) != "GROUP" else config.get("group")
        if not isinstance(name, str):
            raise ConfigError(f"{KEY}.tasks: {task} does not name its task; give it `task: NAME`")
        return Entry(name, getattr(Kind, _kind(config)), path, config)

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

    def _load(self, tasks: Sequence[str], index: dict[str, Any]) -> Any:
        from lm_eval.tasks import TaskManager

        from trainables.training.lm_eval_state import undisturbed

        manager = TaskManager(include_defaults=False)
        manager.task_index.update(index)
        built: list[Any] = []
        for task in tasks:
            entry = self._entry(task, index)
            for leaf in _leaves(entry, index, task):
                if leaf.is_own and leaf.name in index:
                    manager.task_index[leaf.name] = self._in_memory(leaf, task)
            try:
                with undisturbed():
                    # A group is given as its file: what one says in memory its members inherit.
                    in_memory = is_file(task) and entry.kind.name != "GROUP"
                    spec = self._in_memory(_Leaf.of(entry), task).cfg if in_memory else task
                    found = manager.load([spec])
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
        from lm_eval.tasks._index import Entry, Kind

        config = _read(str(leaf.file), task, resolve=True)
        data = config.get("dataset_kwargs")
        if isinstance(data, dict) and "data_files" in data and leaf.file is not None:
            beside = (Path(self.folder), leaf.file.parent)
            files = _absolute(data["data_files"], beside)
            config["dataset_kwargs"] = {**data, "data_files": files}
        return Entry(leaf.name, getattr(Kind, _kind(config)), None, config)


@dataclass(frozen=True)
class _Leaf:
    """One task: its name, its file and what that says, `!function` as a text."""

    name: str
    file: Path | None
    config: Mapping[str, Any]

    @classmethod
    def of(cls, entry: Any) -> _Leaf:
        return cls(entry.name, entry.yaml_path, entry.cfg or {})

    @property
    def is_own(self) -> bool:
        """Whether it is a file of the user's."""
        return self.file is not None and not _is_of_the_package(self.file)


def _leaves(entry: Any, index: Mapping[str, Any], task: str) -> Iterator[_Leaf]:
    """The tasks below a task, a group or a tag. Raises ConfigError for one that is not there."""
    kind = entry.kind.name
    if kind == "TAG":
        for name in sorted(entry.tags):
            yield from _leaves(index[name], index, task)
    elif kind != "GROUP":
        yield _Leaf.of(entry)
    else:
        yield from _members(_Leaf.of(entry), index, task)


def _members(group: _Leaf, index: Mapping[str, Any], task: str) -> Iterator[_Leaf]:
    """The tasks of a group; of one that is written out within it, the group's file."""
    members = group.config.get("task")
    for member in members if isinstance(members, list) else ():
        inline = member if isinstance(member, Mapping) else {}
        name = inline.get("group", inline.get("task")) if inline else member
        if isinstance(name, str) and name in index:
            for leaf in _leaves(index[name], index, task):
                yield _Leaf(leaf.name, leaf.file, {**leaf.config, **inline})
            if inline:  # what it changes may be code too
                yield _Leaf(name, group.file, inline)
        elif "group" in inline:
            yield from _members(_Leaf(str(name), group.file, inline), index, task)
        elif len(inline) > 1:
            yield _Leaf(str(name), group.file, {**group.config, **inline})
        else:
            raise ConfigError(
                f"{KEY}.tasks: {task} has the member {name!r}, which lm-eval does not know; "
                f"{_nearest(str(name), index)}"
            )


@lru_cache(maxsize=4)
def _known(include_path: str | None, with_own: bool) -> dict[str, Any]:
    """Name -> entry of every task, group and tag: lm-eval's own, and those of a folder."""
    from lm_eval.tasks import TaskManager

    from trainables.training.lm_eval_state import undisturbed

    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"{KEY}.include_path: {include_path} is no folder; name one that is")
    with undisturbed():
        manager = TaskManager(include_path=include_path, include_defaults=with_own)
    return dict(manager.task_index)


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
    each = [v for value in values for v in (value.value if isinstance(value.value, list) else [value])]
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
        if each.get("hf_evaluate") is True or (each["metric"] not in own and "/" not in each["metric"])
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


def _nearest(name: str, index: Mapping[str, Any]) -> str:
    """What may have been meant, out of the thousands that lm-eval knows."""
    said = nearest(name, index)
    return said if said.startswith("did") else "`lm-eval ls tasks` lists what it knows"


