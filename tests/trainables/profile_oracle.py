"""The statistics of a profile by brute force in float64, written from the equations.

One unpadded row at a time, every weight matrix whole, LoRA written out as W + (alpha / r) B A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from spaces.profile import Profile
from spaces.target import TargetModule
from tests.trainables.conftest import adapters_of
from trainables.adaptations.blocks import BlockAdaptation, plain_lora
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.split import epoch_order
from trainables.tasks.task import Task


def row_of(split: Any, i: int) -> dict[str, torch.Tensor]:
    """One row as the base's keyword arguments, unpadded."""
    if hasattr(split, "pixel_values"):
        return {"pixel_values": torch.tensor(split.pixel_values[i : i + 1])}
    tokens = split.input_ids[split.offsets[i] : split.offsets[i + 1]]
    return {"input_ids": torch.tensor(tokens, dtype=torch.long)[None]}


def mean_loss(
    model: Any, weights: Mapping[str, torch.Tensor], split: Any, rows: Iterable[int]
) -> torch.Tensor:
    """Mean cross-entropy over the targets of some rows, some of the weights replaced.

    A target is a row's class, or in a row of a language model each token that bears loss, which is
    predicted from the tokens before it.
    """
    losses = []
    for i in rows:
        logits = functional_call(model, dict(weights), (), row_of(split, i)).logits[0]
        if not hasattr(split, "targets_mask"):
            losses.append(-logits.log_softmax(-1)[split.labels[i]])
            continue
        row = slice(split.offsets[i], split.offsets[i + 1])
        for place in np.flatnonzero(split.targets_mask[row]):
            losses.append(-logits[place - 1].log_softmax(-1)[split.input_ids[row][place]])
    return torch.stack(losses).mean()


def stored(model: Any, name: str, matrix: torch.Tensor) -> torch.Tensor:
    """A matrix [out, in] laid out as the layer's own weight."""
    return matrix.T if isinstance(model.get_submodule(name), Conv1D) else matrix


