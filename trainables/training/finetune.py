"""Fine-tuning: one plan, its stages one after another, measured on a split after every epoch.

The loop is the same for a trial, a confirmation run and the initial phase of a profile. What a
method adds to it goes through the adaptation it is given: attach (entering the context, `look` and
`begin_stage`), `penalty`, `after_backward`, `after_step`, detach (`end_stage` and leaving the
context).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainables.adaptations.adaptation import Adaptation
from trainables.adaptations.training_rows import TrainingRows
from trainables.engine.memory import HighestHeld
from trainables.engine.workers import CancelledError, Workers
from trainables.layers.dropout import quick_dropout
from trainables.layers.recomputed import recomputed
from trainables.tasks.grouping import in_batches
from trainables.tasks.split import Split, epoch_order
from trainables.tasks.task import Task
from trainables.training.evaluate import evaluate
from trainables.training.made_ahead import made_ahead
from trainables.training.observer import Observer
from trainables.training.settings import TrainSettings
from trainables.training.stage import Schedule, Stages, engine_config
from trainables.training.unhurried import LossCheck, StepClock

LOSS_CHECK_EVERY = 10  # steps between two looks at the loss for NaN
LOSSES_OF_AN_EPOCH = 20  # of which the observer hears, at most
AGREE_EVERY = 5  # steps after which the workers of a group wait for each other, to stop as one


def finetune(
    model: nn.Module,
    adaptation: Adaptation,
    task: Task,
    settings: TrainSettings,
    *,
    learning_rate: float,
    seed: int,
    workers: Workers,
    deepspeed: Mapping[str, Any] | None = None,
    evaluate_on: str | None = "dev",
    base_dropout: bool = True,
    recompute: bool = False,
    evaluate_every_epoch: bool = True,
    observer: Observer | None = None,
) -> dict[str, float]:
    """Train an attached adaptation for `settings.epochs` epochs; returns the last epoch's report.

    Where its stages are full, each has so many epochs, and they are counted through.

    Every step takes `settings.batch_size` rows over all workers, the last of an epoch what is
    left; its loss is the mean over their targets, however they are divided. A report holds
    train_loss, learning_rate (of scale 1, at the epoch's last step), step_time (median seconds),
    training_seconds, memory_bytes (the most that this worker held: of a GPU, or resident at the
    ends of epochs) and, where `evaluate_on` names a split, its loss and metric,
    evaluation_seconds and the adaptation's own figures. Where the observer has steps done, the job
    goes on after them and its first report covers the steps since then. With `recompute` the base's
    layers keep their inputs alone and are computed again for their gradients.

    Raises DivergedError on a NaN or infinite loss, CancelledError when the observer says so.
    """
    observer = observer or Observer()
    split = task.splits["train"]
    rows = len(split)
    epochs = settings.epochs * adaptation.length
    schedule = Schedule(math.ceil(rows / settings.batch_size), epochs, adaptation.stages)
    dtype = next(model.parameters()).dtype
    stages = Stages(
        adaptation,
        task.its_kind,
        settings,
        schedule,
        learning_rate=learning_rate,
        config=engine_config(settings, deepspeed or {}, workers.size, dtype),
        workers=workers,
        base_dropout=base_dropout,
        observer=observer,
    )
    micro_batch = math.ceil(settings.batch_size / settings.gradient_accumulation_steps)
    adaptation.look(TrainingRows(task, workers, seed, micro_batch))
    _reseed(seed + 7919 * workers.rank)
    report: dict[str, float] = {}
    step = observer.steps_done
    memory = HighestHeld(workers.device)
    with quick_dropout(model), recomputed(model, recompute), stages:
        for epoch in range(step // schedule.per_epoch + 1, epochs + 1):
            model.train(base_dropout)
            batches = list(in_batches(epoch_order(rows, seed, epoch), settings.batch_size))
            left = batches[step % schedule.per_epoch :]
            report = _train_epoch(stages, split, left, step, workers, observer)
            step += len(left)
            if evaluate_on is not None and (evaluate_every_epoch or epoch == epochs):
                started = time.perf_counter()  # the report's numbers have waited for a GPU
                hearing = replace(workers, should_stop=observer.should_stop)
                report |= evaluate(model, adaptation, task, evaluate_on, hearing)
                report |= adaptation.figures()
                report["evaluation_seconds"] = time.perf_counter() - started
            memory.look()
            report["memory_bytes"] = float(memory.bytes)
            observer.on_epoch(epoch, report)
    return report


def _train_epoch(
    stages: Stages,
    split: Split,
    batches: Sequence[NDArray[np.int64]],
    done: int,
    workers: Workers,
    observer: Observer,
) -> dict[str, float]:
    """Train the batches of an epoch that are left where `done` steps of the job are over."""
    loss_sum = torch.zeros((), dtype=torch.float64, device=workers.device)
    clock, check = StepClock(workers.device), LossCheck(workers)
    trained = 0
    last = done + len(batches)
    every = math.ceil(len(batches) / LOSSES_OF_AN_EPOCH)
    seen: list[tuple[int, int, torch.Tensor]] = []
    with made_ahead(partial(stages.micro_batches, split), batches, workers.device) as made:
        for step, batch in enumerate(batches, start=done + 1):
            with clock.step():
                loss_sum += stages.step(step - 1, split, batch, next(made))
                trained += int(split.targets[batch].sum()) if stages.trains else 0
            stages.keep(step)
            observer.on_step(step, stages.steps, stages.last_learning_rate)
            if (step - done) % every == 0 or step == last:
                seen.append((step, trained, loss_sum.clone()))
            if step % LOSS_CHECK_EVERY == 0 or step == last:
                check.look(loss_sum, step)
            agrees = workers.size == 1 or step % AGREE_EVERY == 0 or step == last
            if agrees and workers.agree(observer.should_stop()):
                raise CancelledError
    check.settle()
    times = clock.seconds()
    observer.on_losses(_losses(seen, workers))
    return {
        "train_loss": float(workers.sum_(loss_sum)) / max(trained, 1),
        "learning_rate": stages.last_learning_rate,
        "step_time": float(np.median(times)),
        "training_seconds": sum(times),
    }


def _losses(
    seen: Sequence[tuple[int, int, torch.Tensor]], workers: Workers
) -> list[tuple[int, float]]:
    """The mean loss of a target since what was seen before, by the steps done; where none was
    trained there is no loss. `seen` has steps, targets and this worker's summed loss [], each
    since the epoch's beginning. A collective."""
    if not seen:
        return []
    sums = workers.sum_(torch.stack([loss for _, _, loss in seen])).tolist()
    found, targets, total = [], 0, 0.0
    for (step, trained, _), summed in zip(seen, sums, strict=True):
        if trained > targets:
            found.append((step, (summed - total) / (trained - targets)))
        targets, total = trained, summed
    return found


def untimed(report: Mapping[str, float]) -> dict[str, float]:
    """A report without what the clock and the machine said: equal where the training was."""
    timed = ("step_time", "training_seconds", "evaluation_seconds", "memory_bytes")
    return {key: value for key, value in report.items() if key not in timed}


def _reseed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
