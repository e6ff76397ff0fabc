"""Cheap looks: who goes on from one share of the rows to the next, and what is kept of the rest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from search.study.curves import looks_of
from search.study.ranking import best_of_each_method
from search.study.standing import interrupted
from search.tuning.asha import PastTrial, RowsAsha
from search.tuning.rungs import Contender, Rungs
from search.tuning.searcher import StudySearcher
from search.tuning.trial import JobOfTrial, job_name, trial_of_job
from tests.search.toy_search import ACCURACY, searcher_over, toy_space, toy_study
from tests.search.tuning.test_tune import paper_group, search

ROWS = {"rows": (0.1, 0.3, 1.0)}


def test_after_a_look_a_trial_is_compared_with_its_arm_at_that_share_alone() -> None:
    arms: dict[str, Contender] = {}
    asha = RowsAsha("accuracy", Rungs(ACCURACY, 3), arms.get)

    def look(name: str, share: float, accuracy: float, arm: str = "lora") -> str:
        arms[name] = Contender(arm, 100, stages=2, length=2)
        trial = SimpleNamespace(trial_id=name, config={})
        row = {"look": share, "epoch": 0, "accuracy": accuracy}
        return asha.on_trial_result(None, trial, row)

    asha.add_past(
        [PastTrial("0", Contender("lora", 100), {1: 0.9, 2: 0.9}, {0.1: 0.5, 0.3: 0.6}, False)]
    )
    assert look("a", 0.1, 0.4) == "STOP"
    assert look("b", 0.1, 0.5) == "CONTINUE"
    assert look("b", 0.3, 0.5) == "STOP"
    assert look("c", 0.1, 0.1, "taso") == "CONTINUE"
    assert look("c", 0.3, 0.1, "taso") == "CONTINUE"
    # On all rows it trains to its end, whatever it is.
    full = {"epoch": 1, "accuracy": 0.0}
    trial = SimpleNamespace(trial_id="c", config={})
    assert asha.on_trial_result(None, trial, full) == "CONTINUE"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"number": 12}, JobOfTrial(12)),
        ({"number": 12, "rows": 0.1}, JobOfTrial(12, rows=0.1)),
        ({"number": 1, "rows": 1e-05}, JobOfTrial(1, rows=1e-05)),
        ({"number": 3, "seed": 7}, JobOfTrial(3, 7)),
    ],
)
def test_the_name_of_a_job_tells_what_it_is_of(arguments: dict[str, Any], told: JobOfTrial) -> None:
    assert trial_of_job(job_name(**arguments)) == told


def test_a_study_counts_full_rows_alone_and_keeps_the_looks(tmp_path: Path) -> None:
    objectives = ("accuracy", "trainable_params")
    space, study = toy_space("lora"), toy_study(tmp_path, objectives)
    searcher = searcher_over(
        study, space, trials=3, fidelity=ROWS, objectives=objectives, repeats=(1, 1)
    )
    suggested = searcher.suggest("stopped")
    assert isinstance(suggested, dict)
    assert suggested["rows"] == [0.1, 0.3, 1.0]
    searcher.on_trial_complete("stopped", {"look": 0.1, "epoch": 0, "accuracy": 0.95})
    searcher.suggest("whole")
    for share, value in ((0.1, 0.9), (0.3, 0.8)):
        searcher.on_trial_result("whole", {"look": share, "epoch": 0, "accuracy": value})
    for epoch in (1, 2):
        searcher.on_trial_result("whole", {"epoch": epoch, "accuracy": 0.5})
    searcher.on_trial_complete("whole", {"epoch": 3, "accuracy": 0.6})
    again = searcher.suggest("repetition")
    assert isinstance(again, dict)
    assert "rows" not in again, "a repetition trains on all rows at once"

    stopped, whole, _ = study.trials
    assert stopped.state == TrialState.PRUNED
    assert stopped.user_attrs["reason"] == "stopped after a look at 10% of the rows"
    assert looks_of(stopped) == {0.1: 0.95}
    assert (whole.state, whole.values[0]) == (TrialState.COMPLETE, 0.6)
    assert looks_of(whole) == {0.1: 0.9, 0.3: 0.8}
    assert [row.value for row in best_of_each_method(study, ACCURACY)] == [0.6]
    past = {each.name: each for each in searcher.past_trials()}
    assert [each.looks for each in past.values()] == [looks_of(stopped), looks_of(whole)]
    assert [each.was_stopped for each in past.values()] == [True, False]


class Notebook:
    """An observer that writes down in which order it is told what."""

    def __init__(self) -> None:
        self.told: dict[int, list[Any]] = {}

    def trial_started(self, number: int, choice: Any, plan: Any) -> None:
        self.told[number] = []

    def trial_began(self, number: int, at_ms: int) -> None:
        self.told[number].append("began")

    def trial_look(self, number: int, share: float, metrics: Any) -> None:
        self.told[number].append((share, metrics["accuracy"]))

    def trial_epoch(self, number: int, epoch: int, metrics: Any) -> None:
        self.told[number].append(epoch)

    def trial_ended(self, number: int, state: str, metrics: Any, error: str | None) -> None:
        self.told[number].append((state, metrics.get("accuracy"), error))


def shares_of(log: list[tuple[str, int, str]], number: int) -> list[tuple[float, int, str]]:
    """The jobs of a trial: the share of the rows, the epochs, how it ended."""
    jobs = [(trial_of_job(job), epochs, end) for job, epochs, end in log]
    return [(job.rows, epochs, end) for job, epochs, end in jobs if job and job.number == number]


@pytest.mark.ray
def test_trials_begin_on_few_rows_and_the_better_of_each_arm_go_on(
    ray_cluster: None, tmp_path: Path
) -> None:
    # Even trials are LoRA, odd ones TASO with its two stages.
    space, study = toy_space("lora", "taso"), toy_study(tmp_path)
    first = [space.default_choice("lora"), space.default_choice("taso")]
    settings: dict[str, Any] = {"fidelity": ROWS, "trials": 8, "repeats": (1, 1)}
    searcher = searcher_over(study, space, enqueue=first, **settings)
    script = {1: "tiring", 2: "bad", 3: "tiring", 4: "die", 5: "bad", 6: "fail"}
    notebook = Notebook()
    with paper_group(script) as (queue, log):
        search(searcher, queue, tmp_path, observer=notebook, max_concurrent_trials=1)

    states = {trial.number: trial.state for trial in searcher.ended}
    assert [states[number] for number in range(8)] == [
        "complete", "complete", "pruned", "complete", "complete", "pruned", "failed", "complete",
    ]  # fmt: skip
    whole = [(0.1, 3, "done"), (0.3, 3, "done"), (1.0, 3, "done")]
    assert shares_of(log, 0) == shares_of(log, 1) == shares_of(log, 3) == whole
    assert notebook.told[1] == [
        "began", (0.1, 0.1), (0.3, 0.3), 1, 2, 3, ("complete", 1.0, None),
    ]  # fmt: skip
    assert (study.trials[1].value, looks_of(study.trials[1])) == (1.0, {0.1: 0.1, 0.3: 0.3})
    assert sorted(study.trials[1].intermediate_values) == [1, 2, 3]
    # TASO's are worse than LoRA's at the looks, and go on all the same.
    stopped = "stopped after a look at 10% of the rows"
    assert shares_of(log, 2) == [(0.1, 3, "done")]
    assert notebook.told[2][-1] == ("pruned", None, stopped)
    assert shares_of(log, 4)[-3:] == whole, "a worker that dies begins the look again"
    assert shares_of(log, 6) == [(0.1, 1, "failed")]
    # The best is trained again with another seed: on all rows at once.
    assert study.trials[7].user_attrs["repeat"] == 1
    assert shares_of(log, 7) == [(1.0, 3, "done")]
    assert shares_of(log, 5) == whole[:2], "better at the first look, worse at the second"


@pytest.mark.ray
def test_a_look_is_cut_off_with_its_search_and_the_rungs_outlive_the_driver(
    ray_cluster: None, tmp_path: Path
) -> None:
    space, study, notebook = toy_space("lora"), toy_study(tmp_path), Notebook()
    settings: dict[str, Any] = {"observer": notebook, "max_concurrent_trials": 1}

    def searcher(trials: int) -> StudySearcher:
        again = interrupted(study)
        return searcher_over(study, space, trials=trials, fidelity=ROWS, enqueue=again)

    def enough() -> str | None:
        return "it is late" if notebook.told.get(1) else None

    with paper_group({1: "slow"}) as (queue, log):
        search(searcher(2), queue, tmp_path, should_stop=enough, **settings)
    assert shares_of(log, 1) == [(0.1, 0, "cancelled")]
    assert notebook.told[1][-1] == ("cancelled", None, "it is late")
    # What is worse than all before the break is stopped at its first look.
    with paper_group({2: "bad"}) as (queue, log):
        search(searcher(2), queue, tmp_path, name="again", **settings)
    assert shares_of(log, 2) == [(0.1, 3, "done")]
    assert study.trials[2].state == TrialState.PRUNED
    assert study.trials[1].user_attrs["choice"] == study.trials[2].user_attrs["choice"]
