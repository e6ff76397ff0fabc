"""The section `task.extract`: the answer in a text, such as the number after GSM8K's "####"."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator

from trainables.settings import Names, Settings


def check_pattern(pattern: str) -> str:
    """The pattern as it is. Raises ValueError where it is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{pattern[:80]!r} is no regular expression ({reason}); put it in single quotes, and a "
            "backslash before a sign that stands for itself"
        ) from None
    return pattern


class ExtractSettings(Settings):
    """What of a text is compared: the group of a match of `pattern`, or the whole match.

    It is taken from what is written and from its reference alike. A reference without a match is
    compared whole; a written text without one is wrong.
    """

    pattern: str
    """A regular expression with one group, or none."""
    take: Literal["first", "last"] = "first"
    """Which of several matches."""
    ignore: Names = ()
    """Regular expressions; what they match is taken out of the answer before it is compared."""
    ignore_case: bool = False
    """Whether capital and small letters are alike."""

    @field_validator("pattern")
    @classmethod
    def _of_one_group(cls, pattern: str) -> str:
        groups = re.compile(check_pattern(pattern)).groups
        if groups > 1:
            raise ValueError(
                f"{pattern[:80]!r} has {groups} groups; write (?:...) for all but the one that "
                "holds the answer"
            )
        return pattern

    @field_validator("ignore")
    @classmethod
    def _patterns(cls, ignore: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_pattern(each) for each in ignore)

    def answer(self, text: str) -> str | None:
        """The answer in a text as it is compared; None where the pattern matches nowhere.

        The order is that of lm-eval's filters: matched, stripped, then `ignore` and case.
        """
        matches = list(re.finditer(self.pattern, text))
        if not matches:
            return None
        match = matches[0 if self.take == "first" else -1]
        taken = match[1] if match.re.groups else match[0]
        return None if taken is None else self.normalised(taken)

    def normalised(self, text: str) -> str:
        """An answer without what is ignored, stripped."""
        text = text.strip()
        for pattern in self.ignore:
            text = re.sub(pattern, "", text)
        return (text.lower() if self.ignore_case else text).strip()


def _of_pattern(value: Any) -> Any:
    """A pattern alone stands for a section with nothing else in it."""
    return {"pattern": value} if isinstance(value, str) else value


Extract = Annotated[
    ExtractSettings, BeforeValidator(_of_pattern, json_schema_input_type=ExtractSettings | str)
]
"""The section `extract`, or a pattern alone."""
