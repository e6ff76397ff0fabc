"""The commands of schedules: what they print, and how they end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from search.cli.main import main
from search.interrupts import Interrupts
from search.paths import SweepPaths
from search.schedules.check import check
from search.schedules.identity import Fingerprints
from search.schedules.looks import wall_clock
from search.schedules.process import launch_command
from search.schedules.schedule import read_schedule
from search.schedules.scheduler import Scheduler
from search.schedules.service import Service
from search.store.claims import Claim, Claims
from search.store.objects import ObjectStorage
from search.tracking.liveness import lock_of
from search.trained.promotion import Promotion
from spaces.errors import ConfigError, StoreError, TrackingError
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


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def once(world: World, path: Path, *, again: bool = False) -> Service:
    seams = world.seams(now=wall_clock, monotonic=time.monotonic)
    service = Service([path], world.said.append, seams, again=again)
    service.once(Interrupts())
    return service


def test_once_looks_runs_what_is_due_and_leaves(world: World, tmp_path: Path) -> None:
    world.places = [Place()]
    for subject in "abc":
        world.places[0].put(subject, subject)
    path = write_schedule(tmp_path)
    assert sorted(each.model for each in once(world, path).outcomes) == ["a", "b", "c"]
    assert once(world, path).outcomes == []
    assert len(done(tmp_path)) == 3
    assert world.closed


def test_once_does_not_wait_for_the_next_try(world: World, tmp_path: Path) -> None:
    end_as(tmp_path, 1, "out of memory")
    path = write_schedule(tmp_path)
    (outcome,) = once(world, path).outcomes
    assert (outcome.state, outcome.tries_left, outcome.error) == ("failed", 2, "out of memory")
    assert once(world, path).outcomes == []


def test_what_has_failed_for_good_is_tried_again_where_that_is_asked_for(
    world: World, tmp_path: Path
) -> None:
    end_as(tmp_path, 2, "no driver is installed")
    base = write(tmp_path / "base", model_files())
    path = write_schedule(tmp_path, {**SWEEP, "base": f"path:{base}"})
    assert [each.state for each in once(world, path).outcomes] == ["failed"]
    assert [each.state for each in once(world, path, again=True).outcomes] == ["failed"]
    end_as(tmp_path)
    assert once(world, path).outcomes == []
    (outcome,) = once(world, path, again=True).outcomes
    assert (outcome.state, outcome.tries_left) == ("done", 3)
    assert once(world, path, again=True).outcomes == []


@pytest.mark.command
def test_once_goes_on_with_what_a_dead_scheduler_has_left(world: World, tmp_path: Path) -> None:
    path = write_schedule(tmp_path, lease_seconds=2)
    scheduler = world.scheduler(path)
    assert scheduler.look()
    (due,) = scheduler.due
    left = Claims(ObjectStorage(f"file://{tmp_path / 'store'}"), 2.0).take(due.key)
    assert left is not None
    (outcome,) = once(world, path).outcomes
    assert outcome.state == "done"
    assert not left.beat()


def test_once_leaves_to_a_living_scheduler_what_it_runs(world: World, tmp_path: Path) -> None:
    path = write_schedule(tmp_path, lease_seconds=30)
    scheduler = world.scheduler(path)
    assert scheduler.look()
    (due,) = scheduler.due
    held = Claims(ObjectStorage(f"file://{tmp_path / 'store'}"), 30.0).take(due.key)
    assert held is not None

    def beat(_text: object = None) -> float:
        assert held.beat()
        return time.monotonic()

    seams = world.seams(now=wall_clock, monotonic=beat)
    service = Service([path], world.said.append, seams)
    service.once(Interrupts())
    assert service.outcomes == []
    assert done(tmp_path) == []


def test_what_is_promoted_is_told_with_the_reason(world: World, tmp_path: Path) -> None:
    where: list[str] = []

    def promote(_uri: str, sweep: str, *, base_uri: str) -> Promotion:
        where.append(base_uri)
        return Promotion(True, "it beats version 2", "films-base", 3, sweep, "accuracy", 0.8)

    path = write_schedule(tmp_path, promote=True)
    settle(world.scheduler(path, promote=promote))
    assert world.kinds() == ["seen", "done", "promoted"]
    assert "it beats version 2" in world.told[1][1]
    assert where == ["hub:house/base"]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), MemoryError(), TrackingError("tracking: away")],
)
def test_whatever_fails_in_a_promotion_the_sweep_is_done_and_it_is_told(
    world: World, tmp_path: Path, error: Exception
) -> None:
    def promote(_uri: str, _sweep: str, *, base_uri: str) -> Promotion:
        raise error

    scheduler = world.scheduler(write_schedule(tmp_path, promote=True), promote=promote)
    settle(scheduler)
    assert [each.state for each in scheduler.outcomes] == ["done"]
    assert world.kinds() == ["seen", "done"]
    assert "not promoted: " in world.told[1][1]


def test_whoever_takes_over_from_one_that_was_killed_while_it_promoted_promotes_again(
    world: World, tmp_path: Path
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def lasting(_uri: str, sweep: str, *, base_uri: str) -> Promotion:
        began.set()
        go_on.wait(30)
        return Promotion(True, "by the first", "films-base", 1, sweep, "accuracy", 0.8)

    def at_once(_uri: str, sweep: str, *, base_uri: str) -> Promotion:
        return Promotion(True, "by the second", "films-base", 1, sweep, "accuracy", 0.8)

    path = write_schedule(tmp_path, promote=True, lease_seconds=2)
    first = world.scheduler(path, promote=lasting, monotonic=time.monotonic)
    first.tick()
    assert began.wait(30)
    (record,) = records(tmp_path)
    assert record.state == "running"
    (run,) = first.runs
    second = world.scheduler(path, promote=at_once, monotonic=time.monotonic)
    second.tick()
    assert second.runs == []  # the first keeps it alive

    run.claim.beat = lambda: True  # type: ignore[method-assign]  # as one that is paused

    def is_taken_over() -> bool:
        second.start()
        return bool(second.runs)

    wait_until(is_taken_over)
    assert second.join(30.0)
    assert [each.state for each in second.outcomes] == ["done"]
    go_on.set()
    assert first.join(30.0)
    assert [each.state for each in first.outcomes] == ["lost"]
    assert world.kinds() == ["seen", "done", "promoted"]
    assert "by the second" in world.told[1][1]
    (record,) = records(tmp_path)
    assert record.state == "done"


def test_a_promotion_is_left_in_a_hurry_to_whoever_takes_over(world: World, tmp_path: Path) -> None:
    began, go_on = threading.Event(), threading.Event()

    def promote(_uri: str, sweep: str, *, base_uri: str) -> Promotion:
        began.set()
        go_on.wait(30)
        return Promotion(True, "late", "films-base", 1, sweep, "accuracy", 0.8)

    scheduler = world.scheduler(write_schedule(tmp_path, promote=True), promote=promote)
    scheduler.tick()
    assert began.wait(30)
    scheduler.stop()
    assert not scheduler.join(0.5)  # one Ctrl-C waits for it
    scheduler.stop(hurry=True)
    assert scheduler.join(30.0)
    go_on.set()
    assert [each.state for each in records(tmp_path)] == ["interrupted"]
    assert world.kinds() == ["seen"]


def test_a_sweep_that_is_done_stays_so_where_its_claim_cannot_be_let_go(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_self: Claim) -> None:
        raise StoreError("store: cannot write it: no answer in time; check the network")

    monkeypatch.setattr(Claim, "release", away)
    scheduler = world.scheduler(write_schedule(tmp_path, lease_seconds=2))
    settle(scheduler)
    assert [each.state for each in scheduler.outcomes] == ["done"]
    assert world.kinds() == ["seen", "done"]


def test_once_interrupts_and_waits_for_what_runs_where_it_fails(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wait").touch()
    path = write_schedule(tmp_path)
    start = Scheduler.start

    def failing(self: Scheduler) -> None:
        start(self)
        wait_until(lambda: bool(begun(tmp_path)))
        raise ConfigError("it cannot be set up")

    monkeypatch.setattr(Scheduler, "start", failing)
    with pytest.raises(ConfigError):
        once(world, path)
    assert [each.state for each in records(tmp_path)] == ["interrupted"]
    assert world.closed


def test_the_claim_of_a_launch_whose_guard_is_killed_is_kept_until_it_has_wound_down(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "wait").touch()
    path = write_schedule(tmp_path)
    scheduler = world.scheduler(path)
    scheduler.tick()
    wait_until(lambda: bool(begun(tmp_path)))
    (run,) = scheduler.runs
    paths = SweepPaths(name=run.due.sweep)
    paths.make_sweep()
    with lock_of(paths):  # as the launch that winds down
        assert run.guard is not None
        os.kill(run.guard, signal.SIGKILL)
        scheduler.stop()
        assert not scheduler.join(1.5)
        assert [each.state for each in records(tmp_path)] == ["running"]
    assert scheduler.join(30.0)
    assert [each.state for each in records(tmp_path)] == ["interrupted"]
    (tmp_path / "wait").unlink()
    other = world.scheduler(path)
    settle(other)  # which finds the claim free
    assert [each.state for each in other.outcomes] == ["done"]


def test_a_claim_is_not_let_go_while_the_launch_of_one_before_winds_down(
    world: World, tmp_path: Path
) -> None:
    scheduler = world.scheduler(write_schedule(tmp_path))
    assert scheduler.look()
    (due,) = scheduler.due
    paths = SweepPaths(name=due.sweep)
    paths.make_sweep()
    with lock_of(paths):
        scheduler.start()
        scheduler.stop()
        assert scheduler.join(30.0)
    assert [each.state for each in records(tmp_path)] == ["interrupted"]
    claims = Claims(ObjectStorage(f"file://{tmp_path / 'store'}"), 300.0)
    assert claims.holder(due.key) is not None
    assert begun(tmp_path) == []


def test_a_claim_is_not_let_go_in_a_hurry_while_its_launch_winds_down(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "wait").touch()
    scheduler = world.scheduler(write_schedule(tmp_path))
    scheduler.tick()
    wait_until(lambda: bool(begun(tmp_path)))
    (run,) = scheduler.runs
    paths = SweepPaths(name=run.due.sweep)
    paths.make_sweep()
    with lock_of(paths):
        assert run.guard is not None
        os.kill(run.guard, signal.SIGKILL)
        scheduler.stop(hurry=True)
        assert scheduler.join(30.0)
    assert [each.state for each in records(tmp_path)] == ["interrupted"]
    claims = Claims(ObjectStorage(f"file://{tmp_path / 'store'}"), 300.0)
    assert claims.holder(run.due.key) is not None


def test_check_says_what_would_run_and_writes_nothing(world: World, tmp_path: Path) -> None:
    place = Place(waiting=["step-9: is not whole"])
    for subject in "ab":
        place.put(subject, subject)
    path = write_schedule(
        tmp_path, when={"cron": ["0 3 * * *"], "timezone": "UTC"}, quiet=["11:00-13:00"]
    )
    checked = check(
        read_schedule(path),
        [place],
        fingerprints=Fingerprints(world.base, world.task),
        now=world.now,
    )
    assert [(each.model, each.is_due) for each in checked.models] == [("a", True), ("b", True)]
    assert checked.waiting == ("place: step-9: is not whole",)
    assert checked.next_looks[:2] == ("2026-12-01 03:00:00+00:00", "2026-12-02 03:00:00+00:00")
    assert len(checked.next_looks) == 5
    assert checked.held_up is not None
    assert not (tmp_path / "store").exists()


def test_check_tells_who_has_claimed_what(world: World, tmp_path: Path) -> None:
    end_as(tmp_path, 1, "out of memory")
    path = write_schedule(tmp_path)
    settle(world.scheduler(path))
    fingerprints = Fingerprints(world.base, world.task)
    (seen,) = check(read_schedule(path), [], fingerprints=fingerprints, now=world.now).models
    assert (seen.what, seen.state, seen.tries_left) == ("is to be tried again", "failed", 2)
    assert seen.error == "out of memory"


@pytest.mark.parametrize("columns", ["80", "160"])
def test_status_lists_the_claims_of_all_schedules_or_of_one(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    store = f"file://{tmp_path / 'store'}"
    settle(world.scheduler(write_schedule(tmp_path)))
    (record,) = records(tmp_path)
    capsys.readouterr()
    assert run("schedule", "status", "--store", store, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["sweep"], row["state"], row["holder"]) == (record.sweep, "done", None)
    assert run("schedule", "status", "new-films", "--store", store) == 0
    printed = capsys.readouterr().out
    assert "hub:house/base" in printed
    assert "accuracy 0.75 (lora)" in printed
    assert run("schedule", "status", "others", "--store", store) == 1
    assert "'others'" in capsys.readouterr().out


def test_a_wrong_schedule_is_one_line_and_nothing_is_started(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_schedule(tmp_path, quite=[])
    for command in ("run", "once", "check"):
        assert run("schedule", command, str(path)) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_a_launch_is_given_what_the_schedule_says_and_no_more(world: World, tmp_path: Path) -> None:
    path = write_schedule(tmp_path, set={"search.trials": 7}, budget={"hours": 2})
    scheduler = world.scheduler(path)
    assert scheduler.look()
    (due,) = scheduler.due
    command = launch_command(scheduler.schedule, due)
    settings = [command[i + 1] for i, each in enumerate(command) if each == "--set"]
    assert settings == [
        "search.trials=7",
        "search.time_budget=7200.0",
        'base="hub:house/base"',
        f"name={due.sweep}",
    ]
    assert command[command.index("--scheduled-by") + 1] == "new-films"
    assert "--resume" not in command
    begun = tmp_path / ".ranksweep" / "sweeps" / due.sweep
    begun.mkdir(parents=True)
    (begun / "sweep.yaml").touch()
    assert launch_command(scheduler.schedule, due)[-1] == "--resume"
    # What runs on a cluster is followed.
    write_schedule(tmp_path, submit="http://head:8265")
    command = launch_command(read_schedule(path), due)
    assert command[-3:] == ["--submit", "http://head:8265", "--resume"]
    assert "--base-name" not in command
    # What lies on a folder of all nodes stays there, and what its place is called goes along.
    write_schedule(tmp_path, submit="http://head:8265", shared=True, remote_folder="/data/sweeps")
    due = replace(due, sighting=replace(due.sighting, family="encoder"))
    command = launch_command(read_schedule(path), due)
    assert command[command.index("--base-name") + 1] == "encoder"
    assert command[-4:] == ["--remote-folder", "/data/sweeps", "--shared", "--resume"]


def test_two_schedules_of_one_name_are_refused(world: World, tmp_path: Path) -> None:
    path = write_schedule(tmp_path)
    with pytest.raises(ConfigError, match="two of the schedules are called 'new-films'"):
        Service([path, path], world.said.append, world.seams())
