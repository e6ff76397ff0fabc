"""What every kind of task must hold to, whatever it predicts."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics

from tests.trainables.tasks.kinds.examples import EXAMPLES, MadeKind, make_kind
from tests.trainables.thread_workers import of_workers
from trainables.engine.workers import Workers
from trainables.tasks.collapse import PREDICTED_CLASSES, is_collapsed
from trainables.tasks.kinds.kind import Measurement
from trainables.tasks.kinds.registry import KINDS, mode_of
from trainables.tasks.rows import Rows, load_rows
from trainables.tasks.split import Pass, labels_of, outputs_of
from trainables.tasks.task import Task


def test_every_kind_has_an_example() -> None:
    assert {each.kind for each in EXAMPLES.values()} == set(KINDS)


# -- loss ------------------------------------------------------------------------------------------


@torch.no_grad()
def summed(task: Task, model: Any, passes: Sequence[Pass]) -> float:
    """The loss of the rows of some passes."""
    total = 0.0
    for given in passes:
        batch = dict(given)
        labels = batch.pop("labels")
        total += float(task.its_kind.summed_loss(outputs_of(model, batch), labels))
    return total


def test_a_loss_is_a_sum_over_rows_however_they_are_divided(made: MadeKind) -> None:
    base = made.base(torch.float64)
    split, rng = made.fitted(base).splits["train"], np.random.default_rng(0)
    rows = rng.permutation(len(split))
    apart = summed(made.task, base.model, [split.batch(rows[i : i + 1]) for i in range(len(rows))])
    for _ in range(3):
        cuts = np.sort(rng.choice(np.arange(1, len(rows)), 3, replace=False))
        for parts in ([rows], np.split(rows, cuts)):
            for on_cpu in (True, False):
                passes = [each for part in parts for each in split.passes(part, on_cpu)]
                assert summed(made.task, base.model, passes) == pytest.approx(apart, rel=1e-6)


def test_targets_count_the_labels_of_a_pass(made: MadeKind) -> None:
    task = made.fitted(made.base())
    for split in task.splits.values():
        rows = np.random.default_rng(0).permutation(len(split))[:5]
        assert split.targets.dtype == np.int64
        assert len(split.targets) == len(split.lengths) == len(split)
        assert (split.targets >= 1).all()
        for on_cpu in (True, False):
            labels = [each["labels"] for each in split.passes(rows, on_cpu)]
            assert sum(map(len, labels)) == split.targets[rows].sum()
        for i in rows:
            assert len(split.batch(np.array([i]))["labels"]) == split.targets[i]


def test_the_first_rows_of_a_split_go_through_as_they_do_in_it(made: MadeKind) -> None:
    base = made.base(torch.float64)
    task = made.fitted(base)
    few = {name: split.first(4) for name, split in task.splits.items()}
    assert len(few["dev"]) == 4
    for rows in ([0, 3], [2]):
        one, other = (
            summed(task, base.model, splits["dev"].passes(np.array(rows), True))
            for splits in (few, task.splits)
        )
        assert one == pytest.approx(other, rel=1e-12)
    measured = measurement(replace(task, splits=few), base.model, "dev", ALONE)
    assert measured.rows is not None
    assert len(measured.rows) == 4


# -- measure ---------------------------------------------------------------------------------------

ALONE = Workers(0, 1, torch.device("cpu"))


@torch.no_grad()
def measurement(task: Task, model: Any, split: str, workers: Workers) -> Measurement:
    return task.its_kind.measure(
        task, split, task.its_kind.readings(model.eval(), task, split, workers)
    )


def together(task: Task, model: Any, split: str, size: int) -> list[Measurement]:
    """What each of `size` workers measures, all at once."""

    def measure(workers: Workers) -> Measurement:
        return measurement(task, copy.deepcopy(model), split, workers)

    return of_workers(size, measure)


@pytest.mark.parametrize("size", [2, 3])
def test_several_workers_measure_what_one_does(made: MadeKind, size: int) -> None:
    base = made.base(torch.float64)
    task = made.fitted(base)
    one = measurement(task, base.model, "dev", ALONE)
    for other in together(task, base.model, "dev", size):
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
        assert dict(other.metrics) == pytest.approx(dict(one.metrics), rel=1e-6)


def test_a_measurement_has_the_metric_of_the_task_and_only_its_kinds(made: MadeKind) -> None:
    base = made.base()
    for metric in made.task.its_kind.metrics:
        task = replace(made.fitted(base), metric=metric)
        measured = measurement(task, base.model, "dev", ALONE)
        assert metric in measured.metrics
        assert set(measured.metrics) - {PREDICTED_CLASSES} <= set(task.its_kind.metrics)
        assert np.isfinite(measured.loss)
        assert measured.rows is not None
        assert measured.rows.metric == metric
        every = measured.rows.on(np.ones((1, len(measured.rows))))
        assert every[0] == pytest.approx(measured.metrics[metric], rel=1e-6, nan_ok=True)


def test_a_measured_loss_is_the_mean_over_the_targets_that_train(made: MadeKind) -> None:
    base = made.base(torch.float64)
    task = made.fitted(base)
    split = task.splits["dev"]
    passes = split.passes(np.arange(len(split)), True)
    mean = summed(task, base.model, passes) / split.targets.sum()
    measured = measurement(task, base.model, "dev", ALONE)
    assert measured.loss == pytest.approx(mean, rel=1e-6)


def test_answers_are_one_a_row_beside_what_is_right(made: MadeKind) -> None:
    if made.task.kind == "causal":
        return  # it has none
    base = made.base()
    task = made.fitted(base)
    kind, model = task.its_kind, base.model.eval()
    with torch.no_grad():
        readings = kind.readings(model, task, "dev", ALONE)
    answers, right = kind.answers(task, "dev", readings)
    assert len(answers) == len(right) == len(task.splits["dev"])
    usual = {"multiple_choice": "accuracy", "regression": "mse", "generation": "exact_match"}
    metric = usual.get(task.kind, "accuracy")
    wanted = kind.measure(replace(task, metric=metric), "dev", readings).metrics[metric]
    if task.kind == "regression":
        found = np.mean((np.array(answers) - np.array(right)) ** 2)
    elif task.kind == "generation":
        pairs = zip(answers, right, strict=True)
        found = np.mean([answer.strip() in accepted for answer, accepted in pairs])
    else:
        found = np.mean([answer == each for answer, each in zip(answers, right, strict=True)])
    assert found == pytest.approx(wanted, rel=1e-6)


def test_a_model_that_answers_every_row_alike_has_collapsed(made: MadeKind) -> None:
    base = made.base()
    task = made.fitted(base)
    task = replace(task, metric=task.its_kind.metrics[0])
    kind, model = task.its_kind, base.model.eval()
    with torch.no_grad():
        readings = kind.readings(model, task, "dev", ALONE)
    metrics = kind.measure(task, "dev", readings).metrics
    if task.kind not in ("classification", "image_classification", "multiple_choice"):
        assert PREDICTED_CLASSES not in metrics
        assert not is_collapsed(metrics)
        return
    answers, right = kind.answers(task, "dev", readings)
    assert len(set(right)) > 1
    assert metrics[PREDICTED_CLASSES] == len(set(answers))
    for index in range(2):
        alike = readings + 1e6 * (np.arange(readings.shape[1]) == index)
        constant = kind.measure(task, "dev", alike).metrics
        assert constant[PREDICTED_CLASSES] == 1
        assert is_collapsed(constant)


# -- the best constant -----------------------------------------------------------------------------


def best_constant(task: Task, rows: Rows) -> float | None:
    """The best value of the metric over all answers that are one for all rows, by trying them.

    None where every constant is as good as any other, or a metric is not a matter of answers.
    """
    if task.kind in ("classification", "image_classification"):
        labels = labels_of(task.splits["dev"])
        if task.metric == "roc_auc":
            return 0.5
        of = {
            "accuracy": metrics.accuracy_score,
            "f1": metrics.f1_score,
            "macro_f1": lambda true, given: metrics.f1_score(
                true, given, average="macro", zero_division=0
            ),
            "matthews": metrics.matthews_corrcoef,
        }[task.metric]
        return max(float(of(labels, np.full(len(labels), each))) for each in (0, 1))
    if task.kind == "regression" and task.metric == "mse":
        numbers = np.array([float(label) for label in rows.labels])
        grid = np.linspace(numbers.min(), numbers.max(), 20001)
        return float(((grid[:, None] - numbers) ** 2).mean(1).min())
    if task.kind == "multiple_choice":
        right = [int(label) for label in rows.labels]
        return max(right.count(each) for each in range(4)) / len(right)
    if task.kind == "generation" and task.metric in ("exact_match", "accuracy"):
        accepted = [accepted_of(*pair) for pair in zip(rows.inputs, rows.labels, strict=True)]
        answers = {answer for each in accepted for answer in each}
        return max(sum(answer in each for each in accepted) for answer in answers) / len(accepted)
    return None


def accepted_of(inputs: Sequence[Any], label: str) -> list[str]:
    """What is accepted of a row that is written."""
    return json.loads(label) if label else [json.loads(inputs[0])[-1]["content"]]


def test_a_constant_answer_is_the_best_of_all(made: MadeKind) -> None:
    rows = load_rows(made.settings)["dev"]
    for metric in made.task.its_kind.metrics:
        task = replace(made.task, metric=metric)
        wanted, found = best_constant(task, rows), task.its_kind.constant_answer(task, "dev")
        if wanted is None:
            assert found is None, metric
            continue
        assert found is not None, metric
        assert (found.split, found.metric, found.mode) == ("dev", metric, mode_of(metric))
        assert found.value == pytest.approx(wanted, rel=1e-6)


# -- what names a task -----------------------------------------------------------------------------


def records_of(made: MadeKind, split: str) -> list[dict[str, Any]]:
    file = Path(str(getattr(made.settings.data, split)))
    if file.suffix == ".parquet":
        return list(pq.read_table(file).to_pylist())
    return [json.loads(line) for line in file.read_text().splitlines()]


def tensors_of(split: Any) -> dict[str, NDArray[Any]]:
    """The arrays that a split is made of."""
    made_of = {each.name: getattr(split, each.name) for each in fields(split)}
    return {name: each for name, each in made_of.items() if isinstance(each, np.ndarray)}


def test_neither_the_order_of_a_file_nor_its_format_matters(made: MadeKind, tmp_path: Path) -> None:
    files = {}
    for split in made.task.splits:
        records = records_of(made, split)
        shuffled = [records[i] for i in np.random.default_rng(1).permutation(len(records))]
        assert shuffled != records
        files[split] = str(tmp_path / f"{split}.parquet")
        pq.write_table(pa.Table.from_pylist(shuffled), files[split])
    again = made.with_(data=files)
    assert again.train_fingerprint == made.task.train_fingerprint
    assert again.fingerprint == made.task.fingerprint
    for name, encoded in made.task.splits.items():
        mine, other = tensors_of(encoded), tensors_of(again.splits[name])
        assert mine
        for what, array in mine.items():
            np.testing.assert_array_equal(array, other[what])


def test_rows_lie_in_content_order_and_are_read_again_as_they_are_written(
    made: MadeKind, tmp_path: Path
) -> None:
    kind, rows = made.task.its_kind, load_rows(made.settings)
    for split in rows.splits.values():
        assert list(split.hashes) == sorted(split.hashes)
    if kind.reads == "picture":
        return  # one is told by its file and digest alone
    if made.settings.template is not None:
        return  # one is told by its prompt as it is composed
    for name, split in rows.splits.items():
        told = [
            kind.written(row, label, made.settings)
            for row, label in zip(split.inputs, split.labels, strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in told))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in rows.splits}
    assert made.with_(data=files).fingerprint == made.task.fingerprint


def test_training_is_named_by_what_trains_and_a_measure_by_all(
    made: MadeKind, tmp_path: Path
) -> None:
    files = {split: str(getattr(made.settings.data, split)) for split in made.task.splits}
    fewer = records_of(made, "dev")[1:]
    pq.write_table(pa.Table.from_pylist(fewer), tmp_path / "dev.parquet")
    kind = made.task.its_kind
    changes: dict[str, dict[str, Any]] = {
        "dev": {"data": {**files, "dev": str(tmp_path / "dev.parquet")}},
        "test": {"data": {key: file for key, file in files.items() if key != "test"}},
        "metric": {"metric": next(each for each in kind.metrics if each != made.task.metric)},
    }
    if "generation" in kind.keys:
        changes["generation"] = {"generation": {"max_new_tokens": 4}}
        changes["extract"] = {"extract": "o+"}
    others = {what: made.with_(**change) for what, change in changes.items()}
    for what, other in others.items():
        assert other.train_fingerprint == made.task.train_fingerprint, what
    names = [made.task.fingerprint, *(other.fingerprint for other in others.values())]
    assert len(set(names)) == len(names)
    pq.write_table(pa.Table.from_pylist(records_of(made, "train")[1:]), tmp_path / "train.parquet")
    fewer_rows = made.with_(data={**files, "train": str(tmp_path / "train.parquet")})
    assert fewer_rows.train_fingerprint != made.task.train_fingerprint
    assert fewer_rows.fingerprint != made.task.fingerprint


def test_how_much_is_written_at_once_names_nothing(tmp_path: Path) -> None:
    made = make_kind("generation on llama", tmp_path)
    other = made.with_(generation={"max_new_tokens": 3, "batch_tokens": 64})
    assert other.fingerprint == made.task.fingerprint


@pytest.mark.parametrize("extract", ["(\\w+)$", {"pattern": "\\w+", "ignore_case": True}])
def test_a_constant_answer_is_compared_as_what_is_written_is(extract: Any, tmp_path: Path) -> None:
    # Answers that differ as a whole are one in what is extracted.
    made = make_kind("generation on llama", tmp_path)
    answers = ["two plots good", "one plot good", "the film good", "bad film bad", "bad film bad"]
    rows = [{"prompt": f"film {i}", "completion": each} for i, each in enumerate(answers)]
    dev = tmp_path / "few.jsonl"
    dev.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    files = {"train": made.settings.data.train, "dev": str(dev)}
    wanted = {"(\\w+)$": 3 / 5}.get(str(extract), 2 / 5)
    for metric in ("exact_match", "accuracy"):
        task = made.with_(data=files, extract=extract, metric=metric)
        found = task.its_kind.constant_answer(task, "dev")
        assert found is not None
        assert found.value == pytest.approx(wanted)
