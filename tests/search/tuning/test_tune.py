"""Searches through Ray Tune over the real job queue, with a group that trains on paper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from optuna.trial import TrialState
from ray import tune
from ray.util import placement_group_table

from search.config.sweep import StopWhenSettings
from search.interrupts import Interrupts
from search.study.standing import interrupted
from search.tuning.searcher import StudySearcher
from search.tuning.tune import TuneOutcome, tune_search
from spaces.errors import ConfigError
from tests.search.toy_search import (
    PaperGroup,
    handed_out,
    searcher_over,
    toy_space,
    toy_study,
)
from trainables.resident.queue import start_job_queue

ASHA = {"name": "asha", "grace_epochs": 1, "reduction_factor": 3}
EPOCHS = 3


class Notebook:
    """An observer that writes down what it is told, and breaks once."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.placement_groups: list[int] = []
        self.began: dict[int, int] = {}
        self.epochs: dict[int, list[int]] = {}
        self.ended: dict[int, tuple[str, dict[str, Any], str | None]] = {}

    def trial_started(self, number: int, choice: Any, plan: Any) -> None:
        self.started.append(number)
        self.placement_groups.append(len(live_placement_groups()))
        if len(self.started) == 1:
            raise RuntimeError("the tracking server is away")

    def trial_began(self, number: int, at_ms: int) -> None:
        assert number in self.started
        assert number not in self.epochs, "told before anything else of it"
        self.began[number] = at_ms

    def trial_epoch(self, number: int, epoch: int, metrics: Any) -> None:
        self.epochs.setdefault(number, []).append(epoch)

    def trial_ended(self, number: int, state: str, metrics: Any, error: str | None) -> None:
        assert number not in self.ended
        self.ended[number] = (state, dict(metrics), error)


@contextmanager
def paper_group(script: dict[int, str]) -> Iterator[tuple[Any, list[tuple[str, int, str]]]]:
    """A queue with one group; what the group did is in the list once the block is left."""
    queue = start_job_queue()
    group = ray.remote(PaperGroup).options(num_cpus=0).remote(script)
    log: list[tuple[str, int, str]] = []
    serving = group.serve.remote(queue)
    try:
        yield queue, log
        ray.get(queue.close.remote())
        log.extend(ray.get(serving, timeout=20))
    finally:
        ray.kill(group)
        ray.kill(queue)


def search(searcher: StudySearcher, queue: Any, folder: Path, **settings: Any) -> TuneOutcome:
    defaults: dict[str, Any] = {
        "scheduler": ASHA,
        "max_concurrent_trials": 2,
        "time_budget": None,
        "storage_path": folder / "tune",
        "name": "toy",
    }
    with Interrupts() as interrupts:
        settings = {**defaults, "interrupts": interrupts, **settings}
        return tune_search(searcher=searcher, queue=queue, **settings)


class Kept(tune.Callback):
    """What Tune still holds of the metrics of its trials when the search ends."""

    def __init__(self) -> None:
        self.of_trial: dict[int, dict[str, Any]] = {}

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        for trial in trials:
            held = {**trial.metric_analysis, **trial.metric_n_steps}
            self.of_trial[trial.config["number"]] = held

    def __getstate__(self) -> dict[str, Any]:
        return {}


def wait_for(condition: Any, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.1)


def live_placement_groups() -> list[Any]:
    return [g for g in placement_group_table().values() if g["state"] != "REMOVED"]


@pytest.mark.ray
def test_a_search_that_expects_little_more_ends_and_says_so(
    ray_cluster: None, tmp_path: Path
) -> None:
    easily = StopWhenSettings(improvement_below=1e3, trials=3)
    study = toy_study(tmp_path, sampler="random")
    searcher = searcher_over(
        study, toy_space("lora"), epochs=1, trials=40, sampler="random", stop_when=easily
    )
    with paper_group({}) as (queue, _):
        outcome = search(searcher, queue, tmp_path, scheduler=None)
    assert outcome.ended_by == "stop_when"
    assert str(outcome.reason).startswith("search.stop_when: the next 3 trials are expected")
    assert 6 <= outcome.count("complete") == len(outcome.trials) < 12


