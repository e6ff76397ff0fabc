"""One thing that was tried, as `ranksweep doctor` tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that was tried. `ok` is None where it does not matter on this machine."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""

    @classmethod
    def tried(cls, name: str, ok: bool, detail: str, remedy: str) -> Check:
        """A check whose remedy is told only where it is needed."""
        return cls(name, ok, detail, "" if ok else remedy)

    @classmethod
    def failed(cls, name: str, error: Exception) -> Check:
        """A check that has ended in one of our own errors, which names a remedy behind its `; `."""
        detail, _, remedy = str(error).rpartition("; ")
        return cls(name, False, detail, remedy) if detail else cls(name, False, remedy)
