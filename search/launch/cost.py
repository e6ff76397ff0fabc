"""What a sweep would cost here: the time of a layer's step, measured, times how many there are."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import mul
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, linear

from search.config.sweep import SweepConfig
from search.launch.ray_environment import own_cpus
from spaces.target import TargetModule
from trainables.bases.parts import head_class, load_config
from trainables.tasks.split import Split
from trainables.tasks.task import Task
from trainables.tasks.work import Work

TYPICAL_RANK = 8
"""Rank of the adapters that the probe times: every method stays near it."""
PROBE_FLOPS = 1e10
"""Work of one timed layer at most; a larger one is timed on fewer tokens."""
PROBE_SECONDS = 0.4
"""For so long each layer is timed again and again, by each way to time it."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 40
BESIDE_THE_LAYERS = 1.45
"""A step takes so many times what its linear layers take: normalisation, activations, softmax."""
BESIDE_A_FORWARD = 1.6
"""As `BESIDE_THE_LAYERS`, where nothing is trained."""
PASS_SECONDS_PER_LAYER = 6e-4
"""What every layer adds to a forward and backward pass, however few tokens go through it."""
START_SECONDS = 30.0
"""Until Ray, the worker group and the base stand ready."""
SORT_SECONDS_PER_WEIGHT = 6e-8
"""Two top-k masks of one weight, on a CPU."""
SAMPLED_BATCHES = 200
"""So many batches of an epoch stand for all."""
PROBE_VOCABULARY = 2**14
"""Words of the timed head of a language model at most: what it takes grows with them."""
PROBE_BYTES = 2**28
"""A weight that no cache holds, as all of a base together: what reading it takes is timed on it."""
LOW, HIGH = 0.7, 1.5
"""What an estimate is multiplied by for its range: methods and machines differ by so much."""


