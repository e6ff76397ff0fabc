"""The files of this machine that travel with a submitted sweep, and the names they get there.

Data and code of the user's own lie in the job's working directory, the base in a package of its
own, for every worker reads it and finds it by import, wherever its node unpacks it. What a sweep's
fingerprints cover is what the files hold: they are the same here and there.
"""

from __future__ import annotations

import copy
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.config.sweep import SweepConfig
from search.launch.submission.arrival import OWN_CODE
from search.paths import BASE_PACKAGE
from spaces.errors import ConfigError, DataError
from trainables.bases.location import (
    GENERATION_CONFIG,
    chat_template_files,
    locate,
    processor_files,
    weight_files,
)
from trainables.tasks.files import file_records
from trainables.tasks.own import is_own, own_modules
from trainables.tasks.saved_datasets import is_saved_dataset
from trainables.tasks.settings import TaskSettings
from trainables.tasks.suite import data_of_member, member_settings
from trainables.training.lm_eval_settings import is_file

MOST_BYTES = 100 * 2**20
"""What Ray's job server takes at once."""
ON_A_SHARED_FOLDER = (
    "put it on a folder that every node has at the same path and give --shared (`shared: true` in "
    "a schedule)"
)
Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Piece:
    """The files that one key of the sweep names.

    `files` maps a name in the parcel to a file here; `value` is what the key says there, None where
    it says the same.
    """

    key: str
    files: Mapping[str, Path]
    value: str | None = None
    at: Key = ()

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return sum(file.stat().st_size for file in self.files.values())


@dataclass(frozen=True)
class Parcel:
    """What travels: the sweep as the cluster is to read it, and its files.

    Values of `sweep` at the keys of `data` are names in the parcel, which the job makes paths of.
    """

    sweep: Mapping[str, Any]
    data: tuple[Piece, ...]
    code: tuple[Piece, ...]
    base: Piece | None

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Everything that travels, the base last."""
        return (*self.data, *self.code, *([self.base] if self.base is not None else ()))


def parcel_of(config: SweepConfig, written: Mapping[str, Any], *, shared: bool) -> Parcel:
    """What of a sweep travels, which is `config` as it is `written`.

    With `shared` the cluster has its files at the same paths, and the user's own code alone
    travels. Raises ConfigError, BaseModelError or DataError where a file is not there or cannot
    travel.
    """
    sweep = copy.deepcopy(dict(written))
    sweep["name"] = config.name
    sweep["cluster"] = {**(sweep.get("cluster") or {}), "address": "auto"}
    data = () if shared else tuple(_data(config, written))
    base = None if shared else _base(config.base)
    for piece in data:
        _set(sweep, piece.at, piece.value)
    if base is not None:
        sweep["base"] = base.value
    if shared:
        for _, at, _, path in _data_files(config, written):
            _set(sweep, at, os.path.abspath(path))
    else:
        _refuse_task_files(config)
    return Parcel(sweep, data, tuple(_code(config.task)), base)


def write_zip(pieces: Iterable[Piece], texts: Mapping[str, str], folder: str, out: Path) -> None:
    """Pack pieces and texts by their names into `folder` of a zip file."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for name, text in texts.items():
            archive.writestr(f"{folder}/{name}", text)
        for piece in pieces:
            for name, file in piece.files.items():
                archive.write(file, f"{folder}/{name}")


def check_size(what: str, size: int) -> None:
    """Raise ConfigError where so many bytes are more than Ray's job server takes."""
    if size > MOST_BYTES:
        remedy = ON_A_SHARED_FOLDER
        if what == "base":
            remedy += ", or take it from the hub (hub:org/name)"
        raise ConfigError(
            f"{what}: {size / 2**20:,.0f} MiB do not travel, for Ray's job server takes "
            f"{MOST_BYTES // 2**20} MiB at once; {remedy}"
        )


# -- data ------------------------------------------------------------------------------------------


def _data(config: SweepConfig, written: Mapping[str, Any]) -> Iterator[Piece]:
    for number, (key, at, task, path) in enumerate(_data_files(config, written)):
        folder = f"data/{number}"
        value = f"{folder}/{path.name}"
        if is_saved_dataset(path):
            inside = sorted(file for file in path.rglob("*") if file.is_file())
            files = {f"{value}/{file.relative_to(path).as_posix()}": file for file in inside}
        elif path.is_file():
            files = {value: path}
        else:
            raise DataError(f"{key}: {path} is not there; check the path or make the data first")
        files |= {f"{folder}/{name}": file for name, file in _pictures(key, task, path)}
        yield Piece(key, files, value, at)


