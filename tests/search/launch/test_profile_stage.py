"""A launch's first stage finds the profile, computes it alone, or waits for whoever computes it."""

from __future__ import annotations

import io
import itertools
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from search.cli.view import View
from search.config.sweep import SweepConfig
from search.launch.launch import borrowed_from
from search.launch.prepare import SweepInputs, prepare, same_result
from search.launch.profile_stage import ProfileStage
from search.paths import SweepPaths
from search.store.keys import profile_prefix
from search.store.lease import Leases, this_process
from search.store.objects import ObjectStorage
from search.tracking.mlflow import connect
from search.tracking.tracker import Tracker
from spaces.errors import ConfigError, StoreError
from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import ModuleProfile, Profile
from tests.search.tracked import start_trial
from trainables.resident.jobs import Event, ProfileJob, ProfileResult, ProfileSteps, Started


def config_of(sweep: Mapping[str, Any], folder: Path, **changes: Any) -> SweepConfig:
    settings = {
        "store": f"file://{folder / 'store'}",
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "cluster": {"lease_seconds": 1.0},
    }
    return SweepConfig.model_validate({**sweep, **settings, **changes})


def profile_of(prepared: SweepInputs, **metadata: Any) -> Profile:
    facts = {"base": prepared.base_fingerprint, "task": prepared.task.train_fingerprint}
    return Profile(
        targets=prepared.targets,
        scored_steps=4,
        top_percent_grid=(1.0, 2.0, 5.0, 10.0),
        modules={
            t.name: ModuleProfile(hessian_diag=np.ones(t.shape[1], np.float32))
            for t in prepared.targets
        },
        metadata=facts | metadata,
    )


