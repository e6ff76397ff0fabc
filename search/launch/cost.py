"""What a sweep would cost here: the time of a layer's step, measured, times how many there are."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear

from search.config.sweep import SweepConfig
from spaces.target import TargetModule
from trainables.bases.parts import load_config
from trainables.tasks.split import Split
from trainables.tasks.task import Task

TYPICAL_RANK = 8
"""Rank of the adapters that the probe times: every method stays near it."""
PROBE_FLOPS = 1e10
"""Work of one timed layer at most; a larger one is timed on fewer tokens."""
BESIDE_THE_LAYERS = 1.3
"""A step takes so many times what its linear layers take: normalisation, optimizer, batching."""
START_SECONDS = 30.0
"""Until Ray, the worker group and the base stand ready."""
SORT_SECONDS_PER_WEIGHT = 6e-8
"""Two top-k masks of one weight, on a CPU."""


def steps_an_epoch(task: Task, batch_size: int) -> int:
    """Optimizer steps of one epoch."""
    return math.ceil(len(task.splits["train"].labels) / batch_size)


def profile_steps(config: SweepConfig, task: Task) -> dict[str, int]:
    settings = config.profile
    per_epoch = steps_an_epoch(task, settings.batch_size)
    steps = per_epoch * settings.epochs
    wanted = settings.calibration_batches
    return {
        "optimizer_steps": steps,
        "scored_steps": math.ceil(steps / settings.score_every),
        "calibration_batches": per_epoch if wanted == "all" else min(int(wanted), per_epoch),
    }


@dataclass(frozen=True)
class Cost:
    """Seconds per padded token on this machine, linear layers only.

    `step` is forward and backward through a frozen base with adapters, `forward` without either;
    `flops` is what the device does in a second on the largest layer; `attention` the forward FLOPs
    of one token per token that it looks at.
    """

    step: float
    forward: float
    flops: float
    attention: float
    device: str

    @classmethod
    def measured(
        cls, config: SweepConfig, linear: Sequence[TargetModule], adapted: set[str]
    ) -> Cost:
        """Time each shape of layer once, as many threads wide as a worker is."""
        device = _device(config)
        layers = Counter((each.shape, each.name in adapted) for each in linear)
        step = forward = 0.0
        flops = 1.0
        with _threads(config):
            for (shape, with_adapter), number in layers.items():
                timed = _time_layer(shape, with_adapter, device)
                step += number * timed[0]
                forward += number * timed[1]
                flops = max(flops, 2 * math.prod(shape) / timed[1])
        text = load_config(config.base).get_text_config()
        width = int(getattr(text, "hidden_size", 0) or 0)
        depth = int(getattr(text, "num_hidden_layers", 0) or 0)
        return cls(step, forward, flops, 4.0 * width * depth, str(device))

    def training(self, tokens: float, length: float) -> float:
        """Seconds of forward and backward over `tokens` in rows of `length`."""
        attention = 3 * self.attention * length / self.flops
        return BESIDE_THE_LAYERS * tokens * (self.step + attention)

    def evaluation(self, tokens: float, length: float) -> float:
        """Seconds of a forward pass over `tokens` in rows of `length`."""
        return BESIDE_THE_LAYERS * tokens * (self.forward + self.attention * length / self.flops)


def _time_layer(shape: tuple[int, int], adapted: bool, device: torch.device) -> tuple[float, float]:
    """Seconds per token of one layer: forward and backward, and forward alone."""
    out_features, in_features = shape
    tokens = max(16, min(512, int(PROBE_FLOPS / (4 * out_features * in_features))))
    weight = torch.randn(out_features, in_features, device=device)
    down = torch.randn(TYPICAL_RANK, in_features, device=device, requires_grad=True)
    up = torch.randn(out_features, TYPICAL_RANK, device=device, requires_grad=True)
    x = torch.randn(tokens, in_features, device=device, requires_grad=True)

    def forward() -> torch.Tensor:
        y = linear(x, weight)
        return y + linear(linear(x, down), up) if adapted else y

    def timed(train: bool) -> float:
        started = time.perf_counter()
        with torch.set_grad_enabled(train):
            y = forward()
        if train:
            y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / tokens

    timed(train=True)  # the first pass allocates
    return min(timed(train=True) for _ in range(3)), min(timed(train=False) for _ in range(3))


def _device(config: SweepConfig) -> torch.device:
    """The device of this machine that is most like a worker's."""
    wants_gpu = config.cluster.resources_per_worker.get("GPU", 0) > 0
    return torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")


@contextmanager
def _threads(config: SweepConfig) -> Iterator[None]:
    """As many threads as a worker has CPUs, for a while."""
    before = torch.get_num_threads()
    wanted = int(config.cluster.resources_per_worker.get("CPU", 1))
    torch.set_num_threads(max(1, min(wanted, os.cpu_count() or 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _padded(split: Split, batch_size: int, *, shuffled: bool) -> tuple[float, float]:
    """Tokens of one pass over a split, padding included, and the mean padded length of a row."""
    lengths = split.lengths
    order = np.random.default_rng(0).permutation(len(lengths)) if shuffled else lengths.argsort()
    batches = [lengths[order[i : i + batch_size]] for i in range(0, len(order), batch_size)]
    tokens = float(sum(len(batch) * batch.max() for batch in batches))
    return tokens, tokens / max(1, len(lengths))


def estimated_seconds(
    config: SweepConfig,
    task: Task,
    cost: Cost,
    profile: Mapping[str, Any],
    confirm: Mapping[str, Any] | None,
    times: float = 1.0,
) -> dict[str, float]:
    """Seconds of each part of a launch; a trial has on average `times` the epochs of `train`."""
    workers = config.cluster.workers_per_group
    train, length = _padded(task.splits["train"], config.train.batch_size, shuffled=True)
    dev = cost.evaluation(*_padded(task.splits["dev"], 64, shuffled=False))
    trial = times * config.train.epochs * (cost.training(train, length) + dev) / workers
    rounds = math.ceil(config.search.trials / config.cluster.groups)
    search = rounds * trial
    if config.search.time_budget is not None:
        search = min(search, config.search.time_budget + trial)
    seconds = {
        "start": START_SECONDS,
        "profile": 0.0 if profile["cached"] else _profile_seconds(config, task, cost, profile),
        "trial": trial,
        "search": search,
        "confirm": 0.0,
    }
    if confirm is not None:
        seconds["confirm"] = math.ceil(confirm["trials"] / config.cluster.groups) * trial
    seconds["total"] = sum(seconds[name] for name in ("start", "profile", "search", "confirm"))
    return {name: round(value, 1) for name, value in seconds.items()}


def _profile_seconds(
    config: SweepConfig, task: Task, cost: Cost, profile: Mapping[str, Any]
) -> float:
    settings, weights = config.profile, profile["weights"]
    tokens, length = _padded(task.splits["train"], settings.batch_size, shuffled=True)
    initial = settings.epochs * cost.training(tokens, length)
    # G = B G^A + G^B A of every module (PiLoRA, Eq. 7), on the scored steps alone.
    scoring = profile["scored_steps"] * 4 * settings.rank * weights / cost.flops
    share = profile["calibration_batches"] / steps_an_epoch(task, settings.batch_size)
    # The static pass also forms the gradient of every weight: half as much again.
    static = 1.5 * share * cost.training(tokens, length)
    shared: float = (initial + scoring + static) / config.cluster.workers_per_group
    return shared + float(weights * SORT_SECONDS_PER_WEIGHT * len(settings.top_percent))
