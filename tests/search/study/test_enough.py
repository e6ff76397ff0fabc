"""A search ends once more trials are not worth their cost, and not before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.tune.search import Searcher

from search.config.sweep import SearchSettings, StopWhenSettings
from search.study.observations import observations
from search.study.study import FEATURES
from search.tuning.searcher import StudySearcher
from tests.search.study.test_searcher import finish
from tests.search.surrogate.recorded_sweeps import hill
from tests.search.toy_search import searcher_over, toy_space, toy_study

STOP = StopWhenSettings(improvement_below=1.0)


def searched(searcher: StudySearcher, noise: float, start: int = 0) -> int:
    """Trains on paper until the searcher has no more; returns how many trials it was."""
    rng = np.random.default_rng(start)
    for number in range(start, 1000):
        given: Any = searcher.suggest(f"t{number}")
        if given == Searcher.FINISHED:
            return number - start
        trial = searcher.open_trial(f"t{number}")
        assert trial is not None
        finish(searcher, f"t{number}", hill(trial.features) + noise * rng.standard_normal())
    raise AssertionError("the searcher never finished")


def over_lora(folder: Path, **settings: Any) -> StudySearcher:
    asked = {"trials": 60, "sampler": "random", "stop_when": STOP, **settings}
    return searcher_over(toy_study(folder, sampler="random"), toy_space("lora"), **asked)


def test_it_ends_early_where_little_is_left_and_a_resumed_sweep_does_not_go_on(
    tmp_path: Path,
) -> None:
    searcher = over_lora(tmp_path)
    trained = searched(searcher, 0.01)
    assert 6 <= trained < 40
    assert str(searcher.enough).startswith("search.stop_when: the next 10 trials are expected to")
    assert searcher.shortfall is None

    again = over_lora(tmp_path)
    assert searched(again, 0.01, start=trained) == 0
    assert again.enough == searcher.enough
    stricter = over_lora(tmp_path, stop_when=StopWhenSettings(improvement_below=1e-6))
    assert isinstance(stricter.suggest("t99"), dict)
    assert stricter.enough is None


def test_it_goes_on_while_the_metric_still_climbs(tmp_path: Path) -> None:
    """The noise is a twentieth of what the trials differ by, and the best is not found yet."""
    searcher = over_lora(tmp_path, trials=8)
    assert searched(searcher, 0.002) == 8
    assert searcher.enough is None


def test_what_is_best_is_repeated_before_the_search_ends(tmp_path: Path) -> None:
    study = toy_study(tmp_path, sampler="random")
    settings: Any = {"trials": 60, "sampler": "random", "repeats": (1, 2)}
    searcher = searcher_over(
        study, toy_space("lora"), stop_when=StopWhenSettings(improvement_below=20.0), **settings
    )
    trained = searched(searcher, 0.01)
    repeats = [trial.user_attrs.get("repeat", 0) for trial in study.trials]
    assert repeats == [0] * (trained - 2) + [1, 2]
    assert searcher.enough is not None


def test_an_arm_without_a_complete_trial_is_waited_for_unless_it_cannot_have_one(
    tmp_path: Path,
) -> None:
    """Every trial of pilora fails; with three that have failed the search may end."""
    easily = StopWhenSettings(improvement_below=50.0)
    study = toy_study(tmp_path, sampler="random")
    searcher = searcher_over(
        study, toy_space("lora", "pilora"), trials=60, sampler="random", stop_when=easily
    )
    failed = lora = 0
    for number in range(60):
        given: Any = searcher.suggest(f"t{number}")
        if given == Searcher.FINISHED:
            break
        if given["choice"]["method"] == "pilora":
            searcher.on_trial_complete(f"t{number}", None, error=True)
            failed += 1
        else:
            finish(searcher, f"t{number}", 0.7 + 0.001 * number)
            lora += 1
    assert (failed, lora >= 6, failed + lora < 60) == (failed, True, True)
    assert failed >= 3
    assert searcher.enough is not None


def test_trials_have_the_features_of_their_plans_in_the_study_and_for_their_records(
    tmp_path: Path,
) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study, toy_space("lora", "taso"), trials=2)
    for number in range(2):
        searcher.suggest(f"t{number}")
        tags = searcher.tags_of(number)
        assert tags["features"] == study.trials[number].user_attrs[FEATURES]
        assert len(json.dumps(tags["features"])) < 500
        finish(searcher, f"t{number}", 0.5 + number / 10)
    told = observations(study.trials)
    assert [each.value for each in told] == [0.5, 0.6]
    assert [each.features for each in told] == [t.user_attrs[FEATURES] for t in study.trials]
    assert told[1].features["log2_stages"] == 1.0


def test_settings_that_end_no_search_are_refused() -> None:
    with pytest.raises(ValueError, match="improvement_below"):
        SearchSettings.model_validate({"stop_when": {"improvement_below": 0}})
