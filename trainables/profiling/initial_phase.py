"""PiLoRA's initial phase: a standard LoRA whose rows are scored as it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from trainables.adaptations.blocks import BlockAdaptation
from trainables.adaptations.flat import BlockFactors
from trainables.engine.masters import at_least_float, full_gradient
from trainables.engine.state import EngineState, engine_state, restore_engine
from trainables.engine.workers import Workers
from trainables.profiling.checkpoints import (
    JobCheckpoints,
    Saved,
    Tensors,
    rng_state,
    set_rng_state,
)
from trainables.profiling.mask_counts import Fields
from trainables.profiling.settings import ProfileSettings
from trainables.profiling.static_pass import Progress
from trainables.tasks.task import Task
from trainables.training.finetune import finetune
from trainables.training.observer import Observer
from trainables.training.settings import TrainSettings

ROWS_PER_SCORE = 1024  # rows of the approximate gradient that exist at once


def train_initial_phase(
    model: nn.Module,
    initial_phase: ScoredLoRA,
    task: Task,
    settings: ProfileSettings,
    *,
    workers: Workers,
    deepspeed: Mapping[str, Any] | None,
    saves: JobCheckpoints,
    saved: Saved | None,
    progress: Progress,
    should_stop: Callable[[], bool],
    recompute: bool = False,
) -> None:
    """PiLoRA's initial phase, from its first step or from where a checkpoint has it."""
    steps = math.ceil(len(task.splits["train"]) / settings.batch_size) * settings.epochs
    observer = _Phase(initial_phase, saves, saved, settings, workers, steps, progress, should_stop)
    finetune(
        model, initial_phase, task, training_of(settings),
        learning_rate=settings.learning_rate, seed=settings.seed, workers=workers,
        deepspeed=deepspeed, evaluate_on=None, base_dropout=settings.base_dropout,
        recompute=recompute, observer=observer,
    )  # fmt: skip


def training_of(settings: ProfileSettings) -> TrainSettings:
    """How the initial phase trains: what the sections `profile` and `train` both have."""
    return TrainSettings(**settings.model_dump(include=set(TrainSettings.model_fields)))


