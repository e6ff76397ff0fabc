"""Tasks: labelled rows, how they become inputs of a base, and the fingerprints that name them."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from numpy.typing import NDArray

from spaces.errors import DataError
from trainables.bases import load_config, load_image_processor, load_tokenizer, package_path
from trainables.images import Picture, encode_pictures, read_picture
from trainables.metrics import metric_for
from trainables.settings import IMAGE_KINDS, RowsSettings, SplitSettings, TaskSettings

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")

Record = Mapping[str, Any]
Input = str | Picture


@dataclass(frozen=True)
class Rows:
    """The rows of one split in content order: by the SHA-256 of a row's inputs and label.

    `inputs` holds one or two texts a row, or one picture; `labels` the label of each as a string;
    `hashes` the content hash of each, in hex.
    """

    inputs: list[tuple[Input, ...]]
    labels: list[str]
    hashes: list[str]

    @classmethod
    def of(cls, inputs: Iterable[tuple[Input, ...]], labels: Iterable[str]) -> Rows:
        """Rows in content order, whatever the order they come in."""
        hashed = [
            (content_hash(row, label), row, label)
            for row, label in zip(inputs, labels, strict=True)
        ]
        rows = sorted(hashed, key=lambda row: row[0])
        return cls([row[1] for row in rows], [row[2] for row in rows], [row[0] for row in rows])

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Iterable[int]) -> Rows:
        """The rows at `indices`, in the order of `indices`."""
        kept = list(indices)
        return Rows(
            [self.inputs[i] for i in kept],
            [self.labels[i] for i in kept],
            [self.hashes[i] for i in kept],
        )


def content_hash(inputs: Sequence[Input], label: str) -> str:
    """SHA-256, in hex, of the canonical JSON of a row's inputs and label.

    A picture counts by the SHA-256 of its encoded bytes, so it is the same row in whatever file.
    """
    content = [i if isinstance(i, str) else {"sha256": i.sha256} for i in inputs]
    canonical = json.dumps([content, label], separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class Split(Protocol):
    """The rows of one split as a base's inputs: all that the loops need to know of them."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Index of each row's class in the task's labels, int64 [n]."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many positions (tokens, patches) each row takes in the base, int64 [n]."""

    def __len__(self) -> int:
        """How many rows there are."""

    def batch(self, indices: NDArray[np.integer[Any]]) -> dict[str, torch.Tensor]:
        """The rows at `indices` as keyword arguments of the base, labels int64 [rows] among them.

        attention_mask [rows, positions] is there only where rows are padded.
        """


@dataclass(frozen=True)
class EncodedSplit:
    """A split as tokens, in flat arrays that can be shared between processes without a copy.

    Row i has the tokens offsets[i] to offsets[i + 1]. `input_ids` int32 [tokens], `offsets` int64
    [n + 1], `token_type_ids` int8 [tokens] or None where the base has none, `labels` int64 [n]:
    indices into the task's labels; `pad_token_id` fills the rows of a batch up.
    """

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    token_type_ids: NDArray[np.int8] | None
    labels: NDArray[np.int64]
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    def batch(self, indices: NDArray[np.integer[Any]]) -> dict[str, torch.Tensor]:
        """A batch of the rows at `indices`, padded on the right to the longest of them.

        input_ids, attention_mask and, where the split has them, token_type_ids are int64 [rows,
        tokens]; labels int64 [rows].
        """
        starts, lengths = self.offsets[indices], self.lengths[indices]
        steps = np.arange(lengths.max(initial=0))
        mask = steps < lengths[:, None]
        # A padded place reads some valid token and is overwritten.
        places = np.where(mask, starts[:, None] + steps, 0)
        batch = {
            "input_ids": np.where(mask, self.input_ids[places], self.pad_token_id),
            "attention_mask": mask,
            "labels": self.labels[indices],
        }
        if self.token_type_ids is not None:
            batch["token_type_ids"] = np.where(mask, self.token_type_ids[places], 0)
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in batch.items()}


