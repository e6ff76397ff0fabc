"""A claim has one owner, who alone can say what becomes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.store.claims import ClaimRecord, Claims
from search.store.objects import ObjectStorage
from search.store.unwritten import Unwritten
from spaces.errors import StoreError

KEY = "c" * 64
RECORD = ClaimRecord(
    state="claimed", schedule="s", sweep="task-1", model="m", base="hub:a/b", tries_left=3
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def claims_of(uri: str, clock: Clock | None = None) -> Claims:
    return Claims(ObjectStorage(uri), 60.0, clock=clock or Clock())


def test_one_owns_and_the_others_read_what_it_says(store_uri: str) -> None:
    first, second = claims_of(store_uri), claims_of(store_uri)
    claim = first.take(KEY)
    assert claim is not None
    assert claim.record is None
    assert second.take(KEY) is None
    assert claim.say(RECORD)
    told = second.record(KEY)
    assert told is not None
    assert (told.state, told.sweep, told.by == "") == ("claimed", "task-1", False)
    assert second.records() == {KEY: told}
    assert second.holder(KEY) is not None
    claim.release()
    assert second.holder(KEY) is None


def test_whoever_takes_over_knows_what_was_said_and_can_say_more(store_uri: str) -> None:
    clock = Clock()
    first, second = claims_of(store_uri), claims_of(store_uri, clock)
    claim = first.take(KEY)
    assert claim is not None
    claim.say(replace(RECORD, state="running"))
    assert second.take(KEY) is None
    clock.now = 59.0
    assert second.take(KEY) is None
    assert not second.is_alive(KEY)
    clock.now = 61.0
    taken = second.take(KEY)
    assert taken is not None
    assert taken.record is not None
    assert (taken.number, taken.record.state) == (2, "running")
    # The one before can neither beat nor say anything any more.
    assert not claim.beat()
    assert claim.is_lost
    assert taken.say(replace(RECORD, state="done"))
    assert not claim.say(replace(RECORD, state="failed"))
    read = first.record(KEY)
    assert read is not None
    assert read.state == "done"


def test_an_owner_that_beats_is_known_to_live(store_uri: str) -> None:
    clock = Clock()
    first, second = claims_of(store_uri), claims_of(store_uri, clock)
    claim = first.take(KEY)
    assert claim is not None
    for _ in range(5):
        assert second.take(KEY) is None
        clock.now += 50.0
        assert claim.beat()
    assert second.take(KEY) is None
    assert second.is_alive(KEY)


def test_a_store_that_was_away_kills_no_owner(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    first, second = claims_of(store_uri), claims_of(store_uri, clock)
    claim = first.take(KEY)
    assert claim is not None
    assert second.take(KEY) is None
    with monkeypatch.context() as patch:

        def away(_self: ObjectStorage, _prefix: str) -> tuple[str, ...]:
            raise StoreError("store: away; wait")

        patch.setattr(ObjectStorage, "list", away)
        with pytest.raises(StoreError):
            second.take(KEY)
    clock.now = 100.0
    assert second.take(KEY) is None
    assert claim.beat()


def test_a_damaged_record_is_said_with_its_name(store_uri: str) -> None:
    ObjectStorage(store_uri).put(f"claims/{KEY}/record/1.json", b"{torn")
    with pytest.raises(StoreError, match=r"record/1\.json is no record of a claim"):
        claims_of(store_uri).record(KEY)


@pytest.mark.parametrize(
    ("state", "tries", "settled"),
    [("done", 3, True), ("failed", 0, True), ("failed", 1, False), ("running", 0, False)],
)
def test_what_is_settled_is_run_no_more(state: str, tries: int, settled: bool) -> None:
    record = replace(RECORD, state=state, tries_left=tries)  # type: ignore[arg-type]
    assert record.is_settled == settled


def test_what_is_written_for_a_look_is_read_there_and_nowhere_else(store_uri: str) -> None:
    store = ObjectStorage(store_uri)
    store.put("a/old", b"1")
    store.put("a/gone", b"2")
    view = Unwritten(store)
    view.put("a/new", b"3")
    assert view.create("a/made", b"4")
    assert not view.create("a/old", b"5")
    assert view.delete("a/gone")
    assert view.move("a/new", "a/moved")
    assert sorted(view.list("a")) == ["a/made", "a/moved", "a/old"]
    assert (view.get("a/moved"), view.get("a/new"), view.get("a/old")) == (b"3", None, b"1")
    assert sorted(store.list("a")) == ["a/gone", "a/old"]
