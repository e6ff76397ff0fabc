"""What holds of plans for matrices and statistics of any kind.

The shapes go down to one row or one column; the statistics may be all zero or so few that most of
them tie. Importances are whole numbers, which float64 adds exactly in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from math import floor, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spaces.choice import Choice
from spaces.errors import ChoiceError
from spaces.methods.registry import count_range, make_plan, parse_choice
from spaces.methods.sensitivity import SensitivityChoice
from spaces.plan import Plan
from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule
from tests.spaces.methods.test_pilora_plan import dominant_rows
from tests.spaces.methods.test_sensitivity_plan import diagonals_of, scaled, thetas
from tests.spaces.methods.test_taso_plan import core, core_of

STEPS = 8
RULES = ("hits", "cumulative", "top", "random", "all")

quick = settings(max_examples=60, deadline=None, derandomize=True)
SHARES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
RETENTIONS = st.one_of(st.floats(0.001, 1), st.sampled_from([0.001, 0.25, 0.5, 1.0]))


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """One to five modules of up to 9 rows and columns; statistics from varied to all zero."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5))
    greatest = draw(st.sampled_from([0, 1, 3, 10_000]))

    def whole(limit: int, *shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        top = min(limit, greatest)
        drawn = draw(st.lists(st.integers(0, top), min_size=size, max_size=size))
        return np.array(drawn).reshape(shape)

    targets, modules = [], {}
    for number, (out, inner) in enumerate(shapes):
        targets.append(TargetModule(f"m{number}", (out, inner)))
        modules[f"m{number}"] = ModuleProfile(
            hits=whole(STEPS, out),
            row_importance=whole(10_000, out).astype(np.float32),
            sensitivity_row_count=whole(inner, 1, out),
            sensitivity_col_count=whole(out, 1, inner),
            gradient_row_count=whole(inner, 1, out),
            gradient_col_count=whole(out, 1, inner),
            hessian_diag=whole(10_000, inner).astype(np.float32),
        )
    return Profile(tuple(targets), STEPS, (5.0,), modules, {})


def rank_limit(profile: Profile) -> int:
    return min(min(target.shape) for target in profile.targets)


# -- PiLoRA ----------------------------------------------------------------------------------------


@given(data=st.data(), profile=profiles(), rule=st.sampled_from(RULES), threshold=SHARES)
@quick
def test_blocks_of_pilora_are_the_papers_partition(
    data: st.DataObject, profile: Profile, rule: str, threshold: float
) -> None:
    rank = data.draw(st.integers(1, rank_limit(profile)), "rank")
    supplementary = data.draw(st.integers(0, rank), "supplementary_rank")
    own = data.draw(st.booleans(), "own scale")
    keys: dict[str, Any] = {"rank": rank, "supplementary_rank": supplementary, "alpha": 3}
    if own:
        keys["supplementary_scale"] = "own"
    partition = {"rule": rule, "threshold": threshold}
    choice = parse_choice({"method": "pilora", "partition": partition, **keys})
    plan = make_plan(choice, profile.targets, profile)
    (stage,) = plan.stages
    stored = 0
    for target in profile.targets:
        out, inner = target.shape
        blocks = stage.get(target.name, ())
        of_row = [[b.rank for b in blocks if row in b.rows] for row in range(out)]
        assert all(len(ranks) <= 1 for ranks in of_row), "blocks overlap on a row"
        assert all(b.cols.tolist() == list(range(inner)) for b in blocks)
        assert all(b.lr_scale == 1.0 for b in blocks)
        module = profile.modules[target.name]
        if rule == "all":
            dominant = list(range(out))
        elif rule == "random":
            # Any draw will do, of as many rows as `top` takes.
            count = len(dominant_rows("top", threshold, module, STEPS))
            dominant = blocks[0].rows.tolist() if count else []
            assert len(dominant) == count
        else:
            dominant = dominant_rows(rule, threshold, module, STEPS)
        for block in blocks:
            at_own = own and block.rows.tolist() != dominant
            assert block.scale == 3 / (supplementary if at_own else rank)
        others = [rank_of_others for rank_of_others in [supplementary] if rank_of_others]
        assert of_row == [[rank] if row in dominant else others for row in range(out)]
        few = out - len(dominant)
        stored += rank * (len(dominant) + inner) * bool(dominant)
        stored += supplementary * (few + inner) * bool(few)
    assert plan.trainable_params == stored
    least, most = count_range(choice, profile.targets)
    unimportant = any(not np.any(m.row_importance) for m in profile.modules.values())
    # Counts of top and random presume that a module has some importance.
    assert least <= stored <= most or (unimportant and rule in ("top", "random"))


@given(profile=profiles(), rule=st.sampled_from(RULES), thresholds=st.tuples(SHARES, SHARES))
@quick
def test_a_threshold_orders_the_dominant_rows(
    profile: Profile, rule: str, thresholds: tuple[float, float]
) -> None:
    def dominant(threshold: float) -> list[set[int]]:
        partition = {"rule": rule, "threshold": threshold}
        choice = {"method": "pilora", "rank": 1, "supplementary_rank": 0, "partition": partition}
        (stage,) = make_plan(parse_choice(choice), profile.targets, profile).stages
        found = [stage.get(target.name, ()) for target in profile.targets]
        return [set(blocks[0].rows.tolist()) if blocks else set() for blocks in found]

    fewer, more = (dominant(threshold) for threshold in sorted(thresholds))
    if rule == "hits":
        # It is a rate to be passed, not a share to be taken.
        fewer, more = more, fewer
    assert all(some <= all_of for some, all_of in zip(fewer, more, strict=True))


# -- TASO ------------------------------------------------------------------------------------------


def taso(profile: Profile, **keys: Any) -> Plan:
    return make_plan(parse_choice({"method": "taso", **keys}), profile.targets, profile)


def with_signal(profile: Profile, read: str) -> list[TargetModule]:
    """The modules that have a weight in the mask."""
    counts = {
        name: [getattr(module, f"{read}_{axis}_count") for axis in ("row", "col")]
        for name, module in profile.modules.items()
    }
    return [target for target in profile.targets if any(map(np.any, counts[target.name]))]


def sizes(plan_or_core: dict[str, tuple[list[int], list[int]]]) -> list[tuple[int, int]]:
    return [(len(rows), len(cols)) for rows, cols in plan_or_core.values()]


@given(
    data=st.data(),
    profile=profiles(),
    retention=RETENTIONS,
    scope=st.sampled_from(["module", "model"]),
    importance=st.sampled_from(["sensitivity", "gradient", "random"]),
    rounds=st.integers(1, 4),
    lr_scaling=st.booleans(),
    most=st.sampled_from([1.0, 1.7, 4.0]),
)
@quick
def test_stages_of_taso_are_the_papers_core(
    data: st.DataObject,
    profile: Profile,
    retention: float,
    scope: str,
    importance: str,
    rounds: int,
    lr_scaling: bool,
    most: float,
) -> None:
    rank = data.draw(st.integers(1, rank_limit(profile)), "rank")
    ranking = {"retention": retention, "scope": scope}
    keys = {**ranking, "rank": rank, "rounds": rounds, "alpha": 5}
    plan = taso(profile, importance=importance, lr_scaling=lr_scaling, max_lr_scale=most, **keys)
    read = "gradient" if importance == "gradient" else "sensitivity"
    expected = core(profile, {**ranking, "importance": read})
    found = core_of(plan)
    assert sizes(found) == sizes(expected)
    if importance != "random":
        assert found == expected
    assert len(plan.stages) == 2 * rounds
    stored = 0
    for target in profile.targets:
        out, inner = target.shape
        rows, cols = expected[target.name]
        stored += (len(rows) + inner if rows else 0) + (out + len(cols) if cols else 0)
        for number, stage in enumerate(plan.stages):
            blocks = stage.get(target.name, ())
            assert len(blocks) == bool((rows, cols)[number % 2])
            for block in blocks:
                delta = np.zeros((out, inner))
                delta[np.ix_(block.rows, block.cols)] = 1
                assert np.any(delta)
                assert np.all(np.any(delta, axis=number % 2)), "one side is whole"
                rho = np.mean(delta == 0)
                scale = min(most, sqrt(1 / (1 - rho))) if lr_scaling else 1.0
                assert block.lr_scale == pytest.approx(scale, rel=1e-12)
                assert (block.rank, block.scale) == (rank, 5 / rank)
    assert plan.trainable_params == rank * rounds * stored
    least, greatest = count_range(parse_choice({"method": "taso", **keys}), profile.targets)
    # The least presumes that every module has a weight in the mask.
    assert least <= plan.trainable_params or len(with_signal(profile, read)) < len(profile.targets)
    assert plan.trainable_params <= greatest


@given(
    profile=profiles(),
    retentions=st.tuples(RETENTIONS, RETENTIONS),
    scope=st.sampled_from(["module", "model"]),
    importance=st.sampled_from(["sensitivity", "gradient", "random"]),
    seed=st.integers(0, 3),
)
@quick
def test_more_retention_never_removes_an_index(
    profile: Profile, retentions: tuple[float, float], scope: str, importance: str, seed: int
) -> None:
    keys = {"scope": scope, "importance": importance, "seed": seed}
    less, more = (core_of(taso(profile, retention=r, **keys)) for r in sorted(retentions))
    for name, (rows, cols) in less.items():
        assert set(rows) <= set(more[name][0])
        assert set(cols) <= set(more[name][1])


@given(profile=profiles(), scope=st.sampled_from(["module", "model"]))
@quick
def test_all_of_the_core_is_lora_in_two_stages(profile: Profile, scope: str) -> None:
    plan = taso(profile, retention=1, scope=scope)
    loud = with_signal(profile, "sensitivity")
    lora = make_plan(parse_choice({"method": "lora", "rank": 1}), loud, None)
    assert plan.trainable_params == 2 * lora.trainable_params
    assert plan.peak_trainable_params == lora.trainable_params


def test_so_little_retention_that_nothing_is_kept_is_a_plan_of_empty_stages() -> None:
    target = TargetModule("m", (1, 9))
    module = ModuleProfile(
        sensitivity_row_count=np.array([[9]]), sensitivity_col_count=np.ones((1, 9), np.int32)
    )
    profile = Profile((target,), 0, (5.0,), {"m": module}, {})
    plan = taso(profile, retention=0.04, rounds=2)
    assert [dict(stage) for stage in plan.stages] == [{}, {}, {}, {}]
    assert plan.trainable_params == plan.peak_trainable_params == 0
    # One index of ten that tie, the matrix's only row, so that the column stages stay empty.
    plan = taso(profile, retention=0.05, rounds=2)
    assert [list(stage) for stage in plan.stages] == [["m"], [], ["m"], []]
    assert plan.trainable_params == 2 * (1 + 9)


# -- Sensitivity-LoRA ------------------------------------------------------------------------------


def ranks_of(plan: Plan) -> list[int]:
    (stage,) = plan.stages
    blocks = [stage.get(target.name, ()) for target in plan.targets]
    return [found[0].rank if found else 0 for found in blocks]


def refused(make: Callable[[], object]) -> str:
    """The one line with which something is refused."""
    with pytest.raises(ChoiceError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


BUDGETS = st.fixed_dictionaries(
    {
        "mean_rank": st.integers(1, 6),
        "min_rank": st.integers(0, 3),
        "budget": st.sampled_from(["ranks", "parameters"]),
        "signal": st.sampled_from(["combined", "global", "local"]),
        "weighting": st.sampled_from(["spread", "equal"]),
        "top_fraction": SHARES,
        "energy": SHARES,
    }
)


@given(profile=profiles(), keys=BUDGETS)
@settings(quick, max_examples=150)
def test_a_scaled_budget_is_met_exactly_and_within_the_bounds(
    profile: Profile, keys: dict[str, Any]
) -> None:
    choice = parse_choice({"method": "sensitivity", **keys})
    assert isinstance(choice, SensitivityChoice)
    low, limits = choice.min_rank, [min(target.shape) for target in profile.targets]
    costs = costs_of(choice, profile)
    total = choice.mean_rank * sum(costs)

    def make() -> Plan:
        return make_plan(choice, profile.targets, profile)

    if low > min(limits):
        assert refused(make).startswith(f"min_rank: {low} is above")
        return
    most = weighed(costs, limits)
    if not low * sum(costs) <= total <= most:
        assert refused(make).startswith(f"mean_rank: a budget of {total} {choice.budget}")
        return
    theta = thetas(diagonals_of(profile), choice)
    if not any(theta):
        theta = [1.0] * len(limits)
    reached = [limit if t else low for t, limit in zip(theta, limits, strict=True)]
    if weighed(costs, reached) < total:
        assert refused(make).startswith(f"mean_rank: {total} {choice.budget} do not fit")
        return
    plan = make()
    ranks = ranks_of(plan)
    assert 0 <= total - weighed(costs, ranks) < max(costs)
    assert all(low <= rank <= limit for rank, limit in zip(ranks, limits, strict=True))
    assert ranks == scaled(theta, low, limits, total, costs)
    scales = {name: block.scale for name, (block,) in plan.stages[0].items()}
    assert scales == {f"m{i}": choice.alpha / rank for i, rank in enumerate(ranks) if rank}
    by_limit = sorted(range(len(limits)), key=lambda i: (limits[i], costs[i], theta[i]))
    for i, j in pairwise(by_limit):
        alike = (limits[i], costs[i]) == (limits[j], costs[j])
        if alike and theta[j] > theta[i] * (1 + 1e-6):
            assert ranks[i] <= ranks[j], "a more sensitive module of the same limit has less rank"
    least, most = count_range(choice, profile.targets)
    assert least <= plan.trainable_params <= most


def costs_of(choice: SensitivityChoice, profile: Profile) -> list[int]:
    """What a rank of each module takes of the budget."""
    by_ranks = choice.budget == "ranks"
    return [1 if by_ranks else sum(target.shape) for target in profile.targets]


def weighed(costs: list[int], ranks: list[int]) -> int:
    return sum(cost * rank for cost, rank in zip(costs, ranks, strict=True))


@given(profile=profiles(), keys=BUDGETS)
@quick
def test_a_progressive_budget_moves_a_third_up_and_a_third_down(
    profile: Profile, keys: dict[str, Any]
) -> None:
    choice = parse_choice(
        {"method": "sensitivity", **keys, "allocation": "progressive", "budget": "ranks"}
    )
    assert isinstance(choice, SensitivityChoice)
    theta = thetas(diagonals_of(profile), choice)
    ascending = sorted(theta)
    # Sensitivities that differ by the noise of float64 alone have no order to speak of.
    assume(all(b == a or b - a > 1e-9 * b for a, b in pairwise(ascending)))
    count = len(theta)
    third = count // 3 if any(theta) else 0
    order = sorted(range(count), key=lambda i: (-theta[i], i))
    expected = [choice.mean_rank] * count
    for i in order[:third]:
        expected[i] += 1
    for i in order[count - third :]:
        expected[i] -= 1
    limits = [min(target.shape) for target in profile.targets]
    inside = all(
        choice.min_rank <= rank <= limit for rank, limit in zip(expected, limits, strict=True)
    )
    if inside and choice.min_rank <= choice.mean_rank:
        assert ranks_of(make_plan(choice, profile.targets, profile)) == expected
    else:
        line = refused(lambda: make_plan(choice, profile.targets, profile))
        assert line.startswith(("mean_rank: ", "min_rank: "))


@given(profile=profiles(), mean_rank=st.integers(1, 6))
@quick
def test_a_uniform_budget_is_lora(profile: Profile, mean_rank: int) -> None:
    uniform = {"method": "sensitivity", "allocation": "uniform", "mean_rank": mean_rank}
    made = [
        lambda: make_plan(parse_choice(uniform), profile.targets, profile),
        lambda: make_plan(
            parse_choice({"method": "lora", "rank": mean_rank}), profile.targets, profile
        ),
    ]
    if mean_rank > rank_limit(profile):
        assert [refused(make).startswith(("mean_rank: ", "rank: ")) for make in made] == [True] * 2
    else:
        assert made[0]().digest == made[1]().digest


@pytest.mark.parametrize("allocation", ["scaled", "progressive"])
@pytest.mark.parametrize("mean_rank", [1, 2])
def test_a_budget_below_the_least_of_every_module_is_refused(
    allocation: str, mean_rank: int
) -> None:
    targets = tuple(TargetModule(f"m{i}", (9, 9)) for i in range(4))
    alike = {t.name: ModuleProfile(hessian_diag=np.ones(9, np.float32)) for t in targets}
    profile = Profile(targets, 0, (), alike, {})
    keys = {"mean_rank": mean_rank, "min_rank": 3, "allocation": allocation}
    choice = parse_choice({"method": "sensitivity", **keys})
    line = refused(lambda: make_plan(choice, targets, profile))
    assert line == refused(lambda: count_range(choice, targets))
    assert "min_rank" in line
    assert str(4 * mean_rank if allocation == "scaled" else mean_rank) in line


# -- joint -----------------------------------------------------------------------------------------


def planned_or_refused(choice: Choice, profile: Profile) -> Plan | str:
    """The plan of a choice, or the line with which it is refused."""
    try:
        return make_plan(choice, profile.targets, profile)
    except ChoiceError as error:
        return str(error)


@given(
    profile=profiles(),
    keys=BUDGETS,
    rule=st.sampled_from(["hits", "cumulative", "top", "all"]),
    threshold=SHARES,
    retention=RETENTIONS,
    supplementary=st.integers(0, 4),
    own=st.booleans(),
    most=st.sampled_from([1.0, 1.7, 4.0]),
)
@quick
def test_joint_is_its_three_parts_put_together(
    profile: Profile,
    keys: dict[str, Any],
    rule: str,
    threshold: float,
    retention: float,
    supplementary: int,
    own: bool,
    most: float,
) -> None:
    parts = {
        "partition": {"rule": rule, "threshold": threshold},
        "retention": retention,
        "supplementary_rank": supplementary,
        "supplementary_scale": "own" if own else "dominant",
        "max_lr_scale": most,
    }
    budget = parse_choice({"method": "sensitivity", **keys})
    choice = parse_choice({"method": "joint", **keys, **parts})
    alone, together = (planned_or_refused(one, profile) for one in (budget, choice))
    if isinstance(alone, str) or isinstance(together, str):
        assert alone == together, "an impossible budget is refused in the same words"
        return
    ranks = ranks_of(alone)
    (stage,) = together.stages
    for target, rank in zip(profile.targets, ranks, strict=True):
        out, inner = target.shape
        module = profile.modules[target.name]
        assert module.sensitivity_col_count is not None
        counts = [Fraction(int(n), out) for n in module.sensitivity_col_count[0]]
        ranked = sorted(range(inner), key=lambda j: (-counts[j], j))
        cols = sorted(ranked[: floor(retention * inner + 0.5)])
        if not any(counts) and retention < 1:
            cols = []
        dominant = (
            list(range(out)) if rule == "all" else dominant_rows(rule, threshold, module, STEPS)
        )
        others = [row for row in range(out) if row not in dominant]
        wanted = [(rank, dominant), (min(supplementary, rank), others)]
        expected = [(r, rows, cols) for r, rows in wanted if r and rows and cols]
        blocks = stage.get(target.name, ())
        assert [(b.rank, b.rows.tolist(), b.cols.tolist()) for b in blocks] == expected
        for block in blocks:
            read = np.zeros(inner)
            read[cols] = 1
            factor = min(most, sqrt(1 / np.mean(read)))
            assert block.lr_scale == pytest.approx(factor, rel=1e-12)
            assert block.scale == choice.as_dict()["alpha"] / (block.rank if own else rank)
