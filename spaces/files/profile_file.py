"""The file of a profile: one safetensors file whose metadata `ranksweep` holds JSON.

What comes from outside is checked here as far as the format goes; whether the arrays fit their
modules is for `Profile` to say.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from spaces.errors import ProfileError, nearest, shown
from spaces.files import strict_json, tensor_file
from spaces.files.tensor_file import StoredTensor, TensorFile
from spaces.target import TargetModule

SCHEMA_VERSION = 1

_METADATA_KEY = "ranksweep"
_LONGEST_NAME = 1_000
_OWN_KEYS = ("schema_version", "scored_steps", "top_percent_grid", "modules")
_NAME_WITH_HASH = re.compile(r"profile-([0-9a-f]{64})\.safetensors")
# A plan writes out the rows and columns of a module, 4 bytes each, whether the file has tensors of
# it or not: 64 MiB of them are free, which is a 70B base's.
_FREE_INDICES = 2**24
_DTYPES: Mapping[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
}


@dataclass(frozen=True, eq=False)
class ProfileFile:
    """What a profile's file holds: `arrays` are module -> field -> values as they are stored.

    `metadata` is what it says beside the keys that the format knows.
    """

    targets: tuple[TargetModule, ...]
    scored_steps: int
    top_percent_grid: tuple[float, ...]
    arrays: Mapping[str, Mapping[str, NDArray[Any]]]
    metadata: dict[str, Any]


def data_of(path: Path) -> tensor_file.Bytes:
    """The bytes of a file, mapped and verified where its name holds their SHA-256.

    Raises ProfileError where it cannot be read or has another SHA-256.
    """
    named = _NAME_WITH_HASH.fullmatch(path.name)
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a file")
        data = tensor_file.mapped(path) if named else tensor_file.in_memory(path.read_bytes())
    except OSError as error:
        raise ProfileError(
            f"{path}: cannot be read ({error.strerror}); give the path of a profile file"
        ) from error
    if named and hashlib.sha256(data.data).hexdigest() != named.group(1):
        raise ProfileError(f"{path}: its SHA-256 is not the one in its name; make it again")
    return data


def serialized(file: ProfileFile) -> bytes:
    """The bytes of the file; the same content gives the same bytes."""
    tensors = {
        # safetensors writes the memory of a strided view as it lies.
        f"{name}/{field}": np.ascontiguousarray(values)
        for name, arrays in file.arrays.items()
        for field, values in arrays.items()
    }
    metadata = {
        **file.metadata,
        "schema_version": SCHEMA_VERSION,
        "scored_steps": file.scored_steps,
        "top_percent_grid": list(file.top_percent_grid),
        "modules": [_described(target) for target in file.targets],
    }
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return bytes(safetensors.numpy.save(tensors, metadata={_METADATA_KEY: text}))


def _described(target: TargetModule) -> dict[str, Any]:
    described: dict[str, Any] = {"name": target.name, "shape": list(target.shape)}
    if target.names != (target.name,):
        described["names"] = list(target.names)
    return described


def parsed(data: bytes | tensor_file.Bytes, fields: Sequence[str]) -> ProfileFile:
    """What the bytes of a file hold; a module's tensors are named by `fields`.

    Arrays are views of `data`. Raises ProfileError.
    """
    try:
        file = tensor_file.parsed(data)
    except ValueError as error:
        raise ProfileError(
            f"not a whole safetensors file ({error}); write or copy it again"
        ) from error
    metadata = _metadata(file, len(data))
    targets = _targets(metadata)
    _refuse_boundless_shapes(targets, len(data))
    return ProfileFile(
        targets=targets,
        scored_steps=_scored_steps(metadata),
        top_percent_grid=_grid(metadata),
        arrays=_arrays(file, targets, fields),
        metadata={key: value for key, value in metadata.items() if key not in _OWN_KEYS},
    )


def _metadata(file: TensorFile, file_size: int) -> dict[str, Any]:
    text = file.metadata.get(_METADATA_KEY)
    if text is None:
        raise ProfileError(
            f"no metadata '{_METADATA_KEY}'; write it as JSON with scored_steps, top_percent_grid "
            "and modules"
        )
    try:
        metadata = strict_json.parsed(text, file_size)
    except ValueError as error:
        raise ProfileError(
            f"metadata '{_METADATA_KEY}' is not JSON that is read ({error}); write it again"
        ) from error
    if not isinstance(metadata, dict):
        raise ProfileError(f"metadata '{_METADATA_KEY}' is not a JSON object; write it again")
    version = metadata.get("schema_version", SCHEMA_VERSION)
    if not _is_int(version) or version != SCHEMA_VERSION:
        raise ProfileError(
            f"schema_version: {_cited(version)}, this ranksweep reads {SCHEMA_VERSION}; profile "
            "again with this version"
        )
    return metadata


def _scored_steps(metadata: Mapping[str, Any]) -> int:
    steps = metadata.get("scored_steps")
    if not _is_int(steps) or not 0 <= steps < 2**31:
        raise ProfileError(
            f"scored_steps: {_cited(steps)} in the metadata; write the number of scored steps, 0 "
            "or more"
        )
    return steps


def _arrays(
    file: TensorFile, targets: Sequence[TargetModule], fields: Sequence[str]
) -> dict[str, dict[str, NDArray[Any]]]:
    found: dict[str, dict[str, NDArray[Any]]] = {target.name: {} for target in targets}
    for name, stored in file.tensors.items():
        module_name, _, field = name.rpartition("/")
        if module_name not in found:
            raise ProfileError(
                f"{shown(name)}: tensor of a module that is not in the modules list; list it in "
                "the metadata"
            )
        if field not in fields:
            raise ProfileError(
                f"{shown(name)}: unknown tensor '{shown(field)}'; {nearest(field[:80], fields)}"
            )
        found[module_name][field] = _array(name, stored)
    return found


def _targets(metadata: Mapping[str, Any]) -> tuple[TargetModule, ...]:
    listed = metadata.get("modules")
    if not isinstance(listed, list):
        raise ProfileError("modules: not a list in the metadata; write a list of {name, shape}")
    targets: dict[str, TargetModule] = {}
    for number, item in enumerate(listed):
        target = _target(item)
        if target is None:
            raise ProfileError(
                f"modules[{number}]: '{shown(str(item))}' is not a module; write "
                "{name, shape: [out, in]}"
            )
        if target.name in targets:
            raise ProfileError(
                f"modules[{number}]: '{shown(target.name)}' is listed twice; list it once"
            )
        targets[target.name] = target
    return tuple(targets.values())


def _target(item: object) -> TargetModule | None:
    if not isinstance(item, dict):
        return None
    name, shape, names = item.get("name"), item.get("shape"), item.get("names", [])
    if not _is_name(name) or not isinstance(names, list) or not all(map(_is_name, names)):
        return None
    if not isinstance(shape, list) or len(shape) != 2:
        return None
    if not all(_is_int(size) and 0 < size < 2**31 for size in shape):
        return None
    return TargetModule(name, (shape[0], shape[1]), tuple(names))


def _is_name(found: object) -> TypeGuard[str]:
    """Whether it can name a module: in an error, a tensor's name and a file of UTF-8."""
    return isinstance(found, str) and 0 < len(found) <= _LONGEST_NAME and found.isprintable()


