"""One class of a text or of a pair of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trainables.tasks.kinds.kind import EncodedRows, Kind, Measurement, ReadRows
from trainables.tasks.kinds.texts import TextInputs
from trainables.tasks.kinds.usage import Tokenizing, Usage, classes_of_pictures, classes_of_texts
from trainables.tasks.metrics import METRICS

if TYPE_CHECKING:
    import torch

    from trainables.bases.loading import Base
    from trainables.engine.workers import Workers
    from trainables.tasks.constant_answer import ConstantAnswer
    from trainables.tasks.records import Asked, Records
    from trainables.tasks.rows import Input, Rows
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.task import Task


class ClassKind(Kind):
    """One of several classes, whatever the input: logits [n, classes], labels int64 [n]."""

    metrics = ("accuracy", "f1", "macro_f1", "matthews", "roc_auc")

    def check_rows(self, splits: Mapping[str, Rows], settings: TaskSettings) -> None:
        from trainables.tasks.classes import check_classes

        check_classes({split: rows.labels for split, rows in splits.items()}, settings)

    def labels(self, train: Rows) -> tuple[str, ...]:
        from trainables.tasks.classes import label_names

        return label_names(train.labels)

    def notes(self, splits: Mapping[str, Rows], settings: TaskSettings) -> Iterator[str]:
        from trainables.tasks.classes import class_notes, positive_note

        yield from positive_note(self.labels(splits["train"]), settings)
        yield from class_notes({name: rows.labels for name, rows in splits.items()}, settings)

    def readings(
        self, model: torch.nn.Module, task: Task, split: str, workers: Workers
    ) -> torch.Tensor:
        """Logits float64 [n, classes]."""
        from trainables.tasks.reading import outputs_of_rows

        return outputs_of_rows(model, task.splits[split], len(task.labels), workers)

    def measure(self, task: Task, split: str, readings: torch.Tensor) -> Measurement:
        import torch

        from trainables.tasks.collapse import predicted_classes
        from trainables.tasks.measured_rows import class_rows
        from trainables.tasks.split import labels_of

        labels, logits = labels_of(task.splits[split]), readings.cpu().numpy()
        loss = self.summed_loss(readings, torch.as_tensor(labels, device=readings.device))
        rows = class_rows(task.metric, task.fingerprint, labels, logits, task.positive)
        value = METRICS[task.metric](labels, logits, task.positive)
        metrics = {task.metric: value, **predicted_classes(logits.argmax(-1), labels)}
        return Measurement(loss.item() / len(labels), metrics, rows)

    def answers(
        self, task: Task, split: str, readings: torch.Tensor
    ) -> tuple[Sequence[str], Sequence[str]]:
        """The names of the classes."""
        from trainables.tasks.split import labels_of

        said = readings.argmax(-1).tolist()
        right = labels_of(task.splits[split]).tolist()
        return [task.labels[i] for i in said], [task.labels[i] for i in right]

    def predictions(
        self,
        task: Task,
        split: str,
        readings: torch.Tensor,
        rows: Sequence[tuple[Input, ...]],
        settings: TaskSettings,
    ) -> dict[str, list[Any]]:
        """The class of each row, its probability as `score`, and that of each class."""
        shares = readings.softmax(-1)
        chosen = readings.argmax(-1)
        told = {
            "prediction": [task.labels[i] for i in chosen.tolist()],
            "score": shares.gather(-1, chosen[:, None])[:, 0].tolist(),
        }
        return told | {f"score_{name}": shares[:, i].tolist() for i, name in enumerate(task.labels)}

    def constant_answer(self, task: Task, split: str) -> ConstantAnswer | None:
        from trainables.tasks.constant_answer import constant_class

        return constant_class(task, split)


class Classification(TextInputs, ClassKind):
    """One class of a text, or of a pair of texts."""

    head = "classification"
    keys = TextInputs.keys | {"label", "positive_class"}
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    pipeline: ClassVar[str | None] = "text-classification"

    def encode(
        self, rows: Mapping[str, Rows], labels: Sequence[str], settings: TaskSettings, base_uri: str
    ) -> EncodedRows:
        indices = {split: part.label_indices(labels) for split, part in rows.items()}
        return self.tokens(rows, indices, settings, base_uri)

    def usage(
        self, settings: TaskSettings, labels: Sequence[str], folder: str, base: Base
    ) -> Usage:
        return classes_of_texts(settings, labels, folder)


class ImageClassification(ClassKind):
    """One class of a picture."""

    head = "image_classification"
    keys = frozenset({"image", "label", "positive_class"})
    peft_task_type = None
    pipeline = "image-classification"
    reads = "picture"

    def refusal(self, key: str, value: object, given: Mapping[str, Any]) -> str | None:
        if key == "image" and not value:
            return "is required; name the column of pictures"
        return None

    def input_columns(self, settings: TaskSettings) -> Asked:
        assert settings.image is not None, "a checked section names it"
        return {settings.image: "image"}

    def read(self, records: Records, settings: TaskSettings, place: str) -> ReadRows:
        from trainables.tasks.classes import labelled

        read = self.questions(records, settings, place)
        return labelled(read, records, settings.label, place)

    def questions(self, records: Records, settings: TaskSettings, place: str) -> ReadRows:
        from trainables.tasks.pictures import pictures_of

        assert settings.image is not None, "a checked section names it"
        inputs, faults = pictures_of(settings.image, records, place)
        return ReadRows(inputs, [""] * len(inputs), faults)

    def written(self, row: tuple[Input, ...], label: str, settings: TaskSettings) -> dict[str, Any]:
        (picture,) = row
        assert not isinstance(picture, str), "a row of this kind is a picture"
        assert settings.image is not None, "a checked section names it"
        return {settings.image: picture.path, "sha256": picture.sha256, settings.label: label}

    def input_facts(self, settings: TaskSettings, base_uri: str) -> dict[str, Any]:
        return {}

    def encode(
        self, rows: Mapping[str, Rows], labels: Sequence[str], settings: TaskSettings, base_uri: str
    ) -> EncodedRows:
        from trainables.tasks.pictures import pixel_splits

        return EncodedRows(pixel_splits(rows, labels, self.head, base_uri))

    def tokenizing(self, settings: TaskSettings) -> Tokenizing | None:
        return None

    def usage(
        self, settings: TaskSettings, labels: Sequence[str], folder: str, base: Base
    ) -> Usage:
        return classes_of_pictures(labels, folder)
