"""Profile files: what is written, what is read, and what is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
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
from spaces.files import tensor_file
from spaces.profile import FIELDS, ModuleProfile, Profile
from spaces.target import TargetModule
from tests.spaces.example_profiles import GRID, SMALL, drawn_profile


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 0


Parts = tuple[dict[str, np.ndarray], dict[str, Any]]


def parts() -> Parts:
    """Tensors and metadata of a small good profile file of one module [3, 2]."""
    tensors: dict[str, np.ndarray] = {
        "m/hits": np.array([0, 2, 4], dtype=np.int32),
        "m/row_importance": np.array([0, 1, 2], dtype=np.float32),
        "m/sensitivity_row_count": np.array([[0, 1, 2], [1, 2, 2]], dtype=np.uint16),
        "m/sensitivity_col_count": np.array([[0, 3], [2, 3]], dtype=np.uint16),
        "m/gradient_row_count": np.array([[0, 1, 2], [1, 2, 2]], dtype=np.uint16),
        "m/gradient_col_count": np.array([[0, 3], [2, 3]], dtype=np.uint16),
        "m/hessian_diag": np.array([0.5, 3], dtype=np.float32),
    }
    metadata: dict[str, Any] = {
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
        (_metadata("schema_version", True), "schema_version: True, this ranksweep reads 1"),
        (_metadata("schema_version", "1"), "schema_version: '1', this ranksweep reads 1"),
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
        (_metadata("modules", [{"name": "a\nb", "shape": [3, 2]}]), r"modules\[0\]: .*no.* module"),
        (_metadata("modules", [{"name": "m" * 2_000, "shape": [3, 2]}]), r"modules\[0\]"),
        (_metadata("modules", [{"name": "m", "shape": [2**25, 2]}]), "33554434 rows and columns"),
        (_metadata("task", float("nan")), "is not JSON that is read .*NaN is no number"),
        (_metadata("task", "\ud800"), "is not JSON that is read .*is no Unicode"),
        (_metadata("task", nested(40)), "is not JSON that is read .*nested deeper than 32"),
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


def header_and_tensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def with_header(header: bytes, tensors: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + tensors


def shifted(name: str, by: tuple[int, int]) -> Callable[[dict[str, Any]], None]:
    def shift(header: dict[str, Any]) -> None:
        offsets = header[name]["data_offsets"]
        header[name]["data_offsets"] = [offset + n for offset, n in zip(offsets, by, strict=True)]

    return shift


def described(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(changes)


# The order in the file, by dtype and then by name: hessian_diag [0, 8), row_importance [8, 20),
# hits [20, 32), then the counts.
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (shifted("m/row_importance", (-4, -4)), "tensor m/row_importance overlaps another"),
        (shifted("m/row_importance", (-4, 0)), "tensor m/row_importance overlaps another"),
        (shifted("m/row_importance", (0, 4)), "tensor m/hits overlaps another"),
        (shifted("m/row_importance", (4, 0)), "bytes 8 to 12 of the tensors belong to none"),
        (shifted("m/row_importance", (0, -4)), "bytes 16 to 20 of the tensors belong to none"),
        (shifted("m/hits", (0, 2**40)), "m/hits would end at byte 1099511627808 of"),
        (shifted("m/hits", (-21, 0)), "offsets of tensor m/hits are not a beginning and an end"),
        (shifted("m/hits", (13, 0)), "offsets of tensor m/hits are not a beginning and an end"),
        (described("m/hits", data_offsets=[0]), "are not a beginning and an end"),
        (described("m/hits", data_offsets=[0, 1e3]), "are not a beginning and an end"),
        (described("m/hits", data_offsets=[False, 12]), "are not a beginning and an end"),
        (described("m/hits", data_offsets="0, 12"), "are not a beginning and an end"),
        (described("m/hits", shape=[-3]), "shape of tensor m/hits is no list of sizes"),
        (described("m/hits", shape=[2**63]), "shape of tensor m/hits is no list of sizes"),
        (described("m/hits", shape=[1] * 1_000), "shape of tensor m/hits is no list of sizes"),
        (described("m/hits", shape=3), "shape of tensor m/hits is no list of sizes"),
        (described("m/hits", dtype=None), "dtype of tensor m/hits is no text"),
        (described("m/hits", more=1), "tensor m/hits is not described by dtype"),
        (lambda header: header["m/hits"].pop("dtype"), "tensor m/hits is not described by dtype"),
        (lambda header: header.__setitem__("m/hits", []), "tensor m/hits is not described by"),
        (lambda header: header.pop("m/hits"), "bytes 20 to 32 of the tensors belong to none"),
        (lambda header: header.__setitem__("__metadata__", []), "metadata is not an object"),
        (lambda header: header["__metadata__"].update(x=3), "metadata is not an object of texts"),
    ],
)
def test_a_header_that_does_not_describe_its_tensors_is_refused(
    spoil: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    header, tensors = header_and_tensors(file_of(*parts()))
    spoil(header)
    data = with_header(json.dumps(header).encode(), tensors)
    with pytest.raises(ProfileError, match=f"^p: not a whole safetensors file .*{reason}"):
        Profile.from_bytes(data, "p")


@pytest.mark.parametrize("shape", [[2], [4], [3, 2], [1, 1, 3], [0], [2**40]])
def test_a_shape_that_its_bytes_do_not_hold_is_refused(shape: list[int]) -> None:
    header, tensors = header_and_tensors(file_of(*parts()))
    header["m/hits"]["shape"] = shape
    data = with_header(json.dumps(header).encode(), tensors)
    with pytest.raises(ProfileError, match=r"^p: m/hits: shape \[.*\] of I32 does not fit its 12"):
        Profile.from_bytes(data, "p")


def test_bytes_after_the_last_tensor_are_refused() -> None:
    with pytest.raises(ProfileError, match=r"\(1 bytes follow the last tensor\)"):
        Profile.from_bytes(file_of(*parts()) + b"\0", "p")


def test_a_name_that_stands_twice_is_refused() -> None:
    header, tensors = header_and_tensors(file_of(*parts()))
    text = json.dumps(header)[:-1] + f', "m/hits": {json.dumps(header["m/hits"])}}}'
    with pytest.raises(ProfileError, match="the key m/hits stands twice"):
        Profile.from_bytes(with_header(text.encode(), tensors), "p")
    metadata = json.dumps(parts()[1])[:-1] + ', "scored_steps": 4}'
    data = safetensors.numpy.save(parts()[0], metadata={"ranksweep": metadata})
    with pytest.raises(ProfileError, match="the key scored_steps stands twice"):
        Profile.from_bytes(data, "p")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "does not start as an object"),
        (b" {}", "does not start as an object"),
        (b"[]", "does not start as an object"),
        (b"\xff{}", "does not start as an object"),
        (b'{"\xff": 1}', "not UTF-8 at byte 2"),
        (b'{"a": ' + b"[" * 100_000, "nested deeper than 32"),
        (b'{"a": ' * 50_000, "nested deeper than 32"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "nested deeper than 32"),
        (b'{"a": [' + b"[]," * 400_000 + b"[]]}", "more values than"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "limit"),
        (b'{"a": 1e999}', "a number is too large"),
        (b'{"a": Infinity}', "Infinity is no number"),
        (b'{"a": {"dtype": "I32"}} x', "Extra data"),
    ],
)
def test_a_header_that_is_no_plain_json_is_refused(header: bytes, reason: str) -> None:
    with pytest.raises(
        ProfileError, match=f"^p: not a whole safetensors file .*{reason}"
    ) as caught:
        Profile.from_bytes(with_header(header, b""), "p")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("length", [100_000_001, 2**40, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused_without_being_allocated(length: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProfileError, match=f"its header would be {length} bytes long"):
            Profile.from_bytes(length.to_bytes(8, "little") + b"{}", "p")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [40_000, 160_000, 2_000_000])
@pytest.mark.parametrize("piece", [b"[],", b"{},", b"0,", b'"",', b"1.5,", b'{"":0},', b"[[[]]],"])
def test_json_costs_no_more_memory_than_a_small_multiple_of_its_file(
    piece: bytes, count: int
) -> None:
    header = b'{"a":[' + piece * count + b"0]}"
    data = with_header(header, b"")
    tracemalloc.start()
    try:
        with pytest.raises(ProfileError):
            Profile.from_bytes(data, "p")
        assert tracemalloc.get_traced_memory()[1] < 2 * (2**24 + 8 * len(data))
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["sensitivity", "gradient"])
def test_unlike_sums_of_rows_and_columns_are_refused_in_a_computed_profile(kind: str) -> None:
    tensors, metadata = parts()
    metadata["versions"] = {"torch": "2"}
    Profile.from_bytes(file_of(tensors, metadata), "p")
    tensors[f"m/{kind}_row_count"] = np.array([[0, 1, 2], [1, 1, 2]], dtype=np.uint16)
    reason = rf"m/{kind}_row_count: 4 entries at top_percent 5 but 5 in its columns"
    with pytest.raises(ProfileError, match=reason):
        Profile.from_bytes(file_of(tensors, metadata), "p")
    del tensors[f"m/{kind}_col_count"]
    Profile.from_bytes(file_of(tensors, metadata), "p")
    tensors, metadata = parts()
    tensors[f"m/{kind}_row_count"] = np.array([[0, 1, 2], [1, 1, 2]], dtype=np.uint16)
    Profile.from_bytes(file_of(tensors, metadata), "made by hand")


@pytest.mark.parametrize("empty", [b"", b"\0", b"\0" * 8, b"\0" * 100])
def test_files_of_nothing_are_refused(empty: bytes, tmp_path: Path) -> None:
    for name in ("p.safetensors", f"profile-{hashlib.sha256(empty).hexdigest()}.safetensors"):
        (tmp_path / name).write_bytes(empty)
        with pytest.raises(ProfileError, match="not a whole safetensors file"):
            Profile.read(tmp_path / name)


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


# Mapped files -------------------------------------------------------------------------------------


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A profile's file under the name that its content gives."""
    data = drawn_profile().to_bytes()
    path = tmp_path / f"profile-{hashlib.sha256(data).hexdigest()}.safetensors"
    path.write_bytes(data)
    return path


