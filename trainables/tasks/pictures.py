"""Pictures: how they are read from the rows of a task, and how they become the pixels of a base."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from spaces.errors import BaseModelError, DataError, reason_of
from trainables.bases.limits import check_pixels
from trainables.bases.parts import load_config, load_image_processor
from trainables.tasks.reading import by_length
from trainables.tasks.records import Records
from trainables.tasks.split import Pass, Split
from trainables.tasks.values import is_missing
from trainables.tasks.work import Work

if TYPE_CHECKING:  # rows.py reads pictures
    from trainables.tasks.rows import Rows

FORMATS = ("PNG", "JPEG", "WEBP")
MODES = {1: "L", 3: "RGB"}  # Pillow's name of a picture with so many channels
PATCH = (16, 16)
"""Pixels of a patch of a base that makes none: as many as most that do."""
AT_ONCE = 64  # pictures that exist decoded, beside the split's own array


@dataclass(frozen=True)
class Picture:
    """An encoded picture: the bytes of a PNG, JPEG or WebP file. `origin` is what an error names.

    Pictures of the same bytes are the same picture, wherever they came from; `path` is the file
    that held this one, None where the data itself did.
    """

    encoded: bytes
    origin: str = field(compare=False)
    path: str | None = field(default=None, compare=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the encoded bytes, in hex."""
        return hashlib.sha256(self.encoded).hexdigest()

    def pixels(self, channels: int) -> NDArray[np.uint8]:
        """The decoded picture [height, width, channels], turned as its EXIF orientation says.

        Raises DataError where the bytes are no picture, or only a part of one.
        """
        try:
            with Image.open(io.BytesIO(self.encoded), formats=FORMATS) as image:
                turned = ImageOps.exif_transpose(image).convert(MODES[channels])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f"task.image: {self.origin} is not a whole PNG, JPEG or WebP picture "
                f"({reason_of(error)}); correct it or drop the row"
            ) from error
        return np.asarray(turned).reshape(turned.height, turned.width, channels)


def read_picture(value: object, folder: Path | None, origin: str) -> Picture:
    """The picture that a row's value means: bytes, a path, or datasets' {bytes, path}.

    A relative path is looked for in `folder`, that of the data file (None where there is none).
    Nothing is decoded yet. Raises DataError, naming `origin`, where there is no picture.
    """
    if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return Picture(value, origin)
    if not isinstance(value, str) or not value:
        what = "nothing" if not value else f"{type(value).__name__} {value!r:.40}"
        raise DataError(
            f"task.image: {origin} has {what}, not a picture; give paths, encoded bytes or "
            "{bytes, path}, or name another column"
        )
    try:
        path = Path(value).expanduser()
        if folder is not None:
            path = folder / path
        return Picture(path.read_bytes(), f"{origin} ({value})", str(path.absolute()))
    except (OSError, ValueError, RuntimeError) as error:  # no file; no path at all; no such home
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise DataError(
            f"task.image: {origin} names {value!r}, which cannot be read ({reason}); paths are "
            "relative to the data file"
        ) from error


def pictures_of(
    column: str, records: Records, place: str
) -> tuple[list[tuple[Picture, ...]], list[str]]:
    """The picture of every record, and what is wrong with them, a fault in a line."""
    values = records.columns[column]
    missing = [index for index, value in enumerate(values) if is_missing(value)]
    if missing:
        return [], [
            f"task.image: {place} has no picture in {column!r} in {records.where(missing)}; fill "
            "it in, or drop these rows"
        ]
    inputs: list[tuple[Picture, ...]] = []
    faults: list[str] = []
    for number, value in zip(records.numbers, values, strict=True):
        try:
            inputs.append(
                (read_picture(value, records.folder, f"{place} {records.unit} {number}"),)
            )
        except DataError as error:
            faults.append(str(error))
    if len(faults) > 1:
        faults = [f"{faults[0]}; the first of {len(faults)} such rows"]
    return inputs, faults


