"""The weights that a warm clone starts from are fetched once, and kept until its trial is over."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from search.launch import warm_weights as warm
from search.launch.warm_weights import WarmFiles
from search.paths import SweepPaths
from search.study.requests import Request
from search.study.warm_clone import Source
from search.tracking.weights import WeightFiles
from spaces.errors import UsageError
from spaces.methods.registry import parse_choice
from spaces.planner import Planner
from tests.search.toy_search import TARGETS, toy_profile
from tests.trainables.trained.test_weights import FACTS
from trainables.trained.weights import Trained, read_trained

PLANNER = Planner(TARGETS, toy_profile())
LORA = parse_choice({"method": "lora", "rank": 2, "alpha": 8.0})
REQUEST = Request("1-a", "clone", 3, {}, warm=True)


def source(state: str | None = "complete", **changed: Any) -> Source:
    return Source(
        **{"number": 3, "choice": LORA, "run_id": None, "driver": None, **changed}, state=state
    )


def weights() -> Trained:
    """Ones for all blocks of `LORA`."""
    tensors = {}
    for target in TARGETS:
        out, in_ = target.shape
        tensors[f"stage0/{target.name}/block0/A"] = torch.ones(2, in_)
        tensors[f"stage0/{target.name}/block0/B"] = torch.ones(out, 2)
    return Trained(FACTS, tensors, {"classifier": {"bias": torch.ones(2)}})


def fetched(files: WarmFiles, of: Source, plan: Any) -> Path:
    give_up = time.monotonic() + 30
    while (file := files.file(REQUEST, of, plan)) is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return file


def test_kept_weights_are_scaled_and_kept_for_a_launch_that_goes_on(
    tmp_path: Path, database: str
) -> None:
    paths = SweepPaths(tmp_path / ".ranksweep", "toy")
    files = WarmFiles(paths, PLANNER, None, database)
    kept = WeightFiles(paths.weights, "trial")
    kept.keep(3, weights().to_bytes())
    plan = PLANNER.plan(LORA.model_copy(update={"alpha": 16.0}))
    assert files.agree(source(), plan) == "4 of 4 blocks start from its weights"
    file = fetched(files, source(), plan)
    start = read_trained(file.read_bytes())
    assert {float(tensor.max()) for name, tensor in start.weights.items() if name[-1] == "A"} == {1}
    assert {float(tensor.max()) for name, tensor in start.weights.items() if name[-1] == "B"} == {
        0.5
    }
    assert start.head["classifier"]["bias"].tolist() == [1.0, 1.0]

    kept.file(3).unlink()
    resumed = WarmFiles(paths, PLANNER, None, database)
    assert resumed.file(REQUEST, source(), plan) == file
    resumed.close({"another"})
    assert file.is_file()
    resumed.close({REQUEST.id})
    assert not file.exists()


@pytest.mark.parametrize("state", ["pruned", "failed", "stopped", "interrupted"])
def test_a_trial_without_weights_is_refused_at_once(
    tmp_path: Path, database: str, state: str
) -> None:
    files = WarmFiles(SweepPaths(tmp_path, "toy"), PLANNER, None, database)
    with pytest.raises(UsageError, match=f"--warm: trial 3 is {state}, and its weights are gone"):
        files.agree(source(state), PLANNER.plan(LORA))


def test_weights_that_nobody_has_kept_are_said_to_be_gone(tmp_path: Path, database: str) -> None:
    files = WarmFiles(SweepPaths(tmp_path, "toy"), PLANNER, None, database)
    plan = PLANNER.plan(LORA)
    with pytest.raises(UsageError, match="--warm: trial 3 has kept no weights; clone one that"):
        fetched(files, source(), plan)
    again = WarmFiles(SweepPaths(tmp_path, "toy"), PLANNER, None, database)
    with pytest.raises(UsageError, match="--warm: the weights of trial 3 cannot be had"):
        fetched(again, source(run_id="0" * 32), plan)


def test_whatever_goes_wrong_is_told_and_not_waited_for(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is no safetensors, say, or a library raises what nobody has thought of."""

    def read(*_: Any, **__: Any) -> Trained:
        raise KeyError("of a library")

    monkeypatch.setattr(warm, "read_trained", read)
    paths = SweepPaths(tmp_path, "toy")
    WeightFiles(paths.weights, "trial").keep(3, weights().to_bytes())
    files = WarmFiles(paths, PLANNER, None, database)
    with pytest.raises(UsageError, match=r"the weights of trial 3 cannot be had .*of a library"):
        fetched(files, source(), PLANNER.plan(LORA))
