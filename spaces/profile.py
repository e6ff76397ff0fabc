"""The profile: threshold-free importance statistics of one base on one task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from spaces.errors import ProfileError, nearest
from spaces.files import profile_file
from spaces.files.tensor_file import Bytes
from spaces.target import TargetModule

_COMPUTED_KEY = "versions"
"""What a profile that was computed names; one made by hand is taken at its word where it does not
contradict the format."""
_LARGEST_UINT16 = 65_535
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


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
        return cls.from_bytes(profile_file.data_of(Path(path)), str(path))

    @classmethod
    def from_bytes(cls, data: bytes | Bytes, source: str) -> Profile:
        """Parse the bytes of a profile file; `source` names them in errors.

        Arrays of the format's own dtypes are views of `data`. Raises ProfileError.
        """
        try:
            file = profile_file.parsed(data, FIELDS)
            modules = {name: ModuleProfile(**arrays) for name, arrays in file.arrays.items()}
            profile = cls(
                file.targets, file.scored_steps, file.top_percent_grid, modules, file.metadata
            )
            if _COMPUTED_KEY in profile.metadata:
                _check_sums(profile)
        except ProfileError as error:
            raise ProfileError(f"{source}: {error}") from error
        return profile

    def to_bytes(self) -> bytes:
        """The profile as a safetensors file; the same profile gives the same bytes."""
        arrays = {
            name: {f: values for f in FIELDS if (values := getattr(module, f)) is not None}
            for name, module in self.modules.items()
        }
        return profile_file.serialized(
            profile_file.ProfileFile(
                self.targets, self.scored_steps, self.top_percent_grid, arrays, self.metadata
            )
        )

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


def _checked_module(
    target: TargetModule, module: ModuleProfile, scored_steps: int, grid_size: int
) -> ModuleProfile:
    out_features, in_features = target.shape
    by_row = (grid_size, out_features), in_features
    by_col = (grid_size, in_features), out_features
    # Of each field the shape and the largest count; importances, which are no counts, have none.
    expected: dict[str, tuple[tuple[int, ...], int | None]] = {
        "hits": ((out_features,), scored_steps),
        "row_importance": ((out_features,), None),
        "sensitivity_row_count": by_row,
        "sensitivity_col_count": by_col,
        "gradient_row_count": by_row,
        "gradient_col_count": by_col,
        "hessian_diag": ((in_features,), None),
    }
    checked: dict[str, NDArray[Any]] = {}
    for field, (shape, limit) in expected.items():
        values = getattr(module, field)
        if values is None:
            continue
        where = f"{target.name}/{field}"
        _check_numbers(where, values, shape, "float32" if limit is None else "integers")
        if limit is None:
            _check_importances(where, values)
            dtype: type = np.float32
        else:
            _check_counts(where, values, limit)
            wide = field == "hits" or limit > _LARGEST_UINT16
            dtype = np.int32 if wide else np.uint16
        # A view, so that the array handed in stays as writable as its owner left it.
        checked[field] = values.astype(dtype, copy=False).view()
        checked[field].flags.writeable = False
    return ModuleProfile(**checked)


def _check_numbers(where: str, values: NDArray[Any], shape: tuple[int, ...], wanted: str) -> None:
    if values.shape != shape:
        raise ProfileError(
            f"{where}: shape {list(values.shape)} where the modules list and the grid ask for "
            f"{list(shape)}; make the profile again"
        )
    if values.dtype.kind not in "iuf":
        raise ProfileError(f"{where}: dtype {values.dtype} is not a number; write {wanted}")


def _check_counts(where: str, values: NDArray[Any], limit: int) -> None:
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


def _check_importances(where: str, values: NDArray[Any]) -> None:
    least, most = _extremes(values)
    # A comparison with a NaN is false.
    if not -_LARGEST_FLOAT32 <= least <= most <= _LARGEST_FLOAT32:
        raise ProfileError(
            f"{where}: holds a NaN, an infinity or more than float32 can; make the profile again"
        )
    if least < 0:
        raise ProfileError(f"{where}: holds a negative number {least:g}; make the profile again")


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
