"""The section `published` of a sweep: what a paper prints for the methods of its experiment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from trainables.settings import Name, Settings

LONGEST = 7000
"""Characters of the section as JSON: MLflow keeps it whole, in a tag."""
Figures = dict[str, FiniteFloat]
"""Method, arm, or what else a row of a table is called -> its figure."""


class PublishedSettings(Settings):
    """Figures that a paper gives for this experiment, for `compare` to set beside what was measured
    here. Nothing that is trained or measured depends on them."""

    source: Name
    """Where they stand, such as `PiLoRA, Table 1`."""
    metric: Annotated[str, Field(min_length=1)]
    """The metric that `figures` are of; beside a sweep that is searched by another they are not
    shown."""
    unit: Literal["percent", "own"] = "percent"
    """`percent` where 92.7 means what is 0.927 here; `own` where a figure is in the metric's own
    unit."""
    figures: Annotated[Figures, Field(min_length=1)]
    """Method, or arm as `compare` names it, and its figure, as printed. A name that is neither is
    kept for readers."""
    columns: dict[str, Figures] = {}  # noqa: RUF012 (pydantic copies it)
    """What the table prints beside: name of a set or of another metric, and the figures there."""

    @field_validator("figures", "columns")
    @classmethod
    def _named(cls, figures: Mapping[str, object]) -> Mapping[str, object]:
        if not all(name.strip() for name in figures):
            raise ValueError("has a figure without a name; name a method, such as lora")
        return figures

    @model_validator(mode="after")
    def _fits_a_tag(self) -> PublishedSettings:
        if (length := len(self.as_tag())) > LONGEST:
            raise ValueError(
                f"takes {length:,} characters, and MLflow keeps {LONGEST:,}; leave columns out"
            )
        return self

    def as_tag(self) -> str:
        """The section as one line of JSON."""
        return json.dumps(self.model_dump(mode="json"))

    def figure(self, metric: str, arm: str) -> float | None:
        """The figure of an arm in the unit that `metric` has here; None without one."""
        return self._in_our_unit(self.figures, metric, arm)

    def of_member(self, name: str, arm: str) -> float | None:
        """As `figure`, of a member of a suite whose metric is called `<member>/<metric>` here."""
        member, _, metric = name.partition("/")
        return self._in_our_unit(self.columns.get(member, {}), metric, arm)

    def _in_our_unit(self, figures: Figures, metric: str, arm: str) -> float | None:
        found = figures.get(arm) if metric == self.metric else None
        if found is None:
            return None
        return found / 100 if self.unit == "percent" else found
