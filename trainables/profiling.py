"""The profile of a base on a task: one job, all the statistics that any trial may ask for.

Two passes, in this order. First PiLoRA's initial phase: standard LoRA trained for a while, its
approximate weight gradient scored every K steps (PiLoRA Eqs. 7 and 8, Algorithm 1). Then one
static pass at the untouched base weights, with the head that the initial phase has trained: mean
abs(g) of every weight over a fixed list of micro-batches (TASO section 4.1) and the diagonal of
H = 2 E[x x^T] (Sensitivity-LoRA section 4.6).
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from spaces.errors import JobError
from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule
from trainables.adaptation import at_least_float
from trainables.adapters import BlockAdaptation, BlockParameters, plain_lora
from trainables.finetuning import finetune, summed_loss, to_device
from trainables.fp32_masters import full_gradient
from trainables.settings import ProfileSettings
from trainables.tasks import Task, epoch_order
from trainables.workers import Workers

ROWS_PER_SCORE = 1024  # rows of the approximate gradient that exist at once
# Gradients of a float16 base would vanish below 6e-8; a power of two changes no digit of theirs.
FLOAT16_LOSS_SCALE = 1024.0
PACKAGES = ("torch", "transformers", "deepspeed", "numpy")

Progress = Callable[[str, int, int], None]


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
    on_progress: Progress | None = None,
) -> Profile:
    """Profile a frozen base on a task's training rows. Every worker returns the same profile.

    `head` holds the job's own fresh head modules. The result depends on the number of workers by
    floating-point order only. Raises JobError where a statistic is not finite.
    """
    progress = on_progress or (lambda _phase, _done, _total: None)
    lora = plain_lora(targets, settings.rank, settings.resolved_alpha)
    steps = math.ceil(len(task.splits["train"].labels) / settings.batch_size) * settings.epochs
    with ScoredLoRA(
        model, lora, seed=settings.seed, dropout=settings.dropout, head=head,
        every=settings.score_every, workers=workers,
    ) as initial_phase:  # fmt: skip
        finetune(
            model, initial_phase, task, settings,
            learning_rate=settings.learning_rate, seed=settings.seed, workers=workers,
            deepspeed=deepspeed, evaluate_on=None, base_dropout=settings.base_dropout,
            on_step=lambda done: progress("initial phase", done, steps),
        )  # fmt: skip
        hits, row_importance = initial_phase.scores()
        initial_phase.detach()
        static = _StaticPass(model, targets)
        with static:
            static.run(task, settings, workers, progress)
    modules = {}
    for target in targets:
        name = target.name
        modules[name] = ModuleProfile(
            hits=hits[name],
            row_importance=row_importance[name],
            **static.weight_counts(name, settings.top_percent, workers),
            hessian_diag=static.hessian_diag(name, workers),
        )
        _check_finite(name, modules[name])
    return Profile(
        targets=tuple(targets),
        scored_steps=initial_phase.scored_steps,
        top_percent_grid=tuple(settings.top_percent),
        modules=modules,
        metadata={
            "base": base_fingerprint,
            "task": task.train_fingerprint,
            "settings": settings.model_dump(mode="json"),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        },
    )


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
        self._hits = {n: np.zeros(t.shape[0], np.int64) for n, t in self._targets.items()}
        self._importance = {n: np.zeros(t.shape[0], np.float64) for n, t in self._targets.items()}

    def after_backward(self, engine: Any) -> None:
        if self._steps % self._every:
            return
        self._pending = {}
        for i, (name, adapter) in enumerate(self._adapters.items()):
            (block,) = adapter.trainable
            # a collective where gradients are partitioned: every rank asks for every gradient
            grad_A, grad_B = full_gradient(engine, block.A), full_gradient(engine, block.B)
            if i % self._workers.size == self._workers.rank:
                self._pending[name] = approximate_row_scores(block, grad_A, grad_B)

    def after_step(self, skipped: bool, learning_rate: float) -> None:
        if skipped:
            return
        if self._steps % self._every == 0:
            for name, score in self._pending.items():
                self._hits[name] += (score > score.mean()).cpu().numpy()
                self._importance[name] += score.cpu().numpy()
            self.scored_steps += 1
        self._steps += 1

    def scores(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(hits int32 [out], row_importance float32 [out]) per module, from every rank."""
        hits, importance = {}, {}
        for name in self._targets:
            own = torch.as_tensor(np.stack([self._hits[name], self._importance[name]]))
            hit, summed = self._workers.sum_(own.to(self._workers.device)).cpu().numpy()
            hits[name] = hit.astype(np.int32)
            importance[name] = (summed / max(self.scored_steps, 1)).astype(np.float32)
        return hits, importance


