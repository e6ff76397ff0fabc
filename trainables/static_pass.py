"""The profile's second part: weights and inputs at the untouched base, over fixed micro-batches.

Mean abs(g) of every weight (TASO section 4.1), counted as rows and columns of its masks, and the
diagonal of H = 2 E[x x^T] (Sensitivity-LoRA section 4.6). Where the accumulators of all modules
would pass `profile.memory_limit`, the same micro-batches go through the base once for every group
of modules that fits; each sum is made of the same numbers in the same order.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from spaces.errors import JobError
from spaces.target import TargetModule
from trainables.finetuning import CancelledError, summed_loss, to_device
from trainables.memory import give_back, held_bytes, in_words
from trainables.profile_checkpoint import JobCheckpoints, Saved, Tensors, rng_state, set_rng_state
from trainables.settings import ProfileSettings
from trainables.tasks import Task, epoch_order
from trainables.workers import Workers

# Gradients of a float16 base would vanish below 6e-8; a power of two changes no digit of theirs.
FLOAT16_LOSS_SCALE = 1024.0
ENTRIES_AT_ONCE = 2**18  # of a matrix, while its masks are counted
SQUARES_AT_ONCE = 2**16  # of a layer's input: so many stay in a core's cache
COUNTING_BYTES = 16 * 2**20  # what counting holds beside one copy of a matrix

Fields = dict[str, NDArray[Any]]
Progress = Callable[[str, int, int], None]


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
        self._split = task.splits["train"]
        self._batches = micro_batches(len(self._split.labels), settings)
        self._checkpoints, self._trained, self._progress = checkpoints, trained, progress
        half = any(_weight(model, target).dtype == torch.float16 for target in targets)
        self._loss_scale = FLOAT16_LOSS_SCALE if half else 1.0
        self._finished: list[dict[str, Fields]] = []
        self._first_rng = self._rng() if settings.base_dropout else {}

    def run(self, saved: Saved | None = None) -> dict[str, Fields]:
        """Mask counts and hessian_diag of every module; from a checkpoint on where there is one.

        Raises JobError where a gradient is not finite or the memory limit holds no module, and
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
        with _Accumulators(self._model, targets) as sums:
            self._start(sums, targets, saved)
            for first in range(saved.step if saved is not None else 0, n, size):
                if first + self._workers.rank < n:
                    self._loss(self._batches[first + self._workers.rank], sums).backward()
                done = min(first + size, n)
                self._progress("static pass", number * n + done, groups * n)
                if self._should_stop is not None and self._workers.agree(self._should_stop()):
                    raise CancelledError
                if done < n and self._checkpoints.due(first, done):
                    self._save(done, targets, sums)
        if self._settings.memory_limit is not None:
            give_back(self._workers.device)
        return {target.name: self._fields(sums, target.name) for target in targets}

    def _start(
        self, sums: _Accumulators, targets: Sequence[TargetModule], saved: Saved | None
    ) -> None:
        """Set the sums and, with dropout, the random numbers to where a pass begins or goes on."""
        rng = {f"now/{name}": state for name, state in self._first_rng.items()}
        if saved is not None:
            for target in targets:
                for part in self._checkpoints.parts_of_others(saved, target.name):
                    sums.add(target.name, part)
            rng = self._saved_rng(saved) or rng
        if rng:
            set_rng_state(_below("now", rng), self._workers.device)

    def _loss(self, rows: NDArray[np.int64], sums: _Accumulators | None) -> torch.Tensor:
        batch = to_device(self._split.batch(rows), self._workers)
        labels = batch.pop("labels")
        if sums is not None:
            sums.mask = batch.get("attention_mask")
        loss = summed_loss(self._model(**batch).logits, labels) / len(rows)
        return loss * self._loss_scale

    def _fields(self, sums: _Accumulators, name: str) -> Fields:
        """A module's statistics, over all workers; its accumulators are given up."""
        gradient = self._workers.sum_(sums.abs_gradient.pop(name))
        gradient /= len(self._batches) * self._loss_scale
        if not torch.isfinite(gradient.max()):
            raise not_finite(name, "the mean gradient")
        target = self._targets[name]
        transposed = isinstance(self._model.get_submodule(name), Conv1D)  # stored [in, out]
        counts = weight_counts(
            _weight(self._model, target).detach(), gradient, self._settings.top_percent, transposed
        )
        return {**counts, "hessian_diag": sums.inputs[name].hessian_diag(self._workers)}

    # Checkpoints --------------------------------------------------------------------------------

    def _save(
        self, done: int, targets: Sequence[TargetModule], sums: _Accumulators | None = None
    ) -> None:
        if not self._checkpoints.active:
            return
        lasting: dict[str, Callable[[], Tensors]] = {}
        if self._workers.rank == 0:
            lasting["trained"] = self._trained
            for i, group in enumerate(self._finished):
                lasting[f"finished{i}"] = partial(_as_tensors, group)
        facts = {
            "group": [target.name for target in targets],
            "finished": [list(group) for group in self._finished],
        }
        self._checkpoints.save("static pass", done, facts, self._own_parts(targets, sums), lasting)

    def _own_parts(
        self, targets: Sequence[TargetModule], sums: _Accumulators | None
    ) -> Iterator[tuple[str, Tensors]]:
        """This worker's own parts, one a module, none made before it is asked for."""
        place = f"rank{self._workers.rank}"
        if self._first_rng:
            states = {"now": self._rng(), "first": self._first_rng}
            yield (
                f"{place}/rng",
                {
                    f"{when}/{name}": tensor
                    for when, state in states.items()
                    for name, tensor in state.items()
                },
            )
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
        if self._settings.memory_limit is None:
            groups = [first, tuple(target for target in left if target not in first)]
            return [group for group in groups if group]
        room = self._room(left, self._settings.memory_limit)
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
        counting = held_bytes(self._workers.device) + size + COUNTING_BYTES
        beside = max(counting, self._heaviest_step(targets))
        give_back(self._workers.device)
        beside = int(max(self._workers.gather_objects(beside)))
        if size > limit - beside:
            raise JobError(
                f"profile.memory_limit: {in_words(limit)} does not hold the accumulator of "
                f"{largest.name} ({in_words(size)}) beside the {in_words(beside)} that base, "
                f"batch and counting take; set {in_words(beside + size)} or more, or lower "
                "profile.batch_size"
            )
        return limit - beside

    def _heaviest_step(self, targets: Sequence[TargetModule]) -> int:
        """Bytes held at most while the micro-batch of most tokens goes through, nothing summed."""
        device, lengths = self._workers.device, self._split.lengths
        heaviest = max(self._batches, key=lambda rows: len(rows) * int(lengths[rows].max()))
        highest = 0

        def sample(weight: torch.Tensor) -> None:
            nonlocal highest
            highest = max(highest, held_bytes(device))
            weight.grad = None

        hooks = _Hooks()
        with hooks:
            for target in targets:
                hooks.on_gradient(_weight(self._model, target), sample)
            loss = self._loss(heaviest, None)
            highest = held_bytes(device)
            loss.backward()
        return highest

    def _accumulator_bytes(self, target: TargetModule) -> int:
        weight = _weight(self._model, target)
        return weight.numel() * _accumulated_in(weight.dtype).itemsize


