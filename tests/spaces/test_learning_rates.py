"""Ranges of learning rates that give methods first updates of the same sizes."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import yaml

from spaces.domain import Range
from spaces.features import plan_features
from spaces.learning_rates import LARGEST, SMALLEST, range_of_first_updates
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
def test_a_range_holds_the_first_updates_that_the_formula_says(
    choice: dict[str, Any], square: float
) -> None:
    found = range_of_first_updates(parse_choice(choice), LLAMA)
    at_rate_one = sqrt(square * sum(target.shape[0] for target in LLAMA) / 3)
    assert found.low * at_rate_one == pytest.approx(SMALLEST, rel=6e-3)
    assert found.high * at_rate_one == pytest.approx(LARGEST, rel=6e-3)


@pytest.mark.parametrize("name", OF_BLOCKS)
def test_first_updates_of_a_methods_plan_are_of_these_sizes(name: str) -> None:
    """Within what a profile makes of shares of rows and columns that the range takes as halves."""
    of, profile = SearchSpace.parse(None).fitted(LLAMA, GRID), drawn_profile(LLAMA)
    plan = make_plan(of.default_choice(name), LLAMA, profile)
    for rate, size in ((rates(of, name).low, SMALLEST), (rates(of, name).high, LARGEST)):
        found = plan_features(plan, rate, profile)["log10_first_update"]
        assert 10**found == pytest.approx(size, rel=0.3)


def test_the_larger_a_base_is_the_lower_are_its_rates_whatever_else_is_known() -> None:
    parsed = SearchSpace.parse(None)
    assert parsed.fitted((), GRID) == parsed.fitted(())
    assert parsed.fitted(LLAMA, GRID).domains == parsed.fitted(LLAMA, GRID).fitted(LLAMA).domains
    for name in OF_BLOCKS:
        once, four_times = rates(parsed.fitted(LLAMA), name), rates(parsed.fitted(LLAMA * 4), name)
        assert four_times.low == pytest.approx(once.low / 2, rel=1e-2)
        assert four_times.high == pytest.approx(once.high / 2, rel=1e-2)


@pytest.mark.parametrize(
    ("layers", "rows", "printed"),
    # Rows of the target modules of a layer, and the rates at which the papers train rank 8 (or
    # 32) with alpha 2 * rank: RoBERTa-base in PiLoRA's and Sensitivity-LoRA's, LLaMA2-7B in
    # PiLoRA's, Qwen2.5-3B in TASO's.
    [
        (12, 5 * 768 + 3072, (1e-4, 2e-4, 5e-4)),
        (32, 4 * 4096 + 11008, (1e-4, 2e-4)),
        (36, 3 * 2048 + 2 * 256 + 2 * 11008, (5e-5,)),
    ],
)
def test_the_papers_rates_are_inside(layers: int, rows: int, printed: tuple[float, ...]) -> None:
    targets = tuple(TargetModule(f"{layer}", (rows, 64)) for layer in range(layers))
    for text in ("methods: [lora, pilora, sensitivity, joint]", "methods: {lora: {rank: 32}}"):
        of = space(text).fitted(targets)
        for name in of.methods:
            for rate in printed:
                assert rates(of, name).low * 1.5 < rate < rates(of, name).high / 1.5


def test_a_range_follows_what_is_written_of_the_method_and_what_fits() -> None:
    taso, scaled = space("methods: [taso]"), space("methods: {taso: {alpha: 1}}")
    assert rates(scaled, "taso").low == pytest.approx(16 * rates(taso, "taso").low, rel=1e-2)
    wide, narrow = (TargetModule("m", (40, 40)),), (TargetModule("m", (40, 2)),)
    lora = space("methods: [lora]")
    of_rank_8, of_rank_2 = rates(lora.fitted(wide), "lora"), rates(lora.fitted(narrow), "lora")
    assert of_rank_2.low == pytest.approx(of_rank_8.low * 2, rel=1e-2)
    huge = space("methods: {lora: {rank: 100000}}")  # no matrix at hand can take it
    assert rates(huge, "lora") == rates(lora, "lora")


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
            assert rates(of, name) == rates(of, "lora")
        elif method.baseline:
            assert rates(of.fitted(LLAMA), name) == rates(of, name)
