"""What a recorded sweep has learned is told, with what it would try next."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from search.cli.explain import drawn_explanation
from search.cli.main import main
from search.cli.output import plain_text
from search.config.reading import parse_sweep
from search.launch.explain import explain_sweep
from search.paths import SweepPaths
from search.store.profiles import ProfileStore
from search.surrogate.explain import Ahead, Explanation, Tried, explained
from search.surrogate.observation import Observation
from spaces.errors import ConfigError, TrackingError
from spaces.methods.registry import parse_choice
from tests.search.study.test_searcher import finish
from tests.search.surrogate.recorded_sweeps import NOISE, PLANNER, RecordedSweep, some_choices
from tests.search.toy_search import SPACE, searcher_over, toy_study

KEY = "ab" * 32
NAME = "toy"


def config_at(folder: Path, **search: Any) -> dict[str, Any]:
    """The sweep's file, resolved, as its run keeps it."""
    raw = {
        "name": NAME,
        "base": "package:toy/model",
        "task": {
            "name": "movie",
            "kind": "classification",
            "data": {"train": "train.parquet", "dev": "dev.parquet", "test": "test.parquet"},
            "text": ["sentence"],
            "label": "label",
        },
        "profile": {"target_modules": ["dense"], "top_percent": [5, 10]},
        "space": SPACE,
        "search": {"trials": 40, **search},
        "store": f"file://{folder}/store",
        "confirm": None,
    }
    return parse_sweep(raw).resolved()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A folder with a database, a store and a sweep of 25 trials over the hill of accuracy."""
    place = tmp_path_factory.mktemp("explained")
    (place / "mlflow.db").write_bytes(empty_database.read_bytes())
    assert PLANNER.profile is not None
    ProfileStore(f"file://{place}/store").put(KEY, PLANNER.profile.to_bytes(), {"task": "movie"})
    sweep = RecordedSweep(uri_in(place), NAME, config=config_at(place), profile_key=KEY)
    choices = some_choices(22, seed=3)
    for choice in choices:
        sweep.trial(choice)
    best = max(choices, key=lambda each: -abs(each.features["log10_learning_rate"] + 2.5))
    for repeat in (1, 2, 3):
        sweep.trial(best, repeat=repeat)
    sweep.trial(choices[0], 0.9, "failed")
    sweep.tracker.end(sweep.run_id, "complete")
    return place


def uri_in(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def found(folder: Path) -> Explanation:
    return explain_sweep(NAME, tracking_uri=uri_in(folder), top=3)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["explain", *arguments])
        printed = capfd.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run


def test_what_moves_the_metric_is_found_and_by_how_much(found: Explanation) -> None:
    """Accuracy is 0.1 (log10 learning rate + 2.5)^2 below 0.8, whatever the plan."""
    assert (found.complete, found.metric, found.mode, found.notes) == (25, "accuracy", "max", [])
    first = found.features[0]
    assert first.name in ("log10_learning_rate", "log10_first_update")
    rate = next(each for each in found.features if each.name == "log10_learning_rate")
    assert -3.0 < rate.best < -2.0
    assert rate.share > 0.3
    assert sum(each.share for each in found.features) == pytest.approx(1.0)
    assert {each.name for each in found.features} >= {"log10_params", "columns_read"}
    assert found.best is not None
    assert found.best.seeds == 4
    assert found.best.predicted.low < 0.8 < found.best.predicted.high + NOISE
    assert abs(math.log10(found.best.choice["learning_rate"]) + 2.5) < 0.3


def test_how_sure_the_model_is_goes_by_choices_that_it_has_not_seen(found: Explanation) -> None:
    sure = found.sureness
    assert sure is not None
    assert (sure.trials, sure.choices, sure.repeated) == (25, 22, 1)
    assert sure.r2 is not None
    assert 0.7 < sure.r2 <= 1.0
    assert sure.rank_correlation is not None
    assert sure.rank_correlation > 0.7
    assert sure.covered > 0.7
    assert NOISE / 3 < sure.noise_sd < 3 * NOISE


def test_the_next_trials_are_of_the_space_new_and_say_why(found: Explanation) -> None:
    assert len(found.next) == 3
    gains = [each.gain for each in found.next]
    assert gains == sorted(gains, reverse=True)
    for each in found.next:
        assert parse_choice(each.choice).method == each.method
        assert PLANNER.params(each.choice) == each.trainable_params
        assert each.predicted.low <= each.predicted.value <= each.predicted.high
        assert 0.0 <= each.by_value <= 1.0
        assert abs(math.log10(each.choice["learning_rate"]) + 2.5) < 1.0
    assert found.more is not None
    assert found.more.trials == 10
    assert found.more.are_worth_it == (found.more.in_noise >= 0.2)


def test_the_command_prints_the_same_as_tables_and_as_one_document(
    folder: Path, found: Explanation, command: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = command(NAME, "--top", "3", "--tracking", uri_in(folder), "--json")
    document = json.loads(out)
    assert code == 0
    assert document.keys() == {field.name for field in fields(Explanation)}
    assert document["next"][0]["choice"] == found.next[0].choice
    assert document["sureness"]["r2"] == pytest.approx(found.sureness and found.sureness.r2)
    shown = plain_text(drawn_explanation(found))
    assert "what moved accuracy" in shown
    assert "learning rate" in shown
    assert "would be tried next" in shown
    assert "the next 10 trials: expected to improve accuracy by" in shown


def test_what_lacks_is_said_and_the_rest_is_shown(
    folder: Path, database: str, tmp_path: Path
) -> None:
    other = explain_sweep(
        NAME, tracking_uri=uri_in(folder), store=f"file://{tmp_path}/empty", top=3
    )
    assert other.next == []
    assert other.more is None
    assert len(other.features) > 3
    (note,) = other.notes
    assert "there is no profile abababababab; --store names another" in note

    few = RecordedSweep(database, "few")
    choices = [each for each in some_choices(20) if each.method == "lora"]
    for choice in choices[:3]:
        few.trial(choice)
    few.trial(choices[3], says_features=False)
    few.tracker.end(few.run_id, "failed", error="no workers are left")
    told = explain_sweep("few", tracking_uri=database)
    assert (told.complete, told.sureness, told.features, told.next) == (4, None, [], [])
    assert told.notes == [
        "the sweep is failed: no workers are left",
        "1 complete trial is left out: what its plan was is not recorded, and cannot be made again "
        "here",
        "what comes next is not told: its run in MLflow keeps no sweep file",
        "3 choices with a complete trial and features are too few to learn from; it takes 5",
        "only lora has complete trials: methods are not told apart",
    ]
    assert "note: the sweep is failed" in plain_text(drawn_explanation(told))


def test_a_sweep_that_mlflow_does_not_have_is_read_from_its_study(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = SweepPaths(name=NAME)
    paths.sweep.mkdir(parents=True)
    study = toy_study(paths.sweep)
    searcher = searcher_over(study, trials=6)
    for number in range(6):
        searcher.suggest(f"t{number}")
        finish(searcher, f"t{number}", 0.5 + number / 50)
    told = explain_sweep(NAME, tracking_uri=database)
    assert (told.run_id, told.complete) == (None, 6)
    assert told.best is not None
    assert told.best.number == 5
    assert told.notes[0] == "MLflow has no record of it: this is what its study says"
    with pytest.raises(ConfigError, match="MLflow has no sweep of the name or run id 'nosuch'"):
        explain_sweep("nosuch", tracking_uri=database)
    with pytest.raises(TrackingError):
        explain_sweep("nosuch", tracking_uri=f"sqlite:///{tmp_path}/gone/mlflow.db")
    with pytest.raises(ConfigError, match="--top: 0 is not a number of trials"):
        explain_sweep(NAME, tracking_uri=database, top=0)


def test_what_the_sampler_has_learned_before_is_named_with_how_far_it_is_believed(
    database: str, tmp_path: Path
) -> None:
    assert PLANNER.profile is not None
    ProfileStore(f"file://{tmp_path}/store").put(KEY, PLANNER.profile.to_bytes(), {"task": "movie"})
    earlier = RecordedSweep(database, "earlier")
    config = config_at(tmp_path, sampler="plan")
    sweep = RecordedSweep(database, NAME, config=config, profile_key=KEY)
    for number, choice in enumerate(some_choices(14)):
        (earlier if number < 8 else sweep).trial(choice)
    told = explain_sweep(NAME, tracking_uri=database, top=1)
    (known,) = told.history
    assert (known.run_id, known.relation, known.trials) == (earlier.run_id, "same", 8)
    assert 0.3 < known.believed <= 1.0
    assert f"learns from earlier sweeps: {earlier.run_id[:8]} (8 trials, believed" in plain_text(
        drawn_explanation(told)
    )


def test_of_baselines_alone_parameters_and_learning_rate_are_told() -> None:
    tried = [
        Tried(
            number,
            {"method": "ia3", "learning_rate": 10.0 ** -(2 + number / 4)},
            Observation(
                {"log10_params": 3.0, "log10_learning_rate": -2 - number / 4},
                "ia3", 0.7 - 0.05 * number, params=1000, repeat_of=str(number),
            ),
        )
        for number in range(8)
    ]  # fmt: skip
    start = Explanation("toy", None, "accuracy", "max", len(tried))
    found = explained(start, tried, Ahead([]))
    assert [each.name for each in found.features] == ["log10_learning_rate"]
    (rate,) = found.keys
    assert (rate.key, rate.correlation, rate.best) == ("learning_rate", 1.0, 0.01)
    assert found.next == []
    assert found.notes == [
        "only ia3 has complete trials: methods are not told apart",
        "only baselines have complete trials: they have no blocks, and of their plans the "
        "parameters and the learning rate alone are known",
        "nothing new is left to try in the space",
    ]


def test_of_an_alpha_its_ratio_to_the_rank_is_told_too() -> None:
    tried = [
        Tried(
            number,
            {"method": "lora", "rank": rank, "alpha": ratio * rank},
            Observation({}, "lora", 0.6 + 0.05 * ratio, repeat_of=str(number)),
        )
        for number, (rank, ratio) in enumerate(
            [(32, 0.5), (2, 1.0), (16, 1.5), (1, 2.0), (8, 2.5), (1, 3.0)]
        )
    ]
    found = explained(Explanation("toy", None, "accuracy", "max", len(tried)), tried, None)
    first = found.keys[0]
    assert (first.key, first.correlation, first.best) == ("alpha_over_rank", 1.0, 3.0)
