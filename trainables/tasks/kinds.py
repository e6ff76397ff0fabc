"""The kinds of tasks: all that one does otherwise than another.

The section `task` asks a kind for its columns and metrics when a sweep is read, so torch and what
makes inputs of rows are imported by the methods that need them. One thing more belongs to a kind:
the head that it puts on a base, for which trainables/bases/parts.py names a class of transformers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from spaces.errors import ConfigError, nearest
from trainables.tasks.metrics import METRICS, Metric

if TYPE_CHECKING:
    import torch

    from trainables.tasks.rows import Rows
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.split import Split


class Kind(ABC):
    """What is predicted, and of what.

    `column` is the key, text or image, that names the columns of a row's input, `metrics` are those
    that measure the kind, and `peft_task_type` is what PEFT calls it; None where it has no name.
    """

    column: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    peft_task_type: ClassVar[str | None]

    @abstractmethod
    def input_facts(self, settings: TaskSettings) -> dict[str, Any]:
        """What of the settings decides how rows become inputs: a part of the fingerprint."""

    @abstractmethod
    def encode(
        self, rows: Mapping[str, Rows], labels: Sequence[str], settings: TaskSettings, base_uri: str
    ) -> dict[str, Split]:
        """Every split as inputs of a base. Raises DataError and BaseModelError."""

    @abstractmethod
    def summed_loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of a batch, summed: its mean is this divided by `loss_count`."""

    @abstractmethod
    def loss_count(self, labels: NDArray[np.int64] | torch.Tensor) -> int:
        """How many things the loss of a batch with these labels is a sum over."""

    @abstractmethod
    def measure(
        self, metric: str, outputs: torch.Tensor, labels: NDArray[np.int64], positive: int = 1
    ) -> tuple[float, float]:
        """Mean loss and metric of a split: what the base gives for every row, and their labels.

        `positive` is the index of the positive class of two.
        """


class Classification(Kind):
    """One class of a text, or of a pair of texts: logits [n, classes], labels int64 [n]."""

    column = "text"
    metrics = ("accuracy", "f1", "macro_f1", "matthews", "roc_auc")
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"

    def input_facts(self, settings: TaskSettings) -> dict[str, Any]:
        return {"max_length": settings.max_length, "texts": len(settings.text)}

    def encode(
        self, rows: Mapping[str, Rows], labels: Sequence[str], settings: TaskSettings, base_uri: str
    ) -> dict[str, Split]:
        from trainables.tasks.texts import token_splits

        return token_splits(rows, labels, settings, base_uri)

    def summed_loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy summed over rows, in float32 at least."""
        from torch.nn.functional import cross_entropy

        from trainables.engine.masters import at_least_float

        return cross_entropy(at_least_float(outputs), labels, reduction="sum")

    def loss_count(self, labels: NDArray[np.int64] | torch.Tensor) -> int:
        return len(labels)

    def measure(
        self, metric: str, outputs: torch.Tensor, labels: NDArray[np.int64], positive: int = 1
    ) -> tuple[float, float]:
        import torch

        loss = self.summed_loss(outputs, torch.as_tensor(labels, device=outputs.device))
        value = METRICS[metric](labels, outputs.cpu().numpy(), positive)
        return loss.item() / self.loss_count(labels), value


class ImageClassification(Classification):
    """One class of a picture."""

    column = "image"
    peft_task_type = None

    def input_facts(self, settings: TaskSettings) -> dict[str, Any]:
        return {}

    def encode(
        self, rows: Mapping[str, Rows], labels: Sequence[str], settings: TaskSettings, base_uri: str
    ) -> dict[str, Split]:
        from trainables.tasks.pictures import pixel_splits

        return pixel_splits(rows, labels, settings.kind, base_uri)


KINDS: Mapping[str, Kind] = {
    "classification": Classification(),
    "image_classification": ImageClassification(),
}


def metric_for(name: str, kind: str, key: str = "task.metric") -> Metric:
    """The metric called `name` of a task of `kind`; `key` is the setting that named it.

    Raises ConfigError, naming the nearest metric, where there is none.
    """
    fitting = KINDS[kind].metrics if kind in KINDS else ()
    if name in fitting:
        return METRICS[name]
    raise ConfigError(f"{key}: {name!r} does not measure {kind}; {nearest(name, fitting)}")
