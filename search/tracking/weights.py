"""Which trials' trained weights are kept, and their way from the workers to MLflow.

A worker leaves the weights of a finished trial, or confirmation, with the queue. The driver takes
those that are wanted into the sweep's folder and gives them to their MLflow runs when the search,
or the confirmation, is over: a driver that dies in between leaves files that the next launch finds.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal

from search.paths import private_files
from search.tracking.tracker import Tracker
from spaces.errors import TrackingError

logger = logging.getLogger(__name__)

Which = Literal["best", "all", "none"]


class WeightFiles:
    """The weights of runs in a folder of this machine, by number, until MLflow has them.

    `what` is what a message calls one of the runs.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self.folder, self._what = folder, what

    def file(self, number: int) -> Path:
        """The weights of one run, under the name that they have in MLflow."""
        return self.folder / f"{number:05d}" / "weights.safetensors"

    def keep(self, number: int, weights: bytes) -> None:
        """Hold the weights of a run. Raises OSError where they cannot be written."""
        file = self.file(number)
        part = file.with_suffix(".part")
        with private_files():
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(weights)
                part.replace(file)
            except OSError:
                self._drop(number)
                raise

    def log(self, tracker: Tracker, run_ids: Mapping[int, str]) -> str | None:
        """Give what is held to the runs, whose ids are those of `run_ids` by number.

        Returns why some could not be given; these stay on this machine.
        """
        problem = None
        for number in sorted(self._held()):
            if number not in run_ids:
                problem = f"{self._what} {number} has no run in MLflow"
                continue
            try:
                tracker.log_file(run_ids[number], self.file(number))
            except TrackingError as error:
                problem = str(error)
                continue
            self._drop(number)
        return problem

    def _held(self) -> set[int]:
        return {int(file.parent.name) for file in self.folder.glob("[0-9]*/weights.safetensors")}

    def _drop(self, number: int) -> None:
        shutil.rmtree(self.file(number).parent, ignore_errors=True)


class KeptWeights(WeightFiles):
    """Those of a sweep's trials.

    `collect` fetches what the job of a trial, by its number, has left; `best` gives the numbers of
    the trials that are worth keeping among those complete so far.
    """

    def __init__(
        self,
        folder: Path,
        which: Which,
        collect: Callable[[int], bytes | None],
        best: Callable[[], Collection[int]],
    ) -> None:
        super().__init__(folder, "trial")
        self._which, self._collect, self._best = which, collect, best

    def drop_spare(self, spare: Collection[int]) -> None:
        """Drop what was held for the case that a better one falls, once no trial is to come."""
        if self._which == "best":
            for held in self._held() & set(spare):
                self._drop(held)

    def trial_completed(self, number: int) -> None:
        """Keep the weights of a trial if they are wanted, and drop those that no longer are."""
        if self._which == "none":
            return
        weights = self._collect(number)
        wanted = {number, *self._held()} if self._which == "all" else set(self._best())
        if weights is not None and number in wanted:
            self.keep(number, weights)
        for held in self._held() - wanted:
            self._drop(held)
