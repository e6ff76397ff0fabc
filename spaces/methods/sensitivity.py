"""Sensitivity-LoRA: a budget of ranks, shared out by the diagonals of the modules' Hessians."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import ceil, floor, gcd
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, OptionalRank, Positive, Rank, Share
from spaces.errors import ChoiceError, ProfileError
from spaces.methods.lora import whole_block
from spaces.methods.ranking import shortest_prefix
from spaces.plan import Plan
from spaces.profile import Profile
from spaces.target import TargetModule, refuse_rank_above_limit

DEFAULT_SPACE: dict[str, Any] = {
    "mean_rank": [2, 4, 8, 16],
    "signal": ["combined", "global", "local"],
    "top_fraction": [0.33, 0.5],
    "energy": [0.7, 0.8, 0.85, 0.9],
    "alpha_over_rank": LIKE_LORA,
}

_SLACK = 1e-9

ParamsOfRank = Callable[[TargetModule, int], tuple[int, int]]
"""Least and most parameters of a module at a rank."""


class RankBudget(Choice):
    """How a method shares a budget of ranks out among modules."""

    RECORDED_WITHOUT: ClassVar[Mapping[str, Any]] = {"budget": "ranks"}
    RANK_OF_ALPHA: ClassVar[str] = "mean_rank"

    mean_rank: Rank = 4
    """The budget: what a LoRA of this rank has, by `budget`."""
    allocation: Literal["scaled", "progressive", "uniform"] = "scaled"
    """scaled: ranks in proportion to theta (Eq. 15); progressive: mean_rank + 1 for the first third
    by theta, mean_rank - 1 for the last; uniform: mean_rank everywhere, which reads no key from
    here to budget."""
    signal: Literal["combined", "global", "local"] = "combined"
    """Which metrics make theta: both, the trace alone, or Topk and Effective Rank alone."""
    top_fraction: Share = 0.5
    """Share of the diagonal whose largest entries Topk averages (Eq. 9)."""
    energy: Share = 0.85
    """Share of the diagonal's sum that Effective Rank has to reach (alpha of Eq. 10)."""
    weighting: Literal["spread", "equal"] = "spread"
    """How metrics are weighed against each other: sigma / mu^2 (Eq. 11 and 13) or 0.5 / mu
    (appendix B.1)."""
    min_rank: OptionalRank = 1
    """No module's rank is below it; a module of rank 0 is left out."""
    budget: Literal["ranks", "parameters"] = "ranks"
    """ranks: the ranks add up to mean_rank * number of modules; parameters: each rank is counted as
    the in + out parameters that it takes in its module, and they add up to those of a LoRA of
    mean_rank, or to less by fewer than one rank takes."""
    alpha: Positive = 16.0
    """A module's update is scaled by alpha / its rank."""


class SensitivityChoice(RankBudget):
    """What Sensitivity-LoRA lets you choose."""

    method: Literal["sensitivity"] = "sensitivity"


def budget_needs_profile(choice: RankBudget) -> bool:
    """Whether the ranks depend on the profile."""
    return choice.allocation != "uniform"


def needs_profile(choice: SensitivityChoice) -> bool:
    """Whether the plan depends on the profile."""
    return budget_needs_profile(choice)


def unread_keys(values: Mapping[str, Any]) -> frozenset[str]:
    """What a uniform allocation does not read, nor a global signal of the local metrics."""
    if values.get("allocation") == "uniform":
        return frozenset({"signal", "top_fraction", "energy", "weighting", "min_rank", "budget"})
    if values.get("signal") == "global":
        return frozenset({"top_fraction", "energy"})
    return frozenset()