class _Hooks:
    """Hooks and gradients that last as long as the context."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._weights: list[nn.Parameter] = []

    def __enter__(self) -> None:
        return

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()
        for weight in self._weights:
            weight.requires_grad_(False)
            weight.grad = None
        self._handles, self._weights = [], []

    def on_gradient(self, weight: nn.Parameter, take: Callable[[torch.Tensor], None]) -> None:
        """Have a weight's gradient computed, and `take` called with the weight that holds it."""
        weight.requires_grad_(True)
        self._weights.append(weight)
        self._handles.append(weight.register_post_accumulate_grad_hook(take))

    def on_input(self, layer: nn.Module, see: Callable[..., None]) -> None:
        """Have `see` called with a layer and its inputs before it runs."""
        self._handles.append(layer.register_forward_pre_hook(see))


class _Seen(NamedTuple):
    """What one reading adds: sums of x^2 [in] in float64 over `number` vectors x."""

    of: str
    squares: torch.Tensor
    number: int

    @classmethod
    def reading(cls, x: torch.Tensor, mask: torch.Tensor | None) -> _Seen:
        """Of the vectors of x [..., in]; `mask` [rows, tokens] is 0 where a token is padding."""
        flat, of = x.reshape(-1, x.shape[-1]), "tokens"
        if mask is not None:  # pictures are not padded
            if x.shape[:-1] == mask.shape or x.shape[:-1] == (mask.numel(),):
                flat = flat[mask.reshape(-1).bool()]
            elif x.ndim != 2:  # a pooler reads one vector a row
                of = "others"
        squares = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
        for part in flat.split(max(1, SQUARES_AT_ONCE // x.shape[-1])):
            squares += part.to(torch.float64, copy=True).square_().sum(0)
        return cls(of, squares, len(flat))


class _Inputs:
    """Sums of x^2 [in] in float64 over what a layer has read, and over how many vectors x.

    A layer that reads no tokens (DeBERTa's projections of relative positions) is measured on what
    it reads; one that reads both, on its tokens alone, so that the mean does not depend on how the
    rows are divided into micro-batches.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.sums = {
            f"{of}/{what}": torch.zeros(shape, dtype=torch.float64, device=device)
            for of in ("tokens", "others")
            for what, shape in (("squares", (width,)), ("number", ()))
        }

    def add(self, seen: _Seen) -> None:
        """Count what a layer has read."""
        self.sums[f"{seen.of}/squares"] += seen.squares
        self.sums[f"{seen.of}/number"] += seen.number

    def hessian_diag(self, workers: Workers) -> NDArray[np.float32]:
        """Diagonal of H = 2 E[x x^T] over non-padding tokens of all workers, float32 [in]."""
        total = {name: workers.sum_(value) for name, value in self.sums.items()}
        of = "tokens" if total["tokens/number"] > 0 else "others"
        mean = 2 * total[f"{of}/squares"] / total[f"{of}/number"].clamp(min=1)
        return mean.cpu().numpy().astype(np.float32)


class _Accumulators(_Hooks):
    """What a pass adds up for a group of modules, as long as the context lasts.

    Each weight's gradient is added to its accumulator as backward produces it, and freed.
    """

    def __init__(self, model: nn.Module, targets: Sequence[TargetModule]) -> None:
        super().__init__()
        self._model, self._targets = model, targets
        self.abs_gradient: dict[str, torch.Tensor] = {}
        self.inputs: dict[str, _Inputs] = {}
        self.mask: torch.Tensor | None = None
        self._last: tuple[weakref.ref[torch.Tensor], int, _Seen] | None = None
        for target in targets:
            weight = _weight(model, target)
            self.abs_gradient[target.name] = torch.zeros_like(
                weight, dtype=_accumulated_in(weight.dtype), requires_grad=False
            )
            self.inputs[target.name] = _Inputs(target.shape[1], weight.device)

    def __enter__(self) -> _Accumulators:  # type: ignore[override]
        for target in self._targets:
            self.on_gradient(_weight(self._model, target), self._taking(target.name))
            for alias in target.names:
                self.on_input(self._model.get_submodule(alias), self._seeing(target.name))
        return self

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """What a module's sums are by now, on the CPU."""
        sums = {"abs_gradient": self.abs_gradient[name], **self.inputs[name].sums}
        return {key: tensor.cpu() for key, tensor in sums.items()}

    def add(self, name: str, saved: Tensors) -> None:
        """Add what `tensors` has given."""
        sums = {"abs_gradient": self.abs_gradient[name], **self.inputs[name].sums}
        for key, tensor in sums.items():
            tensor.add_(saved[key].to(tensor.device))

    def _taking(self, name: str) -> Callable[[torch.Tensor], None]:
        accumulator = self.abs_gradient[name]

        def take(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            accumulator.add_(weight.grad.abs_())
            weight.grad = None

        return take

    def _seeing(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def see(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self.inputs[name].add(self._reading(inputs[0]))

        return see

    def _reading(self, x: torch.Tensor) -> _Seen:
        """What a layer reads; query, key and value read the same."""
        if self._last is None or self._last[0]() is not x or self._last[1] != x._version:
            self._last = weakref.ref(x), x._version, _Seen.reading(x.detach(), self.mask)
        return self._last[2]


def micro_batches(rows: int, settings: ProfileSettings) -> list[NDArray[np.int64]]:
    """The rows of the calibration batches, in a seeded order."""
    order = epoch_order(rows, settings.seed, 0)
    size = settings.batch_size
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    wanted = settings.calibration_batches
    return batches if wanted == "all" else batches[:wanted]


def _weight(model: nn.Module, target: TargetModule) -> nn.Parameter:
    return model.get_parameter(f"{target.names[0]}.weight")


def _accumulated_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _as_tensors(group: Mapping[str, Fields]) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{field}": torch.from_numpy(values)
        for name, fields in group.items()
        for field, values in fields.items()
    }


def _below(place: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    """The tensors whose names start with `place/`, named without it."""
    start = f"{place}/"
    return {n.removeprefix(start): tensor for n, tensor in tensors.items() if n.startswith(start)}


# --- counting -------------------------------------------------------------------------------------


def weight_counts(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    top_percent: Sequence[float],
    transposed: bool = False,
) -> Fields:
    """Entries of TASO's top-k% masks per row and column, one line per k (TASO Eq. 2).

    `weight` and its mean abs(g), `gradient`, are [out, in], or [in, out] where `transposed`.
    `gradient` is overwritten with abs(theta) times it, so that no third matrix exists.
    """
    counts: Fields = {}
    for signal in ("gradient", "sensitivity"):
        if signal == "sensitivity":
            for part, theta in zip(_slices(gradient), _slices(weight), strict=True):
                part.mul_(theta.to(part.dtype).abs())
        rows, cols = top_percent_counts(gradient.T if transposed else gradient, top_percent)
        counts[f"{signal}_row_count"], counts[f"{signal}_col_count"] = rows, cols
    return counts


def top_percent_counts(
    score: torch.Tensor, top_percent: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column counts of the masks of a matrix's largest k%: integers [K, out], [K, in].

    A mask holds the floor(k/100 out in + 0.5) largest entries of `score` [out, in], ties taken in
    row-major order; zeros never count. The dtype is uint16, int32 where a count can pass 65,535.
    On a CPU one copy of the matrix exists for a while.
    """
    out, in_ = score.shape
    sizes = [math.floor(k / 100 * out * in_ + 0.5) for k in top_percent]
    dtype = np.uint16 if max(out, in_) <= np.iinfo(np.uint16).max else np.int32
    rows = np.zeros((len(sizes), out), dtype)
    cols = np.zeros((len(sizes), in_), dtype)
    for line, (size, least) in enumerate(zip(sizes, _least_of_largest(score, sizes), strict=True)):
        if size:
            rows[line], cols[line] = _mask_counts(score, size, least)
    return rows, cols


def _least_of_largest(score: torch.Tensor, sizes: Sequence[int]) -> list[float]:
    """For each size the size-th largest entry; zero where the size is."""
    flat = (score if score.is_contiguous() else score.T).reshape(-1)
    if not max(sizes):
        return [0.0] * len(sizes)
    if flat.device.type != "cpu":
        largest = torch.topk(flat, max(sizes)).values
        return [float(largest[size - 1]) if size else 0.0 for size in sizes]
    # Faster than torch.topk, which makes a pair of value and index of every entry.
    entries = np.partition(flat.numpy(), [flat.numel() - size for size in sizes if size])
    return [float(entries[-size]) if size else 0.0 for size in sizes]


def _mask_counts(
    score: torch.Tensor, size: int, least: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts [out], [in] of the mask of the `size` largest entries, the smallest being `least`."""
    out, in_ = score.shape
    rows, cols = np.zeros(out, np.int64), np.zeros(in_, np.int64)
    first = 0
    for part in _slices(score):
        mask = (part > least).cpu().numpy()
        rows[first : first + len(mask)] = np.count_nonzero(mask, axis=1)
        cols += np.count_nonzero(mask, axis=0)
        first += len(mask)
    ties, first = size - int(rows.sum()) if least > 0 else 0, 0
    for part in _slices(score):
        if ties <= 0:
            break
        tied = torch.nonzero((part == least).reshape(-1)).reshape(-1)[:ties].cpu().numpy()
        np.add.at(rows, first + tied // in_, 1)
        np.add.at(cols, tied % in_, 1)
        ties, first = ties - len(tied), first + len(part)
    return rows, cols


def _slices(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A matrix in parts of some rows each."""
    return tuple(matrix.split(max(1, ENTRIES_AT_ONCE // matrix.shape[1])))


def not_finite(name: str, what: str) -> JobError:
    """The error of a statistic that is NaN or infinite."""
    return JobError(
        f"profile of {name}: {what} is not finite; use profile.precision: fp32 or a lower "
        "profile.learning_rate"
    )
