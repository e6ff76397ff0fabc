"""A merged checkpoint answers rows of a task's own columns, in whatever form it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from spaces.errors import DataError
from tests.trainables.trained_examples import CHOICES
from tests.trainables.trained_writers import (
    ROWS,
    WRITERS,
    its_base,
    task_on,
    trained_writer,
    write_base,
)
from trainables.engine.workers import Workers
from trainables.tasks.rows import load_rows
from trainables.trained.merged_checkpoint import write_merged_checkpoint
from trainables.trained.restored import restored
from trainables.trained.served import TASK_FILE, ServedTask, write_task

SHORT = {"max_new_tokens": 6}
FORMS: dict[str, dict[str, Any]] = {
    "prompts": {"prompt": "q", "completion": "a", "generation": SHORT},
    "template": {"template": "Say: {q} {number}", "completion": "a", "generation": SHORT},
    "alpaca": {"map": {"format": "alpaca", "output": "a"}, "generation": SHORT},
    "conversations": {"messages": "m", "generation": SHORT},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_base("llama", tmp_path_factory.mktemp("served") / "base")


def served(
    uri: str, folder: Path, kind: str, **section: Any
) -> tuple[ServedTask, list[tuple[str, str]]]:
    """A model of a task, and before it left: the prompt of each test row and its answer."""
    made = task_on(uri, folder / "data", kind, WRITERS["llama"].suffixes, **section)
    example, its = trained_writer(made, CHOICES["lora"]), its_base(made)
    out = folder / "model"
    out.mkdir()
    with restored(example.trained, example.plan, its) as adaptation:
        with torch.no_grad():
            alone = Workers(0, 1, torch.device("cpu"))
            readings = made.task.its_kind.readings(its.model, made.task, "test", alone)
        tokenizing = made.task.its_kind.tokenizing(made.settings)
        write_merged_checkpoint(out, adaptation, its, (), tokenizing)
    write_task(made.settings, out)
    rows = load_rows(made.settings)["test"].inputs
    told = made.task.its_kind.predictions(made.task, "test", readings, rows, made.settings)
    asked = [str(row[0]) for row in rows]
    return ServedTask.load(out), list(zip(asked, told["prediction"], strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_answered_as_they_were_measured_and_in_their_order(
    base: str, form: str, tmp_path: Path
) -> None:
    model, measured = served(base, tmp_path, "generation", **FORMS[form])
    asked = pd.DataFrame(ROWS)[list(model.columns)]
    assert "a" not in asked
    answers = model.predict(asked)["prediction"].tolist()
    assert sorted(answers) == sorted(answer for _, answer in measured)
    backwards = model.predict(asked[::-1])
    assert backwards["prediction"].tolist() == answers[::-1]
    assert backwards.index.tolist() == list(range(len(ROWS)))[::-1]


def test_a_conversation_needs_no_answer_at_its_end(base: str, tmp_path: Path) -> None:
    model, _ = served(base, tmp_path, "generation", **FORMS["conversations"])
    with_answers = model.predict(pd.DataFrame(ROWS))["text"].tolist()
    asked = pd.DataFrame(ROWS)[["m"]].map(lambda turns: turns[:-1])
    assert model.predict(asked)["text"].tolist() == with_answers


def test_options_are_chosen_by_the_metric_of_the_task(base: str, tmp_path: Path) -> None:
    keys = {"prompt": "q", "options": {"columns": ["a", "instruction"]}, "label": "right"}
    model, measured = served(base, tmp_path, "multiple_choice", **keys, metric="accuracy_per_byte")
    assert model.columns == ("q", "a", "instruction")
    answers = model.predict(pd.DataFrame(ROWS))
    chosen = answers["prediction"].tolist()
    assert dict(zip((row["q"] for row in ROWS), chosen, strict=True)) == dict(measured)
    columns = [("a", "instruction")[index] for index in answers["index"]]
    assert chosen == [row[column] for row, column in zip(ROWS, columns, strict=True)]


def test_what_lacks_a_column_or_a_value_is_told(base: str, tmp_path: Path) -> None:
    model, _ = served(base, tmp_path, "generation", **FORMS["prompts"])
    with pytest.raises(DataError, match="no column 'q'"):
        model.predict(pd.DataFrame({"question": ["a"]}))
    with pytest.raises(DataError, match="row 2"):
        model.predict(pd.DataFrame({"q": ["a", None]}))
    assert model.predict(pd.DataFrame({"q": []})).empty


def test_a_metric_of_ones_own_and_the_data_stay_behind(base: str, tmp_path: Path) -> None:
    section = {**FORMS["prompts"], "metric": "os.path:join"}
    made = task_on(base, tmp_path / "data", "generation", WRITERS["llama"].suffixes, **section)
    write_task(made.settings, tmp_path)
    written = (tmp_path / TASK_FILE).read_text()
    assert "os.path" not in written
    assert str(tmp_path) not in written
