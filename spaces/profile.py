"""The profile: threshold-free importance statistics of one base on one task."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard, cast

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from spaces.errors import ProfileError, nearest, shown
from spaces.files import strict_json, tensor_file
from spaces.files.tensor_file import StoredTensor, TensorFile
from spaces.target import TargetModule

SCHEMA_VERSION = 1

_METADATA_KEY = "ranksweep"
_COMPUTED_KEY = "versions"
"""What a profile that was computed names; one made by hand is taken at its word where it does not
contradict the format."""
_LONGEST_NAME = 1_000
_OWN_KEYS = ("schema_version", "scored_steps", "top_percent_grid", "modules")
_NAME_WITH_HASH = re.compile(r"profile-([0-9a-f]{64})\.safetensors")
_LARGEST_UINT16 = 65_535
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
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
class ModuleProfile:
    """The statistics of one target module [out, in].

    A tensor that a file made by hand leaves out is None.
    """

    hits: NDArray[np.int32] | None = None
    """[out]: on how many scored steps a row was above the mean (PiLoRA, Algorithm 1, line 12)."""
    row_importance: NDArray[np.float32] | None = None
    """[out]: mean over the scored steps of S_i (PiLoRA, Eq. 8 summed over a row)."""
    sensitivity_row_count: NDArray[Any] | None = None
    """[K, out]: entries of the top-k% mask of abs(theta * g) in each row (TASO, Eq. 2), a line per
    k of the grid."""
    sensitivity_col_count: NDArray[Any] | None = None
    """[K, in]: the same in each column."""
    gradient_row_count: NDArray[Any] | None = None
    """[K, out]: entries of the top-k% mask of abs(g) in each row."""
    gradient_col_count: NDArray[Any] | None = None
    """[K, in]: the same in each column."""
    hessian_diag: NDArray[np.float32] | None = None
    """[in]: diagonal of H = 2 E[x x^T] (Sensitivity-LoRA, Eq. 7)."""


FIELDS: tuple[str, ...] = tuple(field.name for field in fields(ModuleProfile))


@dataclass(frozen=True, eq=False)
class Profile:
    """Statistics of every target module of one base on one task, enough to derive any plan.

    `metadata` holds what else the file says (base, task, settings, versions). Arrays are checked on
    construction and cast to the dtypes of the file format: hits int32, importances float32, counts
    uint16 (int32 where a count can pass 65,535). Raises ProfileError naming the tensor.
    """

    targets: tuple[TargetModule, ...]
    scored_steps: int
    top_percent_grid: tuple[float, ...]
    modules: Mapping[str, ModuleProfile]
    metadata: dict[str, Any]

    def __post_init__(self) -> None:
        grid_size = len(self.top_percent_grid)
        checked = {
            target.name: _checked_module(
                target, self.modules.get(target.name, ModuleProfile()), self.scored_steps, grid_size
            )
            for target in self.targets
        }
        for name in self.modules:
            if name not in checked:
                raise ProfileError(
                    f"{name}: has tensors but is not in the modules list; {nearest(name, checked)}"
                )
        object.__setattr__(self, "modules", MappingProxyType(checked))

    @classmethod
    def read(cls, path: str | Path) -> Profile:
        """Read a profile file; one named profile-<SHA-256>.safetensors must have that SHA-256.

        Such a file is mapped, for who names a file by its content never writes to it again: arrays
        of the format's own dtypes are views of the pages that all readers on this machine share.
        It may be removed or replaced meanwhile. A file of any other name is read, as it may be
        written to. Raises ProfileError.
        """
        path = Path(path)
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
        return cls._of(data, str(path))

    @classmethod
    def from_bytes(cls, data: bytes | tensor_file.Bytes, source: str) -> Profile:
        """Parse the bytes of a profile file; `source` names them in errors.

        Arrays of the format's own dtypes are views of `data`. Raises ProfileError.
        """
        return cls._of(tensor_file.in_memory(data), source)

    @classmethod
    def _of(cls, data: tensor_file.Bytes, source: str) -> Profile:
        try:
            return _parsed(data)
        except ProfileError as error:
            raise ProfileError(f"{source}: {error}") from error

    def to_bytes(self) -> bytes:
        """The profile as a safetensors file; the same profile gives the same bytes."""
        tensors = {
            # safetensors writes the memory of a strided view as it lies.
            f"{name}/{field}": np.ascontiguousarray(values)
            for name, module in self.modules.items()
            for field in FIELDS
            if (values := getattr(module, field)) is not None
        }
        metadata = {
            **self.metadata,
            "schema_version": SCHEMA_VERSION,
            "scored_steps": self.scored_steps,
            "top_percent_grid": list(self.top_percent_grid),
            "modules": [_described(target) for target in self.targets],
        }
        text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return bytes(safetensors.numpy.save(tensors, metadata={_METADATA_KEY: text}))

    def write(self, path: str | Path) -> None:
        """Write the profile as a safetensors file."""
        Path(path).write_bytes(self.to_bytes())

    def require(self, module_name: str, field: str) -> NDArray[Any]:
        """The tensor `field` of a module.

        Raises ProfileError naming the module and the tensor that the profile lacks.
        """
        module = self.modules.get(module_name)
        if module is None:
            raise ProfileError(
                f"{module_name}: not in the profile; profile the base again with this target module"
            )
        values = getattr(module, field)
        if values is None:
            raise ProfileError(
                f"{module_name}/{field}: not in the profile; profile the base again or take a "
                "choice that does not need it"
            )
        return cast(NDArray[Any], values)

    def require_targets(self, targets: tuple[TargetModule, ...]) -> None:
        """Raise ProfileError unless every one of `targets` was profiled at its shape [out, in]."""
        profiled = {target.name: target.shape for target in self.targets}
        for target in targets:
            shape = profiled.get(target.name, target.shape)
            if shape != target.shape:
                raise ProfileError(
                    f"{target.name}: profiled as {list(shape)} but is {list(target.shape)} in the "
                    "base; use a profile of this base"
                )

    def grid_line(self, top_percent: float) -> int:
        """The line of the count tensors that holds `top_percent`.

        Raises ProfileError naming the grid.
        """
        for line, value in enumerate(self.top_percent_grid):
            if math.isclose(value, top_percent, rel_tol=1e-12):
                return line
        grid = ", ".join(f"{value:g}" for value in self.top_percent_grid)
        raise ProfileError(
            f"top_percent: {top_percent:g} is not in the profile's grid [{grid}]; use one of these "
            "or profile again with it in profile.top_percent"
        )


def _described(target: TargetModule) -> dict[str, Any]:
    described: dict[str, Any] = {"name": target.name, "shape": list(target.shape)}
    if target.names != (target.name,):
        described["names"] = list(target.names)
    return described


def _parsed(data: tensor_file.Bytes) -> Profile:
    try:
        file = tensor_file.parsed(data)
    except ValueError as error:
        raise ProfileError(
            f"not a whole safetensors file ({error}); write or copy it again"
        ) from error
    metadata = _metadata(file, data.shape[0])
    targets = _targets(metadata)
    _refuse_boundless_shapes(targets, data.shape[0])
    profile = Profile(
        targets=targets,
        scored_steps=_scored_steps(metadata),
        top_percent_grid=_grid(metadata),
        modules=_modules(file, targets),
        metadata={key: value for key, value in metadata.items() if key not in _OWN_KEYS},
    )
    if _COMPUTED_KEY in metadata:
        _check_sums(profile)
    return profile


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


def _modules(file: TensorFile, targets: Sequence[TargetModule]) -> dict[str, ModuleProfile]:
    found: dict[str, dict[str, Any]] = {target.name: {} for target in targets}
    for name, stored in file.tensors.items():
        module_name, _, field = name.rpartition("/")
        if module_name not in found:
            raise ProfileError(
                f"{shown(name)}: tensor of a module that is not in the modules list; list it in "
                "the metadata"
            )
        if field not in FIELDS:
            raise ProfileError(
                f"{shown(name)}: unknown tensor '{shown(field)}'; {nearest(field[:80], FIELDS)}"
            )
        found[module_name][field] = _array(name, stored)
    return {name: ModuleProfile(**arrays) for name, arrays in found.items()}


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
    if not isinstance(name, str) or not _is_name(name):
        return None
    if not isinstance(shape, list) or len(shape) != 2:
        return None
    if not all(_is_int(size) and 0 < size < 2**31 for size in shape):
        return None
    if not isinstance(names, list) or not all(isinstance(n, str) and _is_name(n) for n in names):
        return None
    return TargetModule(name, (shape[0], shape[1]), tuple(names))


def _is_name(text: str) -> bool:
    """Whether a text can name a module: in an error, a tensor's name and a file of UTF-8."""
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable()


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


