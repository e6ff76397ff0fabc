"""Differences on test: intervals over seeds and rows, Holm, and false positives by simulation."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm, ttest_rel

from search.objective import Objective
from search.queries.comparison import Confirmation, Found, OnTest, resolution, summarize
from search.queries.differences import Difference, difference, holm
from trainables.tasks.measured_rows import class_rows

ACCURACY = Objective("accuracy", "max")
Hits = NDArray[np.bool_]


def found(hits: Hits, *arms: str) -> list[Found]:
    """Confirmations that hit these rows, bool [arms, seeds, rows]; the first arm is LoRA."""
    labels = np.zeros(hits.shape[-1], np.int64)
    rows: list[Found] = []
    for number, (arm, by_seed) in enumerate(zip(arms, hits, strict=True)):
        row: dict[str, Any] = {"method": arm, "arm": arm, "number": number, "choice": {}}
        tested = {}
        for seed, each in enumerate(by_seed, start=1):
            logits = np.stack([each, ~each], axis=1).astype(float)
            said = class_rows("accuracy", "these", labels, logits)
            tested[seed] = OnTest(float(each.mean()), said)
        rows.append((row | {"trainable_params": 1}, tested))
    return rows


def compared(hits: Hits) -> list[Confirmation]:
    arms = ("lora", *(f"arm {i}" for i in range(1, len(hits))))
    rows = summarize(found(hits, *arms), ACCURACY)
    return sorted((row for row in rows if row.arm != "lora"), key=lambda row: row.arm)


def simulated(
    generator: np.random.Generator,
    *,
    arms: int,
    seeds: int,
    rows: int,
    by_seed: float,
    shared: float = 0.0,
    by_row: float = 0.3,
    gain: float = 0.0,
) -> Hits:
    """Arms that hit a row where a score is above 0: of one true accuracy, but for a `gain` of all
    arms but the first.

    The score is the row's own easiness, what the arm makes of the row (`by_row`), what a seed does
    to it (0.5), and what the seed does to all rows (`by_seed`, of which `shared` is alike for all
    arms).
    """
    draw = generator.normal
    seed = np.sqrt(shared) * draw(size=(1, seeds, 1))
    seed = seed + np.sqrt(1 - shared) * draw(size=(arms, seeds, 1))
    noise = by_row * draw(size=(arms, 1, rows)) + 0.5 * draw(size=(arms, seeds, rows))
    score = draw(size=rows) + noise + by_seed * seed
    spread = np.sqrt(1 + by_row**2 + 0.5**2 + by_seed**2)
    wanted = 0.8 + gain * (np.arange(arms) > 0)[:, None, None]
    hits: Hits = score + norm.ppf(wanted) * spread > 0
    return hits


def differences(hits: Hits, drawn: NDArray[np.float64]) -> list[Difference]:
    """Those of all arms from the first, as `summarize` has them; `drawn` is [resamples, rows]."""
    sampled = np.matmul(hits, drawn.T) / hits.shape[-1]
    by_seed = [dict(enumerate(each.mean(axis=1).tolist())) for each in hits]
    boot = [dict(enumerate(each)) for each in sampled]
    rows = hits.shape[-1]
    found = [
        difference(by_seed[arm], by_seed[0], boot[arm], boot[0], rows)
        for arm in range(1, len(hits))
    ]
    return [each for each in found if each is not None]


def resamples(rows: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(0)
    return generator.multinomial(rows, np.full(rows, 1 / rows), size=200).astype(float)


def share_of_wrong_sweeps(sweeps: int, **sweep: Any) -> float:
    """In how many sweeps without any difference one is told, of one arm or more."""
    generator, settings = np.random.default_rng(1), {"arms": 6, "seeds": 5, "rows": 150, **sweep}
    drawn = resamples(settings["rows"])
    wrong = 0
    for _ in range(sweeps):
        found = differences(simulated(generator, **settings), drawn)
        wrong += any(adjusted < 0.05 for adjusted, _ in holm([each.p_value for each in found]))
    return wrong / sweeps


@pytest.mark.parametrize(
    "sweep",
    [
        {"by_seed": 0.0},
        {"by_seed": 0.15, "shared": 0.9},
        {"by_seed": 0.6},
        {"by_seed": 0.05, "by_row": 0.0, "seeds": 2},
    ],
    ids=str,
)
def test_of_sweeps_without_a_difference_one_in_twenty_shows_one(sweep: dict[str, Any]) -> None:
    # 5 %, and 1.5 standard errors of the simulation.
    assert share_of_wrong_sweeps(200, **sweep) <= 0.073


def test_where_seeds_are_all_that_differs_the_level_is_used_up() -> None:
    """Not one in a hundred but one in twenty: the intervals are no wider than they must be."""
    assert 0.03 <= share_of_wrong_sweeps(1000, arms=2, by_seed=0.6) <= 0.07


def test_a_difference_of_the_size_that_is_told_is_seen_four_times_in_five() -> None:
    generator, drawn = np.random.default_rng(3), resamples(1000)
    settings: dict[str, Any] = {"arms": 2, "seeds": 5, "rows": 1000, "by_seed": 0.15}

    def one(gain: float) -> Difference:
        return differences(simulated(generator, **settings, gain=gain), drawn)[0]

    size = float(np.median([one(0.0).detectable(0.05) for _ in range(100)]))
    seen = np.mean([one(size).interval(0.05)[0] > 0 for _ in range(200)])
    assert 0.7 <= seen <= 0.95


def test_with_all_rows_alike_it_is_the_paired_t_test() -> None:
    """Rows that no model misses or all miss add nothing: the seeds remain."""
    generator = np.random.default_rng(4)
    values, beside = ({s: generator.normal() for s in range(5)} for _ in range(2))
    nothing = {seed: np.zeros(100) for seed in range(5)}
    found = difference(values, beside, nothing, nothing, rows=100)
    peer = ttest_rel(list(values.values()), list(beside.values()))
    assert found is not None
    assert found.p_value == pytest.approx(peer.pvalue, rel=1e-6)
    low, high = peer.confidence_interval(0.99)
    assert found.interval(0.01) == pytest.approx((low, high))


def test_with_all_seeds_alike_it_is_mcnemars_comparison_of_rows() -> None:
    """Each seed hits the same rows: the variance is that of the rows' paired differences."""
    generator = np.random.default_rng(5)
    one = generator.random((2, 1, 400)) < np.array([0.8, 0.75])[:, None, None]
    (row,) = compared(np.repeat(one, 5, axis=1))
    paired = one[1, 0].astype(float) - one[0, 0]
    half = 1.966 * paired.std(ddof=1) / 20  # Student's t of 399
    assert row.difference == pytest.approx((paired.mean() - half, paired.mean() + half), abs=4e-3)
    assert (row.deviation, row.test_rows, row.paired_seeds) == (0, 400, 5)


