"""What a sweep tries first."""

from __future__ import annotations

from collections.abc import Sequence

from spaces.choice import Choice
from spaces.methods.registry import METHODS
from spaces.planner import Planner
from spaces.search_space import SearchSpace


def first_choices(
    space: SearchSpace, planner: Planner, arm_keys: Sequence[str] = ()
) -> list[Choice]:
    """What is tried first: each paper's default, and a LoRA as large as the largest of them.

    Baselines have no say in how large the LoRA is.
    """
    arms = [arm for arm in space.arms(arm_keys) if arm.method != "lora"]
    defaults = [space.default_choice(arm.method, arm.values) for arm in arms]
    counts = [planner.params(each) for each in defaults if not METHODS[each.method].baseline]
    if not counts:
        return [space.default_choice("lora"), *defaults]
    return [space.lora_of_budget(max(counts), planner.targets), *defaults]