@dataclass(frozen=True)
class ImageSplit:
    """A split as pixels, in flat arrays that can be shared between processes without a copy.

    `pixel_values` float32 [n, channels, height, width] as the base's image processor makes them;
    `labels` int64 [n]: indices into the task's labels; `positions` how many vectors a picture is
    inside the base: its patches and a class token, or the patches of `PATCH` pixels that it would
    have where the base does not say.
    """

    pixel_values: NDArray[np.float32]
    labels: NDArray[np.int64]
    positions: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Positions of each row: the same for all."""
        return np.full(len(self), self.positions, np.int64)

    @property
    def targets(self) -> NDArray[np.int64]:
        """One a row: its class."""
        return np.ones(len(self), np.int64)

    def first(self, rows: int) -> ImageSplit:
        """At most so many rows."""
        return replace(self, pixel_values=self.pixel_values[:rows], labels=self.labels[:rows])

    def passes(self, indices: NDArray[np.integer[Any]], on_cpu: bool) -> list[Pass]:
        """The rows at `indices`, which are of one length, in one pass."""
        return [self.batch(indices)]

    def work(self, indices: NDArray[np.integer[Any]], on_cpu: bool) -> Work:
        """What the rows at `indices` put through a base in one pass."""
        return Work.of([(len(indices), self.positions, 0)])

    def measuring_work(self, on_cpu: bool) -> Work:
        """So many pictures at a time."""
        return Work.of((len(indices), self.positions, 0) for indices in by_length(self, on_cpu))

    def batch(self, indices: NDArray[np.integer[Any]]) -> Pass:
        """The rows at `indices`: pixel_values float32 [rows, channels, height, width], labels."""
        return {
            "pixel_values": torch.from_numpy(self.pixel_values[indices]),
            "labels": torch.from_numpy(self.labels[indices]),
        }


def pixel_splits(
    rows: Mapping[str, Rows], labels: Sequence[str], head: str, base_uri: str
) -> dict[str, Split]:
    """Every split as pixels.

    Raises what `encode_pictures` does, and BaseModelError where the base cannot take them.
    """
    processor, config = load_image_processor(base_uri), load_config(base_uri)
    splits = {
        split: encode_pictures(
            [row[0] for row in part.inputs if isinstance(row[0], Picture)],
            part.label_indices(labels),
            processor,
            config,
            base_uri,
        )
        for split, part in rows.items()
    }
    check_pixels(base_uri, head, next(iter(splits.values())).pixel_values.shape[1:])
    return dict(splits)


def encode_pictures(
    pictures: Sequence[Picture],
    labels: NDArray[np.int64],
    processor: Any,
    config: Any,
    base_uri: str,
) -> ImageSplit:
    """Decode pictures and turn them into pixels with the image processor of a base.

    Raises DataError for a picture that cannot be decoded, BaseModelError where the processor does
    not give one array of pixels of the same size for every picture.
    """
    vision = getattr(config, "vision_config", config)
    channels = int(getattr(vision, "num_channels", 3))
    if channels not in MODES:
        raise BaseModelError(
            f"base: {base_uri} reads pictures of {channels} channels; use one that reads 1 or 3"
        )
    pixels: NDArray[np.float32] | None = None
    for start in range(0, len(pictures), AT_ONCE):
        some = [picture.pixels(channels) for picture in pictures[start : start + AT_ONCE]]
        made = _processed(some, processor, base_uri)
        if pixels is None:
            pixels = np.empty((len(pictures), *made.shape[1:]), np.float32)
        if made.shape[1:] != pixels.shape[1:]:
            raise _uneven(base_uri, "sizes differ")
        pixels[start : start + len(made)] = made
    assert pixels is not None, "a split has rows"
    return ImageSplit(pixels, labels, _positions(vision, pixels.shape))


def _processed(pictures: list[NDArray[np.uint8]], processor: Any, base_uri: str) -> NDArray[Any]:
    """float32 [n, channels, height, width]."""
    try:
        made = processor(pictures, return_tensors="np", input_data_format="channels_last")
    except (ValueError, TypeError) as error:
        raise _uneven(base_uri, reason_of(error)) from error
    if set(made) != {"pixel_values"} or made["pixel_values"].ndim != 4:
        raise BaseModelError(
            f"base: {base_uri} has an image processor that gives {', '.join(made)}; use a base "
            "that reads pixel_values [rows, channels, height, width] alone"
        )
    array: NDArray[Any] = made["pixel_values"]
    return array


def _uneven(base_uri: str, reason: str) -> BaseModelError:
    return BaseModelError(
        f"base: {base_uri} has an image processor that cannot make the pictures alike ({reason}); "
        "set do_resize and size in its preprocessor_config.json"
    )


def _positions(vision: Any, shape: tuple[int, ...]) -> int:
    """Patches of a picture of pixels [.., height, width], and one for the class token."""
    height, width = shape[-2:]
    patch = getattr(vision, "patch_size", None)
    if isinstance(patch, int):
        patch = (patch, patch)
    if not isinstance(patch, list | tuple) or len(patch) != 2:
        return max(1, int(height * width) // math.prod(PATCH))
    return int(height // patch[0]) * int(width // patch[1]) + 1