def _data_files(
    config: SweepConfig, written: Mapping[str, Any]
) -> Iterator[tuple[str, Key, TaskSettings, Path]]:
    """Each local file or saved data set: its key, the task or member that reads it, its path."""
    task = written["task"]
    ours = task["data"]
    sections: list[tuple[str, Key, TaskSettings, Mapping[str, Any], Mapping[str, Any]]]
    sections = [("task.data", ("task", "data"), config.task, ours, ours)]
    members = zip(task.get("suite") or (), member_settings(config.task), strict=True)
    for index, (member, settings) in enumerate(members):
        own = member.get("data")
        if own is not None:
            at: Key = ("task", "suite", index, "data")
            its = data_of_member(ours, own)
            sections.append((f"task.suite[{index}].data", at, settings, own, its))
    for key, at, settings, data, whole in sections:
        if whole.get("hub") is not None:
            continue
        for split in ("train", "dev", "test"):
            value = data.get(split)
            if isinstance(value, str) and not value.startswith("package:"):
                path = Path(os.path.expanduser(value))
                yield f"{key}.{split}", (*at, split), settings, path


def _pictures(key: str, task: TaskSettings, path: Path) -> Iterator[tuple[str, Path]]:
    """The picture files that a data file names: each by its name there, and where it is."""
    if task.image is None:
        return
    records = file_records(str(path), key, {task.image: "task.image"})
    for value in records.columns[task.image]:
        named = value.get("path") if isinstance(value, Mapping) else value
        if not isinstance(named, str) or (isinstance(value, Mapping) and value.get("bytes")):
            continue
        inside = os.path.normpath(named)
        if records.folder is None or os.path.isabs(named) or inside.startswith(("..", "~")):
            raise ConfigError(
                f"task.image: {key} names the picture {named!r}, which is not below the folder of "
                f"its file and does not travel; write the pictures' bytes into the file, or "
                f"{ON_A_SHARED_FOLDER}"
            )
        file = records.folder / inside
        if not file.is_file():
            raise DataError(f"task.image: {key} names {named!r}, which is not there; correct it")
        yield inside, file


def _refuse_task_files(config: SweepConfig) -> None:
    asked = None if config.confirm is None else config.confirm.lm_eval
    if asked is None:
        return
    if asked.include_path is not None or any(map(is_file, asked.tasks)):
        raise ConfigError(
            "confirm.lm_eval: task files may name others and do not travel; put them on a folder "
            "that every node has at the same path and give --shared"
        )


# -- the base and the user's own code --------------------------------------------------------------


def _base(uri: str) -> Piece | None:
    """The files of a base of this machine; None for one that the nodes get by themselves."""
    if not uri.startswith("path:"):
        return None
    path = locate(uri).resolve()
    if path.is_file():
        files = {path.name: path}
        name = path.name
    else:
        name = path.name or "base"
        names = ["config.json", *weight_files(path, uri), *processor_files(path)]
        names += [*chat_template_files(path), GENERATION_CONFIG]
        there = [each for each in dict.fromkeys(names) if (path / each).is_file()]
        files = {f"{name}/{each}": path / each for each in there}
    return Piece("base", files, f"package:{BASE_PACKAGE}/{name}", ("base",))


def _code(task: TaskSettings) -> Iterator[Piece]:
    """The modules of the user's own that the task or a member of its suite names."""
    named: dict[str, str] = {}
    settings = [("task", task)]
    settings += [(f"task.suite[{i}]", each) for i, each in enumerate(member_settings(task))]
    for key, each in settings:
        for name in ("kind", "metric"):
            value = getattr(each, name)
            if is_own(value):
                named.setdefault(value.partition(":")[0], f"{key}.{name}")
    for module, key in named.items():
        loaded = sys.modules[module]
        if loaded in own_modules():  # else it is installed, there too
            file = Path(loaded.__file__ or "")
            yield Piece(key, {f"{OWN_CODE}/{module.replace('.', '/')}.py": file})


def _set(sweep: dict[str, Any], at: Key, value: object) -> None:
    inner: Any = sweep
    for part in at[:-1]:
        inner = inner[part]
    inner[at[-1]] = value
