"""Sensitivity-LoRA's metrics and allocations against a brute force written from the paper."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import floor, fsum, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces.errors import ChoiceError, ProfileError
from spaces.methods.registry import count_range, make_plan, parse_choice
from spaces.methods.sensitivity import (
    RankBudget,
    SensitivityChoice,
    allocated_ranks,
    effective_rank_metric,
    global_metric,
    sensitivities,
    topk_metric,
)
from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule
from tests.spaces.example_profiles import SMALL, drawn_profile


def weighed(metric: list[float], weighting: str) -> list[float]:
    """Each value times sigma / mu^2 (Eq. 11, 13) or 0.5 / mu (appendix B.1)."""
    mu = fsum(metric) / len(metric)
    if mu == 0:
        return [0.0] * len(metric)
    sigma = sqrt(fsum((value - mu) ** 2 for value in metric) / len(metric))
    weight = sigma / mu**2 if weighting == "spread" else 0.5 / mu
    return [weight * value for value in metric]


def thetas(diagonals: list[list[float]], choice: RankBudget) -> list[float]:
    """Eq. 8 to 14, one module at a time."""
    traces, topks, effectives = [], [], []
    for diagonal in diagonals:
        descending = sorted(diagonal, reverse=True)
        traces.append(fsum(diagonal))
        count = max(1, floor(choice.top_fraction * len(diagonal)))
        topks.append(fsum(descending[:count]) / count)
        reached = 0
        while fsum(diagonal) and fsum(descending[:reached]) / fsum(descending) < choice.energy:
            reached += 1
        effectives.append(float(reached))
    of_trace = weighed(traces, choice.weighting)
    local = [
        a + b
        for a, b in zip(
            weighed(topks, choice.weighting), weighed(effectives, choice.weighting), strict=True
        )
    ]
    of_local = weighed(local, choice.weighting)
    if choice.signal == "global":
        return of_trace
    if choice.signal == "local":
        return of_local
    return [a + b for a, b in zip(of_trace, of_local, strict=True)]


def scaled(
    theta: Sequence[float],
    low: int,
    limits: list[int],
    total: int,
    costs: Sequence[int] | None = None,
) -> list[int]:
    """Eq. 15 under bounds: lambda by bisection, then largest remainder.

    A rank takes 1 of `total` where there are no `costs`; one more is given where it still fits.
    """
    costs = costs or [1] * len(theta)

    def filled(level: float) -> list[float]:
        return [min(max(level * t, low), limit) for t, limit in zip(theta, limits, strict=True)]

    def spent(level: float) -> float:
        return fsum(cost * value for cost, value in zip(costs, filled(level), strict=True))

    below, above = 0.0, 1.0
    while spent(above) < total:
        above *= 2
    for _ in range(300):
        middle = (below + above) / 2
        below, above = (middle, above) if spent(middle) < total else (below, middle)
    values = [round(value, 9) for value in filled(above)]
    ranks = [floor(value) for value in values]
    left = total - sum(cost * rank for cost, rank in zip(costs, ranks, strict=True))
    for i in sorted(range(len(values)), key=lambda i: (ranks[i] - values[i], i)):
        if values[i] > ranks[i] and costs[i] <= left:
            ranks[i] += 1
            left -= costs[i]
    return ranks


def diagonals_of(profile: Profile) -> list[list[float]]:
    return [
        [float(value) for value in profile.require(target.name, "hessian_diag")]
        for target in profile.targets
    ]


def budget(**keys: Any) -> SensitivityChoice:
    choice = parse_choice({"method": "sensitivity", **keys})
    assert isinstance(choice, SensitivityChoice)
    return choice


def profile_of(diagonals: list[list[float]], out: int = 100) -> Profile:
    targets = tuple(TargetModule(f"m{i}", (out, len(d))) for i, d in enumerate(diagonals))
    modules = {
        target.name: ModuleProfile(hessian_diag=np.array(diagonal))
        for target, diagonal in zip(targets, diagonals, strict=True)
    }
    return Profile(targets, 0, (), modules, {})


@pytest.mark.parametrize("signal", ["combined", "global", "local"])
@pytest.mark.parametrize("weighting", ["spread", "equal"])
@pytest.mark.parametrize("top_fraction", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("energy", [0.5, 0.85, 1.0])
def test_theta_equals_brute_force(
    signal: str, weighting: str, top_fraction: float, energy: float
) -> None:
    choice = budget(signal=signal, weighting=weighting, top_fraction=top_fraction, energy=energy)
    for seed in range(3):
        profile = drawn_profile(seed=seed, levels=seed)
        theta = sensitivities(choice, SMALL, profile)
        np.testing.assert_allclose(theta, thetas(diagonals_of(profile), choice), rtol=1e-9)


def test_metrics_by_hand() -> None:
    diagonal = np.array([1.0, 4.0, 2.0, 3.0, 0.0])
    assert global_metric(diagonal) == 10
    assert topk_metric(diagonal, 0.5) == 3.5
    assert topk_metric(diagonal, 0.1) == 4
    assert effective_rank_metric(diagonal, 0.7) == 2
    assert effective_rank_metric(diagonal, 0.71) == 3
    assert effective_rank_metric(np.zeros(4), 0.85) == 0


@pytest.mark.parametrize("signal", ["combined", "global", "local"])
@pytest.mark.parametrize(
    ("mean_rank", "min_rank"), [(1, 0), (1, 1), (3, 1), (4, 2), (6, 1), (8, 0)]
)
def test_scaled_ranks_equal_brute_force(signal: str, mean_rank: int, min_rank: int) -> None:
    choice = budget(signal=signal, mean_rank=mean_rank, min_rank=min_rank)
    limits = [min(target.shape) for target in SMALL]
    for seed in range(8):
        profile = drawn_profile(seed=seed)
        theta = thetas(diagonals_of(profile), choice)
        expected = scaled(theta, min_rank, limits, mean_rank * len(SMALL))
        assert allocated_ranks(choice, SMALL, profile) == expected


def test_ranks_are_in_proportion_where_nothing_is_clipped() -> None:
    profile = profile_of([[1.0], [2.0], [3.0], [6.0]] * 2, out=64)
    targets = tuple(TargetModule(t.name, (64, 64)) for t in profile.targets)
    wide = profile_of([[v] + [0.0] * 63 for v in (1.0, 2.0, 3.0, 6.0)] * 2, out=64)
    assert allocated_ranks(budget(signal="global", mean_rank=3), targets, wide) == [1, 2, 3, 6] * 2


def test_remainders_that_tie_go_to_the_earlier_module() -> None:
    wide = profile_of([[v] + [0.0] * 31 for v in (1.0, 1.0, 2.0, 2.0)])
    # 8 ranks over weights 1, 1, 2, 2: 1.33, 1.33, 2.67, 2.67.
    assert allocated_ranks(budget(signal="global", mean_rank=2), wide.targets, wide) == [1, 1, 3, 3]
    even = profile_of([[v] + [0.0] * 31 for v in (1.0, 3.0, 1.0, 3.0)])
    # 4 ranks over weights 1, 3, 1, 3: 0.5, 1.5, 0.5, 1.5.
    ranks = allocated_ranks(budget(signal="global", mean_rank=1, min_rank=0), even.targets, even)
    assert ranks == [1, 2, 0, 1]


def test_clipped_modules_leave_the_rest_to_the_others() -> None:
    shapes = [(2, 32), (32, 32), (32, 32), (32, 32)]
    targets = tuple(TargetModule(f"m{i}", shape) for i, shape in enumerate(shapes))
    profile = profile_of([[v] + [0.0] * 31 for v in (100.0, 0.01, 1.0, 2.0)])
    profile = Profile(targets, 0, (), profile.modules, {})
    # 12 ranks: 2 is all the first can take, 1 the least of the second, 9 are shared 1 : 2.
    ranks = allocated_ranks(budget(signal="global", mean_rank=3), targets, profile)
    assert ranks == [2, 1, 3, 6]


@pytest.mark.parametrize("allocation", ["scaled", "progressive"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_sensitivities_that_say_nothing_mean_uniform(allocation: str, value: float) -> None:
    profile = profile_of([[value] * 6] * 5)
    choice = budget(allocation=allocation, mean_rank=3)
    assert allocated_ranks(choice, profile.targets, profile) == [3] * 5


def test_a_metric_of_zero_mean_weighs_nothing() -> None:
    profile = profile_of([[1.0, 0.0], [3.0, 0.0]])
    # An energy of 0 makes every effective rank 0; the trace and Topk are left.
    choice = budget(energy=0.0)
    theta = sensitivities(choice, profile.targets, profile)
    np.testing.assert_allclose(theta, thetas(diagonals_of(profile), choice), rtol=1e-12)
    assert np.all(np.isfinite(theta))


@pytest.mark.parametrize("allocation", ["scaled", "progressive"])
@pytest.mark.parametrize(("mean_rank", "min_rank"), [(1, 0), (2, 1), (3, 0), (4, 1)])
def test_a_budget_of_parameters_is_that_of_a_lora_of_the_mean_rank(
    allocation: str, mean_rank: int, min_rank: int
) -> None:
    """Short of it by less than a rank takes, and never above."""
    lora = make_plan(parse_choice({"method": "lora", "rank": mean_rank}), SMALL, None)
    choice = budget(
        budget="parameters", allocation=allocation, mean_rank=mean_rank, min_rank=min_rank
    )
    costs, limits = [sum(t.shape) for t in SMALL], [min(t.shape) for t in SMALL]
    for seed in range(8):
        profile = drawn_profile(seed=seed)
        weights: Sequence[float] = thetas(diagonals_of(profile), choice)
        if allocation == "progressive":
            by_rank = {**keys_of(choice), "budget": "ranks", "mean_rank": 4, "min_rank": 1}
            ranks = allocated_ranks(budget(**by_rank), SMALL, profile)
            weights = [mean_rank + rank - 4 for rank in ranks]
        expected = scaled(weights, min_rank, limits, lora.trainable_params, costs)
        assert allocated_ranks(choice, SMALL, profile) == expected
        stored = make_plan(choice, SMALL, profile).trainable_params
        assert 0 <= lora.trainable_params - stored < max(costs)
        least, most = count_range(choice, SMALL)
        assert least <= stored <= most <= lora.trainable_params
        assert lora.trainable_params - least < max(costs)


def keys_of(choice: SensitivityChoice) -> dict[str, Any]:
    return choice.model_dump(exclude={"method"})


def test_budgets_of_ranks_and_of_parameters_differ_where_matrices_do() -> None:
    targets = (TargetModule("small", (10, 10)), TargetModule("large", (50, 50)))
    modules = {
        target.name: ModuleProfile(hessian_diag=np.array([1.0] + [0.0] * (target.shape[1] - 1)))
        for target in targets
    }
    modules["large"] = ModuleProfile(hessian_diag=np.array([3.0] + [0.0] * 49))
    profile = Profile(targets, 0, (), modules, {})
    ranks, parameters = (
        allocated_ranks(budget(budget=kind, signal="global", mean_rank=4), targets, profile)
        for kind in ("ranks", "parameters")
    )
    assert ranks == [2, 6]
    # 4 (20 + 100) = 480 = lambda (20 + 3 * 100): 1.5 and 4.5, both rounded down are 420 of them;
    # the smaller matrix comes first and takes 20 more, and 100 do not fit into the 40 that are left
    assert parameters == [2, 4]


def test_matrices_of_one_size_have_one_budget() -> None:
    profile = drawn_profile([TargetModule(f"m{i}", (12, 8)) for i in range(6)], seed=4)
    ranks, parameters = (
        make_plan(budget(budget=kind, mean_rank=3), profile.targets, profile)
        for kind in ("ranks", "parameters")
    )
    assert ranks.digest == parameters.digest
    assert count_range(budget(budget="parameters", mean_rank=3), profile.targets) == (360, 360)


def test_a_budget_of_parameters_that_cannot_be_met_is_refused() -> None:
    # SMALL takes 160 + 224 + 160 + 162 + 400 + 400 + 225 = 1731 parameters at most.
    with pytest.raises(ChoiceError, match="mean_rank: a budget of 1899 parameters for 7 modules"):
        make_plan(budget(budget="parameters", mean_rank=9), SMALL, drawn_profile())
    profile = profile_of([[1.0] * 4, [0.0] * 4])
    choice = budget(budget="parameters", mean_rank=3, signal="global")
    with pytest.raises(ChoiceError, match="mean_rank: 624 parameters do not fit, as 1 of 2"):
        allocated_ranks(choice, profile.targets, profile)


@pytest.mark.parametrize(("count", "third"), [(2, 0), (3, 1), (5, 1), (6, 2), (8, 2)])
def test_progressive_gives_thirds_one_more_and_one_less(count: int, third: int) -> None:
    values = [float((7 * i) % count + 1) for i in range(count)]
    profile = profile_of([[value] * 8 for value in values])
    choice = budget(allocation="progressive", signal="global", mean_rank=4)
    order = sorted(range(count), key=lambda i: (-values[i], i))
    expected = [4] * count
    for i in order[:third]:
        expected[i] = 5
    for i in order[count - third :]:
        expected[i] = 3
    assert allocated_ranks(choice, profile.targets, profile) == expected


def test_progressive_breaks_ties_by_module_order() -> None:
    profile = profile_of([[2.0], [2.0], [5.0], [2.0], [1.0], [2.0]])
    targets = tuple(TargetModule(t.name, (9, 9)) for t in profile.targets)
    wide = profile_of([[v] + [0.0] * 8 for v in (2.0, 2.0, 5.0, 2.0, 1.0, 2.0)], out=9)
    choice = budget(allocation="progressive", signal="global", mean_rank=2)
    assert allocated_ranks(choice, targets, wide) == [3, 2, 3, 2, 1, 1]


def test_progressive_refuses_to_cross_a_bound() -> None:
    profile = profile_of([[3.0] * 4, [2.0] * 4, [1.0] * 4])
    with pytest.raises(ChoiceError, match="mean_rank: progressive gives module 'm2' rank 0"):
        allocated_ranks(budget(allocation="progressive", mean_rank=1), profile.targets, profile)
    with pytest.raises(ChoiceError, match="mean_rank: progressive gives module 'm0' rank 5"):
        allocated_ranks(budget(allocation="progressive", mean_rank=4), profile.targets, profile)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mean_rank": 1, "min_rank": 2}, "mean_rank: a budget of 7 ranks"),
        ({"mean_rank": 20}, "mean_rank: a budget of 140 ranks"),
        ({"min_rank": 6, "mean_rank": 7}, r"min_rank: 6 is above .*layers\.2\.narrow"),
        ({"allocation": "progressive", "min_rank": 5}, "min_rank: 5 is above mean_rank 4"),
    ],
)
def test_an_impossible_budget_is_refused_with_and_without_a_profile(
    keys: dict[str, Any], message: str
) -> None:
    choice = budget(**keys)
    with pytest.raises(ChoiceError, match=message):
        make_plan(choice, SMALL, drawn_profile())
    with pytest.raises(ChoiceError, match=message):
        count_range(choice, SMALL)


def test_a_budget_that_no_lambda_meets_is_refused() -> None:
    profile = profile_of([[1.0] * 4, [0.0] * 4, [0.0] * 4])
    with pytest.raises(ChoiceError, match="mean_rank: 9 ranks do not fit, as 2 of 3 modules"):
        allocated_ranks(budget(mean_rank=3, signal="global"), profile.targets, profile)


@given(
    diagonals=st.lists(
        st.lists(st.floats(0, 1e6, width=32), min_size=6, max_size=6), min_size=1, max_size=9
    ),
    mean_rank=st.integers(1, 6),
    min_rank=st.integers(0, 3),
    signal=st.sampled_from(["combined", "global", "local"]),
    weighting=st.sampled_from(["spread", "equal"]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_budgets_are_met_exactly_within_the_bounds(
    diagonals: list[list[float]], mean_rank: int, min_rank: int, signal: str, weighting: str
) -> None:
    profile = profile_of(diagonals)
    choice = budget(mean_rank=mean_rank, min_rank=min_rank, signal=signal, weighting=weighting)
    targets = tuple(
        TargetModule(target.name, (4 + i % 3, 6)) for i, target in enumerate(profile.targets)
    )
    limits = [min(target.shape) for target in targets]
    total = mean_rank * len(targets)
    if not min_rank * len(targets) <= total <= sum(limits):
        with pytest.raises(ChoiceError, match="mean_rank: a budget of"):
            allocated_ranks(choice, targets, profile)
        return
    theta = sensitivities(choice, targets, profile)
    reachable = sum(limit if t else min_rank for t, limit in zip(theta, limits, strict=True))
    if np.any(theta) and reachable < total:
        with pytest.raises(ChoiceError, match="do not fit"):
            allocated_ranks(choice, targets, profile)
        return
    ranks = allocated_ranks(choice, targets, profile)
    assert sum(ranks) == mean_rank * len(targets)
    for target, rank in zip(targets, ranks, strict=True):
        assert min_rank <= rank <= min(target.shape)
    alike = [i for i, target in enumerate(targets) if target.shape == targets[0].shape]
    for i, j in pairwise(sorted(alike, key=lambda index: theta[index])):
        if theta[j] > theta[i] * (1 + 1e-6):
            assert ranks[j] >= ranks[i], "a more sensitive module of the same shape has less rank"


@pytest.mark.parametrize("allocation", ["scaled", "progressive", "uniform"])
def test_count_range_bounds_are_reached_by_some_profile(allocation: str) -> None:
    targets = tuple(TargetModule(f"m{i}", (6 + 3 * i, 5)) for i in range(4))
    choice = budget(allocation=allocation, mean_rank=2, signal="global")
    least, most = count_range(choice, targets)
    counts = set()
    for weights in ([1e4, 1.0, 1e-4, 1e-8], [1e-8, 1e-4, 1.0, 1e4]):
        profile = profile_of([[w] + [0.0] * 4 for w in weights])
        profile = Profile(targets, 0, (), profile.modules, {})
        counts.add(make_plan(choice, targets, profile).trainable_params)
    assert (min(counts), max(counts)) == (least, most)


def test_a_module_of_rank_zero_is_left_out() -> None:
    profile = profile_of([[1.0] + [0.0] * 9, [0.0] * 10, [1.0] + [0.0] * 9])
    choice = budget(mean_rank=2, min_rank=0, signal="global")
    plan = make_plan(choice, profile.targets, profile)
    assert {name: block.rank for name, (block,) in plan.stages[0].items()} == {"m0": 3, "m2": 3}
    assert {block.scale for (block,) in plan.stages[0].values()} == {16 / 3}


def test_a_profile_without_a_diagonal_is_refused_by_name() -> None:
    profile = profile_of([[1.0, 2.0]])
    bare = Profile(profile.targets, 0, (), {}, {})
    with pytest.raises(ProfileError, match="m0/hessian_diag: not in the profile"):
        make_plan(budget(mean_rank=1), profile.targets, bare)


@pytest.mark.parametrize("seed", range(40))
def test_budgets_at_the_ends_of_the_bounds_are_met(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 8))
    profile = profile_of([[float(v)] + [0.0] * 11 for v in rng.random(count) ** 8 + 1e-9])
    limit, low = int(rng.integers(3, 12)), int(rng.integers(0, 3))
    targets = tuple(TargetModule(target.name, (limit, 12)) for target in profile.targets)
    for mean_rank in {max(low, 1), limit}:
        choice = budget(mean_rank=mean_rank, min_rank=low, signal="global", weighting="equal")
        ranks = allocated_ranks(choice, targets, profile)
        assert sum(ranks) == mean_rank * count
        if mean_rank in (low, limit):
            assert ranks == [mean_rank] * count
