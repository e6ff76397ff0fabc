"""The page of reasons names every way in which a trial ends, in the words of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from search.queries.comparison import WITHIN
from search.study.trial import EndState
from search.tracking.facts import State
from search.tuning.tune import EndedBy

ROOT = Path(__file__).parent.parent
WHY = (ROOT / "docs" / "why.md").read_text(encoding="utf-8")
SAID_OF_TRIALS = ("answered", "duplicate", "running", "refused", "waits", "accepted")
"""Beside how a trial ends: what `trials list` and a launch say of trials and requests."""


def said() -> str:
    """All texts of the code, those that are written over several lines in one piece."""
    files = (file for floor in ("search", "trainables") for file in (ROOT / floor).rglob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return re.sub(r'"\s*\n\s*f?"', "", text)


@pytest.mark.parametrize("states", [EndState, State, EndedBy, SAID_OF_TRIALS], ids=str)
def test_every_way_to_end_has_its_reason(states: object) -> None:
    for state in get_args(states) or SAID_OF_TRIALS:
        assert f"`{state}`" in WHY, state


def test_every_verdict_is_explained() -> None:
    for verdict in (WITHIN, "better", "worse"):
        assert f"`{verdict}`" in WHY


PAGES = (ROOT / "docs" / "why.md", *sorted((ROOT / "docs" / "guides").glob("*.md")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_quotes_is_what_the_code_says(page: Path) -> None:
    """In the tables of what a user sees; an ellipsis stands for what differs from case to case."""
    code = said()
    for row in re.findall(r"^\|(.+)\|$", page.read_text(encoding="utf-8"), re.MULTILINE):
        cells = row.split("|")
        for quote in re.findall(r"`([^`]+)`", " ".join(cells[: max(1, len(cells) - 2)])):
            is_setting = re.search(r"--|[{=]", quote) or re.fullmatch(r"[\w.]+: \S+", quote)
            if " " in quote and not is_setting and not quote.startswith("ranksweep "):
                for part in quote.split(" ... "):
                    assert part in code, f"{page.stem}: nothing says {part!r}"
