"""What the adaptations of all baselines have in common.

A baseline's plan holds a tuner (spaces/plan.py) in place of blocks: one stage, in which the
method's own parameters train. They are kept by name, together with what else it takes to rebuild
the trained function, so that loading them needs neither the seed nor a decomposition again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.hooks import RemovableHandle

from spaces.errors import JobError, UsageError
from spaces.target import TargetModule
from trainables.adaptations.adaptation import (
    Adaptation,
    Factors,
    StageParameters,
    named_tensor,
    stage_seed,
)
from trainables.bases.whole_weights import weight_of_layer
from trainables.layers.stand_in import hook_layers


class TunerAdaptation(Adaptation):
    """One stage of a method's own parameters.

    A subclass makes them (`_build`) and puts them in place (`_put_in_place`). It says by name what
    trains (`trained`) and what else the function is made of (`_constants`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._plan.tuner is None:
            raise UsageError("plan: holds blocks where a tuner is expected; use BlockAdaptation")
        self._tuner = self._plan.tuner
        self._settings: Mapping[str, Any] = self._tuner.settings
        self._steps = 0
        self._engine: Any = None
        self.trained: dict[str, nn.Parameter] = {}
        self._constants: dict[str, torch.Tensor] = {}
        self._finished: dict[str, torch.Tensor] = {}

    @abstractmethod
    def _build(self, fresh: bool) -> None:
        """Make the method's parts for the base and fill `trained` and `_constants`.

        `fresh` asks for the values of a new trial; otherwise they are about to be overwritten.
        """

    @abstractmethod
    def _put_in_place(self) -> None:
        """Attach the parts, which have their values, to the base."""

    def _registered(self) -> Sequence[nn.Module]:
        """Modules that hold what trains, and nothing else; their mode decides on dropout."""
        return [nn.ParameterList(self.trained.values())]

    def begin_stage(self, index: int, steps: int) -> StageParameters:
        self._steps = steps
        self.detach()
        self._build(fresh=True)
        trains = sum(parameter.numel() for parameter in self.trained.values())
        most, least = self._tuner.params, self._tuner.least_params
        if not (most if least is None else least) <= trains <= most:
            counted = f"{most}" if least is None else f"{least} to {most}"
            raise JobError(
                f"method: {self._tuner.name} trains {trains} parameters on this base where the "
                f"plan counts {counted}; make the plan from this base's target modules"
            )
        take_from_first_worker(self._constants.values())
        self._put_in_place()
        scaled = {1.0: list(self.trained.values())}
        return StageParameters(self._model, self._registered(), scaled, self._head)

    def after_backward(self, engine: Any) -> None:
        self._engine = engine

    def end_stage(self) -> None:
        self._engine = None
        for parameter in self.trained.values():
            # Under ZeRO it is a view of the engine's flat buffer, which goes with the engine.
            parameter.data = parameter.detach().clone()
            parameter.grad = None
        self._freeze()

    def _freeze(self) -> None:
        for parameter in self.trained.values():
            parameter.requires_grad_(False)
        self._finished = {
            f"tuner/{name}": tensor.detach()
            for name, tensor in {**self.trained, **self._constants}.items()
        }
        self.eval()

    def weights(self) -> dict[str, torch.Tensor]:
        """`tuner/<module>/<part>`, or `tuner/<part>` for what all modules share."""
        return dict(self._finished)

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.detach()
        self._build(fresh=False)
        with torch.no_grad():
            for name, tensor in {**self.trained, **self._constants}.items():
                tensor.copy_(named_tensor(weights, f"tuner/{name}", tensor.shape))
        self._put_in_place()
        self._freeze()

    def factors(self) -> dict[str, Factors]:
        raise UsageError(
            f"method: {self._tuner.name} trains the base's own parameters, which is no low-rank "
            "update; use --to merged"
        )

    def _weight(self, name: str) -> torch.Tensor:
        """The base's weight of a module, as [out, in]."""
        return weight_of_layer(self._model, name)

    def _named_weight(self, target: TargetModule) -> tuple[str, Callable[[], torch.Tensor]]:
        """A target's name and what gives its weight, [out, in]."""
        return target.name, partial(self._weight, target.name)


def take_from_first_worker(tensors: Iterable[torch.Tensor]) -> None:
    """Give every worker of the group the first one's values, as DeepSpeed does for what trains.

    The same decomposition on another kind of processor may turn a singular vector around.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.view(torch.uint8), src=0)  # bytes: not every backend knows bf16


class ModuleTuner(nn.Module):
    """What a baseline adds to the output of one module.

    Its parameters train. `constants` are tensors that do not, by name: the engine neither sees nor
    casts them.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.constants: dict[str, torch.Tensor] = {}

    def delta(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What is added to the module's output y [..., out] of its input x [..., in]."""
        raise NotImplementedError

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The module's output y with what is added to it."""
        return y + self.delta(x, y).to(y.dtype)

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        """The input of the trainable part: x under the job's dropout while it trains."""
        return nn.functional.dropout(x, self.dropout, training=self.training)


Tuned = TypeVar("Tuned", bound=ModuleTuner)


class HookedAdaptation(TunerAdaptation, Generic[Tuned]):
    """One ModuleTuner per adapted module, as a forward hook on each layer that uses its matrix.

    Nothing of the base is replaced, and taking the hooks away leaves it as it was.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tuners: dict[str, Tuned] = {}
        self._hooks: list[RemovableHandle] = []
        self._generator = torch.Generator()

    @abstractmethod
    def _tuned(self, target: TargetModule, fresh: bool) -> Tuned:
        """The tuner of one module, in the adaptation's dtype and on its device.

        Draws come from `_generator`. Where not `fresh`, any values of the right shape will do.
        """

    def _adapted(self) -> Iterable[TargetModule]:
        """The modules that get one."""
        return self._targets.values()

    def _build(self, fresh: bool) -> None:
        self._generator.manual_seed(stage_seed(self._seed, 0))
        self.tuners, self.trained, self._constants = {}, {}, {}
        for target in self._adapted():
            tuned = self._tuned(target, fresh)
            self.tuners[target.name] = tuned
            for part, parameter in tuned.named_parameters():
                self.trained[f"{target.name}/{part}"] = parameter
            for part, tensor in tuned.constants.items():
                self._constants[f"{target.name}/{part}"] = tensor

    def _put_in_place(self) -> None:
        for name, tuned in self.tuners.items():
            self._hooks += hook_layers(self._model, self._targets[name].names, tuned.add)

    def _registered(self) -> Sequence[nn.Module]:
        return list(self.tuners.values())

    def eval(self) -> None:
        for tuned in self.tuners.values():
            tuned.eval()

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
