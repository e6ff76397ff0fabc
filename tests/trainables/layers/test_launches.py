"""Adapted layers on a device: few launches beside the frozen layer's, no wait for a value."""

from __future__ import annotations

from tests.fake_cuda.process import run_on_fake_cuda
from tests.trainables.tuner_examples import CHOICES

DECIDED_BY_VALUES = {
    "dylora": "the host draws the rank of the next step",
    "para": "the host reads which ranks are left before every measurement",
}


def test_updates_add_few_launches_to_a_layer() -> None:
    found = run_on_fake_cuda("cases_layers:launches", dropouts=[0.0, 0.05])
    (floor,) = found.pop("frozen")
    assert floor == 98
    assert max(plain for plain, _ in found.values()) <= 1.35 * floor
    taso = found.pop("taso")
    assert max(dropped for _, dropped in found.values()) <= 1.45 * floor
    assert taso[1] <= 1.65 * floor  # its frozen ranks read what is not dropped


def test_block_methods_run_on_a_device() -> None:
    methods = ("lora", "pilora", "sensitivity", "joint", "taso", "lora")
    found = run_on_fake_cuda(
        "cases_layers:stages",
        choices=[{"method": method} for method in methods],
        dtypes=["bfloat16"] * 5 + ["float32"],
    )
    assert found == [1, 1, 1, 1, 2, 1]


def test_baselines_run_on_a_device() -> None:
    choices = [{"method": name, **CHOICES[name]} for name in CHOICES.keys() - DECIDED_BY_VALUES]
    dtypes = ["bfloat16"] * len(choices)
    found = run_on_fake_cuda("cases_layers:stages", choices=choices, dtypes=dtypes)
    assert found == [1] * len(choices)
