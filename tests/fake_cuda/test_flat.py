"""What trains of a 7B costs a step few launches, however many modules there are."""

from __future__ import annotations

from tests.fake_cuda.process import run_on_fake_cuda


def test_placing_and_stepping_take_few_launches() -> None:
    whole = {"method": "lora", "rank": 64}
    ranks = {"method": "sensitivity", "mean_rank": 16}
    # What takes most: ranks of all sizes, two learning rates, scales of two kinds.
    uneven = {
        "method": "joint", "mean_rank": 64, "supplementary_rank": 8, "retention": 0.3,
        "supplementary_scale": "own",
    }  # fmt: skip
    frozen = {"method": "taso", "lr_scaling": False}
    lora, sensitivity, joint, taso = run_on_fake_cuda(
        "cases_flat:placed_steps", layers=8, choices=[whole, ranks, uneven, frozen]
    )
    assert lora == sensitivity == 4
    assert joint <= 60
    assert taso <= 12