class Workers:
    """Resident workers that have the profile ready; `meanwhile` happens while they compute."""

    def __init__(self, profile: Profile, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._profile, self._meanwhile = profile, meanwhile
        self.jobs: list[ProfileJob] = []

    def run(self, job: ProfileJob, *, on_event: Callable[[Event], None]) -> ProfileResult:
        self.jobs.append(job)
        on_event(Started())
        self._meanwhile()
        on_event(ProfileSteps("static pass", 1, 1))
        return ProfileResult(self._profile.to_bytes(), seconds=2.5)


class Launch:
    """The first stage as one launch has it, with what it says."""

    def __init__(self, config: SweepConfig, folder: Path) -> None:
        self.prepared = prepare(config)
        self._said = io.StringIO()
        view = View(config.name, console=Console(file=self._said, width=500))
        self.paths = SweepPaths(folder / ".ranksweep", config.name).absolute()
        self.paths.make_sweep()
        self.tracker = Tracker(config.tracking.uri, config.tracking.experiment)
        self.stage = ProfileStage(config, self.prepared, self.paths, view)

    @property
    def said(self) -> str:
        return self._said.getvalue()

    def run(self, workers: Workers) -> Profile:
        with self.stage:
            return self.stage.obtained(workers, self.tracker, None)  # type: ignore[arg-type]

    def leases(self, clock: Callable[[], float] = time.monotonic) -> Leases:
        prefix = profile_prefix(self.prepared.key)
        return Leases(self.prepared.store.objects.under(prefix), seconds=1.0, clock=clock)


@pytest.fixture
def launch(tiny_sweep: dict[str, Any], tmp_path: Path, database: str) -> Launch:
    return Launch(config_of(tiny_sweep, tmp_path), tmp_path)


def test_a_profile_is_computed_once_and_then_found(
    launch: Launch, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    workers = Workers(profile_of(launch.prepared))
    launch.run(workers)
    assert len(workers.jobs) == 1
    manifest = launch.prepared.store.manifest(launch.prepared.key)
    assert manifest is not None
    assert (manifest["by"], manifest["seconds"]) == (this_process(), 2.5)

    second = Launch(config_of(tiny_sweep, tmp_path), tmp_path)
    second.run(workers)
    assert len(workers.jobs) == 1
    assert "is cached in" in second.said


def test_progress_is_saved_in_the_store_and_cleared_after(launch: Launch) -> None:
    def save() -> None:
        saved = pickle.loads(pickle.dumps(workers.jobs[0].checkpoints))
        saved.put("manifest.json", b"{}")
        saved.put("parts/a", b"1")

    workers = Workers(profile_of(launch.prepared), save)
    launch.run(workers)
    checkpoints = workers.jobs[0].checkpoints
    assert checkpoints is not None
    assert checkpoints.list("parts") == ()
    assert not [name for name in launch.prepared.store.objects.list("profiles") if "parts" in name]


def test_a_second_launch_waits_for_the_first_says_so_and_computes_nothing(
    launch: Launch, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    second = Launch(config_of(tiny_sweep, tmp_path), tmp_path)
    unused = Workers(profile_of(second.prepared))
    waiting = threading.Thread(target=second.run, args=(unused,))

    def start_the_second() -> None:
        waiting.start()
        deadline = time.monotonic() + 30
        while "is being computed by" not in second.said and time.monotonic() < deadline:
            time.sleep(0.01)

    launch.run(Workers(profile_of(launch.prepared), start_the_second))
    waiting.join(30)
    assert unused.jobs == []
    assert second.stage.profile is not None
    assert f"is being computed by {this_process()} (process " in second.said
    assert "was published by another launch" in second.said


def test_a_launch_that_lost_its_lease_takes_what_the_other_has_published(launch: Launch) -> None:
    other = profile_of(launch.prepared, of="the other launch")

    def take_over_and_publish() -> None:
        ahead = itertools.count(0.0, 1e6)  # a clock by which the owner is silent for too long
        taken = launch.leases(ahead.__next__).take(lambda: True)
        assert taken is not None
        launch.prepared.store.put(launch.prepared.key, other.to_bytes(), {})
        assert launch.stage.lease is not None
        assert not launch.stage.lease.is_held()
        taken.release()

    workers = Workers(profile_of(launch.prepared), take_over_and_publish)
    profile = launch.run(workers)
    assert profile.metadata["of"] == "the other launch"
    assert "has taken over this profile" in launch.said


def test_a_launch_that_fails_lets_the_next_compute_at_once(
    launch: Launch, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch.run(Workers(profile_of(launch.prepared), fail))
    seen = launch.leases().look()
    assert seen is not None
    assert seen.released
    second = Launch(config_of(tiny_sweep, tmp_path), tmp_path)
    second.run(Workers(profile_of(second.prepared)))
    assert "is being computed by" not in second.said


@pytest.mark.parametrize(
    ("wrong", "said", "why"),
    [
        ("base", "of another", "it is the profile of another base"),
        ("task", "of another", "it is the profile of another task"),
        ("settings", {"epochs": 40}, "it is a profile with other settings"),
        ("settings", {"nonsense": 1}, "it is a profile with other settings"),
    ],
)
def test_a_profile_of_something_else_under_this_key_is_not_used(
    launch: Launch, wrong: str, said: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = profile_of(launch.prepared, **{wrong: said})
    launch.prepared.store.put(launch.prepared.key, foreign.to_bytes(), {})
    workers = Workers(profile_of(launch.prepared))
    launch.run(workers)
    assert len(workers.jobs) == 1
    assert why in caplog.text


def test_where_conditions_are_ignored_no_lease_is_shared(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectStorage, "creates_once", lambda _self: False)
    launch.run(Workers(profile_of(launch.prepared)))
    assert "ignores conditional writes, so launches cannot share leases there" in launch.said
    assert launch.leases().look() is None


def test_a_store_that_goes_away_costs_nobody_the_profile(
    launch: Launch, tiny_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise StoreError("store: cannot write there: no space left; free some")

    with monkeypatch.context() as patch:
        patch.setattr(type(launch.prepared.store), "put", refuse)
        launch.run(Workers(profile_of(launch.prepared)))
    kept = launch.paths.unpublished_profile(launch.prepared.key)
    assert kept.is_file()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "no space left" in launch.said

    second = Launch(config_of(tiny_sweep, tmp_path), tmp_path)
    unused = Workers(profile_of(second.prepared))
    second.run(unused)
    assert unused.jobs == []
    assert not kept.exists()
    assert second.prepared.store.get(second.prepared.key) is not None


def test_trials_say_of_what_a_borrowed_profile_is(launch: Launch) -> None:
    borrowed = replace(launch.prepared, borrowed={"task": "movie", "base": "hub:x", "key": "k"})
    assert borrowed_from(launch.prepared) == {}
    said = borrowed_from(borrowed)
    assert (said["profile_of_task"], said["profile_of_base_uri"]) == ("movie", "hub:x")
    tracker = launch.tracker
    sweep = tracker.start_sweep("borrowing", {}, {"task": "other", **said})
    plan = make_plan(parse_choice({"method": "lora"}), launch.prepared.targets, None)
    trial = start_trial(tracker, sweep, 0, {"method": "lora"}, plan)
    tags = connect(tracker.uri).get_run(trial).data.tags
    assert tags["ranksweep.profile_of_task"] == "movie"
    assert tags["ranksweep.profile_of_base_uri"] == "hub:x"


# A profile that is named -----------------------------------------------------------------------


def test_a_named_profile_of_another_task_is_used_and_said(
    launch: Launch, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    launch.run(Workers(profile_of(launch.prepared)))
    key = launch.prepared.key
    task = {**tiny_sweep["task"], "name": "another", "max_length": 12}
    profile = {**tiny_sweep["profile"], "use": key[:12]}
    changed = {**tiny_sweep, "task": task, "profile": profile}
    second = Launch(config_of(changed, tmp_path), tmp_path)
    assert second.prepared.key == key
    assert second.prepared.profile_of["task"] == "tiny-sentiment"
    unused = Workers(profile_of(second.prepared))
    second.run(unused)
    assert unused.jobs == []
    assert "it is of the task tiny-sentiment" in second.said
    assert "(other rows or max_length than the sweep's)" in second.said


def test_the_settings_that_a_profile_says_count_but_not_how_they_are_written(
    launch: Launch, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    settings = config_of(tiny_sweep, tmp_path).profile
    said = settings.model_dump(mode="json", exclude=set(settings.NOT_OF_THE_RESULT))
    assert same_result(said, settings)
    assert same_result({**said, "alpha": settings.resolved_alpha, "precision": "fp32"}, settings)
    assert not same_result({**said, "seed": 1}, settings)
    launch.run(Workers(profile_of(launch.prepared, settings=said)))
    again = Launch(config_of(tiny_sweep, tmp_path), tmp_path)
    unused = Workers(profile_of(again.prepared))
    again.run(unused)
    assert unused.jobs == []


def test_a_memory_limit_that_not_even_the_weights_fit_is_refused_before_anything(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    profile = {**tiny_sweep["profile"], "memory_limit": 1}
    with pytest.raises(ConfigError, match=r"profile\.memory_limit: 1 bytes are less than"):
        prepare(config_of({**tiny_sweep, "profile": profile}, tmp_path))


@pytest.mark.parametrize(
    ("use", "targets", "reason"),
    [
        ("abcd", ["query", "output.dense"], "profile.use: no key in"),
        ("../etc", ["query", "output.dense"], "profile.use: .* is not a key; give at least 4"),
        ("", ["query", "key"], "profile.use: .*key is not in it; narrow profile.target_modules"),
    ],
)
def test_a_named_profile_that_does_not_fit_is_a_usage_error(
    launch: Launch,
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    use: str,
    targets: list[str],
    reason: str,
) -> None:
    launch.run(Workers(profile_of(launch.prepared)))
    use = use or launch.prepared.key
    profile = {**tiny_sweep["profile"], "use": use, "target_modules": targets}
    with pytest.raises(ConfigError, match=reason):
        prepare(config_of({**tiny_sweep, "profile": profile}, tmp_path))