def steps_an_epoch(task: Task, batch_size: int) -> int:
    """Optimizer steps of one epoch."""
    return math.ceil(len(task.splits["train"]) / batch_size)


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
    `head_step` and `head` the same for a place at which a frozen head gives the next token;
    `flops` is what the device does in a second on the largest layer; `attention` the forward FLOPs
    of one token per token that it looks at; `layers` how many linear layers there are; `read` the
    seconds in which the device reads all their weights and the head's, without which no token is
    written. They are of a machine that does nothing else; `busy` says how many times longer it
    takes just now.
    """

    step: float
    forward: float
    flops: float
    attention: float
    device: str
    layers: int = 0
    busy: float = 1.0
    head_step: float = 0.0
    head: float = 0.0
    read: float = 0.0

    @classmethod
    def measured(
        cls,
        config: SweepConfig,
        linear: Sequence[TargetModule],
        adapted: set[str],
        head: str,
        dtype: torch.dtype = torch.float32,
    ) -> Cost:
        """Time each shape of layer in `dtype`, as many threads wide as a worker is, and the head of
        that name (trainables/bases/parts.py)."""
        device = _device(config)
        wanted = int(config.cluster.resources_per_worker.get("CPU", 1))
        threads = max(1, min(wanted, own_cpus()))
        text = load_config(config.base).get_text_config()
        width = int(getattr(text, "hidden_size", 0) or 0)
        depth = int(getattr(text, "num_hidden_layers", 0) or 0)
        layers = Counter((each.shape, each.name in adapted) for each in linear)
        step = forward = 0.0
        flops, busy = 1.0, []
        for (shape, with_adapter), number in layers.items():
            tokens, run = _layer(shape, with_adapter, device, dtype)
            times = [_time(run, train, device, threads) for train in (True, False)]
            step += number * times[0].seconds / tokens
            forward += number * times[1].seconds / tokens
            flops = max(flops, 2 * math.prod(shape) * tokens / times[1].seconds)
            busy += [each.busy for each in times]
        head_step = head_forward = read = 0.0
        if head_class(head).writes and width:
            vocabulary = int(text.vocab_size)
            part = min(vocabulary, PROBE_VOCABULARY)
            places, run = _next_token(part, width, device, dtype)
            head_step, head_forward = (
                _time(run, train, device, threads).seconds / places * vocabulary / part
                for train in (True, False)
            )
            weights = vocabulary * width + sum(math.prod(each.shape) for each in linear)
            read = weights * _seconds_to_read_a_weight(device, threads, dtype)
        return cls(
            step, forward, flops, 4.0 * width * depth, str(device), len(linear),
            median(busy or [1.0]), head_step, head_forward, read,
        )  # fmt: skip

    def training(self, work: Work) -> float:
        """Seconds of forward and backward."""
        attention = 3 * self.attention * work.seen / self.flops
        layers = BESIDE_THE_LAYERS * (work.tokens * self.step + attention)
        return layers + work.outputs * self.head_step + work.passes * self._pass

    def evaluation(self, work: Work, share: float = 1.0) -> float:
        """Seconds of forward passes; of the steps that write, `share` are taken."""
        attention = self.attention * work.seen / self.flops
        layers = BESIDE_A_FORWARD * (work.tokens * self.forward + attention)
        head, passes = work.outputs * self.head, work.passes * self._pass / 3
        step = work.steps * (self.read + self._pass / 3)
        written = work.written * (BESIDE_A_FORWARD * self.forward + self.head)
        return layers + head + passes + share * (step + written)

    @property
    def _pass(self) -> float:
        return self.layers * PASS_SECONDS_PER_LAYER


@dataclass(frozen=True)
class _Timed:
    """Seconds of a pass on a machine that does nothing else, and how many times longer it takes."""

    seconds: float
    busy: float = 1.0


def _layer(
    shape: tuple[int, int], adapted: bool, device: torch.device, dtype: torch.dtype
) -> tuple[int, Callable[[bool], None]]:
    """How many tokens go through a layer, and its pass: forward, and backward where it trains."""
    out_features, in_features = shape
    tokens = max(16, min(512, int(PROBE_FLOPS / (4 * out_features * in_features))))
    made: dict[str, Any] = {"device": device, "dtype": dtype}
    weight = torch.randn(out_features, in_features, **made)
    down = torch.randn(TYPICAL_RANK, in_features, **made, requires_grad=True)
    up = torch.randn(out_features, TYPICAL_RANK, **made, requires_grad=True)
    x = torch.randn(tokens, in_features, **made, requires_grad=True)
    gradient = torch.ones(tokens, out_features, **made)

    def run(train: bool) -> None:
        with torch.set_grad_enabled(train):
            y = linear(x, weight)
            if adapted:
                y = y + linear(linear(x, down), up)
        if train:
            y.backward(gradient)  # type: ignore[no-untyped-call]

    return tokens, run


def _next_token(
    vocabulary: int, width: int, device: torch.device, dtype: torch.dtype
) -> tuple[int, Callable[[bool], None]]:
    """How many places a frozen head of the next token is timed at, and its pass with the loss."""
    places = max(16, min(128, int(PROBE_FLOPS / (4 * vocabulary * width))))
    weight = torch.randn(vocabulary, width, device=device, dtype=dtype)
    x = torch.randn(places, width, device=device, dtype=dtype, requires_grad=True)
    labels = torch.zeros(places, dtype=torch.long, device=device)

    def run(train: bool) -> None:
        with torch.set_grad_enabled(train):
            loss = cross_entropy(linear(x, weight), labels, reduction="sum")
        if train:
            loss.backward()  # type: ignore[no-untyped-call]

    return places, run


def _seconds_to_read_a_weight(device: torch.device, threads: int, dtype: torch.dtype) -> float:
    """By the forward pass of one token: its work is little beside reading the weights."""
    width = math.isqrt(PROBE_BYTES // dtype.itemsize)
    weight = torch.empty(width, width, device=device, dtype=dtype).fill_(1e-3)
    x = torch.ones(1, width, device=device, dtype=dtype)

    def run(_: bool) -> None:
        linear(x, weight)

    return _time(run, False, device, threads).seconds / width**2


def _time(run: Callable[[bool], None], train: bool, device: torch.device, threads: int) -> _Timed:
    """Time a pass.

    On a CPU other processes disturb it, many threads far more than one, which wait for each other.
    So what it takes is the processor time of a single thread, shared out among the threads by what
    the quickest of many tries gains of them.
    """
    if device.type == "cuda":
        return _Timed(median(wall for wall, _ in _tries(run, train, device)))
    with torch_threads(1):
        alone = _tries(run, train, device)
    processor = median(cpu for _, cpu in alone)
    busy = max(1.0, median(wall for wall, _ in alone) / processor)
    if threads == 1:
        return _Timed(processor, busy)
    with torch_threads(threads):
        quickest = min(wall for wall, _ in _tries(run, train, device))
    return _Timed(min(max(quickest, processor / threads), processor / threads**0.6), busy)


def _tries(
    run: Callable[[bool], None], train: bool, device: torch.device
) -> list[tuple[float, float]]:
    """The wall time and this thread's processor time of many passes."""
    run(train)  # the first allocates
    found: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(found) < LEAST_ROUNDS or (
        len(found) < MOST_ROUNDS and time.perf_counter() - began < PROBE_SECONDS
    ):
        wall, processor = time.perf_counter(), time.thread_time()
        run(train)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append((time.perf_counter() - wall, time.thread_time() - processor))
    return found


