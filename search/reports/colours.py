"""The colour and the mark of each arm, the same in every figure of every report.

The hues are those of Okabe and Ito's palette, which people of any colour vision tell apart, darker
or lighter where they would not hold 3 : 1 against the page. A mark and a dash of its own say the
same without any colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ARMS = ("lora", "pilora", "taso", "sensitivity", "joint")

_COLOURS = {
    "lora": ("#2b2f36", "#e4e7ec"),
    "pilora": ("#0072b2", "#56b4e9"),
    "taso": ("#d55e00", "#f28e4b"),
    "sensitivity": ("#008f68", "#2fc79c"),
    "joint": ("#b8528f", "#e79ac4"),
}
_OTHERS = (
    ("#a86f00", "#e69f00"),
    ("#2a7fb5", "#8fd0f5"),
    ("#7d7400", "#f0e442"),
    ("#6b5aa8", "#b3a5ec"),
    ("#8a4b2a", "#d9a07c"),
    ("#4f6b3a", "#a9cc8c"),
    ("#6a7280", "#aab2bf"),
)
_MARKS = (
    ("diamond", "D"),
    ("circle", "o"),
    ("square", "s"),
    ("triangle-up", "^"),
    ("cross", "P"),
    ("triangle-down", "v"),
    ("star", "*"),
    ("hexagon", "h"),
    ("x", "X"),
    ("pentagon", "p"),
    ("triangle-left", "<"),
    ("triangle-right", ">"),
)
NOISE = ("#8b929c", "#8b929c")
"""What is within the noise, stopped, or only there to be seen beside."""
INK = ("#2b2f36", "#e4e7ec")
"""Lines and words that belong to no arm."""


@dataclass(frozen=True)
class ArmStyle:
    """How an arm is drawn: on a light ground, on a dark one, by Plotly and by matplotlib."""

    colour_light: str
    colour_dark: str
    symbol_plotly: str
    marker_matplotlib: str

    @property
    def colour(self) -> str:
        """Both colours, for a figure of Plotly's: the page takes the one that fits its ground."""
        return both(self.colour_light, self.colour_dark)


def both(light: str, dark: str) -> str:
    """A colour of a figure of Plotly's as the page reads it: "light|dark"."""
    return f"{light}|{dark}"


def style_of(arms: Sequence[str]) -> dict[str, ArmStyle]:
    """The style of each arm.

    An arm has that of its method, the second of one method the next that is free: so the methods
    look alike in all sweeps, whichever of them a sweep has.
    """
    found: dict[str, ArmStyle] = {}
    free = list(_OTHERS)
    marks = list(_MARKS[len(ARMS) :])
    taken: set[str] = set()
    for arm in dict.fromkeys(arms):
        method = arm.partition(" ")[0]
        if method in _COLOURS and method not in taken:
            taken.add(method)
            light, dark = _COLOURS[method]
            symbol, marker = _MARKS[ARMS.index(method)]
        else:
            light, dark = free[0]
            symbol, marker = marks[0]
            free.append(free.pop(0))
            marks.append(marks.pop(0))
        found[arm] = ArmStyle(light, dark, symbol, marker)
    return found
