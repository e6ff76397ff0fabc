"""When a worker computes its base's layers again: where it must, and all workers alike."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from tests.trainables.families import ENCODER
from trainables.engine.workers import Workers
from trainables.resident.activations import Activations

GIB = 2**30


@pytest.fixture
def encoder() -> nn.Module:
    config = transformers.BertConfig(**ENCODER)
    model: nn.Module = transformers.BertModel(config)
    return model


def on(device: str) -> Workers:
    return Workers(0, 1, torch.device(device))


@pytest.mark.parametrize(("beside", "expected"), [(11 * GIB, False), (12 * GIB, True)])
def test_auto_goes_by_what_the_device_has_free(
    encoder: nn.Module, beside: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of 10 GiB free and 2 GiB held for nothing, 5 % are left to the allocator
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 9 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 7 * GIB)
    assert Activations("auto", beside).recomputed(encoder, on("cuda")) is expected
    assert not Activations("off", beside).recomputed(encoder, on("cuda"))
    assert not Activations("auto").recomputed(encoder, on("cuda"))


def test_a_cpu_does_so_only_where_it_is_told(encoder: nn.Module) -> None:
    assert not Activations("auto", 2**50).recomputed(encoder, on("cpu"))
    assert Activations("on").recomputed(encoder, on("cpu"))


def test_one_worker_without_room_decides_for_all(
    encoder: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workers, "gather_objects", lambda _self, value: [value, True])
    assert Activations("auto", 1).recomputed(encoder, on("cpu"))
    albert = transformers.AlbertModel(transformers.AlbertConfig(**ENCODER, embedding_size=8))
    assert not Activations("auto", 1).recomputed(albert, on("cpu"))
