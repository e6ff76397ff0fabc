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
from spaces.plan import Block, Plan, Tuner, all_indices
from spaces.target import TargetModule

TARGETS = (TargetModule("a", (4, 3)), TargetModule("b.c", (3, 5), ("b.c", "b.d")))


def indices(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def block(**keys: Any) -> Block:
    return Block(**{"rank": 2, "rows": indices(0, 2), "cols": indices(1), "scale": 0.1, **keys})


def tuned(**keys: Any) -> Plan:
    parts = {"name": "vera", "settings": {"rank": 4, "initial": 0.1}, "params": 15, **keys}
    return Plan.of_tuner(Tuner(**parts), TARGETS)


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
    assert tuned().digest == "63c511daae2a37d2f7f0e0b7864fd5b72d8208ab29ea525b5c1be5f69260bf64"


def test_strided_indices_survive_the_file() -> None:
    target = TargetModule("m", (8, 6))
    block = Block(1, all_indices(8)[::2], all_indices(6)[1::2], 1.0)
    plan = Plan.of([{"m": [block]}], [target])
    again = Plan.from_bytes(plan.to_bytes())
    assert again.digest == plan.digest
    assert again.stages[0]["m"][0].rows.tolist() == [0, 2, 4, 6]
    assert again.stages[0]["m"][0].cols.tolist() == [1, 3, 5]


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


def test_a_tuner_survives_its_file_with_the_types_of_its_settings(tmp_path: Path) -> None:
    settings = {"rank": 4, "alpha": 16.0, "modules": '["a", "b.c"]', "gated": True}
    written = tuned(settings=settings)
    written.write(tmp_path / "plan.safetensors")
    again = Plan.read(tmp_path / "plan.safetensors")
    assert again.tuner == written.tuner
    assert again.tuner is not None
    types = {key: type(value) for key, value in again.tuner.settings.items()}
    assert types == {"rank": int, "alpha": float, "modules": str, "gated": bool}
    assert (again.digest, again.targets) == (written.digest, TARGETS)


def test_a_tuner_is_counted_and_told_in_the_summary_and_the_metadata() -> None:
    made = tuned()
    assert made.trainable_params == made.peak_trainable_params == 15
    described = {"name": "vera", "settings": {"initial": 0.1, "rank": 4}, "params": 15}
    assert made.summary()["tuner"] == described
    assert list(made.summary()["tuner"]["settings"]) == ["initial", "rank"]
    header = json.loads(made.to_bytes()[8:])
    metadata = json.loads(header["__metadata__"]["ranksweep"])
    assert metadata["tuner"] == described
    assert metadata["stages"] == [{"modules": {}}]
    assert "tuner" not in plan().summary()


def test_digest_tells_every_part_of_a_tuner_apart() -> None:
    plans = [
        tuned(),
        tuned(name="ia3"),
        tuned(params=16),
        tuned(settings={"rank": 4, "initial": 0.2}),
        tuned(settings={"rank": 4}),
        tuned(settings={"rank": 4.5, "initial": 0.1}),
        Plan.of([{}], TARGETS),
    ]
    assert len({one.digest for one in plans}) == len(plans)
    swapped = tuned(settings={"initial": 0.1, "rank": 4})
    assert swapped.digest == tuned().digest, "the order of the settings says nothing"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"settings": {"rank": None}}, "tuner/rank: 'None' is refused"),
        ({"settings": {"ranks": [1, 2]}}, "tuner/ranks: "),
        ({"settings": {"alpha": float("nan")}}, "tuner/alpha: 'nan' is refused"),
        ({"settings": {"alpha": float("inf")}}, "tuner/alpha: 'inf' is refused"),
        ({"params": -1}, "tuner/params: -1 is below 0"),
    ],
)
def test_impossible_tuners_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ChoiceError, match=message):
        tuned(**parts)


@pytest.mark.parametrize(
    "tuner",
    [
        None,
        3,
        [],
        "vera",
        {},
        {"name": "vera", "settings": {}},
        {"name": 3, "settings": {}, "params": 1},
        {"name": "vera", "settings": [], "params": 1},
        {"name": "vera", "settings": {}, "params": "1"},
        {"name": "vera", "settings": {}, "params": True},
        {"name": "vera", "settings": {}, "params": 1.5},
        {"name": "vera", "settings": {}, "params": -1},
        {"name": "vera", "settings": {"a": None}, "params": 1},
        {"name": "vera", "settings": {"a": float("nan")}, "params": 1},
        {"name": "vera", "settings": {"a": {"b": 1}}, "params": 1},
    ],
    ids=repr,
)
def test_a_file_whose_tuner_is_broken_is_refused_in_one_line(tuner: object) -> None:
    with pytest.raises(ChoiceError) as caught:
        Plan.from_bytes(with_tuner(Plan.of([{}], TARGETS), tuner), "some.file")
    assert "\n" not in str(caught.value)


def with_tuner(of: Plan, tuner: object) -> bytes:
    """The file of a plan whose metadata says that it has this tuner."""
    data = of.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = json.loads(header["__metadata__"]["ranksweep"])
    text = json.dumps({**metadata, "tuner": tuner})
    return bytes(safetensors.numpy.save(safetensors.numpy.load(data), {"ranksweep": text}))


@pytest.mark.parametrize(
    "beside", [plan(), Plan.of([], TARGETS), Plan.of([{}, {}], TARGETS)], ids=["blocks", "0", "2"]
)
def test_a_tuner_beside_blocks_or_stages_is_refused(beside: Plan) -> None:
    tuner = {"name": "vera", "settings": {}, "params": 1}
    with pytest.raises(
        ChoiceError, match=r"some\.file: not a plan file \(a tuner beside blocks or other"
    ):
        Plan.from_bytes(with_tuner(beside, tuner), "some.file")
