"""Baselines that train parameters of the base itself: full fine-tuning, and BitFit.

BitFit (Ben Zaken et al., 2022) trains the biases alone. Both work on clones: the base's modules
hold them while the adaptation is attached, and get their own Parameters back when it is taken away.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trainables.adaptations.baselines.tuner import TunerAdaptation


class BaseParameterAdaptation(TunerAdaptation):
    """Clones of some parameters of the base, the task's head apart, in their own dtype.

    A parameter of several modules is one clone, under its first name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clones: dict[int, nn.Parameter] = {}
        self._replaced: list[tuple[nn.Module, str, nn.Parameter]] = []

    @abstractmethod
    def _trains(self, name: str) -> bool:
        """Whether the parameter of that name trains."""

    def _build(self, fresh: bool) -> None:
        self.trained, self._clones = {}, {}
        for name, _, _, parameter in self._places():
            if id(parameter) not in self._clones and self._trains(name):
                clone = parameter.detach().clone(memory_format=torch.contiguous_format)
                self.trained[name] = nn.Parameter(clone)
                self._clones[id(parameter)] = self.trained[name]

    def _put_in_place(self) -> None:
        for _, module, attribute, parameter in list(self._places()):
            if id(parameter) in self._clones:
                self._replaced.append((module, attribute, parameter))
                setattr(module, attribute, self._clones[id(parameter)])

    def _places(self) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
        """Full name, module, attribute, Parameter: all places in the base but those of its head."""
        for place, module in self._model.named_modules():
            if any(place == head or place.startswith(f"{head}.") for head in self._head):
                continue
            for attribute, parameter in module.named_parameters(
                recurse=False, remove_duplicate=False
            ):
                name = f"{place}.{attribute}" if place else attribute
                yield name, module, attribute, parameter

    def detach(self) -> None:
        for module, attribute, parameter in self._replaced:
            setattr(module, attribute, parameter)
        self._replaced = []

    def merged(self) -> dict[str, torch.Tensor]:
        return {name.removeprefix("tuner/"): value for name, value in self._finished.items()}


class FullAdaptation(BaseParameterAdaptation):
    """Full fine-tuning: every parameter trains."""

    def _trains(self, name: str) -> bool:
        return True


class BitfitAdaptation(BaseParameterAdaptation):
    """BitFit: every bias trains."""

    def _trains(self, name: str) -> bool:
        return name.endswith("bias")
