"""PEFT's LoraConfig as plain data: which modules have an adapter, of what rank and alpha.

It is what PEFT writes as adapter_config.json. The update of a module is scaled by alpha / rank.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

PREFIX = "base_model.model."
"""What PEFT puts before the base's own names in the keys of a checkpoint."""

Number = int | float


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


def _pattern(name: str, names: Iterable[str]) -> str:
    """A key of rank_pattern for one module: a regular expression that may match at a dot."""
    ambiguous = any(other.endswith(f".{name}") for other in names)
    return f"^{re.escape(name)}" if ambiguous else name


def _plain(alpha: float) -> Number:
    """alpha without the last bit's noise of scale x rank, an integer where it is one."""
    rounded = round(alpha, 10)
    return int(rounded) if rounded == int(rounded) else rounded


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
