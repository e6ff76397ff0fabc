"""The one seam between the training loop and what is trained: an adaptation of a resident base.

The loop (trainables/training/finetune.py) knows stages and optimizer steps; an adaptation knows
what a plan attaches to the base, what it adds to the loss, what it does around a step, and how its
result is taken away: as weights that rebuild it, as low-rank factors, or merged into the base's
parameters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spaces.errors import UsageError
from spaces.plan import Plan
from trainables.engine.divided import evened
from trainables.tasks.split import Pass, outputs_of

if TYPE_CHECKING:
    from trainables.adaptations.training_rows import TrainingRows

Factors = tuple[torch.Tensor, torch.Tensor]
"""A [R, in] and B [out, R] of an update B A, its scale within B."""


@dataclass(frozen=True, eq=False)
class Part:
    """An update B A of some rows and columns of a matrix [out, in], its scale within B.

    A is [r, cols], B is [rows, r]; `rows` and `cols` are sorted indices, int64.
    """

    A: torch.Tensor
    B: torch.Tensor
    rows: torch.Tensor
    cols: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def of_whole(cls, A: torch.Tensor, B: torch.Tensor) -> Part:
        """An update of all rows and columns."""
        shape = (len(B), A.shape[1])
        return cls(A, B, torch.arange(shape[0]), torch.arange(shape[1]), shape)

    @property
    def width(self) -> int:
        """Numbers that each rank takes: rows + cols."""
        return len(self.rows) + len(self.cols)

    @property
    def params(self) -> int:
        """Numbers of both factors."""
        return len(self.A) * self.width

    def in_whole(self, A: torch.Tensor, B: torch.Tensor) -> Factors:
        """Factors of these rows and columns, as those of the whole matrix."""
        out, in_ = self.shape
        return (
            A.new_zeros(len(A), in_).index_copy_(1, self.cols, A),
            B.new_zeros(out, B.shape[1]).index_copy_(0, self.rows, B),
        )


class StageParameters(nn.Module):
    """What a stage trains and nothing else: the adapters' parameters and the task's fresh head.

    This is the module that a DeepSpeed engine is given. Its forward runs the resident base, which
    it holds without registering it: the engine then neither casts nor broadcasts the base. `scaled`
    maps a factor of the learning rate to the parameters of `adapters` that train at it.
    """

    _model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        adapters: Iterable[nn.Module],
        scaled: Mapping[float, Sequence[nn.Parameter]],
        head: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        object.__setattr__(self, "_model", model)
        self._scaled = {scale: list(parameters) for scale, parameters in scaled.items()}
        self.adapters = nn.ModuleList(adapters)
        self.head = nn.ModuleList(head.values())

    def forward(self, *batches: Pass) -> torch.Tensor:
        """What the resident base gives for all targets [targets of all batches, outputs], adapters
        and head in place.

        Every batch is a forward pass of its own.
        """
        self.place()
        taken = evened(self._model, batches)
        outputs = [outputs_of(self._model, dict(batch)) for batch in taken]
        if len(taken) > len(batches):  # they are in the graph, for their backward is taken together
            outputs[len(batches) :] = [extra[:0] for extra in outputs[len(batches) :]]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def place(self) -> None:
        """Have the base compute with the parameters as they are now, for a backward pass to them.

        Each forward does so first; who calls the base itself calls it before. Modules that read
        their own parameters ask for nothing.
        """
        return

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups, one per learning-rate scale; the head trains at scale 1."""
        by_scale = {scale: list(parameters) for scale, parameters in self._scaled.items()}
        head = list(self.head.parameters())
        if head:
            by_scale.setdefault(1.0, []).extend(head)
        return [
            {
                "params": parameters,
                "lr": learning_rate * scale,
                "lr_scale": scale,
                "weight_decay": weight_decay,
            }
            for scale, parameters in by_scale.items()
        ]


