"""An example on a terminal shows which of its tokens bear loss, however it is drawn."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from search.cli.dry_run_view import LONGEST_EXAMPLE, Example, shortened

PIECES = (("Is it [bold]so?\nAnswer:", False), (" yes</s>", True))


def drawn(example: Example, encoding: str = "utf-8", *, terminal: bool = False) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(
        file=file, width=200, force_terminal=terminal, highlight=False,
        color_system="standard" if terminal else None,
    )  # fmt: skip
    console.print(example)
    file.flush()
    return raw.getvalue().decode(encoding).rstrip()


def test_a_pipe_has_marks_around_what_bears_loss() -> None:
    marked = "Is it [bold]so?\nAnswer:\u27e6 yes</s>\u27e7"
    assert [line.rstrip() for line in drawn(Example(PIECES)).splitlines()] == marked.splitlines()


def test_a_pipe_of_ascii_has_marks_that_it_can_hold() -> None:
    assert drawn(Example(PIECES), "ascii").endswith("Answer:[[ yes</s>]]")


def test_a_terminal_has_it_bold_and_underlined_alone() -> None:
    assert "Answer:\x1b[1;4m yes</s>\x1b[0m" in drawn(Example(PIECES), terminal=True)


def test_what_would_steer_a_terminal_is_written_out() -> None:
    shown = drawn(Example((("a\x1b[2Jb", True),)))
    assert "\x1b" not in shown
    assert "a\\x1b[2Jb" in shown


@pytest.mark.parametrize("answer", [5, 400, 3000])
def test_a_long_example_loses_its_middle_and_keeps_what_bears_loss(answer: int) -> None:
    pieces = (("p" * 2000, False), ("a" * answer, True), ("q" * 10, False))
    kept = shortened(pieces, LONGEST_EXAMPLE)
    texts = ["".join(text for text, bears in kept if bears == wanted) for wanted in (True, False)]
    whole = "".join(text for text, _ in kept)
    assert len(whole.replace(" [...] ", "")) == LONGEST_EXAMPLE
    assert whole.count(" [...] ") == 1
    assert whole.startswith("p" * 300)
    assert whole.endswith("q" * 10)
    assert texts[0].count("a") == min(answer, LONGEST_EXAMPLE // 2 - 10)
    assert shortened(pieces, 10_000) == list(pieces)
