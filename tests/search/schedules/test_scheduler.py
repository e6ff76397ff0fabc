"""What a schedule sweeps, once each, and what it does when things go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from search.config.sweep import SweepConfig
from search.schedules.identity import Fingerprints
from search.schedules.memory import Memory
from search.schedules.schedule import Schedule
from search.schedules.trigger import Sighting
from search.schedules.usage import hours_used
from search.store.objects import ObjectStorage
from spaces.errors import ConfigError, DataError, StoreError, TrackingError
from tests.search.schedules.schedules import (
    SWEEP,
    Place,
    World,
    begun,
    done,
    end_as,
    records,
    settle,
    wait_until,
    write_schedule,
)
from tests.search.schedules.whole_models import model_files, write


def test_without_places_the_sweeps_own_base_is_swept_once_for_each_state_of_its_data(
    world: World, tmp_path: Path
) -> None:
    scheduler = world.scheduler(write_schedule(tmp_path))
    settle(scheduler)
    (record,) = records(tmp_path)
    assert (record.state, record.sweep.startswith("films-")) == ("done", True)
    assert record.best is not None
    assert record.best["value"] == 0.75
    world.pass_time(301)
    settle(scheduler)
    assert len(done(tmp_path)) == 1
    (tmp_path / "train.csv").write_text("other rows")
    world.pass_time(301)
    settle(scheduler)
    assert len(set(done(tmp_path))) == 2
    assert world.kinds() == ["seen", "done", "seen", "done"]


def test_every_model_that_a_place_shows_is_swept_once(world: World, tmp_path: Path) -> None:
    world.places = [Place()]
    for subject in "ba":
        world.places[0].put(subject, at=subject)
    scheduler = world.scheduler(write_schedule(tmp_path, at_once=2))
    settle(scheduler)
    world.places[0].put("c", at="c")
    world.pass_time(301)
    settle(scheduler)
    assert sorted(each.model for each in records(tmp_path)) == ["a", "b", "c"]
    assert len(done(tmp_path)) == 3


def test_changed_data_is_worth_a_sweep_of_the_newest_model_where_the_schedule_says_so(
    world: World, tmp_path: Path
) -> None:
    world.places = [Place()]
    for subject in "ab":
        world.places[0].put(subject, at=subject)
    scheduler = world.scheduler(write_schedule(tmp_path, on={"data": True}))
    settle(scheduler)
    (tmp_path / "train.csv").write_text("other rows")
    world.pass_time(301)
    settle(scheduler)
    assert sorted(each.model for each in records(tmp_path)) == ["a", "b", "b"]


def test_a_model_that_is_the_newest_no_more_is_not_swept_again_for_changed_data(
    world: World, tmp_path: Path
) -> None:
    world.places = [Place()]
    world.places[0].put("a", at="a")
    scheduler = world.scheduler(write_schedule(tmp_path, on={"data": True}))
    settle(scheduler)
    world.places[0].put("b", at="b")
    world.pass_time(301)
    settle(scheduler)
    (tmp_path / "train.csv").write_text("other rows")
    world.pass_time(301)
    settle(scheduler)
    assert sorted(each.model for each in records(tmp_path)) == ["a", "b", "b"]


@pytest.mark.parametrize(
    "places", [[], [Place(found=[Sighting("place", "a", "hub:house/a", "1")])]]
)
def test_edited_settings_start_no_sweep_where_changed_data_does(
    world: World, tmp_path: Path, places: list[Place]
) -> None:
    world.places = places
    scheduler = world.scheduler(write_schedule(tmp_path, on={"data": True}))
    settle(scheduler)
    write_schedule(tmp_path, on={"data": True}, set={"search.trials": 7})
    world.pass_time(301)
    settle(scheduler)
    assert len(done(tmp_path)) == 1
    (tmp_path / "train.csv").write_text("other rows")
    world.pass_time(301)
    settle(scheduler)
    assert len(done(tmp_path)) == 2


def test_a_model_that_another_schedule_has_swept_is_not_swept_for_changed_data(
    world: World, tmp_path: Path
) -> None:
    world.places = [Place()]
    world.places[0].put("a", "1")
    path = write_schedule(tmp_path)
    settle(world.scheduler(path))
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "name": "another"}))
    second = world.scheduler(other)
    settle(second)
    (tmp_path / "train.csv").write_text("other rows")
    world.pass_time(301)
    settle(second)
    assert len(done(tmp_path)) == 1


def test_the_same_model_under_two_names_is_one_sweep(world: World, tmp_path: Path) -> None:
    world.places = [Place("registry one"), Place("registry two")]
    world.places[0].put("one version 1", "1", "hub:house/one")
    world.places[1].put("two version 7", "7", "hub:house/two")
    world.content = {"hub:house/one": "same", "hub:house/two": "same"}
    settle(world.scheduler(write_schedule(tmp_path, at_once=2)))
    assert len(records(tmp_path)) == len(done(tmp_path)) == 1
    assert world.kinds() == ["seen", "done"]


def test_two_schedules_that_ask_for_the_same_sweep_share_it(world: World, tmp_path: Path) -> None:
    first = world.scheduler(write_schedule(tmp_path))
    settle(first)
    other = tmp_path / "other.yaml"
    keys = yaml.safe_load((tmp_path / "schedule.yaml").read_text())
    other.write_text(yaml.safe_dump({**keys, "name": "another"}))
    second = world.scheduler(other)
    settle(second)
    assert len(done(tmp_path)) == 1
    assert second.due == ()


def test_changed_data_and_settings_start_no_sweep_of_a_model_that_has_been_swept(
    world: World, tmp_path: Path
) -> None:
    world.places = [Place()]
    world.places[0].put("a", "1")
    path = write_schedule(tmp_path)
    settle(world.scheduler(path))
    (tmp_path / "train.csv").write_text("other rows")
    write_schedule(tmp_path, set={"search.trials": 7})
    again = world.scheduler(path)
    settle(again)
    assert len(done(tmp_path)) == 1
    world.places[0].put("b", "2")
    world.pass_time(301)
    settle(again)
    assert len(done(tmp_path)) == 2


def test_a_model_that_cannot_be_loaded_fails_once_and_is_told_once(
    world: World, tmp_path: Path
) -> None:
    world.places = [Place()]
    broken = tmp_path / "broken"
    broken.mkdir()
    world.places[0].put("broken", "1", f"path:{broken}")
    path = write_schedule(tmp_path)
    for _ in range(2):
        scheduler = world.scheduler(path)
        settle(scheduler)
        world.pass_time(4000)
        settle(scheduler)
    (record,) = records(tmp_path)
    assert (record.state, record.tries_left) == ("failed", 0)
    assert "config.json" in (record.error or "")
    assert world.kinds() == ["seen", "failed"]
    assert begun(tmp_path) == []


def here(folder: Path) -> dict[str, object]:
    """A sweep that needs nothing that may be away."""
    return {**SWEEP, "base": f"path:{write(folder / 'base', model_files())}"}


def test_a_launch_that_is_refused_is_not_tried_again(world: World, tmp_path: Path) -> None:
    end_as(tmp_path, 2, "base: hub:house/base cannot be loaded (no tensor); use another")
    scheduler = world.scheduler(write_schedule(tmp_path, here(tmp_path)))
    settle(scheduler)
    world.pass_time(100_000)
    settle(scheduler)
    (record,) = records(tmp_path)
    assert (record.state, record.tries_left) == ("failed", 0)
    assert record.error == "base: hub:house/base cannot be loaded (no tensor); use another"
    assert len(begun(tmp_path)) == 1
    assert world.kinds() == ["seen", "failed"]


@pytest.mark.parametrize(
    ("sweep", "keys"),
    [
        ({"base": "hub:house/base"}, {}),
        ({}, {"submit": "http://cluster:8265"}),
        ({"cluster": {"address": "cluster:6379"}}, {}),
        ({"search": {"study": "sqlite:///shared.db"}}, {}),
        ({"task": {"name": "films", "data": {"hub": "glue", "name": "sst2"}, "text": ["x"]}}, {}),
    ],
)
def test_a_refused_launch_that_needs_what_may_be_away_is_tried_again(
    world: World, tmp_path: Path, sweep: dict[str, object], keys: dict[str, object]
) -> None:
    end_as(tmp_path, 2, "it does not answer; check that it runs")
    path = write_schedule(tmp_path, {**here(tmp_path), **sweep}, tries=3, **keys)
    seams = {"fingerprints": lambda: Fingerprints(world.base, lambda *_: "rows")}
    scheduler = world.scheduler(path, **seams)
    settle(scheduler)
    (record,) = records(tmp_path)
    assert (record.state, record.tries_left) == ("failed", 2)
    end_as(tmp_path)
    world.pass_time(601)
    settle(scheduler)
    assert [each.state for each in records(tmp_path)] == ["done"]


def test_a_launch_that_has_failed_before_is_not_refused_for_good(
    world: World, tmp_path: Path
) -> None:
    end_as(tmp_path, 1, "tracking: http://mlflow is away; check the server")
    scheduler = world.scheduler(write_schedule(tmp_path, here(tmp_path), tries=4))
    settle(scheduler)
    end_as(tmp_path, 2, "base: cannot be read; check the disk")
    world.pass_time(601)
    settle(scheduler)
    (record,) = records(tmp_path)
    assert (record.state, record.tries_left, record.failures) == ("failed", 2, 2)


def test_a_failure_is_tried_again_after_pauses_that_double(world: World, tmp_path: Path) -> None:
    end_as(tmp_path, 1, "tracking: http://mlflow is away; check the server")
    scheduler = world.scheduler(write_schedule(tmp_path, tries=3, backoff=600.0))
    settle(scheduler)
    assert records(tmp_path)[0].tries_left == 2
    for pause, tries in ((590, 1), (20, 2), (1180, 2), (30, 3), (100_000, 3)):
        world.pass_time(pause)
        settle(scheduler)
        assert len(begun(tmp_path)) == tries
    (record,) = records(tmp_path)
    assert (record.state, record.tries_left, record.failures) == ("failed", 0, 3)
    assert world.kinds() == ["seen", "failed"]


def test_one_that_was_away_goes_on_by_itself(world: World, tmp_path: Path) -> None:
    end_as(tmp_path, 1, "tracking: http://mlflow is away; check the server")
    scheduler = world.scheduler(write_schedule(tmp_path))
    settle(scheduler)
    end_as(tmp_path)
    world.pass_time(601)
    settle(scheduler)
    assert [each.state for each in records(tmp_path)] == ["done"]


def test_a_sweep_that_is_stopped_is_let_go_so_that_another_goes_on_at_once(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "wait").touch()
    path = write_schedule(tmp_path)
    first = world.scheduler(path)
    first.tick()
    wait_until(lambda: bool(begun(tmp_path)))
    first.stop()
    assert first.join(30.0)
    assert records(tmp_path)[0].state == "interrupted"
    assert [each.state for each in first.outcomes] == ["interrupted"]
    (tmp_path / "wait").unlink()
    settle(world.scheduler(path))
    assert [each.state for each in records(tmp_path)] == ["done"]
    assert len(set(begun(tmp_path))) == 1
    assert world.kinds() == ["seen", "done"]


def test_nothing_is_started_in_quiet_hours_and_what_was_seen_is_started_after_them(
    world: World, tmp_path: Path
) -> None:
    path = write_schedule(tmp_path, quiet=["11:00-13:00"], when={"timezone": "UTC"})
    scheduler = world.scheduler(path)
    settle(scheduler)
    world.pass_time(301)
    settle(scheduler)
    assert records(tmp_path) == []
    assert len([each for each in world.said if "quiet hours" in each]) == 1
    world.pass_time(3700)
    settle(scheduler)
    assert len(done(tmp_path)) == 1


def test_no_sweep_is_started_once_the_gpu_hours_of_the_day_are_used(
    world: World, tmp_path: Path
) -> None:
    store = ObjectStorage(f"file://{tmp_path / 'store'}")
    store.put("schedules/usage/2026-11-30/another-1.json", b'{"gpu_hours": 23.5}')
    store.put("schedules/usage/2026-11-30/third-1.json", b'{"gpu_hours": 0.5}')
    assert hours_used(store, world.now) == 24.0
    scheduler = world.scheduler(write_schedule(tmp_path, budget={"gpu_hours_a_day": 24}))
    settle(scheduler)
    assert records(tmp_path) == []
    world.pass_time(86_400)
    settle(scheduler)
    assert len(done(tmp_path)) == 1


def test_what_a_sweep_uses_is_counted_for_all_schedules(world: World, tmp_path: Path) -> None:
    sweep = {**SWEEP, "cluster": {"address": "auto", "resources_per_worker": {"GPU": 1}}}
    settle(world.scheduler(write_schedule(tmp_path, sweep)))
    assert hours_used(ObjectStorage(f"file://{tmp_path / 'store'}"), world.now) > 0


def test_only_so_many_run_at_once(world: World, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    world.places = [Place()]
    for subject in "abc":
        world.places[0].put(subject, subject)
    scheduler = world.scheduler(write_schedule(tmp_path, at_once=2))
    scheduler.tick()
    scheduler.tick()
    assert len(scheduler.runs) == 2
    (tmp_path / "wait").unlink()
    settle(scheduler)
    assert len(set(done(tmp_path))) == len(done(tmp_path)) == 3


def test_a_store_that_is_away_is_said_once_and_looked_at_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = world.scheduler(write_schedule(tmp_path))
    with monkeypatch.context() as patch:

        def away(_self: ObjectStorage, _prefix: str) -> tuple[str, ...]:
            raise StoreError("store: cannot list it: no answer in time; check the network")

        patch.setattr(ObjectStorage, "list", away)
        for _ in range(3):
            settle(scheduler)
            world.pass_time(31)
    assert len([each for each in world.said if "no answer in time" in each]) == 1
    settle(scheduler)
    assert len(done(tmp_path)) == 1


def test_a_sweep_goes_on_while_the_store_is_away_for_a_moment(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wait").touch()
    scheduler = world.scheduler(write_schedule(tmp_path, lease_seconds=4))
    scheduler.tick()
    wait_until(lambda: [each.state for each in records(tmp_path)] == ["running"])
    with monkeypatch.context() as patch:

        def away(_self: ObjectStorage, _name: str, _content: bytes) -> None:
            raise StoreError("store: cannot write it: no answer in time; check the network")

        patch.setattr(ObjectStorage, "put", away)
        wait_until(lambda: any("could not be renewed" in each for each in world.said))
    (tmp_path / "wait").unlink()
    settle(scheduler)
    assert len(begun(tmp_path)) == len(done(tmp_path)) == 1
    assert [each.state for each in records(tmp_path)] == ["done"]


def test_a_place_that_cannot_be_reached_is_said_and_does_not_keep_the_others_waiting(
    world: World, tmp_path: Path
) -> None:
    world.places = [Place("registry", error=TrackingError("tracking: away")), Place("folder")]
    world.places[1].put("a", "1")
    scheduler = world.scheduler(write_schedule(tmp_path))
    settle(scheduler)
    assert len(done(tmp_path)) == 1
    assert any("registry: tracking: away" in each for each in world.said)
    world.places[0].error = None
    world.places[0].put("b", "1")
    world.pass_time(301)
    settle(scheduler)
    assert len(done(tmp_path)) == 2


def test_data_that_cannot_be_read_is_said_with_the_sweeps_file(
    world: World, tmp_path: Path
) -> None:
    def unread(_config: SweepConfig, _base: str) -> str:
        raise DataError("task.data.train (train.csv): there is no such file; check the path")

    scheduler = world.scheduler(
        write_schedule(tmp_path), fingerprints=lambda: Fingerprints(world.base, unread)
    )
    settle(scheduler)
    world.pass_time(301)
    settle(scheduler)
    (said,) = [each for each in world.said if "train.csv" in each]
    assert len(scheduler.errors) == 1
    assert "sweep.yaml" in said
    assert records(tmp_path) == []


def test_a_log_that_cannot_be_written_is_a_failure_that_is_tried_again(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / ".ranksweep").mkdir()
    (tmp_path / ".ranksweep" / "schedules").write_text("in the way")
    scheduler = world.scheduler(write_schedule(tmp_path))
    settle(scheduler)
    (record,) = records(tmp_path)
    assert (record.state, record.tries_left) == ("failed", 2)
    (tmp_path / ".ranksweep" / "schedules").unlink()
    world.pass_time(601)
    settle(scheduler)
    assert [each.state for each in records(tmp_path)] == ["done"]


def test_an_edited_schedule_is_read_again_and_a_broken_edit_is_said_once(
    world: World, tmp_path: Path
) -> None:
    path = write_schedule(tmp_path, quiet=["11:00-13:00"], when={"timezone": "UTC"})
    scheduler = world.scheduler(path)
    settle(scheduler)
    good = path.read_text()
    path.write_text(good + "quite: 1\n")
    for _ in range(2):
        world.pass_time(301)
        settle(scheduler)
    (said,) = [each for each in world.said if "quite" in each]
    assert "goes on as it was" in said
    assert records(tmp_path) == []
    path.write_text(good.replace("11:00-13:00", "02:00-03:00"))
    world.pass_time(301)
    settle(scheduler)
    assert any("was edited (quiet)" in each for each in world.said)
    assert len(done(tmp_path)) == 1


@pytest.mark.parametrize("seam", ["build", "teller_of"])
def test_an_edit_that_cannot_be_set_up_changes_nothing_and_is_said_once(
    world: World, tmp_path: Path, seam: str
) -> None:
    sound = getattr(world.seams(), seam)

    def set_up(schedule: Schedule) -> object:
        if schedule.settings.tries == 7:
            raise ConfigError("notify[0].url: the environment has no HOOK; set it")
        return sound(schedule)

    path = write_schedule(tmp_path)
    scheduler = world.scheduler(path, **{seam: set_up})
    settle(scheduler)
    write_schedule(tmp_path, tries=7)
    (tmp_path / "train.csv").write_text("other rows")
    for _ in range(2):
        world.pass_time(301)
        settle(scheduler)
    (said,) = [each for each in world.said if "HOOK" in each]
    assert "goes on as it was" in said
    assert scheduler.schedule.settings.tries == 3
    assert not world.closed
    assert len(done(tmp_path)) == 2


def test_a_claim_is_let_go_where_the_store_fails_before_its_sweep_is_begun(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = world.scheduler(write_schedule(tmp_path))
    with monkeypatch.context() as patch:

        def away(*_: object) -> None:
            raise StoreError("store: cannot write it: no answer in time; check the network")

        patch.setattr(Memory, "claims", away)
        settle(scheduler)
    assert any("could not claim" in each for each in world.said)
    assert done(tmp_path) == []
    settle(scheduler)
    assert len(done(tmp_path)) == 1


def test_a_store_that_ignores_conditions_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectStorage, "creates_once", lambda _self: False)
    with pytest.raises(StoreError, match="use a store that keeps conditions"):
        world.scheduler(write_schedule(tmp_path))