@dataclass(frozen=True)
class Task:
    """A task made ready for one base: its splits as the base's inputs, and what names it.

    `train_fingerprint` covers the training rows and how they become inputs, which is all that a
    profile depends on; `fingerprint` adds dev, test and the metric.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    splits: dict[str, Split]
    metric: str
    train_fingerprint: str
    fingerprint: str

    @property
    def num_labels(self) -> int:
        """How many classes there are."""
        return len(self.labels)


# --- rows --------------------------------------------------------------------------------------


def load_rows(task: TaskSettings) -> dict[str, Rows]:
    """Read the rows of a task: train and dev, and test where there is one.

    Each split is in content order, so neither the order of a file nor its format matters; where
    there is no dev it is divided off as `task.split` says, and `task.rows` is applied last. Raises
    DataError where a file, a column, an input or a label is missing or wrong.
    """
    sources = _sources(task)
    splits = {split: _read(task, split, source) for split, source in sources.items()}
    if "dev" not in splits:
        source = task.split.source
        splits["dev"], splits[source] = _divide(splits[source], task.split, source)
    splits = {split: _limit(splits[split], task.rows, split) for split in SPLITS if split in splits}
    _check_labels(splits)
    _warn_of_shared_inputs(splits)
    return splits


def label_names(rows: Rows) -> tuple[str, ...]:
    """The classes of a split in order: numerically where all are integers, else by code point."""
    names = set(rows.labels)
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _sources(task: TaskSettings) -> dict[str, str]:
    """Split -> the file, or the split of a hub data set, that it is read from."""
    data = task.data
    sources = {split: name for split in SPLITS if (name := getattr(data, split)) is not None}
    if data.hub is not None:
        sources.setdefault("train", "train")
        if "dev" not in sources and "test" not in sources and task.split.source == "test":
            sources["test"] = "validation"
    if "dev" not in sources and task.split.source not in sources:
        raise DataError(
            "task.data: has neither dev nor test; name one, or take dev from train with "
            "task.split: {source: train}"
        )
    return sources


def _read(task: TaskSettings, split: str, source: str) -> Rows:
    """The rows of one split."""
    place = f"task.data.{split} ({source})"
    key = "text" if task.image is None else "image"
    wanted = {key: task.inputs, "label": (task.label,)}
    folder: Path | None = None
    if task.data.hub is not None:
        records = _hub_records(task, split, source)
    else:
        path = _file(source, place)
        folder = path.parent
        records = _READERS[path.suffix](path, place)
    if not records:
        raise DataError(f"{place}: has no rows; name a split that has some")
    for name, columns in wanted.items():
        for column in columns:
            if column not in records[0]:
                raise DataError(
                    f"task.{name}: {place} has no column {column!r}; its columns are "
                    f"{', '.join(map(str, records[0]))}"
                )
    inputs = [_inputs(task, record, folder, place, row) for row, record in enumerate(records)]
    labels = [_label(record, task.label, place, row) for row, record in enumerate(records)]
    return Rows.of(inputs, labels)


def _inputs(
    task: TaskSettings, record: Record, folder: Path | None, place: str, row: int
) -> tuple[Input, ...]:
    """The texts or the picture of one row."""
    if task.image is None:
        return tuple(_text(record, column, place, row) for column in task.text)
    return (read_picture(record.get(task.image), folder, f"{place} row {row}"),)


def _text(record: Record, column: str, place: str, row: int) -> str:
    value = record.get(column)
    if not isinstance(value, str):
        raise DataError(
            f"task.text: {place} row {row} has {_shown(value)} in {column!r}, not a text; drop the "
            "row or name another column"
        )
    return value


def _label(record: Record, column: str, place: str, row: int) -> str:
    value = record.get(column)
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | int) or value == "":
        raise DataError(
            f"task.label: {place} row {row} has {_shown(value)} in {column!r}; a class is a "
            "string, an integer or a boolean"
        )
    return str(value)


def _shown(value: object) -> str:
    return "nothing" if value is None or value == "" else f"{type(value).__name__} {value!r:.40}"


def _divide(rows: Rows, rule: SplitSettings, source: str) -> tuple[Rows, Rows]:
    """dev and the rest of a split; rows of the same content stay together."""
    contents = sorted(set(rows.hashes))
    count = int(len(contents) * rule.dev_fraction + 0.5)
    if not 0 < count < len(contents):
        raise DataError(
            f"task.split: {len(contents)} different rows of {source} cannot be divided with "
            f"dev_fraction {rule.dev_fraction}; give more rows or name a dev split"
        )
    drawn = np.random.default_rng(rule.seed).permutation(len(contents))[:count]
    dev = {contents[i] for i in drawn}
    in_dev = [content in dev for content in rows.hashes]
    return (
        rows.take(i for i, inside in enumerate(in_dev) if inside),
        rows.take(i for i, inside in enumerate(in_dev) if not inside),
    )


def _limit(rows: Rows, limits: RowsSettings, split: str) -> Rows:
    """A seeded choice of as many rows as `limits` keeps of this split, in content order."""
    limit: int | None = getattr(limits, split)
    if limit is None or limit >= len(rows):
        return rows
    generator = np.random.default_rng([limits.seed, SPLITS.index(split)])
    return rows.take(sorted(generator.choice(len(rows), limit, replace=False).tolist()))


def _check_labels(splits: Mapping[str, Rows]) -> None:
    """Raise DataError where train has one class, or another split a class that train lacks."""
    known = label_names(splits["train"])
    if len(known) < 2:
        raise DataError(
            f"task.label: every row of train is {known[0]!r}; a classification needs two classes"
        )
    for split, rows in splits.items():
        unknown = sorted(set(rows.labels) - set(known))
        if unknown:
            raise DataError(
                f"task.label: {split} has the label {unknown[0]!r}, which no row of train has "
                f"({', '.join(known[:10])}); correct it or give train such rows"
            )


def _warn_of_shared_inputs(splits: Mapping[str, Rows]) -> None:
    """Say how many rows of dev and test have a text, or a picture, that train has too."""
    train = set(splits["train"].inputs)
    what = "text" if isinstance(splits["train"].inputs[0][0], str) else "picture"
    for split in ("dev", "test"):
        if split in splits:
            shared = sum(row in train for row in splits[split].inputs)
            if shared:
                logger.warning(
                    "task.data.%s: %d of %d rows have the %s of a training row; its measure is "
                    "too good for an unseen %s",
                    split,
                    shared,
                    len(splits[split]),
                    what,
                    what,
                )


# --- where rows are read from ------------------------------------------------------------------


def _file(source: str, place: str) -> Path:
    """The file of a split, in an installed package where its name says so."""
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


def _hub_records(task: TaskSettings, split: str, source: str) -> list[Record]:
    """Rows of a split of a hub data set; found in the local cache where there is no network."""
    import datasets

    data = task.data
    place = f"task.data.{split} (hub: {data.hub}{'/' + data.name if data.name else ''}, {source})"
    try:
        loaded = datasets.load_dataset(data.hub, data.name, split=source, revision=data.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{place}: cannot be had ({reason}); check hub, name and split, or the network"
        ) from error
    loaded = loaded.select_columns(
        [c for c in loaded.column_names if c in (*task.inputs, task.label)] or loaded.column_names
    )
    if isinstance(loaded.features.get(task.image), datasets.Image):
        loaded = loaded.cast_column(task.image, datasets.Image(decode=False))
    records: list[Record] = loaded.to_list()
    return records


def _unreadable(place: str, what: str, error: Exception) -> DataError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"{place}: is not readable as {what} ({reason}); write the file again")


# --- a base's inputs ---------------------------------------------------------------------------


def build_task(settings: TaskSettings, base_uri: str) -> Task:
    """Read a task's rows and turn them into the tokens, or the pixels, of a base.

    Raises DataError as `load_rows` does and for a picture that is none, BaseModelError where the
    base has no tokenizer or image processor, and ConfigError for a metric that does not measure
    this kind of task.
    """
    metric = metric_for(settings.metric, settings.kind)
    rows = load_rows(settings)
    labels = label_names(rows["train"])
    content: dict[str, Any] = {"kind": settings.kind, "labels": labels}
    content["rows"] = rows["train"].hashes
    splits: dict[str, Split]
    if settings.kind in IMAGE_KINDS:
        splits = _pixels(rows, labels, base_uri)
    else:
        content |= {"max_length": settings.max_length, "texts": len(settings.text)}
        splits = _tokens(rows, labels, settings, base_uri)
    train_fingerprint = _fingerprint(content)
    others = {split: rows[split].hashes for split in rows if split != "train"}
    return Task(
        name=settings.name,
        kind=settings.kind,
        labels=labels,
        splits=splits,
        metric=metric.name,
        train_fingerprint=train_fingerprint,
        fingerprint=_fingerprint(
            {"train": train_fingerprint, "metric": metric.name, "rows": others}
        ),
    )


def _fingerprint(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _pixels(rows: Mapping[str, Rows], labels: Sequence[str], base_uri: str) -> dict[str, Split]:
    """Every split as pixels."""
    processor, config = load_image_processor(base_uri), load_config(base_uri)
    return {
        split: encode_pictures(
            [row[0] for row in part.inputs if isinstance(row[0], Picture)],
            _label_indices(part, labels),
            processor,
            config,
            base_uri,
        )
        for split, part in rows.items()
    }


def _tokens(
    rows: Mapping[str, Rows], labels: Sequence[str], settings: TaskSettings, base_uri: str
) -> dict[str, Split]:
    """Every split as tokens."""
    tokenizer = load_tokenizer(base_uri)
    _check_length(settings, tokenizer, base_uri)
    return {
        split: _encode(part, labels, tokenizer, settings.max_length, split)
        for split, part in rows.items()
    }


def _label_indices(rows: Rows, labels: Sequence[str]) -> NDArray[np.int64]:
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index[label] for label in rows.labels], dtype=np.int64)


def _check_length(settings: TaskSettings, tokenizer: Any, base_uri: str) -> None:
    """Raise DataError where inputs could be longer than the base has positions."""
    positions = getattr(load_config(base_uri), "max_position_embeddings", None)
    longest = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    if settings.max_length > longest:
        raise DataError(
            f"task.max_length: {settings.max_length} is more than the {longest} tokens that "
            f"{base_uri} takes; use at most {longest}"
        )


def _encode(
    rows: Rows, labels: Sequence[str], tokenizer: Any, max_length: int, split: str
) -> EncodedSplit:
    """Tokenise a split in one batch: text pairs are cut at the longer text first."""
    columns = [list(column) for column in zip(*rows.inputs, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length, padding=False)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
    if (empty := np.flatnonzero(lengths == 0)).size:
        raise DataError(
            f"task.text: {empty.size} rows of {split} have no token, such as "
            f"{rows.inputs[empty[0]]!r:.60}; drop them"
        )
    types = encoded.get("token_type_ids")
    return EncodedSplit(
        input_ids=_flat(encoded["input_ids"], np.int32),
        offsets=np.concatenate([np.zeros(1, np.int64), lengths.cumsum()]),
        token_type_ids=None if types is None else _flat(types, np.int8),
        labels=_label_indices(rows, labels),
        pad_token_id=int(tokenizer.pad_token_id),
    )


def _flat(lists: Iterable[Sequence[int]], dtype: type[Any]) -> NDArray[Any]:
    return np.concatenate([np.asarray(numbers, dtype=dtype) for numbers in lists])


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `n` rows in an epoch: a permutation decided by seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(n)
