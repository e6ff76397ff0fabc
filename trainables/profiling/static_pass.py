"""The profile's second part: weights and inputs at the untouched base, over fixed micro-batches.

Mean abs(g) of every weight (TASO section 4.1), counted as rows and columns of its masks, and the
diagonal of H = 2 E[x x^T] (Sensitivity-LoRA section 4.6). Where the accumulators of all modules
would pass `profile.memory_limit`, or a GPU's memory, the same micro-batches go through the base
once for every group of modules that fits; each sum is made of the same numbers in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from spaces.errors import JobError
from spaces.target import TargetModule
from trainables.bases.quantization import is_packed
from trainables.bases.whole_weights import whole_weights
from trainables.engine.divided import evened, is_divided
from trainables.engine.memory import HighestHeld, give_back, in_words, limit_of
from trainables.engine.workers import CancelledError, Workers
from trainables.layers.hooks import FLOAT16_LOSS_SCALE, Hooks, accumulated_in, weight_of
from trainables.profiling.accumulators import Accumulators, Readings
from trainables.profiling.checkpoints import (
    JobCheckpoints,
    Saved,
    Tensors,
    rng_state,
    set_rng_state,
)
from trainables.profiling.mask_counts import (
    COUNTING_BYTES,
    Fields,
    counts_on_device,
    mask_sizes,
    weight_counts,
)
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.split import epoch_order, outputs_of, to_device
from trainables.tasks.task import Task


class Progress(Protocol):
    """Hears how a profile goes: `done` of the `total` steps of a phase, and a step's rate."""

    def __call__(
        self, phase: str, done: int, total: int, learning_rate: float | None = None, /
    ) -> None: ...


