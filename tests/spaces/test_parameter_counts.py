"""Parameter counts of the papers' tables, from shapes alone."""

from __future__ import annotations

import time

import numpy as np
import pytest

from spaces.methods import count_range, make_plan, parse_choice
from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule
from tests.spaces.example_profiles import qwen_2_5_3b

QWEN = qwen_2_5_3b()


@pytest.mark.parametrize(
    ("rank", "count", "millions"), [(8, 14_966_784, 14.97), (32, 59_867_136, 59.87)]
)
def test_lora_on_qwen(rank: int, count: int, millions: float) -> None:
    """TASO, Table 1: LoRA on all linear layers of Qwen2.5-3B."""
    assert count_range(parse_choice({"method": "lora", "rank": rank}), QWEN) == (count, count)
    assert round(count / 1e6, 2) == millions


def test_taso_on_qwen() -> None:
    """TASO, Table 1: 2.06 M at 10% retention, (1 + retention)(out + in) summed over the modules."""
    rng = np.random.default_rng(0)
    modules = {
        target.name: ModuleProfile(
            sensitivity_row_count=rng.integers(0, target.shape[1], (1, target.shape[0])),
            sensitivity_col_count=rng.integers(0, target.shape[0], (1, target.shape[1])),
        )
        for target in QWEN
    }
    profile = Profile(QWEN, 0, (5.0,), modules, {})
    choice = parse_choice({"method": "taso", "retention": 0.1})
    count = make_plan(choice, QWEN, profile).trainable_params
    # Each of the 36 layers: 2 (410 + 4096) + 2 (230 + 2304) + 3 (1306 + 13056).
    assert count == 36 * (2 * (410 + 4096) + 2 * (230 + 2304) + 3 * (1306 + 13056))
    assert round(count / 1e6, 2) == 2.06
    assert count_range(choice, QWEN)[1] == count


def test_pilora_needs_fewer_parameters_than_lora() -> None:
    """PiLoRA, Table 4: half of the rows at r = 32, the others at r' = 2, on LLaMA2-7B's layers."""
    shapes = [(4096, 4096)] * 3 + [(11008, 4096)] * 2 + [(4096, 11008)]
    targets = tuple(
        TargetModule(f"{layer}.{i}", shape) for layer in range(32) for i, shape in enumerate(shapes)
    )
    choice = parse_choice({"method": "pilora", "rank": 32, "supplementary_rank": 2})
    (count, most) = count_range(choice, targets, 0.5)
    assert count == most
    assert (
        count == sum(32 * (out // 2 + inner) + 2 * (out // 2 + inner) for out, inner in shapes) * 32
    )
    assert count < count_range(parse_choice({"method": "lora", "rank": 32}), targets)[0]


def test_plans_of_a_7b_base_are_quick() -> None:
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    targets = tuple(
        TargetModule(f"{layer}.{i}", shape) for layer in range(32) for i, shape in enumerate(shapes)
    )
    rng = np.random.default_rng(0)
    modules = {
        target.name: ModuleProfile(
            hits=rng.integers(0, 9, target.shape[0]),
            row_importance=rng.random(target.shape[0]),
            sensitivity_row_count=rng.integers(0, 900, (1, target.shape[0])),
            sensitivity_col_count=rng.integers(0, 900, (1, target.shape[1])),
            hessian_diag=rng.random(target.shape[1]),
        )
        for target in targets
    }
    profile = Profile(targets, 8, (5.0,), modules, {})
    for choice in (
        {"method": "pilora", "partition": {"rule": "cumulative"}},
        {"method": "taso", "scope": "model"},
        {"method": "sensitivity"},
        {"method": "joint"},
    ):
        parsed = parse_choice(choice)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            make_plan(parsed, targets, profile)
            seconds.append(time.perf_counter() - start)
        # Well under this on one core; the slack is for a machine that is busy with other things.
        assert min(seconds) < 1.0, choice
