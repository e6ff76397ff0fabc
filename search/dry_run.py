"""What a launch would do and cost: everything is checked, nothing is started."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from search.config import SweepConfig
from search.paths import SweepPaths
from search.prepare import Prepared, fewer_trials, prepare
from search.sweep_lock import running
from search.sweep_name import check_name
from spaces.methods import count_range, make_plan
from spaces.profile import Profile
from spaces.search_space import Arm
from spaces.target import TargetModule
from trainables.private import redacted
from trainables.settings import ALL_LINEAR

if TYPE_CHECKING:
    from rich.console import RenderableType

    from trainables.tasks import Split, Task

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


@dataclass(frozen=True)
class MethodCount:
    """Trainable parameters of a method's default choice: [least, most], equal where `exact`."""

    method: str
    choice: dict[str, Any]
    trainable_params: tuple[int, int]
    exact: bool


@dataclass(frozen=True)
class DryRun:
    """What `launch` would do with a sweep. `seconds` are estimates; no trial is stopped early.

    `base` has uri, fingerprint and params; `task` rows and token lengths of each split; `profile`
    its key, whether it is cached, and what computing it takes; `search` and `confirm` (None where
    it is skipped) trials, epochs and steps. `notes` say what the estimate rests on.
    """

    config: dict[str, Any]
    base: dict[str, Any]
    task: dict[str, Any]
    profile: dict[str, Any]
    methods: tuple[MethodCount, ...]
    search: dict[str, Any]
    confirm: dict[str, Any] | None
    seconds: dict[str, float]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        return asdict(self)

    def render(self) -> RenderableType:
        """The same for the terminal."""
        return _render(self)


def dry_run(config: SweepConfig, *, resume: bool = False) -> DryRun:
    """Check a sweep against its base, its data and the store, and estimate what it takes.

    Raises the errors that `launch` would raise before it starts anything: ConfigError, ChoiceError,
    BaseModelError, DataError, StoreError; with `resume` those of a launch that goes on.
    """
    from trainables.bases import meta_targets

    if resume:
        check_name(config, SweepPaths(name=config.name).absolute(), resume)
    prepared = prepare(config)
    task, targets, space = prepared.task, prepared.targets, prepared.space
    cached = prepared.store.get(prepared.key)

    methods = tuple(_method_count(arm, prepared, cached) for arm in space.arms(config.search.arms))
    profile = {
        "key": prepared.key,
        "cached": cached is not None,
        "store": prepared.store.name,
        "modules": len(targets),
        "weights": sum(math.prod(target.shape) for target in targets),
        **_profile_steps(config, task),
    }
    search = {
        "trials": config.search.trials,
        "methods": list(space.methods),
        "epochs": config.train.epochs,
        "steps_per_trial": _steps(task, config.train.batch_size) * config.train.epochs,
        "at_once": config.cluster.groups,
    }
    confirm = _confirm(config, task, len(methods))
    linear = meta_targets(prepared.base_uri, config.task.kind, task.num_labels, (ALL_LINEAR,))
    cost = _Cost.measured(config, linear, {target.name for target in targets})
    return DryRun(
        config=config.resolved(),
        base={
            "uri": prepared.base_uri,
            "fingerprint": prepared.base_fingerprint,
            "params": base_parameters(prepared.base_uri),
        },
        task=_task_summary(task),
        profile=profile,
        methods=methods,
        search=search,
        confirm=confirm,
        seconds=_seconds(config, task, cost, profile, confirm),
        notes=_notes(config, cost, methods, resume),
    )


def base_parameters(uri: str) -> int:
    """Parameters of a base as its config names it, a language model's head included, from that
    config alone: what the papers' percentages are of.

    Raises BaseModelError where there is no such base or transformers does not know it.
    """
    import torch
    import transformers

    from spaces.errors import BaseModelError
    from trainables.bases import load_config

    config = load_config(uri)
    named = next(iter(config.architectures or ()), "")
    model_class = getattr(transformers, named, None)
    try:
        with torch.device("meta"):
            if isinstance(model_class, type):
                model = model_class(config)
            else:
                model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise BaseModelError(
            f"base: {uri} cannot be built ({reason}); use a model that transformers knows"
        ) from error
    return sum(parameter.numel() for parameter in model.parameters())


# -- what would be done ----------------------------------------------------------------------------


