"""A LoraConfig adapts in PEFT what the plan adapts, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
from torch import nn

from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule
from trainables.adaptations.lora_config import lora_config_of


class Tower(nn.Module):
    """A layer, and a tower within it whose layer has the longer name of the two."""

    def __init__(self, inner: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(6, 6)
        if inner:
            self.vision = Tower(inner=False)


@pytest.mark.parametrize(
    ("traces", "ranks"),
    [
        ({"query": 1.0, "vision.query": 0.0}, {"query": 2}),
        ({"query": 0.0, "vision.query": 1.0}, {"vision.query": 2}),
        ({"query": 3.0, "vision.query": 1.0}, {"query": 2}),
        ({"query": 1.0, "vision.query": 1.0}, {"query": 1, "vision.query": 1}),
    ],
)
def test_a_module_of_rank_0_is_not_adapted_whatever_it_is_called(
    traces: dict[str, float], ranks: dict[str, int]
) -> None:
    targets = tuple(TargetModule(name, (6, 6)) for name in traces)
    modules = {
        name: ModuleProfile(hessian_diag=np.eye(1, 6)[0] * trace) for name, trace in traces.items()
    }
    keys = {"mean_rank": 1, "min_rank": 0, "signal": "global", "weighting": "equal"}
    choice = parse_choice({"method": "sensitivity", **keys})
    plan = make_plan(choice, targets, Profile(targets, 0, (), modules, {}))
    peer: Any = peft.get_peft_model(Tower(), peft.LoraConfig(**lora_config_of(plan)))
    found = {
        name: layer.r["default"]
        for name, layer in peer.base_model.model.named_modules()
        if isinstance(layer, peft.tuners.lora.Linear)
    }
    assert found == ranks
