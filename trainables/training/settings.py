"""The section `train` of a sweep."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from trainables.settings import Fraction, Precision, Schedule, Seed, Settings


class TrainSettings(Settings):
    """How a trial trains its plan."""

    epochs: PositiveInt = 3
    """Epochs of a trial; its value is the dev metric after the last."""
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
    warmup_ratio: Fraction = 0.06
    """Share of a stage's steps that warm up."""
    dropout: Fraction = 0.05
    """Dropout on the input of a module's trainable blocks."""
    precision: Precision = "auto"
    """Precision of the base, as `profile.precision`."""
    seed: Seed = 0
    """Seed of the adapters, a fresh head and the order of the rows."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into "
                f"{self.gradient_accumulation_steps} gradient_accumulation_steps; "
                "use a multiple of it"
            )
        return self
