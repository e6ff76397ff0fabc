"""GPU-hours that scheduled sweeps have used, a day, over all schedules of a store."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

from search.config.sweep import ClusterSettings
from search.schedules.looks import wall_clock
from search.store.keys import usage_prefix
from search.store.objects import ObjectStorage


def gpus_of(cluster: ClusterSettings) -> float:
    """The GPUs that a sweep reserves."""
    workers = cluster.groups * cluster.workers_per_group
    return workers * cluster.resources_per_worker.get("GPU", 0.0)


def hours_used(objects: ObjectStorage, now: datetime) -> float:
    """GPU-hours of the day (UTC) so far. Raises StoreError."""
    prefix = usage_prefix(_day(now))
    return sum(_hours(objects.get(name)) for name in objects.list(prefix))


class Meter:
    """Counts the GPU-hours of one run of a sweep, which alone writes them."""

    def __init__(
        self,
        objects: ObjectStorage,
        run: str,
        gpus: float,
        *,
        now: Callable[[], datetime] = wall_clock,
    ) -> None:
        self._objects, self._run, self._gpus, self._now = objects, run, gpus, now
        self._used: dict[str, float] = {}

    def add(self, seconds: float) -> None:
        """Count so many more seconds, for the day that it is now. Raises StoreError."""
        if not self._gpus:
            return
        day = _day(self._now())
        self._used[day] = self._used.get(day, 0.0) + seconds * self._gpus / 3600
        document = {"gpu_hours": round(self._used[day], 4)}
        self._objects.put(f"{usage_prefix(day)}/{self._run}.json", json.dumps(document).encode())


def _day(now: datetime) -> str:
    return now.astimezone(UTC).date().isoformat()


def _hours(encoded: bytes | None) -> float:
    try:
        return 0.0 if encoded is None else float(json.loads(encoded)["gpu_hours"])
    except (ValueError, KeyError, TypeError):
        return 0.0
