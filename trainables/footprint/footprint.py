"""What a worker comes to hold, part by part and stage by stage, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from trainables.footprint.activations import Counting
from trainables.footprint.passes import Rows
from trainables.profiling.mask_counts import COUNTING_BYTES
from trainables.profiling.settings import ProfileSettings
from trainables.training.settings import TrainSettings

PROCESS_BYTES = {"cpu": 600 * 2**20, "cuda": 750 * 2**20}
"""What a worker holds where its tensors lie before it has one: on a CPU Python with torch,
transformers, Ray and DeepSpeed, on a GPU CUDA's context and libraries."""

GATHERED_LAYERS = 2
"""Layers of a divided base that a worker holds whole at a time."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that one worker holds.

    `adapters` are those of the largest plan with gradients and optimizer, `profile_adapters` those
    of the profile's own LoRA; `training`, `initial_phase`, `static_pass` and `measuring` are what
    the heaviest pass of each comes to; `accumulators` sum the profile's gradients, the largest one
    takes `accumulator`, and counting masks takes `counting` beside them.
    """

    process: int
    base: int
    adapters: int
    training: int
    measuring: int
    profile_adapters: int = 0
    initial_phase: int = 0
    static_pass: int = 0
    accumulators: int = 0
    accumulator: int = 0
    counting: int = 0

    @property
    def stages(self) -> dict[str, int]:
        """Bytes of each stage at its peak: profile, training, measuring."""
        resident = self.process + self.base
        static = self.accumulators + max(self.static_pass, self.counting)
        return {
            "profile": resident + max(self.profile_adapters + self.initial_phase, static),
            "training": resident + self.adapters + self.training,
            "measuring": resident + self.adapters + self.measuring,
        }

    @property
    def peak(self) -> int:
        """Bytes at most."""
        return max(self.stages.values())

    @property
    def activations(self) -> int:
        """Bytes of what rows leave in a base, in training or in the profile."""
        return max(self.training, self.initial_phase, self.static_pass)


def trained_bytes(
    parameters: int, dtype: torch.dtype, workers: int, zero: Mapping[str, Any]
) -> int:
    """Bytes of so many trained parameters with gradients, AdamW's moments and what DeepSpeed makes
    of them; `zero` is its section `zero_optimization`.

    Without ZeRO in 32 bits or more: the parameter, its gradient, two moments. Else, as in 16 bits
    always: parameter and gradient, the averaged gradient and the bucket that it is averaged in; and
    in float32, divided by the workers, master, gradient and moments (stage_1_and_2 of DeepSpeed).
    """
    size = dtype.itemsize
    if size >= 4 and zero.get("stage", 0) == 0:
        return parameters * 4 * size
    bucket = min(parameters, int(zero.get("reduce_bucket_size", parameters)))
    return parameters * 3 * size + bucket * size + parameters * 16 // workers


@dataclass(frozen=True)
class Run:
    """How a base is run: the settings of what trains, and the profile's; None where it is there.

    A group has `workers`; `largest_plan` is how many parameters the largest plan trains, the head
    not counted.
    """

    train: TrainSettings
    profile: ProfileSettings | None
    largest_plan: int
    workers: int = 1
    deepspeed: Mapping[str, Any] = field(default_factory=dict)


def footprint(counting: Counting, rows: Rows, run: Run, *, recompute: bool) -> Footprint:
    """What a worker holds, with all of the profile's accumulators at once."""
    zero = run.deepspeed.get("zero_optimization", {})
    width = sum(sum(target.shape) for target in counting.targets)
    base = counting.base_bytes
    if zero.get("stage", 0) == 3:
        base = divided(counting, run.workers)

    def trained(parameters: int) -> int:
        whole = parameters + counting.head_parameters
        return trained_bytes(whole, counting.dtype, run.workers, zero)

    found = Footprint(
        process=PROCESS_BYTES["cuda" if counting.on_gpu else "cpu"],
        base=base,
        adapters=trained(run.largest_plan),
        training=counting.training(
            rows.training,
            rank=max(1, round(run.largest_plan / max(width, 1))),
            dropout=run.train.dropout,
            base_dropout=True,
            recompute=recompute,
        ),
        measuring=max(
            (counting.measuring(each.batch) + each.key_values for each in rows.measuring), default=0
        ),
    )
    if (profile := run.profile) is None:
        return found
    size = max(4, counting.dtype.itemsize)
    weights = [target.shape[0] * target.shape[1] for target in counting.targets]
    return replace(
        found,
        profile_adapters=trained(profile.rank * width),
        initial_phase=counting.training(
            rows.initial_phase,
            rank=profile.rank,
            dropout=profile.dropout,
            base_dropout=profile.base_dropout,
            recompute=recompute,
        ),
        static_pass=counting.static_pass(
            rows.static_pass, base_dropout=profile.base_dropout, recompute=recompute
        ),
        accumulators=size * sum(weights),
        accumulator=size * max(weights, default=0),
        counting=size * max(weights, default=0) + COUNTING_BYTES,
    )


def divided(counting: Counting, workers: int) -> int:
    """Bytes of a worker's part of a base that ZeRO-3 divides, and of the layers that are whole."""
    return counting.base_bytes // workers + GATHERED_LAYERS * counting.largest_layer
