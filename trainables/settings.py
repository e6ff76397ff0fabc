"""What the sections of a sweep that a worker reads have in common."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from spaces.refusals import character_name

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""A seed that every package takes, those of repetitions and confirmations above it too."""


def _as_switch(value: object) -> object:
    """YAML 1.1 takes the bare words on and off for booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = Annotated[
    Literal["auto", "on", "off"],
    BeforeValidator(_as_switch, json_schema_input_type=Literal["auto", "on", "off"] | bool),
]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["linear", "cosine", "constant"]
ALL_LINEAR = "all-linear"
"""The pattern of target modules that names every linear layer."""


def _as_list(value: object) -> object:
    """A single name where a list of names is expected is a list of one."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[
    tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=tuple[str, ...] | str)
]


def _readable(name: str) -> str:
    odd = next((char for char in name if unicodedata.category(char) in ("Cc", "Cs")), None)
    if odd is not None:
        raise ValueError(f"{name[:60]!a} has the character {character_name(odd)} in it; remove it")
    if not name.strip() or len(name) > LONGEST_NAME:
        raise ValueError(f"{name[:60]!r} is no name; write 1 to {LONGEST_NAME} characters")
    return name


LONGEST_NAME = 500
"""Characters of a name that MLflow takes."""
Name = Annotated[str, AfterValidator(_readable)]
"""What people call something, in the letters that they write."""


def bytes_of(value: object) -> int:
    """A size such as 2GiB in bytes. Raises ValueError where it is none."""
    try:
        size = TypeAdapter(ByteSize).validate_python(None if isinstance(value, bool) else value)
    except ValidationError:
        shown = str(value)[:80]
        raise ValueError(f"{shown!r} is not a size; write one such as 2GiB, or bytes") from None
    return int(size)


Size = Annotated[PositiveInt, BeforeValidator(bytes_of, json_schema_input_type=PositiveInt | str)]


class Settings(BaseModel):
    """A section of a sweep: frozen, and any key it does not know is an error.

    A number is neither true nor a text such as "8"; a list is what several values are given in.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        strict=True,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        return {key: tuple(v) if isinstance(v, list) else v for key, v in raw.items()}