def reconciled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with a min_rank that the budget allows.

    That is mean_rank, or one less where a budget of ranks is shared progressively.
    """
    fields = RankBudget.model_fields
    most = values.get("mean_rank", fields["mean_rank"].default)
    if values.get("allocation") == "progressive" and values.get("budget") != "parameters":
        most -= 1
    return {**values, "min_rank": min(values.get("min_rank", fields["min_rank"].default), most)}


def largest_values(
    targets: Sequence[TargetModule], searched: Mapping[str, Sequence[Any]]
) -> dict[str, int]:
    """The largest mean_rank, by every allocation searched, and min_rank that modules can take."""
    if not targets:
        return {}
    limits = [target.rank_limit for target in targets]
    allocations = searched.get("allocation", ("scaled",))
    mean_rank = sum(limits) // len(limits)
    budgets = searched.get("budget", ("ranks",))
    if "parameters" in budgets:
        costs = [sum(target.shape) for target in targets]
        most = sum(cost * limit for cost, limit in zip(costs, limits, strict=True))
        mean_rank = min(mean_rank, most // sum(costs))
    if "uniform" in allocations:
        mean_rank = min(limits)
    if "progressive" in allocations and "ranks" in budgets:
        mean_rank = min(limits) - (len(limits) >= 3)
    return {"mean_rank": mean_rank, "min_rank": min(limits)}


def global_metric(diagonal: NDArray[np.float64]) -> float:
    """S_global: the trace (Eq. 8)."""
    return float(np.sum(diagonal))


def topk_metric(diagonal: NDArray[np.float64], top_fraction: float) -> float:
    """S_Topk: mean of the largest max(1, floor(top_fraction * n)) of the n entries (Eq. 9)."""
    count = max(1, floor(top_fraction * diagonal.shape[0]))
    return float(np.mean(np.sort(diagonal)[-count:]))


def effective_rank_metric(diagonal: NDArray[np.float64], energy: float) -> float:
    """S_EffectiveRank: how many of the largest entries hold `energy` of the sum (Eq. 10).

    A diagonal of zeros has none.
    """
    return float(shortest_prefix(diagonal, energy))


def sensitivities(
    choice: RankBudget, targets: Sequence[TargetModule], profile: Profile | None
) -> NDArray[np.float64]:
    """theta, the weight of every module in the allocation, float64 [modules] (Eq. 11 to 14).

    Raises ProfileError where the profile lacks a diagonal.
    """
    if profile is None:
        raise ProfileError(
            f"allocation: {choice.allocation} needs a profile; give one, or use allocation uniform"
        )
    diagonals = [
        profile.require(target.name, "hessian_diag").astype(np.float64) for target in targets
    ]
    theta = np.zeros(len(targets), dtype=np.float64)
    if choice.signal != "local":
        theta += _weighed(np.array([global_metric(d) for d in diagonals]), choice.weighting)
    if choice.signal != "global":
        topk = np.array([topk_metric(d, choice.top_fraction) for d in diagonals])
        effective = np.array([effective_rank_metric(d, choice.energy) for d in diagonals])
        local = _weighed(topk, choice.weighting) + _weighed(effective, choice.weighting)
        theta += _weighed(local, choice.weighting)
    return theta


def allocated_ranks(
    choice: RankBudget, targets: Sequence[TargetModule], profile: Profile | None
) -> list[int]:
    """The rank r^w of every module, between min_rank and min(out, in), in module order.

    Raises ChoiceError where the bounds cannot hold the budget, ProfileError where the profile lacks
    a diagonal.
    """
    refuse_impossible_budget(choice, targets)
    if choice.allocation == "uniform" or not targets:
        return [choice.mean_rank] * len(targets)
    theta = sensitivities(choice, targets, profile)
    limits = np.array([target.rank_limit for target in targets], dtype=np.float64)
    if choice.allocation == "progressive":
        ranks = _thirds(choice, theta)
        if choice.budget == "ranks":
            return _within_bounds(choice, ranks, targets)
        theta = ranks.astype(np.float64)
    if not np.any(theta):
        theta = np.ones_like(theta)
    costs = _costs(choice, targets)
    total = choice.mean_rank * int(np.sum(costs))
    filled = _water_filled(theta, choice.min_rank, limits, costs, total)
    return _largest_remainder(filled, costs, total)


def refuse_impossible_budget(choice: RankBudget, targets: Sequence[TargetModule]) -> None:
    """Raise ChoiceError where no ranks within the modules' bounds can meet the budget."""
    if _is_filled(choice):
        costs = _costs(choice, targets)
        total = choice.mean_rank * int(np.sum(costs))
        least = choice.min_rank * int(np.sum(costs))
        most = sum(int(c) * target.rank_limit for c, target in zip(costs, targets, strict=True))
        refuse_rank_above_limit("min_rank", choice.min_rank, targets)
        if not least <= total <= most:
            raise ChoiceError(
                f"mean_rank: a budget of {total} {choice.budget} for {len(targets)} modules is "
                f"outside {least} to {most}, what min_rank and min(out, in) allow; change "
                "mean_rank or min_rank"
            )
        return
    if choice.allocation == "uniform" or len(targets) < 3:
        refuse_rank_above_limit("mean_rank", choice.mean_rank, targets)
    if choice.allocation == "progressive" and choice.min_rank > choice.mean_rank:
        raise ChoiceError(
            f"min_rank: {choice.min_rank} is above mean_rank {choice.mean_rank}; use at most "
            f"{choice.mean_rank}"
        )


def plan(
    choice: SensitivityChoice, targets: Sequence[TargetModule], profile: Profile | None
) -> Plan:
    """One stage, one block per module over all rows and columns, of the rank the budget gives.

    Raises ChoiceError where the budget cannot be met, ProfileError where the profile lacks a
    diagonal.
    """
    stage = {
        target.name: [whole_block(target, rank, choice.alpha)]
        for target, rank in zip(targets, allocated_ranks(choice, targets, profile), strict=True)
        if rank
    }
    return Plan.of([stage], targets)


