"""`ranksweep predict` and `load`: rows of every kind of file and of task, as they were measured."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import ranksweep
from search.cli.main import main
from tests.search.trial_runs import TrialRuns
from tests.trainables.families import Made, make
from tests.trainables.trained_examples import BASELINES, CHOICES, Example, example_of
from tests.trainables.trained_writers import (
    ROWS,
    WRITERS,
    its_base,
    task_on,
    trained_writer,
    write_base,
)
from trainables.engine.workers import Workers
from trainables.tasks.kinds.kind import Measurement
from trainables.trained.restored import restored

ALONE = Workers(0, 1, torch.device("cpu"))
Command = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Kept:
    """A trial in MLflow, and what its function was measured to be on its test rows."""

    made: Made
    uri: str
    run_id: str
    measured: Measurement
    readings: Any


def kept(made: Made, example: Example, runs: TrialRuns, method: str = "pilora") -> Kept:
    choice = {**CHOICES, **BASELINES}[method]
    run_id = runs.trial(made, choice, example.plan, example.trained)
    base, kind = its_base(made), made.task.its_kind
    with restored(example.trained, example.plan, base), torch.no_grad():
        readings = kind.readings(base.model, made.task, "test", ALONE)
    return Kept(made, runs.uri, run_id, kind.measure(made.task, "test", readings), readings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrialRuns:
    return TrialRuns(tmp_path_factory.mktemp("tracking"))


@pytest.fixture(scope="module")
def bert(runs: TrialRuns, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    made = make("bert", tmp_path_factory.mktemp("bert"))
    return kept(made, example_of(made, CHOICES["pilora"]), runs)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_base("llama", tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command line: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        told = capfd.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


def rows_of(kept: Kept) -> list[dict[str, Any]]:
    """The test rows in the order of their file, with a column that the task does not read."""
    file = Path(str(kept.made.settings.data.test))
    rows = (
        pq.read_table(file).to_pylist()
        if file.suffix == ".parquet"
        else [json.loads(line) for line in file.read_text().splitlines()]
    )
    return [{**row, "beside": f"row {i}, “é”"} for i, row in enumerate(rows)]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file of the kind that its name says."""
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(row) for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows, indent=1))
    else:
        pd.DataFrame(rows).to_csv(file, index=False, sep="," if file.suffix == ".csv" else "\t")
    return file


def read(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return list(pq.read_table(file).to_pylist())
    text = file.read_text()
    if file.suffix == ".json":
        return list(json.loads(text))
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text), delimiter="," if file.suffix == ".csv" else "\t"))


# -- every kind of file ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_predictions_stand_beside_the_rows_of_a_file_of_each_kind(
    bert: Kept, command: Command, suffix: str, tmp_path: Path
) -> None:
    rows = rows_of(bert)
    labels = [row.pop("label") for row in rows]
    file = write(tmp_path / f"rows{suffix}", rows)
    code, _, err = command("predict", bert.run_id, file, "--batch-size", 4, "--tracking", bert.uri)
    assert code == 0, err
    told = read(tmp_path / f"rows.predicted{suffix}")
    assert [{name: row[name] for name in rows[0]} for row in told] == rows
    assert list(told[0]) == [*rows[0], "prediction", "score", "score_0", "score_1"]
    right = [row["prediction"] == str(label) for row, label in zip(told, labels, strict=True)]
    assert np.mean(right) == bert.measured.metrics["accuracy"]
    # The trial's logits are in the order of the content; every share is that of one of its rows.
    shares = bert.readings.softmax(-1)[:, 1].sort().values
    assert sorted(float(row["score_1"]) for row in told) == pytest.approx(shares.tolist(), abs=1e-6)
    for row in told:
        assert float(row["score"]) == max(float(row["score_0"]), float(row["score_1"]))
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_an_object_stays_as_it_is_and_a_prefix_keeps_names_apart(
    bert: Kept, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a good film", "score": {"a": [1, None]}},
        {"text": "bad \ud83d", "more": 1e100},
    ]
    rows[1]["text"] = "bad"
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ranksweep.Error, match=r"has a column 'score'.*--prefix"):
        ranksweep.predict(bert.run_id, file, tracking=bert.uri)
    assert list(tmp_path.iterdir()) == [file]
    out = ranksweep.predict(bert.run_id, file, tracking=bert.uri, prefix="its_")
    told = read(Path(out))
    assert [{k: v for k, v in row.items() if not k.startswith("its_")} for row in told] == rows