@pytest.mark.ray
def test_a_search_ends_with_a_study_that_is_true_to_the_trial(
    ray_cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Even trials are LoRA, odd ones TASO with its two stages.
    script = {2: "bad", 3: "bad", 4: "fail", 5: "nan", 6: "die", 7: "bad", 8: "dip", 9: "inf"}
    space = toy_space("lora", "taso")
    study = toy_study(tmp_path)
    first = [space.default_choice("lora"), space.default_choice("taso")]
    searcher = searcher_over(study, space, trials=10, enqueue=first)
    notebook, kept = Notebook(), Kept()
    free = ray.available_resources()["CPU"]
    with paper_group(script) as (queue, log):
        # One at a time, so that the first of the rungs is a good one.
        settings = {"max_concurrent_trials": 1, "callbacks": [kept]}
        outcome = search(searcher, queue, tmp_path, observer=notebook, **settings)
    # Nothing is left behind, and nothing was printed.
    wait_for(lambda: ray.available_resources().get("CPU") == free)
    assert live_placement_groups() == []
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err

    assert outcome.ended_by == "trials"
    assert [trial.number for trial in outcome.trials] == list(range(10))
    assert {trial.number: trial.state for trial in outcome.trials} == {
        0: "complete",
        1: "complete",
        2: "pruned",
        3: "pruned",
        4: "failed",
        5: "failed",
        6: "complete",
        7: "pruned",
        8: "complete",
        9: "failed",
    }
    states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    worked = {name: (epochs, end) for name, epochs, end in log}
    for ended in outcome.trials:
        trial = study.trials[ended.number]
        assert trial.state.name == states[ended.state]
        told, metrics, error = notebook.ended[ended.number]
        assert told == ended.state
        assert error == ended.reason == trial.user_attrs.get("reason")
        assert notebook.epochs[ended.number] == list(trial.intermediate_values)
        epochs, end = worked[f"trial-{ended.number:05d}"]
        if ended.state == "complete":
            assert list(trial.intermediate_values) == [1, 2, 3]
            assert trial.value == trial.intermediate_values[3] == metrics["accuracy"]
            assert metrics["head_params"] == 34
            assert metrics["trainable_params"] == trial.user_attrs["trainable_params"]
            assert (epochs, end) == (3, "done")
        elif ended.state == "pruned":
            # A plan of two stages reaches its second one, which starts halfway through epoch 2.
            staged = trial.user_attrs["method"] == "taso"
            assert list(trial.intermediate_values) == ([1, 2] if staged else [1])
            # ASHA's word reached the worker before it had trained to the end.
            assert end == "cancelled"
            assert epochs < 3
    assert study.trials[4].user_attrs["reason"] == "RuntimeError: out of memory at step 3"
    assert study.trials[5].user_attrs["reason"] == "accuracy is nan after epoch 3"
    assert study.trials[9].user_attrs["reason"] == "accuracy is inf after epoch 3"
    assert [t.user_attrs["method"] for t in study.trials] == ["lora", "taso"] * 5
    assert sorted(notebook.started) == list(range(10))
    assert sorted(notebook.began, key=notebook.began.__getitem__) == list(range(10))
    assert searcher.counts == {"lora": 5, "taso": 5}

    written = [path for path in (tmp_path / "tune").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in written) < 20_000 * len(outcome.trials)
    # A long search must not keep more and more of trials that are over.
    assert kept.of_trial == {number: {} for number in range(10)}


@pytest.mark.ray
def test_a_stopped_trial_gives_its_placement_group_back_while_the_search_goes_on(
    ray_cluster: None, tmp_path: Path
) -> None:
    # Without reuse every trial has a placement group of its own: seven, were they not given back.
    searcher = searcher_over(toy_study(tmp_path), toy_space("lora"), trials=7)
    notebook = Notebook()
    with paper_group(dict.fromkeys(range(2, 7), "bad")) as (queue, _):
        settings = {"reuse_actors": False, "max_concurrent_trials": 1}
        outcome = search(searcher, queue, tmp_path, observer=notebook, **settings)
    assert (outcome.count("complete"), outcome.count("pruned")) == (2, 5)
    assert max(notebook.placement_groups) <= 3
    wait_for(lambda: live_placement_groups() == [])


@pytest.mark.ray
def test_two_objectives_search_with_and_without_a_scheduler(
    ray_cluster: None, tmp_path: Path
) -> None:
    objectives = ("accuracy", "trainable_params")
    space = toy_space("lora")
    study = toy_study(tmp_path, objectives)
    with paper_group({1: "bad", 2: "nan", 4: "bad"}) as (queue, log):
        searcher = searcher_over(study, space, objectives=objectives, trials=3)
        search(searcher, queue, tmp_path, scheduler={"name": "none"})
        searcher = searcher_over(study, space, objectives=objectives, trials=5)
        search(searcher, queue, tmp_path, name="again", max_concurrent_trials=1)
    trials = study.trials
    assert [t.state.name for t in trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "PRUNED"]
    for trial in trials:
        assert trial.intermediate_values == {}
        if trial.state == TrialState.COMPLETE:
            assert trial.values == [
                trial.user_attrs["curve"]["3"]["accuracy"],
                trial.user_attrs["trainable_params"],
            ]
    assert list(trials[4].user_attrs["curve"]) == ["1"]
    assert len(log) == 5


@pytest.mark.ray
def test_a_spent_time_budget_cancels_the_jobs_and_a_resumed_sweep_redoes_them(
    ray_cluster: None, tmp_path: Path
) -> None:
    study = toy_study(tmp_path)
    space = toy_space("lora")
    notebook = Notebook()
    with paper_group({1: "slow"}) as (queue, log):
        searcher = searcher_over(study, space, trials=4)
        started = time.monotonic()
        outcome = search(searcher, queue, tmp_path, time_budget=12, observer=notebook)
        assert outcome.seconds <= time.monotonic() - started < 25
    assert outcome.ended_by == "time_budget"
    # Trial 1 or, where that waited behind it, trial 2 as well.
    cut = [trial for trial in outcome.trials if trial.state == "cancelled"]
    done = [trial for trial in outcome.trials if trial.state == "complete"]
    assert 1 in {trial.number for trial in cut}
    assert len(cut) + len(done) == len(outcome.trials)
    for trial in cut:
        assert study.trials[trial.number].state == TrialState.FAIL
        assert trial.reason == "the time budget was spent"
        if trial.number in notebook.started:
            assert notebook.ended[trial.number][0] == "cancelled"
    for trial in done:
        assert study.trials[trial.number].state == TrialState.COMPLETE
    assert {entry[1:] for entry in log} <= {(EPOCHS, "done"), (0, "cancelled")}
    # A job may be done as the budget is spent, and its trial is cut all the same.
    assert len(done) <= [entry[2] for entry in log].count("done") <= len(outcome.trials)

    again = interrupted(study)
    assert again == [trial.choice for trial in cut]
    with paper_group({}) as (queue, log):
        searcher = searcher_over(study, space, trials=4, enqueue=again)
        resumed = search(searcher, queue, tmp_path)
    assert [trial.choice for trial in resumed.trials][: len(cut)] == again
    assert len(resumed.trials) == 4 - len(done)
    assert len(handed_out(study)) == 4
    assert interrupted(study) == []


@pytest.mark.ray
def test_a_reason_to_stop_ends_the_search(ray_cluster: None, tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study, toy_space("lora"), trials=4)
    notebook = Notebook()

    def workers_are_gone() -> str | None:
        return "every group is gone" if len(notebook.started) == 2 else None

    with paper_group({0: "slow", 1: "slow"}) as (queue, _):
        settings = {"observer": notebook, "should_stop": workers_are_gone}
        outcome = search(searcher, queue, tmp_path, **settings)
    assert (outcome.ended_by, outcome.reason) == ("stopped", "every group is gone")
    assert outcome.count("cancelled") == len(outcome.trials) == len(study.trials) == 2
    for trial in study.trials:
        assert trial.state == TrialState.FAIL
        assert trial.user_attrs["reason"] == "every group is gone"


@pytest.mark.ray
def test_ctrl_c_ends_the_search_with_nothing_left_running(
    ray_cluster: None, tmp_path: Path
) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study, toy_space("lora"), trials=4)
    before = signal.getsignal(signal.SIGINT)
    notebook = Notebook()

    def press_when_both_run() -> None:
        try:
            wait_for(lambda: len(notebook.started) == 2, seconds=40)
            time.sleep(1.0)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press_when_both_run)
    with paper_group({0: "slow", 1: "slow"}) as (queue, log):
        presser.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            search(searcher, queue, tmp_path, observer=notebook)
        assert time.monotonic() - started < 60  # an epoch of a slow trial takes a minute
        presser.join()
    assert signal.getsignal(signal.SIGINT) is before
    # What the group had taken was stopped in its first epoch.
    assert {entry[1:] for entry in log} == {(0, "cancelled")}
    assert [t.state.name for t in study.trials] == ["FAIL", "FAIL"]
    assert {number: told[0] for number, told in notebook.ended.items()} == {
        0: "cancelled",
        1: "cancelled",
    }
    assert len(interrupted(study)) == 2
    wait_for(lambda: live_placement_groups() == [])