class ScoredLoRA(BlockAdaptation):
    """PiLoRA's initial phase: plain LoRA whose approximate weight gradient is scored as it trains.

    At optimizer steps 0, K, 2K, ... that a loss scaler did not skip, on unscaled gradients averaged
    over workers and not yet clipped: S_i = sum_j abs(B G^A + G^B A)_ij, and row i is hit where
    S_i > mean(S). Each module is scored by one rank.
    """

    def __init__(self, *args: Any, every: int, workers: Workers, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._every, self._workers = every, workers
        self._steps = 0
        self.scored_steps = 0
        self._pending: dict[str, torch.Tensor] = {}
        self._tally = {
            name: torch.zeros(2, target.shape[0], dtype=torch.float64, device=workers.device)
            for name, target in self._targets.items()
        }  # of each module its rows' hits and importance

    def after_backward(self, engine: Any) -> None:
        if self._steps % self._every:
            return
        assert self._factors is not None, "a backward pass outside a stage"
        # a collective where gradients are partitioned: every rank asks for the whole gradient
        gradients = [full_gradient(engine, flat) for flat in self._factors.flats]
        self._pending = {}
        for i, (name, adapter) in enumerate(self._adapters.items()):
            if i % self._workers.size == self._workers.rank:
                (block,) = adapter.blocks
                self._pending[name] = approximate_row_scores(block, *block.of(gradients))

    def after_step(self, skipped: bool, learning_rate: float) -> None:
        if skipped:
            return
        if self._steps % self._every == 0:
            for name, score in self._pending.items():
                hits, importance = self._tally[name]
                hits += score > score.mean()
                importance += score
            self.scored_steps += 1
        self._steps += 1

    @property
    def steps(self) -> int:
        """How many steps were taken; those that a loss scaler skipped do not count."""
        return self._steps

    def tally(self) -> dict[str, torch.Tensor]:
        """`<module>/hits` int64 [out], `<module>/importance` float64 [out], summed over workers and
        steps, and `scored_steps`. A collective."""
        tally = {"scored_steps": torch.tensor(self.scored_steps)}
        parts = list(self._tally.values())
        total = self._workers.sum_(torch.cat(parts, dim=1)).cpu()
        for name, part in zip(
            self._tally, total.split([p.shape[1] for p in parts], 1), strict=True
        ):
            hits, importance = part
            tally[f"{name}/hits"] = hits.to(torch.int64)
            tally[f"{name}/importance"] = importance.clone()
        return tally

    def restore(self, tally: Tensors, steps: int) -> None:
        """Go on from a tally of `steps` steps. Each rank takes up what it goes on adding to, so
        that the sums are made in the order in which they would have been."""
        self._steps, self.scored_steps = steps, int(tally["scored_steps"])
        for i, (name, own) in enumerate(self._tally.items()):
            if i % self._workers.size == self._workers.rank:
                own.copy_(torch.stack([tally[f"{name}/hits"], tally[f"{name}/importance"]]))

    def scores(self, tally: Tensors | None = None) -> dict[str, Fields]:
        """hits int32 [out] and row_importance float32 [out] per module; without a tally of all
        workers a collective."""
        tally = self.tally() if tally is None else tally
        return {
            name: {
                "hits": tally[f"{name}/hits"].numpy().astype(np.int32),
                "row_importance": (
                    tally[f"{name}/importance"].numpy() / max(self.scored_steps, 1)
                ).astype(np.float32),
            }
            for name in self._targets
        }


class _Phase(Observer):
    """Tells how the initial phase goes, and saves it or puts a saved one in its place.

    Its end is saved by what follows it.
    """

    def __init__(
        self,
        phase: ScoredLoRA,
        saves: JobCheckpoints,
        saved: Saved | None,
        settings: ProfileSettings,
        workers: Workers,
        steps: int,
        progress: Progress,
        should_stop: Callable[[], bool],
    ) -> None:
        self._phase, self._saves, self._saved = phase, saves, saved
        self._drops = settings.dropout > 0 or settings.base_dropout
        self._workers, self._steps = workers, steps
        self._progress, self._should_stop = progress, should_stop
        self.steps_done = saved.step if saved is not None else 0

    def on_step(self, step: int, steps: int, learning_rate: float) -> None:
        self._progress("initial phase", step, steps, learning_rate)

    def should_stop(self) -> bool:
        return self._should_stop()

    def restore(self, engine: Any, schedule: Any) -> None:
        saved = self._saved
        if saved is None:
            return
        tensors, facts = self._saves.part("state") or {}, saved.facts
        restore_engine(engine, schedule, EngineState(tensors=tensors, **facts["engine"]))
        self._phase.restore(tensors, facts["taken"])
        if self._drops and saved.workers == self._workers.size:
            rng = self._saves.part(f"rank{self._workers.rank}/rng")
            set_rng_state(rng or {}, self._workers.device)

    def keep(self, step: int, engine: Any, schedule: Any) -> None:
        if step == self._steps or not self._saves.due(step - 1, step):
            return
        state, tally = engine_state(engine, schedule), self._phase.tally()
        facts = {
            "engine": {
                "optimizer_steps": state.optimizer_steps,
                "schedule_steps": state.schedule_steps,
                "loss_scaler": state.loss_scaler,
            },
            "taken": self._phase.steps,
        }
        parts: list[tuple[str, Tensors]] = []
        if self._workers.rank == 0:
            parts.append(("state", {**state.tensors, **tally}))
        if self._drops:
            parts.append((f"rank{self._workers.rank}/rng", rng_state(self._workers.device)))
        self._saves.save("initial phase", step, facts, parts)


def state_of(head: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {
        f"head/{name}/{inner}": tensor.detach().cpu().clone()
        for name, module in head.items()
        for inner, tensor in module.state_dict().items()
    }


def take_up(
    trained: Tensors,
    initial_phase: ScoredLoRA,
    head: Mapping[str, nn.Module],
    settings: ProfileSettings,
    workers: Workers,
) -> None:
    """Put an initial phase that has been trained before in the place of one."""
    initial_phase.restore(trained, steps=0)
    for name, module in head.items():
        place = f"head/{name}/"
        state = {n.removeprefix(place): t for n, t in trained.items() if n.startswith(place)}
        module.load_state_dict(state)
    torch.manual_seed(settings.seed + 7919 * workers.rank)  # where no generator was saved


def approximate_row_scores(
    block: BlockFactors, grad_A: torch.Tensor, grad_B: torch.Tensor
) -> torch.Tensor:
    """S_i = sum_j abs(B G^A + G^B A)_ij, float64 [out] (PiLoRA Eqs. 7 and 8).

    The gradients are in float32 at least, for they may be too small for float16. The approximate
    gradient [out, in] exists a few rows at a time.
    """
    A, B = (at_least_float(factor.detach()) for factor in block.now())
    grad_A, grad_B = grad_A.to(A.dtype), grad_B.to(A.dtype)
    scores = [
        (b @ grad_A + grad_b @ A).abs().sum(1, dtype=torch.float64)
        for b, grad_b in zip(B.split(ROWS_PER_SCORE), grad_B.split(ROWS_PER_SCORE), strict=True)
    ]
    return torch.cat(scores)
