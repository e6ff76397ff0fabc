"""The digest of a base's file: hashed once a node, and anew where the file has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trainables.bases.digests import LEAST_KEPT, sha256_of

LONG_AGO = 1_600_000_000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RANKSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, one for each time."""
    digest, names = hashlib.file_digest, []

    def noting(file: Any, *how: Any) -> Any:
        names.append(Path(file.name).name)
        return digest(file, *how)

    monkeypatch.setattr(hashlib, "file_digest", noting)
    return names


def large_file(path: Path, begins: bytes = b"a", at: int = LONG_AGO) -> str:
    """Write a file whose digest is kept; returns its digest."""
    content = begins.ljust(LEAST_KEPT, b"\0")
    path.write_bytes(content)
    os.utime(path, (at, at))
    return hashlib.sha256(content).hexdigest()


def test_workers_that_start_at_once_hash_a_file_once(
    cache: Path, hashed: list[str], tmp_path: Path
) -> None:
    wanted = large_file(tmp_path / "weights")
    with ThreadPoolExecutor(6) as workers:
        found = set(workers.map(sha256_of, [tmp_path / "weights"] * 12))
    assert found == {wanted}
    assert hashed == ["weights"]


def _rewritten(path: Path) -> str:
    return large_file(path, b"b")  # of the same size and time of change


def _replaced(path: Path) -> str:
    found = large_file(path.with_name("other"), b"c")
    path.with_name("other").replace(path)
    return found


def _touched(path: Path) -> str:
    return large_file(path, at=LONG_AGO + 1)


@pytest.mark.parametrize("change", [_rewritten, _replaced, _touched])
def test_a_changed_file_is_hashed_anew(
    change: Callable[[Path], str], cache: Path, hashed: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    large_file(path)
    sha256_of(path)
    wanted = change(path)
    assert sha256_of(path) == sha256_of(path) == wanted
    assert len(hashed) == 2


def test_a_file_that_has_just_changed_is_not_taken_as_known(
    cache: Path, hashed: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(LEAST_KEPT))
    sha256_of(path)
    path.write_bytes(b"b".ljust(LEAST_KEPT, b"\0"))  # maybe within one tick of the file system
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_without_a_place_for_the_cache_and_with_a_spoilt_one_files_are_hashed(
    cache: Path, hashed: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    wanted = large_file(path)
    cache.write_text("a file where the folder should be")
    assert sha256_of(path) == sha256_of(path) == wanted
    cache.unlink()
    sha256_of(path)
    (kept,) = (file for file in (cache / "digests").iterdir() if file.is_file())
    kept.write_text("nothing of the kind")
    assert sha256_of(path) == wanted
    assert sha256_of(path) == wanted
    assert len(hashed) == 4


def test_digests_that_nothing_asks_for_go(cache: Path, tmp_path: Path) -> None:
    sha256s = [tmp_path / name for name in ("one", "two", "three")]
    for path in sha256s:
        large_file(path)
    for path in sha256s[:2]:
        sha256_of(path)
    for file in (cache / "digests").iterdir():
        os.utime(file, (LONG_AGO, LONG_AGO))
    sha256_of(sha256s[0])
    sha256_of(sha256s[2])
    assert sum(file.is_file() for file in (cache / "digests").iterdir()) == 2
