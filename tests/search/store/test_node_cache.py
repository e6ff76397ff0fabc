"""The cache of a node: one download however many ask, and never a wrong byte."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import logging
import multiprocessing
import os
import random
import resource
import signal
import stat
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from search.store import node_cache
from search.store.node_cache import NodeCache
from spaces.errors import ConfigError, ProfileError, StoreError
from tests.spaces.example_profiles import SMALL, drawn_profile

PROCESSES = 8
KEYS = 20
PLENTY = 2**30

spawn = multiprocessing.get_context("spawn")


@functools.cache
def content(number: int) -> bytes:
    """The file of a profile; all are of one size."""
    return drawn_profile(SMALL[:1], seed=number).to_bytes()


SIZE = len(content(0))


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry_names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("profile-*")}


def name_of(data: bytes) -> str:
    return f"profile-{digest_of(data)}.safetensors"


def never() -> bytes:
    raise AssertionError("downloaded again")


class Counted:
    """A download that leaves a mark for every time it was made, across processes."""

    def __init__(self, data: bytes, marks: Path, pause_s: float = 0.0) -> None:
        self.data, self.marks, self.pause_s = data, marks, pause_s

    def __call__(self) -> bytes:
        self.marks.mkdir(exist_ok=True)
        (self.marks / f"{digest_of(self.data)}-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.pause_s)
        return self.data


def downloads(marks: Path, data: bytes) -> int:
    return len(list(marks.glob(f"{digest_of(data)}-*")))


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_cache, "said_of", set())


# Many processes -----------------------------------------------------------------------------------


def _fetch_all(folder: Path, marks: Path, order: int, flock: str, start: Barrier) -> None:
    if flock == "does nothing":
        fcntl.flock = lambda *_: None
    elif flock == "is refused":

        def refused(*_: object) -> None:
            raise OSError(38, "Function not implemented")

        fcntl.flock = refused
    cache = NodeCache(folder, PLENTY)
    numbers = list(range(KEYS))
    random.Random(order).shuffle(numbers)
    start.wait(60)
    for number in numbers:
        data = content(number)
        profile = cache.open(digest_of(data), Counted(data, marks, pause_s=0.01))
        assert profile.to_bytes() == data


def _run(target: Callable[..., None], arguments: list[tuple[object, ...]]) -> None:
    processes = [spawn.Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.mark.command
def test_many_processes_download_each_profile_once(tmp_path: Path) -> None:
    folder, marks = tmp_path / "cache", tmp_path / "marks"
    start = spawn.Barrier(PROCESSES)
    _run(_fetch_all, [(folder, marks, order, "works", start) for order in range(PROCESSES)])
    assert [downloads(marks, content(number)) for number in range(KEYS)] == [1] * KEYS
    assert entry_names(folder) == {name_of(content(number)) for number in range(KEYS)}


@pytest.mark.parametrize("flock", ["does nothing", "is refused"])
@pytest.mark.command
def test_without_locks_bytes_are_right_and_only_downloads_are_wasted(
    flock: str, tmp_path: Path
) -> None:
    folder, marks = tmp_path / "cache", tmp_path / "marks"
    start = spawn.Barrier(3)
    _run(_fetch_all, [(folder, marks, 0, flock, start) for _ in range(3)])
    assert all(1 <= downloads(marks, content(number)) <= 3 for number in range(KEYS))
    assert {path.read_bytes() for path in folder.glob("profile-*")} == {
        content(number) for number in range(KEYS)
    }


def _open_at_random(folder: Path, seed: int) -> None:
    # Room for one profile alone: almost every insertion evicts what another process is opening.
    draws = random.Random(seed)
    cache = NodeCache(folder, SIZE)
    for _ in range(40):
        data = content(draws.randrange(4))
        assert cache.open(digest_of(data), functools.partial(bytes, data)).to_bytes() == data


def test_a_profile_is_opened_though_others_evict_it_all_the_time(tmp_path: Path) -> None:
    _run(_open_at_random, [(tmp_path / "cache", seed) for seed in range(4)])


# Death and damage ---------------------------------------------------------------------------------


def _hang_in_download(folder: Path, data: bytes, started: Path) -> None:
    def download() -> bytes:
        started.touch()
        time.sleep(600)
        return data

    NodeCache(folder, PLENTY).open(digest_of(data), download)


def _hang_before_renaming(folder: Path, data: bytes, started: Path) -> None:
    def replace(*_: object) -> None:
        started.touch()
        time.sleep(600)

    os.replace = replace  # type: ignore[assignment]
    NodeCache(folder, PLENTY).open(digest_of(data), lambda: data)


@pytest.mark.parametrize("hang", [_hang_in_download, _hang_before_renaming])
def test_a_process_killed_while_it_downloads_leaves_no_entry_and_no_lock(
    hang: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data, started = tmp_path / "cache", content(1), tmp_path / "started"
    process = spawn.Process(target=hang, args=(folder, data, started))
    process.start()
    _wait_until(started.exists)
    process.kill()
    process.join()
    assert entry_names(folder) == set()
    monkeypatch.setattr(node_cache, "PATIENCE_S", float("inf"))
    assert NodeCache(folder, PLENTY).open(digest_of(data), lambda: data).to_bytes() == data


def test_a_stopped_downloader_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data, started = tmp_path / "cache", content(1), tmp_path / "started"
    process = spawn.Process(target=_hang_in_download, args=(folder, data, started))
    process.start()
    try:
        _wait_until(started.exists)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        monkeypatch.setattr(node_cache, "PATIENCE_S", 0.1)
        assert NodeCache(folder, PLENTY).open(digest_of(data), lambda: data).to_bytes() == data
    finally:
        process.kill()
        process.join()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_dead_writer_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, PLENTY)
    fresh, old = (tmp_path / f".{name_of(content(n))}.x.part" for n in (1, 2))
    foreign = tmp_path / ".notes.part"
    for path in (fresh, old, foreign):
        path.write_bytes(b"half")
    for path in (old, foreign):
        os.utime(path, (0, 0))
    cache.open(digest_of(content(3)), lambda: content(3))
    assert (fresh.exists(), old.exists(), foreign.exists()) == (True, False, True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: bytes([data[0] ^ 1]) + data[1:],
    ],
)
def test_a_damaged_entry_is_said_and_fetched_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = content(1)
    cache = NodeCache(tmp_path, PLENTY)
    cache.open(digest_of(data), lambda: data)
    path = tmp_path / name_of(data)
    path.write_bytes(damage(data))
    with caplog.at_level(logging.WARNING, "search.store.node_cache"):
        assert cache.open(digest_of(data), lambda: data).to_bytes() == data
    assert [name_of(data) in record.getMessage() for record in caplog.records] == [True]
    assert path.read_bytes() == data
    cache.open(digest_of(data), never)


def test_a_download_of_other_bytes_is_refused_and_not_kept(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, PLENTY)
    with pytest.raises(StoreError, match=f"came for {digest_of(content(1))}"):
        cache.open(digest_of(content(1)), lambda: content(2))
    assert entry_names(tmp_path) == set()


def test_what_a_download_raises_is_passed_on(tmp_path: Path) -> None:
    def broken() -> bytes:
        raise OSError("the network")

    cache = NodeCache(tmp_path, PLENTY)
    with pytest.raises(OSError, match="the network"):
        cache.open(digest_of(content(1)), broken)
    assert cache.open(digest_of(content(1)), lambda: content(1)).to_bytes() == content(1)


def test_bytes_that_are_no_profile_are_refused_as_that(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, PLENTY)
    noise = random.Random(1).randbytes(5_000)
    for _ in range(2):
        with pytest.raises(ProfileError, match="not a whole safetensors file"):
            cache.open(digest_of(noise), lambda: noise)


@pytest.mark.parametrize("name", ["", "../x", "a" * 63, "A" * 64, "a" * 64 + "/.."])
def test_a_name_that_is_no_sha256_never_becomes_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no SHA-256"):
        NodeCache(tmp_path, PLENTY).open(name, never)


# Size ---------------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit_bytes=3 * SIZE)
    for number in (1, 2, 3):
        cache.open(digest_of(content(number)), functools.partial(content, number))
    for age, number in enumerate((2, 3, 1)):  # 2 was used longest ago, 1 last
        path = tmp_path / name_of(content(number))
        os.utime(path, (1_000_000 + age, 1_000_000 + age))
    cache.open(digest_of(content(3)), never)
    cache.open(digest_of(content(4)), lambda: content(4))
    assert entry_names(tmp_path) == {name_of(content(number)) for number in (1, 3, 4)}
    cache.open(digest_of(content(5)), lambda: content(5))
    assert entry_names(tmp_path) == {name_of(content(number)) for number in (3, 4, 5)}


def test_an_entry_larger_than_the_limit_stays_until_the_next(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit_bytes=SIZE // 2)
    for number in (1, 2):
        data = content(number)
        assert cache.open(digest_of(data), functools.partial(bytes, data)).to_bytes() == data
        assert entry_names(tmp_path) == {name_of(data)}
    cache.open(digest_of(content(2)), never)


def test_files_that_are_not_the_caches_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(b"x" * 100)
    cache = NodeCache(tmp_path, limit_bytes=1)
    for number in (1, 2):
        cache.open(digest_of(content(number)), functools.partial(content, number))
    assert (tmp_path / "thesis.tex").exists()


# Where nothing can be kept ------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_to_is_said_once_and_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = NodeCache(tmp_path / "file" / "cache", PLENTY)
    data = content(1)
    with caplog.at_level(logging.WARNING, "search.store.node_cache"):
        for _ in range(2):
            assert cache.open(digest_of(data), lambda: data).to_bytes() == data
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "cannot write to" in said[0]
    assert "RANKSWEEP_CACHE" in said[0]


def _open_without_space(folder: Path, data: bytes) -> None:
    # No file of this process may grow beyond 1,000 bytes: what a full disk does to a write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
    cache = NodeCache(folder, PLENTY)
    assert cache.open(digest_of(data), lambda: data).to_bytes() == data


def test_a_full_disk_is_done_without_and_left_clean(tmp_path: Path) -> None:
    _run(_open_without_space, [(tmp_path / "cache", content(1))])
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_file()] == []


# Whose it is --------------------------------------------------------------------------------------


def test_the_cache_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = NodeCache(tmp_path / "a" / "cache", PLENTY)
        cache.open(digest_of(content(1)), lambda: content(1))
    finally:
        os.umask(before)
    found = {
        stat.S_IMODE(path.stat().st_mode)
        for path in [cache.folder, *cache.folder.rglob("*")]
        if path.is_dir()
    }
    assert found == {0o700}
    files = [path for path in cache.folder.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_the_environment_names_folder_and_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANKSWEEP_CACHE", raising=False)
    monkeypatch.delenv("RANKSWEEP_CACHE_LIMIT", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert NodeCache.default().folder == tmp_path / "home/.cache/ranksweep"
    assert NodeCache.default().limit_bytes == 10 * 2**30
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert NodeCache.default().folder == tmp_path / "home/.cache/ranksweep"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert NodeCache.default().folder == tmp_path / "xdg/ranksweep"
    monkeypatch.setenv("RANKSWEEP_CACHE", str(tmp_path / "own"))
    assert NodeCache.default().folder == tmp_path / "own"


@pytest.mark.parametrize(
    ("written", "size"),
    [("1", 1), ("20GiB", 20 * 2**30), ("1.5 MB", 1_500_000), ("3B", 3), ("0", 0), ("2TiB", 2**41)],
)
def test_the_limit_is_a_size(written: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSWEEP_CACHE_LIMIT", written)
    assert NodeCache.default().limit_bytes == size


@pytest.mark.parametrize("written", ["-1", "many", "GiB", "inf", "1 parsec"])
def test_a_limit_that_is_no_size_is_refused(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSWEEP_CACHE_LIMIT", written)
    with pytest.raises(ConfigError, match=r"RANKSWEEP_CACHE_LIMIT: .* is not a size; write"):
        NodeCache.default()


def test_a_process_without_a_home_does_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RANKSWEEP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(homeless))
    data = content(1)
    assert NodeCache.default().open(digest_of(data), lambda: data).to_bytes() == data
