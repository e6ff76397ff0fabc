"""Shares of the training rows: nested, fair to every class, and trained on as what they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spaces.errors import ConfigError
from tests.trainables.conftest import split_of, tiny_task
from trainables.tasks.drawing import nested_order
from trainables.tasks.row_share import RowsOfSplit, check_shares, on_share, rows_of_share
from trainables.tasks.split import labels_of


def rows_in(share: float, rows: int = 200, seed: int = 0) -> list[int]:
    split = on_share(tiny_task(rows), share, seed).splits["train"]
    assert isinstance(split, RowsOfSplit)
    return split.rows.tolist()


@pytest.mark.parametrize("counts", [(50, 50), (97, 2, 1), (300, 60, 5, 5, 1), (13,)])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_beginning_of_the_order_is_a_fair_draw(counts: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(7)
    groups = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    order = nested_order(groups, seed)
    assert sorted(order) == list(range(len(groups)))
    for taken in range(len(counts), len(groups) + 1):
        held = np.bincount(groups[order[:taken]], minlength=len(counts))
        assert held.min() >= 1
        exact = taken * np.array(counts) / sum(counts)
        # About a row, and what groups have before their turn that are owed less than one.
        assert np.abs(held - exact).max() <= 1.5 + np.maximum(0, 1 - exact).sum()
    assert not np.array_equal(order, nested_order(groups, seed + 1))
    assert np.array_equal(order, nested_order(groups, seed))


def test_a_share_lies_within_a_larger_one_and_is_the_same_for_every_trial() -> None:
    small, middle = rows_in(0.1), rows_in(0.3)
    assert (len(small), len(middle)) == (20, 60)
    assert set(small) < set(middle)
    assert small == sorted(small) == rows_in(0.1)
    assert small != rows_in(0.1, seed=1)
    labels = labels_of(tiny_task(200).splits["train"])
    assert labels[small].sum() == pytest.approx(0.1 * labels.sum(), abs=1)


def test_all_rows_are_the_task_itself() -> None:
    task = tiny_task()
    assert on_share(task, 1.0, 0) is task


def test_rows_of_a_split_are_its_rows_in_every_respect() -> None:
    whole = split_of(30, seed=3)
    part = RowsOfSplit(whole, np.array([2, 3, 11, 29]))
    few = np.array([3, 0, 2])
    batch, expected = part.batch(few), whole.batch(np.array([29, 2, 11]))
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[key], expected[key]) for key in batch)
    assert len(part) == 4
    assert part.lengths.tolist() == whole.lengths[[2, 3, 11, 29]].tolist()
    assert part.targets.tolist() == [1] * 4
    assert labels_of(part).tolist() == whole.labels[[2, 3, 11, 29]].tolist()
    seen = [row for each in part.passes(few, on_cpu=True) for row in each["labels"].tolist()]
    assert sorted(seen) == sorted(expected["labels"].tolist())
    assert part.work(few, True) == whole.work(np.array([29, 2, 11]), True)
    assert part.first(2).rows.tolist() == [2, 3]


def test_a_task_without_classes_is_drawn_from_plainly() -> None:
    task = replace(tiny_task(100), labels=())
    (small, large) = (on_share(task, share, 0).splits["train"] for share in (0.1, 0.5))
    assert isinstance(small, RowsOfSplit)
    assert isinstance(large, RowsOfSplit)
    assert set(small.rows) < set(large.rows)
    assert (len(small), len(large)) == (10, 50)


@pytest.mark.parametrize(
    ("rows", "shares", "batch_size", "said"),
    [
        (40, (0.1, 1.0), 16,
         r"k: 0\.1 of 40 rows is 4, less than one batch of 16 \(train\.batch_size\); "
         r"begin with 0\.4 or more$"),
        (40, (0.01, 1.0), 1,
         r"k: 0\.01 of 40 rows is 1, fewer than the 2 classes; begin with 0\.05 or more$"),
        (40, (0.5, 1.0), 64, r"less than one batch of 64 .*; set search\.fidelity: null$"),
        (40, (0.5, 0.51, 1.0), 4, r"k: 0\.5 and 0\.51 of 40 rows are 20 both; leave one out$"),
    ],
)  # fmt: skip
def test_shares_that_cannot_be_trained_on_are_refused(
    rows: int, shares: tuple[float, ...], batch_size: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_shares(tiny_task(rows), shares, batch_size, "k")


def test_the_least_share_that_a_refusal_names_is_taken() -> None:
    for rows in (17, 40, 333):
        for batch_size in (1, 7, 16):
            with pytest.raises(ConfigError) as refused:
                check_shares(tiny_task(rows), (1e-9, 1.0), batch_size, "k")
            named = float(str(refused.value).rsplit("begin with ", 1)[1].split()[0])
            check_shares(tiny_task(rows), (named, 1.0), batch_size, "k")
            assert rows_of_share(rows, named) >= batch_size
