"""Profile files: what is written, what is read, and what is refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from spaces.errors import ProfileError
from spaces.profile import FIELDS, ModuleProfile, Profile
from spaces.target import TargetModule
from tests.spaces.example_profiles import GRID, SMALL, drawn_profile

Parts = tuple[dict[str, np.ndarray], dict[str, Any]]


def parts() -> Parts:
    """Tensors and metadata of a small good profile file of one module [3, 2]."""
    tensors = {
        "m/hits": np.array([0, 2, 4], dtype=np.int32),
        "m/row_importance": np.array([0, 1, 2], dtype=np.float32),
        "m/sensitivity_row_count": np.array([[0, 1, 2], [1, 2, 2]], dtype=np.uint16),
        "m/sensitivity_col_count": np.array([[0, 3], [1, 3]], dtype=np.uint16),
        "m/gradient_row_count": np.array([[0, 1, 2], [1, 2, 2]], dtype=np.uint16),
        "m/gradient_col_count": np.array([[0, 3], [1, 3]], dtype=np.uint16),
        "m/hessian_diag": np.array([0.5, 3], dtype=np.float32),
    }
    metadata = {
        "schema_version": 1,
        "scored_steps": 4,
        "top_percent_grid": [1, 5],
        "modules": [{"name": "m", "shape": [3, 2]}],
    }
    return tensors, metadata


def file_of(tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> bytes:
    return safetensors.numpy.save(tensors, metadata={"ranksweep": json.dumps(metadata)})


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = drawn_profile(seed=4)
    data = profile.to_bytes()
    path = tmp_path / f"profile-{hashlib.sha256(data).hexdigest()}.safetensors"
    profile.write(path)
    again = Profile.read(path)
    assert again.targets == SMALL
    assert again.scored_steps == profile.scored_steps
    assert again.top_percent_grid == GRID
    assert again.metadata == {"base": "drawn", "task": "drawn"}
    for name, module in profile.modules.items():
        for field in FIELDS:
            left, right = getattr(module, field), getattr(again.modules[name], field)
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
    assert again.to_bytes() == data


def test_the_file_has_the_dtypes_of_the_format(tmp_path: Path) -> None:
    wide = (TargetModule("w", (70_000, 2)),)
    profile = drawn_profile(wide)
    profile.write(tmp_path / "p.safetensors")
    dtypes = {
        "hits": np.int32,
        "row_importance": np.float32,
        "sensitivity_row_count": np.uint16,
        "sensitivity_col_count": np.int32,
        "gradient_row_count": np.uint16,
        "gradient_col_count": np.int32,
        "hessian_diag": np.float32,
    }
    with safe_open(tmp_path / "p.safetensors", framework="numpy") as file:
        assert {key: file.get_tensor(f"w/{key}").dtype for key in dtypes} == dtypes
        metadata = json.loads(file.metadata()["ranksweep"])
    assert metadata["modules"] == [{"name": "w", "shape": [70_000, 2]}]
    assert metadata["schema_version"] == 1


def test_strided_arrays_survive_the_file() -> None:
    target = TargetModule("m", (4, 3))
    hits = np.arange(8, dtype=np.int32)[::2]
    profile = Profile((target,), 8, (1.0,), {"m": ModuleProfile(hits=hits)}, {})
    again = Profile.from_bytes(profile.to_bytes(), "p")
    np.testing.assert_array_equal(again.modules["m"].hits, [0, 2, 4, 6])


def test_a_tied_matrix_keeps_its_names() -> None:
    again = Profile.from_bytes(drawn_profile().to_bytes(), "p")
    assert again.targets[1].names == ("layers.0.dense", "layers.1.dense")


def test_a_file_made_by_hand_may_leave_out_what_is_not_needed() -> None:
    tensors, metadata = parts()
    del metadata["schema_version"]
    profile = Profile.from_bytes(file_of({"m/hits": tensors["m/hits"]}, metadata), "hand.st")
    assert profile.require("m", "hits").tolist() == [0, 2, 4]
    with pytest.raises(ProfileError, match="m/hessian_diag: not in the profile"):
        profile.require("m", "hessian_diag")
    with pytest.raises(ProfileError, match="other: not in the profile"):
        profile.require("other", "hits")


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.float64])
def test_whole_numbers_of_any_kind_are_counts(dtype: type) -> None:
    tensors, metadata = parts()
    cast = {
        name: values.astype(dtype) if "importance" not in name and "diag" not in name else values
        for name, values in tensors.items()
    }
    profile = Profile.from_bytes(file_of(cast, metadata), "hand.st")
    assert profile.modules["m"].hits is not None
    assert profile.modules["m"].hits.dtype == np.int32
    assert profile.require("m", "sensitivity_row_count").dtype == np.uint16


def test_bfloat16_is_read() -> None:
    tensors, metadata = parts()
    halves = (np.array([0.5, 3], dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    data = file_of({**tensors, "m/hessian_diag": halves}, metadata)
    marked = data.replace(b'"m/hessian_diag":{"dtype":"U16"', b'"m/hessian_diag":{"dtype":"BF16"')
    size = int.from_bytes(data[:8], "little") + len(marked) - len(data)
    marked = size.to_bytes(8, "little") + marked[8:]
    assert Profile.from_bytes(marked, "p").require("m", "hessian_diag").tolist() == [0.5, 3]


def _tensor(name: str, values: Any) -> Callable[[Parts], None]:
    return lambda p: p[0].__setitem__(name, np.array(values))


def _metadata(key: str, value: Any) -> Callable[[Parts], None]:
    return lambda p: p[1].__setitem__(key, value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_tensor("m/hits", [1, 2]), r"m/hits: shape \[2\] .* \[3\]"),
        (_tensor("m/hits", [[1, 2, 3]]), r"m/hits: shape \[1, 3\]"),
        (_tensor("m/hits", [1, 2, 5]), "m/hits: holds counts from 1 to 5 outside 0 to 4"),
        (_tensor("m/hits", [-1, 2, 4]), "m/hits: holds counts from -1"),
        (_tensor("m/hits", [0.5, 1, 2]), "m/hits: holds a fraction"),
        (_tensor("m/hits", [np.nan, 1, 2]), "m/hits: holds a NaN"),
        (_tensor("m/hits", [True, False, True]), "m/hits: dtype BOOL is not a number"),
        (_tensor("m/hits", [2**40, 0, 0]), "m/hits: holds counts"),
        (_tensor("m/row_importance", [1.0, np.nan, 0]), "m/row_importance: holds a NaN"),
        (_tensor("m/row_importance", [1e300, 1, 0]), "m/row_importance: .* infinity"),
        (_tensor("m/row_importance", [1.0, -1, 0]), "m/row_importance: holds a negative"),
        (_tensor("m/hessian_diag", [1.0, np.inf]), "m/hessian_diag: .* infinity"),
        (_tensor("m/hessian_diag", [1.0, 2, 3]), r"m/hessian_diag: shape \[3\] .* \[2\]"),
        (_tensor("m/sensitivity_row_count", [[0, 1, 3]] * 2), "row_count: .* outside 0 to 2"),
        (_tensor("m/sensitivity_col_count", [[0, 4]] * 2), "col_count: .* outside 0 to 3"),
        (_tensor("m/gradient_row_count", [[0, 1, 2]]), r"gradient_row_count: shape \[1, 3\]"),
        (_tensor("m/gradient_col_count", [[0], [1]]), r"gradient_col_count: shape \[2, 1\]"),
        (_tensor("n/hits", [1, 2, 3]), "n/hits: tensor of a module that is not in the modules"),
        (_tensor("hits", [1, 2, 3]), "hits: tensor of a module that is not in the modules"),
        (_tensor("m/hit", [1, 2, 3]), "m/hit: unknown tensor 'hit'; did you mean 'hits'"),
        (_metadata("schema_version", 2), "schema_version: 2, this ranksweep reads 1"),
        (_metadata("scored_steps", -1), "scored_steps: -1"),
        (_metadata("scored_steps", 2.5), "scored_steps: 2.5"),
        (_metadata("scored_steps", True), "scored_steps: True"),
        (_metadata("scored_steps", None), "scored_steps: None"),
        (_metadata("top_percent_grid", 5), "top_percent_grid: not a list"),
        (_metadata("top_percent_grid", [0, 5]), "top_percent_grid: holds '0'"),
        (_metadata("top_percent_grid", [5, 101]), "top_percent_grid: holds '101'"),
        (_metadata("top_percent_grid", [5, 5]), "top_percent_grid: holds a value twice"),
        (_metadata("top_percent_grid", ["1", 5]), "top_percent_grid: holds '1'"),
        (_metadata("modules", None), "modules: not a list"),
        (_metadata("modules", ["m"]), r"modules\[0\]: 'm' is not a module"),
        (_metadata("modules", [{"name": "m"}]), r"modules\[0\]"),
        (_metadata("modules", [{"name": "m", "shape": [3]}]), r"modules\[0\]"),
        (_metadata("modules", [{"name": "m", "shape": [3, 0]}]), r"modules\[0\]"),
        (_metadata("modules", [{"name": "m", "shape": [3, "2"]}]), r"modules\[0\]"),
        (_metadata("modules", [{"name": "m", "shape": [3, 2**40]}]), r"modules\[0\]"),
        (_metadata("modules", [{"name": "", "shape": [3, 2]}]), r"modules\[0\]"),
        (_metadata("modules", [{"name": "m", "shape": [3, 2], "names": "m"}]), r"modules\[0\]"),
        (_metadata("modules", [{"name": "m", "shape": [3, 2]}] * 2), r"modules\[1\]: 'm' .* twice"),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    spoil: Callable[[Parts], None], message: str, tmp_path: Path
) -> None:
    spoiled = parts()
    spoil(spoiled)
    path = tmp_path / "hand.safetensors"
    path.write_bytes(file_of(*spoiled))
    with pytest.raises(ProfileError, match=message) as caught:
        Profile.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 100_000, '"text"'])
def test_metadata_that_is_no_object_is_refused(text: str) -> None:
    data = safetensors.numpy.save(parts()[0], metadata={"ranksweep": text})
    with pytest.raises(ProfileError, match=r"^p: metadata 'ranksweep' is not "):
        Profile.from_bytes(data, "p")


def test_a_file_without_metadata_is_refused() -> None:
    with pytest.raises(ProfileError, match="no metadata 'ranksweep'"):
        Profile.from_bytes(safetensors.numpy.save(parts()[0]), "p")


def test_every_truncation_is_refused() -> None:
    data = file_of(*parts())
    for size in range(0, len(data), 7):
        with pytest.raises(ProfileError, match=r"^p: not a whole safetensors file"):
            Profile.from_bytes(data[:size], "p")


@given(junk=st.binary(max_size=200), size=st.integers(0, 2**63))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_junk_is_refused(junk: bytes, size: int) -> None:
    for data in (junk, size.to_bytes(8, "little") + junk, len(junk).to_bytes(8, "little") + junk):
        with pytest.raises(ProfileError):
            Profile.from_bytes(data, "p")


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_changed_byte_raises_nothing_else(position: int, value: int) -> None:
    data = bytearray(file_of(*parts()))
    data[position % len(data)] = value
    try:
        Profile.from_bytes(bytes(data), "p")
    except ProfileError as error:
        assert "\n" not in str(error)  # noqa: PT017 - a changed byte may also leave a good file


def test_a_name_that_gives_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / f"profile-{'0' * 64}.safetensors"
    path.write_bytes(file_of(*parts()))
    with pytest.raises(ProfileError, match="SHA-256 is not the one in its name"):
        Profile.read(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        Profile.read(tmp_path / "absent.safetensors")


def test_statistics_are_checked_when_a_profile_is_made() -> None:
    target = TargetModule("m", (3, 2))
    with pytest.raises(ProfileError, match="m/hits: holds counts"):
        Profile((target,), 1, (), {"m": ModuleProfile(hits=np.array([0, 1, 2]))}, {})
    with pytest.raises(ProfileError, match="n: has tensors but is not in the modules list"):
        Profile((target,), 1, (), {"n": ModuleProfile()}, {})


def test_a_profile_cannot_be_written_to_and_leaves_its_arrays_alone() -> None:
    hits = np.array([0, 1, 1], dtype=np.int32)
    profile = Profile((TargetModule("m", (3, 2)),), 1, (), {"m": ModuleProfile(hits=hits)}, {})
    with pytest.raises(ValueError, match="read-only"):
        profile.require("m", "hits")[0] = 5
    hits[0] = 1
    assert hits.flags.writeable
