"""A scheduler as a process of its own, whose models and sweeps cost nothing.

It sees the models that `models.txt` lists, one a line, and holds each claim until there is no file
`hold`, before its sweep is begun.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from search.interrupts import Interrupts
from search.schedules.looks import wall_clock
from search.schedules.schedule import Schedule
from search.schedules.service import Service
from search.schedules.sight import Due
from search.schedules.trigger import Look, Sighting
from search.store.objects import ObjectStorage
from tests.search.schedules.schedules import World, script


class Listed:
    """The models of `models.txt`."""

    name = "list"

    def look(self, _memory: ObjectStorage) -> Look:
        lines = Path("models.txt").read_text().split()
        return Look(tuple(Sighting(self.name, each, f"hub:house/{each}", each) for each in lines))


def held(schedule: Schedule, due: Due) -> Sequence[str]:
    with Path("held.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    while Path("hold").exists():
        time.sleep(0.02)
    return script(schedule, due)


if __name__ == "__main__":
    seams = World().seams(
        now=wall_clock,
        monotonic=time.monotonic,
        command=held,
        build=lambda _schedule: [Listed()],
    )
    with Interrupts() as interrupts:
        Service([Path("schedule.yaml")], lambda text: print(text, flush=True), seams).run(
            interrupts
        )
