"""What lies at the bottom of a failure that has come through Ray."""

from __future__ import annotations

import re

from spaces.errors import one_line

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NODE = re.compile(r"\bip=([0-9A-Fa-f.:]+[0-9A-Fa-f])")
_LAST = re.compile(r"(?:\w+\.)*(\w*(?:Error|Exception|Interrupt|Exit)\b(?:: .*)?)")
_OURS = re.compile(r"No module named '(search|trainables|spaces)\b")

# Ray Train's errors of a controller, of a worker that died and of one that raised; Ray's of a task.
_WRAPPED = ("controller_failure", "health_check_failure", "_base_exc", "cause")


def why(failure: BaseException) -> str:
    """What was raised first, in one line, with the node that it was raised on.

    Ray wraps what a worker raises, at times several times over and as the text of a traceback; its
    own first line then says nothing.
    """
    node = None
    while True:
        found = _NODE.search(str(failure))
        node = found.group(1) if found else node
        inner = _inner(failure)
        if inner is None:
            break
        failure = inner
    line = _last_raised(failure)
    if _OURS.search(line):
        line += "; install this ranksweep on every node"
    return f"on node {node}: {line}" if node else line


def _inner(failure: BaseException) -> BaseException | None:
    """What a failure wraps; None where it is the first."""
    workers = getattr(failure, "worker_failures", None) or {}
    inside = (
        next(iter(workers.values()), None),
        *(getattr(failure, name, None) for name in _WRAPPED),
    )
    return next((each for each in inside if isinstance(each, BaseException)), None)


def _last_raised(failure: BaseException) -> str:
    lines = [_COLOUR.sub("", line).strip() for line in str(failure).splitlines()]
    if any("Traceback (most recent call last)" in line for line in lines):
        for line in reversed(lines):
            if found := _LAST.fullmatch(line):
                return found.group(1)[:300]
    return one_line(failure)[:300]
