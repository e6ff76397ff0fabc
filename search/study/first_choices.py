"""What a sweep tries first."""

from __future__ import annotations

from collections.abc import Sequence

from search.launch.prepare import SweepInputs
from spaces.choice import Choice
from spaces.methods.registry import METHODS, make_plan
from spaces.profile import Profile


def first_choices(
    prepared: SweepInputs, profile: Profile, arm_keys: Sequence[str] = ()
) -> list[Choice]:
    """What is tried first: each paper's default, and a LoRA as large as the largest of them.

    Baselines have no say in how large the LoRA is.
    """
    space = prepared.space
    arms = [arm for arm in space.arms(arm_keys) if arm.method != "lora"]
    defaults = [space.default_choice(arm.method, arm.values) for arm in arms]
    counts = [
        make_plan(choice, prepared.targets, profile, prepared.size).trainable_params
        for choice in defaults
        if not METHODS[choice.method].baseline
    ]
    if not counts:
        return [space.default_choice("lora"), *defaults]
    return [space.lora_of_budget(max(counts), prepared.targets), *defaults]
