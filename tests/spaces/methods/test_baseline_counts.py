"""What a baseline counts is what PEFT makes trainable for the same settings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Tuner
from spaces.target import TargetModule

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

SHAPES = {"k_proj": (4, 8), "o_proj": (8, 8), "up_proj": (20, 8), "down_proj": (8, 20)}
TARGETS = [TargetModule(name, shape) for name, shape in SHAPES.items()]
NAMES = list(SHAPES)


def trainable_in_peft(config: Any) -> int:
    """Numbers that train once PEFT has adapted linear layers of these shapes."""
    layers = {name: torch.nn.Linear(inner, out) for name, (out, inner) in SHAPES.items()}
    model = peft.get_peft_model(torch.nn.ModuleDict(layers), config)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def tuner_of(**choice: Any) -> Tuner:
    tuner = make_plan(parse_choice(choice), TARGETS, None).tuner
    assert tuner is not None
    return tuner


@pytest.mark.parametrize("rank", [1, 3, 4])
@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("rslora", {"use_rslora": True}),
        ("dora", {"use_dora": True}),
        ("pissa", {"init_lora_weights": "pissa"}),
    ],
)
def test_variants_of_lora(method: str, keys: dict[str, Any], rank: int) -> None:
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=NAMES, **keys)
    assert tuner_of(method=method, rank=rank).params == trainable_in_peft(config)


@pytest.mark.parametrize(("rank", "initial_rank"), [(1, 1), (2, 4)])
def test_adalora(rank: int, initial_rank: int) -> None:
    config = peft.AdaLoraConfig(
        init_r=initial_rank, target_r=rank, tinit=1, tfinal=1, total_step=9, target_modules=NAMES
    )
    tuner = tuner_of(method="adalora", rank=rank, initial_rank=initial_rank)
    assert tuner.params == trainable_in_peft(config)


def test_ia3() -> None:
    tuner = tuner_of(method="ia3")
    inputs = json.loads(str(tuner.settings["input_modules"]))
    config = peft.IA3Config(target_modules=NAMES, feedforward_modules=inputs)
    assert tuner.params == trainable_in_peft(config)


@pytest.mark.parametrize("rank", [2, 30])
def test_vera(rank: int) -> None:
    config = peft.VeraConfig(r=rank, target_modules=NAMES)
    assert tuner_of(method="vera", rank=rank).params == trainable_in_peft(config)
