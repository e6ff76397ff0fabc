"""The section `profile` of a sweep."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from trainables.settings import (
    ALL_LINEAR,
    Fraction,
    Names,
    Precision,
    Schedule,
    Seed,
    Settings,
    Size,
)

Percent = Annotated[float, Field(gt=0.0, le=100.0)]


class ProfileSettings(Settings):
    """The importance profile: PiLoRA's initial phase, then one static pass."""

    target_modules: Names = (ALL_LINEAR,)
    """Linear layers to adapt, by suffix as in PEFT: `output.dense` also takes
    `attention.output.dense`. `all-linear` takes every one outside the task's head, and is
    refused where experts are no linear layers but one tensor (Mixtral, Qwen3-MoE)."""
    rank: PositiveInt = 8
    """Rank of the LoRA that the initial phase trains."""
    epochs: PositiveInt = 1
    """Epochs of the initial phase."""
    score_every: PositiveInt = 10
    """Optimizer steps from one scored step to the next (the paper's K)."""
    calibration_batches: PositiveInt | Literal["all"] = 32
    """Micro-batches of the static pass, or `all`."""
    batch_size: PositiveInt = 16
    """Rows of one step over all workers."""
    top_percent: tuple[Percent, ...] = (1.0, 2.0, 5.0, 10.0)
    """Percentages k for which TASO's top-k% masks are counted, ascending; a choice's `top_percent`
    must be one of them."""
    seed: Seed = 0
    """Seed of the head, the adapters and the order of the rows."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate of the initial phase."""
    alpha: PositiveFloat | None = None
    """LoRA's alpha in the initial phase; `null` means twice the rank."""
    lr_scheduler: Schedule = "linear"
    """Learning-rate schedule of the initial phase."""
    warmup_ratio: Fraction = 0.0
    """Share of the steps that warm up."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradient norm to clip at; `null` does not clip."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the adapters and the head."""
    dropout: Fraction = 0.0
    """Dropout on the adapters' inputs."""
    base_dropout: bool = False
    """Whether the base's own dropout is on while profiling."""
    precision: Precision = "auto"
    """Precision of the base; `auto` is bf16 where the device computes it fast, else fp32. The base
    is loaded once, so it may not differ from `train.precision`."""
    checkpoint_every: PositiveInt | None = 200
    """Optimizer steps, or micro-batches of the static pass, from one checkpoint to the next: what a
    crash can cost; `null` saves none."""
    memory_limit: Size | None = None
    """Memory that a worker's process may come to hold in the static pass, such as `2GiB`; what does
    not fit is done in turns, a group of modules at a time. `null` is what a GPU has free, less 5 %
    of it all, and no limit on a CPU."""
    deterministic: bool = False
    """Whether GPUs compute the profile by algorithms that give the same bits each time, at some
    cost in speed. CPUs do anyway."""

    use: str | None = None
    """Key, or its first digits, of the profile to use in place of the sweep's own, even of another
    task or of a sibling base (`launch --profile KEY`); `null` uses the sweep's own."""

    NOT_OF_THE_RESULT: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_every", "memory_limit", "deterministic", "use"}
    )
    """Keys that change no profile: they are neither in its key nor in its metadata."""

    @field_validator("target_modules")
    @classmethod
    def _some_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets or not all(targets):
            raise ValueError("names no module; list suffixes such as [query, value] or all-linear")
        return targets

    @field_validator("top_percent")
    @classmethod
    def _ascending(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if not grid:
            raise ValueError("is empty; list percentages such as [1, 2, 5, 10]")
        return tuple(sorted(set(grid)))

    @property
    def resolved_alpha(self) -> float:
        """alpha, or 2 x rank where it is not set."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank
