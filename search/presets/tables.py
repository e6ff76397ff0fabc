"""The tables of the papers as data: what the YAML files beside this one may say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter

from search.config.yaml_file import parse_yaml

PAPERS = ("pilora", "taso", "sensitivity")
"""Keys of the papers: how the names of their presets begin, and what their files are called."""
Section = Literal["base", "task", "profile", "space", "search", "train", "cluster", "confirm"]
Notes = dict[Section, tuple[str, ...]]
"""Section of the sweep -> remarks on what it says."""
Cell = FiniteFloat | tuple[FiniteFloat, ...]
"""What a table prints for a task: a figure, or one for each of its parts."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Base(_Data):
    """A base that a paper adapts."""

    uri: str
    """Where the hub has it, as a sweep's `base`."""
    chosen: tuple[str, ...] = ()
    """What about it the paper does not say."""


class DataSet(_Data):
    """A set that papers train on or measure."""

    task: dict[str, Any]
    """The sweep's section `task`, without its name."""
    called: str | None = None
    """Its name in a preset's; default: its key."""
    chosen: tuple[str, ...] = ()
    """What about it the papers do not say."""


class Parts(_Data):
    """How to read a cell of several figures."""

    names: tuple[str, ...]
    """What each figure is of: a set of a suite, or a metric."""
    taken: str
    """Which of them stands for the cell: a name, `mean`, or `average` for the row's printed one."""


class OfBase(_Data):
    """What a table has of one base."""

    figures: dict[str, tuple[Cell, ...]]
    """Row, as `compare` names the arm, or as the paper does what ranksweep has not: its cells."""
    average: dict[str, FiniteFloat] = {}
    """Row and the average that is printed for it."""
    sweep: dict[str, Any] = {}
    """Sections of the sweep, over those of the table."""
    chosen: Notes = {}
    """Remarks beside those of the table."""


class PaperTable(_Data):
    """One table of a paper: tasks by bases, the sweep that they share, and the figures."""

    table: int
    """Its number."""
    hyperparameters: int | None = None
    """The table of the paper that has them, if any."""
    tasks: tuple[str, ...]
    """Keys of the data sets, in the order of the columns."""
    task: dict[str, Any] = {}
    """What the table changes about every task."""
    parts: dict[str, Parts] = {}
    """Task -> how its cells are read, where they hold several figures."""
    sweep: dict[str, Any]
    """Sections of the sweep but base, task and published."""
    of_task: dict[str, dict[str, Any]] = {}
    """Task -> sections of the sweep, over those of the table and of the base."""
    given: Notes = {}
    """What the paper says."""
    chosen: Notes = {}
    """What it does not say, and was chosen here."""
    bases: Annotated[dict[str, OfBase], Field(min_length=1)]
    """Key of a base -> what the table has of it."""


class Paper(_Data):
    """A paper's experiments."""

    name: str
    """What it calls its method."""
    paper: str
    """Its title, and where it is to appear."""
    bases: dict[str, Base]
    """Key -> base, for all of its tables."""
    tables: tuple[PaperTable, ...]


@cache
def papers() -> Mapping[str, Paper]:
    """Key -> paper, in the order of PAPERS."""
    return {key: Paper.model_validate(_read(f"{key}.yaml")) for key in PAPERS}


@cache
def data_sets() -> Mapping[str, DataSet]:
    """Key -> data set."""
    return TypeAdapter(dict[str, DataSet]).validate_python(_read("datasets.yaml"))


def _read(name: str) -> Any:
    """What a file beside this one holds."""
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return parse_yaml(text, f"search/presets/{name}")
