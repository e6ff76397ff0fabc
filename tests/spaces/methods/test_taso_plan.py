"""TASO's cores against a brute force written from the paper, with exact fractions."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import floor, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces.errors import ChoiceError, ProfileError
from spaces.methods.registry import count_range, make_plan, parse_choice
from spaces.plan import Plan
from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule
from tests.spaces.example_profiles import SMALL, drawn_profile

Core = dict[str, tuple[list[int], list[int]]]


def core(profile: Profile, keys: dict[str, Any]) -> Core:
    """Core rows and columns by ranking every (u, module, rows first, index) of the scope.

    Of a module without any count nothing is in the core.
    """
    line = profile.top_percent_grid.index(keys.get("top_percent", 5))
    kind = keys.get("importance", "sensitivity")
    ranked: list[tuple[Fraction, int, int, int]] = []
    silent = set()
    for number, target in enumerate(profile.targets):
        out, inner = target.shape
        rows = getattr(profile.modules[target.name], f"{kind}_row_count")[line]
        cols = getattr(profile.modules[target.name], f"{kind}_col_count")[line]
        if not any(rows) and not any(cols):
            silent.add(number)
        ranked += [(-Fraction(int(n), inner), number, 0, i) for i, n in enumerate(rows)]
        ranked += [(-Fraction(int(n), out), number, 1, j) for j, n in enumerate(cols)]
    if keys.get("scope") == "model":
        pools = [ranked]
    else:
        pools = [[e for e in ranked if e[1] == n] for n in range(len(profile.targets))]
    taken = [
        entry
        for pool in pools
        for entry in sorted(pool)[: floor(keys.get("retention", 0.1) * len(pool) + 0.5)]
        if entry[1] not in silent
    ]
    return {
        target.name: (
            sorted(i for _, n, axis, i in taken if n == number and axis == 0),
            sorted(i for _, n, axis, i in taken if n == number and axis == 1),
        )
        for number, target in enumerate(profile.targets)
    }


def core_of(plan: Plan) -> Core:
    """Rows of the first stage and columns of the second."""
    rows, cols = plan.stages[:2]
    return {
        target.name: (
            [i for block in rows.get(target.name, ()) for i in block.rows.tolist()],
            [j for block in cols.get(target.name, ()) for j in block.cols.tolist()],
        )
        for target in plan.targets
    }


def planned(profile: Profile, **keys: Any) -> Plan:
    return make_plan(parse_choice({"method": "taso", **keys}), profile.targets, profile)


@pytest.mark.parametrize("scope", ["module", "model"])
@pytest.mark.parametrize("importance", ["sensitivity", "gradient"])
@pytest.mark.parametrize("retention", [0.01, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("levels", [0, 1, 3])
def test_core_equals_brute_force(
    scope: str, importance: str, retention: float, levels: int
) -> None:
    keys = {"scope": scope, "importance": importance, "retention": retention, "top_percent": 2}
    profile = drawn_profile(seed=levels, levels=levels)
    assert core_of(planned(profile, **keys)) == core(profile, keys)


def square(rows: list[int], cols: list[int], name: str = "m") -> tuple[TargetModule, ModuleProfile]:
    module = ModuleProfile(
        sensitivity_row_count=np.array([rows]), sensitivity_col_count=np.array([cols])
    )
    return TargetModule(name, (len(rows), len(cols))), module


def profile_of(*modules: tuple[TargetModule, ModuleProfile]) -> Profile:
    targets = tuple(target for target, _ in modules)
    return Profile(targets, 0, (5,), {target.name: module for target, module in modules}, {})


def test_ties_go_to_rows_before_columns_and_to_the_lower_index() -> None:
    profile = profile_of(square([1, 2, 2, 2], [2, 2, 0, 0]))
    assert core_of(planned(profile, retention=0.25))["m"] == ([1, 2], [])
    assert core_of(planned(profile, retention=0.5))["m"] == ([1, 2, 3], [0])


def test_equal_densities_of_unlike_sides_tie() -> None:
    # One entry in a column of 3 is as dense as two in a row of 6: rows first, for all rounding.
    profile = profile_of(square([0, 2, 2], [1, 0, 1, 0, 0, 1]))
    assert core_of(planned(profile, retention=3 / 9))["m"] == ([1, 2], [0])


def test_ties_of_the_model_go_to_the_earlier_module() -> None:
    profile = profile_of(square([0, 2], [2, 0], "a"), square([2, 0], [2, 2], "b"))
    cores = core_of(planned(profile, retention=3 / 8, scope="model"))
    assert cores == {"a": ([1], [0]), "b": ([0], [])}


def test_a_module_without_a_core_sits_its_stage_out() -> None:
    profile = profile_of(square([4, 4, 0, 0], [0, 0, 0, 0], "a"), square([0] * 4, [0] * 4, "b"))
    plan = planned(profile, retention=2 / 16, scope="model", rounds=2)
    assert [list(stage) for stage in plan.stages] == [["a"], [], ["a"], []]
    assert plan.trainable_params == 2 * (2 + 4)
    assert plan.peak_trainable_params == 2 + 4


@pytest.mark.parametrize("scope", ["module", "model"])
@pytest.mark.parametrize("importance", ["sensitivity", "gradient", "random"])
def test_a_module_without_signal_has_no_core_at_any_retention(scope: str, importance: str) -> None:
    silent = ModuleProfile(
        sensitivity_row_count=np.zeros((1, 3), int), sensitivity_col_count=np.zeros((1, 3), int),
        gradient_row_count=np.zeros((1, 3), int), gradient_col_count=np.zeros((1, 3), int),
    )  # fmt: skip
    target, loud = square([1, 0, 0], [0, 0, 1], "b")
    loud = replace(
        loud,
        gradient_row_count=loud.sensitivity_row_count,
        gradient_col_count=loud.sensitivity_col_count,
    )
    profile = profile_of((TargetModule("a", (3, 3)), silent), (target, loud))
    for retention in (0.2, 0.6, 1):
        plan = planned(profile, retention=retention, scope=scope, importance=importance)
        assert core_of(plan)["a"] == ([], [])
        assert sum(map(len, core_of(plan)["b"])) > 0


def test_an_empty_core_is_told_by_the_importance_that_is_read() -> None:
    target, module = square([0, 0], [0, 0])
    module = replace(
        module, gradient_row_count=np.array([[1, 0]]), gradient_col_count=np.array([[1, 0]])
    )
    profile = profile_of((target, module))
    assert core_of(planned(profile, retention=0.5))["m"] == ([], [])
    assert core_of(planned(profile, retention=0.5, importance="gradient"))["m"] == ([0], [0])


@pytest.mark.parametrize(
    ("most", "factors"), [(1e6, (10, 5)), (7, (7, 5)), (4, (4, 4)), (1, (1, 1))]
)
def test_the_learning_rate_factor_is_bounded(most: float, factors: tuple[int, int]) -> None:
    # One of 100 rows and one of 25 columns: without a bound 10 and 5.
    target = TargetModule("m", (100, 25))
    module = ModuleProfile(
        sensitivity_row_count=np.eye(1, 100, 7, dtype=int) * 25,
        sensitivity_col_count=np.eye(1, 25, 3, dtype=int) * 100,
    )
    plan = planned(profile_of((target, module)), retention=2 / 125, max_lr_scale=most)
    assert tuple(block.lr_scale for stage in plan.stages for block in stage["m"]) == factors


def test_stages_that_train_all_steps_make_another_plan_as_many_times_as_long() -> None:
    profile = drawn_profile()
    split, full = (planned(profile, rounds=2, stage_steps=steps) for steps in ("split", "full"))
    assert (split.length, full.length) == (1, 4)
    assert (split.summary().get("length"), full.summary()["length"]) == (None, 4)
    assert split.digest != full.digest
    assert split.digest == planned(profile, rounds=2).digest
    again = Plan.from_bytes(full.to_bytes())
    assert (again.digest, again.length) == (full.digest, 4)


def test_stages_alternate_rows_and_columns_and_scale_the_learning_rate() -> None:
    profile = drawn_profile()
    plan = planned(profile, retention=0.3, rounds=2, rank=2, alpha=3)
    assert len(plan.stages) == 4
    for number, stage in enumerate(plan.stages):
        for target in SMALL:
            out, inner = target.shape
            rows, cols = core(profile, {"retention": 0.3})[target.name]
            expected = (rows, list(range(inner))) if number % 2 == 0 else (list(range(out)), cols)
            if not (rows, cols)[number % 2]:
                assert target.name not in stage
                continue
            (block,) = stage[target.name]
            assert (block.rows.tolist(), block.cols.tolist()) == expected
            delta = np.zeros((out, inner))
            delta[np.ix_(*expected)] = 1
            rho = np.mean(delta == 0)
            assert block.lr_scale == pytest.approx(min(4, sqrt(1 / (1 - rho))), rel=1e-12)
            assert (block.rank, block.scale) == (2, 1.5)


def test_learning_rate_scaling_can_be_left_out() -> None:
    plan = planned(drawn_profile(), lr_scaling=False)
    assert {b.lr_scale for stage in plan.stages for (b,) in stage.values()} == {1.0}


@pytest.mark.parametrize("scope", ["module", "model"])
def test_random_keeps_the_size_of_each_core(scope: str) -> None:
    profile = drawn_profile(seed=3)
    keys = {"retention": 0.3, "scope": scope}
    expected = core(profile, keys)
    drawn = [
        core_of(planned(profile, importance="random", seed=seed, **keys)) for seed in (0, 0, 1)
    ]
    for one in drawn:
        for name, (rows, cols) in expected.items():
            assert (len(one[name][0]), len(one[name][1])) == (len(rows), len(cols))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert drawn[0] != expected


@given(data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_count_range_of_one_module_is_reached(data: st.DataObject) -> None:
    out, inner = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    retention = data.draw(st.floats(0.01, 1))
    kept = floor(retention * (out + inner) + 0.5)
    splits = [r for r in range(out + 1) if 0 <= kept - r <= inner]
    counts = [(r + inner if r else 0) + (out + kept - r if kept - r else 0) for r in splits]
    choice = parse_choice({"method": "taso", "retention": retention})
    assert count_range(choice, (TargetModule("m", (out, inner)),)) == (min(counts), max(counts))


@pytest.mark.parametrize("most", [0, 0.99, True, float("inf")])
def test_a_bound_that_would_slow_training_down_is_refused(most: Any) -> None:
    with pytest.raises(ChoiceError, match=r"^max_lr_scale: "):
        parse_choice({"method": "taso", "max_lr_scale": most})


@pytest.mark.parametrize("retention", [0, -0.1, 1.01])
def test_retention_outside_its_range_is_refused(retention: float) -> None:
    with pytest.raises(ChoiceError, match=r"^retention: "):
        parse_choice({"method": "taso", "retention": retention})


def test_a_percentage_outside_the_grid_names_the_grid() -> None:
    with pytest.raises(ProfileError, match=r"top_percent: 3 .*\[1, 2, 5, 10\]"):
        planned(drawn_profile(), top_percent=3)


def test_the_profile_must_hold_the_counts_that_are_read() -> None:
    profile = profile_of(square([1, 2], [2, 1]))
    with pytest.raises(ProfileError, match="m/gradient_row_count: not in the profile"):
        planned(profile, importance="gradient")
