"""What rows that go through a base come to hold beside its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spaces.errors import one_line
from spaces.target import TargetModule
from trainables.adaptations.blocks import BlockAdaptation, plain_lora
from trainables.bases.parts import UNBUILDABLE
from trainables.engine.masters import at_least_float
from trainables.footprint.counted import Held, as_on_a_gpu, faked, shallow
from trainables.layers.dropout import quick_dropout
from trainables.layers.recomputed import recomputed, repeatable_layers
from trainables.tasks.split import Pass, outputs_of

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_UNCOUNTABLE = (*UNBUILDABLE, NotImplementedError, IndexError)


class UncountableError(Exception):
    """A base does what cannot be followed without values, in one line."""


class Counting:
    """Counts for a base without weights, which it takes from the meta device for itself.

    `loss` is summed over targets; `on_gpu` says whether kernels keep what they keep on a GPU.
    `repeatable` says whether its layers can be computed again.
    """

    def __init__(
        self,
        model: Any,
        head_modules: Sequence[str],
        targets: Sequence[TargetModule],
        loss: Loss,
        dtype: torch.dtype,
        *,
        on_gpu: bool,
    ) -> None:
        self.model, self.head_modules, self.targets = model, head_modules, targets
        self.loss, self.dtype, self.on_gpu = loss, dtype, on_gpu
        self.base_bytes = base_bytes(model, dtype)
        self.largest_layer = max((base_bytes(each, dtype) for each in _layers(model)), default=0)
        self.head_parameters = sum(
            each.numel() for name in head_modules for each in model.get_submodule(name).parameters()
        )
        self.repeatable = bool(repeatable_layers(model))
        text = model.config.get_text_config()
        if getattr(text, "pad_token_id", None) is None:
            text.pad_token_id = 0  # classifiers ask for one, whichever it is
        self._fake = faked(model, dtype)

    def training(
        self,
        passes: Sequence[Pass],
        *,
        rank: int,
        dropout: float,
        base_dropout: bool,
        recompute: bool,
    ) -> int:
        """Bytes that forward and backward of one micro-batch come to, through adapters of `rank`,
        beside the weights and the gradients of what trains."""

        def measure() -> tuple[int, ...]:
            targets = [each for each in self.targets if _has(self.model, each)]
            plan = plain_lora(targets, rank, rank)
            # A GPU draws the adapters' masks again.
            adapters = BlockAdaptation(
                self.model, plan, seed=0, dropout=0.0 if self.on_gpu else dropout,
                head={name: self.model.get_submodule(name) for name in self.head_modules},
            )  # fmt: skip
            with adapters as adaptation:
                parameters = adaptation.begin_stage(0, 1)
                parameters.requires_grad_(True).train()
                self.model.train(base_dropout)
                found = self._run(passes, parameters, list(parameters.parameters()), recompute)
            self.model.requires_grad_(False)
            return found

        return self._most(measure)

    def static_pass(self, passes: Sequence[Pass], *, base_dropout: bool, recompute: bool) -> int:
        """Bytes that a micro-batch of the static pass comes to, with one weight's gradient."""

        def measure() -> tuple[int, ...]:
            weights = [
                self.model.get_parameter(f"{each.names[0]}.weight").requires_grad_(True)
                for each in self.targets
                if _has(self.model, each)
            ]
            self.model.train(base_dropout)
            found = self._run(
                passes,
                lambda *batches: torch.cat([outputs_of(self.model, each) for each in batches]),
                weights,
                recompute,
            )
            self.model.requires_grad_(False)
            return found

        return self._most(measure)

    def measuring(self, batch: Pass) -> int:
        """Bytes that a pass comes to whose rows are only measured."""

        def measure() -> tuple[int, ...]:
            self.model.eval()
            with torch.no_grad(), Held(_tensors(self.model)) as held:
                given = self._inputs(batch)
                labels = given.pop("labels", None)
                outputs = at_least_float(outputs_of(self.model, given))
                if labels is not None and not labels.is_floating_point():
                    cross_entropy(outputs, labels, reduction="none")
            return (held.most,)

        return self._most(measure)

    def _run(
        self,
        passes: Sequence[Pass],
        forward: Callable[..., torch.Tensor],
        trained: Sequence[nn.Parameter],
        recompute: bool,
    ) -> tuple[int, int]:
        """The most that is held up to the loss, and after it; gradients are taken at once."""
        handles = [each.register_post_accumulate_grad_hook(_taken) for each in trained]
        known = [*_tensors(self.model), *trained]
        dropping = nullcontext() if self.on_gpu else quick_dropout(self.model)
        with dropping, recomputed(self.model, recompute), Held(known) as held:
            batches = [self._inputs(each) for each in passes]
            labels = torch.cat([batch.pop("labels") for batch in batches])
            loss = self.loss(forward(*batches), labels)
            before = held.forget_most()
            loss.backward()
        for handle in handles:
            handle.remove()
        return before, held.most

    def _inputs(self, batch: Pass) -> Pass:
        """The tensors of a pass without their values, pixels in the base's precision."""
        return {
            key: torch.empty_like(value, dtype=self.dtype if key == "pixel_values" else None)
            if isinstance(value, torch.Tensor)
            else value
            for key, value in batch.items()
        }

    def _most(self, measure: Callable[[], tuple[int, ...]]) -> int:
        with ExitStack() as stack:
            stack.enter_context(self._fake)
            self.model.requires_grad_(False)
            if self.on_gpu:
                stack.enter_context(as_on_a_gpu())
            try:
                return max(shallow(self.model, measure))
            except _UNCOUNTABLE as error:
                raise UncountableError(one_line(error)) from error


def base_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a model's parameters in `dtype`, and of its buffers."""
    parameters = sum(each.numel() for each in model.parameters()) * dtype.itemsize
    return parameters + sum(each.numel() * each.itemsize for each in model.buffers())


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """What a model has many of."""
    for each in model.modules():
        if isinstance(each, nn.ModuleList):
            yield from each


def _taken(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _has(model: nn.Module, target: TargetModule) -> bool:
    """Whether a model has a target's layers, as one of few layers may not."""
    try:
        for name in target.names:
            model.get_submodule(name)
    except (AttributeError, IndexError, KeyError):
        return False
    return True
