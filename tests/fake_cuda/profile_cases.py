"""What of a profile is run on the fake device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from spaces.errors import JobError
from tests.fake_cuda.device import Launches, fake_cuda, llama
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import Workers
from trainables.layers.hooks import Hooks, weight_of
from trainables.profiling.checkpoints import JobCheckpoints
from trainables.profiling.mask_counts import counts_on_device, mask_sizes
from trainables.profiling.settings import ProfileSettings
from trainables.profiling.static_pass import StaticPass
from trainables.tasks.kinds.registry import kind_of
from trainables.tasks.split import outputs_of, to_device

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROWS, TOKENS, STEPS = 16, 128, 2


class _EnoughError(Exception):
    """A pass has gone as far as it is to go."""


class _Rows:
    """A split of language rows, half of them with padding; its passes are made beforehand."""

    def __init__(self) -> None:
        self.lengths = np.full(ROWS * STEPS, TOKENS)
        self.targets = np.ones(ROWS * STEPS, np.int64)
        mask = torch.ones(ROWS, TOKENS, dtype=torch.int64)
        mask[ROWS // 2 :, TOKENS // 2 :] = 0
        self._given = {
            "input_ids": torch.ones(ROWS, TOKENS, dtype=torch.int64),
            "attention_mask": mask,
            "labels": torch.ones(ROWS, dtype=torch.int64),
            "places": torch.arange(ROWS) * TOKENS,
        }

    def __len__(self) -> int:
        return len(self.lengths)

    def passes(self, _rows: Any, _on_cpu: bool) -> list[dict[str, Any]]:
        return [dict(self._given)]


def profile(counters: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """All of it in one process: `counters` are what `_groups` gets, one after another."""
    return {
        "launches": _launches(),
        "groups": [_groups(**each) for each in counters],
        "masks": [_masks(transposed) for transposed in (False, True)],
    }


def _launches() -> dict[str, Any]:
    """What a static pass over a layer of a 7B adds to a micro-batch that only makes gradients."""
    totals: list[int] = []
    split = _Rows()
    with fake_cuda(), Launches() as launches, _memory(10 * 2**30):
        run, model = _static_pass(split, lambda _total: totals.append(launches.number))
        run()
        of_pass = totals[-1] - totals[-2]
        weights = [weight_of(model, target) for target in _targets(model)]
        with Hooks() as hooks:
            for weight in weights:
                hooks.on_gradient(weight, lambda weight: setattr(weight, "grad", None))
            before = launches.number
            workers = Workers(0, 1, torch.device("cuda"))
            batch = to_device(split.passes(None, False)[0], workers)
            labels = batch.pop("labels")
            loss = torch.zeros(()) + kind_of("causal").summed_loss(outputs_of(model, batch), labels)
            (loss / ROWS * 1.0).backward()
            bare = launches.number - before
    return {"modules": len(weights), "added": of_pass - bare, "to_host": launches.to_host}


def _groups(peak: int, free: int, reserved: int, total: int) -> int | str:
    """In how many groups of modules a pass over two layers of a 7B goes, by the GPU's counters; or
    why it does not."""
    totals: list[int] = []
    split = _Rows()
    with fake_cuda(), _memory(free, reserved, total, peak):
        run, _ = _static_pass(split, totals.append, layers=2)
        try:
            run()
        except JobError as error:
            return str(error)
    return totals[-1] // STEPS


def _masks(transposed: bool) -> dict[str, Any]:
    """Counting the masks of a layer of a 7B: launches, and what of it the host waits for."""
    with fake_cuda(), Launches() as launches:
        score = torch.zeros(11008, 4096).T if transposed else torch.zeros(4096, 11008)
        sizes = mask_sizes(score.numel(), (1.0, 2.0, 5.0, 10.0))
        counts = counts_on_device(score, sizes)
    return {
        "shape": list(counts.shape), "launches": launches.number, "to_host": launches.to_host,
    }  # fmt: skip


def _targets(model: nn.Module) -> Any:
    return resolve_targets(model, (), TARGET_MODULES)


def _static_pass(split: _Rows, step: Any, layers: int = 1) -> tuple[Any, nn.Module]:
    """What runs a pass up to its last step; `step` hears the number of steps in all."""
    model, workers = llama(layers), Workers(0, 1, torch.device("cuda"))

    def progress(_phase: str, done: int, total: int, _rate: float | None = None) -> None:
        step(total)
        if done == STEPS:
            raise _EnoughError

    settings = ProfileSettings(batch_size=ROWS, calibration_batches="all")
    saves = JobCheckpoints(None, identity="", every=None, workers=workers, on_message=print)
    task: Any = SimpleNamespace(splits={"train": split}, its_kind=kind_of("causal"))
    static = StaticPass(
        model, _targets(model), task, settings, workers=workers, checkpoints=saves,
        trained=dict, progress=progress,
    )  # fmt: skip

    def run() -> None:
        try:
            static.run()
        except _EnoughError:
            return
        raise AssertionError("the pass has not come to its last step")

    return run, model


@contextmanager
def _memory(free: int, reserved: int = 0, total: int = 0, peak: int = 0) -> Iterator[None]:
    """The counters of torch.cuda, which a CPU build lacks."""
    with mock.patch.multiple(
        torch.cuda,
        mem_get_info=lambda _device: (free, total),
        memory_reserved=lambda _device: reserved,
        max_memory_allocated=lambda _device: peak,
        reset_peak_memory_stats=lambda _device: None,
    ):
        yield
