"""What the sections of a sweep that a worker reads have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["linear", "cosine", "constant"]
ALL_LINEAR = "all-linear"
"""The pattern of target modules that names every linear layer."""


def _as_list(value: object) -> object:
    """A single name where a list of names is expected is a list of one."""
    return [value] if isinstance(value, str) else value


Names = Annotated[
    tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=tuple[str, ...] | str)
]


def bytes_of(value: object) -> int:
    """A size such as 2GiB in bytes. Raises ValueError where it is none."""
    try:
        size = TypeAdapter(ByteSize).validate_python(value)
    except ValidationError:
        shown = str(value)[:80]
        raise ValueError(f"{shown!r} is not a size; write one such as 2GiB, or bytes") from None
    return int(size)


Size = Annotated[PositiveInt, BeforeValidator(bytes_of, json_schema_input_type=PositiveInt | str)]


class Settings(BaseModel):
    """A section of a sweep: frozen, and any key it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
