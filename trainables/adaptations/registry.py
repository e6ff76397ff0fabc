"""Which adaptation trains a plan."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from spaces.errors import UsageError, nearest
from spaces.plan import Plan
from trainables.adaptations.adaptation import Adaptation
from trainables.adaptations.blocks import BlockAdaptation

# Named and not imported: PEFT takes seconds to import, and most trials do without it.
TUNERS = {
    "rslora": ("peft", "RsloraAdaptation"),
    "dora": ("peft", "DoraAdaptation"),
    "adalora": ("peft", "AdaloraAdaptation"),
    "ia3": ("peft", "Ia3Adaptation"),
    "vera": ("peft", "VeraAdaptation"),
    "lora_xs": ("singular", "LoraXsAdaptation"),
    "milora": ("singular", "MiloraAdaptation"),
    "pissa": ("singular", "PissaAdaptation"),
    "lora_dash": ("singular", "LoraDashAdaptation"),
    "dylora": ("factors", "DyloraAdaptation"),
    "sora": ("factors", "SoraAdaptation"),
    "bottleneck": ("bottleneck", "BottleneckAdaptation"),
    "bitfit": ("base_parameters", "BitfitAdaptation"),
    "full": ("base_parameters", "FullAdaptation"),
    "eva": ("eva", "EvaAdaptation"),
    "gora": ("gora", "GoraAdaptation"),
    "para": ("para", "ParaAdaptation"),
}
"""Name of a plan's tuner -> module of `trainables.adaptations.baselines` and class."""


def adaptation_for(plan: Plan, model: nn.Module, **settings: Any) -> Adaptation:
    """The adaptation of a plan; `settings` are those of `Adaptation`.

    Raises UsageError for a tuner that no adaptation trains.
    """
    if plan.tuner is None:
        return BlockAdaptation(model, plan, **settings)
    if plan.tuner.name not in TUNERS:
        raise UsageError(f"plan: tuner {plan.tuner.name!r}; {nearest(plan.tuner.name, TUNERS)}")
    module, name = TUNERS[plan.tuner.name]
    adaptation_class = getattr(import_module(f"trainables.adaptations.baselines.{module}"), name)
    adaptation: Adaptation = adaptation_class(model, plan, **settings)
    return adaptation
