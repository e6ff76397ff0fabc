"""GoRA (He et al., 2025): ranks and start of LoRA from the gradients of the base's weights.

With G_i [out, in] the mean gradient of weight W_i over some micro-batches of training rows at the
untouched base (the task's fresh head in place, dropout off), in our orientation:

    I_i = mean |W_i * G_i|,  ranks by a_i = I_i / sum I   (spaces/methods/baselines/gora.py)
    A_i [r_i, in] as LoRA's draw,  B_i = -xi_i G_i A_i^T (A_i A_i^T)^-1
    xi_i = gamma sqrt(in / r_i) / scale,  scale = alpha / rank

so that scale B_i A_i = -gamma sqrt(in / r_i) G_i P_i with P_i the projection on the rows of A_i:
the compressed gradient, about as long as a step of gradient descent at the rate gamma. The base
stays what it is; the trial starts a step away from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite, sqrt

import torch
from transformers.pytorch_utils import Conv1D

from spaces.errors import JobError
from spaces.methods.baselines.gora import allocated_ranks
from trainables.adaptations.adaptation import Factors, lora_draw, stage_seed
from trainables.adaptations.baselines.allocated import AllocatedAdaptation
from trainables.adaptations.training_rows import TrainingRows
from trainables.layers.hooks import FLOAT16_LOSS_SCALE, Hooks, accumulated_in, weight_of


class GoraAdaptation(AllocatedAdaptation):
    """GoRA on every target module."""

    def _found(self, rows: TrainingRows) -> Mapping[str, Factors]:
        settings, targets = self._settings, list(self._targets.values())
        gradients = self._gradients(rows)
        importances = []
        for name, gradient in gradients.items():
            weight = self._weight(name).to(gradient.dtype)
            importances.append(float((weight * gradient).abs().mean()))
            if not isfinite(importances[-1]):
                raise JobError(
                    f"method: gora's gradient of {name} is not finite; train with train.precision: "
                    "fp32"
                )
        ranks = allocated_ranks(
            importances, targets, settings["rank"], settings["min_rank"], settings["max_rank"]
        )
        ranks = rows.workers.broadcast_object(ranks)
        self._generator.manual_seed(stage_seed(self._seed, 0))
        scale, found = settings["alpha"] / settings["rank"], {}
        for target, rank in zip(targets, ranks, strict=True):
            inner = target.shape[1]
            A = lora_draw(rank, inner, inner, self._generator)
            gradient = gradients.pop(target.name)
            found[target.name] = (A, compressed(gradient, A, settings["gamma"], scale))
        return found

    def _gradients(self, rows: TrainingRows) -> dict[str, torch.Tensor]:
        """The mean gradient [out, in] of every target's weight, over all workers; float32 at least.

        The micro-batches are divided among the workers.
        """
        workers, training = rows.workers, self._model.training
        batches = rows.batches()[: self._settings["batches"]]
        weights = {name: weight_of(self._model, each) for name, each in self._targets.items()}
        half = any(weight.dtype == torch.float16 for weight in weights.values())
        loss_scale = FLOAT16_LOSS_SCALE if half else 1.0
        sums = {
            name: torch.zeros_like(weight, dtype=accumulated_in(weight.dtype), requires_grad=False)
            for name, weight in weights.items()
        }
        self._model.eval()
        try:
            with Hooks() as hooks:
                for name, weight in weights.items():
                    hooks.on_gradient(weight, _adding(sums[name]))
                for batch in workers.share(batches):
                    loss = rows.loss(self._model, batch) * loss_scale
                    # Of the weights alone: the head, which trains, is to have no gradient yet.
                    loss.backward(inputs=list(weights.values()))
        finally:
            self._model.train(training)
        for name, total in sums.items():
            workers.sum_(total).div_(len(batches) * loss_scale)
            if isinstance(self._model.get_submodule(name), Conv1D):  # stored [in, out]
                sums[name] = total.T
        return sums


def _adding(total: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def add(weight: torch.Tensor) -> None:
        assert weight.grad is not None
        total.add_(weight.grad)
        weight.grad = None

    return add


def compressed(gradient: torch.Tensor, A: torch.Tensor, gamma: float, scale: float) -> torch.Tensor:
    """B [out, r] with which scale * B A is the gradient G [out, in] pressed into A [r, in].

    B = -gamma sqrt(in / r) / scale * G A^T (A A^T)^-1, float64 on the CPU; the products with G are
    in G's own dtype.
    """
    rank, inner = A.shape
    projected = (gradient @ A.T.to(gradient)).double().cpu()
    A = A.double()
    B: torch.Tensor = projected @ torch.linalg.pinv(A @ A.T)
    return B * (-gamma * sqrt(inner / rank) / scale)
