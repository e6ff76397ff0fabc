"""What a schedule tells to those who are to be notified."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

Kind = Literal["seen", "done", "failed", "promoted"]
Tell = Callable[[Kind, str, Mapping[str, Any]], None]
"""Takes what has happened, a line for people, and the facts. It never blocks and never raises."""


def tell_nobody(_kind: Kind, _text: str, _facts: Mapping[str, Any]) -> None:
    """Where no webhook is named."""
