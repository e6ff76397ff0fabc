"""Plans: what goes into one, its digest and its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from spaces.errors import ChoiceError
from spaces.plan import Block, Plan, all_indices
from spaces.target import TargetModule

TARGETS = (TargetModule("a", (4, 3)), TargetModule("b.c", (3, 5), ("b.c", "b.d")))


def indices(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def block(**keys: Any) -> Block:
    return Block(**{"rank": 2, "rows": indices(0, 2), "cols": indices(1), "scale": 0.1, **keys})


def plan() -> Plan:
    return Plan.of([{"b.c": [block(), block(rank=1, lr_scale=1.5)], "a": [block()]}, {}], TARGETS)


def test_modules_stand_in_the_order_of_the_targets_and_empty_stages_stay() -> None:
    assert [list(stage) for stage in plan().stages] == [["a", "b.c"], []]


def test_a_block_that_holds_nothing_is_left_out() -> None:
    empty = [block(rows=indices()), block(cols=indices()), block(rank=0)]
    assert Plan.of([{"a": empty, "b.c": [*empty, block()]}], TARGETS).summary()["stages"] == [
        {"modules": {"b.c": [{"rank": 2, "rows": 2, "cols": 1, "scale": 0.1, "lr_scale": 1.0}]}}
    ]


def test_the_file_holds_the_tensors_and_metadata_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "plan.safetensors"
    plan().write(path)
    with safe_open(path, framework="numpy") as file:
        assert sorted(file.keys()) == sorted(
            f"stage0/{module}/block{number}/{axis}"
            for module, number in (("a", 0), ("b.c", 0), ("b.c", 1))
            for axis in ("rows", "cols")
        )
        rows = file.get_tensor("stage0/b.c/block1/rows")
        metadata = json.loads(file.metadata()["ranksweep"])
    assert rows.dtype == np.int32
    assert rows.tolist() == [0, 2]
    assert metadata["stages"][0]["modules"]["b.c"] == [
        {"rank": 2, "scale": 0.1, "lr_scale": 1.0},
        {"rank": 1, "scale": 0.1, "lr_scale": 1.5},
    ]
    assert [target["shape"] for target in metadata["targets"]] == [[4, 3], [3, 5]]


def test_the_full_range_is_written_out(tmp_path: Path) -> None:
    whole = Plan.of([{"a": [block(rows=all_indices(4), cols=all_indices(3))]}], TARGETS)
    tensors = safetensors.numpy.load(whole.to_bytes())
    assert tensors["stage0/a/block0/rows"].tolist() == [0, 1, 2, 3]
    assert tensors["stage0/a/block0/cols"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "changed",
    [
        {"rank": 1},
        {"rows": indices(0, 3)},
        {"rows": indices(0)},
        {"cols": indices(2)},
        {"scale": np.nextafter(0.1, 1)},
        {"lr_scale": 1.0000000000000002},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_digest_tells_every_part_apart(changed: dict[str, Any]) -> None:
    one = Plan.of([{"a": [block()]}], TARGETS)
    other = Plan.of([{"a": [block(**changed)]}], TARGETS)
    assert one.digest != other.digest
    assert other.digest == Plan.from_bytes(other.to_bytes()).digest


def test_digest_tells_stages_modules_and_targets_apart() -> None:
    plans = [
        Plan.of([{"a": [block()]}], TARGETS),
        Plan.of([{"a": [block()]}, {}], TARGETS),
        Plan.of([{}, {"a": [block()]}], TARGETS),
        Plan.of([{"b.c": [block()]}], TARGETS),
        Plan.of([{"a": [block()]}], TARGETS[:1]),
        Plan.of([{"a": [block(), block()]}], TARGETS),
    ]
    assert len({one.digest for one in plans}) == len(plans)


def test_digest_does_not_depend_on_the_layout_of_the_file() -> None:
    data = plan().to_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    spaced = json.dumps(json.loads(header["__metadata__"]["ranksweep"]), indent=1)
    tensors = dict(reversed(safetensors.numpy.load(data).items()))
    rewritten = safetensors.numpy.save(tensors, metadata={"ranksweep": spaced, "other": "x"})
    assert rewritten != data
    assert Plan.from_bytes(rewritten).digest == plan().digest


def test_the_digest_of_a_plan_stays_what_it_is() -> None:
    # Results are found again by it: a new value here orphans every run that was logged before.
    assert plan().digest == "2b3b04642e3fcf4cff23bb2669f8bc42e5d10e62321ca6ac180a5b9ee410c7f3"


def test_a_plan_of_nothing_survives_its_file() -> None:
    empty = Plan.of([{}, {}], TARGETS)
    again = Plan.from_bytes(empty.to_bytes())
    assert (again.digest, len(again.stages), again.peak_trainable_params) == (empty.digest, 2, 0)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"a": [block(rows=indices(0, 4))]}, "stage0/a/block0/rows: .* within 0 to 3"),
        ({"a": [block(rows=indices(-1, 2))]}, "stage0/a/block0/rows: "),
        ({"a": [block(rows=indices(2, 0))]}, "stage0/a/block0/rows: "),
        ({"a": [block(), block(cols=indices(1, 1))]}, "stage0/a/block1/cols: "),
        ({"a": [block(rows=np.array([0, 2]))]}, "stage0/a/block0/rows: .* int32"),
        ({"a": [block(rank=4)]}, "stage0/a/block0/rank: 4 is above"),
        ({"z": [block()]}, "stage0/z: not a target module"),
    ],
)
def test_impossible_blocks_are_refused(blocks: dict[str, list[Block]], message: str) -> None:
    with pytest.raises(ChoiceError, match=message):
        Plan.of([blocks], TARGETS)


def test_files_that_are_no_plans_are_refused_in_one_line(tmp_path: Path) -> None:
    good = plan().to_bytes()
    tensors = safetensors.numpy.load(good)
    bad = {
        "empty": b"",
        "cut": good[:-3],
        "text": b"rank: 8\nalpha: 16\n" * 9,
        "no metadata": safetensors.numpy.save(tensors),
        "not json": safetensors.numpy.save(tensors, metadata={"ranksweep": "{"}),
        "no stages": safetensors.numpy.save(tensors, metadata={"ranksweep": "{}"}),
        "missing tensor": good.replace(b"stage0/a/block0/cols", b"stage0/a/block9/cols", 1),
    }
    for name, data in bad.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ChoiceError, match=r"not a plan file|belongs to no block") as caught:
            Plan.read(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    with pytest.raises(ChoiceError, match="cannot be read"):
        Plan.read(tmp_path / "absent")


def test_a_tensor_that_belongs_to_no_block_is_refused() -> None:
    data = plan().to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    extra = {**safetensors.numpy.load(data), "stage7/a/block0/rows": indices(0)}
    spoiled = safetensors.numpy.save(extra, metadata=header["__metadata__"])
    with pytest.raises(ChoiceError, match="stage7/a/block0/rows belongs to no block"):
        Plan.from_bytes(spoiled)