class StaticPass:
    """The pass over a task's first `calibration_batches` micro-batches in a seeded order.

    `trained` gives what a checkpoint must hold of the phase before. All workers call `run`.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[TargetModule],
        task: Task,
        settings: ProfileSettings,
        *,
        workers: Workers,
        checkpoints: JobCheckpoints,
        trained: Callable[[], Tensors],
        progress: Progress,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._should_stop = should_stop
        self._model, self._settings, self._workers = model, settings, workers
        self._targets = {target.name: target for target in targets}
        self._split, self._kind = task.splits["train"], task.its_kind
        self._batches = micro_batches(len(self._split), settings)
        self._checkpoints, self._trained, self._progress = checkpoints, trained, progress
        self._dtype = next(model.parameters()).dtype
        packed = any(is_packed(weight_of(model, target)) for target in targets)
        self._made_whole = packed or is_divided(model)
        self._loss_scale = FLOAT16_LOSS_SCALE if self._dtype == torch.float16 else 1.0
        self._finished: list[dict[str, Fields]] = []
        self._limit: int | None = None
        self._first_rng = self._rng() if settings.base_dropout else {}

    def run(self, saved: Saved | None = None) -> dict[str, Fields]:
        """Mask counts and hessian_diag of every module; from a checkpoint on where there is one.

        Raises JobError where a gradient is not finite or the memory holds no module, and
        CancelledError when `should_stop` says so.
        """
        group, resumed = self._resume(saved), saved
        if saved is None:
            self._save(0, ())
        try:
            self._model.train(self._settings.base_dropout)
            groups = self._groups(group)
            for number, targets in enumerate(groups):
                goes_on = resumed if number == 0 and targets == group else None
                with self._whole_weights(targets):
                    self._finished.append(self._pass(targets, goes_on, number, len(groups)))
                if number + 1 < len(groups):
                    self._save(0, ())
        finally:
            self._model.eval()
        return {name: fields for group in self._finished for name, fields in group.items()}

    def _pass(
        self, targets: Sequence[TargetModule], saved: Saved | None, number: int, groups: int
    ) -> dict[str, Fields]:
        """One pass over the micro-batches for one group of modules, the `number`-th of `groups`."""
        n, size = len(self._batches), self._workers.size
        with Accumulators(self._model, targets) as sums:
            self._start(sums, targets, saved)
            for first in range(saved.step if saved is not None else 0, n, size):
                own = first + self._workers.rank
                if own < n:
                    self._loss(self._batches[own], sums.readings).backward()
                elif is_divided(self._model):  # its passes are taken together
                    with sums.readings.uncounted():
                        (0.0 * self._loss(self._batches[first], sums.readings)).backward()
                done = min(first + size, n)
                self._progress("static pass", number * n + done, groups * n)
                if self._should_stop is not None and self._workers.agree(self._should_stop()):
                    raise CancelledError
                if done < n and self._checkpoints.due(first, done):
                    self._save(done, targets, sums)
        if self._limit is not None:
            give_back(self._workers.device)
        return self._statistics(targets, sums)

    def _whole_weights(self, targets: Sequence[TargetModule]) -> AbstractContextManager[None]:
        return whole_weights(self._model, [target.names[0] for target in targets])

    def _start(
        self, sums: Accumulators, targets: Sequence[TargetModule], saved: Saved | None
    ) -> None:
        """Set the sums and, with dropout, the random numbers to where a pass begins or goes on."""
        rng = self._first_rng
        if saved is not None:
            for target in targets:
                for part in self._checkpoints.parts_of_others(saved, target.name):
                    sums.add(target.name, part)
            if saved_rng := self._saved_rng(saved):
                rng = _below("now", saved_rng)
        if rng:
            set_rng_state(rng, self._workers.device)

    def _loss(self, rows: NDArray[np.int64], readings: Readings) -> torch.Tensor:
        on_cpu = self._workers.device.type == "cpu"
        loss = torch.zeros((), device=self._workers.device)
        passes = list(self._split.passes(rows, on_cpu))
        for number, given in enumerate(evened(self._model, passes)):
            batch = to_device(given, self._workers)
            labels = batch.pop("labels")
            if number >= len(passes):  # in the graph, for its backward is taken together
                with readings.uncounted():
                    loss = loss + outputs_of(self._model, batch)[:0].sum()
                continue
            readings.begin(given, batch)
            loss = loss + self._kind.summed_loss(outputs_of(self._model, batch), labels)
        return loss / int(self._split.targets[rows].sum()) * self._loss_scale

    def _statistics(self, targets: Sequence[TargetModule], sums: Accumulators) -> dict[str, Fields]:
        """The statistics of a group of modules, over all workers; its accumulators are given up.

        Each module is counted by one worker; all return the same.
        """
        workers, own = self._workers, dict[str, Fields | None]()
        for first in range(0, len(targets), workers.size):
            mine: tuple[str, torch.Tensor, NDArray[np.float32]] | None = None
            # First what goes between workers, for one module each; then all of them count.
            for owner, target in enumerate(targets[first : first + workers.size]):
                gradient = workers.reduce_to(owner, sums.abs_gradient.pop(target.name))
                hessian_diag = sums.inputs.pop(target.name).hessian_diag(workers, owner)
                if hessian_diag is not None:
                    mine = target.name, gradient, hessian_diag
                del gradient
            if mine is not None:
                own[mine[0]] = self._fields(*mine)
        found = {name: each for part in workers.gather_objects(own) for name, each in part.items()}
        return {target.name: _finite(target.name, found[target.name]) for target in targets}

    def _fields(
        self, name: str, gradient: torch.Tensor, hessian_diag: NDArray[np.float32]
    ) -> Fields | None:
        """A module's statistics, of its sums over all workers; None where one is not finite."""
        gradient /= len(self._batches) * self._loss_scale
        if not torch.isfinite(gradient.max()):
            return None
        weight = weight_of(self._model, self._targets[name]).detach()
        transposed = isinstance(self._model.get_submodule(name), Conv1D)  # stored [in, out]
        counts = weight_counts(weight, gradient, self._settings.top_percent, transposed)
        return {**counts, "hessian_diag": hessian_diag}

    # Checkpoints --------------------------------------------------------------------------------

    def _save(
        self, done: int, targets: Sequence[TargetModule], sums: Accumulators | None = None
    ) -> None:
        if not self._checkpoints.active:
            return
        lasting: dict[str, Callable[[], Tensors]] = {}
        if self._workers.rank == 0:
            lasting["trained"] = self._trained
            for i, group in enumerate(self._finished):
                lasting[f"finished{i}"] = partial(_flat, group)
        facts = {
            "group": [target.name for target in targets],
            "finished": [list(group) for group in self._finished],
        }
        self._checkpoints.save("static pass", done, facts, self._own_parts(targets, sums), lasting)

    def _own_parts(
        self, targets: Sequence[TargetModule], sums: Accumulators | None
    ) -> Iterator[tuple[str, Tensors]]:
        """This worker's own parts, one a module, none made before it is asked for."""
        place = f"rank{self._workers.rank}"
        if self._first_rng:
            yield f"{place}/rng", _flat({"now": self._rng(), "first": self._first_rng})
        if sums is not None:
            for target in targets:
                yield f"{place}/{target.name}", sums.tensors(target.name)

    def _resume(self, saved: Saved | None) -> tuple[TargetModule, ...]:
        """Take up what a checkpoint holds; returns the group that it stopped in."""
        if saved is None:
            return ()
        for i, names in enumerate(saved.facts["finished"]):
            part = self._checkpoints.part(f"finished{i}") or {}
            self._finished.append(
                {
                    name: {field: tensor.numpy() for field, tensor in _below(name, part).items()}
                    for name in names
                }
            )
        if self._first_rng and (rng := self._saved_rng(saved)):
            self._first_rng = _below("first", rng)
        return tuple(self._targets[name] for name in saved.facts["group"])

    def _saved_rng(self, saved: Saved) -> dict[str, torch.Tensor] | None:
        """This worker's saved generators; None where the group had another size."""
        if saved.workers != self._workers.size:
            return None
        return self._checkpoints.part(f"rank{self._workers.rank}/rng")

    def _rng(self) -> dict[str, torch.Tensor]:
        return rng_state(self._workers.device)

    # The limit ----------------------------------------------------------------------------------

    def _groups(self, first: tuple[TargetModule, ...]) -> list[tuple[TargetModule, ...]]:
        """The modules that are left, in groups that are done one after another.

        `first`, the group that a checkpoint was made in, goes first as it was where it still fits.
        """
        finished = {name for group in self._finished for name in group}
        left = tuple(target for name, target in self._targets.items() if name not in finished)
        self._limit = limit_of(self._workers.device, self._settings.memory_limit)
        if self._limit is None:
            groups = [first, tuple(target for target in left if target not in first)]
            return [group for group in groups if group]
        room = self._room(left, self._limit)
        sizes = {target.name: self._accumulator_bytes(target) for target in left}
        if sum(sizes[target.name] for target in first) > room:
            first = ()
        groups, free = [first], 0
        for target in left:
            if target in first:
                continue
            if sizes[target.name] > free:
                groups.append(())
                free = room
            groups[-1] += (target,)
            free -= sizes[target.name]
        return [group for group in groups if group]

    def _room(self, targets: Sequence[TargetModule], limit: int) -> int:
        """Bytes that a group's accumulators may take on every worker.

        The limit less what the process holds beside them at most: while it goes through its
        heaviest micro-batch, or while it counts the masks of its largest matrix. Raises JobError
        where not even the largest module's accumulator fits.
        """
        largest = max(targets, key=self._accumulator_bytes)
        size = self._accumulator_bytes(largest)
        give_back(self._workers.device)
        beside = max(self._counting(largest), self._heaviest_step(targets))
        give_back(self._workers.device)
        answers: list[tuple[int, int]] = self._workers.gather_objects((limit, beside))
        limit, beside = min(answers, key=lambda answer: answer[0] - answer[1])
        if size > limit - beside:
            what = (
                f"{in_words(limit)} does not hold the accumulator of {largest.name} "
                f"({in_words(size)}) beside the {in_words(beside)} that base, batch and counting "
                "take"
            )
            less = "lower profile.batch_size or turn on train.activation_checkpointing"
            if self._settings.memory_limit is None:
                raise JobError(f"profile: the GPU's {what}; {less}, or use a GPU with more")
            raise JobError(
                f"profile.memory_limit: {what}; set {in_words(beside + size)} or more, or {less}"
            )
        return limit - beside

    def _counting(self, largest: TargetModule) -> int:
        """Bytes held at most, beside a module's accumulator, while its masks are counted."""
        device = self._workers.device
        held = HighestHeld(device)
        if device.type == "cpu":
            return held.bytes + self._accumulator_bytes(largest) + COUNTING_BYTES
        dtype = accumulated_in(self._dtype)
        score = torch.zeros(largest.shape, dtype=dtype, device=device)
        counts_on_device(score, mask_sizes(score.numel(), self._settings.top_percent))
        return held.bytes - score.nbytes

    def _heaviest_step(self, targets: Sequence[TargetModule]) -> int:
        """Bytes held at most while the micro-batch of most tokens goes through, nothing summed."""
        lengths, readings = self._split.lengths, Readings()
        heaviest = max(self._batches, key=lambda rows: len(rows) * int(lengths[rows].max()))
        held = HighestHeld(self._workers.device)

        def read(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            readings.of(inputs[0])

        def free(weight: torch.Tensor) -> None:
            held.look()
            weight.grad = None

        if self._made_whole:  # a group has no room yet
            targets = [max(targets, key=self._accumulator_bytes)]
        with self._whole_weights(targets), Hooks() as hooks:
            for target in targets:
                hooks.on_gradient(weight_of(self._model, target), free)
                for alias in target.names:
                    hooks.on_input(self._model.get_submodule(alias), read)
            loss = self._loss(heaviest, readings)
            held.look()
            loss.backward()
        return held.bytes

    def _accumulator_bytes(self, target: TargetModule) -> int:
        """Of a module's accumulator, and of its weight where the base does not hold it whole."""
        weight = self._dtype.itemsize if self._made_whole else 0
        return math.prod(target.shape) * (accumulated_in(self._dtype).itemsize + weight)


def micro_batches(rows: int, settings: ProfileSettings) -> list[NDArray[np.int64]]:
    """The rows of the calibration batches, in a seeded order."""
    order = epoch_order(rows, settings.seed, 0)
    size = settings.batch_size
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    wanted = settings.calibration_batches
    return batches if wanted == "all" else batches[:wanted]


def _flat(nested: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Arrays or tensors under `<place>/<name>`: what `_below` takes apart again."""
    return {
        f"{place}/{name}": torch.as_tensor(values)
        for place, inner in nested.items()
        for name, values in inner.items()
    }


def _below(place: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    """The tensors whose names start with `place/`, named without it."""
    start = f"{place}/"
    return {n.removeprefix(start): tensor for n, tensor in tensors.items() if n.startswith(start)}


def _finite(name: str, fields: Fields | None) -> Fields:
    if fields is None:
        raise not_finite(name, "the mean gradient")
    return fields


def not_finite(name: str, what: str) -> JobError:
    """The error of a statistic that is NaN or infinite."""
    return JobError(
        f"profile of {name}: {what} is not finite; use profile.precision: fp32 or a lower "
        "profile.learning_rate"
    )
