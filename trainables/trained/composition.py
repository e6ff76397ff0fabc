"""Two trials' updates on one base: W + dA + dB, measured on the tasks of both (TASO, Table 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spaces.errors import UsageError
from spaces.plan import Plan
from trainables.adaptations.adaptation import Adaptation, Factors
from trainables.bases.loading import Base
from trainables.engine.workers import Workers
from trainables.tasks.task import Task
from trainables.trained.restored import restored
from trainables.trained.weights import Trained
from trainables.training.evaluate import evaluate


@dataclass(frozen=True)
class Update:
    """What a trial adds to its base's parameters.

    `factors`: module -> (A [R, in], B [out, R]) in float64, for the weight. `values`: name of a
    parameter -> what it became, where the update is of no low rank.
    """

    factors: Mapping[str, Factors]
    values: Mapping[str, torch.Tensor]

    def parameters(self) -> set[str]:
        """Names of the parameters that are changed."""
        return {*self.values, *(f"{module}.weight" for module in self.factors)}

    def delta(self, model: nn.Module, name: str) -> torch.Tensor | None:
        """What is added to a parameter of the untouched base, float64; None for nothing."""
        parameter = model.get_parameter(name)
        if name in self.values:
            return self.values[name].double().to(parameter.device) - parameter.detach().double()
        module, _, kind = name.rpartition(".")
        if kind != "weight" or module not in self.factors:
            return None
        A, B = (factor.to(parameter.device) for factor in self.factors[module])
        return (B @ A).T if isinstance(model.get_submodule(module), Conv1D) else B @ A


def update_of(adaptation: Adaptation) -> Update:
    """The update of a trained adaptation. Raises UsageError where it is none of the base's own
    parameters."""
    try:
        return Update(adaptation.factors(), {})
    except UsageError:
        return Update({}, adaptation.merged())


@contextmanager
def added(model: nn.Module, updates: Sequence[Update]) -> Iterator[None]:
    """While open, the model's parameters are W plus the sum of all updates, rounded once.

    Raises UsageError where an update is not of its parameter's shape.
    """
    kept: dict[str, torch.Tensor] = {}
    try:
        with torch.no_grad():
            for name in sorted(set().union(*(update.parameters() for update in updates))):
                parameter = model.get_parameter(name)
                kept[name] = parameter.detach().clone()
                total = parameter.detach().double()
                for update in updates:
                    if (delta := update.delta(model, name)) is not None:
                        _check_shape(name, delta, parameter)
                        total = total + delta
                parameter.copy_(total)
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                model.get_parameter(name).copy_(value)


def _check_shape(name: str, delta: torch.Tensor, parameter: torch.Tensor) -> None:
    if delta.shape != parameter.shape:
        raise UsageError(
            f"{name}: the update is {list(delta.shape)}, the base's parameter "
            f"{list(parameter.shape)}; compose trials of one base"
        )


@dataclass(frozen=True)
class Side:
    """One of the two trials: its weights, its plan, its task and the base with room for its head.

    Both sides may share a base, where their heads are of one size.
    """

    trained: Trained
    plan: Plan
    task: Task
    base: Base


def compose(
    sides: tuple[Side, Side], split: str, workers: Workers
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The metric of each side's task on `split`: with its own update alone, with both.

    Each task is measured with the head that was trained for it. Raises UsageError where an update
    cannot be added to the base's parameters.
    """
    updates = []
    for side in sides:
        with restored(side.trained, side.plan, side.base) as adaptation:
            try:
                updates.append(update_of(adaptation))
            except UsageError as error:
                raise UsageError(
                    f"method: the update of {side.trained.facts.method} is none of the base's own "
                    "parameters and cannot be added to another; compose trials of other methods"
                ) from error
    one, two = (_measured(side, updates, split, workers) for side in sides)
    return one, two


def _measured(
    side: Side, updates: Sequence[Update], split: str, workers: Workers
) -> tuple[float, float]:
    model, task = side.base.model, side.task
    with restored(side.trained, side.plan, side.base) as adaptation:
        alone = evaluate(model, adaptation, task, split, workers)
        adaptation.detach()  # the head stays
        with added(model, updates):
            both = evaluate(model, adaptation, task, split, workers)
    return alone[task.metric], both[task.metric]


def limited(task: Task, split: str, rows: int | None) -> Task:
    """The task with at most `rows` rows in a split, of each member of a suite; None keeps all."""
    return task if rows is None else task.first(split, rows)
