"""A frozen base divided among the workers of a group: ZeRO stage 3 (Rajbhandari et al., 2020).

DeepSpeed keeps a part of every parameter on each worker, in GPU or main memory, and gathers a
module's parameters while it computes, forward and backward. That is done once, when a group loads
its base: a trial's own engine knows its adapters alone, and has stage 0.

A pass through a divided base is a collective, so all workers must take as many. Where they differ
in how many rows they have, those with fewer take passes whose result nobody reads (`together`,
`evened`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import nn

from trainables.engine.workers import CancelledError, Workers

_HELD = -1  # no module of DeepSpeed's has this number

Batch = TypeVar("Batch", bound=Mapping[str, Any])


class _Divided:
    """What is known of a divided base: its workers, DeepSpeed's hooks, and how to idle."""

    def __init__(self, offload: Any, workers: Workers, idle: Callable[[], object]) -> None:
        self.offload, self.workers, self._idle = offload, workers, idle
        self._tells = self._inside = False

    def before(self, _model: nn.Module, _inputs: Any) -> None:
        """Before a pass: tell the others, and release what the last backward has left."""
        self._inside = True
        self.offload.release_backward_leftovers()
        if self._tells:
            self._others_too(1)

    def after(self, _model: nn.Module, _inputs: Any, _outputs: Any) -> None:
        """After a pass."""
        self._inside = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """See `together`."""
        self._tells, self._inside = True, False
        try:
            yield
        except CancelledError:
            self._wait()
            raise
        except Exception:
            if not self._inside:  # else the others wait for this very pass
                self._wait()
            raise
        else:
            self._wait()
        finally:
            self._tells = False

    def _wait(self) -> None:
        self._tells = False
        while self._others_too(0):
            with torch.no_grad():
                self._idle()

    def _others_too(self, own: int) -> bool:
        """Whether any worker takes a pass; one that does need not wait for the answer."""
        passes = self.workers.sum_(torch.tensor([own], device=self.workers.device))
        return bool(own or passes.item())


_divided: WeakKeyDictionary[nn.Module, _Divided] = WeakKeyDictionary()


def divide(
    model: nn.Module,
    whole: Sequence[str],
    deepspeed: Mapping[str, Any],
    workers: Workers,
    idle: Callable[[], object],
) -> None:
    """Divide the parameters of a frozen base, on the CPU, among the workers of a group.

    Those of the modules named `whole`, and all buffers, each worker has for itself. `deepspeed` is
    the sweep's section; `idle` takes a pass through the base that nobody reads.
    """
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload

    config = {**deepspeed, "train_micro_batch_size_per_gpu": 1}
    zero = DeepSpeedConfig(config).zero_config
    aside = {name: model.get_submodule(name).to(workers.device) for name in whole}
    for name in aside:
        model.set_submodule(name, nn.Identity())
    offload = DeepSpeedZeRoOffload(
        module=model,
        timers=None,
        ds_config=config,
        overlap_comm=bool(zero.overlap_comm),
        prefetch_bucket_size=zero.prefetch_bucket_size,
        max_reuse_distance=zero.max_reuse_distance,
        max_live_parameters=zero.max_live_parameters,
        param_persistence_threshold=zero.param_persistence_threshold,
        model_persistence_threshold=zero.model_persistence_threshold,
        offload_param_config=zero.offload_param,
    )
    for name, module in aside.items():
        model.set_submodule(name, module)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(workers.device)
    known = _divided[model] = _Divided(offload, workers, idle)
    # Before DeepSpeed's own, which may compare workers as a pass begins.
    model.register_forward_pre_hook(known.before, prepend=True)
    model.register_forward_hook(known.after)


def is_divided(model: nn.Module) -> bool:
    """Whether a base is divided among workers."""
    return model in _divided


@contextmanager
def together(model: nn.Module) -> Iterator[None]:
    """While open, each worker takes as many passes through a base as it needs, without gradients.

    All workers open it, and each leaves it when all others are through. A base that is not divided
    asks for nothing.
    """
    divided = _divided.get(model)
    if divided is None:
        yield
    else:
        with divided.together():
            yield


def evened(model: nn.Module, batches: Sequence[Batch]) -> list[Batch]:
    """The batches, and the first of them again until there are as many as on any other worker.

    A collective where the base is divided.
    """
    divided = _divided.get(model)
    if divided is None:
        return list(batches)
    most = torch.tensor([len(batches)], device=divided.workers.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return [*batches, *[batches[0]] * (int(most) - len(batches))]


@contextmanager
def gathered(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """While open, these parameters are whole on every worker, also after a pass has used them.

    A collective for those of a divided base; others are left alone.
    """
    divided: list[Any] = [each for each in parameters if hasattr(each, "ds_id")]
    if not divided:
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    with GatheredParameters(divided):
        for each in divided:
            each.ds_active_sub_modules.add(_HELD)
        try:
            yield
        finally:
            for each in divided:
                # Not that alone: a module whose input has no gradient is never told its end.
                each.ds_active_sub_modules.clear()
