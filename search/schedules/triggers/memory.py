"""What a trigger must know of its looks before: one JSON object of it in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from search.store.objects import ObjectStorage

_OBJECT = "looks.json"


def recalled(memory: ObjectStorage) -> dict[str, Any]:
    """What was noted last; empty at the first look, and where it cannot be read as JSON."""
    content = memory.get(_OBJECT)
    try:
        noted = json.loads(content) if content is not None else {}
    except ValueError:
        return {}
    return noted if isinstance(noted, dict) else {}


def note(memory: ObjectStorage, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Write down what the next look must know, where it is another than before.

    Two schedulers may look at once, and the later one's note stays: what that costs is one more
    look at what the other has seen.
    """
    if now != before:
        memory.put(_OBJECT, json.dumps(now, sort_keys=True).encode())


def mapping(noted: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A mapping within a note; empty where there is none of that name."""
    found = noted.get(key)
    return dict(found) if isinstance(found, dict) else {}