def _device(config: SweepConfig) -> torch.device:
    """The device of this machine that is most like a worker's."""
    return torch.device("cuda" if config.cluster.on_gpu and torch.cuda.is_available() else "cpu")


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """So many threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def work_of_training(split: Split, batch_size: int, on_cpu: bool) -> Work:
    """What one epoch puts through the base, told by a sample."""
    rows = len(split)
    order = np.random.default_rng(0).permutation(rows)[: SAMPLED_BATCHES * batch_size]
    sample = Work()
    for start in range(0, len(order), batch_size):
        sample += split.work(order[start : start + batch_size], on_cpu)
    return sample.times(rows / max(1, len(order)))


@dataclass(frozen=True)
class Estimate:
    """Seconds of every stage and of one trial on all rows, each with the range that it will be in.

    `about` lets every trial train to its end, `low` has those stopped early that may be. With cheap
    looks `about` has so many go on as the scheduler lets, `high` all of them.
    """

    about: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


def estimated(
    config: SweepConfig,
    task: Task,
    cost: Cost,
    profile: Mapping[str, Any],
    confirm: Mapping[str, Any] | None,
    times: float = 1.0,
    arms: int = 1,
) -> Estimate:
    """What a sweep takes; a trial has on average `times` the epochs of `train`.

    The best of each of the `arms` goes on at every rung.

    The task is as its kind expects it to go through the base (`Kind.expected`).
    """
    on_cpu, train = cost.device == "cpu", config.train
    at_once = max(1, train.batch_size // train.gradient_accumulation_steps)
    training = cost.training(work_of_training(task.splits["train"], at_once, on_cpu))
    dev = sum((each.splits["dev"].measuring_work(on_cpu) for each in task.measured), Work())
    workers = config.cluster.workers_per_group

    def trial_with(share: float, rows: float = 1.0) -> float:
        """Of a trial that trains on a share of the rows, and writes `share` of what it may."""
        epoch = rows * training + cost.evaluation(dev, share)
        return times * config.train.epochs * epoch / workers

    def with_looks(share: float, going_on: Sequence[float]) -> float:
        """What a trial of the search takes on the mean, in trials on all rows."""
        fidelity, repeats = config.search.fidelity, config.search.repeats
        shares = (1.0,) if fidelity is None else fidelity.rows
        looked_at: float = sum(map(mul, going_on, (trial_with(share, rows) for rows in shares)))
        repeated = 0 if repeats is None else repeats.top * repeats.seeds / config.search.trials
        whole = trial_with(share)
        return repeated + (1 - repeated) * (looked_at / whole if whole else 1.0)

    profiled = 0.0 if profile["cached"] else _profile_seconds(config, task, cost, profile)
    rounds = math.ceil(config.search.trials / config.cluster.groups)
    confirmed = math.ceil(confirm["trials"] / config.cluster.groups) if confirm else 0

    def seconds(factor: float, start: float, trial: float, share: float = 1.0) -> dict[str, float]:
        """With trials of which the search trains `share` on the mean."""
        search = rounds * share * trial * factor
        if config.search.time_budget is not None:
            search = min(search, config.search.time_budget + trial * factor)
        found = {
            "start": start,
            "profile": profiled * factor,
            "trial": trial * factor,
            "search": search,
            "confirm": confirmed * trial * factor,
        }
        found["total"] = sum(found[name] for name in ("start", "profile", "search", "confirm"))
        return {name: round(value, 1) for name, value in found.items()}

    half, low = (1 + dev.share) / 2, dev.share
    least, about, most = _going_on(config, 0), _going_on(config, arms), _going_on(config, math.inf)
    early = _least_share(config)
    return Estimate(
        about=seconds(1.0, START_SECONDS, trial_with(half), with_looks(half, about)),
        low=seconds(LOW, START_SECONDS / 2, trial_with(low), early * with_looks(low, least)),
        high=seconds(HIGH * cost.busy, START_SECONDS * 2, trial_with(1.0), with_looks(1.0, most)),
    )


def _going_on(config: SweepConfig, at_least: float) -> list[float]:
    """The share of the trials that comes to each share of the rows: one in so many goes on, but so
    many at least."""
    search = config.search
    shares = 1 if search.fidelity is None else len(search.fidelity.rows)
    kept = (1 / search.scheduler.reduction_factor**look for look in range(shares))
    return [min(1.0, max(share, at_least / search.trials)) for share in kept]


def _least_share(config: SweepConfig) -> float:
    """The share of all epochs that is trained where as many trials as can be are stopped early."""
    scheduler = config.search.scheduler
    if scheduler.name != "asha" or config.search.fidelity is not None:
        return 1.0
    stopped = 1 - 1 / scheduler.reduction_factor
    return 1 - stopped * (1 - scheduler.grace_epochs / config.train.epochs)


def _profile_seconds(
    config: SweepConfig, task: Task, cost: Cost, profile: Mapping[str, Any]
) -> float:
    settings, weights = config.profile, profile["weights"]
    work = work_of_training(task.splits["train"], settings.batch_size, cost.device == "cpu")
    initial = settings.epochs * cost.training(work)
    # G = B G^A + G^B A of every module (PiLoRA, Eq. 7), on the scored steps alone.
    scoring = profile["scored_steps"] * 4 * settings.rank * weights / cost.flops
    share = profile["calibration_batches"] / steps_an_epoch(task, settings.batch_size)
    # The static pass also forms the gradient of every weight: half as much again.
    static = 1.5 * share * cost.training(work)
    shared: float = (initial + scoring + static) / config.cluster.workers_per_group
    return shared + float(weights * SORT_SECONDS_PER_WEIGHT * len(settings.top_percent))
