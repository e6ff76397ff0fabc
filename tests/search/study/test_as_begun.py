"""A sweep that an older ranksweep has begun goes on as it was begun, and a new one as it is now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from search.config.sweep import SearchSettings
from search.paths import SweepPaths
from search.study.as_begun import space_as_begun
from search.study.asking import enqueue_choice
from search.study.proposals import Proposals
from search.study.standing import interrupted
from search.study.study import choice_of, choice_text, is_older, open_study
from search.study.trial import OpenTrial
from spaces.domain import Domain, Fixed, Options, Range
from spaces.errors import UsageError
from spaces.methods.registry import completed, from_record, parse_choice
from spaces.planner import Planner
from spaces.profile import Profile
from spaces.search_space import SearchSpace
from tests.recorded.folder import STATE, unpack
from tests.search.study.test_searcher import asked, finish
from tests.search.toy_search import TARGETS, searcher_over, toy_space, toy_study
from trainables.training.settings import TrainSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recorded")
    unpack(place)
    return place


def recorded_study(folder: Path, sweep: str) -> optuna.Study:
    return open_study(
        f"sqlite:///{folder / STATE / 'sweeps' / sweep / 'study.db'}",
        sweep,
        objectives=("accuracy",),
        mode="max",
        sampler="tpe",
        seed=0,
    )


def planner_of(folder: Path) -> Planner:
    (file,) = (folder / STATE / "store" / "profiles").glob("*/profile-*.safetensors")
    profile = Profile.read(file)
    return Planner(profile.targets, profile)


def space_of(folder: Path, sweep: str) -> SearchSpace:
    section = yaml.safe_load((folder / f"{sweep}.yaml").read_text())["space"]
    planner = planner_of(folder)
    return SearchSpace.parse(section).fitted(planner.targets, (1, 2, 5, 10))


@pytest.mark.parametrize("sweep", ["finished", "cut"])
def test_each_recorded_trial_is_the_plan_that_was_trained(folder: Path, sweep: str) -> None:
    """By its record, and by its parameters in the space that the sweep goes on with."""
    study, planner = recorded_study(folder, sweep), planner_of(folder)
    space, _ = space_as_begun(space_of(folder, sweep), study)
    trials = study.get_trials()
    assert len(trials) == {"finished": 9, "cut": 8}[sweep]
    assert is_older(study)
    for trial in trials:
        digest = trial.user_attrs["plan_digest"]
        assert planner.plan(choice_of(trial)).digest == digest
        again = space.suggest(optuna.trial.FixedTrial(trial.params))
        assert planner.plan(again).digest == digest
        assert choice_text(again, older=True) == trial.user_attrs["choice"]


def test_what_a_dead_driver_has_left_is_trained_again_as_it_was(tmp_path: Path) -> None:
    """Under the text that it was recorded with, so that it is known when the sweep is resumed."""
    unpack(tmp_path)
    study, planner = recorded_study(tmp_path, "cut"), planner_of(tmp_path)
    running = [t.user_attrs for t in study.trials if t.state == TrialState.RUNNING]
    assert {json.loads(each["choice"])["method"] for each in running} == {"lora", "taso"}
    space, _ = space_as_begun(space_of(tmp_path, "cut"), study)
    search, train = SearchSettings(trials=10), TrainSettings(epochs=6)
    again = interrupted(study)
    proposals = Proposals(study, space, planner, search, train, enqueue=again)
    for wanted in running:
        begun = proposals.begin_next()
        assert isinstance(begun, OpenTrial)
        made = study.trials[begun.number].user_attrs
        for key in ("choice", "plan_digest", "training", "arm", "seed"):
            assert made[key] == wanted[key]
        assert planner.plan(begun.choice).digest == wanted["plan_digest"]
        proposals.ledger.end(begun, begun.ended("failed", "on paper"))
    assert interrupted(study) == []


def test_what_a_recorded_sweep_keeps_is_said(folder: Path) -> None:
    space, lines = space_as_begun(space_of(folder, "cut"), recorded_study(folder, "cut"))
    taso = next(line for line in lines if line.startswith("taso:"))
    assert "goes on with alpha 1, max_lr_scale 1e+06, which" in taso
    assert taso.endswith("new sweep: alpha_over_rank 1 to 64, max_lr_scale 4)")
    for method in ("lora", "pilora", "sensitivity"):
        line = next(line for line in lines if line.startswith(f"{method}:"))
        assert "alpha 16, which this sweep was begun with" in line
    assert "mean_rank 2, 4, 8, energy 0.8, 0.85, 0.9, alpha 16" in "".join(lines)
    assert space.default_choice("taso").as_dict()["alpha"] == 1
    assert "alpha_over_rank" not in space.domains["taso"]
    assert space_of(folder, "cut").default_choice("taso").as_dict()["alpha"] == 16


def test_a_sweep_of_this_version_keeps_nothing_and_says_nothing(tmp_path: Path) -> None:
    study, space = toy_study(tmp_path), toy_space()
    searcher = searcher_over(study, space, trials=6)
    for number in range(6):
        asked(searcher, f"t{number}")
        finish(searcher, f"t{number}")
    assert not is_older(toy_study(tmp_path))
    assert space_as_begun(space, study) == (space, ())


OLDER: dict[str, Domain] = {
    "alpha": Fixed(16.0),
    "learning_rate": Range(5e-5, 2e-3, log=True),
    "retention": Range(0.02, 0.1, log=True),
    "top_percent": Options((5.0, 10.0)),
}
"""What an older version had in place of today's defaults."""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> tuple[optuna.Study, SearchSpace]:
    """A study of TASO alone whose trials were drawn from other domains, and today's space."""
    today = SearchSpace.parse({"methods": ["taso"]}).fitted(TARGETS, (5.0, 10.0))
    study = toy_study(tmp_path_factory.mktemp("older"))
    searcher = searcher_over(study, today.keeping({"taso": OLDER, "lora": {}}), trials=6)
    for number in range(6):
        asked(searcher, f"t{number}")
        finish(searcher, f"t{number}")
    return study, today


