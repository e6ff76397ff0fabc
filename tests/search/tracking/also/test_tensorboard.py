"""TensorBoard's own reader finds what was recorded, each point once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from search.tracking.also.listener import Listener
from search.tracking.also.tensorboard import TensorBoard
from search.tracking.journal import Journal
from tests.search.tracking.also.told import end, epoch, look, start, told


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def points(events: EventAccumulator) -> dict[str, list[tuple[int, float, float]]]:
    """Metric -> step, value and second of each point."""
    return {
        tag: [
            (event.step, float(make_ndarray(event.tensor_proto)), event.wall_time)
            for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
        if tag in ("accuracy", "look_0.1", "trainable_params")
    }


def state(events: EventAccumulator) -> str:
    (event,) = events.Tensors("state/text_summary")
    return str(make_ndarray(event.tensor_proto).item().decode())


def begin(journal: Journal) -> None:
    start(journal, 0, 1)
    look(journal, 0, 2)
    epoch(journal, 0, 1, 3, 0.1)
    epoch(journal, 0, 2, 4, 1 / 3)
    end(journal, 0, 4, "complete")
    start(journal, 1, 5)
    epoch(journal, 1, 1, 6, 0.25)


def go_on(journal: Journal) -> None:
    end(journal, 1, 9, "failed", "it was cut off")
    start(journal, -1, 10, seed=7)
    epoch(journal, -1, 2, 11, 0.75)
    end(journal, -1, 11, "complete")


def test_event_files_hold_each_point_once_with_its_step_value_and_time(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"

    def make() -> Listener:
        return TensorBoard(folder)

    assert told(tmp_path, make, begin) == []
    files_of_whole = sorted((folder / "trial-0-narrow").iterdir())
    assert told(tmp_path, make, go_on) == []

    assert sorted((folder / "trial-0-narrow").iterdir()) == files_of_whole
    whole = read(folder / "trial-0-narrow")
    assert points(whole) == {
        "trainable_params": [(0, 320.0, 1.0)],
        "look_0.1": [(0, 0.4, 2.0)],
        "accuracy": [(1, 0.1, 3.0), (2, 1 / 3, 4.0)],
    }
    assert state(whole) == "complete"
    cut_off = read(folder / "trial-1-narrow")
    assert points(cut_off)["accuracy"] == [(1, 0.25, 6.0)]
    assert state(cut_off) == "failed: it was cut off"
    assert points(read(folder / "confirm-0-narrow-seed-7"))["accuracy"] == [(2, 0.75, 11.0)]

    content = whole.summary_metadata[SESSION_START_INFO_TAG].plugin_data.content
    hparams: Any = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["arm"].string_value == "narrow"
    assert hparams["learning_rate"].number_value == 1e-3
    assert hparams["partition.rule"].string_value == "hits"