# -- every kind of task ----------------------------------------------------------------------------

TASKS: dict[str, dict[str, Any]] = {
    "regression": {"text": ["q"], "label": "number"},
    "multiple_choice": {
        "prompt": "q", "options": {"columns": ["a", "instruction"]}, "label": "right",
        "metric": "accuracy_per_token",
    },
    "causal": {"prompt": "q", "completion": "a"},
    "generation": {"prompt": "q", "completion": "a", "generation": {"max_new_tokens": 6}},
}  # fmt: skip


def metric_by_hand(kind: str, told: pd.DataFrame) -> float:
    match kind:
        case "regression":
            return float(np.corrcoef(told["prediction"], told["number"])[0, 1])
        case "multiple_choice":
            for row in told.itertuples():
                assert row.prediction == (row.a, row.instruction)[row.index_]
                assert int(np.argmax(row.scores)) == row.index_
            return float((told["index_"] == told["right"]).mean())
        case "causal":
            assert np.allclose(np.exp(told["loss"]), told["perplexity"])
            return float((told["loss"] * told["tokens"]).sum() / told["tokens"].sum())
    return float((told["prediction"] == told["a"]).mean())


@pytest.mark.parametrize("kind", TASKS)
def test_each_kind_of_task_is_predicted_as_it_was_measured(
    writer: str, runs: TrialRuns, kind: str, tmp_path: Path
) -> None:
    made = task_on(writer, tmp_path / "data", kind, WRITERS["llama"].suffixes, **TASKS[kind])
    one = kept(made, trained_writer(made, CHOICES["pilora"]), runs)
    told = ranksweep.predict(one.run_id, ROWS[::-1], tracking=one.uri)
    told = told.rename(columns={"index": "index_"})
    wanted = one.measured.metrics[made.task.metric]
    assert metric_by_hand(kind, told) == pytest.approx(wanted, abs=1e-5)
    if kind == "generation":
        assert sorted(told["text"]) == sorted(one.readings.written)
    if kind != "causal":  # which has no prediction
        answer = {"regression": "number", "multiple_choice": "right", "generation": "a"}[kind]
        without = [{k: v for k, v in row.items() if k != answer} for row in ROWS[::-1]]
        again = ranksweep.predict(one.run_id, without, tracking=one.uri)
        assert again["prediction"].tolist() == told["prediction"].tolist()


def test_pictures_are_predicted_from_paths_beside_the_file(runs: TrialRuns, tmp_path: Path) -> None:
    made = make("vit", tmp_path)
    one = kept(made, example_of(made, CHOICES["pilora"]), runs)
    rows = []
    (tmp_path / "pictures").mkdir()
    for i, row in enumerate(pq.read_table(made.settings.data.test).to_pylist()):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(row["image"])
        rows.append({"image": f"pictures/{i}.png", "label": row["label"]})
    out = ranksweep.predict(one.run_id, write(tmp_path / "rows.csv", rows), tracking=one.uri)
    told = pd.read_csv(out)
    assert (told["prediction"] == told["label"]).mean() == one.measured.metrics["accuracy"]


@pytest.mark.parametrize("method", ["full", "bottleneck", "dora", "taso of two rounds"])
def test_whatever_a_method_trains_predicts(
    bert: Kept, runs: TrialRuns, method: str, tmp_path: Path
) -> None:
    choice = {**CHOICES, **BASELINES}[method]
    one = kept(bert.made, example_of(bert.made, choice), runs, method)
    texts = [row["text"] for row in rows_of(bert)]
    told = ranksweep.predict(one.run_id, texts, tracking=one.uri)
    shares = one.readings.softmax(-1)[:, 1].sort().values
    assert sorted(told["score_1"]) == pytest.approx(shares.tolist(), abs=1e-6)


# -- the model in memory ---------------------------------------------------------------------------


