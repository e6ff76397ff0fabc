"""What a user asks of a sweep that runs, as it stands in the sweep's study.

A request is a user attribute of the study under a key of its own, and so is its answer: whoever
reaches the study's database can ask, from any machine, and what is asked outlasts the driver. A
trial that is begun for a request carries the request's id, so that it is begun once, whoever takes
it: of two drivers that do so at the same time the one with the lower number keeps its trial, as
always in a shared study.
"""

from __future__ import annotations

import getpass
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import optuna

_REQUEST, _ANSWER, _LISTENS = (f"ranksweep_{name}:" for name in ("asked", "answered", "listens"))

Kind = Literal["stop", "enqueue", "clone"]

LISTENS_EVERY_S = 20.0
"""How often a driver says that it listens."""
LISTENS_FOR_S = 120.0
"""For how long a driver that has said so is taken to listen: clocks of machines differ."""


@dataclass(frozen=True)
class Request:
    """One thing that a user asks for.

    `number` is that of the trial to be stopped or cloned; `choice` is what is to be trained, in
    plain values; `warm` asks for a clone that starts from the trial's weights; `by` says who asks.
    """

    id: str
    kind: Kind
    number: int | None = None
    choice: Mapping[str, Any] | None = None
    warm: bool = False
    by: str = ""

    @property
    def in_words(self) -> str:
        """What is asked for, for a user."""
        if self.kind == "stop":
            return f"trial {self.number} is to be stopped"
        method = (self.choice or {}).get("method", "a choice")
        if self.kind == "enqueue":
            return f"{method}, enqueued"
        return f"{method}, cloned from trial {self.number}{', warm' if self.warm else ''}"


@dataclass(frozen=True)
class Answer:
    """What a driver has said to a request; `reason` is why it is refused, where it is."""

    accepted: bool
    reason: str = ""


@dataclass(frozen=True)
class Listener:
    """A driver that looks for requests: it runs a sweep in `folder` on `host`."""

    host: str
    folder: str
    at: float

    def is_fresh(self, now: float | None = None) -> bool:
        """Whether it has said so lately."""
        return abs((time.time() if now is None else now) - self.at) < LISTENS_FOR_S


def ask(study: optuna.Study, kind: Kind, **what: Any) -> Request:
    """Write a request into the study. `what` is the rest of a `Request`."""
    # Ids sort by time: what was asked first is trained first.
    request_id = f"{time.time_ns() // 1_000_000:015d}-{uuid.uuid4().hex[:12]}"
    request = Request(request_id, kind, by=_asker(), **what)
    study.set_user_attr(_REQUEST + request_id, asdict(request))
    return request


def answer(study: optuna.Study, request: Request, said: Answer) -> None:
    """Write an answer into the study."""
    study.set_user_attr(_ANSWER + request.id, asdict(said))


def requests_of(attributes: Mapping[str, Any]) -> list[Request]:
    """The requests that stand in a study's attributes, the oldest first.

    What cannot be read, as of a version of ranksweep that asks for more, is passed over: a driver
    must not end for it.
    """
    said = [attributes[key] for key in sorted(attributes) if key.startswith(_REQUEST)]
    return [Request(**each) for each in said if _is_request(each)]


def answers_of(attributes: Mapping[str, Any]) -> dict[str, Answer]:
    """Id of a request -> what was said to it."""
    return {
        key.removeprefix(_ANSWER): Answer(bool(said["accepted"]), str(said["reason"]))
        for key, said in attributes.items()
        if key.startswith(_ANSWER)
    }


def listen(study: optuna.Study, folder: str) -> None:
    """Have the study say that the driver of this folder looks for requests."""
    said = {"host": socket.gethostname(), "folder": folder, "at": time.time()}
    study.set_user_attr(_listener_key(folder), said)


def listen_no_more(study: optuna.Study, folder: str) -> None:
    """Have the study say that the driver of this folder looks for requests no more."""
    study.set_user_attr(_listener_key(folder), None)


def listeners_of(attributes: Mapping[str, Any]) -> list[Listener]:
    """The drivers that have said that they listen, and not that they have left."""
    return [
        Listener(str(said["host"]), str(said["folder"]), float(said["at"]))
        for key, said in attributes.items()
        if key.startswith(_LISTENS) and said is not None
    ]


def _is_request(said: object) -> bool:
    """Whether what stands in a study is what `ask` writes."""
    if not isinstance(said, Mapping) or said.keys() != {field.name for field in fields(Request)}:
        return False
    number, choice = said["number"], said["choice"]
    return (
        said["kind"] in get_args(Kind)
        and (number is None or type(number) is int)
        and (choice is None or isinstance(choice, Mapping))
    )


def _listener_key(folder: str) -> str:
    driver = uuid.uuid5(uuid.NAMESPACE_URL, f"{socket.gethostname()}:{folder}")
    return f"{_LISTENS}{driver.hex}"


def _asker() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name
        return socket.gethostname()
