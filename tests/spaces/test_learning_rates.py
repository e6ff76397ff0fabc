"""Ranges of learning rates that give methods first updates of the same sizes."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import yaml

from spaces.domain import Range
from spaces.features import plan_features
from spaces.learning_rates import HIGH, LOW, range_of_first_updates
from spaces.methods.registry import METHODS, make_plan, parse_choice
from spaces.search_space import SearchSpace
from spaces.target import TargetModule
from tests.spaces.example_profiles import GRID, drawn_profile

LLAMA = tuple(
    TargetModule(f"{layer}.{name}", shape)
    for layer in range(2)
    for name, shape in (
        ("q", (256, 256)),
        ("k", (64, 256)),
        ("up", (688, 256)),
        ("down", (256, 688)),
    )
)
OF_BLOCKS = [name for name, method in METHODS.items() if not method.baseline]


def space(text: str) -> SearchSpace:
    return SearchSpace.parse(yaml.safe_load(text))


def rates(of: SearchSpace, name: str) -> Range:
    domain = of.domains[name]["learning_rate"]
    assert isinstance(domain, Range)
    assert domain.log
    return domain


@pytest.mark.parametrize(
    ("choice", "square"),
    # The square of a first update at rate 1, times 3 / out, by the formula of `plan_features`: the
    # sum of (lr_scale scale)^2 (share of rows) (share of columns) rank over all blocks.
    [
        ({"method": "lora"}, 2**2 * 8),
        ({"method": "lora", "rank": 32, "alpha": 64}, 2**2 * 32),
        ({"method": "pilora"}, 2**2 * (8 / 2 + 1 / 2)),
        ({"method": "pilora", "partition": {"rule": "all"}}, 2**2 * 8),
        ({"method": "pilora", "supplementary_scale": "own"}, 2**2 * 8 / 2 + 16**2 / 2),
        ({"method": "taso"}, 16**2 * 2),
        ({"method": "taso", "alpha": 1.0, "rounds": 4}, 8),
        ({"method": "taso", "lr_scaling": False}, 16**2 * 2 * 0.1),
        ({"method": "taso", "retention": 0.02}, 16**2 * 2 * 0.02 * 4**2),
        ({"method": "sensitivity"}, 4**2 * 4),
        ({"method": "joint"}, 4**2 * (4 / 2 + 1 / 2)),
        ({"method": "joint", "retention": 1.0, "partition": {"rule": "all"}}, 4**2 * 4),
    ],
)
def test_a_range_is_as_far_from_loras_as_the_formula_of_first_updates_says(
    choice: dict[str, Any], square: float
) -> None:
    found = range_of_first_updates(parse_choice(choice))
    factor = sqrt(2**2 * 8 / square)
    assert found.low == pytest.approx(LOW * factor, rel=6e-3)
    assert found.high == pytest.approx(HIGH * factor, rel=6e-3)


@pytest.mark.parametrize("name", OF_BLOCKS)
def test_first_updates_of_a_methods_default_are_loras_on_a_base_of_other_shapes(name: str) -> None:
    """Within what a profile makes of shares of rows and columns that the range takes as halves."""
    of, profile = SearchSpace.parse(None).fitted(LLAMA, GRID), drawn_profile(LLAMA)
    sizes = []
    for each in ("lora", name):
        plan = make_plan(of.default_choice(each), LLAMA, profile)
        low = plan_features(plan, rates(of, each).low, profile)
        sizes.append(10 ** low["log10_first_update"])
    assert sizes[1] == pytest.approx(sizes[0], rel=0.3)


def test_a_base_or_a_profile_that_is_not_there_yet_changes_no_range() -> None:
    parsed = SearchSpace.parse(None)
    assert parsed.fitted((), GRID).domains == parsed.fitted(LLAMA, GRID).domains
    for name in OF_BLOCKS:
        assert rates(parsed, name) == rates(parsed.fitted(LLAMA), name)


def test_a_range_follows_what_is_written_of_the_method_and_what_fits() -> None:
    assert rates(space("methods: [lora]"), "lora") == Range(LOW, HIGH, log=True)
    taso, scaled = space("methods: [taso]"), space("methods: {taso: {alpha: 1}}")
    assert rates(scaled, "taso").low == pytest.approx(16 * rates(taso, "taso").low, rel=1e-2)
    narrow = space("methods: [lora]").fitted((TargetModule("m", (2, 40)),))
    assert rates(narrow, "lora").low == pytest.approx(LOW * 2, rel=1e-2)  # rank 2 in place of 8
    huge = space("methods: {lora: {rank: 100000}}")  # no matrix at hand can take it
    assert rates(huge, "lora") == Range(LOW, HIGH, log=True)


def test_learning_rates_that_are_written_hold_for_every_method() -> None:
    of = space(
        "{learning_rate: {low: 1.0e-4, high: 1.0e-3, log: true}, methods: [taso, dora, joint]}"
    )
    for name in of.methods:
        assert rates(of.fitted(LLAMA, GRID), name) == Range(1e-4, 1e-3, log=True)
    own = space(
        "methods: {taso: {learning_rate: {low: 1.0e-3, high: 2.0e-3, log: true}}, joint: {}}"
    )
    assert rates(own.fitted(LLAMA, GRID), "taso") == Range(1e-3, 2e-3, log=True)
    assert rates(own, "joint") != rates(own, "lora")


def test_baselines_have_loras_range_or_their_own() -> None:
    of = space(f"methods: [{', '.join(METHODS)}]")
    for name, method in METHODS.items():
        if method.baseline and "learning_rate" not in method.default_space:
            assert rates(of, name) == Range(LOW, HIGH, log=True)
