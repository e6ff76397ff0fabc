"""What is asked of runs, in MLflow's filter language, and compared here where that cannot say it.

In the language a text stands between quotes, and there is no way to write a quote in it: a text
with one, or with what a database takes for a sign of its own, is asked for as a pattern in which
any character may stand in that place.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlflow.entities import Run

LONGEST_TAG = 8000
"""Characters of a tag's value; MLflow keeps none that is longer."""
LONGEST_KEY = 250
_NOT_IN_A_TEXT = re.compile(r"['\"\\`\s]")
_KEY = re.compile(r"[\w\-. :/]+")


@dataclass(frozen=True)
class Text:
    """The value of a tag, by its full name: it `is` this text, `starts` with it or `has` it."""

    tag: str
    value: str
    how: Literal["is", "starts", "has"] = "is"

    @property
    def may_hold(self) -> bool:
        """Whether any run can meet it."""
        try:
            self.value.encode()
        except UnicodeEncodeError:
            return False
        return (
            "\0" not in self.value
            and len(self.value) <= LONGEST_TAG
            and len(self.tag) <= LONGEST_KEY
            and _KEY.fullmatch(self.tag) is not None
        )

    def clauses(self) -> Iterator[str]:
        """What MLflow is asked for: this or more."""
        likeness = _NOT_IN_A_TEXT.sub("_", self.value)
        if self.how == "is" and likeness == self.value:
            yield f"tags.`{self.tag}` = '{self.value}'"
        else:
            before, after = {"is": ("", ""), "starts": ("", "%"), "has": ("%", "%")}[self.how]
            yield f"tags.`{self.tag}` LIKE '{before}{likeness}{after}'"

    def holds(self, run: Run) -> bool:
        """Whether a run meets it."""
        value = run.data.tags.get(self.tag)
        if value is None:
            return False
        match self.how:
            case "is":
                return bool(value == self.value)
            case "starts":
                return bool(value.startswith(self.value))
            case "has":
                return self.value in value


@dataclass(frozen=True)
class Bound:
    """The newest value of a metric, or `start_time` (milliseconds of Unix time), from `least` to
    `most`, both included; None is no bound. A value that is not a number meets none."""

    name: str
    least: float | None = None
    most: float | None = None

    @property
    def may_hold(self) -> bool:
        """Whether any run can meet it."""
        return len(self.name) <= LONGEST_KEY and _KEY.fullmatch(self.name) is not None

    def clauses(self) -> Iterator[str]:
        """What MLflow is asked for."""
        name = self.name if self.name == "start_time" else f"metrics.`{self.name}`"
        for sign, value in ((">=", self.least), ("<=", self.most)):
            if value is not None:
                yield f"{name} {sign} {Decimal(repr(value)):f}"

    def holds(self, run: Run) -> bool:
        """Whether a run meets it."""
        at = run.info.start_time if self.name == "start_time" else run.data.metrics.get(self.name)
        if at is None:
            return False
        return (self.least is None or at >= self.least) and (self.most is None or at <= self.most)


@dataclass(frozen=True)
class AnyOf:
    """One of these run ids."""

    run_ids: Collection[str]

    @property
    def may_hold(self) -> bool:
        """Whether any run can meet it."""
        return any(each.isalnum() for each in self.run_ids)

    def clauses(self) -> Iterator[str]:
        """What MLflow is asked for."""
        names = ", ".join(f"'{each}'" for each in sorted(self.run_ids) if each.isalnum())
        yield f"attributes.run_id IN ({names})"

    def holds(self, run: Run) -> bool:
        """Whether a run meets it."""
        return run.info.run_id in self.run_ids


Condition = Text | Bound | AnyOf