def count_range(
    choice: SensitivityChoice, targets: Sequence[TargetModule], dominant_fraction: float | None
) -> tuple[int, int]:
    """Least and most trainable parameters over all ways to share the budget; one if `uniform`."""

    def params(target: TargetModule, rank: int) -> tuple[int, int]:
        count = rank * sum(target.shape)
        return count, count

    return budget_count_range(choice, targets, params, kink=0)


def budget_count_range(
    choice: RankBudget, targets: Sequence[TargetModule], params: ParamsOfRank, kink: int
) -> tuple[int, int]:
    """Bounds of the sum over modules of `params` over all ways to share the budget out.

    `params` is, for every way to divide the module, linear in the rank on both sides of the rank
    `kink`. The bounds are reached where it is linear throughout.
    """
    refuse_impossible_budget(choice, targets)
    if _is_filled(choice):
        return _filled_range(choice, targets, params, kink)
    at_mean = [params(target, choice.mean_rank) for target in targets]
    least = sum(low for low, _ in at_mean)
    most = sum(high for _, high in at_mean)
    third = len(targets) // 3 if choice.allocation == "progressive" else 0
    if not third:
        return least, most
    up = [params(target, choice.mean_rank + 1) for target in targets]
    down = [params(target, choice.mean_rank - 1) for target in targets]
    gains = [sorted(u[end] - m[end] for u, m in zip(up, at_mean, strict=True)) for end in (0, 1)]
    losses = [sorted(m[end] - d[end] for d, m in zip(down, at_mean, strict=True)) for end in (0, 1)]
    # Sensitivities that are all zero leave every module at mean_rank, so that lies within too.
    return (
        min(least, least + sum(gains[0][:third]) - sum(losses[0][-third:])),
        max(most, most + sum(gains[1][-third:]) - sum(losses[1][:third])),
    )


def _weighed(metric: NDArray[np.float64], weighting: str) -> NDArray[np.float64]:
    """A metric [modules] times its weight: sigma / mu^2, or 0.5 / mu; zero where mu is 0.

    sigma is the population's (Eq. 11, 13 and appendix B.1).
    """
    mean = float(np.mean(metric)) if metric.shape[0] else 0.0
    if mean == 0:
        return np.zeros_like(metric)
    if weighting == "equal":
        return metric * (0.5 / mean)
    # Equal metrics have no spread, whatever the rounding of their mean says.
    deviation = 0.0 if np.all(metric == metric[0]) else float(np.std(metric / mean))
    return metric * (deviation / mean)


def _is_filled(choice: RankBudget) -> bool:
    """Whether ranks are shared out in proportion: progressively too, where parameters count."""
    return choice.allocation == "scaled" or (
        choice.allocation == "progressive" and choice.budget == "parameters"
    )


def _costs(choice: RankBudget, targets: Sequence[TargetModule]) -> NDArray[np.int64]:
    """What one rank of each module takes of the budget, int64 [modules]."""
    if choice.budget == "ranks":
        return np.ones(len(targets), dtype=np.int64)
    return np.array([sum(target.shape) for target in targets], dtype=np.int64)


def _thirds(choice: RankBudget, theta: NDArray[np.float64]) -> NDArray[np.int64]:
    """The ranks of a progressive allocation, int64 [modules]."""
    count = len(theta)
    third = count // 3 if np.any(theta) else 0
    order = np.argsort(-theta, kind="stable")
    ranks = np.full(count, choice.mean_rank, dtype=np.int64)
    ranks[order[:third]] += 1
    ranks[order[count - third :]] -= 1
    return ranks


def _within_bounds(
    choice: RankBudget, ranks: NDArray[np.int64], targets: Sequence[TargetModule]
) -> list[int]:
    for target, rank in zip(targets, ranks, strict=True):
        if not choice.min_rank <= rank <= target.rank_limit:
            raise ChoiceError(
                f"mean_rank: progressive gives module '{target.name}' rank {rank}, outside "
                f"{choice.min_rank} to {target.rank_limit}; change mean_rank or min_rank, or use "
                "allocation scaled"
            )
    return [int(rank) for rank in ranks]


