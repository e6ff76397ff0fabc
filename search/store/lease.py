"""Leases: of many that want to do one thing, such as to compute a profile, one does.

They need nothing of a store but create-if-absent. Objects `<n>.json`, n = 1, 2, ..., are created if
absent, and the highest n owns. The owner alone rewrites `<n>.beat`. A waiter that sees no new beat
for the owner's lease time, on its own clock, creates n + 1 and owns. No two clocks are compared.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from search.store.objects import ObjectStorage
from spaces.errors import StoreError

BEATS_PER_LEASE = 4
"""How often within the lease time an owner shows that it lives."""
LONGEST_LEASE_S = 24 * 3600.0

_log = logging.getLogger(__name__)
_LEASE = re.compile(r"lease/([1-9][0-9]{0,8})\.json")
_FOLDER = "lease"


@dataclass(frozen=True)
class Owner:
    """Who holds a lease, as its own file says: for people to read, compared with no clock."""

    number: int
    by: str
    process: int
    since: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.by} (process {self.process}), since {self.since}"


@dataclass(frozen=True)
class _Seen:
    """The highest lease as a waiter sees it; any difference is a sign of life."""

    owner: Owner
    lease: bytes
    beat: bytes

    @property
    def released(self) -> bool:
        return self.beat.startswith(b"released")


def this_process() -> str:
    """Who runs this process, as user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class Lease:
    """The right to do one thing, such as to compute a profile: until released, lost or let die.

    While held as a context manager a thread of its own beats. `lost` is set when another launch has
    taken over, which happens to an owner that was paused for longer than its lease.
    """

    def __init__(self, leases: Leases, number: int, content: bytes) -> None:
        self._leases, self.number, self._content = leases, number, content
        self._beats = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = threading.Event()

    def __enter__(self) -> Lease:
        self._thread = threading.Thread(target=self._beat_on, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.release()
        except StoreError as error:
            _log.warning("%s; others wait %g s for this lease", error, self._leases.seconds)

    def is_held(self) -> bool:
        """Ask the store whether this lease still owns; once lost it stays lost. May raise
        StoreError."""
        if not self.lost.is_set():
            seen = self._leases.look()
            if seen is None or seen.lease != self._content:
                self.lost.set()
        return not self.lost.is_set()

    def beat(self) -> bool:
        """Show that the owner lives, unless the lease is lost: whether it is held."""
        if not self.is_held():
            return False
        self._beats += 1
        self._leases.write_beat(self.number, f"{self._beats} {secrets.token_hex(8)}")
        return True

    def release(self) -> None:
        """Let the next launch own at once."""
        if self.is_held():
            self._leases.write_beat(self.number, f"released {secrets.token_hex(8)}")
            self.lost.set()

    def _beat_on(self) -> None:
        while not self._ended.wait(self._leases.seconds / BEATS_PER_LEASE):
            try:
                if not self.beat():
                    return
            except StoreError as error:
                # A store that is away is away for the others too; the lease is asked for before
                # anything is published.
                _log.warning("the lease could not be renewed: %s", error)


class Leases:
    """The leases of one profile or claim. `objects` are the objects of its key.

    `clock` gives seconds that only grow; `seconds` is how long this launch, once it owns, may show
    no sign of life.
    """

    def __init__(
        self,
        objects: ObjectStorage,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._objects, self.seconds = objects, seconds
        self._clock, self._sleep = clock, sleep
        self._last: _Seen | None = None
        self._changed = clock()
        self.seen_alive = False
        """Whether the looks so far have seen a sign of life of the one who holds it."""

    def take(
        self,
        is_needed: Callable[[], bool],
        on_wait: Callable[[Owner, float], None] = lambda _owner, _waited: None,
    ) -> Lease | None:
        """A lease, as soon as nobody alive holds one; None when it is no longer needed.

        `is_needed` is asked at every look, and once more after the lease is taken; `on_wait` hears
        at every look whom this launch waits for and for how many seconds it has seen no new beat.
        """
        self._last, self._changed = None, self._clock()
        while is_needed():
            seen, silent = self._watched()
            if _is_free(seen, silent):
                lease = self._create(1 if seen is None else seen.owner.number + 1)
                if lease is None:  # another waiter was first
                    continue
                if is_needed():
                    return lease
                lease.release()
                return None
            assert seen is not None
            on_wait(seen.owner, silent)
            self._sleep(min(5.0, max(0.05, seen.owner.seconds / (2 * BEATS_PER_LEASE))))
        return None

    def take_if_free(self) -> Lease | None:
        """A lease where nobody alive holds one, as far as this and the earlier looks tell.

        A dead owner is known by looks that are further apart than its lease time. Raises
        StoreError; then nothing is known of the time before.
        """
        seen, silent = self._watched()
        if not _is_free(seen, silent):
            return None
        return self._create(1 if seen is None else seen.owner.number + 1)

    def holder(self) -> Owner | None:
        """Who has a lease that is not released, dead or alive."""
        seen = self.look()
        return None if seen is None or seen.released else seen.owner

    def _watched(self) -> tuple[_Seen | None, float]:
        """The highest lease, and for how many seconds it has shown no new sign of life."""
        try:
            seen = self.look()
        except StoreError:
            # A store that is away is away for the owner too, which could not beat.
            self._last = None
            raise
        if seen != self._last:
            self.seen_alive = None not in (self._last, seen)
            self._last, self._changed = seen, self._clock()
        return seen, self._clock() - self._changed

    def look(self) -> _Seen | None:
        """The highest lease and its last beat; None where there was never one."""
        numbers = (_LEASE.fullmatch(name) for name in self._objects.list(_FOLDER))
        highest = max((int(match.group(1)) for match in numbers if match), default=None)
        if highest is None:
            return None
        lease = self._objects.get(f"{_FOLDER}/{highest}.json") or b""
        beat = self._objects.get(f"{_FOLDER}/{highest}.beat") or b""
        return _Seen(_owner(highest, lease, self.seconds), lease, beat)

    def write_beat(self, number: int, text: str) -> None:
        """Write the beat of a lease that this process owns."""
        self._objects.put(f"{_FOLDER}/{number}.beat", text.encode())

    def _create(self, number: int) -> Lease | None:
        document = {
            "by": this_process(),
            "process": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": self.seconds,
            "token": secrets.token_hex(16),
        }
        content = json.dumps(document).encode()
        if not self._objects.create(f"{_FOLDER}/{number}.json", content):
            return None
        return Lease(self, number, content)


def _is_free(seen: _Seen | None, silent: float) -> bool:
    return seen is None or seen.released or silent > seen.owner.seconds


def _owner(number: int, lease: bytes, default_seconds: float) -> Owner:
    """What a lease file says of its owner; a damaged one is an owner that nobody knows."""
    try:
        said: Any = json.loads(lease)
        seconds = float(said["seconds"])
        if not 0 < seconds <= LONGEST_LEASE_S:
            seconds = default_seconds
        return Owner(number, str(said["by"]), int(said["process"]), str(said["since"]), seconds)
    except (ValueError, KeyError, TypeError):
        return Owner(number, "unknown", 0, "an unknown time", default_seconds)