def initial_phase(
    model: Any,
    head: Mapping[str, Any],
    targets: Sequence[TargetModule],
    task: Task,
    settings: ProfileSettings,
    refused: Sequence[int] = (),
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int, dict[str, torch.Tensor]]:
    """PiLoRA Algorithm 1, lines 3 to 13: hits, row importance, scored steps, the trained head.

    The rate falls linearly without warm-up; `head` is changed. `refused` are the steps that a loss
    scaler did not take: their rows are spent, but they neither count nor change anything.
    """
    split, rank = task.splits["train"], settings.rank
    scale = settings.resolved_alpha / rank
    lora = plain_lora(targets, rank, settings.resolved_alpha)
    with BlockAdaptation(model, lora, seed=settings.seed) as drawn:
        start = [
            a.blocks[0].now()[0].detach().clone() for a in adapters_of(drawn.begin_stage(0, 1))
        ]
    A = [a.requires_grad_() for a in start]
    B = [torch.zeros(t.shape[0], rank, dtype=a.dtype, requires_grad=True)
         for t, a in zip(targets, A, strict=True)]  # fmt: skip
    head_weights = {
        f"{name}.{inner}": parameter
        for name, module in head.items()
        for inner, parameter in module.named_parameters()
    }
    everything = [*A, *B, *head_weights.values()]
    optimizer = torch.optim.AdamW(
        everything, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    base = dict(model.named_parameters())
    rows = len(split)
    steps = math.ceil(rows / settings.batch_size) * settings.epochs
    hits = {t.name: np.zeros(t.shape[0], int) for t in targets}
    importance = {t.name: np.zeros(t.shape[0]) for t in targets}
    scored = step = attempt = 0
    for epoch in range(1, settings.epochs + 1):
        order = epoch_order(rows, settings.seed, epoch)
        for first in range(0, rows, settings.batch_size):
            attempt += 1
            if attempt - 1 in refused:
                continue
            weights = {
                f"{t.name}.weight": base[f"{t.name}.weight"] + stored(model, t.name, scale * b @ a)
                for t, a, b in zip(targets, A, B, strict=True)
            }
            batch = order[first : first + settings.batch_size]
            loss = mean_loss(model, weights | head_weights, split, batch)
            gradients = torch.autograd.grad(loss, everything)
            if step % settings.score_every == 0:
                for m, target in enumerate(targets):
                    grad_A, grad_B = gradients[m], gradients[len(targets) + m]
                    G = B[m].detach() @ grad_A + grad_B @ A[m].detach()  # Eq. 7
                    S = G.abs().sum(1).numpy()  # Eq. 8
                    hits[target.name] += S.mean() < S
                    importance[target.name] += S
                scored += 1
            norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
            clip = 1.0
            if settings.max_grad_norm is not None:
                clip = min(1.0, settings.max_grad_norm / (norm + 1e-6))
            for parameter, gradient in zip(everything, gradients, strict=True):
                parameter.grad = gradient * clip
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (steps - step) / steps
            optimizer.step()
            step += 1
    trained = {name: value.detach() for name, value in head_weights.items()}
    return hits, {name: total / scored for name, total in importance.items()}, scored, trained


def static_pass(
    model: Any,
    targets: Sequence[TargetModule],
    task: Task,
    settings: ProfileSettings,
    trained_head: Mapping[str, torch.Tensor],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Mean abs(g) [out, in] over micro-batches, and the diagonal of 2 E[x x^T] over tokens."""
    split = task.splits["train"]
    order = epoch_order(len(split), settings.seed, 0)
    size = settings.batch_size
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    if settings.calibration_batches != "all":
        batches = batches[: settings.calibration_batches]
    base = dict(model.named_parameters())
    gradients = {t.name: np.zeros(t.shape) for t in targets}
    for rows in batches:
        leaves = {
            t.name: base[f"{t.name}.weight"].detach().clone().requires_grad_() for t in targets
        }
        weights = {f"{name}.weight": leaf for name, leaf in leaves.items()}
        loss = mean_loss(model, weights | dict(trained_head), split, rows)
        found = torch.autograd.grad(loss, list(leaves.values()))
        for target, gradient in zip(targets, found, strict=True):
            laid_out = stored(model, target.name, gradient)
            gradients[target.name] += laid_out.abs().numpy() / len(batches)
    return gradients, _hessian_diagonals(model, targets, split, np.concatenate(batches))


def _hessian_diagonals(
    model: Any, targets: Sequence[TargetModule], split: Any, rows: Iterable[int]
) -> dict[str, np.ndarray]:
    outer = {t.name: np.zeros((t.shape[1], t.shape[1])) for t in targets}
    tokens = dict.fromkeys(outer, 0)
    in_row = 0
    hooks = []

    def seeing(name: str) -> Callable[..., None]:
        def hook(_layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
            x = inputs[0].detach().numpy()
            if x.ndim == 3 and in_row and x.shape[1] != in_row:
                return  # positions, not tokens
            x = x.reshape(-1, x.shape[-1])
            outer[name] += x.T @ x
            tokens[name] += len(x)

        return hook

    for target in targets:
        for alias in target.names:
            layer = model.get_submodule(alias)
            hooks.append(layer.register_forward_hook(seeing(target.name)))
    with torch.no_grad():
        for i in rows:
            row = row_of(split, int(i))
            in_row = row["input_ids"].shape[1] if "input_ids" in row else 0
            model(**row)
    for hook in hooks:
        hook.remove()
    return {name: np.diag(2 * outer[name] / tokens[name]) for name in outer}


def mask_counts(score: np.ndarray, percent: float) -> tuple[np.ndarray, np.ndarray]:
    """TASO Eq. 2 by sorting every entry: largest first, ties row-major, zeros left out."""
    out, in_ = score.shape
    entries = sorted((-score[i, j], i * in_ + j) for i in range(out) for j in range(in_))
    mask = np.zeros(out * in_, bool)
    for value, at in entries[: math.floor(percent / 100 * out * in_ + 0.5)]:
        mask[at] = value < 0
    mask = mask.reshape(out, in_)
    return mask.sum(1), mask.sum(0)


def assert_profile_is(
    profile: Profile,
    model: Any,
    head: Mapping[str, Any],
    targets: Sequence[TargetModule],
    task: Task,
    settings: ProfileSettings,
) -> None:
    """Every statistic of a profile is what brute force finds; `head` is a fresh copy."""
    hits, importance, scored, trained = initial_phase(model, head, targets, task, settings)
    gradients, hessian = static_pass(model, targets, task, settings, trained)
    assert profile.scored_steps == scored
    assert [t.name for t in profile.targets] == [t.name for t in targets]
    for target in targets:
        name, found = target.name, profile.modules[target.name]
        np.testing.assert_array_equal(found.hits, hits[name])
        assert found.row_importance is not None
        assert found.hessian_diag is not None
        np.testing.assert_allclose(found.row_importance, importance[name], rtol=1e-5)
        np.testing.assert_allclose(found.hessian_diag, hessian[name], rtol=1e-5)
        weight = stored(model, name, model.get_parameter(f"{name}.weight").detach()).numpy()
        gradient = gradients[name]
        for signal, score in (
            ("sensitivity", np.abs(weight) * gradient), ("gradient", gradient),
        ):  # fmt: skip
            for line, percent in enumerate(settings.top_percent):
                rows, cols = mask_counts(score, percent)
                np.testing.assert_array_equal(getattr(found, f"{signal}_row_count")[line], rows)
                np.testing.assert_array_equal(getattr(found, f"{signal}_col_count")[line], cols)
    assert any(h.any() for h in hits.values())
