"""A merged checkpoint that answers rows as its trial was measured on them.

For kinds of task that no pipeline of transformers answers: MLflow loads such a model through
`_load_pyfunc`, from a folder with the checkpoint and its task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainables.bases.parts import auto_class, quiet
from trainables.tasks.kinds.registry import kind_of
from trainables.tasks.language.chat_template import read_chat_template
from trainables.tasks.own import is_own
from trainables.tasks.records import check_columns
from trainables.tasks.settings import DataSettings, TaskSettings
from trainables.trained.answering import Answering, records_of

if TYPE_CHECKING:
    import pandas as pd

TASK_FILE = "ranksweep_task.json"
_PLACE = "the rows"


def write_task(settings: TaskSettings, folder: Path) -> None:
    """Keep beside a checkpoint what of its task decides its answers; not where its data lie."""
    kind = kind_of(settings.kind)
    served = settings.model_copy(
        update={
            "suite": (),
            "data": DataSettings(train="rows.jsonl"),  # a section has some
            "chat_template": read_chat_template(settings.chat_template),
            "metric": kind.metrics[0] if _judges_no_answer(settings) else settings.metric,
        }
    )
    (folder / TASK_FILE).write_text(served.model_dump_json(indent=2) + "\n")


def _judges_no_answer(settings: TaskSettings) -> bool:
    """Whether the answers are the same without the metric: it is of the user's own, whose code need
    not be there, or that of a suite."""
    return is_own(settings.metric) or settings.metric not in kind_of(settings.kind).metrics


@dataclass(frozen=True)
class ServedTask:
    """A model in memory with the task that it answers; `folder` has its checkpoint."""

    folder: Path
    settings: TaskSettings
    model: Any
    device: torch.device

    @classmethod
    def load(cls, folder: Path) -> ServedTask:
        """Read the checkpoint, on a GPU where there is one."""
        settings = TaskSettings.model_validate_json((folder / TASK_FILE).read_text())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with quiet():
            model = auto_class(kind_of(settings.kind).head).from_pretrained(
                folder, dtype="auto", use_safetensors=True
            )
        return cls(folder, settings, model.to(device).eval(), device)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a row that are read."""
        return kind_of(self.settings.kind).question_columns(self.settings)

    def predict(self, rows: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """What is answered for each row, in their order; `params` are MLflow's, and not read.

        Raises DataError where a column is missing or a value is none.
        """
        import pandas as pd

        check_columns(dict.fromkeys(self.columns, "data"), list(rows.columns), _PLACE)
        columns = {name: rows[name].tolist() for name in self.columns}
        return pd.DataFrame(self.answers(columns), index=rows.index)

    def answers(self, columns: Mapping[str, Sequence[object]]) -> dict[str, list[Any]]:
        """The same of columns by name."""
        where = f"path:{self.folder}"
        answering = Answering(self.settings, (), self.model, self.device, where)
        count = len(next(iter(columns.values())))
        return answering.answers(records_of(columns, count), _PLACE)


def _load_pyfunc(path: str) -> ServedTask:
    """The model in a folder, for MLflow, which knows this name."""
    return ServedTask.load(Path(path))
