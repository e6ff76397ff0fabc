"""The stages of a training job: their engines, their schedules, their steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.lr_scheduler import LambdaLR

from spaces.errors import JobError, one_line
from trainables.adaptations.adaptation import Adaptation
from trainables.engine.workers import Workers
from trainables.tasks.kinds.kind import Kind
from trainables.tasks.split import Pass, Split, to_device
from trainables.training.observer import Observer
from trainables.training.settings import TrainSettings

logger = logging.getLogger(__name__)

DEEPSPEED_BUCKET = 500_000_000
"""Numbers of a bucket where its config names no size."""


class DivergedError(JobError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass takes: passes of this worker's rows, on the host, and how
    much their loss counts."""

    passes: Sequence[Pass]
    weight: float


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


def _from_second(factor: Callable[[int], float]) -> Callable[[int], float]:
    """A schedule's factor of the learning rate by step, without its first step."""
    return lambda step: factor(step + 1)


def engine_config(
    settings: TrainSettings, deepspeed: Mapping[str, Any], workers: int, dtype: torch.dtype
) -> dict[str, Any]:
    """DeepSpeed's config of a job: the user's section plus what the job decides."""
    accumulation = settings.gradient_accumulation_steps
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
        "train_micro_batch_size_per_gpu": math.ceil(settings.batch_size / accumulation / workers),
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": settings.max_grad_norm or 0.0,
        # bfloat16 reaches as far as float32: what is not finite there is no step to leave out, and
        # looking for it takes two launches a parameter and a wait for the device. The loss is
        # looked at in any case.
        "bf16": {"enabled": dtype == torch.bfloat16, "check_grad_overflow": False},
        "fp16": {"enabled": dtype == torch.float16},
        "steps_per_print": 10**9,
    }


