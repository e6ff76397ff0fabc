"""The allocation of a plan as the config keys of other trainers: Axolotl, LLaMA-Factory and TRL.

Each makes PEFT's LoraConfig of its own keys. Read from axolotl 0.19 (utils/schemas/peft.py,
loaders/adapter.py), llamafactory 0.9.5 (hparams/finetuning_args.py, model/adapter.py) and trl 1.16
(trainer/model_config.py, trainer/utils.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

OtherTrainer = Literal["axolotl", "llamafactory", "trl"]

ADAPTER_KEYS: Mapping[OtherTrainer, str] = {
    "axolotl": "lora_model_dir",
    "llamafactory": "adapter_name_or_path",
}
"""Which key names the folder of an adapter to go on training; TRL has none."""

_SWITCHES: Mapping[OtherTrainer, Mapping[str, Mapping[str, Any]]] = {
    "axolotl": {
        "use_rslora": {"peft_use_rslora": True},
        "use_dora": {"peft_use_dora": True},
        "init_lora_weights": {"peft_init_lora_weights": "pissa"},
    },
    "llamafactory": {
        "use_rslora": {"use_rslora": True},
        "use_dora": {"use_dora": True},
        # the exact decomposition, as PEFT's `pissa`; 16 would approximate it
        "init_lora_weights": {"pissa_init": True, "pissa_iter": -1},
    },
    "trl": {"use_rslora": {"use_rslora": True}, "use_dora": {"use_dora": True}},
}
"""Which keys stand for the switches of a LoraConfig."""


def lacking(trainer: OtherTrainer, config: Mapping[str, Any]) -> str | None:
    """Why a LoraConfig (as `lora_config` gives it) is not to be said in a trainer's keys; None
    where it is."""
    alphas = [config["lora_alpha"], *config["alpha_pattern"].values()]
    broken = next((alpha for alpha in alphas if alpha != int(alpha)), None)
    if broken is not None:
        return f"it reads whole numbers for lora_alpha, and alpha is {broken:g} here"
    if trainer == "trl" and "init_lora_weights" in config:
        return "it has no key for how a LoRA is initialized"
    if trainer == "axolotl":
        return None
    ranks = {config["r"], *config["rank_pattern"].values()}
    if len(ranks) > 1:
        return f"it has one rank for all modules, and here are {min(ranks)} to {max(ranks)}"
    if config["alpha_pattern"]:
        return "it has one alpha for all modules, and here are several"
    if trainer == "llamafactory" and isinstance(config["target_modules"], str):
        return "it names modules by how their names end, and here one name is the end of another"
    return None


def trainer_keys(
    trainer: OtherTrainer, config: Mapping[str, Any], learning_rate: float
) -> dict[str, Any]:
    """A LoraConfig in a trainer's keys, for its YAML file; nothing is `lacking` of it."""
    targets, rank, alpha = config["target_modules"], config["r"], config["lora_alpha"]
    if trainer == "axolotl":
        keys = _of_adapter(trainer) | {"lora_r": rank, "lora_alpha": alpha}
        keys |= {"lora_dropout": 0.0, "lora_target_modules": targets}
        patterns = {f"lora_{name}": config[name] for name in ("rank_pattern", "alpha_pattern")}
        keys |= {key: pattern for key, pattern in patterns.items() if pattern}
    elif trainer == "llamafactory":
        keys = _of_adapter(trainer) | {"lora_rank": rank, "lora_alpha": alpha}
        keys |= {"lora_dropout": 0.0, "lora_target": ",".join(targets)}
    else:
        # of one name in a list TRL makes a pattern
        named = [targets] if isinstance(targets, str) else targets
        keys = {"use_peft": True, "lora_r": rank, "lora_alpha": alpha}
        keys |= {"lora_dropout": 0.0, "lora_target_modules": named}
    for switch, own in _SWITCHES[trainer].items():
        keys |= own if switch in config else {}
    return keys | {"learning_rate": learning_rate}


def keys_of_adapter(
    trainer: OtherTrainer, config: Mapping[str, Any], folder: str, learning_rate: float
) -> dict[str, Any]:
    """A trainer's keys that have it train the adapter in a folder, which says its ranks itself."""
    keys = _of_adapter(trainer) | {ADAPTER_KEYS[trainer]: folder}
    if trainer == "axolotl":
        # it makes a config of these too, and then trains what is in the folder
        rank, targets = config["r"], config["target_modules"]
        keys |= {"lora_r": rank, "lora_alpha": rank, "lora_target_modules": targets}
    return keys | {"learning_rate": learning_rate}


def _of_adapter(trainer: OtherTrainer) -> dict[str, Any]:
    return {"adapter": "lora"} if trainer == "axolotl" else {"finetuning_type": "lora"}