def _water_filled(
    theta: NDArray[np.float64],
    low: int,
    limits: NDArray[np.float64],
    costs: NDArray[np.int64],
    total: int,
) -> NDArray[np.float64]:
    """clip(lambda * theta, low, limits), float64 [modules], whose sum by `costs` is `total`.

    The sum grows with lambda and is linear between the lambdas at which a module meets a bound, so
    the two around `total` give lambda without iterating. Raises ChoiceError where no lambda meets
    `total`.
    """
    theta = theta / np.max(theta)
    unclipped: NDArray[np.float64] = theta * (total / np.sum(costs * theta))
    if np.all(unclipped >= low) and np.all(unclipped <= limits):
        return unclipped
    moving = theta > 0
    leaves_low, meets_limit = low / theta[moving], limits[moving] / theta[moving]
    bends = np.unique(np.concatenate([leaves_low, meets_limit]))
    sums = np.array([np.sum(costs * np.clip(bend * theta, low, limits)) for bend in bends])
    # The noise of float64 stays far below this slack, and ranks are whole.
    slack = _SLACK * float(np.max(costs))
    after = int(np.searchsorted(sums, total - slack))
    if after == len(bends):
        what = "ranks" if np.all(costs == 1) else "parameters"
        raise ChoiceError(
            f"mean_rank: {total} {what} do not fit, as {np.count_nonzero(~moving)} of {len(theta)} "
            "modules have zero sensitivity and the others are full; lower mean_rank or use "
            "allocation uniform"
        )
    filled: NDArray[np.float64] = np.clip(bends[after] * theta, low, limits)
    if sums[after] <= total + slack:
        return filled
    # Not the first bend: there every module stands at min_rank, which is never above the budget.
    free = np.zeros(len(theta), dtype=np.bool_)
    free[moving] = (leaves_low <= bends[after - 1]) & (meets_limit >= bends[after])
    left = total - np.sum((costs * filled)[~free])
    filled[free] = theta[free] * (left / np.sum((costs * theta)[free]))
    return filled


def _largest_remainder(
    values: NDArray[np.float64], costs: NDArray[np.int64], total: int
) -> list[int]:
    """Whole ranks for `values`, whose sum by `costs` is `total`: rounded down, then one more.

    By remainder, ties by module order, and only where the cost is still within what is left of
    `total`. All costs being equal, nothing is left.
    """
    # Remainders that differ by the noise of float64 alone are ties.
    values = np.round(values, 9)
    ranks = np.floor(values).astype(np.int64)
    left = total - int(np.sum(costs * ranks))
    for module in np.argsort(ranks - values, kind="stable"):
        if ranks[module] < values[module] and costs[module] <= left:
            ranks[module] += 1
            left -= int(costs[module])
    return [int(rank) for rank in ranks]


def _filled_range(
    choice: RankBudget, targets: Sequence[TargetModule], params: ParamsOfRank, kink: int
) -> tuple[int, int]:
    """Bounds where the ranks fill the budget: each module's pieces, filled cheapest first.

    A module's bounds are replaced by their convex (for the least) and concave (for the most) hulls,
    for which filling by slope is optimal. What no whole rank fits into is left of the budget: less
    than the dearest rank, and like all costs a multiple of their greatest common divisor.
    """
    costs = [int(cost) for cost in _costs(choice, targets)]
    spare = (choice.mean_rank - choice.min_rank) * sum(costs)
    unspent = max(costs, default=0) - gcd(*costs)
    least = most = 0
    cheap: list[tuple[float, int]] = []
    dear: list[tuple[float, int]] = []
    for target, cost in zip(targets, costs, strict=True):
        top = min(target.rank_limit, choice.min_rank + spare // cost)
        ranks = sorted({choice.min_rank, min(max(kink, choice.min_rank), top), top})
        points = {rank: params(target, rank) for rank in ranks}
        least += points[choice.min_rank][0]
        most += points[choice.min_rank][1]
        cheap += _pieces({cost * rank: point[0] for rank, point in points.items()}, sign=1)
        dear += _pieces({cost * rank: point[1] for rank, point in points.items()}, sign=-1)
    low = least + _filled_cost(sorted(cheap), max(0, spare - unspent))
    high = most + _filled_cost(sorted(dear, reverse=True), spare)
    return ceil(low - 1e-6), floor(high + 1e-6)


def _pieces(points: Mapping[int, int], sign: int) -> list[tuple[float, int]]:
    """(slope, width) of the lower hull (sign 1) or upper hull (sign -1) of up to three points:
    what a module takes of the budget -> its parameters."""
    taken = sorted(points)
    pieces = [
        ((points[right] - points[left]) / (right - left), right - left)
        for left, right in pairwise(taken)
    ]
    if len(pieces) == 2 and sign * pieces[0][0] > sign * pieces[1][0]:
        first, last = taken[0], taken[-1]
        return [((points[last] - points[first]) / (last - first), last - first)]
    return pieces


def _filled_cost(pieces: Sequence[tuple[float, int]], spare: int) -> float:
    cost, left = 0.0, spare
    for slope, width in pieces:
        used = min(left, width)
        cost += slope * used
        left -= used
    return cost
