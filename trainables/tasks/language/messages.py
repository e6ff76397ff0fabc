"""Conversations: what a value of a column must be to be one, and the form in which rows hold them.

The words are those of TRL: a conversation is a list of {role, content}. ShareGPT's {from, value}
becomes that, its speakers' names too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from spaces.errors import shown
from trainables.tasks.records import Records
from trainables.tasks.values import is_missing

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
}
"""Who speaks in a ShareGPT conversation -> the role of the message."""
_UNREAD = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""Keys under which other programs put what an assistant writes beside its content."""
_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Message:
    """One turn: `role` is one of `ROLES`."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """What a chat template takes."""
        return {"role": self.role, "content": self.content}


Conversation = tuple[Message, ...]


def to_json(messages: Sequence[Message]) -> str:
    """The canonical JSON of a conversation, by which a row holds it and is told apart."""
    made = [message.as_dict() for message in messages]
    return json.dumps(made, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> Conversation:
    """The conversation that `to_json` wrote."""
    return tuple(Message(each["role"], each["content"]) for each in json.loads(text))


def asked_and_answer(messages: Conversation) -> tuple[Conversation, str]:
    """The turns before the last of the assistant's, and what that one says."""
    last = max(i for i, message in enumerate(messages) if message.role == "assistant")
    return messages[:last], messages[last].content


@dataclass(frozen=True)
class Shape:
    """How the messages of a column are written: the names of a message's two keys, and its roles.

    `roles` says what each becomes.
    """

    key: str
    role: str
    content: str
    roles: Mapping[str, str]


MESSAGES = Shape("messages", "role", "content", {role: role for role in ROLES})
SHAREGPT = Shape("map", "from", "value", SHAREGPT_ROLES)


@dataclass
class _Faults:
    """The rows, by index, of every fault that a conversation may have."""

    rows: dict[str, list[int]] = field(default_factory=dict)
    roles: Counter[str] = field(default_factory=Counter)

    def add(self, fault: str, row: int) -> None:
        found = self.rows.setdefault(fault, [])
        if not found or found[-1] != row:
            found.append(row)


def conversations(
    records: Records, column: str, shape: Shape
) -> tuple[list[Conversation], list[str]]:
    """The conversations of a column, one a record, and what is wrong with them, a fault in a line.

    A value is a list of objects, or a string that is the JSON of one. Every message needs a known
    role and a content that can be seen (a tool's may be empty), and a conversation an assistant's
    turn. The conversations are of use where no fault is.
    """
    faults = _Faults()
    made = [
        _conversation(value, shape, faults, i)
        for i, value in enumerate(_lists(records, column, shape))
    ]
    return made, [
        _said(fault, rows, records, column, shape, faults) for fault, rows in faults.rows.items()
    ]


def with_turn(records: Records, column: str, shape: Shape, content: str) -> Records:
    """The records with a turn of the assistant at the end of every conversation that has none
    there; what is no conversation stays as it is."""
    role = next(each for each, meant in shape.roles.items() if meant == "assistant")
    turn = {shape.role: role, shape.content: content}

    def ended(value: object) -> object:
        if not isinstance(value, list | tuple) or not value:
            return value
        last = value[-1].get(shape.role) if isinstance(value[-1], Mapping) else None
        return value if shape.roles.get(str(last)) == "assistant" else [*value, turn]

    values = [ended(value) for value in _lists(records, column, shape)]
    return replace(records, columns={**records.columns, column: values})


def _lists(records: Records, column: str, shape: Shape) -> list[object]:
    """The values as lists where they are one: those that are JSON read, those by key turned."""
    values = [_read(each) if isinstance(each, str) else each for each in records.columns[column]]
    return [_by_message(each, shape) if isinstance(each, Mapping) else each for each in values]


def _by_message(value: Mapping[str, object], shape: Shape) -> object:
    """A list of messages of {role: [...], content: [...]}, as a Sequence of `datasets` has them."""
    said, content = value.get(shape.role), value.get(shape.content)
    if not isinstance(said, list) or not isinstance(content, list) or len(said) != len(content):
        return value
    return [{shape.role: r, shape.content: c} for r, c in zip(said, content, strict=True)]


def _read(value: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _conversation(value: object, shape: Shape, faults: _Faults, row: int) -> Conversation:
    if is_missing(value):
        faults.add("missing", row)
        return ()
    if not isinstance(value, list | tuple):
        faults.add("no list", row)
        return ()
    if not value:
        faults.add("empty", row)
        return ()
    messages = [_message(each, shape, faults, row) for each in value]
    made = tuple(message for message in messages if message is not None)
    if len(made) == len(value) and all(message.role != "assistant" for message in made):
        faults.add("no assistant", row)
    return made


def _message(value: object, shape: Shape, faults: _Faults, row: int) -> Message | None:
    if not isinstance(value, Mapping) or not {shape.role, shape.content} <= set(value):
        faults.add("no message", row)
        return None
    said, content = value[shape.role], value[shape.content]
    role = shape.roles.get(said) if isinstance(said, str) else None
    if role is None:
        faults.roles[str(said)] += 1
        faults.add("role", row)
        return None
    if any(value.get(key) and not is_missing(value[key]) for key in _UNREAD):
        faults.add("unread", row)
        return None
    if role == "tool" and (content is None or content == ""):
        return Message(role, "")
    if is_missing(content):
        faults.add("no content", row)
        return None
    if not isinstance(content, str):
        faults.add("no string", row)
        return None
    if _NO_CHARACTER.search(content):
        faults.add("no character", row)
        return None
    return Message(role, content)


def _said(
    fault: str, rows: list[int], records: Records, column: str, shape: Shape, faults: _Faults
) -> str:
    """A fault in words: what, where, and what to do."""
    where = f"in {column!r} in {records.where(rows)}"
    form = f"{{{shape.role}, {shape.content}}}"
    value = shown(repr(records.columns[column][rows[0]]), 40)
    if fault == "role":
        named = ", ".join(repr(shown(role, 30)) for role, _ in faults.roles.most_common(5))
        known = ", ".join(shape.roles)
        many = "roles that are not known" if len(faults.roles) > 1 else "a role that is not known"
        return f"{many}, {named}, {where}; name one of {known}, or drop these rows"
    what, remedy = {
        "missing": ("no conversation", "fill it in, or drop these rows"),
        "no list": (
            f"{type(records.columns[column][rows[0]]).__name__} {value}",
            f"give a list of {form}, or the JSON of one",
        ),
        "empty": ("an empty conversation", "drop these rows"),
        "no message": (
            f"a message that is not {form}",
            "write every message so"
            + (
                ", or set map: sharegpt where they are {from, value}"
                if shape is MESSAGES
                else ", or name the column in task.messages where they are {role, content}"
            ),
        ),
        "no assistant": (
            "no turn of the assistant, which alone is trained,",
            "add the answer, or drop these rows",
        ),
        "no content": ("a message that says nothing", "fill it in, or drop the message"),
        "no string": (
            f"a message whose {shape.content} is no string",
            "give a string; only texts are read",
        ),
        "unread": (
            f"a message with {', '.join(_UNREAD[:-1])} or {_UNREAD[-1]}, which are not read,",
            f"write it into its {shape.content}, or drop these rows",
        ),
        "no character": (
            "what is no character (NUL, or half of a surrogate pair)",
            "correct or drop these rows",
        ),
    }[fault]
    return f"{what} {where}; {remedy}"
