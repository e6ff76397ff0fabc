"""What is kept of every row: read back as it was, and measured as scikit-learn does."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from spaces.errors import UsageError
from trainables.tasks.measured_rows import ClassRows, class_rows, read_measured_rows

ROWS = 50


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "matthews"])
def test_a_resample_is_measured_as_scikit_learn_does(metric: str, classes: int) -> None:
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes, ROWS)
    logits = generator.normal(size=(ROWS, classes))
    logits[np.arange(ROWS), labels] += 0.7
    average = "binary" if metric == "f1" and classes == 2 else "macro"
    peer = {
        "accuracy": accuracy_score,
        "matthews": matthews_corrcoef,
    }.get(metric, lambda *both: f1_score(*both, average=average, zero_division=0.0))
    # Some of six rows: most resamples lack a class.
    resamples = [generator.integers(0, ROWS, size) for size in (ROWS, ROWS, 6, 6, 6)]
    drawn = np.stack([np.bincount(rows, minlength=ROWS) for rows in resamples]).astype(float)
    kept = read_measured_rows(class_rows(metric, "these", labels, logits).to_bytes())
    wanted = [peer(labels[rows], logits.argmax(1)[rows]) for rows in resamples]
    assert kept.on(drawn) == pytest.approx(wanted)
    assert isinstance(kept, ClassRows)
    assert kept.logits is None, "the predicted classes say it all"


def test_f1_is_of_the_positive_class() -> None:
    labels, logits = np.array([0, 0, 1, 1, 1]), np.eye(2)[[0, 1, 1, 1, 0]]
    drawn = np.ones((1, 5))
    for positive in (0, 1):
        kept = class_rows("f1", "these", labels, logits, positive)
        wanted = f1_score(labels, logits.argmax(1), pos_label=positive)
        assert read_measured_rows(kept.to_bytes()).on(drawn) == pytest.approx([wanted])


def test_rows_are_the_same_where_all_that_names_them_is() -> None:
    labels, logits = np.array([0, 1, 1]), np.eye(3)[:, :2]
    one = class_rows("accuracy", "these", labels, logits)
    assert one.is_of(
        read_measured_rows(class_rows("accuracy", "these", labels, -logits).to_bytes())
    )
    assert not one.is_of(class_rows("accuracy", "those", labels, logits))
    assert not one.is_of(class_rows("f1", "these", labels, logits))
    assert not one.is_of(class_rows("accuracy", "these", labels[::-1], logits))


@pytest.mark.parametrize("data", [b"", b"no file", class_rows(
    "accuracy", "these", np.array([0, 1]), np.eye(2)).to_bytes()[:-3]])  # fmt: skip
def test_what_is_no_such_file_is_told(data: bytes) -> None:
    with pytest.raises(UsageError, match="run/rows: not the rows of a measured split"):
        read_measured_rows(data, "run/rows")