def test_domains_that_nobody_wrote_stay_those_that_trials_were_drawn_from(
    older: tuple[optuna.Study, SearchSpace],
) -> None:
    study, today = older
    space, (line,) = space_as_begun(today, study)
    kept = {**OLDER, "rounds": Options((1, 2, 4))}
    assert space.domains["taso"] == kept
    assert space.domains["lora"] == today.domains["lora"]
    assert space.fitted(TARGETS, (5.0, 10.0)).domains["taso"] == kept  # nor by the base
    assert "learning_rate 5e-05 to 0.002" in line
    # What is written since is as it is written.
    rate = {"learning_rate": {"low": 1e-6, "high": 0.1, "log": True}}
    written = SearchSpace.parse({**rate, "methods": {"taso": {"retention": 0.3}}})
    changed, _ = space_as_begun(written.fitted(TARGETS, (5.0, 10.0)), study)
    assert changed.domains["taso"]["learning_rate"] == Range(1e-6, 0.1, log=True)


def test_what_is_asked_of_an_older_sweep_is_judged_by_its_own_space(
    older: tuple[optuna.Study, SearchSpace], tmp_path: Path
) -> None:
    study, today = older
    paths = SweepPaths(tmp_path / "elsewhere", "toy")
    paths.make_sweep()
    paths.sweep_file.write_text("space: {methods: [taso]}\n")
    choice = {"method": "taso", "retention": 0.05, "rounds": 2, "learning_rate": 6e-5}
    enqueue_choice(study, paths, choice)
    with pytest.raises(UsageError, match=r"taso.alpha: 32.0 is not in the space"):
        enqueue_choice(study, paths, {**choice, "alpha": 32.0})
    # The rates of a new sweep are those of its base, which only the driver looks at.
    fresh = toy_study(tmp_path)
    enqueue_choice(fresh, paths, {**choice, "alpha": 32.0})
    found = today.params_of(parse_choice({**choice, "alpha": 32.0, "learning_rate": 1e-3}))
    assert found["taso.alpha_over_rank"] == 32


def test_ranks_that_were_reconciled_are_no_changed_default(tmp_path: Path) -> None:
    """min_rank is no more than mean_rank allows, which differs from trial to trial."""
    allocation = {"mean_rank": 1, "allocation": ["progressive", "uniform"]}
    space = toy_space("sensitivity", sensitivity=allocation)
    study = toy_study(tmp_path)
    searcher = searcher_over(study, space, trials=6, arms=["allocation"])
    for number in range(6):
        asked(searcher, f"t{number}")
        finish(searcher, f"t{number}")
    least = {choice_of(trial).as_dict().get("min_rank") for trial in study.trials}
    assert least == {None, 0, 1}
    assert space_as_begun(space, study) == (space, ())


@pytest.mark.parametrize(
    ("choice", "then"),
    [
        ({"method": "taso", "alpha": 1.0}, {"max_lr_scale": 1e6, "stage_steps": "split"}),
        (
            {"method": "joint", "retention": 0.02},
            {"max_lr_scale": 1e6, "supplementary_scale": "dominant", "budget": "ranks"},
        ),
        ({"method": "pilora"}, {"supplementary_scale": "dominant"}),
        ({"method": "sensitivity"}, {"budget": "ranks"}),
        ({"method": "lora"}, {}),
    ],
)
def test_a_record_without_newer_keys_is_read_as_it_was_meant(
    choice: dict[str, Any], then: dict[str, Any]
) -> None:
    full = parse_choice({**choice, **then}).as_dict()
    older = {key: value for key, value in full.items() if key not in then}
    assert from_record(older).as_dict() == full
    assert json.loads(choice_text(from_record(older), older=True)) == older
    assert from_record(full).as_dict() == full
    # As a user reads it, it lacks nothing that would have another meaning now.
    assert parse_choice(completed(older)).as_dict() == full
    assert set(completed(older)) - set(older) == {"max_lr_scale"} & set(then)
    now = parse_choice(choice)
    assert json.loads(choice_text(now)) == now.as_dict()
    assert from_record(now.as_dict()) == now
