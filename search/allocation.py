"""What a plan means for others who train with PEFT: the LoraConfig of its ranks and scales."""

from __future__ import annotations

from typing import Any

from spaces.errors import ChoiceError
from spaces.plan import Plan, Tuner
from trainables.adaptations.lora_config import lora_config


def allocation(plan: Plan) -> dict[str, Any]:
    """PEFT's LoraConfig that trains what a plan says, as adapter_config.json holds it.

    A matrix of several layers is named by each of them; PEFT gives each an adapter of its own.
    Raises ChoiceError, with the reason, for a plan that a LoraConfig cannot hold.
    """
    if plan.tuner is not None:
        return _of_tuner(plan, plan.tuner)
    if len(plan.stages) > 1:
        raise _refused(f"it has {len(plan.stages)} stages, and a LoraConfig trains one")
    (stage,) = plan.stages
    modules: dict[str, tuple[int, float]] = {}
    for target in plan.targets:
        blocks = stage.get(target.name, ())
        if len(blocks) > 1:
            raise _refused(
                f"{target.name} has {len(blocks)} blocks, and a LoraConfig gives a module one"
            )
        for block in blocks:
            written, read = len(block.rows), len(block.cols)
            if (written, read) != target.shape:
                raise _refused(
                    f"the block of {target.name} writes {written} of {target.shape[0]} rows and "
                    f"reads {read} of {target.shape[1]} columns, and a LoraConfig trains all"
                )
            modules |= dict.fromkeys(target.names, (block.rank, block.scale * block.rank))
    if not modules:
        raise _refused("no module has a block")
    return lora_config(modules)


# PEFT's own switches; pissa's update is not scaled (alpha = rank).
_SWITCHES: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


def _of_tuner(plan: Plan, tuner: Tuner) -> dict[str, Any]:
    if tuner.name not in _SWITCHES:
        raise _refused(
            f"{tuner.name} is no LoRA of PEFT; a LoraConfig holds lora, sensitivity, pilora and "
            f"joint on whole matrices, {', '.join(_SWITCHES)}"
        )
    rank = int(tuner.settings["rank"])
    alpha = float(tuner.settings.get("alpha", rank))
    names = (name for target in plan.targets for name in target.names)
    return lora_config(dict.fromkeys(names, (rank, alpha))) | _SWITCHES[tuner.name]


def _refused(reason: str) -> ChoiceError:
    return ChoiceError(
        f"--as peft: {reason}; write the plan with --out PLAN.safetensors, or train it with "
        "`ranksweep launch` and export it"
    )
