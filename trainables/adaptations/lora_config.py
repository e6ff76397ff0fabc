"""PEFT's LoraConfig as plain data: which modules have an adapter, of what rank and alpha.

It is what PEFT writes as adapter_config.json. The update of a module is scaled by alpha / rank.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from spaces.errors import ChoiceError
from spaces.plan import Plan, Tuner

PREFIX = "base_model.model."
"""What PEFT puts before the base's own names in the keys of a checkpoint."""

# PEFT's own switches; pissa's update is not scaled (alpha = rank).
_SWITCHES: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


def lora_config(
    modules: Mapping[str, tuple[int, float]], every_module: Collection[str] = ()
) -> dict[str, Any]:
    """The LoraConfig of adapters on `modules`: full name -> (rank, alpha).

    The most common rank and alpha become r and lora_alpha, the others rank_pattern and
    alpha_pattern. PEFT takes a name also for the end of a longer one: where `every_module` of the
    model holds such a longer one, the name is written so that it means itself alone.
    """
    ranks = {name: rank for name, (rank, _) in modules.items()}
    alphas = {name: _plain(alpha) for name, (_, alpha) in modules.items()}
    rank, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    names = {*modules, *every_module}
    key = {name: _pattern(name, names) for name in modules}
    exact = all(key[name] == name for name in modules)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {key[name]: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {key[name]: own for name, own in alphas.items() if own != alpha},
        "target_modules": list(modules) if exact else "|".join(map(re.escape, modules)),
        "lora_dropout": 0.0,
        "bias": "none",
    }


def lora_config_of(plan: Plan) -> dict[str, Any]:
    """PEFT's LoraConfig that trains what a plan says, as adapter_config.json holds it.

    A matrix of several layers is named by each of them; PEFT gives each an adapter of its own.
    Raises ChoiceError, with the reason, for a plan that a LoraConfig cannot hold.
    """
    every_module = [name for target in plan.targets for name in target.names]
    switches = {} if plan.tuner is None else _SWITCHES.get(plan.tuner.name, {})
    return lora_config(adapted_modules(plan), every_module) | switches


def adapted_modules(plan: Plan) -> dict[str, tuple[int, float]]:
    """What a LoraConfig adapts of a plan: full name of a module -> (rank, alpha).

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
    return modules


def _of_tuner(plan: Plan, tuner: Tuner) -> dict[str, tuple[int, float]]:
    if tuner.name not in _SWITCHES:
        raise _refused(
            f"{tuner.name} is no LoRA of PEFT; a LoraConfig holds lora, sensitivity, pilora and "
            f"joint on whole matrices, {', '.join(_SWITCHES)}"
        )
    rank = int(tuner.settings["rank"])
    alpha = float(tuner.settings.get("alpha", rank))
    return {name: (rank, alpha) for target in plan.targets for name in target.names}


def _refused(reason: str) -> ChoiceError:
    return ChoiceError(
        f"--as: {reason}; write the plan with --out PLAN.safetensors, or train it with "
        "`ranksweep launch` and export it"
    )


def _pattern(name: str, names: Iterable[str]) -> str:
    """A key of rank_pattern for one module: a regular expression that may match at a dot."""
    ambiguous = any(other.endswith(f".{name}") for other in names)
    return f"^{re.escape(name)}" if ambiguous else name


def _plain(alpha: float) -> int | float:
    """alpha without the last bit's noise of scale x rank, an integer where it is one."""
    rounded = round(alpha, 10)
    return int(rounded) if rounded == int(rounded) else rounded


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
