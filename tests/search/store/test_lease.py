"""Of many launches that need one profile one computes it, whoever dies, sleeps or misreads time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search.store.lease import BEATS_PER_LEASE, Lease, Leases, Owner, this_process
from search.store.objects import ObjectStorage


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStorage:
    return ObjectStorage(f"file://{tmp_path / 'store'}").under("profiles/key")


class Clock:
    """One process's own clock; `sleep` moves it and lets the others act meanwhile."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()

    def before(self, end: float) -> Callable[[], bool]:
        return lambda: self.now < end


def leases_of(objects: ObjectStorage, seconds: float = 60.0, clock: Clock | None = None) -> Leases:
    clock = clock or Clock()
    return Leases(objects, seconds, clock=clock, sleep=clock.sleep)


def taken(leases: Leases) -> Lease:
    lease = leases.take(lambda: True)
    assert lease is not None
    return lease


def test_the_first_owns_and_says_who_it_is(objects: ObjectStorage) -> None:
    lease = taken(leases_of(objects, 45.0))
    assert lease.number == 1
    assert lease.is_held()
    said = json.loads(objects.get("lease/1.json") or b"")
    assert (said["by"], said["process"], said["seconds"]) == (this_process(), os.getpid(), 45.0)


def test_a_waiter_owns_as_soon_as_the_owner_releases(objects: ObjectStorage) -> None:
    owner, clock = taken(leases_of(objects)), Clock()
    clock.meanwhile = owner.release
    second = taken(leases_of(objects, clock=clock))
    assert second.number == 2
    assert clock.now < 60.0
    assert not owner.is_held()


def test_a_dead_owner_is_followed_after_its_own_lease_time(objects: ObjectStorage) -> None:
    taken(leases_of(objects, 30.0))
    clock = Clock()
    second = taken(leases_of(objects, 600.0, clock))
    assert second.number == 2
    assert 30.0 < clock.now <= 30.0 * (1 + 1 / BEATS_PER_LEASE)


def test_an_owner_that_beats_is_never_followed(objects: ObjectStorage) -> None:
    owner, clock = taken(leases_of(objects, 30.0)), Clock()
    last = 0.0

    def beat_in_time() -> None:
        nonlocal last
        if clock.now - last >= 29.0:
            last = clock.now
            assert owner.beat()

    clock.meanwhile = beat_in_time
    assert leases_of(objects, clock=clock).take(lambda: clock.now < 3000.0) is None
    assert owner.is_held()


@pytest.mark.parametrize("skew", [-1e9, -3600.0, 0.0, 3600.0, 1e9])
def test_no_clock_is_compared_with_another(objects: ObjectStorage, skew: float) -> None:
    lease = taken(leases_of(objects, 30.0))
    said = json.loads(objects.get("lease/1.json") or b"")
    said["since"] = "1970-01-01T00:00:00+00:00" if skew < 0 else "2999-01-01T00:00:00+00:00"
    objects.put("lease/1.json", json.dumps(said).encode())
    clock = Clock(skew)
    assert taken(leases_of(objects, clock=clock)).number == 2
    assert 30.0 < clock.now - skew < 40.0
    assert not lease.is_held()


def test_a_paused_owner_learns_that_it_lost_and_writes_nothing_more(objects: ObjectStorage) -> None:
    paused = taken(leases_of(objects))
    second = taken(leases_of(objects))
    before = {name: objects.get(name) for name in objects.list("lease")}
    assert not paused.beat()
    paused.release()
    assert paused.lost.is_set()
    assert {name: objects.get(name) for name in objects.list("lease")} == before
    assert second.is_held()


def test_the_lease_of_an_earlier_life_with_the_same_number_is_not_ones_own(
    objects: ObjectStorage,
) -> None:
    old = taken(leases_of(objects))
    for name in objects.list("lease"):
        objects.delete(name)
    assert taken(leases_of(objects)).number == 1
    assert not old.is_held()


def test_nobody_owns_what_is_published(objects: ObjectStorage) -> None:
    owner, clock = taken(leases_of(objects)), Clock()
    published = False

    def publish() -> None:
        nonlocal published
        published = True
        owner.release()

    clock.meanwhile = publish
    assert leases_of(objects, clock=clock).take(lambda: not published) is None
    assert len([name for name in objects.list("lease") if name.endswith(".json")]) == 1


def test_what_is_published_between_the_look_and_the_lease_is_noticed(
    objects: ObjectStorage,
) -> None:
    answers = iter([True, False])
    assert leases_of(objects).take(lambda: next(answers)) is None
    assert taken(leases_of(objects)).number == 2  # the lease taken in vain was released