def test_a_model_is_loaded_as_transformers_has_it(bert: Kept) -> None:
    loaded = ranksweep.load(bert.run_id, tracking=bert.uri)
    texts = [row["text"] for row in rows_of(bert)]
    assert loaded.tokenizer is not None
    batch = loaded.tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = loaded.model(**batch).logits
    told = loaded.predict(texts)
    assert told["score_1"].tolist() == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-6)
    assert [loaded.model.config.id2label[int(i)] for i in logits.argmax(-1)] == [
        *told["prediction"]
    ]
    assert (loaded.labels, loaded.columns) == (("0", "1"), ("text",))
    beside = ranksweep.predict(bert.run_id, texts, tracking=bert.uri)
    assert told["score_1"].tolist() == pytest.approx(beside["score_1"].tolist(), abs=1e-5)


def test_what_cannot_be_merged_is_told_and_predicts_all_the_same(
    bert: Kept, runs: TrialRuns
) -> None:
    one = kept(bert.made, example_of(bert.made, BASELINES["bottleneck"]), runs, "bottleneck")
    with pytest.raises(ranksweep.UsageError, match="bottleneck"):
        ranksweep.load(one.run_id, tracking=one.uri)


def test_rows_in_memory_keep_their_index_and_their_columns(bert: Kept) -> None:
    rows = pd.DataFrame({"text": ["good film", "bad film"], "n": [1, 2]}, index=[7, 3])
    told = ranksweep.predict(bert.run_id, rows, tracking=bert.uri)
    assert told.index.tolist() == [7, 3]
    assert told["n"].tolist() == [1, 2]
    assert "prediction" not in rows
    columns = ranksweep.predict(bert.run_id, {"text": ["good film"]}, tracking=bert.uri)
    assert columns["score"][0] == pytest.approx(told["score"].iloc[0])
    with pytest.raises(ranksweep.Error, match=r"task\.text: the rows has no column 'text'"):
        ranksweep.predict(bert.run_id, [{"words": "good"}], tracking=bert.uri)


# -- refusals --------------------------------------------------------------------------------------


@contextmanager
def told_in_one_line(command: Command, *arguments: object) -> Iterator[list[str]]:
    code, out, err = command(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    yield lines


@pytest.mark.parametrize(
    ("content", "more", "line"),
    [
        ("words\ngood\n", (), "task.text: {file} has no column 'text'; its columns are words"),
        ("", (), "{file}: is empty"),
        ("text\n", (), "{file}: has no rows"),
        ("text,n\ngood,1\n,2\n", (), "task.text: {file} has no text in 'text' in 1 of 2 rows"),
        ("text,prediction\ngood,1\n", (), "{file}: has a column 'prediction'"),
        ("text\ngood\n", ("--out", "{folder}/out.json"), "--out: {folder}/out.json does not end"),
        ("text\ngood\n", ("--out", "{file}"), "--out: {file} is the file itself"),
        ("text\ngood\n", ("--out", "{folder}/there.csv"), "--out: {folder}/there.csv is there"),
        ("text\ngood\n", ("--out", "{folder}/no/out.csv"), "--out: there is no folder"),
        ("text\ngood\n", ("--batch-size", "0"), "--batch-size: 0 is not"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_leaves_nothing(
    bert: Kept, command: Command, content: str, more: tuple[str, ...], line: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(content)
    (tmp_path / "there.csv").write_text("mine")
    names = {"file": file, "folder": tmp_path}
    filled = [each.format(**names) for each in more]
    with told_in_one_line(
        command, "predict", bert.run_id, file, "--tracking", bert.uri, *filled
    ) as lines:
        assert lines[0].startswith(f"error: {line.format(**names)}")
    assert {each.name for each in tmp_path.iterdir()} == {"rows.csv", "there.csv"}
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_a_file_and_a_run_that_are_none_are_told(
    bert: Kept, runs: TrialRuns, command: Command, tmp_path: Path
) -> None:
    where = ("--tracking", bert.uri)
    for file, said in (
        (tmp_path / "no.csv", "there is no such file"),
        (tmp_path, "it is a folder"),
    ):
        with told_in_one_line(command, "predict", bert.run_id, file, *where) as lines:
            assert said in lines[0]
    with told_in_one_line(command, "predict", runs.sweep(bert.made), tmp_path, *where) as lines:
        assert "is the run of a sweep" in lines[0]
    without = runs.trial(
        bert.made, CHOICES["lora"], example_of(bert.made, CHOICES["lora"]).plan, None
    )
    file = write(tmp_path / "rows.csv", [{"text": "good"}])
    with told_in_one_line(command, "predict", without, file, *where) as lines:
        assert "has kept no weights" in lines[0]