def lies_in_map_of(values: np.ndarray, path: Path) -> bool:
    address = values.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        begin, end = (int(edge, 16) for edge in span.split("-"))
        if begin <= address < end:
            return name.removesuffix(" (deleted)") == str(path)
    return False


def test_a_file_named_by_its_content_is_mapped_and_nothing_is_copied(named: Path) -> None:
    profile = Profile.read(named)
    for target in profile.targets:
        for field in FIELDS:
            values = profile.require(target.name, field)
            assert lies_in_map_of(values, named)
            assert not values.flags.writeable


def test_a_file_of_another_name_is_read_for_it_may_be_written_to(named: Path) -> None:
    path = named.rename(named.parent / "p.safetensors")
    profile = Profile.read(path)
    before = profile.to_bytes()
    assert not lies_in_map_of(profile.require("layers.0.query", "hits"), path)
    path.write_bytes(b"")
    assert profile.to_bytes() == before


def test_a_map_holds_no_descriptor_and_survives_its_file(named: Path) -> None:
    before, descriptors = named.read_bytes(), os.listdir("/proc/self/fd")
    profile = Profile.read(named)
    assert os.listdir("/proc/self/fd") == descriptors
    replacement = named.with_name("other")
    replacement.write_bytes(b"other")
    os.replace(replacement, named)
    assert profile.to_bytes() == before
    named.unlink()
    assert profile.to_bytes() == before


