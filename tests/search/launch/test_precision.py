"""Which precision a sweep that leaves it open gets, and that it stays the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from search.config.reading import parse_sweep
from search.config.sweep import SweepConfig
from search.launch.begun import Begun, dtype_as_begun
from search.launch.dry_run import dry_run
from search.launch.precision import bf16_gain, precision_of
from search.launch.prepare import prepare
from search.paths import SweepPaths
from spaces.target import TargetModule
from trainables.cache_folder import cache_folder

WIDE = (TargetModule("query", (384, 384)), TargetModule("dense", (1536, 384)))
NARROW = (TargetModule("query", (128, 128)),)


@dataclass
class Probe:
    """Stands for this machine: a CPU that multiplies bf16, and what a probe finds on it."""

    gain: float = 2.0
    asked: int = 0

    def __call__(self, shapes: Any, threads: int) -> float:
        self.asked += 1
        return self.gain


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Probe:
    probe = Probe()
    monkeypatch.setenv("RANKSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("search.launch.precision.computes_bf16", lambda: True)
    monkeypatch.setattr("search.launch.precision.bf16_gain", probe)
    monkeypatch.setattr("search.launch.precision.own_cpus", lambda: 4)
    return probe


def sweep(**sections: Any) -> SweepConfig:
    task = {"name": "movie", "data": {"train": "train.csv", "dev": "dev.csv"}, "text": "sentence"}
    return parse_sweep({"base": "hub:a/b", "task": task, "confirm": None, **sections})


@pytest.mark.parametrize(
    ("gain", "dtype"), [(1.19, "float32"), (1.2, "bfloat16"), (math.nan, "float32")]
)
def test_bf16_is_taken_where_it_is_1_2_times_faster_and_that_is_said(
    probe: Probe, gain: float, dtype: str
) -> None:
    probe.gain = gain
    found = precision_of(sweep(), WIDE)
    assert found.dtype == dtype
    assert (found.note is None) == (dtype == "float32")
    if found.note is not None:
        assert "bf16" in found.note
        assert "train.precision: fp32" in found.note
        assert "\n" not in found.note


@pytest.mark.parametrize(
    ("sections", "targets", "dtype"),
    [
        ({"train": {"precision": "fp32"}}, WIDE, "float32"),
        ({"train": {"precision": "fp16"}}, WIDE, "float16"),
        ({"cluster": {"address": "auto"}}, WIDE, "float32"),
        ({"cluster": {"address": "auto", "resources_per_worker": {"GPU": 1}}}, WIDE, "bfloat16"),
        ({"search": {"study": "postgresql://server/studies"}}, WIDE, "float32"),
        ({}, NARROW, "float32"),
        ({}, (), "float32"),
    ],
    ids=["fp32", "fp16", "other machines", "gpus", "shared study", "narrow", "no targets"],
)
def test_nothing_is_probed_where_the_sweep_or_the_place_decides(
    probe: Probe, sections: dict[str, Any], targets: tuple[TargetModule, ...], dtype: str
) -> None:
    assert precision_of(sweep(**sections), targets).dtype == dtype
    assert probe.asked == 0


def test_a_cpu_without_bf16_is_not_probed(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.launch.precision.computes_bf16", lambda: False)
    assert precision_of(sweep(), WIDE).dtype == "float32"
    assert probe.asked == 0


def test_what_was_found_once_holds_for_layers_and_threads_alike(probe: Probe) -> None:
    assert precision_of(sweep(), WIDE).dtype == "bfloat16"
    probe.gain = 1.0
    assert precision_of(sweep(), WIDE[::-1]).dtype == "bfloat16"
    assert probe.asked == 1
    assert precision_of(sweep(), WIDE[1:]).dtype == "float32"
    two = {"resources_per_worker": {"CPU": 2}}
    assert precision_of(sweep(cluster=two), WIDE).dtype == "float32"
    assert probe.asked == 3


def damaged(cache: Path) -> None:
    (file,) = cache.glob("precision/*.json")
    file.write_text("{")


def unwritable(cache: Path) -> None:
    for file in cache.glob("precision/*"):
        file.unlink()
    (cache / "precision").rmdir()
    (cache / "precision").write_text("in the way")


@pytest.mark.parametrize(("harm", "dtype"), [(damaged, "bfloat16"), (unwritable, "float32")])
def test_what_cannot_be_read_is_asked_anew_and_what_cannot_be_kept_is_not_used(
    probe: Probe, harm: Callable[[Path], None], dtype: str
) -> None:
    precision_of(sweep(), WIDE)
    harm(cache_folder())
    assert precision_of(sweep(), WIDE).dtype == dtype


def test_the_probe_compares_both_precisions() -> None:
    assert 0 < bf16_gain({(16, 16): 1}, 1) < math.inf


def films(tiny_sweep: dict[str, Any], folder: Path) -> SweepConfig:
    raw = {**tiny_sweep, "store": f"file://{folder}/store"}
    raw["tracking"] = {"uri": f"sqlite:///{folder}/mlflow.db"}
    return parse_sweep(raw)


def test_the_precision_is_in_the_profiles_key_and_said_by_a_dry_run(
    probe: Probe,
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = films(tiny_sweep, tmp_path)
    narrow = prepare(config)
    assert narrow.precision.dtype == "float32"
    monkeypatch.setattr("search.launch.precision.LEAST_WIDTH", 1)
    chosen = prepare(config)
    assert chosen.precision.dtype == "bfloat16"
    assert chosen.key != narrow.key
    assert prepare(config, "float32").key == narrow.key
    monkeypatch.chdir(tmp_path)
    assert chosen.precision.note in dry_run(config).notes


@pytest.mark.parametrize(
    ("recorded", "sections", "dtype"),
    [
        ("bfloat16", {}, "bfloat16"),
        ("bfloat16", {"cluster": {"address": "auto"}}, "bfloat16"),
        ("float32", {"cluster": {"resources_per_worker": {"GPU": 1}}}, "float32"),
        (None, {}, "float32"),
        (None, {"cluster": {"resources_per_worker": {"GPU": 1}}}, "bfloat16"),
        ("bfloat16", {"train": {"precision": "fp32"}}, "float32"),
    ],
    ids=["probed", "moved", "to GPUs", "older", "older on GPUs", "named"],
)
def test_a_sweep_goes_on_in_what_it_was_begun_with(
    probe: Probe, tmp_path: Path, recorded: str | None, sections: dict[str, Any], dtype: str
) -> None:
    paths = SweepPaths(tmp_path, name="movie")
    paths.make_sweep()
    Begun("b" * 8, "i" * 8, {}, dtype=recorded).write(paths)
    assert dtype_as_begun(sweep(**sections), paths) == dtype
    assert probe.asked == 0


def test_a_sweep_of_before_that_file_goes_on_as_it_was(probe: Probe, tmp_path: Path) -> None:
    assert dtype_as_begun(sweep(), SweepPaths(tmp_path, name="movie")) == "float32"
