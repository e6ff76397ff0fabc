"""Whether a sweep fits its workers' memory, and what to change where it does not."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from search.config.gpus import gpu_bytes
from search.config.sweep import ClusterSettings, SweepConfig
from search.launch.prepare import SweepInputs
from spaces.domain import ends
from spaces.errors import ChoiceError
from spaces.planner import Planner
from spaces.search_space import Arm
from trainables.bases.structure import meta_model
from trainables.footprint.activations import Counting, UncountableError
from trainables.footprint.footprint import Footprint, Run, divided, footprint
from trainables.footprint.passes import Rows
from trainables.resident.activations import ROOM

NF4_BYTES = 0.52
"""Bytes of a weight in 4 bits, its scales included."""
MOST_GPUS = 64
"""So many for one group are tried."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Change:
    """What would make a sweep fit, in the words of its keys, and the bytes of its peak then."""

    what: str
    peak: int


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that each worker holds, at most, where its tensors lie.

    `process` is there before the base, `parts` are those of the heaviest passes, `stages` the
    peaks. `device` names whose memory it is, and `limit` what a worker may hold of it, None where
    that is not known; then `fits` is None too. The accumulators of the profile take so many
    `profile_passes`. Where it does not fit, `changes` are what would make it fit, each by itself,
    what costs least first, and `least_gpus` the smallest number of GPUs of a group that does, None
    where there is none.
    """

    device: str
    on_gpu: bool
    limit: int | None
    fits: bool | None
    activation_checkpointing: bool
    process: int
    parts: Mapping[str, int]
    stages: Mapping[str, int]
    profile_passes: int
    largest_plan: int
    least_gpus: int | None
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Memory:
    """Of what device workers have memory, and how many bytes each; None where it is not known."""

    device: str
    limit: int | None

    @classmethod
    def of_workers(cls, cluster: ClusterSettings) -> Memory:
        """Of the GPU that is named, or found here; of this machine where they are on its CPUs."""
        if cluster.on_gpu:
            share = min(1.0, cluster.resources_per_worker["GPU"])
            if cluster.gpu is not None:
                return cls(cluster.gpu, int(gpu_bytes(cluster.gpu) * share))
            found = _gpu_found()
            return cls("its GPU", None) if found is None else cls(found[0], int(found[1] * share))
        if cluster.address != "local":
            return cls("a node of the cluster", None)
        return cls("this machine", _machine_bytes() // (cluster.groups * cluster.workers_per_group))

    def holds(self, found: Footprint) -> bool:
        """Whether it is enough; True where nobody knows."""
        return self.limit is None or found.peak <= ROOM * self.limit


class Planning:
    """Counts for a sweep; a base is built for each precision that is asked about."""

    def __init__(self, config: SweepConfig, inputs: SweepInputs, *, profiled: bool) -> None:
        self._config, self._inputs = config, inputs
        self._on_gpu = config.cluster.on_gpu
        self._task = inputs.task.expected(inputs.base_uri)
        self._largest = largest_plan(config, inputs)
        self._profiled = profiled
        self._dtype: torch.dtype = getattr(torch, inputs.precision.dtype)
        self._counting = self._counting_in(self._dtype)
        self._memory = Memory.of_workers(config.cluster)

    def beside_base(self) -> int | None:
        """Bytes that a worker's jobs come to hold at least beside the base where it keeps all
        activations; None where that cannot be counted."""
        try:
            whole = self._footprint(recompute=False)
        except UncountableError:
            return None
        found = replace(whole, accumulators=whole.accumulator)
        return found.peak - found.process - found.base

    def plan(self) -> MemoryPlan:
        """The plan of the sweep as it is."""
        setting = self._config.train.activation_checkpointing
        recompute = setting == "on"
        whole = self._footprint(recompute=recompute)
        if setting == "auto" and self._on_gpu and self._counting.repeatable:
            recompute = not self._memory.holds(self._within(whole))
            whole = self._footprint(recompute=recompute) if recompute else whole
        found = self._within(whole)
        fits = None if self._memory.limit is None else self._memory.holds(found)
        changes = tuple(self._changes(whole, recompute)) if fits is False else ()
        return MemoryPlan(
            device=self._memory.device,
            on_gpu=self._on_gpu,
            limit=self._memory.limit,
            fits=fits,
            activation_checkpointing=recompute,
            process=found.process,
            parts={
                "base": found.base,
                "adapters": found.adapters,
                "activations": found.activations,
                "accumulators": found.accumulators,
                "measuring": found.measuring,
            },
            stages=found.stages,
            profile_passes=math.ceil(whole.accumulators / max(found.accumulators, 1)),
            largest_plan=self._largest,
            least_gpus=self._least_gpus(whole) if fits is False and self._on_gpu else None,
            changes=changes,
        )

    def _counting_in(self, dtype: torch.dtype) -> Counting:
        task = self._task
        model, head = meta_model(self._inputs.base_uri, task.head, task.outputs)
        return Counting(
            model, head.modules, self._inputs.targets, task.its_kind.summed_loss, dtype,
            on_gpu=self._on_gpu,
        )  # fmt: skip

    def _footprint(self, *, recompute: bool, counting: Counting | None = None) -> Footprint:
        """With all accumulators at once."""
        config, counting = self._config, counting or self._counting
        workers = config.cluster.workers_per_group
        rows = Rows.of(
            self._task, config.train, config.profile, workers, counting.model.config,
            counting.dtype, on_cpu=not self._on_gpu,
        )  # fmt: skip
        profile = config.profile if self._profiled else None
        run = Run(config.train, profile, self._largest, workers, config.deepspeed)
        return footprint(counting, rows, run, recompute=recompute)

    def _within(self, found: Footprint) -> Footprint:
        """With as many accumulators at once as there is room for: the profile takes turns within
        its own limit, and on a GPU within its memory."""
        limits = [self._config.profile.memory_limit]
        if self._on_gpu and self._memory.limit is not None:
            limits.append(int(ROOM * self._memory.limit))
        room = min((limit for limit in limits if limit is not None), default=None)
        if room is None:
            return found
        beside = found.process + found.base + max(found.static_pass, found.counting)
        held = max(found.accumulator, min(found.accumulators, room - beside))
        return replace(found, accumulators=held)

    def _fits(self, found: Footprint) -> int | None:
        """The peak where it fits."""
        within = self._within(found)
        return within.peak if self._memory.holds(within) else None

    # -- what to change ------------------------------------------------------------------------

    def _changes(self, whole: Footprint, recompute: bool) -> Iterator[Change]:
        """What makes it fit by itself, what costs least first."""
        for what, found in self._candidates(whole, recompute):
            if (peak := self._fits(found)) is not None:
                yield Change(what, peak)

    def _candidates(self, whole: Footprint, recompute: bool) -> Iterator[tuple[str, Footprint]]:
        if not recompute and self._counting.repeatable:
            yield "train.activation_checkpointing: on", self._footprint(recompute=True)
        if (steps := self._accumulation(whole)) is not None:
            yield f"train.gradient_accumulation_steps: {steps[0]}", steps[1]
        if (length := self._length(whole)) is not None:
            yield f"task.max_length: {length[0]}", length[1]
        if self._on_gpu and self._dtype == torch.float32:
            half = self._counting_in(torch.bfloat16)
            yield "train.precision: bf16", self._footprint(recompute=recompute, counting=half)
        if not self._on_gpu and whole.accumulators > whole.accumulator:
            least = replace(whole, accumulators=whole.accumulator)
            yield f"profile.memory_limit: {_gib(least.stages['profile'])}", least
        if self._on_gpu:
            linear = sum(math.prod(each.shape) for each in self._inputs.targets)
            packed = int(linear * (self._dtype.itemsize - NF4_BYTES))
            yield "base_quantization: nf4", replace(whole, base=whole.base - packed)

    def _accumulation(self, whole: Footprint) -> tuple[int, Footprint] | None:
        """The fewest steps that the rows of a batch can be divided into so that it fits."""
        train, workers = self._config.train, self._config.cluster.workers_per_group
        now = math.ceil(train.batch_size / train.gradient_accumulation_steps / workers)
        for steps in range(train.gradient_accumulation_steps + 1, train.batch_size + 1):
            if train.batch_size % steps == 0:
                rows = math.ceil(train.batch_size / steps / workers)
                found = replace(whole, training=whole.training * rows // now)
                if self._fits(found) is not None:
                    return steps, found
        return None

    def _length(self, whole: Footprint) -> tuple[int, Footprint] | None:
        """The most eighths of its longest row in which a text may be cut so that it fits."""
        longest = int(self._task.splits["train"].lengths.max())
        for eighths in range(7, 0, -1) if self._task.its_kind.reads == "text" else ():
            if longest * eighths >= 64:  # below eight tokens nothing is left
                found = replace(
                    whole,
                    training=whole.training * eighths // 8,
                    initial_phase=whole.initial_phase * eighths // 8,
                    static_pass=whole.static_pass * eighths // 8,
                )
                if self._fits(found) is not None:
                    return longest * eighths // 8, found
        return None

    def _least_gpus(self, whole: Footprint) -> int | None:
        """The smallest group that fits, its base divided by ZeRO-3 and the batch by its workers."""
        now = self._config.cluster.workers_per_group
        for workers in range(now + 1, MOST_GPUS + 1):
            share = now / workers
            found = replace(
                whole,
                base=min(whole.base, divided(self._counting, workers)),
                training=math.ceil(whole.training * share),
                initial_phase=math.ceil(whole.initial_phase * share),
            )
            if self._fits(found) is not None:
                return workers
        return None


def largest_plan(config: SweepConfig, inputs: SweepInputs) -> int:
    """The most parameters that a plan of the space may train, whatever the profile: found by going
    from each method's default to the ends of its keys' domains as long as that makes it larger."""
    planner = Planner(inputs.targets, None, inputs.size)
    most = max(_largest_of(arm, inputs, planner) for arm in inputs.space.arms(config.search.arms))
    return most if config.search.max_params is None else min(most, config.search.max_params)


def _largest_of(arm: Arm, inputs: SweepInputs, planner: Planner) -> int:
    space = inputs.space

    def params(values: Mapping[str, object]) -> int:
        try:
            choice = space.default_choice(arm.method, {**values, **arm.values})  # type: ignore[dict-item]
            return planner.params_range(choice)[1]
        except ChoiceError:  # values that do not go together
            return 0

    best: dict[str, object] = {}
    count = params(best)
    for key, domain in space.domains[arm.method].items():
        if key in ("learning_rate", "alpha", "alpha_over_rank"):
            continue
        for value in ends(domain):
            if (tried := params({**best, key: value})) > count:
                best[key], count = value, tried
    return count


def _gpu_found() -> tuple[str, int] | None:
    """The name and the memory of the smallest GPU of this machine, by its driver's own tool: torch
    would make a context on it."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    command = [tool, "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=10)
        lines = [line.split(",", 1) for line in done.stdout.splitlines() if line.strip()]
        found = [(int(mib) * 2**20, name.strip()) for mib, name in lines]
        return min(found)[::-1] if found else None
    return None


def _machine_bytes() -> int:
    """The memory of this machine, or what its container may have of it."""
    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):
        return min(total, int(CGROUP_LIMIT.read_text()))
    return total


def _gib(size: int) -> str:
    return f"{math.ceil(size / 2**30 * 10) / 10:g}GiB"
