"""Claims on sweeps: of many schedulers that would run one sweep, one does, and it is run once.

A claim's key names a model, a task and the settings of a sweep. It is owned by a lease, so that it
is taken over from whoever dies. What is said of it is written by each owner under its own number,
`record/<n>.json`, and the highest number counts: an owner that was paused for longer than its lease
can write over nothing that its successor says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, Self

from search.store.keys import CLAIMS, claim_of_object, claim_prefix, claim_record
from search.store.lease import Lease, Leases, Owner, this_process
from search.store.objects import ObjectStorage
from spaces.errors import StoreError

State = Literal["claimed", "running", "interrupted", "failed", "done"]


@dataclass(frozen=True)
class ClaimRecord:
    """What is said of a claim: which sweep of which model it is, and how far that has come."""

    state: State
    """`interrupted` goes on at once with whoever takes it; `failed` is tried again while there are
    tries left."""
    schedule: str
    sweep: str
    model: str
    """What people call it."""
    base: str
    tries_left: int
    """Failures that it may still have."""
    failures: int = 0
    error: str | None = None
    """Of the last failure, in one line."""
    not_before: str | None = None
    """When the next try is due (UTC, ISO 8601)."""
    best: Mapping[str, Any] | None = None
    """Of a sweep that is done: method, metric and value of its best trial, and its run."""
    by: str = ""
    """Who wrote this, as user@host."""
    since: str = ""
    """When it has come to this state (UTC, ISO 8601): for people, compared with no clock."""

    @property
    def is_settled(self) -> bool:
        """Whether nobody will run the sweep any more."""
        return self.state == "done" or self.has_failed_for_good

    @property
    def has_failed_for_good(self) -> bool:
        """Whether it has failed and no try is left."""
        return self.state == "failed" and self.tries_left <= 0

    @classmethod
    def read(cls, encoded: bytes, where: str) -> Self:
        """Raises StoreError where it is no record."""
        try:
            said = json.loads(encoded)
            known = {field.name for field in fields(cls)}
            return cls(**{key: value for key, value in said.items() if key in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"store: {where} is no record of a claim ({error}); remove it, and the sweep is "
                "claimed anew"
            ) from error


class Claim:
    """A claim that this process owns, until it is released, lost or let die."""

    def __init__(self, key: str, objects: ObjectStorage, lease: Lease, now: ClaimRecord | None):
        self.key, self._objects, self._lease = key, objects, lease
        self.record = now
        """What is said of it now, by this owner or the one before; None where it is new."""

    @property
    def number(self) -> int:
        """How many have owned it, this one counted."""
        return self._lease.number

    @property
    def is_lost(self) -> bool:
        """Whether another has taken it over, as far as is known by now."""
        return self._lease.lost.is_set()

    def say(self, record: ClaimRecord) -> bool:
        """Write what is so now; False, and nothing is written, where the claim is lost.

        Raises StoreError.
        """
        if not self._lease.is_held():
            return False
        stamped = asdict(record) | {"by": this_process(), "since": _now()}
        name = claim_record(self.number)
        self._objects.put(name, json.dumps(stamped, indent=2).encode())
        self.record = ClaimRecord(**stamped)
        return True

    def beat(self) -> bool:
        """Show that the owner lives: whether the claim is still its own. Raises StoreError."""
        return self._lease.beat()

    def release(self) -> None:
        """Let the next one own it at once. Raises StoreError."""
        self._lease.release()


class Claims:
    """The claims of a store.

    `lease_seconds` is how long an owner may show no sign of life before others take over; `clock`
    gives seconds that only grow.
    """

    def __init__(
        self,
        objects: ObjectStorage,
        lease_seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease_seconds = lease_seconds
        self._objects, self._clock = objects, clock
        self._leases: dict[str, Leases] = {}

    def take(self, key: str) -> Claim | None:
        """The claim of a key, where nobody alive has it as far as the looks so far tell.

        Raises StoreError.
        """
        lease = self._leases_of(key).take_if_free()
        if lease is None:
            return None
        try:
            record = self.record(key)
        except StoreError:
            lease.release()
            raise
        return Claim(key, self._objects.under(claim_prefix(key)), lease, record)

    def holder(self, key: str) -> Owner | None:
        """Who has it, dead or alive; None where it is free. Raises StoreError."""
        return self._leases_of(key).holder()

    def is_alive(self, key: str) -> bool:
        """Whether the looks of `take` have seen its owner beat, so that it is not waited for."""
        return self._leases_of(key).seen_alive

    def record(self, key: str) -> ClaimRecord | None:
        """What its last owner has said of it; None where nobody has. Raises StoreError."""
        numbers = [
            found[1]
            for name in self._objects.list(f"{claim_prefix(key)}/record")
            if (found := claim_of_object(name)) is not None
        ]
        return self._read(key, max(numbers)) if numbers else None

    def records(self) -> dict[str, ClaimRecord]:
        """Key -> what its last owner has said of it, of all claims. Raises StoreError."""
        highest: dict[str, int] = {}
        for name in self._objects.list(CLAIMS):
            if (found := claim_of_object(name)) is not None:
                key, number = found
                highest[key] = max(number, highest.get(key, 0))
        read = {key: self._read(key, number) for key, number in sorted(highest.items())}
        return {key: record for key, record in read.items() if record is not None}

    def _read(self, key: str, number: int) -> ClaimRecord | None:
        name = f"{claim_prefix(key)}/{claim_record(number)}"
        encoded = self._objects.get(name)
        return None if encoded is None else ClaimRecord.read(encoded, name)

    def _leases_of(self, key: str) -> Leases:
        if key not in self._leases:
            objects = self._objects.under(claim_prefix(key))
            self._leases[key] = Leases(objects, self.lease_seconds, clock=self._clock)
        return self._leases[key]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
