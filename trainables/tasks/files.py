"""The records of a split: of a file in Parquet, CSV or JSON, or of a data set on the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from spaces.errors import DataError, reason_of
from trainables.bases.location import package_path
from trainables.tasks.settings import TaskSettings

Record = Mapping[str, Any]


def file_records(source: str, place: str) -> tuple[list[Record], Path]:
    """The records of a file, and the folder that it lies in; `place` is what an error names.

    `source` is a path, or `package:import_name/sub/file`. Raises DataError where there is no such
    file, or none that can be read as what its suffix says.
    """
    path = _located(source, place)
    return _READERS[path.suffix](path, place), path.parent


def hub_records(task: TaskSettings, split: str, source: str) -> list[Record]:
    """The records of a split of a hub data set; from the local cache where there is no network.

    Raises DataError where it cannot be had.
    """
    import datasets  # not at the top: it takes a second to import

    data = task.data
    place = f"task.data.{split} (hub: {data.hub}{'/' + data.name if data.name else ''}, {source})"
    try:
        loaded = datasets.load_dataset(data.hub, data.name, split=source, revision=data.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{place}: cannot be had ({reason_of(error)}); check hub, name and split, or the "
            "network"
        ) from error
    loaded = loaded.select_columns(
        [c for c in loaded.column_names if c in (*task.inputs, task.label)] or loaded.column_names
    )
    if isinstance(loaded.features.get(task.image), datasets.Image):
        loaded = loaded.cast_column(task.image, datasets.Image(decode=False))
    records: list[Record] = loaded.to_list()
    return records


def _located(source: str, place: str) -> Path:
    """The file, in an installed package where its name says so."""
    if source.startswith("package:"):
        try:
            return package_path(place, source.removeprefix("package:"))
        except FileNotFoundError as error:
            raise DataError(str(error)) from error
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"{place}: there is no such file; check the path or make the data first")
    return path


def _parquet_records(path: Path, place: str) -> list[Record]:
    try:
        records: list[Record] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(place, "parquet", error) from error
    return records


def _csv_records(path: Path, place: str) -> list[Record]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise _unreadable(place, "CSV in UTF-8", error) from error


def _json_records(path: Path, place: str) -> list[Record]:
    """Rows of a JSON array of objects, or of one object a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            records = json.loads(text)
        else:
            records = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise _unreadable(place, "JSON in UTF-8", error) from error
    if not all(isinstance(record, dict) for record in records):
        raise DataError(f"{place}: holds something else than objects; give one object a row")
    return list(records)


_READERS: Mapping[str, Callable[[Path, str], list[Record]]] = {
    ".parquet": _parquet_records,
    ".csv": _csv_records,
    ".json": _json_records,
    ".jsonl": _json_records,
}


def _unreadable(place: str, what: str, error: Exception) -> DataError:
    return DataError(
        f"{place}: is not readable as {what} ({reason_of(error)}); write the file again"
    )