class Adaptation(ABC):
    """One plan on one resident base, from attaching its first stage to detaching it.

    Use it as a context manager: leaving it takes away all that was attached and puts the base's own
    head back, whatever happened inside. Either train it (`begin_stage` ... `end_stage` for each
    stage in turn) or `load` weights that another one has trained; then its result can be asked for.
    `seed` draws what is drawn, `dropout` is that of the adapters' inputs, `head` the job's own head
    modules by name, `dtype` that of the adapters (default: the base's).
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        seed: int,
        dropout: float = 0.0,
        head: Mapping[str, nn.Module] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._model, self._plan, self._seed, self._dropout = model, plan, seed, dropout
        parameter = next(model.parameters())
        self._dtype, self._device = dtype or parameter.dtype, parameter.device
        self._targets = {target.name: target for target in plan.targets}
        self._head = {} if head is None else dict(head)
        self._resident_head: dict[str, nn.Module] = {}

    @property
    def stages(self) -> int:
        """How many stages are trained one after another."""
        return len(self._plan.stages)

    @property
    def length(self) -> int:
        """How many times the epochs of a job it is trained for."""
        return self._plan.length

    def __enter__(self) -> Self:
        for name, module in self._head.items():
            self._resident_head[name] = self._model.get_submodule(name)
            self._model.set_submodule(name, module)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.detach()
        for name, module in self._resident_head.items():
            self._model.set_submodule(name, module)
        self._resident_head = {}

    # What the loop calls ----------------------------------------------------------------------

    def look(self, rows: TrainingRows) -> None:
        """Called once before the first stage, on all workers: the rows that are about to train.

        Raises JobError where they do not tell what the method asks of them.
        """
        return

    @abstractmethod
    def begin_stage(self, index: int, steps: int) -> StageParameters:
        """Attach what stage `index` trains, for `steps` optimizer steps."""

    def penalty(self) -> torch.Tensor | None:
        """A scalar added once to every step's loss; None where there is nothing to add."""
        return None

    def after_backward(self, engine: Any) -> None:
        """Called after an optimizer step's last backward pass: gradients averaged, unclipped."""
        return

    def after_step(self, skipped: bool, learning_rate: float) -> None:
        """Called after an optimizer step at `learning_rate` (of scale 1); `skipped` where a loss
        scaler refused it."""
        return

    @abstractmethod
    def end_stage(self) -> None:
        """End the stage: what it has trained stays attached, frozen."""

    def eval(self) -> None:
        """Turn the adapters' dropout off until the next training step, and have the base compute
        with what has been trained by now, whoever calls it."""
        return

    def figures(self) -> dict[str, float]:
        """What an epoch's report says of it beside what was measured, by names of metrics."""
        return {}

    def start_from(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Have each stage start from what of it stands in `weights`, named as `weights()` names it,
        and from fresh values where nothing does. Called before the first stage.

        Raises UsageError where an adaptation of this kind only ever starts afresh.
        """
        raise UsageError("plan: it cannot start from trained weights; train it from the base")

    @abstractmethod
    def detach(self) -> None:
        """Take away all that was attached but the head; what it leaves can still be asked for."""

    # What it leaves -----------------------------------------------------------------------------

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """All that rebuilds the trained function on the same base, the head apart."""

    def weights_so_far(self) -> dict[str, torch.Tensor]:
        """Copies of what is trained as it is now, that of the stage under way too; by the names of
        `weights()`."""
        return {name: tensor.clone() for name, tensor in self.weights().items()}

    @abstractmethod
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Attach what `weights()` of an adaptation of the same plan has given, frozen.

        Raises UsageError where a tensor is missing or of another shape.
        """

    @abstractmethod
    def factors(self) -> dict[str, Factors]:
        """The whole update of every adapted module as low-rank factors, float64 on the CPU.

        Raises UsageError where the update of a module is not of low rank.
        """

    def parts(self) -> dict[str, list[Part]]:
        """The updates that each adapted module's is the sum of, float64 on the CPU.

        Raises UsageError where they are not of low rank, or where cutting ranks saves nothing.
        """
        return {name: [Part.of_whole(A, B)] for name, (A, B) in self.factors().items()}

    def updates(self) -> dict[str, torch.Tensor]:
        """The whole update of every adapted module: float64 [out, in] on the CPU."""
        return {name: B @ A for name, (A, B) in self.factors().items()}

    def merged(self) -> dict[str, torch.Tensor]:
        """Parameter name -> value with the update merged in, in the base's own layout and dtype.

        Only what differs from the base is named. Raises UsageError where the update cannot be
        merged.
        """
        return merged_with(self._model, self.updates())


def merged_with(model: nn.Module, updates: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameter name -> value with the update [out, in] of its module added, rounded once.

    In the base's own layout and dtype, on the CPU.
    """
    changed = {}
    for name, update in updates.items():
        layer = model.get_submodule(name)
        weight: torch.Tensor = layer.weight.detach()  # type: ignore[operator]
        laid_out = update.T if isinstance(layer, Conv1D) else update
        changed[f"{name}.weight"] = (weight.double().cpu() + laid_out).to(weight.dtype)
    return changed


def named_tensor(
    weights: Mapping[str, torch.Tensor], name: str, shape: Sequence[int]
) -> torch.Tensor:
    """The tensor of that name and shape. Raises UsageError where there is none."""
    tensor = weights.get(name)
    if tensor is None or tuple(tensor.shape) != tuple(shape):
        found = "is missing" if tensor is None else f"is {list(tensor.shape)}"
        raise UsageError(
            f"weights: {name} {found} where the plan asks for {list(shape)}; use the weights and "
            "the plan of one trial"
        )
    return tensor


def lora_draw(rank: int, columns: int, fan_in: int, generator: torch.Generator) -> torch.Tensor:
    """LoRA's Kaiming draw of A [rank, columns] ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)), float64."""
    bound = 1.0 / math.sqrt(fan_in)
    drawn = torch.rand(rank, columns, generator=generator, dtype=torch.float64, device="cpu")
    return (2 * drawn - 1) * bound


def stage_seed(seed: int, stage: int) -> int:
    """A seed of its own for each stage: TASO's column stage does not repeat its row stage."""
    return (seed * 1_000_003 + stage) % (2**63)
