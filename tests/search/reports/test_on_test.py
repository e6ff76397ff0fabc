"""What is shown of a confirmation's test rows, beside scikit-learn."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from search.reports.on_test import files_of_rows
from trainables.tasks.measured_rows import (
    ClassRows,
    MeasuredRows,
    RowStatistics,
    SuiteRows,
    class_rows,
)
from trainables.tasks.row_metrics import weighted

PNG = b"\x89PNG"


def classes(metric: str, rows: int = 60, count: int = 3) -> ClassRows:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(rows, count))
    logits[:, count - 1] = -9.0  # a class that is never predicted
    return class_rows(metric, "rows", generator.integers(0, count, rows), logits)


def table(content: str | bytes) -> list[dict[str, str]]:
    assert isinstance(content, str)
    return list(csv.DictReader(io.StringIO(content)))


def test_classes_have_the_matrix_and_the_scores_that_sklearn_has() -> None:
    rows = classes("accuracy")
    files = files_of_rows(rows.to_bytes(), {"": ("bad", "so, so", "good")})

    matrix = json.loads(files["confusion.json"])
    assert matrix["classes"] == ["bad", "so, so", "good"]
    assert matrix["rows"] == confusion_matrix(rows.labels, rows.predictions).tolist()
    precision, recall, f1, true = precision_recall_fscore_support(
        rows.labels, rows.predictions, zero_division=np.nan
    )
    for i, line in enumerate(table(files["per_class.csv"])):
        assert int(line["rows"]) == true[i]
        for key, each in (("precision", precision), ("recall", recall), ("f1", f1)):
            told = float(line[key]) if line[key] else np.nan
            assert told == pytest.approx(float(each[i]), nan_ok=True, rel=1e-5), (key, i)
    predicted = table(files["predictions.csv"])
    assert len(predicted) == 60
    right = sum(line["right"] == "true" for line in predicted)
    assert right == (rows.labels == rows.predictions).sum()
    assert set(predicted[0]) == {"row", "label", "prediction", "right"}
    assert files["confusion.png"][:4] == PNG


def test_kept_scores_are_told_as_probabilities() -> None:
    rows = classes("roc_auc", rows=4, count=2)
    assert rows.logits is not None
    (first, *_) = table(files_of_rows(rows.to_bytes(), {})["predictions.csv"])
    shares = np.exp(rows.logits[0].astype(np.float64))
    assert float(first["p(1)"]) == pytest.approx(shares[1] / shares.sum(), rel=1e-5)


def test_hundreds_of_classes_have_a_table_and_no_picture() -> None:
    files = files_of_rows(classes("accuracy", rows=400, count=200).to_bytes(), {})
    assert "confusion.png" not in files
    assert len(table(files["per_class.csv"])) == 200


@pytest.mark.parametrize(
    ("metric", "statistics", "told"),
    [
        ("mse", weighted(np.array([0.25, 4.0]), np.ones(2)), {"mse": "0.25"}),
        ("spearman", np.array([[1.0, 2.0], [3.0, 4.0]]), {"label": "1", "prediction": "2"}),
        ("loss", np.array([[6.0, 3.0], [1.0, 1.0]]), {"loss": "2", "targets": "3"}),
    ],
)
def test_every_other_kind_has_its_rows_and_their_distribution(
    metric: str, statistics: np.ndarray, told: dict[str, str]
) -> None:
    rows = RowStatistics(metric, "rows", statistics)
    files = files_of_rows(rows.to_bytes(), {})
    assert files.keys() == {"predictions.csv", "distribution.png"}
    assert table(files["predictions.csv"])[0] == {"row": "0", **told}
    assert files["distribution.png"][:4] == PNG


def test_answers_that_were_kept_stand_beside_the_rows_numbers() -> None:
    statistics = weighted(np.array([1.0, 0.0]), np.ones(2))
    written = RowStatistics("exact_match", "rows", statistics, ('say "yes", twice', "no"))
    lines = table(files_of_rows(written.to_bytes(), {})["predictions.csv"])
    assert lines[0] == {"row": "0", "prediction": 'say "yes", twice', "exact_match": "1"}
    moved = np.array([[1.0, -1.0, -0.5, 0, 0, 0], [1.0, 1.0, 0.5, 0, 0, 0]])
    numbers = RowStatistics("pearson", "rows", moved, (2.5, 3.5), (2.0, 4.0))
    lines = table(files_of_rows(numbers.to_bytes(), {})["predictions.csv"])
    assert lines == [
        {"row": "0", "label": "2", "prediction": "2.5"},
        {"row": "1", "label": "4", "prediction": "3.5"},
    ]


def test_each_member_of_a_suite_has_a_folder() -> None:
    members: dict[str, MeasuredRows] = {"one": classes("accuracy"), "two": classes("accuracy")}
    files = files_of_rows(SuiteRows("accuracy", "rows", members).to_bytes(), {"two": "abc"})
    assert {name.partition("/")[0] for name in files} == {"one", "two"}
    assert json.loads(files["one/confusion.json"])["classes"] == ["0", "1", "2"]
    assert json.loads(files["two/confusion.json"])["classes"] == ["a", "b", "c"]
