"""EVA (Paischer et al., 2024): LoRA along the directions in which a module's inputs vary most.

An incremental principal component analysis of the inputs x of every module, over batches of
training rows, gives right-singular vectors and the share of the variance that each explains. The
rank * modules vectors of the largest shares, of all modules together but at most rho * rank of one,
are the rows of A; B = 0. The analysis goes on until the vectors turn by less than `tau` tells from
one batch to the next. It is PEFT's own (peft.get_eva_state_dict), on the base as it stands; layers
that read the same share one analysis.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import peft
import torch
from torch import nn

from spaces.errors import JobError
from trainables.adaptations.adaptation import Factors
from trainables.adaptations.baselines.allocated import AllocatedAdaptation
from trainables.adaptations.training_rows import TrainingRows
from trainables.tasks.split import Pass, outputs_of

MOST_BATCHES = 16
"""After so many the vectors are taken as they are."""


class EvaAdaptation(AllocatedAdaptation):
    """EVA on every target module that gets ranks."""

    def _found(self, rows: TrainingRows) -> Mapping[str, Factors]:
        reading = _Reading(rows, self._settings["max_rank"], self._settings["tau"])
        training = self._model.training
        with warnings.catch_warnings(), torch.no_grad():
            # Every worker goes through the same batches: nothing is to be gathered.
            warnings.filterwarnings("ignore", message="torch.distributed is initialized")
            try:
                found = peft.get_eva_state_dict(
                    self._model,
                    reading.batches(),
                    self._config(reading.tau),
                    forward_fn=reading.run,
                    prepare_model_inputs_fn=reading.begin,
                    prepare_layer_inputs_fn=reading.vectors,
                    gather_distributed_inputs=False,
                    show_progress_bar=False,
                )
            finally:
                self._leave_no_hooks()
                self._model.train(training)
        vectors = {name: tensor.cpu() for name, tensor in found.items() if len(tensor)}
        vectors = rows.workers.broadcast_object(vectors)
        return {
            name: (A, torch.zeros(self._targets[name].shape[0], len(A)))
            for name, A in vectors.items()
        }

    def _config(self, tau: torch.Tensor) -> peft.LoraConfig:
        rank, whiten = self._settings["rank"], self._settings["whiten"]
        rho = self._settings["max_rank"] / rank
        return peft.LoraConfig(
            r=rank,
            # An expression: PEFT takes a name also for the end of a longer one.
            target_modules="|".join(map(re.escape, self._targets)),
            init_lora_weights="eva",
            eva_config=peft.EvaConfig(rho=rho, tau=tau, whiten=whiten),  # type: ignore[arg-type]
        )

    def _leave_no_hooks(self) -> None:
        """An error in the middle leaves PEFT's hooks on the layers."""
        for name in self._targets:
            hooks: dict[int, Any] = self._model.get_submodule(name)._forward_hooks
            for key, hook in list(hooks.items()):
                if type(hook).__module__ == peft.get_eva_state_dict.__module__:
                    del hooks[key]


class _Reading:
    """The batches of training rows as PEFT's analysis goes through them, again and again."""

    def __init__(self, rows: TrainingRows, max_rank: int, tau: float) -> None:
        self._rows, self._max_rank = rows, max_rank
        self.tau = torch.tensor(tau)
        self._batch: Pass = {}
        self._done = 0

    def batches(self) -> list[torch.Tensor]:
        """The indices of the rows of every batch; a tensor, which PEFT moves to the device."""
        found = self._rows.batches(least=2 * self._max_rank)
        return [torch.as_tensor(batch) for batch in found]

    def begin(self, batch: torch.Tensor, _config: Any) -> torch.Tensor | None:
        """Make the inputs of a batch; returns which of its positions are tokens, None for all."""
        self._batch = self._rows.inputs(batch.cpu().numpy())
        mask: torch.Tensor | None = self._batch.get("is_token", self._batch.get("attention_mask"))
        return mask

    def vectors(
        self, inputs: tuple[torch.Tensor, ...], mask: torch.Tensor | None, layer: str
    ) -> torch.Tensor:
        """What a layer reads [vectors, in], without padding. Raises JobError for too little."""
        (x, *_) = inputs
        flat = x.reshape(-1, x.shape[-1])
        if mask is not None and x.shape[:-1] in (mask.shape, (mask.numel(),)):
            flat = flat[mask.reshape(-1).bool()]
        if len(flat) < 2 * self._max_rank:
            raise JobError(
                f"method: eva finds {len(flat)} inputs of {layer} in a batch and needs "
                f"{2 * self._max_rank}; lower rank or rho, or train on more rows"
            )
        return flat

    def run(self, model: nn.Module, _batch: torch.Tensor) -> None:
        """Let a batch go through the base, and settle for what there is after the last."""
        outputs_of(model, self._batch)
        self._done += 1
        if self._done >= MOST_BATCHES:
            self.tau.fill_(-1.0)  # every cosine is above it
