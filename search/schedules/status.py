"""The claims of a store, as they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.store.claims import Claims
from search.store.objects import ObjectStorage

_ORDER = ("running", "claimed", "interrupted", "failed", "done")


@dataclass(frozen=True)
class ClaimRow:
    """One claim, as its last owner has told of it.

    Whether that owner lives is known to who watches for longer alone: `holder` is who has not let
    go of it.
    """

    key: str
    schedule: str
    sweep: str
    model: str
    base: str
    state: str
    by: str
    since: str
    holder: str | None
    tries_left: int
    not_before: str | None
    error: str | None
    best: Mapping[str, Any] | None


def claims_of(store: str, schedule: str | None = None) -> list[ClaimRow]:
    """The claims of a store, or of one schedule; what is under way first, then the newest.

    Raises ConfigError and StoreError.
    """
    claims = Claims(ObjectStorage(store), 300.0)
    rows = []
    for key, record in claims.records().items():
        if schedule is not None and record.schedule != schedule:
            continue
        holder = None if record.is_settled else claims.holder(key)
        rows.append(
            ClaimRow(
                key=key,
                schedule=record.schedule,
                sweep=record.sweep,
                model=record.model,
                base=record.base,
                state=record.state,
                by=record.by,
                since=record.since,
                holder=None if holder is None else str(holder),
                tries_left=record.tries_left,
                not_before=record.not_before,
                error=record.error,
                best=record.best,
            )
        )
    rows.sort(key=lambda row: row.since, reverse=True)
    return sorted(rows, key=lambda row: _ORDER.index(row.state))
