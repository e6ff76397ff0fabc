"""How a base is named: `hub:org/name@revision`, `path:DIR` or `package:import_name/sub/dir`."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec

SCHEMES = ("hub", "path", "package")


def scheme_and_place(uri: str) -> tuple[str, str]:
    """The scheme of a base's name and what follows it.

    Raises ValueError, saying what may have been meant, where `uri` names no base.
    """
    scheme, colon, place = uri.partition(":")
    if not colon or scheme not in SCHEMES or not place:
        raise ValueError(f"{uri!r:.80} names no base; {_meant(uri)}")
    return scheme, place


def _meant(uri: str) -> str:
    if uri and os.path.exists(os.path.expanduser(uri)):  # of os.path, for they never raise
        return f"did you mean 'path:{uri}'?"
    if _is_a_package(uri.partition("/")[0]):
        return f"did you mean 'package:{uri}'?"
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[^:]+)?", uri):
        return f"did you mean 'hub:{uri}'?"
    return "use hub:org/name@revision, path:DIR or package:import_name/sub/dir"


def _is_a_package(name: str) -> bool:
    try:
        return name.isidentifier() and find_spec(name) is not None
    except (ImportError, ValueError):
        return False
