"""Which adaptation trains a plan."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from spaces.errors import UsageError, nearest
from spaces.plan import Plan
from trainables.adaptation import Adaptation
from trainables.adapters import BlockAdaptation

# Named and not imported: PEFT takes seconds to import, and most trials do without it.
TUNERS = {
    "rslora": ("peft_tuners", "RsloraAdaptation"),
    "dora": ("peft_tuners", "DoraAdaptation"),
    "pissa": ("peft_tuners", "PissaAdaptation"),
    "adalora": ("peft_tuners", "AdaloraAdaptation"),
    "ia3": ("peft_tuners", "Ia3Adaptation"),
    "vera": ("peft_tuners", "VeraAdaptation"),
    "lora_xs": ("singular_tuners", "LoraXsAdaptation"),
    "milora": ("singular_tuners", "MiloraAdaptation"),
    "lora_dash": ("singular_tuners", "LoraDashAdaptation"),
    "dylora": ("factor_tuners", "DyloraAdaptation"),
    "sora": ("factor_tuners", "SoraAdaptation"),
    "bottleneck": ("bottleneck", "BottleneckAdaptation"),
    "bitfit": ("whole", "BitfitAdaptation"),
    "full": ("whole", "FullAdaptation"),
}
"""Name of a plan's tuner -> module of `trainables` and class."""


def adaptation_for(plan: Plan, model: nn.Module, **settings: Any) -> Adaptation:
    """The adaptation of a plan; `settings` are those of `Adaptation`.

    Raises UsageError for a tuner that no adaptation trains.
    """
    if plan.tuner is None:
        return BlockAdaptation(model, plan, **settings)
    if plan.tuner.name not in TUNERS:
        raise UsageError(f"plan: tuner {plan.tuner.name!r}; {nearest(plan.tuner.name, TUNERS)}")
    module, name = TUNERS[plan.tuner.name]
    adaptation_class = getattr(import_module(f"trainables.{module}"), name)
    adaptation: Adaptation = adaptation_class(model, plan, **settings)
    return adaptation