def approximate_row_scores(
    block: BlockParameters, grad_A: torch.Tensor, grad_B: torch.Tensor
) -> torch.Tensor:
    """S_i = sum_j abs(B G^A + G^B A)_ij, float64 [out] (PiLoRA Eqs. 7 and 8).

    The gradients are in float32 at least, for they may be too small for float16. The approximate
    gradient [out, in] exists a few rows at a time.
    """
    A, B = at_least_float(block.A.detach()), at_least_float(block.B.detach())
    grad_A, grad_B = grad_A.to(A.dtype), grad_B.to(A.dtype)
    scores = [
        (b @ grad_A + grad_b @ A).abs().sum(1, dtype=torch.float64)
        for b, grad_b in zip(B.split(ROWS_PER_SCORE), grad_B.split(ROWS_PER_SCORE), strict=True)
    ]
    return torch.cat(scores)


class _Inputs:
    """Sum of x^2 [in] in float64 over what a layer has read, and over how many vectors x."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.squares = torch.zeros(width, dtype=torch.float64, device=device)
        self.number = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, x: torch.Tensor) -> None:
        """Count the vectors x [n, in]."""
        self.squares += x.double().square().sum(0)
        self.number += len(x)


class _StaticPass:
    """One pass over fixed micro-batches at the untouched base weights.

    Each weight's gradient is added to its accumulator as backward produces it, and freed.
    """

    def __init__(self, model: nn.Module, targets: Sequence[TargetModule]) -> None:
        self._model, self._targets = model, {target.name: target for target in targets}
        self._weights = {t.name: model.get_parameter(f"{t.names[0]}.weight") for t in targets}
        accumulate_in = {torch.float64: torch.float64}
        self._abs_gradient = {
            name: torch.zeros_like(weight, dtype=accumulate_in.get(weight.dtype, torch.float32))
            for name, weight in self._weights.items()
        }
        sized = {t.name: (t.shape[1], self._weights[t.name].device) for t in targets}
        self._of_tokens = {name: _Inputs(*size) for name, size in sized.items()}
        self._of_others = {name: _Inputs(*size) for name, size in sized.items()}
        half = any(weight.dtype == torch.float16 for weight in self._weights.values())
        self._loss_scale = FLOAT16_LOSS_SCALE if half else 1.0
        self._mask: torch.Tensor | None = None
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> _StaticPass:
        for name, weight in self._weights.items():
            weight.requires_grad_(True)
            self._hooks.append(
                weight.register_post_accumulate_grad_hook(_taking(self._abs_gradient[name]))
            )
            for alias in self._targets[name].names:
                layer = self._model.get_submodule(alias)
                self._hooks.append(layer.register_forward_pre_hook(self._seeing(name)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for weight in self._weights.values():
            weight.requires_grad_(False)
            weight.grad = None

    def run(
        self, task: Task, settings: ProfileSettings, workers: Workers, progress: Progress
    ) -> None:
        """Accumulate over the first `calibration_batches` micro-batches of a seeded order."""
        split = task.splits["train"]
        order = epoch_order(len(split.labels), settings.seed, 0)
        batches = [
            order[i : i + settings.batch_size] for i in range(0, len(order), settings.batch_size)
        ]
        if settings.calibration_batches != "all":
            batches = batches[: settings.calibration_batches]
        self._model.train(settings.base_dropout)
        for done, rows in enumerate(workers.share(batches), start=1):
            batch = to_device(split.batch(rows), workers)
            labels = batch.pop("labels")
            self._mask = batch.get("attention_mask")
            loss = summed_loss(self._model(**batch).logits, labels) / len(rows)
            (loss * self._loss_scale).backward()
            progress("static pass", min(done * workers.size, len(batches)), len(batches))
        self._model.eval()
        self._micro_batches = len(batches)

    def weight_counts(
        self, name: str, top_percent: Sequence[float], workers: Workers
    ) -> dict[str, np.ndarray]:
        """Entries of TASO's top-k% masks per row and column, one line per k (TASO Eq. 2)."""
        weight = self._weights[name].detach()
        gradient = workers.sum_(self._abs_gradient.pop(name))
        gradient /= self._micro_batches * self._loss_scale
        if not torch.isfinite(gradient).all():
            raise _not_finite(name, "the mean gradient")
        if isinstance(self._model.get_submodule(name), Conv1D):  # stored [in, out]
            weight, gradient = weight.T, gradient.T
        counts = {}
        for signal, score in (
            ("sensitivity", weight.to(gradient.dtype).abs() * gradient),
            ("gradient", gradient),
        ):
            rows, cols = top_percent_counts(score, top_percent)
            counts[f"{signal}_row_count"], counts[f"{signal}_col_count"] = rows, cols
        return counts

    def hessian_diag(self, name: str, workers: Workers) -> np.ndarray:
        """Diagonal of H = 2 E[x x^T] over non-padding tokens, float32 [in].

        A layer that reads no tokens (DeBERTa's projections of relative positions) is measured on
        what it reads; one that reads both, on its tokens alone, so that the mean does not depend
        on how the rows are divided into micro-batches.
        """
        tokens, others = (
            (workers.sum_(seen.squares), workers.sum_(seen.number))
            for seen in (self._of_tokens[name], self._of_others[name])
        )
        squares, number = tokens if tokens[1] > 0 else others
        return (2 * squares / number.clamp(min=1)).cpu().numpy().astype(np.float32)

    def _seeing(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x, mask = inputs[0].detach(), self._mask
            flat = x.reshape(-1, x.shape[-1])
            if mask is None:  # pictures are not padded
                self._of_tokens[name].add(flat)
            elif x.shape[:-1] == mask.shape or x.shape[:-1] == (mask.numel(),):
                self._of_tokens[name].add(flat[mask.reshape(-1).bool()])
            elif x.ndim == 2:  # one vector a row, as a pooler reads
                self._of_tokens[name].add(flat)
            else:
                self._of_others[name].add(flat)

        return hook


def _taking(accumulator: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def hook(weight: torch.Tensor) -> None:
        assert weight.grad is not None
        accumulator.add_(weight.grad.abs())
        weight.grad = None

    return hook


def top_percent_counts(
    score: torch.Tensor, top_percent: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column counts of the masks of a matrix's largest k%: integers [K, out], [K, in].

    A mask holds the floor(k/100 out in + 0.5) largest entries of `score` [out, in], ties taken in
    row-major order; zeros never count. The dtype is uint16, int32 where a count can pass 65,535.
    """
    out, in_ = score.shape
    flat = score.reshape(-1)
    sizes = [math.floor(k / 100 * out * in_ + 0.5) for k in top_percent]
    largest = torch.topk(flat, max(sizes)).values if max(sizes) else flat[:0]
    dtype = np.uint16 if max(out, in_) <= np.iinfo(np.uint16).max else np.int32
    rows = np.zeros((len(sizes), out), dtype)
    cols = np.zeros((len(sizes), in_), dtype)
    for line, size in enumerate(sizes):
        if size == 0:
            continue
        threshold = largest[size - 1]
        mask = flat > threshold
        if threshold > 0:
            ties = torch.nonzero(flat == threshold).reshape(-1)
            mask[ties[: size - int(mask.sum())]] = True
        mask = mask.reshape(out, in_)
        rows[line] = mask.sum(1).cpu().numpy()
        cols[line] = mask.sum(0).cpu().numpy()
    return rows, cols


def _check_finite(name: str, module: ModuleProfile) -> None:
    for field in ("row_importance", "hessian_diag"):
        if not np.isfinite(getattr(module, field)).all():
            raise _not_finite(name, field)


def _not_finite(name: str, what: str) -> JobError:
    return JobError(
        f"profile of {name}: {what} is not finite; use profile.precision: fp32 or a lower "
        "profile.learning_rate"
    )
