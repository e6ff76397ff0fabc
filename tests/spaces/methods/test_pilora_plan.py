"""PiLoRA's partitions against a brute force written from the paper."""

from __future__ import annotations

from dataclasses import replace
from math import floor
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

THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.999, 1.0)


def dominant_rows(rule: str, threshold: float, module: ModuleProfile, steps: int) -> list[int]:
    """M by the paper and the resolutions of its ambiguities, one row at a time."""
    assert module.hits is not None
    assert module.row_importance is not None
    hits = [int(h) for h in module.hits]
    importance = [float(s) for s in module.row_importance]
    if rule == "hits":
        return [i for i, h in enumerate(hits) if h / steps > threshold]
    order = sorted(range(len(importance)), key=lambda i: (-importance[i], i))
    if sum(importance) == 0:
        return []
    if rule == "top":
        return sorted(order[: floor(threshold * len(order) + 0.5)])
    total = 0.0
    for i in order:
        total += importance[i]
    taken: list[int] = []
    held = 0.0
    while held / total < threshold:
        taken.append(order[len(taken)])
        held += importance[taken[-1]]
    return sorted(taken)


def partition_of(plan: Plan, name: str, out: int) -> tuple[list[int], list[int]]:
    """Rows of the blocks with the dominant rank 4 and with the supplementary rank 1."""
    blocks = {block.rank: block.rows.tolist() for block in plan.stages[0].get(name, ())}
    assert set(blocks) <= {4, 1}
    return blocks.get(4, []), blocks.get(1, [])


@pytest.mark.parametrize("rule", ["hits", "cumulative", "top"])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("levels", [0, 3])
def test_partition_equals_brute_force(rule: str, threshold: float, levels: int) -> None:
    for seed in range(5):
        profile = drawn_profile(seed=seed, levels=levels)
        choice = {"rank": 4, "partition": {"rule": rule, "threshold": threshold}}
        plan = make_plan(parse_choice({"method": "pilora", **choice}), SMALL, profile)
        for target in SMALL:
            expected = dominant_rows(rule, threshold, profile.modules[target.name], 10)
            rest = [i for i in range(target.shape[0]) if i not in expected]
            assert partition_of(plan, target.name, target.shape[0]) == (expected, rest)


def one_module(importance: list[float], hits: list[int] | None = None, steps: int = 10) -> Profile:
    target = TargetModule("m", (len(importance), 4))
    module = ModuleProfile(
        hits=None if hits is None else np.array(hits),
        row_importance=np.array(importance, dtype=np.float32),
    )
    return Profile((target,), steps, (), {"m": module}, {})


def rows_of(profile: Profile, rule: str, threshold: float, **keys: Any) -> list[int]:
    choice = {
        "method": "pilora",
        "rank": 2,
        "supplementary_rank": 0,
        "partition": {"rule": rule, "threshold": threshold},
        **keys,
    }
    plan = make_plan(parse_choice(choice), profile.targets, profile)
    blocks = plan.stages[0].get("m", ())
    return blocks[0].rows.tolist() if blocks else []


def test_a_share_reached_exactly_is_enough() -> None:
    assert rows_of(one_module([1, 4, 2, 3]), "cumulative", 0.7) == [1, 3]


def test_equal_importance_goes_to_the_lower_row() -> None:
    assert rows_of(one_module([2, 5, 2, 2, 5]), "cumulative", 0.7) == [0, 1, 4]
    assert rows_of(one_module([2, 5, 2, 2, 5]), "top", 0.6) == [0, 1, 4]


def test_a_hit_rate_at_the_threshold_is_not_above_it() -> None:
    assert rows_of(one_module([1, 1, 1], [3, 4, 2]), "hits", 0.3) == [1]


def test_top_rounds_half_up() -> None:
    assert rows_of(one_module([5, 4, 3, 2, 1]), "top", 0.5) == [0, 1, 2]
    assert rows_of(one_module([4, 3, 2, 1, 0, 0]), "top", 0.4) == [0, 1]


@pytest.mark.parametrize("rule", ["cumulative", "top", "random"])
def test_zero_importance_makes_nothing_dominant(rule: str) -> None:
    profile = one_module([0, 0, 0, 0])
    plan = make_plan(
        parse_choice({"method": "pilora", "rank": 2, "partition": {"rule": rule}}),
        profile.targets,
        profile,
    )
    (block,) = plan.stages[0]["m"]
    assert (block.rank, block.rows.tolist(), block.scale) == (1, [0, 1, 2, 3], 16 / 2)


def test_scale_is_that_of_the_dominant_rank_in_both_blocks() -> None:
    choice = {"method": "pilora", "rank": 4, "supplementary_rank": 2, "alpha": 6}
    plan = make_plan(parse_choice(choice), SMALL, drawn_profile())
    blocks = [block for blocks in plan.stages[0].values() for block in blocks]
    assert {block.rank for block in blocks} == {4, 2}
    assert {(block.scale, block.lr_scale) for block in blocks} == {(6 / 4, 1.0)}


