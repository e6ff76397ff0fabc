"""Tokens of a set are written once, mapped from then on, and whole or made again."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spaces.errors import DataError
from trainables.tasks.language.token_file import EXAMPLES_AT_ONCE, key_of, written_tokens

Encoded = tuple[list[int], list[bool]]


def drawn(count: int, longest: int = 12) -> Iterator[Encoded]:
    rng = np.random.default_rng(count)
    for _ in range(count):
        length = int(rng.integers(1, longest))
        yield rng.integers(0, 2**31 - 1, length).tolist(), (rng.random(length) < 0.5).tolist()


def untouched() -> Iterator[Encoded]:
    raise AssertionError("the examples are made again")
    yield


@pytest.mark.parametrize("count", [1, EXAMPLES_AT_ONCE, 2 * EXAMPLES_AT_ONCE + 7])
def test_what_is_written_is_what_was_given(tmp_path: Path, count: int) -> None:
    flat = written_tokens(tmp_path / "tokens", "key", drawn(count))
    assert len(flat) == count
    arrays = (flat.input_ids, flat.targets, flat.offsets)
    assert [each.dtype.name for each in arrays] == ["int32", "int8", "int64"]
    for i, (ids, targets) in enumerate(drawn(count)):
        part = slice(flat.offsets[i], flat.offsets[i + 1])
        assert flat.input_ids[part].tolist() == ids
        assert flat.targets[part].tolist() == targets
    assert flat.offsets[-1] == len(flat.input_ids) == len(flat.targets)
    assert isinstance(flat.input_ids, np.memmap)


def test_it_is_made_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    first = written_tokens(tmp_path, "key", drawn(5))
    again = written_tokens(tmp_path, "key", untouched())
    assert np.array_equal(first.input_ids, again.input_ids)
    assert {path.name for path in tmp_path.iterdir()} <= {"key", "key.lock"}


@pytest.mark.parametrize("name", ["input_ids", "targets", "offsets"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_what_is_damaged_is_made_again(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    written_tokens(tmp_path, "key", drawn(50))
    path = tmp_path / "key" / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(whole[:-1] if damage == "cut" else bytes([whole[0] ^ 1]) + whole[1:])
    flat = written_tokens(tmp_path, "key", drawn(50))
    assert path.read_bytes() == whole
    assert len(flat) == 50
    assert "is damaged" in caplog.text


def test_a_run_that_fails_leaves_no_tokens(tmp_path: Path) -> None:
    def broken() -> Iterator[Encoded]:
        yield from drawn(2000)
        raise DataError("task.messages: a row is wrong; correct it")

    with pytest.raises(DataError, match="a row is wrong"):
        written_tokens(tmp_path, "key", broken())
    assert not (tmp_path / "key").exists()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(written_tokens(tmp_path, "key", drawn(3))) == 3


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"task\.data: tokens cannot be written to .*file/tokens"):
        written_tokens(tmp_path / "file" / "tokens", "key", drawn(1))


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        example = ([7] * 64, [True] * 64)
        tracemalloc.start()
        written_tokens(tmp_path, str(count), (example for _ in range(count)))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(EXAMPLES_AT_ONCE)  # imports and caches
    assert peak(20 * EXAMPLES_AT_ONCE) < 1.2 * peak(2 * EXAMPLES_AT_ONCE)


def test_the_name_is_of_the_rows_their_order_and_how_they_become_tokens() -> None:
    named = {
        key_of(hashes, encoding)
        for hashes in (["a", "b"], ["b", "a"], ["ab"], [])
        for encoding in ({"base": "x", "max_length": 8}, {"base": "x", "max_length": 9})
    }
    assert len(named) == 8
    same = [key_of(["a"], encoding) for encoding in ({"x": 1, "y": 2}, {"y": 2, "x": 1})]
    assert same[0] == same[1]
