"""The joint method against a brute force put together from its three parts."""

from __future__ import annotations

from math import floor, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces.errors import ChoiceError, ProfileError
from spaces.methods.joint import JointChoice
from spaces.methods.registry import count_range, make_plan, parse_choice
from spaces.plan import Block, Plan
from spaces.target import TargetModule
from tests.spaces.example_profiles import GRID, SMALL, drawn_profile
from tests.spaces.methods.test_pilora_plan import dominant_rows
from tests.spaces.methods.test_sensitivity_plan import diagonals_of, scaled, thetas


def core_cols(counts: np.ndarray, retention: float) -> list[int]:
    order = sorted(range(len(counts)), key=lambda j: (-int(counts[j]), j))
    return sorted(order[: floor(retention * len(counts) + 0.5)])


def planned(**keys: Any) -> tuple[JointChoice, Plan]:
    choice = parse_choice({"method": "joint", **keys})
    assert isinstance(choice, JointChoice)
    return choice, make_plan(choice, SMALL, drawn_profile(seed=5, levels=keys.get("seed", 0)))


@pytest.mark.parametrize("rule", ["hits", "cumulative", "top"])
@pytest.mark.parametrize("retention", [0.1, 0.5, 1])
@pytest.mark.parametrize("supplementary_rank", [0, 1, 3])
@pytest.mark.parametrize("levels", [0, 2])
def test_plan_equals_brute_force(
    rule: str, retention: float, supplementary_rank: int, levels: int
) -> None:
    choice, plan = planned(
        partition={"rule": rule, "threshold": 0.4},
        retention=retention,
        supplementary_rank=supplementary_rank,
        top_percent=2,
        mean_rank=3,
        seed=levels,
        alpha=5,
    )
    profile = drawn_profile(seed=5, levels=levels)
    limits = [min(target.shape) for target in SMALL]
    ranks = scaled(thetas(diagonals_of(profile), choice), 1, limits, 3 * len(SMALL))
    (stage,) = plan.stages
    for target, rank in zip(SMALL, ranks, strict=True):
        module = profile.modules[target.name]
        out, inner = target.shape
        rows = dominant_rows(rule, 0.4, module, 10)
        others = [i for i in range(out) if i not in rows]
        assert module.sensitivity_col_count is not None
        cols = core_cols(module.sensitivity_col_count[GRID.index(2)], retention)
        expected = [
            (r, wanted, cols)
            for r, wanted in ((rank, rows), (min(supplementary_rank, rank), others))
            if r and wanted
        ]
        blocks = stage.get(target.name, ())
        assert [(b.rank, b.rows.tolist(), b.cols.tolist()) for b in blocks] == expected
        for block in blocks:
            assert block.scale == 5 / rank
            assert block.lr_scale == pytest.approx(sqrt(inner / len(cols)), rel=1e-12)


def described(blocks: tuple[Block, ...]) -> list[tuple[Any, ...]]:
    return [(b.rank, b.rows.tolist(), b.cols.tolist(), b.scale, b.lr_scale) for b in blocks]


def test_switched_off_it_is_lora() -> None:
    choice = parse_choice(
        {
            "method": "joint",
            "allocation": "uniform",
            "mean_rank": 4,
            "partition": {"rule": "all"},
            "retention": 1,
        }
    )
    lora = make_plan(parse_choice({"method": "lora", "rank": 4}), SMALL, None)
    assert make_plan(choice, SMALL, None).digest == lora.digest


@pytest.mark.parametrize(
    ("part", "keys"),
    [
        ("sensitivity", {"partition": {"rule": "all"}, "retention": 1}),
        ("pilora", {"allocation": "uniform", "retention": 1}),
    ],
)
def test_with_one_part_on_it_is_that_part(part: str, keys: dict[str, Any]) -> None:
    alone = {"sensitivity": {"mean_rank": 3}, "pilora": {"rank": 3}}[part]
    profile = drawn_profile(seed=8)
    single = make_plan(parse_choice({"method": part, **alone}), SMALL, profile)
    joint = make_plan(parse_choice({"method": "joint", "mean_rank": 3, **keys}), SMALL, profile)
    assert joint.digest == single.digest


def test_no_column_kept_leaves_the_module_out() -> None:
    _, plan = planned(retention=0.03, mean_rank=2)
    kept = {target.name for target in SMALL if floor(0.03 * target.shape[1] + 0.5)}
    assert set(plan.stages[0]) == kept
    assert kept


@given(
    allocation=st.sampled_from(["scaled", "progressive", "uniform"]),
    mean_rank=st.integers(2, 4),
    min_rank=st.integers(0, 2),
    supplementary_rank=st.integers(0, 9),
    rule=st.sampled_from(["hits", "cumulative", "top", "random", "all"]),
    threshold=st.floats(0.01, 1),
    retention=st.floats(0.01, 1),
    seed=st.integers(0, 20),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_count_lies_within_count_range(
    allocation: str,
    mean_rank: int,
    min_rank: int,
    supplementary_rank: int,
    rule: str,
    threshold: float,
    retention: float,
    seed: int,
) -> None:
    choice = parse_choice(
        {
            "method": "joint",
            "allocation": allocation,
            "mean_rank": mean_rank,
            "min_rank": min(min_rank, mean_rank - 1),
            "supplementary_rank": supplementary_rank,
            "partition": {"rule": rule, "threshold": threshold},
            "retention": retention,
        }
    )
    plan = make_plan(choice, SMALL, drawn_profile(seed=seed))
    least, most = count_range(choice, SMALL)
    assert least <= plan.trainable_params <= most


def test_count_range_is_exact_where_every_part_is_known() -> None:
    choice = parse_choice(
        {"method": "joint", "allocation": "uniform", "mean_rank": 4, "retention": 0.5}
    )
    targets = (TargetModule("m", (10, 6)),)
    # 6 of 10 rows at rank 4 and 4 at rank 1, each over 3 columns.
    assert count_range(choice, targets, 0.6) == (4 * (6 + 3) + 1 * (4 + 3),) * 2
    least, most = count_range(choice, targets)
    assert least < most


def test_what_is_switched_off_is_not_read() -> None:
    profile = drawn_profile()
    keys = {"method": "joint", "mean_rank": 2, "top_percent": 3}
    assert make_plan(parse_choice({**keys, "retention": 1}), SMALL, profile).stages[0]
    with pytest.raises(ProfileError, match="top_percent: 3 "):
        make_plan(parse_choice(keys), SMALL, profile)


def test_a_budget_above_the_matrices_is_refused() -> None:
    with pytest.raises(ChoiceError, match="mean_rank: a budget of 140 ranks"):
        planned(mean_rank=20)
