"""What users ask of a sweep that runs: it is trained next, once, beside the sweep's own trials."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher

from search.paths import SweepPaths
from search.study.asking import (
    clone_trial,
    enqueue_choice,
    listening,
    stop_trial,
    study_of_sweep,
)
from search.study.left_open import end_what_was_left_open
from search.study.ranking import WorthKeeping, best_of_each_method, warm_trials
from search.study.requests import Request, answers_of
from search.study.shared import SharedStudy
from search.study.standing import Standings, interrupted
from search.study.steering import BY_USER, Steering
from search.study.study import existing_study, open_study, states_of
from search.study.trial_list import request_rows, trial_rows
from search.study.warm_clone import Source, WarmWeights
from search.tracking.journal import Journal
from search.tuning.searcher import StudySearcher
from spaces.errors import ChoiceError, ConfigError, UsageError
from spaces.plan import Plan
from tests.search.study.test_searcher import asked, finish, row, run_all
from tests.search.toy_search import ACCURACY, searcher_over, toy_space, toy_study

LORA = {"method": "lora", "rank": 4, "learning_rate": 2e-3}


class Weights(WarmWeights):
    """Has the weights of every trial, once they were asked for `late` times."""

    def __init__(self, file: Path, late: int = 0) -> None:
        self._file, self._late = file, late
        self.over: set[str] = set()

    def agree(self, source: Source, plan: Plan) -> str:
        return "4 of 4 blocks start from its weights"

    def file(self, request: Request, source: Source, plan: Plan) -> Path | None:
        self._late -= 1
        return self._file if self._late < 0 else None

    def close(self, over: Any) -> None:
        self.over = set(over)


def steered(study: optuna.Study, folder: Path, space: Any = None, **settings: Any) -> StudySearcher:
    """A searcher whose driver looks for requests each time that it is asked for a trial."""
    keys = ("driver", "warm", "say", "more")
    own = {key: settings.pop(key) for key in keys if key in settings}
    steering = Steering(study, str(folder), clock=itertools.count(0, 1000).__next__, **own)
    return searcher_over(study, space, steering=steering, **settings)


def nowhere(folder: Path) -> SweepPaths:
    """The paths of a sweep whose folder is on another machine."""
    return SweepPaths(folder / "elsewhere", "toy")


def said_to(study: optuna.Study, request: Request) -> str | None:
    """Why a request is refused; "" where it is accepted, None where nobody has answered."""
    answer = answers_of(study.user_attrs).get(request.id)
    if answer is None:
        return None
    return "" if answer.accepted else answer.reason


def test_a_sweep_of_which_nobody_asks_anything_goes_as_one_that_does_not_listen(
    tmp_path: Path,
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    without = run_all(searcher_over(toy_study(tmp_path / "one"), trials=6))
    heard = run_all(steered(toy_study(tmp_path / "two"), tmp_path, trials=6))
    assert heard == without


def test_what_is_enqueued_is_trained_next_and_displaces_no_trial_of_the_sweep(
    tmp_path: Path,
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    without = run_all(searcher_over(toy_study(tmp_path / "one"), trials=6, sampler="random"))
    study, more = toy_study(tmp_path / "two"), []
    searcher = steered(study, tmp_path, trials=6, sampler="random", more=lambda: more.append(1))
    first = [asked(searcher, "t0"), asked(searcher, "t1")]
    request = enqueue_choice(study, nowhere(tmp_path), LORA)
    searcher.proposals.attend()
    assert said_to(study, request) == ""
    assert [each.state for each in request_rows(study)] == ["accepted"]

    given = asked(searcher, "t2")
    assert (given["choice"]["rank"], given["choice"]["learning_rate"]) == (4, 2e-3)
    assert request_rows(study) == []
    assert searcher.tags_of(2)["asked_by"] == "enqueued"
    for trial_id in ("t0", "t1", "t2"):
        finish(searcher, trial_id)
    rest = run_all(searcher)
    assert len(more) == 1
    assert (searcher.handed, searcher.wanted) == (6, 6)
    assert len(study.trials) == 7
    methods = [each["choice"]["method"] for each in (*first, *rest)]
    assert methods == [each["choice"]["method"] for each in without]
    assert [each.asked for each in trial_rows(study)].count("enqueued") == 1


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({**LORA, "rank": 3}, "lora.rank: 3 is not in the space, and a sweep keeps its space"),
        ({**LORA, "learning_rate": 1.0}, "lora.learning_rate: 1.0 is not in the space"),
        (
            {**LORA, "alpha": 128.0},
            "lora.alpha: 128 is 32 times rank 4, and alpha_over_rank 32 is not in the space, and a "
            "sweep keeps its space",
        ),
        (
            {"method": "taso", "rank": 2, "alpha": 32.0, "learning_rate": 2e-3},
            "taso.rank: 2 is not in the space of the sweep",
        ),
        ({**LORA, "rank": 8}, "1280 parameters, search.max_params is 700"),
        ({"method": "joint"}, "method: 'joint' is not in the space"),
    ],
)
def test_a_choice_that_the_sweep_cannot_train_is_refused_with_the_key(
    tmp_path: Path, written: dict[str, Any], reason: str
) -> None:
    study = toy_study(tmp_path)
    searcher = steered(study, tmp_path, toy_space("lora", "taso"), trials=2, max_params=700)
    request = enqueue_choice(study, nowhere(tmp_path), written)
    searcher.proposals.attend()
    said = said_to(study, request)
    assert said is not None
    assert reason in said
    assert len(run_all(searcher)) == 2


def test_what_is_trained_or_was_is_not_trained_again(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = steered(study, tmp_path, trials=2)
    enqueue_choice(study, nowhere(tmp_path), LORA)
    asked(searcher, "t0")
    again = enqueue_choice(study, nowhere(tmp_path), LORA)
    searcher.proposals.attend()
    assert "trial 0 trains it, the same plan" in str(said_to(study, again))
    finish(searcher, "t0")
    third = clone_trial(study, nowhere(tmp_path), 0, ["learning_rate=2.0e-3", "rank=2"])
    fourth = enqueue_choice(study, nowhere(tmp_path), LORA)
    searcher.proposals.attend()
    assert said_to(study, third) == ""
    assert "trial 0 is it (complete)" in str(said_to(study, fourth))


def test_a_search_that_is_out_of_trials_may_be_asked_for_more_while_its_own_run(
    tmp_path: Path,
) -> None:
    study = toy_study(tmp_path)
    searcher = steered(study, tmp_path, trials=1)
    asked(searcher, "t0")
    assert searcher.suggest("t1") is None
    finish(searcher, "t0")
    assert searcher.suggest("t1") == Searcher.FINISHED
    enqueue_choice(study, nowhere(tmp_path), LORA)
    # A launch that goes on with a sweep whose trials are out trains what waits for it.
    resumed = steered(toy_study(tmp_path), tmp_path, trials=1)
    assert asked(resumed, "t0")["choice"]["rank"] == 4


def test_a_trial_that_a_user_has_stopped_is_not_trained_again(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    choice = toy_space().default_choice("lora")
    searcher = steered(study, tmp_path, trials=2, enqueue=[choice])
    asked(searcher, "t0")
    searcher.on_trial_result("t0", row(1, 0.5))
    ended = searcher.cancel("t0", BY_USER, "stopped")
    assert ended is not None
    assert ended.state == "stopped"
    assert states_of(study) == {"stopped": 1}
    assert interrupted(study) == []
    (shown,) = trial_rows(study)
    assert (shown.state, shown.epochs, shown.value, shown.reason) == ("stopped", 1, 0.5, BY_USER)
    resumed = steered(study, tmp_path, trials=2, enqueue=[choice])
    assert asked(resumed, "t0")["choice"] != choice.as_dict()
    # The same choice is trained where a user wants it after all.
    request = enqueue_choice(study, nowhere(tmp_path), choice.as_dict())
    resumed.proposals.attend()
    assert said_to(study, request) == ""

    journal = Journal(tmp_path / "journal.db")  # whose driver died before it was told
    journal.start(0, {"choice": {}, "tags": {}, "metrics": {}}, 1)
    end_what_was_left_open(journal, study, "accuracy")
    assert journal.next_of(())[-1].body["state"] == "stopped"
    journal.close()


def test_a_request_whose_trial_was_cut_off_stands_again(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = steered(study, tmp_path, trials=1)
    enqueue_choice(study, nowhere(tmp_path), LORA)
    asked(searcher, "t0")
    assert interrupted(study) == []  # a launch that goes on settles it, and is asked again
    resumed = steered(study, tmp_path, trials=1)
    assert asked(resumed, "t0")["choice"]["rank"] == 4
    finish(resumed, "t0")
    assert [each.state for each in trial_rows(study)] == ["interrupted", "complete"]
    assert resumed.proposals.standing.handed == 0


def test_a_warm_clone_starts_from_a_file_and_is_compared_with_no_other(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    warm = Weights(tmp_path / "warm.safetensors", late=1)
    searcher = steered(study, tmp_path, toy_space("lora"), trials=3, warm=warm)
    enqueue_choice(study, nowhere(tmp_path), LORA)
    asked(searcher, "t0")
    finish(searcher, "t0", 0.7)
    request = clone_trial(study, nowhere(tmp_path), 0, [], warm=True)
    own = asked(searcher, "t1")  # its weights are on their way
    assert "warm" not in own
    given = asked(searcher, "t2")
    assert given["warm"] == str(tmp_path / "warm.safetensors")
    assert (given["choice"]["rank"], given["choice"]["learning_rate"]) == (4, 2e-3)
    assert searcher.tags_of(2) == {
        "seed": 0, "asked_by": "cloned", "clone_of": 0, "warm_from": 0,
        "features": study.trials[2].user_attrs["features"],
    }  # fmt: skip
    finish(searcher, "t1", 0.6)
    finish(searcher, "t2", 0.9)

    assert [row.value for row in best_of_each_method(study, ACCURACY)] == [0.7]
    assert [(each.number, each.warm_from) for each in warm_trials(study.trials)] == [(2, 0)]
    assert WorthKeeping(study, ACCURACY)() == {0, 2}
    standing = Standings(study).now()
    assert [trial.number for trial in standing.comparable] == [0, 1]
    assert standing.requested[request.id].number == 2
    trainings = {trial.user_attrs["training"] for trial in study.trials}
    assert len(trainings) == 3
    assert trial_rows(study)[2].asked == "warm clone of 0"
    assert searcher.proposals.steering is not None
    searcher.proposals.steering.close()
    assert request.id in warm.over


def shared(folder: Path, driver: str) -> tuple[optuna.Study, SharedStudy]:
    study = open_study(
        f"sqlite:///{folder}/study.db", "toy", objectives=("accuracy",), mode="max",
        sampler="random", seed=len(driver), beat_seconds=60, grace_seconds=120,
    )  # fmt: skip
    return study, SharedStudy(study, driver, 120)


def test_two_drivers_of_a_shared_study_take_a_request_once(tmp_path: Path) -> None:
    (one, of_one), (two, of_two) = shared(tmp_path, "one"), shared(tmp_path, "three")
    drivers = [
        steered(study, tmp_path / name, trials=4, shared=part, driver=name)
        for study, part, name in ((one, of_one, "one"), (two, of_two, "three"))
    ]
    request = enqueue_choice(existing_study(f"sqlite:///{tmp_path}/study.db", "toy"),
                             nowhere(tmp_path), LORA)  # fmt: skip
    for driver in drivers:  # both have read it before either begins it
        driver.proposals.attend()
    given = [asked(driver, "t0") for driver in drivers]
    assert [each["choice"]["learning_rate"] == 2e-3 for each in given] == [True, False]
    # At the very same time: the lower number keeps its trial.
    first = drivers[0].proposals.standing.requested[request.id]
    proposal = drivers[1].proposals.propose(drivers[1].proposals.standing, False)
    begun = drivers[0].open_trial("t0")
    assert proposal is not None
    assert begun is not None
    assert drivers[1].proposals.ledger.begin(replace(proposal, asked=begun.asked)) is None
    assert drivers[1].proposals.standing.requested[request.id].number == first.number
    for part in (of_one, of_two):
        part.close()


def test_who_asks_hears_at_once_what_cannot_be(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = steered(study, tmp_path, trials=4)
    asked(searcher, "t0")
    finish(searcher, "t0")
    with pytest.raises(UsageError, match=r"N: trial 0 has ended \(complete\)"):
        stop_trial(study, 0)
    with pytest.raises(UsageError, match="N: there is no trial 7 of 'toy' to stop; it has 0 to 0"):
        stop_trial(study, 7)
    with pytest.raises(UsageError, match="--set: nothing of trial 0 is changed"):
        clone_trial(study, nowhere(tmp_path), 0, [])
    with pytest.raises(ChoiceError, match="rank: 'eight' is refused"):
        clone_trial(study, nowhere(tmp_path), 0, ["rank=eight"])
    assert request_rows(study) == []


@pytest.mark.parametrize(
    "written",
    [
        "nonsense",
        {"kind": "stop"},
        {"id": "1", "kind": "burn", "number": 0, "choice": None, "warm": False, "by": ""},
        {"id": "1", "kind": "enqueue", "number": None, "choice": "lora", "warm": False, "by": ""},
    ],
)
def test_what_is_no_request_is_passed_over(tmp_path: Path, written: Any) -> None:
    study = toy_study(tmp_path)
    study.set_user_attr("ranksweep_asked:1", written)
    searcher = steered(study, tmp_path, trials=1)
    searcher.proposals.attend()
    asked(searcher, "t0")
    assert request_rows(study) == []


def test_a_driver_that_has_left_hears_nothing(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = steered(study, Path("/elsewhere/sweeps/toy"), trials=4)
    asked(searcher, "t0")
    steering = searcher.proposals.steering
    assert steering is not None
    heard = existing_study(f"sqlite:///{tmp_path}/study.db", "toy")
    # Its folder is one of this machine that nobody holds the lock of: it was killed.
    assert listening(heard) == []
    with pytest.raises(UsageError, match="nobody runs the sweep 'toy'; launch --resume"):
        stop_trial(heard, 0)
    steering.close()
    assert listening(heard) == []


def test_the_study_of_a_sweep_is_found_in_its_folder_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = SweepPaths(name="toy").absolute()
    with pytest.raises(ConfigError, match="SWEEP: there is no study of a sweep 'toy'"):
        study_of_sweep(paths, None)
    paths.make_sweep()
    study = "postgresql+psycopg://***@db/sweeps"
    paths.sweep_file.write_text(f"search: {{study: '{study}'}}\nspace: null\n")
    with pytest.raises(ConfigError, match="--study: the study of 'toy' is shared"):
        study_of_sweep(paths, None)
    with pytest.raises(ConfigError, match="--study: there is no file"):
        study_of_sweep(paths, f"sqlite:///{tmp_path}/gone.db")
    with pytest.raises(ConfigError, match="--study: is no SQLAlchemy URL"):
        study_of_sweep(paths, "gone.db")
    toy_study(tmp_path)
    assert study_of_sweep(paths, f"sqlite:///{tmp_path}/study.db").study_name == "toy"
    with pytest.raises(ConfigError, match="SWEEP: there is no study of a sweep 'tiny'"):
        study_of_sweep(SweepPaths(name="tiny"), f"sqlite:///{tmp_path}/study.db")
    # The space that the sweep's file writes is asked before anything is written.
    with pytest.raises(UsageError, match=r"lora.rank: 3 is not in the space"):
        enqueue_choice(toy_study(tmp_path), paths, {**LORA, "rank": 3})
