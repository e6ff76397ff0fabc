"""Batches that a thread makes ahead are those that would have been made when they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from trainables.training.made_ahead import made_ahead
from trainables.training.stage import MicroBatch

GPU, CPU = torch.device("cuda", 1), torch.device("cpu")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices that threads choose, of which this machine has none."""
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    return devices


def values(made: Iterator[MicroBatch]) -> list[list[float]]:
    return [[float(batch["x"]) for batch in each.passes] for each in made]


def test_they_come_in_order_and_one_ahead(chosen: list[torch.device]) -> None:
    asked: list[int] = []
    second = threading.Event()

    def make(item: int) -> Iterator[MicroBatch]:
        asked.append(item)
        if item == 1:
            second.set()
        for part in range(2):
            yield MicroBatch([{"x": torch.tensor(float(item)), "use_cache": False}], part)

    found = {}
    for device in (CPU, GPU):
        asked.clear()
        with made_ahead(make, range(5), device) as made:
            next(made)
            if device is GPU:
                assert second.wait(10)  # while the first is computed with
            assert len(asked) <= 2
            found[device] = [values(iter(each)) for each in made]
    assert found[GPU] == found[CPU] == [[[item], [item]] for item in range(1, 5)]
    assert chosen == [GPU]


def test_what_making_one_raises_comes_when_it_is_asked_for(chosen: list[torch.device]) -> None:
    def make(item: int) -> Iterator[MicroBatch]:
        if item == 1:
            raise KeyError(item)
        yield MicroBatch([{"x": torch.tensor(float(item))}], 1.0)

    with made_ahead(make, range(5), GPU) as made:
        assert values(iter(next(made))) == [[0.0]]
        with pytest.raises(KeyError):
            next(made)
    assert not [each for each in threading.enumerate() if each.name.startswith("batches")]
