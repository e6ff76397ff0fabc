"""A trial as the model that MLflow serves: merged into its base, with its task beside it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from search.queries.trial_run import TrialRun
from search.tracking.served_model import MODEL, ColumnType, Served, write_model
from search.trained.export import README, write_merged
from search.trained.its_task import task_settings
from search.trained.readme import Written
from spaces.errors import UsageError
from trainables.tasks.kinds.kind import Kind
from trainables.tasks.kinds.registry import kind_of
from trainables.tasks.settings import TaskSettings
from trainables.trained import served

_ANSWERS: Mapping[str, ColumnType] = {"label": "string", "score": "double"}


@contextmanager
def mlflow_model(
    run: TrialRun, asked: TrialRun, base_uri: str | None, own_code: bool
) -> Iterator[Path]:
    """While open, a folder with the model of MLflow that a trial is.

    `asked` is the trial that was named, where `run` confirms it. Raises UsageError where the run
    has kept no weights, its update cannot be merged, or MLflow has nothing that serves its kind of
    task; and BaseModelError where its base cannot be had.
    """
    settings = task_settings(run, own_code=own_code)
    kind = kind_of(settings.kind)
    if kind.pipeline is None:
        raise UsageError(
            f"{run.run_id}: MLflow has nothing that serves a task of the kind {settings.kind}; "
            "`ranksweep export --to merged` writes its model"
        )
    facts = run.trained(own_code=own_code).facts
    with tempfile.TemporaryDirectory(prefix="ranksweep-") as place:
        checkpoint, out = Path(place) / MODEL, Path(place) / "mlflow"
        checkpoint.mkdir()
        written = Written(run, asked, run.confirmations())
        readme = write_merged(written, checkpoint, base_uri, own_code)
        (checkpoint / README).write_text(readme)
        how = _served(kind, settings, getattr(torch, facts.dtype))
        if kind.answers_rows:
            served.write_task(settings, checkpoint)
        else:
            _say_what_is_predicted(checkpoint, numbers=not facts.labels)
        write_model(checkpoint, out, how, run.run_id)
        yield out


def _served(kind: Kind, settings: TaskSettings, dtype: Any) -> Served:
    assert kind.pipeline is not None, "asked before"
    plain = Served(kind.pipeline, dtype, {"text": "string"}, _ANSWERS)
    if kind.answers_rows:
        columns = kind.question_columns(settings)
        answer: dict[str, ColumnType] = {"prediction": "string"}
        return replace(
            plain,
            inputs={name: _type_of(name, settings) for name in columns},
            outputs=answer,
            loader=served.__name__,
            packages=("ranksweep",),
        )
    if kind.reads == "picture":
        return replace(plain, inputs={"image": "string"}, outputs={})
    if kind.pipeline == "text-generation":
        return replace(plain, outputs={"generated_text": "string"})
    pair: dict[str, ColumnType] = {"text_pair": "string"} if len(settings.text) == 2 else {}
    return replace(plain, inputs={**plain.inputs, **pair}, options={"truncation": True})


def _type_of(column: str, settings: TaskSettings) -> ColumnType:
    """A text, but for conversations and lists of options."""
    whole = (settings.messages, settings.options)
    if column in whole or (column == "conversations" and settings.map is not None):
        return "any"
    return "string"


def _say_what_is_predicted(checkpoint: Path, *, numbers: bool) -> None:
    """Tell a pipeline that a single output is a number: it would squeeze it between 0 and 1."""
    if not numbers:
        return
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "problem_type": "regression"}, indent=2) + "\n")
