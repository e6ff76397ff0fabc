"""TensorBoard hears of a sweep's runs: one folder of event files each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from search.tracking.also.listener import ToldRun
from search.tracking.facts import Point


class TensorBoard:
    """Writes event files below `folder`: curves by step, the choice for the HParams tab, the state
    as a text."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[int, SummaryWriter] = {}

    def start(self, run: ToldRun, at_ms: int) -> None:
        folder = self._folder / run.name
        if folder.exists():  # an earlier launch has not told it to its end
            shutil.rmtree(folder)
        # A TensorBoard that has read what was there forgets it from this step on.
        writer = self._writers[run.key] = SummaryWriter(str(folder), purge_step=0)
        # Without a list of all columns, which TensorBoard then makes of all runs.
        params = {key: _plain(value) for key, value in run.params.items()}
        _, session, _ = hparams(params, {})  # type: ignore[no-untyped-call]
        assert writer.file_writer is not None
        writer.file_writer.add_summary(session, 0, at_ms / 1000)
        writer.flush()

    def log(self, run: ToldRun, points: Sequence[Point]) -> None:
        writer = self._writers[run.key]
        for point in points:
            writer.add_scalar(
                point.key,
                point.value,
                point.step,
                point.at_ms / 1000,
                new_style=True,
                double_precision=True,
            )
        writer.flush()

    def end(self, run: ToldRun, state: str, error: str | None) -> None:
        writer = self._writers.pop(run.key)
        writer.add_text("state", state if error is None else f"{state}: {error}")
        writer.close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _plain(value: Any) -> str | float | None:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)
