"""The choice: one point of the search space, a method and its hyperparameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from spaces.errors import ChoiceError, nearest
from spaces.refusals import WANTED, unknown_key, written_right

_ChoiceT = TypeVar("_ChoiceT", bound="Choice")


Rank = Annotated[int, Field(ge=1)]
"""A rank that a block must have."""
OptionalRank = Annotated[int, Field(ge=0)]
"""A rank that may be 0, which leaves the block out."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A share of a whole, from 0 to 1."""
PositiveShare = Annotated[float, Field(gt=0, le=1)]
"""A share of a whole that is not nothing."""
Count = Annotated[int, Field(ge=1)]
"""A number of things, at least one."""
Percent = Annotated[float, Field(gt=0, le=100)]
"""A percentage above 0."""
Positive = Annotated[float, Field(gt=0)]
"""A positive number."""
NonNegative = Annotated[float, Field(ge=0)]
"""A number that may be 0, which switches off what it weighs."""
Factor = Annotated[float, Field(ge=1)]
"""A factor that does not lessen what it multiplies."""
Seed = Annotated[int, Field(ge=0)]
"""A seed of a random draw."""


class ChoiceSection(BaseModel):
    """A mapping in a choice: frozen, numbers finite and numbers, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        strict=True,  # neither true nor "8" is a number
        use_attribute_docstrings=True,
    )


class Choice(ChoiceSection):
    """What every method lets you choose."""

    RECORDED_WITHOUT: ClassVar[Mapping[str, Any]] = {}
    """Keys that the records of older versions lack -> the value that they had in effect."""
    RANK_OF_ALPHA: ClassVar[str] = "rank"
    """The key of the rank that `alpha` is divided by, where the choice has an alpha."""

    method: str
    """The method, one of spaces.methods.METHODS."""
    seed: Seed = 0
    """Seed of the random variants; no other choice reads it."""
    learning_rate: Positive = 2e-4
    """Peak learning rate of the trial; a plan does not depend on it."""

    def as_dict(self) -> dict[str, Any]:
        """The choice as plain values, ready for YAML and to be parsed again."""
        return self.model_dump()

    def own_values(self) -> dict[str, Any]:
        """The values of the keys that the method has beside those of every choice."""
        return self.model_dump(exclude=set(Choice.model_fields))

    @property
    def length(self) -> int:
        """How many times the epochs of a trial it is trained for."""
        return 1


def validated(
    choice_class: type[_ChoiceT], mapping: Mapping[str, Any], where: str = ""
) -> _ChoiceT:
    """A choice of one class from plain values.

    Raises ChoiceError, one line, with the key under `where`.
    """
    try:
        return choice_class.model_validate(dict(mapping))
    except ValidationError as error:
        raise choice_error(error, where, choice_class) from error


def choice_error(
    error: ValidationError, where: str, section: type[BaseModel] | None
) -> ChoiceError:
    """The first of pydantic's findings as a one-line ChoiceError.

    `section` is the model that was validated, None for a single value.
    """
    found = error.errors(include_url=False, include_context=True)[0]
    path = ".".join([part for part in (where,) if part] + [str(part) for part in found["loc"]])
    kind, message, given = found["type"], found["msg"], repr(found["input"])
    shown = given if len(given) <= 60 else f"{given[:57]}..."
    if kind == "extra_forbidden":
        keys = _keys_beside(section, found["loc"])
        return ChoiceError(f"{path}: {unknown_key(str(found['loc'][-1]), keys)}")
    if kind in WANTED:
        remedy = written_right(kind, found["input"])
        return ChoiceError(f"{path}: {shown} is refused; it should be {WANTED[kind]}, {remedy}")
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", found["ctx"]["expected"])
        return ChoiceError(f"{path}: {shown} is unknown; {nearest(str(found['input']), known)}")
    if kind == "value_error" and section and not found["loc"]:
        # A check across keys names its key itself.
        text = message.removeprefix("Value error, ")
        return ChoiceError(f"{where}.{text}" if where else text)
    text = message.removeprefix("Value error, ").replace("Input should", "it should")
    return ChoiceError(f"{path}: {shown} is refused; {text}")


def _keys_beside(section: type[BaseModel] | None, loc: tuple[int | str, ...]) -> list[str]:
    for part in loc[:-1]:
        field = section.model_fields.get(str(part)) if section else None
        section = section_of(field) if field else None
    return list(section.model_fields) if section else []


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a mapping of its own, such as `partition`; None for others."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
