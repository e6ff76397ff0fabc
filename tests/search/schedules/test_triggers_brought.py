"""Models that are brought to a machine are whole, one for each content, whoever brings them."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from search.schedules.triggers.brought import BroughtModels
from spaces.errors import RanksweepError, StoreError
from tests.search.schedules.whole_models import files_of, model_files, write


@pytest.fixture
def brought(tmp_path: Path) -> BroughtModels:
    return BroughtModels(tmp_path / "cache")


def kept(brought: BroughtModels) -> list[str]:
    models = brought.folder / "models"
    return sorted(each.name for each in models.iterdir()) if models.exists() else []


def test_a_place_is_brought_once_and_found_again(brought: BroughtModels, tmp_path: Path) -> None:
    assert brought.held("s3://b/x 1") is None
    model = brought.bring("s3://b/x 1", "my/step 1", lambda folder: write(folder, model_files()))
    assert model.name == "my-step-1"
    assert files_of(model) == model_files()
    assert brought.held("s3://b/x 1") == model
    assert BroughtModels(tmp_path / "cache").held("s3://b/x 1") == model
    assert brought.held("s3://b/x 2") is None
    assert model.stat().st_mode & 0o077 == 0, "others may not read it"

    other = brought.bring("s3://b/x 2", "again", lambda folder: write(folder, model_files()))
    assert other == model
    assert len(kept(brought)) == 1


def test_many_that_bring_the_same_at_once_leave_one(brought: BroughtModels) -> None:
    together = threading.Barrier(8)
    found: list[Path] = []

    def bring() -> None:
        def fetch(folder: Path) -> None:
            together.wait(20)
            write(folder, model_files())

        found.append(brought.bring("place", "m", fetch))

    threads = [threading.Thread(target=bring) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert kept(brought) == [found[0].parent.name]


@pytest.mark.parametrize(
    ("failure", "raised", "said"),
    [
        (StoreError("the bucket is away"), StoreError, "the bucket is away"),
        (OSError(errno.ENOSPC, "No space left on device"), RanksweepError, "free some space"),
        (OSError(errno.EACCES, "Permission denied"), RanksweepError, "check its permissions"),
    ],
)
def test_what_fails_in_between_leaves_nothing(
    brought: BroughtModels, failure: Exception, raised: type[Exception], said: str
) -> None:
    def fetch(folder: Path) -> None:
        write(folder, {"config.json": b"{"})
        raise failure

    with pytest.raises(raised, match=said) as failed:
        brought.bring("place", "m", fetch)
    assert "\n" not in str(failed.value)
    assert kept(brought) == []
    assert brought.held("place") is None


def test_what_nobody_has_asked_for_in_a_month_goes(brought: BroughtModels) -> None:
    def of(value: float) -> Path:
        return brought.bring(str(value), "m", lambda folder: write(folder, model_files(value)))

    old, asked = of(1), of(2)
    long_ago = time.time() - 40 * 86400
    for each in (old, asked):
        os.utime(each.parent, (long_ago, long_ago))
    assert brought.held("2") == asked
    new = of(3)
    assert kept(brought) == sorted([asked.parent.name, new.parent.name])
    assert brought.held("1") is None