def test_a_map_is_given_back_with_the_last_array_that_looks_at_it(named: Path) -> None:
    def is_mapped() -> bool:
        return str(named) in Path("/proc/self/maps").read_text()

    values = Profile.read(named).require("layers.0.query", "hits")
    copy = values.tolist()
    assert is_mapped()
    assert values.tolist() == copy
    del values
    assert not is_mapped()


def test_arrays_of_a_map_may_be_read_while_the_process_ends(named: Path) -> None:
    code = (
        "import atexit, weakref, sys\n"
        "from spaces.profile import Profile\n"
        "profile = Profile.read(sys.argv[1])\n"
        "values = profile.require('layers.0.query', 'hits')\n"
        "atexit._run_exitfuncs()\n"
        "weakref.finalize._exitfunc()\n"
        "print(values.sum())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(named)], capture_output=True, text=True, check=False
    )
    total = drawn_profile().require("layers.0.query", "hits").sum()
    assert (done.returncode, done.stdout) == (0, f"{total}\n")


def test_a_cut_or_changed_file_that_is_mapped_is_refused_by_its_hash(named: Path) -> None:
    data = named.read_bytes()
    for damaged in (data[:-1], data[:100], b"", data + b"\0", data[:-1] + b"\xff"):
        named.unlink()
        named.write_bytes(damaged)
        with pytest.raises(ProfileError, match="SHA-256 is not the one in its name"):
            Profile.read(named)


def test_where_a_file_cannot_be_mapped_it_is_read(
    named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "address_of", lambda *_: None)
    assert Profile.read(named).to_bytes() == named.read_bytes()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    for name in ("p.safetensors", f"profile-{'0' * 64}.safetensors"):
        (tmp_path / name).mkdir()
        with pytest.raises(ProfileError, match=r"cannot be read \(not a file\)"):
            Profile.read(tmp_path / name)