def test_seeds_that_happen_to_agree_are_no_certainty() -> None:
    """Every seed is right equally often, each on other rows: what the rows do is still there."""
    hits = np.zeros((2, 5, 100), bool)
    for seed in range(5):
        hits[0, seed, seed : seed + 80] = True
        hits[1, seed, 10 + seed : 93 + seed] = True
    (row,) = compared(hits)
    assert row.values == (0.83,) * 5
    assert row.deviation == pytest.approx(0, abs=1e-12)
    assert row.within_noise is True


def test_holm_is_the_closure_of_bonferroni() -> None:
    generator = np.random.default_rng(6)
    for _ in range(50):
        p = (generator.random(5) ** 3).tolist()
        wanted = [
            min(1.0, max(
                len(others) * min(p[j] for j in others)
                for size in range(1, 6)
                for others in combinations(range(5), size)
                if i in others
            ))
            for i in range(5)
        ]  # fmt: skip
        adjusted, levels = zip(*holm(p), strict=True)
        assert adjusted == pytest.approx(wanted)
        assert [each < 0.05 for each in wanted] == [a < b for a, b in zip(p, levels, strict=True)]


def test_the_interval_that_is_shown_holds_zero_where_nothing_is_claimed() -> None:
    generator = np.random.default_rng(7)
    for gain in (0.0, 0.02, 0.05, 0.08):
        settings: dict[str, Any] = {"seeds": 5, "rows": 300, "by_seed": 0.1, "gain": gain}
        for row in compared(simulated(generator, arms=4, **settings)):
            assert row.adjusted is not None
            assert row.p_adjusted is not None
            low, high = row.adjusted
            assert row.within_noise == (low <= 0 <= high) == (row.p_adjusted > 0.05)
            assert row.verdict == ("within the noise" if low <= 0 <= high else "better")


def test_a_metric_that_is_better_lower_is_judged_so() -> None:
    generator = np.random.default_rng(8)
    rows = simulated(generator, arms=2, seeds=5, rows=400, by_seed=0.0, gain=0.15)
    (row,) = (
        each
        for each in summarize(found(rows, "lora", "taso"), Objective("accuracy", "min"))
        if each.arm == "taso"
    )
    assert row.verdict == "worse"


def test_rows_of_another_order_or_of_no_file_leave_the_seeds_alone() -> None:
    generator = np.random.default_rng(9)
    hits = simulated(generator, arms=2, seeds=3, rows=100, by_seed=0.1)
    (lora, others), (taso, tested) = found(hits, "lora", "taso")
    without = {seed: OnTest(each.value) for seed, each in tested.items()}
    rows = summarize([(lora, others), (taso, without)], ACCURACY)
    (row,) = (each for each in rows if each.arm == "taso")
    assert row.test_rows is None
    assert row.difference is not None
    assert any("the seeds alone" in line for line in resolution(rows))
    assert not any("the seeds alone" in line for line in resolution(compared(hits)))


def test_of_seeds_alone_the_wider_of_the_two_intervals_is_told() -> None:
    """Paired differences of .10, .09, .08 are narrower than Welch's interval, by chance or not."""
    beside = {1: 0.70, 2: 0.72, 3: 0.74}
    found = difference({1: 0.80, 2: 0.81, 3: 0.82}, beside)
    assert found is not None
    # Welch by hand: s^2 = 1e-4 and 4e-4, n = 3: se = sqrt(5e-4 / 3), df = 2.9412, t = 3.2130
    assert found.interval(0.05) == pytest.approx((0.09 - 0.041478, 0.09 + 0.041478), abs=2e-4)
    # Seeds that pull apart: pairs differ by .02, .09, .16, more than independent seeds would.
    crossed = difference({1: 0.76, 2: 0.81, 3: 0.86}, {1: 0.74, 2: 0.72, 3: 0.70})
    assert crossed is not None
    half = 4.302653 * 0.07 / 3**0.5
    assert crossed.interval(0.05) == pytest.approx((0.09 - half, 0.09 + half), abs=1e-5)
    assert difference({1: 0.8, 2: 0.8}, {1: 0.7, 2: 0.7}) is None, "nothing that varies is known"