def test_a_waiter_hears_whom_it_waits_for(objects: ObjectStorage) -> None:
    taken(leases_of(objects, 30.0))
    heard: list[tuple[Owner, float]] = []
    leases_of(objects).take(lambda: True, lambda owner, silent: heard.append((owner, silent)))
    assert {owner.by for owner, _ in heard} == {this_process()}
    assert [silent for _, silent in heard] == sorted(silent for _, silent in heard)
    assert str(heard[0][0]).startswith(f"{this_process()} (process {os.getpid()}), since 20")


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"[]", b'{"seconds": "soon"}',
        b'{"by": "x", "process": 1, "since": "", "seconds": -1}',
        b'{"by": "x", "process": 1, "since": "", "seconds": 1e300}',
    ],
)  # fmt: skip
def test_a_damaged_lease_is_followed_after_the_waiters_lease_time(
    objects: ObjectStorage, damage: bytes
) -> None:
    objects.put("lease/1.json", damage)
    clock = Clock()
    assert taken(leases_of(objects, 20.0, clock)).number == 2
    assert 20.0 < clock.now < 30.0


def test_other_objects_are_no_leases(objects: ObjectStorage) -> None:
    for name in (
        "lease/x.json",
        "lease/0.json",
        "lease/01.json",
        "lease/2.beat",
        "lease/3.json.old",
    ):
        objects.put(name, b"{}")
    assert taken(leases_of(objects)).number == 1


def test_of_many_waiters_one_follows_a_dead_owner(objects: ObjectStorage) -> None:
    taken(leases_of(objects, 0.2))
    owned: list[int] = []
    done = threading.Event()

    def wait() -> None:
        with_lease = Leases(objects, 60.0).take(lambda: not done.is_set())
        if with_lease is not None:
            owned.append(with_lease.number)
            done.set()

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert owned == [2]


@pytest.mark.parametrize("seed", range(20))
def test_at_any_time_at_most_one_of_random_launches_holds(
    objects: ObjectStorage, seed: int
) -> None:
    """Owners that pause, die, beat and release at random: the store never shows two of them."""
    draw = random.Random(seed)
    all_leases: list[Lease] = []
    alive: list[Lease] = []
    for _ in range(60):
        action = draw.choice(["take", "beat", "release", "pause", "die"])
        if action == "take":
            clock = Clock(draw.uniform(-1e6, 1e6))
            clock.meanwhile = lambda: [each.beat() for each in alive[:1] if draw.random() < 0.2]
            ends = clock.now + draw.choice([0.0, 10.0, 200.0])
            lease = leases_of(objects, 20.0, clock).take(clock.before(ends))
            if lease is not None:
                all_leases.append(lease)
                alive.append(lease)
        elif alive:
            lease = draw.choice(alive)
            if action == "beat":
                lease.beat()
            elif action == "release":
                lease.release()
                alive.remove(lease)
            elif action == "die":
                alive.remove(lease)
        assert sum(lease.is_held() for lease in all_leases) <= 1
    numbers = [lease.number for lease in all_leases]
    assert numbers == sorted(set(numbers))


# Processes --------------------------------------------------------------------------------------

LAUNCH = """
import sys, time
from pathlib import Path
from search.store.lease import Leases
from search.store.objects import ObjectStorage

uri, log, work, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
objects = ObjectStorage(uri).under("profiles/key")
def note(word):
    with log.open("a") as file:
        file.write(f"{word}\\n")
lease = Leases(objects, seconds).take(lambda: objects.get("manifest.json") is None)
if lease is not None:
    with lease:
        note("computes")
        end = time.monotonic() + work
        while time.monotonic() < end and not lease.lost.is_set():
            time.sleep(0.02)
        if lease.is_held():
            first = objects.create("manifest.json", str(time.time_ns()).encode())
            note("published" if first else "agrees")
        else:
            note("lost")
"""


class Launches:
    def __init__(self, uri: str, folder: Path) -> None:
        self._uri, self._log = uri, folder / "log"
        self._log.touch()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, work: float, seconds: float) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[3])
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, self._uri, str(self._log), str(work), str(seconds)],
            env={**os.environ, "PYTHONPATH": root},
        )
        self._processes.append(process)
        return process

    @property
    def log(self) -> list[str]:
        return self._log.read_text().split()

    def wait_for(self, word: str, times: int = 1) -> None:
        deadline = time.monotonic() + 60
        while self.log.count(word) < times:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def launches(store_uri: str, tmp_path: Path) -> Iterator[Launches]:
    launches = Launches(store_uri, tmp_path)
    yield launches
    launches.end()


@pytest.mark.command
def test_of_several_processes_one_computes(launches: Launches) -> None:
    processes = [launches.start(work=0.5, seconds=20) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6
    assert launches.log == ["computes", "published"]


@pytest.mark.command
def test_a_killed_owner_is_followed(launches: Launches) -> None:
    owner = launches.start(work=600, seconds=2)
    launches.wait_for("computes")
    waiters = [launches.start(work=0.2, seconds=2) for _ in range(2)]
    owner.kill()
    assert [process.wait(60) for process in waiters] == [0, 0]
    assert launches.log == ["computes", "computes", "published"]


@pytest.mark.command
def test_an_owner_paused_past_its_lease_discards_its_work(launches: Launches) -> None:
    owner = launches.start(work=3, seconds=1.5)
    launches.wait_for("computes")
    owner.send_signal(signal.SIGSTOP)
    waiter = launches.start(work=0.2, seconds=1.5)
    assert waiter.wait(60) == 0
    owner.send_signal(signal.SIGCONT)
    assert owner.wait(60) == 0
    assert launches.log == ["computes", "computes", "published", "lost"]
