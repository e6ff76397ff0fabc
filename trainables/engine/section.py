"""What a sweep's section `deepspeed` says of the base, and what of a trial's engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DIVIDING_STAGE = 3
_OF_THE_BASE = ("offload_param", "memory_efficient_linear", "module_granularity_threshold")


def divides_base(deepspeed: Mapping[str, Any]) -> bool:
    """Whether a sweep's section `deepspeed` asks for stage 3."""
    zero = deepspeed.get("zero_optimization", {})
    return isinstance(zero, Mapping) and zero.get("stage") == DIVIDING_STAGE


def of_trials(deepspeed: Mapping[str, Any]) -> dict[str, Any]:
    """The section for the engines of trials: that of stage 0 where it asks for stage 3."""
    if not divides_base(deepspeed):
        return dict(deepspeed)
    zero = {
        key: value
        for key, value in deepspeed["zero_optimization"].items()
        if key not in _OF_THE_BASE and not key.startswith("stage3_")
    }
    return {**deepspeed, "zero_optimization": {**zero, "stage": 0}}


def said_of_division(deepspeed: Mapping[str, Any], workers: int) -> str | None:
    """What to tell of a base that is divided among so many workers of a group, if it is."""
    if not divides_base(deepspeed):
        return None
    offload = deepspeed["zero_optimization"].get("offload_param") or {}
    aside = ", its parts in main memory" if offload.get("device") == "cpu" else ""
    if workers == 1 and not aside:
        return (
            "deepspeed.zero_optimization.stage: 3 divides nothing in groups of one worker; raise "
            "cluster.workers_per_group, or add offload_param"
        )
    among = f"the {workers} workers" if workers > 1 else "the one worker"
    return f"ZeRO 3: the base is divided among {among} of each group{aside}"
