"""What a schedule tells to those who are to be notified."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from search.schedules.notify import Kind

Tell = Callable[[Kind, str, Mapping[str, Any]], None]
"""Takes what has happened, a line for people, and the facts."""


class Teller(Protocol):
    """Tells the receivers of a schedule; it neither blocks nor raises."""

    def tell(self, kind: Kind, text: str, facts: Mapping[str, Any]) -> None:
        """Have something told."""

    def close(self) -> None:
        """Wait a moment for what is still to be told."""


class Nobody:
    """Where no receiver is named."""

    def tell(self, kind: Kind, text: str, facts: Mapping[str, Any]) -> None:
        """Nobody hears it."""

    def close(self) -> None:
        """There is nothing to wait for."""