def _refuse_boundless_shapes(targets: Sequence[TargetModule], file_size: int) -> None:
    """Raise ProfileError where a plan would be out of all proportion to the profile's file."""
    indices = sum(sum(target.shape) for target in targets)
    if indices > _FREE_INDICES + 2 * file_size:
        raise ProfileError(
            f"modules: {indices} rows and columns listed by a file of {file_size} bytes; list the "
            "base's own shapes"
        )


def _grid(metadata: Mapping[str, Any]) -> tuple[float, ...]:
    listed = metadata.get("top_percent_grid")
    remedy = "write a list of different percentages above 0 and up to 100"
    if not isinstance(listed, list):
        raise ProfileError(f"top_percent_grid: not a list in the metadata; {remedy}")
    for value in listed:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 100:
            raise ProfileError(f"top_percent_grid: holds '{shown(str(value))}'; {remedy}")
    if len(set(listed)) != len(listed):
        raise ProfileError(f"top_percent_grid: holds a value twice; {remedy}")
    return tuple(listed)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _cited(value: object) -> str:
    """A value of the metadata, as an error may show it."""
    return shown(repr(value))


def _array(name: str, stored: StoredTensor) -> NDArray[Any]:
    """A view of a stored tensor; bfloat16, which numpy lacks, becomes float32."""
    kind = "U16" if stored.dtype == "BF16" else stored.dtype
    if kind not in _DTYPES:
        raise ProfileError(
            f"{shown(name)}: dtype {shown(stored.dtype)} is not a number; write integers or floats"
        )
    dtype = np.dtype(_DTYPES[kind])
    shape = stored.shape
    if len(shape) > 2 or math.prod(shape) * dtype.itemsize != stored.data.shape[0]:
        raise ProfileError(
            f"{shown(name)}: shape {_cited(list(shape))} of {stored.dtype} does not fit its "
            f"{stored.data.shape[0]} bytes or has too many axes; make the profile again"
        )
    values = np.frombuffer(stored.data, dtype=dtype).reshape(shape)
    if stored.dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values
