"""Fine-tuning: one plan, its stages one after another, measured on a split after every epoch.

The loop is the same for a trial, a confirmation run and the initial phase of a profile. What a
method adds to it goes through the adaptation it is given: attach (entering the context and
`begin_stage`), `penalty`, `after_backward`, `after_step`, detach (`end_stage` and leaving the
context).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spaces.errors import JobError
from trainables.adaptation import Adaptation, at_least_float
from trainables.dropout import quick_dropout
from trainables.metrics import metric_for
from trainables.settings import ProfileSettings, TrainSettings
from trainables.tasks import Split, Task, epoch_order
from trainables.workers import Workers

LOSS_CHECK_EVERY = 10  # steps between two looks at the loss for NaN
EVALUATION_ROWS = 64  # rows of one forward pass when measuring

PASS_TOKENS = 96
"""What a forward and backward pass costs a CPU beside its tokens, in tokens: 90 on MiniLM."""

EpochReport = Callable[[int, dict[str, float]], None]


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


def finetune(
    model: nn.Module,
    adaptation: Adaptation,
    task: Task,
    settings: TrainSettings | ProfileSettings,
    *,
    learning_rate: float,
    seed: int,
    workers: Workers,
    deepspeed: Mapping[str, Any] | None = None,
    evaluate_on: str | None = "dev",
    base_dropout: bool = True,
    evaluate_every_epoch: bool = True,
    on_ready: Callable[[], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_epoch: EpochReport | None = None,
    should_stop: Callable[[], bool] | None = None,
    checkpoints: StepCheckpoints | None = None,
) -> dict[str, float]:
    """Train an attached adaptation for `settings.epochs` epochs; returns the last epoch's report.

    Every step takes `settings.batch_size` rows over all workers, the last of an epoch what is
    left; its loss is the mean over those rows, however they are divided. A report holds
    train_loss, learning_rate (of scale 1, at the epoch's last step), step_time (median seconds),
    training_seconds and, where `evaluate_on` names a split, its loss and metric and
    evaluation_seconds. `on_ready` is called once, before the first forward pass that trains: engine
    and batch are ready. With `checkpoints` a job of one stage goes on where it was; its first
    report covers the steps since then.

    Raises DivergedError on a NaN or infinite loss, CancelledError when `should_stop` says so.
    """
    split = task.splits["train"]
    rows = len(split.labels)
    accumulation = getattr(settings, "gradient_accumulation_steps", 1)
    schedule = Schedule(math.ceil(rows / settings.batch_size), settings.epochs, adaptation.stages)
    config = engine_config(
        settings,
        deepspeed or {},
        accumulation=accumulation,
        workers=workers.size,
        dtype=next(model.parameters()).dtype,
    )
    _reseed(seed + 7919 * workers.rank)
    report: dict[str, float] = {}
    step, current = checkpoints.steps_done if checkpoints is not None else 0, -1
    run: _StageRun | None = None
    with quick_dropout(model), ExitStack() as stage:
        for epoch in range(step // schedule.per_epoch + 1, settings.epochs + 1):
            model.train(base_dropout)
            loss_sum = torch.zeros((), dtype=torch.float64, device=workers.device)
            times: list[float] = []
            trained = 0
            order = epoch_order(rows, seed, epoch)
            for batch in list(_batches(order, settings.batch_size))[step % schedule.per_epoch :]:
                started = time.perf_counter()
                if schedule.stage_of(step) != current:
                    stage.close()
                    current = schedule.stage_of(step)
                    run = _StageRun(
                        adaptation,
                        current,
                        settings,
                        learning_rate,
                        schedule.stage_steps(current),
                        config,
                        base_dropout,
                    )
                    stage.callback(run.close)
                    if checkpoints is not None and step == checkpoints.steps_done:
                        run.restore(checkpoints)
                assert run is not None
                loss_sum += run.step(split, batch, accumulation, workers, on_ready)
                on_ready = None if run.trains else on_ready
                trained += len(batch) if run.trains else 0
                step += 1
                times.append(time.perf_counter() - started)
                if checkpoints is not None:
                    run.keep(step, checkpoints)
                if on_step is not None:
                    on_step(step)
                if step % LOSS_CHECK_EVERY == 0:
                    _check_finite(loss_sum, step, workers)
                if should_stop is not None and workers.agree(should_stop()):
                    raise CancelledError
            _check_finite(loss_sum, step, workers)
            assert run is not None
            report = {
                "train_loss": float(workers.sum_(loss_sum)) / max(trained, 1),
                "learning_rate": run.last_learning_rate,
                "step_time": float(np.median(times)),
                "training_seconds": sum(times),
            }
            if evaluate_on is not None and (evaluate_every_epoch or epoch == settings.epochs):
                started = time.perf_counter()
                report |= evaluate(model, adaptation, task, evaluate_on, workers)
                report["evaluation_seconds"] = time.perf_counter() - started
            if on_epoch is not None:
                on_epoch(epoch, report)
    return report


class _StageRun:
    """One stage under its own DeepSpeed engine, optimizer and learning-rate schedule."""

    def __init__(
        self,
        adaptation: Adaptation,
        stage: int,
        settings: TrainSettings | ProfileSettings,
        learning_rate: float,
        steps: int,
        config: dict[str, Any],
        base_dropout: bool,
    ) -> None:
        self._adaptation, self._base_dropout = adaptation, base_dropout
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
            loss = weight * summed_loss(self._engine(*batches), labels)
            mean = loss * (workers.size / len(rows))
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


def of_like_length(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Positions of `lengths` [n] in groups of like length that cost least, each by itself padded.

    A group costs its rows times its longest, and `PASS_TOKENS`. The sum of a loss over the rows is
    the same however they are grouped, and so is its gradient.
    """
    order = np.argsort(lengths, kind="stable")
    ascending = lengths[order]
    least = np.zeros(len(order) + 1)  # cost of the first rows, and where their last group begins
    begins = np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        costs = least[:end] + (end - np.arange(end)) * ascending[end - 1] + PASS_TOKENS
        begins[end] = costs.argmin()
        least[end] = costs[begins[end]]
    groups: list[NDArray[np.int64]] = []
    end = len(order)
    while end:
        groups.append(order[begins[end] : end])
        end = int(begins[end])
    return groups


def untimed(report: Mapping[str, float]) -> dict[str, float]:
    """A report without what the clock said: equal where the training was."""
    timed = ("step_time", "training_seconds", "evaluation_seconds")
    return {key: value for key, value in report.items() if key not in timed}


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over rows: logits [n, classes], labels [n]."""
    return nn.functional.cross_entropy(at_least_float(logits), labels, reduction="sum")


@torch.no_grad()
def evaluate(
    model: nn.Module, adaptation: Adaptation, task: Task, name: str, workers: Workers
) -> dict[str, float]:
    """{"<name>_loss": mean loss, "<metric>": the task's metric} of a split, all dropout off.

    Rows of like length go through the model together; every rank takes its share.
    """
    split = task.splits[name]
    model.eval()
    adaptation.eval()
    rows = len(split.labels)
    by_length = np.argsort(split.lengths, kind="stable")
    logits = torch.zeros(rows, len(task.labels), dtype=torch.float64, device=workers.device)
    batches = list(_batches(by_length, EVALUATION_ROWS))
    for indices in workers.share(batches):
        batch = to_device(split.batch(indices), workers)
        batch.pop("labels")
        logits[torch.as_tensor(indices, device=workers.device)] = model(**batch).logits.double()
    workers.sum_(logits)
    labels = torch.tensor(split.labels, device=workers.device)
    loss = summed_loss(logits, labels).item() / rows
    metric = metric_for(task.metric, task.kind)
    return {f"{name}_loss": loss, task.metric: metric(split.labels, logits.cpu().numpy())}


def to_device(batch: Mapping[str, torch.Tensor], workers: Workers) -> dict[str, torch.Tensor]:
    """The batch's tensors on the worker's device."""
    return {key: tensor.to(workers.device) for key, tensor in batch.items()}


def _batches(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _reseed(seed: int) -> None:
    import random

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _check_finite(loss_sum: torch.Tensor, step: int, workers: Workers) -> None:
    finite = torch.isfinite(loss_sum).to(torch.float64)
    if float(workers.sum_(finite)) < workers.size:
        raise DivergedError(
            f"the training loss is not finite at step {step}; lower learning_rate or alpha"
        )
