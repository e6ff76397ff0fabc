"""The rows of two models on a suite, beside each other: resamples are drawn within each member."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest

from search.queries.differences import drawn_values
from trainables.tasks.measured_rows import (
    MeasuredRows,
    RowStatistics,
    SuiteRows,
    class_rows,
    read_measured_rows,
)


def hits(seed: int, share: float, sizes: dict[str, int]) -> SuiteRows:
    """Rows that a model hits by chance: of classes, and by statistics."""
    draw = np.random.default_rng(seed)
    members: dict[str, MeasuredRows] = {}
    for i, (name, size) in enumerate(sizes.items()):
        right = draw.random(size) < share
        if i % 2:
            labels, logits = np.zeros(size, np.int64), np.stack([right, ~right], axis=1) * 1.0
            members[name] = class_rows("accuracy", name, labels, logits)
        else:
            statistics = np.stack([right, np.ones(size)], axis=1).astype(float)
            members[name] = RowStatistics("accuracy", name, statistics)
    return SuiteRows("accuracy", "these", members)


def right(rows: MeasuredRows) -> list[int]:
    every = np.eye(len(rows))
    return [round(float(value)) for value in rows.on(every)]


def test_the_mean_on_a_resample_is_that_of_the_rows_drawn_of_each_member() -> None:
    rows = hits(0, 0.6, {"a": 7, "b": 12, "c": 30})
    drawn = rows.draw(np.random.default_rng(1), 20)
    assert drawn.shape == (20, 49)
    by_member = [right(each) for each in rows.members.values()]
    for times, value in zip(drawn.astype(int).tolist(), rows.on(drawn), strict=True):
        means, start = [], 0
        for hit in by_member:
            of_it = times[start : start + len(hit)]
            assert sum(of_it) == len(hit), "a member keeps its share of every resample"
            means.append(sum(n * h for n, h in zip(of_it, hit, strict=True)) / len(hit))
            start += len(hit)
        assert value == pytest.approx(fmean(means))


def test_resamples_vary_as_means_of_independent_sets_do() -> None:
    sizes = {"a": 10, "b": 400, "c": 50}
    one, other = hits(0, 0.7, sizes), hits(1, 0.5, sizes)
    values = drawn_values([one, other])
    assert values is not None
    paired = [np.subtract(right(one.members[name]), right(other.members[name])) for name in sizes]
    variance = sum(each.var() / len(each) for each in paired) / len(sizes) ** 2
    assert float(np.var(values[0] - values[1])) == pytest.approx(variance, rel=0.2)
    draw = np.random.default_rng(5)
    brute = [fmean(draw.choice(each, len(each)).mean() for each in paired) for _ in range(1000)]
    assert np.quantile(values[0] - values[1], [0.025, 0.975]) == pytest.approx(
        np.quantile(brute, [0.025, 0.975]), abs=0.03
    )


def test_rows_of_suites_are_compared_where_their_members_are_the_same() -> None:
    sizes = {"a": 5, "b": 6}
    rows = hits(0, 0.5, sizes)
    assert rows.is_of(read_measured_rows(hits(1, 0.5, sizes).to_bytes()))
    assert not rows.is_of(hits(1, 0.5, {"a": 5, "c": 6}))
    assert not rows.is_of(hits(1, 0.5, {"a": 5, "b": 7}))
    assert not rows.is_of(rows.members["a"])
    assert not rows.members["a"].is_of(rows)
