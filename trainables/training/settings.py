"""The section `train` of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from trainables.settings import Fraction, Precision, Schedule, Seed, Settings, Switch


class TrainSettings(Settings):
    """How a trial trains its plan."""

    epochs: PositiveInt = 3
    """Epochs of a trial; its value is the dev metric after the last. A choice whose stages are full
    has so many in each stage."""
    batch_size: PositiveInt = 16
    """Rows of one optimizer step over all workers and accumulation steps. On a CPU those of like
    length go through the base together, which spares padding and leaves loss and gradient what they
    are."""
    gradient_accumulation_steps: PositiveInt = 1
    """Forward passes that one optimizer step is divided into."""
    optimizer: Literal["adamw"] = "adamw"
    """The optimizer; there is this one."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the adapters and the head."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradient norm to clip at; `null` does not clip."""
    lr_scheduler: Schedule = "linear"
    """Learning-rate schedule; it starts again with each stage of a plan."""
    warmup_ratio: Fraction | None = 0.06
    """Share of a stage's steps that warm up; the first of them is already above a rate of 0. `null`
    where `warmup_steps` says it."""
    warmup_steps: NonNegativeInt | None = None
    """Steps that warm up in each stage, in place of a share; a stage of fewer warms up until its
    last one."""
    dropout: Fraction = 0.05
    """Dropout on the input of a module's trainable blocks."""
    precision: Precision = "auto"
    """Precision of the base, as `profile.precision`."""
    tf32: bool = True
    """Whether a GPU rounds the factors of fp32 products to TF32, as its tensor cores take them,
    while a trial trains and is measured: results then differ from a CPU's in the third or fourth
    digit. No other precision is concerned. The profile and lm-eval compute without it."""
    activation_checkpointing: Switch = "auto"
    """Whether the base's layers keep their inputs alone and are computed again for their gradients,
    in training and in the profile: much less memory for a third more time, and the same numbers.
    `auto` does so where a GPU would not hold the activations."""
    seed: Seed = 0
    """Seed of the adapters, a fresh head and the order of the rows."""

    @property
    def warms_up(self) -> bool:
        """Whether there is a warm-up."""
        return bool(self.warmup_ratio or self.warmup_steps)

    def warmup_of(self, steps: int) -> int:
        """How many of a stage's `steps` come before the one that trains at the full rate."""
        wanted = self.warmup_steps
        if wanted is None:
            wanted = math.ceil((self.warmup_ratio or 0.0) * steps)
        return max(0, min(wanted, steps - 1))

    @model_validator(mode="before")
    @classmethod
    def _one_warmup(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or raw.get("warmup_steps") is None:
            return raw
        if raw.get("warmup_ratio") is not None:
            raise ValueError(
                f"warmup_steps and warmup_ratio both say how long the warm-up is "
                f"({raw['warmup_steps']} steps, a share of {raw['warmup_ratio']}); leave one of "
                "them out"
            )
        return {**raw, "warmup_ratio": None}

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into "
                f"{self.gradient_accumulation_steps} gradient_accumulation_steps; "
                "use a multiple of it"
            )
        return self
