"""Bottleneck adapters: a small network behind the modules that write to the residual stream.

With y the output of such a module (Houlsby et al., 2019, section 2.1, as a skip connection):

    y + U f(D y + d) + u,    D [size, out], U [out, size], f the activation

D is drawn as LoRA's A, U = 0 and the biases d = u = 0 (He et al., 2022): an adapter starts as the
identity.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.nn.functional import gelu, linear, relu

from spaces.errors import UsageError
from spaces.target import TargetModule
from trainables.adaptations.adaptation import Factors, lora_draw
from trainables.adaptations.baselines.tuner import HookedAdaptation, ModuleTuner

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"gelu": gelu, "relu": relu}


class BottleneckTuner(ModuleTuner):
    """Down to `size`, through the activation, and up again."""

    def __init__(self, down: torch.Tensor, activation: str, dropout: float) -> None:
        super().__init__(dropout)
        size, out = down.shape
        self.activation = ACTIVATIONS[activation]
        self.down = nn.Parameter(down)
        self.down_bias = nn.Parameter(down.new_zeros(size))
        self.up = nn.Parameter(down.new_zeros(out, size))
        self.up_bias = nn.Parameter(down.new_zeros(out))

    def delta(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        inner = linear(self.dropped(y).to(self.down.dtype), self.down, self.down_bias)
        return linear(self.activation(inner), self.up, self.up_bias)


class BottleneckAdaptation(HookedAdaptation[BottleneckTuner]):
    """An adapter behind every module that the plan names."""

    def _adapted(self) -> Iterable[TargetModule]:
        return [self._targets[name] for name in json.loads(self._settings["modules"])]

    def _tuned(self, target: TargetModule, fresh: bool) -> BottleneckTuner:
        out, size = target.shape[0], self._settings["size"]
        down = lora_draw(size, out, out, self._generator)
        placed = down.to(dtype=self._dtype, device=self._device)
        return BottleneckTuner(placed, self._settings["activation"], self._dropout)

    def factors(self) -> dict[str, Factors]:
        raise UsageError(
            "method: bottleneck puts a non-linear network behind its modules, which is neither a "
            "low-rank update nor part of any weight; use --to plan, or export another method"
        )
