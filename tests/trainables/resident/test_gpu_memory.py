"""What the workers' processes are told of how to take memory of a GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import ray

from trainables.resident.gpu_memory import GpuMemory


@pytest.mark.parametrize(
    ("said", "then"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, {"PYTORCH_ALLOC_CONF": "backend:native"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": ""}, {"PYTORCH_CUDA_ALLOC_CONF": ""}),
    ],
)
def test_segments_grow_unless_the_node_says_something_of_it(
    said: dict[str, str], then: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(said))
    monkeypatch.setattr(ray, "get", list)
    worker = SimpleNamespace(execute_async=lambda work: work())
    assert GpuMemory().before_init_train_context([worker]) == {}
    assert os.environ == then
