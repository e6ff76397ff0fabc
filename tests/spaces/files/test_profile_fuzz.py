"""Profile files that somebody has spoilt: refused in one line, or as good as any other.

The same is tried on many more inputs by benchmarks/fuzz_profiles.py.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spaces.errors import ProfileError, RanksweepError
from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import FIELDS, ModuleProfile, Profile
from spaces.target import TargetModule

CHOICES = [
    parse_choice(keys)
    for keys in (
        {"method": "pilora", "rank": 2},
        {"method": "pilora", "rank": 2, "partition": {"rule": "cumulative"}},
        {"method": "taso", "scope": "model", "top_percent": 10},
        {"method": "sensitivity", "mean_rank": 2},
        {"method": "joint", "mean_rank": 2, "top_percent": 10},
    )
]
TARGETS = (TargetModule("a.query", (6, 4)), TargetModule("b", (3, 8), ("b", "c")))


def whole_profile(**metadata: Any) -> Profile:
    """A profile whose counts are those of real masks."""
    rng = np.random.default_rng(0)
    modules = {}
    for target in TARGETS:
        masks = rng.random((2, *target.shape)) < np.array([0.1, 0.4])[:, None, None]
        rows, cols = masks.sum(axis=2), masks.sum(axis=1)
        modules[target.name] = ModuleProfile(
            hits=rng.integers(0, 6, target.shape[0]).astype(np.int32),
            row_importance=rng.random(target.shape[0]).astype(np.float32),
            sensitivity_row_count=rows,
            sensitivity_col_count=cols,
            gradient_row_count=rows,
            gradient_col_count=cols,
            hessian_diag=rng.random(target.shape[1]).astype(np.float32),
        )
    return Profile(TARGETS, 5, (2.0, 10.0), modules, metadata)


BY_HAND = whole_profile().to_bytes()
COMPUTED = whole_profile(versions={"torch": "2.13.0"}).to_bytes()

FEW = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

sizes = st.integers(-2, 40) | st.sampled_from([2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64])
values = st.recursive(
    st.none() | st.booleans() | sizes | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


def parts_of(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return header, json.loads(header["__metadata__"]["ranksweep"]), data[end:]


def file_of(header: dict[str, Any], metadata: Any, tensors: bytes) -> bytes:
    header = {**header, "__metadata__": {"ranksweep": json.dumps(metadata)}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def assert_refused_or_as_good_as_any(data: bytes) -> None:
    try:
        profile = Profile.from_bytes(data, "p")
    except ProfileError as error:
        assert str(error).startswith("p: ")  # noqa: PT017 - an input may also be good
        assert str(error).isprintable()  # noqa: PT017
        return
    assert_equal_to_what_the_peer_reads(profile, data)
    again = Profile.from_bytes(profile.to_bytes(), "written again")
    assert again.to_bytes() == profile.to_bytes()
    assert (again.targets, again.metadata) == (profile.targets, profile.metadata)
    for choice in CHOICES:
        try:
            plan = make_plan(choice, profile.targets, profile)
        except RanksweepError:
            continue
        assert plan.targets == profile.targets


def assert_equal_to_what_the_peer_reads(profile: Profile, data: bytes) -> None:
    held = {
        f"{name}/{field}": getattr(module, field)
        for name, module in profile.modules.items()
        for field in FIELDS
        if getattr(module, field) is not None
    }
    assert held.keys() == dict(safetensors.deserialize(data)).keys()
    if '"BF16"' in data.decode(errors="replace"):
        return  # numpy, and so the peer, has no such numbers
    for name, read in safetensors.numpy.load(data).items():
        np.testing.assert_array_equal(held[name], read.astype(held[name].dtype))


@given(
    data=st.sampled_from([BY_HAND, COMPUTED]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    end=st.floats(0.9, 1),
    tail=st.binary(max_size=8),
)
@FEW
def test_changed_cut_and_lengthened_bytes(
    data: bytes, changes: list[tuple[float, int]], end: float, tail: bytes
) -> None:
    changed = bytearray(data)
    for place, value in changes:
        changed[int(place * (len(data) - 1))] = value
    assert_refused_or_as_good_as_any(bytes(changed))
    assert_refused_or_as_good_as_any(bytes(changed[: int(end * len(data))]))
    assert_refused_or_as_good_as_any(bytes(changed) + tail)


@given(cut=st.integers(0, len(BY_HAND)), joint=st.integers(0, len(COMPUTED)))
@FEW
def test_the_beginning_of_one_file_and_the_end_of_another(cut: int, joint: int) -> None:
    assert_refused_or_as_good_as_any(BY_HAND[:cut] + COMPUTED[joint:])


@given(data=st.data())
@FEW
def test_a_header_of_other_fields_shapes_and_offsets(data: st.DataObject) -> None:
    header, metadata, tensors = parts_of(data.draw(st.sampled_from([BY_HAND, COMPUTED])))
    names = [name for name in header if name != "__metadata__"]
    for _ in range(data.draw(st.integers(1, 3))):
        entry = header[data.draw(st.sampled_from(names))]
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        entry[key] = data.draw(
            st.sampled_from([header[name][key] for name in names])
            | st.lists(sizes, min_size=2, max_size=2)
            | values
        )
    assert_refused_or_as_good_as_any(file_of(header, metadata, tensors))


@given(data=st.data())
@FEW
def test_metadata_of_other_values(data: st.DataObject) -> None:
    header, metadata, tensors = parts_of(data.draw(st.sampled_from([BY_HAND, COMPUTED])))
    place = data.draw(st.sampled_from([metadata, *metadata["modules"]]))
    place[data.draw(st.sampled_from([*place, "more"]))] = data.draw(values)
    assert_refused_or_as_good_as_any(file_of(header, metadata, tensors))


@given(values)
@FEW
def test_metadata_of_any_json(value: Any) -> None:
    header, _, tensors = parts_of(BY_HAND)
    assert_refused_or_as_good_as_any(file_of(header, value, tensors))


@given(data=st.data())
@FEW
def test_tensors_of_any_bits(data: st.DataObject) -> None:
    header, metadata, tensors = parts_of(BY_HAND)
    entry = header[data.draw(st.sampled_from([n for n in header if n != "__metadata__"]))]
    begin, end = entry["data_offsets"]
    other = data.draw(st.binary(min_size=end - begin, max_size=end - begin))
    assert_refused_or_as_good_as_any(
        file_of(header, metadata, tensors[:begin] + other + tensors[end:])
    )


@given(data=st.data())
@settings(FEW, max_examples=40)
def test_importances_of_any_size_give_plans(data: st.DataObject) -> None:
    """Every float32 from 0 to the largest is an importance, so none of them may be refused."""
    sound = whole_profile()
    importances = st.floats(0, width=32, allow_infinity=False) | st.sampled_from([0.0, 1e-45])
    modules = {
        target.name: ModuleProfile(
            **{
                field: getattr(sound.modules[target.name], field)
                for field in FIELDS
                if field not in ("row_importance", "hessian_diag")
            },
            row_importance=_drawn(data, importances, target.shape[0]),
            hessian_diag=_drawn(data, importances, target.shape[1]),
        )
        for target in TARGETS
    }
    written = Profile(TARGETS, 5, sound.top_percent_grid, modules, {}).to_bytes()
    profile = Profile.from_bytes(written, "p")
    assert profile.to_bytes() == written
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert_refused_or_as_good_as_any(written)


def _drawn(data: st.DataObject, numbers: st.SearchStrategy[float], size: int) -> np.ndarray:
    return np.array(data.draw(st.lists(numbers, min_size=size, max_size=size)), dtype=np.float32)
