"""The profile: threshold-free importance statistics of one base on one task."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from spaces.errors import ProfileError, nearest
from spaces.target import TargetModule

SCHEMA_VERSION = 1

_METADATA_KEY = "ranksweep"
_OWN_KEYS = ("schema_version", "scored_steps", "top_percent_grid", "modules")
_NAME_WITH_HASH = re.compile(r"profile-([0-9a-f]{64})\.safetensors")
_LARGEST_UINT16 = 65_535
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

        Raises ProfileError.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ProfileError(
                f"{path}: cannot be read ({error.strerror}); give the path of a profile file"
            ) from error
        named = _NAME_WITH_HASH.fullmatch(path.name)
        if named and hashlib.sha256(data).hexdigest() != named.group(1):
            raise ProfileError(f"{path}: its SHA-256 is not the one in its name; make it again")
        return cls.from_bytes(data, str(path))

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> Profile:
        """Parse the bytes of a profile file; `source` names them in errors. Raises ProfileError."""
        try:
            return _parsed(data)
        except ProfileError as error:
            raise ProfileError(f"{source}: {error}") from error

    def to_bytes(self) -> bytes:
        """The profile as a safetensors file; the same profile gives the same bytes."""
        tensors = {
            # safetensors writes the memory of a strided view as it lies
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
        contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
        return bytes(safetensors.numpy.save(contiguous, metadata={_METADATA_KEY: text}))

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


def _parsed(data: bytes) -> Profile:
    try:
        entries = _deserialize(data)
    except Exception as error:
        # A malformed header raises more than safetensors' own error class.
        reason = str(error).replace("\n", " ")
        raise ProfileError(
            f"not a whole safetensors file ({reason}); write or copy it again"
        ) from error
    metadata = _metadata(data)
    targets = _targets(metadata)
    scored_steps = metadata.get("scored_steps")
    if (
        not isinstance(scored_steps, int)
        or isinstance(scored_steps, bool)
        or not 0 <= scored_steps < 2**31
    ):
        raise ProfileError(
            f"scored_steps: {scored_steps!r} in the metadata; write the number of scored steps, 0 "
            "or more"
        )
    modules = {target.name: ModuleProfile() for target in targets}
    for name, entry in entries:
        module_name, _, field = name.rpartition("/")
        if module_name not in modules:
            raise ProfileError(
                f"{name}: tensor of a module that is not in the modules list; list it in the "
                "metadata"
            )
        if field not in FIELDS:
            raise ProfileError(f"{name}: unknown tensor '{field}'; {nearest(field, FIELDS)}")
        modules[module_name] = replace(modules[module_name], **{field: _array(name, entry)})
    return Profile(
        targets=targets,
        scored_steps=scored_steps,
        top_percent_grid=_grid(metadata),
        modules=modules,
        metadata={key: value for key, value in metadata.items() if key not in _OWN_KEYS},
    )


def _deserialize(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    return list(safetensors.deserialize(data))  # type: ignore[no-untyped-call]


def _metadata(data: bytes) -> dict[str, Any]:
    # safetensors has checked the header already; it gives the tensors of bytes but not their
    # metadata.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = (header.get("__metadata__") or {}).get(_METADATA_KEY)
    if text is None:
        raise ProfileError(
            f"no metadata '{_METADATA_KEY}'; write it as JSON with scored_steps, top_percent_grid "
            "and modules"
        )
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(
            f"metadata '{_METADATA_KEY}' is not JSON ({error}); write it again"
        ) from error
    if not isinstance(metadata, dict):
        raise ProfileError(f"metadata '{_METADATA_KEY}' is not a JSON object; write it again")
    version = metadata.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ProfileError(
            f"schema_version: {version!r}, this ranksweep reads {SCHEMA_VERSION}; profile again "
            "with this version"
        )
    return metadata


def _targets(metadata: Mapping[str, Any]) -> tuple[TargetModule, ...]:
    listed = metadata.get("modules")
    if not isinstance(listed, list):
        raise ProfileError("modules: not a list in the metadata; write a list of {name, shape}")
    targets: dict[str, TargetModule] = {}
    for number, item in enumerate(listed):
        target = _target(item)
        if target is None:
            raise ProfileError(
                f"modules[{number}]: {str(item)[:80]!r} is not a module; write "
                f"{{name, shape: [out, in]}}"
            )
        if target.name in targets:
            raise ProfileError(f"modules[{number}]: '{target.name}' is listed twice; list it once")
        targets[target.name] = target
    return tuple(targets.values())


def _target(item: object) -> TargetModule | None:
    if not isinstance(item, dict):
        return None
    name, shape, names = item.get("name"), item.get("shape"), item.get("names", [])
    if not isinstance(name, str) or not name:
        return None
    if not isinstance(shape, list) or len(shape) != 2:
        return None
    if not all(_is_int(size) and 0 < size < 2**31 for size in shape):
        return None
    if not isinstance(names, list) or not all(isinstance(other, str) for other in names):
        return None
    return TargetModule(name, (shape[0], shape[1]), tuple(names))


def _grid(metadata: Mapping[str, Any]) -> tuple[float, ...]:
    listed = metadata.get("top_percent_grid")
    remedy = "write a list of different percentages above 0 and up to 100"
    if not isinstance(listed, list):
        raise ProfileError(f"top_percent_grid: not a list in the metadata; {remedy}")
    for value in listed:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 100:
            raise ProfileError(f"top_percent_grid: holds {str(value)[:80]!r}; {remedy}")
    if len(set(listed)) != len(listed):
        raise ProfileError(f"top_percent_grid: holds a value twice; {remedy}")
    return tuple(listed)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _array(name: str, entry: Mapping[str, Any]) -> NDArray[Any]:
    kind, shape = entry["dtype"], tuple(entry["shape"])
    if kind == "BF16":
        halves = np.frombuffer(entry["data"], dtype="<u2").astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(shape)
    if kind not in _DTYPES:
        raise ProfileError(f"{name}: dtype {kind} is not a number; write integers or floats")
    return np.frombuffer(entry["data"], dtype=_DTYPES[kind]).reshape(shape)


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
    if values.dtype.kind == "f" and not _all(np.isfinite, values):
        raise ProfileError(f"{where}: holds a NaN or an infinity; make the profile again")
    if values.dtype.kind == "f" and np.any(values != np.floor(values)):
        raise ProfileError(f"{where}: holds a fraction; write whole numbers")
    if values.dtype.kind not in "iuf":
        raise ProfileError(f"{where}: dtype {values.dtype} is not a number; write integers")
    if values.size and (values.min() < 0 or values.max() > limit):
        raise ProfileError(
            f"{where}: holds counts from {values.min()} to {values.max()} outside 0 to {limit}; "
            "make the profile again"
        )
    return values


def _checked_importances(
    where: str, values: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    _check_shape(where, values, shape)
    if values.dtype.kind not in "iuf":
        raise ProfileError(f"{where}: dtype {values.dtype} is not a number; write float32")
    with np.errstate(over="ignore"):
        narrowed = values.astype(np.float32, copy=False)
    if not _all(np.isfinite, narrowed):
        raise ProfileError(f"{where}: holds a NaN or an infinity; make the profile again")
    if narrowed.size and narrowed.min() < 0:
        raise ProfileError(
            f"{where}: holds a negative number {narrowed.min():g}; make the profile again"
        )
    return narrowed


def _all(test: Callable[[NDArray[Any]], Any], values: NDArray[Any]) -> bool:
    return bool(np.all(test(values)))