def test_random_takes_as_many_rows_as_top_and_follows_its_seed() -> None:
    profile = drawn_profile()

    def rows(rule: str, seed: int) -> list[list[int]]:
        partition = {"rule": rule, "threshold": 0.4}
        choice = {"rank": 4, "supplementary_rank": 0, "partition": partition, "seed": seed}
        plan = make_plan(parse_choice({"method": "pilora", **choice}), SMALL, profile)
        return [block.rows.tolist() for (block,) in plan.stages[0].values()]

    assert [len(r) for r in rows("random", 0)] == [len(r) for r in rows("top", 0)]
    assert rows("random", 0) == rows("random", 0)
    assert rows("random", 0) != rows("random", 1)
    query, other = rows("random", 0)[0], rows("random", 0)[2]
    assert query != other, "modules of one shape must not share one draw"


def test_random_is_unbiased_over_rows() -> None:
    target = (TargetModule("m", (10, 4)),)
    counts = np.zeros(10)
    for seed in range(400):
        choice = {"rank": 1, "supplementary_rank": 0, "seed": seed}
        partition = {"rule": "random", "threshold": 0.3}
        plan = make_plan(
            parse_choice({"method": "pilora", "partition": partition, **choice}), target, None
        )
        counts[plan.stages[0]["m"][0].rows] += 1
    assert counts.sum() == 1200
    assert np.all(np.abs(counts - 120) < 5 * np.sqrt(400 * 0.3 * 0.7))


@given(data=st.data(), rule=st.sampled_from(["hits", "cumulative"]), threshold=st.floats(0, 1))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_count_range_holds_for_any_statistics(
    data: st.DataObject, rule: str, threshold: float
) -> None:
    out, inner = data.draw(st.integers(2, 9)), data.draw(st.integers(2, 9))
    hits = data.draw(st.lists(st.integers(0, 7), min_size=out, max_size=out))
    importance = data.draw(st.lists(st.integers(0, 3), min_size=out, max_size=out))
    target = TargetModule("m", (out, inner))
    module = ModuleProfile(hits=np.array(hits), row_importance=np.array(importance))
    profile = Profile((target,), 7, (), {"m": module}, {})
    choice = parse_choice(
        {
            "method": "pilora",
            "rank": 2,
            "supplementary_rank": data.draw(st.integers(0, 2)),
            "partition": {"rule": rule, "threshold": threshold},
        }
    )
    least, most = count_range(choice, (target,))
    assert least <= make_plan(choice, (target,), profile).trainable_params <= most


def test_count_range_of_cumulative_is_reached() -> None:
    target = TargetModule("m", (10, 6))
    choice = parse_choice(
        {"method": "pilora", "rank": 3, "partition": {"rule": "cumulative", "threshold": 0.7}}
    )
    counts = {
        make_plan(choice, (target,), replace(one, targets=(target,))).trainable_params
        for one in (
            Profile((target,), 1, (), {"m": ModuleProfile(row_importance=importance)}, {})
            for importance in np.array([np.ones(10), np.zeros(10), np.eye(10)[0]], np.float32)
        )
    }
    assert (min(counts), max(counts)) == count_range(choice, (target,))


def test_a_given_dominant_fraction_fixes_the_count() -> None:
    choice = parse_choice({"method": "pilora", "rank": 4, "supplementary_rank": 1})
    expected = 0
    for target in SMALL:
        out, inner = target.shape
        dominant = floor(0.45 * out + 0.5)
        expected += 4 * (dominant + inner) + (out - dominant + inner)
    assert count_range(choice, SMALL, 0.45) == (expected, expected)
    with pytest.raises(ChoiceError, match=r"dominant_fraction: 1\.5"):
        count_range(choice, SMALL, 1.5)


def test_supplementary_rank_above_rank_is_refused() -> None:
    with pytest.raises(ChoiceError, match=r"^supplementary_rank: 9 is above rank 8"):
        parse_choice({"method": "pilora", "supplementary_rank": 9})


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_threshold_outside_its_range_is_refused(threshold: float) -> None:
    with pytest.raises(ChoiceError, match=r"^partition\.threshold: "):
        parse_choice({"method": "pilora", "partition": {"threshold": threshold}})


def test_hits_of_no_scored_step_are_refused() -> None:
    profile = one_module([1, 2], [0, 0], steps=0)
    with pytest.raises(ProfileError, match="scored_steps: 0"):
        rows_of(profile, "hits", 0.5)


def test_a_profile_without_hits_serves_the_other_rules() -> None:
    profile = one_module([1, 2])
    assert rows_of(profile, "top", 0.5) == [1]
    with pytest.raises(ProfileError, match="m/hits: not in the profile"):
        rows_of(profile, "hits", 0.5)