@pytest.mark.ray
def test_a_trial_of_full_stages_is_trained_and_reported_to_its_own_end(
    ray_cluster: None, tmp_path: Path
) -> None:
    space = toy_space("lora", "taso", taso={"stage_steps": "full", "rounds": 1})
    first = [space.default_choice("lora"), space.default_choice("taso")]
    study = toy_study(tmp_path)
    searcher = searcher_over(study, space, trials=2, enqueue=first)
    with paper_group({}) as (queue, log):
        outcome = search(searcher, queue, tmp_path, scheduler=None)
    assert [trial.state for trial in outcome.trials] == ["complete", "complete"]
    assert [entry[1:] for entry in sorted(log)] == [(3, "done"), (6, "done")]
    curves = [sorted(trial.intermediate_values) for trial in study.trials]
    assert curves == [[1, 2, 3], [1, 2, 3, 4, 5, 6]]
    # On paper an epoch adds a tenth.
    assert [trial.value for trial in study.trials] == pytest.approx([0.8, 1.1])


def test_an_unknown_scheduler_is_refused_before_anything_starts(tmp_path: Path) -> None:
    searcher = searcher_over(toy_study(tmp_path), toy_space("lora"))
    with pytest.raises(ConfigError, match=r"^search\.scheduler\.name: 'pbt' is not a scheduler"):
        search(searcher, None, tmp_path, scheduler={"name": "pbt"})
    assert searcher.handed == 0


def test_a_trial_s_process_needs_none_of_the_heavy_packages() -> None:
    heavy = ("torch", "transformers", "deepspeed", "mlflow", "optuna")
    code = f"import sys, search.tuning; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
