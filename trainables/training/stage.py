"""One stage of a training job: its engine, its schedule, its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from spaces.errors import JobError
from trainables.adaptations.adaptation import Adaptation
from trainables.engine.workers import Workers
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.kinds import Kind
from trainables.tasks.split import Split
from trainables.training.batches import of_like_length, to_device
from trainables.training.settings import TrainSettings


class DivergedError(JobError):
    """The loss became NaN or infinite."""


class CancelledError(Exception):
    """The driver has stopped this job."""


@dataclass(frozen=True)
class Schedule:
    """The steps of a job: `per_epoch` optimizer steps in each of `epochs`, cut into stages.

    Stage i of S trains the steps [floor(i N / S), floor((i + 1) N / S)) of the N in all.
    """

    per_epoch: int
    epochs: int
    stages: int

    @property
    def steps(self) -> int:
        """All optimizer steps N."""
        return self.per_epoch * self.epochs

    def stage_steps(self, stage: int) -> int:
        """How many steps a stage trains."""
        return (stage + 1) * self.steps // self.stages - stage * self.steps // self.stages

    def stage_of(self, step: int) -> int:
        """The stage that trains a step; an empty stage trains none."""
        return next(i for i in range(self.stages) if step < (i + 1) * self.steps // self.stages)


class StepCheckpoints(Protocol):
    """Where an interrupted job of one stage goes on, and what keeps it as it trains."""

    steps_done: int
    """Optimizer steps that were trained before: their rows are passed over."""

    def restore(self, engine: Any, schedule: Any) -> None:
        """Called once, with the engine and learning-rate schedule that train the next step."""

    def keep(self, step: int, engine: Any, schedule: Any) -> None:
        """Called after every step with the number of steps done."""


def engine_config(
    settings: TrainSettings | ProfileSettings,
    deepspeed: Mapping[str, Any],
    *,
    accumulation: int,
    workers: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """DeepSpeed's config of a job: the user's section plus what the job decides."""
    micro = math.ceil(settings.batch_size / accumulation / workers)
    zero = {"stage": 0, **deepspeed.get("zero_optimization", {})}
    if dtype in (torch.float16, torch.bfloat16) and zero["stage"] == 0:
        # Stage 0 in 16 bits is wrong in DeepSpeed 0.19: float16 gradients are divided by a loss
        # scale that nothing has multiplied them with, and the optimizer starts with a step on zero
        # gradients, which Adam counts. Stage 1 computes what stage 0 should.
        zero["stage"] = 1
    return {
        "zero_allow_untested_optimizer": True,
        **deepspeed,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": settings.max_grad_norm or 0.0,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "steps_per_print": 10**9,
    }


class StageRun:
    """One stage under its own DeepSpeed engine, optimizer and learning-rate schedule."""

    def __init__(
        self,
        adaptation: Adaptation,
        kind: Kind,
        stage: int,
        settings: TrainSettings | ProfileSettings,
        learning_rate: float,
        steps: int,
        config: dict[str, Any],
        base_dropout: bool,
    ) -> None:
        self._adaptation, self._kind, self._base_dropout = adaptation, kind, base_dropout
        self.last_learning_rate = 0.0
        parameters = adaptation.begin_stage(stage, steps)
        groups = parameters.parameter_groups(learning_rate, settings.weight_decay)
        self._learning_rate = learning_rate
        self._engine: Any = None
        if not groups:
            return
        import deepspeed
        from transformers import get_scheduler

        optimizer = torch.optim.AdamW(groups)
        constant = settings.lr_scheduler == "constant"
        name = "constant_with_warmup" if constant else settings.lr_scheduler
        self._schedule = get_scheduler(
            name, optimizer, math.ceil(settings.warmup_ratio * steps), steps
        )
        self._engine, *_ = deepspeed.initialize(
            model=parameters, optimizer=optimizer, config=config, dist_init_required=False
        )

    @property
    def trains(self) -> bool:
        """Whether the stage has anything to train: not with an empty core and no head."""
        return self._engine is not None

    def step(
        self,
        split: Split,
        rows: NDArray[np.int64],
        accumulation: int,
        workers: Workers,
        on_ready: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """One optimizer step over `rows`; returns this worker's part of the summed loss.

        `on_ready` is called before the first forward pass, where there is one.
        """
        total = torch.zeros((), dtype=torch.float64, device=workers.device)
        if self._engine is None:
            return total
        self._engine.train()
        self._engine.module.head.train(self._base_dropout)  # a head's dropout is the base's
        count = self._kind.loss_count(split.labels[rows])
        micro_batches = [m for m in np.array_split(rows, accumulation) if len(m)]
        for i, micro_batch in enumerate(micro_batches):
            self._engine.set_gradient_accumulation_boundary(i == len(micro_batches) - 1)
            own = workers.share(micro_batch)
            weight = 1.0 if len(own) else 0.0  # a rank without rows still joins the collectives
            own = own if len(own) else micro_batch[:1]
            groups = [own]
            if workers.device.type == "cpu":
                groups = [own[group] for group in of_like_length(split.lengths[own])]
            batches = [to_device(split.batch(group), workers) for group in groups]
            labels = torch.cat([batch.pop("labels") for batch in batches])
            if i == 0 and on_ready is not None:
                on_ready()
            loss = weight * self._kind.summed_loss(self._engine(*batches), labels)
            mean = loss * (workers.size / count)
            if (penalty := self._adaptation.penalty()) is not None:
                mean = mean + penalty / len(micro_batches)
            self._engine.backward(mean, scale_wrt_gas=False)
            total += loss.detach()
        self._adaptation.after_backward(self._engine)
        self.last_learning_rate = self._learning_rate * self._factor()
        self._engine.step()
        skipped = bool(getattr(self._engine.optimizer, "overflow", False))
        if not skipped:
            self._schedule.step()
        self._adaptation.after_step(skipped, self.last_learning_rate)
        return total

    def restore(self, checkpoints: StepCheckpoints) -> None:
        """Go on where a job was interrupted."""
        checkpoints.restore(self._engine, self._schedule)

    def keep(self, step: int, checkpoints: StepCheckpoints) -> None:
        """Offer the state after `step` steps for keeping."""
        checkpoints.keep(step, self._engine, self._schedule)

    def _factor(self) -> float:
        group = self._schedule.optimizer.param_groups[0]
        return float(group["lr"] / group["initial_lr"])

    def close(self) -> None:
        """Freeze the stage's blocks and let the engine go."""
        self._adaptation.end_stage()
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None