def _checked_module(
    target: TargetModule, module: ModuleProfile, scored_steps: int, grid_size: int
) -> ModuleProfile:
    out_features, in_features = target.shape
    by_row = (grid_size, out_features), in_features
    by_col = (grid_size, in_features), out_features
    counts = {
        "hits": ((out_features,), scored_steps),
        "sensitivity_row_count": by_row,
        "sensitivity_col_count": by_col,
        "gradient_row_count": by_row,
        "gradient_col_count": by_col,
    }
    importances = {"row_importance": (out_features,), "hessian_diag": (in_features,)}
    checked: dict[str, NDArray[Any]] = {}
    for field in FIELDS:
        values = getattr(module, field)
        if values is None:
            continue
        where = f"{target.name}/{field}"
        if field in counts:
            shape, limit = counts[field]
            values = _checked_counts(where, values, shape, limit)
            wide = field == "hits" or limit > _LARGEST_UINT16
            values = values.astype(np.int32 if wide else np.uint16, copy=False)
        else:
            values = _checked_importances(where, values, importances[field])
        # A view, so that the array handed in stays as writable as its owner left it.
        values = values.view()
        values.flags.writeable = False
        checked[field] = values
    return ModuleProfile(**cast(Mapping[str, Any], checked))


def _check_shape(where: str, values: NDArray[Any], shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ProfileError(
            f"{where}: shape {list(values.shape)} where the modules list and the grid ask for "
            f"{list(shape)}; make the profile again"
        )


def _checked_counts(
    where: str, values: NDArray[Any], shape: tuple[int, ...], limit: int
) -> NDArray[Any]:
    _check_shape(where, values, shape)
    if values.dtype.kind not in "iuf":
        raise ProfileError(f"{where}: dtype {values.dtype} is not a number; write integers")
    least, most = _extremes(values)
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ProfileError(f"{where}: holds a NaN or an infinity; make the profile again")
    if values.dtype.kind == "f" and np.any(values != np.floor(values)):
        raise ProfileError(f"{where}: holds a fraction; write whole numbers")
    if least < 0 or most > limit:
        raise ProfileError(
            f"{where}: holds counts from {least} to {most} outside 0 to {limit}; "
            "make the profile again"
        )
    return values


def _checked_importances(
    where: str, values: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    _check_shape(where, values, shape)
    if values.dtype.kind not in "iuf":
        raise ProfileError(f"{where}: dtype {values.dtype} is not a number; write float32")
    least, most = _extremes(values)
    # A comparison with a NaN is false.
    if not -_LARGEST_FLOAT32 <= least <= most <= _LARGEST_FLOAT32:
        raise ProfileError(
            f"{where}: holds a NaN, an infinity or more than float32 can; make the profile again"
        )
    if least < 0:
        raise ProfileError(f"{where}: holds a negative number {least:g}; make the profile again")
    return values.astype(np.float32, copy=False)


def _extremes(values: NDArray[Any]) -> tuple[int | float, int | float]:
    """The least and the largest value as plain numbers, NaN where one is NaN, 0 where none is.

    Neither copies the values, as asking each whether it is finite would.
    """
    if not values.size:
        return 0, 0
    with np.errstate(invalid="ignore"):
        return values.min().item(), values.max().item()


def _check_sums(profile: Profile) -> None:
    """Raise ProfileError where the rows and the columns of one mask hold unlike many entries."""
    for name, module in profile.modules.items():
        for kind, rows, cols in (
            ("sensitivity", module.sensitivity_row_count, module.sensitivity_col_count),
            ("gradient", module.gradient_row_count, module.gradient_col_count),
        ):
            if rows is None or cols is None:
                continue
            by_row, by_col = (counts.sum(axis=1, dtype=np.int64) for counts in (rows, cols))
            for line in np.flatnonzero(by_row != by_col):
                raise ProfileError(
                    f"{name}/{kind}_row_count: {by_row[line]} entries at top_percent "
                    f"{profile.top_percent_grid[line]:g} but {by_col[line]} in its columns; make "
                    "the profile again"
                )