def _method_count(arm: Arm, prepared: Prepared, profile: Profile | None) -> MethodCount:
    choice = prepared.space.default_choice(arm.method, arm.values)
    if profile is not None:
        plan = make_plan(choice, prepared.targets, profile, prepared.size)
        span = (plan.trainable_params, plan.trainable_params)
    else:
        span = count_range(choice, prepared.targets, size=prepared.size)
    return MethodCount(arm.name, choice.as_dict(), span, span[0] == span[1])


def _steps(task: Task, batch_size: int) -> int:
    """Optimizer steps of one epoch."""
    return math.ceil(len(task.splits["train"].labels) / batch_size)


def _profile_steps(config: SweepConfig, task: Task) -> dict[str, int]:
    settings = config.profile
    per_epoch = _steps(task, settings.batch_size)
    steps = per_epoch * settings.epochs
    wanted = settings.calibration_batches
    return {
        "optimizer_steps": steps,
        "scored_steps": math.ceil(steps / settings.score_every),
        "calibration_batches": per_epoch if wanted == "all" else min(int(wanted), per_epoch),
    }


def _confirm(config: SweepConfig, task: Task, methods: int) -> dict[str, Any] | None:
    if config.confirm is None:
        return None
    return {
        "trials": methods * config.confirm.top * config.confirm.seeds,
        "seeds": config.confirm.seeds,
        "steps_per_trial": _steps(task, config.train.batch_size) * config.train.epochs,
    }


def _task_summary(task: Task) -> dict[str, Any]:
    lengths = {name: split.lengths for name, split in task.splits.items()}
    return {
        "name": task.name,
        "labels": list(task.labels),
        "fingerprint": task.fingerprint,
        "rows": {name: len(split.labels) for name, split in task.splits.items()},
        "mean_tokens": {name: round(float(each.mean()), 1) for name, each in lengths.items()},
        "most_tokens": {name: int(each.max()) for name, each in lengths.items()},
    }


# -- what it would cost ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cost:
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
    ) -> _Cost:
        """Time each shape of layer once, as many threads wide as a worker is."""
        from trainables.bases import load_config

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


def _time_layer(shape: tuple[int, int], adapted: bool, device: Any) -> tuple[float, float]:
    """Seconds per token of one layer: forward and backward, and forward alone."""
    import torch
    from torch.nn.functional import linear

    out_features, in_features = shape
    tokens = max(16, min(512, int(PROBE_FLOPS / (4 * out_features * in_features))))
    weight = torch.randn(out_features, in_features, device=device)
    down = torch.randn(TYPICAL_RANK, in_features, device=device, requires_grad=True)
    up = torch.randn(out_features, TYPICAL_RANK, device=device, requires_grad=True)
    x = torch.randn(tokens, in_features, device=device, requires_grad=True)

    def forward() -> Any:
        y = linear(x, weight)
        return y + linear(linear(x, down), up) if adapted else y

    def timed(train: bool) -> float:
        started = time.perf_counter()
        with torch.set_grad_enabled(train):
            y = forward()
        if train:
            y.backward(torch.ones_like(y))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / tokens

    timed(train=True)  # the first pass allocates
    return min(timed(train=True) for _ in range(3)), min(timed(train=False) for _ in range(3))


def _device(config: SweepConfig) -> Any:
    """The device of this machine that is most like a worker's."""
    import torch

    wants_gpu = config.cluster.resources_per_worker.get("GPU", 0) > 0
    return torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")


@contextmanager
def _threads(config: SweepConfig) -> Iterator[None]:
    """As many threads as a worker has CPUs, for a while."""
    import torch

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


def _seconds(
    config: SweepConfig,
    task: Task,
    cost: _Cost,
    profile: Mapping[str, Any],
    confirm: Mapping[str, Any] | None,
) -> dict[str, float]:
    workers = config.cluster.workers_per_group
    train, length = _padded(task.splits["train"], config.train.batch_size, shuffled=True)
    dev = cost.evaluation(*_padded(task.splits["dev"], 64, shuffled=False))
    trial = config.train.epochs * (cost.training(train, length) + dev) / workers
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
    config: SweepConfig, task: Task, cost: _Cost, profile: Mapping[str, Any]
) -> float:
    settings, weights = config.profile, profile["weights"]
    tokens, length = _padded(task.splits["train"], settings.batch_size, shuffled=True)
    initial = settings.epochs * cost.training(tokens, length)
    # G = B G^A + G^B A of every module (PiLoRA, Eq. 7), on the scored steps alone.
    scoring = profile["scored_steps"] * 4 * settings.rank * weights / cost.flops
    share = profile["calibration_batches"] / _steps(task, settings.batch_size)
    # The static pass also forms the gradient of every weight: half as much again.
    static = 1.5 * share * cost.training(tokens, length)
    shared: float = (initial + scoring + static) / config.cluster.workers_per_group
    return shared + float(weights * SORT_SECONDS_PER_WEIGHT * len(settings.top_percent))


