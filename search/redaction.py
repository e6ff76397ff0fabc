"""What may be shown of an address: all but its credentials."""

from __future__ import annotations

import re

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