def with_buckets(config: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    """An engine's config with buckets that hold so many parameters, where it names no other size.

    DeepSpeed makes a bucket of half a billion numbers at the first step, whatever there is to
    reduce.
    """
    size = min(parameters + parameters % 2, DEEPSPEED_BUCKET)  # an even number, it says
    buckets = {"reduce_bucket_size": size, "allgather_bucket_size": size}
    return {**config, "zero_optimization": buckets | config["zero_optimization"]}


class Stages(AbstractContextManager["Stages"]):
    """Trains the steps of a job in their order. Each stage has a DeepSpeed engine, an optimizer and
    a learning-rate schedule of its own while it trains; the last ends when the context is left."""

    def __init__(
        self,
        adaptation: Adaptation,
        kind: Kind,
        settings: TrainSettings,
        schedule: Schedule,
        *,
        learning_rate: float,
        config: dict[str, Any],
        workers: Workers,
        base_dropout: bool,
        observer: Observer,
    ) -> None:
        self._adaptation, self._kind = adaptation, kind
        self._settings, self._schedule = settings, schedule
        self._learning_rate, self._config, self._workers = learning_rate, config, workers
        self._base_dropout, self._observer = base_dropout, observer
        self._stage: int | None = None
        self._engine: Any = None
        self._rates: Any = None
        self._is_ready = False
        self.last_learning_rate = 0.0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._end()
            return
        # Nobody asks for what a stage that was broken off has trained, and there may be no memory
        # to freeze it in.
        try:
            self._let_go()
        except Exception as failure:  # what has ended the job says why
            logger.warning("an engine was not destroyed: %s", one_line(failure))

    @property
    def steps(self) -> int:
        """All optimizer steps of the job."""
        return self._schedule.steps

    @property
    def trains(self) -> bool:
        """Whether the stage has anything to train: not with an empty core and no head."""
        return self._engine is not None

    def micro_batches(self, split: Split, rows: NDArray[np.int64]) -> Iterator[MicroBatch]:
        """What an optimizer step over `rows` takes, each made when it is asked for.

        It depends on nothing that a step changes, so that it can be asked for ahead.
        """
        for micro_batch in self._divided(rows):
            own = self._workers.share(micro_batch)
            weight = 1.0 if len(own) else 0.0  # a rank without rows still joins the collectives
            own = own if len(own) else micro_batch[:1]
            yield MicroBatch(split.passes(own, self._workers.device.type == "cpu"), weight)

    def step(
        self,
        number: int,
        split: Split,
        rows: NDArray[np.int64],
        micro_batches: Iterable[MicroBatch],
    ) -> torch.Tensor:
        """Optimizer step `number`, from 0, over `rows`, in their micro-batches; returns this
        worker's part of the summed loss."""
        stage = self._schedule.stage_of(number)
        if stage != self._stage:
            self._end()
            self._begin(stage)
            if number == self._observer.steps_done:
                self._observer.restore(self._engine, self._rates)
        total = torch.zeros((), dtype=torch.float64, device=self._workers.device)
        if self._engine is not None:
            self._train(rows, int(split.targets[rows].sum()), micro_batches, total)
        return total

    def keep(self, done: int) -> None:
        """Offer the state after `done` steps for keeping."""
        self._observer.keep(done, self._engine, self._rates)

    def _begin(self, stage: int) -> None:
        # Not at the top: the driver knows this file too and has no use for what these load.
        import deepspeed
        from transformers import get_scheduler

        settings, steps = self._settings, self._schedule.stage_steps(stage)
        parameters = self._adaptation.begin_stage(stage, steps)
        groups = parameters.parameter_groups(self._learning_rate, settings.weight_decay)
        self.last_learning_rate = 0.0
        if groups:
            optimizer = torch.optim.AdamW(groups, fused=True)
            constant = settings.lr_scheduler == "constant"
            name = "constant_with_warmup" if constant else settings.lr_scheduler
            warmup = settings.warmup_of(steps)
            scheduler = get_scheduler(name, optimizer, warmup + 1, steps + 1)
            # From its second step on, for the first of a warm-up is at rate 0 and trains nothing.
            self._rates = LambdaLR(optimizer, [_from_second(e) for e in scheduler.lr_lambdas])
            self._engine, *_ = deepspeed.initialize(
                model=parameters,
                optimizer=optimizer,
                config=with_buckets(self._config, sum(p.numel() for p in parameters.parameters())),
                dist_init_required=False,
            )
        self._stage = stage

    def _divided(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The rows of an optimizer step in its forward passes, those of all workers."""
        parts = np.array_split(rows, self._settings.gradient_accumulation_steps)
        return [part for part in parts if len(part)]

    def _train(
        self,
        rows: NDArray[np.int64],
        count: int,
        micro_batches: Iterable[MicroBatch],
        total: torch.Tensor,
    ) -> None:
        """Take an optimizer step over `rows`, which have `count` targets; adds this worker's part
        of the summed loss to `total`."""
        engine, workers = self._engine, self._workers
        engine.train()
        engine.module.head.train(self._base_dropout)  # a head's dropout is the base's
        number = len(self._divided(rows))
        for i, micro_batch in enumerate(micro_batches):
            engine.set_gradient_accumulation_boundary(i == number - 1)
            batches = [to_device(each, workers) for each in micro_batch.passes]
            labels = torch.cat([batch.pop("labels") for batch in batches])
            if not self._is_ready:
                self._is_ready = True
                self._observer.on_ready()
            loss = micro_batch.weight * self._kind.summed_loss(engine(*batches), labels)
            mean = loss * (workers.size / count)
            if (penalty := self._adaptation.penalty()) is not None:
                mean = mean + penalty / number
            engine.backward(mean, scale_wrt_gas=False)
            total += loss.detach()
        self._adaptation.after_backward(engine)
        group = self._rates.optimizer.param_groups[0]
        self.last_learning_rate = self._learning_rate * float(group["lr"] / group["initial_lr"])
        engine.step()
        skipped = bool(getattr(engine.optimizer, "overflow", False))
        if not skipped:
            self._rates.step()
        self._adaptation.after_step(skipped, self.last_learning_rate)

    def _end(self) -> None:
        """Freeze the stage's blocks and let the engine go."""
        try:
            if self._stage is not None:
                self._adaptation.end_stage()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Destroy the engine, and hold nothing of the stage even where that fails."""
        engine, self._stage, self._engine, self._rates = self._engine, None, None, None
        if engine is not None:
            engine.destroy()
