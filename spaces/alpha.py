"""alpha as a search writes it: how many times its rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from spaces.choice import Choice, ChoiceSection, Positive

ALPHA_OVER_RANK = "alpha_over_rank"
"""The key of a space that stands for `alpha`; no choice has it."""

LIKE_LORA: Mapping[str, Any] = {"low": 0.5, "high": 16.0, "log": True}
"""What is searched of LoRA and of what scales an update as LoRA does."""

_DIGITS_OF_ALPHA, _DIGITS_OF_RATIO = 12, 15
"""Significant digits; behind them is the noise of float64. Those of the ratio are more, so that
the alpha that it was made of comes back."""


class KeysOfASpace(ChoiceSection):
    """What a space may say of a method that has an alpha, and a choice may not."""

    alpha_over_rank: Positive = 2.0
    """alpha / the rank that it is divided by, in place of alpha: how strongly an update is scaled,
    whatever its rank. A key of a space alone: a choice has the alpha that comes of it."""


FIELD: FieldInfo = KeysOfASpace.model_fields[ALPHA_OVER_RANK]
"""What may be written for the key, and what it means."""


def over_rank(choice_class: type[Choice], values: Mapping[str, Any]) -> float:
    """alpha / rank of the values of a choice; what they lack has the default of the class."""
    rank = choice_class.RANK_OF_ALPHA
    ratio = _value(choice_class, values, "alpha") / _value(choice_class, values, rank)
    return _rounded(ratio, _DIGITS_OF_RATIO)


def with_alpha(choice_class: type[Choice], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the alpha that `alpha_over_rank` stands for in its place, where it is."""
    found = dict(values)
    ratio = found.pop(ALPHA_OVER_RANK, None)
    if ratio is not None:
        rank = _value(choice_class, values, choice_class.RANK_OF_ALPHA)
        found["alpha"] = _rounded(ratio * rank, _DIGITS_OF_ALPHA)
    return found


def _value(choice_class: type[Choice], values: Mapping[str, Any], key: str) -> Any:
    return values.get(key, choice_class.model_fields[key].default)


def _rounded(number: float, digits: int) -> float:
    return float(f"{number:.{digits}g}")
