"""Fine-tuning: one plan, its stages one after another, measured on a split after every epoch.

The loop is the same for a trial, a confirmation run and the initial phase of a profile. What a
method adds to it goes through the adaptation it is given: attach (entering the context and
`begin_stage`), `penalty`, `after_backward`, `after_step`, detach (`end_stage` and leaving the
context).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from trainables.adaptations.adaptation import Adaptation
from trainables.engine.workers import Workers
from trainables.layers.dropout import quick_dropout
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.kinds import KINDS
from trainables.tasks.split import epoch_order
from trainables.tasks.task import Task
from trainables.training.batches import in_batches
from trainables.training.evaluate import evaluate
from trainables.training.settings import TrainSettings
from trainables.training.stage import (
    CancelledError,
    DivergedError,
    Schedule,
    StageRun,
    StepCheckpoints,
    engine_config,
)

LOSS_CHECK_EVERY = 10  # steps between two looks at the loss for NaN
EpochReport = Callable[[int, dict[str, float]], None]


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
    split, kind = task.splits["train"], KINDS[task.kind]
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
    run: StageRun | None = None
    with quick_dropout(model), ExitStack() as stage:
        for epoch in range(step // schedule.per_epoch + 1, settings.epochs + 1):
            model.train(base_dropout)
            loss_sum = torch.zeros((), dtype=torch.float64, device=workers.device)
            times: list[float] = []
            trained = 0
            order = epoch_order(rows, seed, epoch)
            for batch in list(in_batches(order, settings.batch_size))[step % schedule.per_epoch :]:
                started = time.perf_counter()
                if schedule.stage_of(step) != current:
                    stage.close()
                    current = schedule.stage_of(step)
                    run = StageRun(
                        adaptation,
                        kind,
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
                trained += kind.loss_count(split.labels[batch]) if run.trains else 0
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


def untimed(report: Mapping[str, float]) -> dict[str, float]:
    """A report without what the clock said: equal where the training was."""
    timed = ("step_time", "training_seconds", "evaluation_seconds")
    return {key: value for key, value in report.items() if key not in timed}


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
