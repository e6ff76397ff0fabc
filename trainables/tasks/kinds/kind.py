"""What a kind of task is: all that one does otherwise than another.

The section `task` asks a kind for its keys and metrics when a sweep is read, so torch and what
makes inputs of rows are imported by the methods that need them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from trainables.tasks.kinds.usage import LOGITS, Tokenizing, Usage

if TYPE_CHECKING:
    import torch

    from trainables.bases.loading import Base
    from trainables.engine.workers import Workers
    from trainables.tasks.constant_answer import ConstantAnswer
    from trainables.tasks.measured_rows import MeasuredRows
    from trainables.tasks.records import Asked, Records
    from trainables.tasks.rows import Input, Rows
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.split import Split
    from trainables.tasks.task import Task


@dataclass
class ReadRows:
    """The inputs and the label of every record of a file, of use where there is no fault.

    A fault and a note are a line each, which begins with the key that it is about.
    """

    inputs: Sequence[tuple[Input, ...]]
    labels: Sequence[str]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EncodedRows:
    """The splits of a task as inputs of a base, and what a user should know of that, a line each.

    `example` is one row as the base reads it, as pieces of text that bear loss or do not; nothing
    where every row has one loss.
    """

    splits: dict[str, Split]
    notes: tuple[str, ...] = ()
    example: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True)
class Measurement:
    """What a model is measured to be on a split: its mean loss, its metrics by name, the task's own
    among them, and what it says of every row; None where no two models can be compared by row."""

    loss: float
    metrics: Mapping[str, float]
    rows: MeasuredRows | None


class Kind(ABC):
    """What is predicted, and of what.

    `head` is the one that it puts on a base (trainables/bases/parts.py, HEADS), `keys` are those of
    the section `task` that say what a row is and go with this kind, `metrics` are those that
    measure it, the usual one first. `peft_task_type` is what PEFT calls it; None where it has no
    name. `pipeline` is the task by which a pipeline of transformers loads a model of it; None where
    none does. `reads` is what one input is: a text or a picture. `streams` says whether it takes
    rows that are larger than memory, from a file a part at a time. `has_answers` says whether it
    gives answers that a metric of the user's own can judge. `answers_rows` says whether it answers
    rows of a task's own columns (`questions` and `predictions`), as no pipeline would.
    """

    head: ClassVar[str]
    keys: ClassVar[frozenset[str]]
    metrics: ClassVar[tuple[str, ...]]
    peft_task_type: ClassVar[str | None]
    pipeline: ClassVar[str | None] = None
    reads: ClassVar[str] = "text"
    streams: ClassVar[bool] = False
    has_answers: ClassVar[bool] = True
    answers_rows: ClassVar[bool] = False

    # When a sweep is read -------------------------------------------------------------------------

    def check(self, settings: TaskSettings) -> None:
        """Raise ConfigError where keys of the section, each right by itself, do not go together."""
        return

    def refusal(self, key: str, value: object, given: Mapping[str, Any]) -> str | None:
        """What is wrong with the value of a key of `keys`, None of one that is not given; `given`
        has the keys before it in the section. None where nothing is wrong."""
        return None

    @abstractmethod
    def input_columns(self, settings: TaskSettings) -> Asked:
        """The columns that a row's input is made of, and the key that names each."""

    def columns(self, settings: TaskSettings) -> Asked:
        """The columns that a row is made of, and the key that names each."""
        return {**self.input_columns(settings), settings.label: "label"}

    # Rows -----------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, records: Records, settings: TaskSettings, place: str) -> ReadRows:
        """The rows of a file; `place` is what a fault names."""

    def check_rows(self, splits: Mapping[str, Rows], settings: TaskSettings) -> None:
        """Raise DataError where rows, each right by itself, are no task together."""
        return

    def labels(self, train: Rows) -> tuple[str, ...]:
        """The classes in the order of a head's outputs; none where it predicts something else."""
        return ()

    def strata(self, rows: Rows) -> Sequence[str]:
        """Of which group each row is: a choice of rows takes its share of each."""
        return rows.labels

    def notes(self, splits: Mapping[str, Rows], settings: TaskSettings) -> Iterator[str]:
        """What a user should know of the rows before a launch, a line each."""
        yield from ()

    def input_word(self, settings: TaskSettings) -> str:
        """What one input of the task is called."""
        return self.reads

    def question(self, row: tuple[Input, ...]) -> tuple[Input, ...]:
        """What of a row's inputs is asked: all, unless some of them are answers to choose from."""
        return row

    def answered(
        self, row: tuple[Input, ...], label: str, settings: TaskSettings
    ) -> tuple[Hashable, str]:
        """What a row asks, and its answer: two rows that ask the same should have the same."""
        return row, label

    def words(self, row: tuple[Input, ...], settings: TaskSettings) -> str:
        """A row's input as a person reads it, in one line."""
        return " | ".join(
            " ".join(each.split()) if isinstance(each, str) else each.path or "a picture"
            for each in self.question(row)
        )

    def written(self, row: tuple[Input, ...], label: str, settings: TaskSettings) -> dict[str, Any]:
        """A row as an object with the task's own columns, which the task reads again."""
        columns = list(self.columns(settings))
        return dict(zip(columns, (*row, label), strict=True))

    # Inputs of a base -----------------------------------------------------------------------------

    @abstractmethod
    def input_facts(self, settings: TaskSettings, base_uri: str) -> dict[str, Any]:
        """What decides how rows become inputs, beside the base by its name: a part of the
        fingerprint."""

    def measuring_facts(self, settings: TaskSettings, base_uri: str) -> dict[str, Any]:
        """What decides how a split is measured, beside the metric's name and the base by its
        name."""
        return {}

    @abstractmethod
    def encode(
        self, rows: Mapping[str, Rows], labels: Sequence[str], settings: TaskSettings, base_uri: str
    ) -> EncodedRows:
        """Every split as inputs of a base. Raises DataError and BaseModelError."""

    def fitted(self, task: Task, packs: Callable[[], bool]) -> Task:
        """The task as it goes through a base; `packs` says whether that computes rows that are
        packed into one as it computes them apart."""
        return task

    # Loss and measure -----------------------------------------------------------------------------

    def summed_loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss, summed over targets, of what the base gives for each: the cross-entropy unless
        a kind says otherwise, in float32 at least."""
        from torch.nn.functional import cross_entropy

        from trainables.engine.masters import at_least_float

        return cross_entropy(at_least_float(outputs), labels, reduction="sum")

    @abstractmethod
    def readings(self, model: torch.nn.Module, task: Task, split: str, workers: Workers) -> Any:
        """What a model says of every row of a task's split, on every worker. A collective, without
        gradients; the model is in evaluation mode."""

    @abstractmethod
    def measure(self, task: Task, split: str, readings: Any) -> Measurement:
        """How good readings of a task's split are."""

    def answers(self, task: Task, split: str, readings: Any) -> tuple[Sequence[Any], Sequence[Any]]:
        """What is answered for each row of a split, and what is right: what a metric of the user's
        own judges."""
        raise NotImplementedError("a kind that has answers gives them")

    def question_columns(self, settings: TaskSettings) -> tuple[str, ...]:
        """The columns of a row to be answered, without that of its answer."""
        return tuple(self.input_columns(settings))

    def questions(self, records: Records, settings: TaskSettings, place: str) -> ReadRows:
        """The rows of records that lack their answers, with one in its place that says nothing;
        empty where a task's first class is put there. Raises NotImplementedError for a kind that
        predicts nothing of rows."""
        raise NotImplementedError("a kind that predicts reads them")

    def predictions(
        self,
        task: Task,
        split: str,
        readings: Any,
        rows: Sequence[tuple[Input, ...]],
        settings: TaskSettings,
    ) -> dict[str, list[Any]]:
        """Columns of what is answered for each row of a split, whose inputs are `rows`; the answer
        itself is `prediction`, where the kind has one."""
        raise NotImplementedError("a kind that predicts gives them")

    def constant_answer(self, task: Task, split: str) -> ConstantAnswer | None:
        """The best answer by the task's metric that is the same for every row; None where there is
        none, or it says nothing."""
        return None

    # Outside --------------------------------------------------------------------------------------

    def tokenizing(self, settings: TaskSettings) -> Tokenizing | None:
        """What the tokenizer beside a trained model does by itself; None where there is none."""
        return Tokenizing()

    def usage(
        self, settings: TaskSettings, labels: Sequence[str], folder: str, base: Base
    ) -> Usage:
        """How a trained model is used without this project, with the tokenizer in `folder`."""
        code = f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"
        code += 'batch = tokenizer(["a text"], return_tensors="pt")  # as the task makes inputs\n'
        note = "It reads what its kind of task makes of a row."
        return Usage(f"{code}{LOGITS}print(logits)", note)