def _notes(
    config: SweepConfig, cost: _Cost, methods: Sequence[MethodCount], resume: bool
) -> tuple[str, ...]:
    notes = []
    if resume:
        notes.append("all trials are counted, those too that are done already")
    elif SweepPaths(name=config.name).sweep_file.is_file():
        runner = running(SweepPaths(name=config.name))
        remedy = "go on with --resume, or launch under another name"
        if runner is not None:
            remedy = f"process {runner.pid} on {runner.host} runs it; launch under another name"
        notes.append(f"the sweep {config.name!r} exists: {remedy}")
    notes.append(f"times are estimates from a short probe of this machine ({cost.device})")
    if config.search.trials < len(methods):
        notes.append(fewer_trials(config, len(methods)))
    if config.search.repeats is not None:
        top, seeds = config.search.repeats.top, config.search.repeats.seeds
        notes.append(
            f"the last {top * seeds} of the {config.search.trials} trials train the {top} best "
            f"choices again with {seeds} other seeds each"
        )
    limit = config.search.max_params
    beyond = [each for each in methods if limit is not None and each.trainable_params[0] > limit]
    if beyond:
        least = ", ".join(f"{each.method} {each.trainable_params[0]:,}" for each in beyond)
        notes.append(
            f"search.max_params is {limit:,} and default choices have more ({least}): only smaller "
            "ones are trained, and a method that has none takes no part"
        )
    if config.search.study is not None:
        study = redacted(config.search.study)
        notes.append(f"the trials are shared with other launches of the sweep through {study}")
    if config.search.scheduler.name != "none":
        notes.append("no trial is taken to be stopped early, so the search may well be shorter")
    if config.cluster.resources_per_worker.get("GPU", 0) > 0 and cost.device == "cpu":
        notes.append("the workers ask for a GPU, which this machine has not: they will be faster")
    if config.cluster.address != "local":
        notes.append(f"the workers run on the cluster {config.cluster.address}, not here")
    return tuple(notes)


# -- drawing ---------------------------------------------------------------------------------------


def _render(result: DryRun) -> RenderableType:
    from rich.console import Group
    from rich.syntax import Syntax
    from rich.table import Table
    from rich.text import Text
    from yaml import safe_dump

    from search.live import duration, figure, knobs

    facts = Table.grid(padding=(0, 2))
    profile, search, rows = result.profile, result.search, result.task["rows"]
    cached = "cached" if profile["cached"] else "not cached"
    facts.add_row("base", f"{result.base['uri']}, {result.base['params']:,} parameters")
    facts.add_row("task", ", ".join(f"{count:,} {name}" for name, count in rows.items()) + " rows")
    facts.add_row("profile", f"{profile['key']} ({cached} in {profile['store']})")
    facts.add_row(
        "",
        f"{profile['modules']} modules, {profile['optimizer_steps']} steps of which "
        f"{profile['scored_steps']} scored, {profile['calibration_batches']} micro-batches",
    )
    facts.add_row(
        "search",
        f"{search['trials']} trials of {search['epochs']} epochs "
        f"({search['steps_per_trial']} steps), {search['at_once']} at once",
    )
    if result.confirm is not None:
        facts.add_row("confirm", f"{result.confirm['trials']} trials, measured on test")

    counts = Table("method", "params", "% of the base")
    counts.add_column("default choice", overflow="fold")
    for each in result.methods:
        low, high = each.trainable_params
        percents = [f"{100 * value / result.base['params']:.3f}" for value in (low, high)]
        counts.add_row(
            each.method,
            f"{low:,}" if each.exact else f"{low:,} to {high:,}",
            percents[0] if each.exact else " to ".join(percents),
            f"learning_rate={figure(each.choice['learning_rate'])} {knobs(each.choice)}",
        )
    times = Table("stage", "about")
    for name in ("start", "profile", "search", "confirm", "total"):
        times.add_row(name, duration(result.seconds[name]))
    config = safe_dump(result.config, sort_keys=False, default_flow_style=None, width=76)
    return Group(
        Syntax(config.rstrip(), "yaml", background_color="default", word_wrap=True),
        Text(),
        facts,
        counts,
        times,
        *(Text(f"note: {note}", style="dim") for note in result.notes),
    )
