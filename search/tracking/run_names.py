"""What MLflow's UI calls a run: what it is, in the few words that a list has room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.wording import figure, percent


def trial_name(
    number: int, choice: Mapping[str, Any], arm: str | None = None, seed: int | None = None
) -> str:
    """A trial by its number, method or arm, ranks and learning rate: "7 pilora r8+1 1.3e-3".

    A confirmation of it has its `seed` as well: "7 pilora r8+1 1.3e-3 seed 2".
    """
    parts = [str(number), arm or str(choice.get("method", "unknown")), *_size(choice)]
    rate = choice.get("learning_rate")
    if isinstance(rate, int | float):
        parts.append(short_rate(rate))
    if seed is not None:
        parts.append(f"seed {seed}")
    return " ".join(parts)


def measured_name(name: str, metric: str, value: float | None) -> str | None:
    """The name of a run that is over, with what it was measured to be; None where it was not."""
    return None if value is None else f"{name}: {metric} {figure(value)}"


def profile_name(task: str | None, base_uri: str | None, key: str) -> str:
    """A profile by the task and the base that it is of, as far as they are known."""
    if not task or not base_uri:
        return f"profile {key[:12]}"
    return f"profile of {task} on {short_base(base_uri)}"


def short_base(base_uri: str) -> str:
    """The last part of a base's URI that says which it is: "bert" of "hub:google/bert"."""
    place = base_uri.partition("://")[2] or base_uri.partition(":")[2] or base_uri
    parts = [part for part in place.partition("@")[0].split("/") if part]
    named = [part for part in parts if part not in ("model", "models")]
    return (named or parts or [base_uri])[-1]


def short_rate(rate: float) -> str:
    """A learning rate in two digits: 1.3e-3."""
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _size(choice: Mapping[str, Any]) -> list[str]:
    """The keys of a choice that say how much it trains, as far as its method has them."""
    words = []
    rank, more = choice.get("rank", choice.get("mean_rank")), choice.get("supplementary_rank")
    if isinstance(rank, int | float):
        words.append(f"r{rank:g}+{more:g}" if more else f"r{rank:g}")
    retention = choice.get("retention")
    if isinstance(retention, int | float):
        words.append(f"keeps {percent(float(f'{retention:.2g}'))}")
    return words
