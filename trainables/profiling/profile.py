"""The profile of a base on a task: one job, all the statistics that any trial may ask for.

Two passes, in this order. First PiLoRA's initial phase: standard LoRA trained for a while, its
approximate weight gradient scored every K steps (PiLoRA Eqs. 7 and 8, Algorithm 1). Then one
static pass at the untouched base weights, with the head that the initial phase has trained: mean
abs(g) of every weight over a fixed list of micro-batches (TASO section 4.1) and the diagonal of
H = 2 E[x x^T] (Sensitivity-LoRA section 4.6).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule
from trainables.adaptations.blocks import plain_lora
from trainables.engine.workers import Workers
from trainables.layers.recomputed import recomputed
from trainables.profiling.checkpoints import Checkpoints, JobCheckpoints, Message
from trainables.profiling.determinism import deterministic
from trainables.profiling.initial_phase import ScoredLoRA, state_of, take_up, train_initial_phase
from trainables.profiling.mask_counts import Fields
from trainables.profiling.settings import ProfileSettings
from trainables.profiling.static_pass import Progress, StaticPass, not_finite
from trainables.tasks.task import Task

PACKAGES = ("torch", "transformers", "deepspeed", "numpy")
_log = logging.getLogger(__name__)


def compute_profile(
    model: nn.Module,
    head: Mapping[str, nn.Module],
    targets: Sequence[TargetModule],
    task: Task,
    settings: ProfileSettings,
    *,
    workers: Workers,
    deepspeed: Mapping[str, Any] | None = None,
    base_fingerprint: str = "",
    on_progress: Progress = lambda _phase, _done, _total, _learning_rate=None: None,
    checkpoints: Checkpoints | None = None,
    on_message: Message = _log.warning,
    should_stop: Callable[[], bool] = lambda: False,
    recompute: bool = False,
) -> Profile:
    """Profile a frozen base on a task's training rows. Every worker returns the same profile.

    `head` holds the job's own fresh head modules. The result depends on the number of workers by
    floating-point order only. With `checkpoints` the job saves what it has every
    `settings.checkpoint_every` steps, and goes on from what an interrupted one has saved, to the
    same result; `on_message` (default: a warning in the log) is told so, and of a store that fails.
    With `recompute` the base's layers keep their inputs alone, in both passes: that changes no
    statistic.

    Two results are the same bit for bit on CPUs, and on GPUs with `settings.deterministic`. Raises
    JobError where a statistic is not finite, the memory holds no module or an operation is not
    deterministic as asked for, and CancelledError when `should_stop` says so, which is asked after
    every step.
    """
    metadata = {
        "base": base_fingerprint,
        "task": task.train_fingerprint,
        "settings": settings.model_dump(mode="json", exclude=set(settings.NOT_OF_THE_RESULT)),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    saves = JobCheckpoints(
        checkpoints,
        identity=_identity(metadata, targets, next(model.parameters()).dtype),
        every=settings.checkpoint_every,
        workers=workers,
        on_message=on_message,
    )
    saved = saves.load()
    if saved is not None and workers.rank == 0:
        on_message(
            f"the profile goes on from its checkpoint: step {saved.step} of the {saved.phase}"
        )
    lora = plain_lora(targets, settings.rank, settings.resolved_alpha)
    scored = ScoredLoRA(
        model, lora, seed=settings.seed, dropout=settings.dropout, head=head,
        every=settings.score_every, workers=workers,
    )  # fmt: skip
    with deterministic(settings.deterministic, workers.device), scored as initial_phase:
        if saved is not None and saved.phase == "static pass":
            take_up(saves.part("trained") or {}, initial_phase, head, settings, workers)
        else:
            train_initial_phase(
                model, initial_phase, task, settings,
                workers=workers, deepspeed=deepspeed, saves=saves, saved=saved,
                progress=on_progress, should_stop=should_stop, recompute=recompute,
            )  # fmt: skip
            saved = None
        tally = initial_phase.tally()
        initial_phase.detach()
        with recomputed(model, recompute):
            fields = StaticPass(
                model, targets, task, settings, workers=workers, checkpoints=saves,
                trained=lambda: tally | state_of(head), progress=on_progress,
                should_stop=should_stop,
            ).run(saved)  # fmt: skip
    scores = initial_phase.scores(tally)
    return Profile(
        targets=tuple(targets),
        scored_steps=initial_phase.scored_steps,
        top_percent_grid=tuple(settings.top_percent),
        modules={t.name: _checked(t.name, {**scores[t.name], **fields[t.name]}) for t in targets},
        metadata=metadata,
    )


def _identity(
    metadata: Mapping[str, Any], targets: Sequence[TargetModule], dtype: torch.dtype
) -> str:
    """What tells this computation from any other; the number of workers is no part of it."""
    modules = [[list(target.names), list(target.shape)] for target in targets]
    document = {**metadata, "modules": modules, "dtype": str(dtype)}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _checked(name: str, fields: Fields) -> ModuleProfile:
    for field in ("row_importance", "hessian_diag"):
        if not np.isfinite(fields[field]).all():
            raise not_finite(name, field)
    return ModuleProfile(**fields)
