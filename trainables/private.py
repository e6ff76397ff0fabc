"""What may be shown, and who may read what is written."""

from __future__ import annotations

import os
import re
import threading
from contextlib import AbstractContextManager

_URI_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")


def redacted(uri: str) -> str:
    """A URI without its credentials: user information, query and fragment are replaced by `***`."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    mark = rest[len(place) :][:1]
    authority, slash, path = place.partition("/")
    _, at, host = authority.rpartition("@")
    shown = f"***@{host}" if at else authority
    return f"{scheme}://{shown}{slash}{path}{mark}{'***' if mark else ''}"


def redacted_text(text: str) -> str:
    """A text with the credentials of every URI in it replaced by `***`."""
    return _URI_IN_TEXT.sub(lambda match: redacted(match.group(0)), text)


class _PrivateUmask:
    """A umask of 077 that overlapping threads share; the last to leave puts the old one back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._before = os.umask(0o077)
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                os.umask(self._before)


_private_umask = _PrivateUmask()


def private_files() -> AbstractContextManager[None]:
    """While open, what this process creates is readable by its owner alone (umask 077).

    The mask belongs to the whole process, not to a thread.
    """
    return _private_umask
