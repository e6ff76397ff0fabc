"""The section `notify` of a schedule: webhooks that hear of it, and are never waited for."""

from __future__ import annotations

import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import requests
from pydantic import BeforeValidator, field_serializer, field_validator
from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential,
)

from search.redaction import redacted_text
from search.tracking.facts import without_credentials
from spaces.errors import ConfigError, RanksweepError, nearest
from trainables.settings import Names, Settings

Kind = Literal["seen", "done", "failed", "promoted"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TIMEOUT_S = (5.0, 10.0)
"""Seconds that a receiver has to take a connection, and to answer."""
TRIES = 4
LONGEST_QUEUE = 100
"""Events that wait for one receiver; of more the oldest are dropped."""

_VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_log = logging.getLogger(__name__)


def _known_receiver(url: object) -> str:
    """The URL itself, or the variable that holds it. Raises ValueError, without the URL."""
    if isinstance(url, str) and url.startswith("env:"):
        if not _VARIABLE.fullmatch(url):
            raise ValueError("names no environment variable; write env:NAME")
        return url
    if not isinstance(url, str) or not _is_url(url):
        raise ValueError("is no URL; write https://..., or env:NAME of a variable that holds it")
    return url


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and named and not re.search(r"\s", text)


class ReceiverSettings(Settings):
    """A webhook that is told of events."""

    url: Annotated[str, BeforeValidator(_known_receiver)]
    """`https://...`, or `env:NAME` where the environment variable NAME holds it, so that a secret
    stays out of the file. It is shown nowhere but for its host."""
    kind: Literal["slack", "json"] = "slack"
    """`slack` posts `{"text": LINE}`, as Slack, Mattermost and others take it; `json` posts the
    event with its facts."""
    events: Names = KINDS
    """What it is told of: `seen` (a new model), `done` (a sweep), `failed`, `promoted` (a new
    champion)."""

    @field_serializer("url")
    def _without_token(self, url: str) -> str:
        return url if url.startswith("env:") else shown_host(url)

    @field_validator("events")
    @classmethod
    def _known(cls, events: tuple[str, ...]) -> tuple[str, ...]:
        if not events:
            raise ValueError(f"names none; write one or more of {', '.join(KINDS)}")
        for each in events:
            if each not in KINDS:
                raise ValueError(f"there is no event {each[:40]!r}; {nearest(each, KINDS)}")
        return events


def shown_host(url: str) -> str:
    """What may be shown of a webhook's URL: its path is its secret."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}/***"


def address_of(receiver: ReceiverSettings, environ: Mapping[str, str] = os.environ) -> str:
    """The URL of a receiver. Raises ConfigError where its variable is not set or holds none."""
    if not (named := _VARIABLE.fullmatch(receiver.url)):
        return receiver.url
    name = named.group(1)
    url = environ.get(name, "").strip()
    if not url:
        raise ConfigError(f"notify: the environment variable {name} is not set; set it to the URL")
    if not _is_url(url):
        raise ConfigError(f"notify: what {name} holds is no URL; set it to https://...")
    return url


@dataclass(frozen=True)
class Event:
    """Something that befell a schedule; `text` is one line for people, `facts` are for programs."""

    kind: Kind | Literal["test"]
    schedule: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def document_of(event: Event, kind: Literal["slack", "json"]) -> dict[str, Any]:
    """What is posted of an event, ready for JSON and without credentials."""
    line = redacted_text(" ".join(event.text.split()))
    if kind == "slack":
        text = f"{event.schedule}: {line}"
        for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
            text = text.replace(sign, written)
        return {"text": text}
    facts = {key: _finite(value) for key, value in without_credentials(event.facts).items()}
    return {**facts, "event": event.kind, "schedule": event.schedule, "text": line}


def post(url: str, document: Mapping[str, Any]) -> None:
    """Give a document to a receiver, once. Raises DeliveryError, which does not name the URL."""
    try:
        # Its answer is not read, for it may never end; nor is it followed to another place.
        with requests.post(
            url, json=document, timeout=TIMEOUT_S, allow_redirects=False, stream=True
        ) as answer:
            status = answer.status_code
    except requests.RequestException as error:
        raise DeliveryError(_reason(error), may_pass=True) from None
    if not 200 <= status < 300:
        raise DeliveryError(
            f"it answers {status}", may_pass=status in (408, 425, 429) or status >= 500
        )


class DeliveryError(RanksweepError):
    """A receiver has not taken an event; `may_pass` where another try may do better."""

    def __init__(self, reason: str, *, may_pass: bool) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


class Notifier:
    """Tells receivers of events, each from a thread of its own.

    One that is away or hangs delays neither the schedule nor the other receivers. Each event is
    tried TRIES times, the second time after `pause_s` seconds and then after growing pauses; that a
    receiver fails is logged once, until it has answered again. Raises ConfigError for a receiver
    whose variable is not set.
    """

    def __init__(
        self,
        receivers: Sequence[ReceiverSettings],
        *,
        environ: Mapping[str, str] = os.environ,
        pause_s: float = 2.0,
    ) -> None:
        # At the level DEBUG it writes the path of every request, which is the receiver's secret.
        connections = logging.getLogger("urllib3.connectionpool")
        connections.setLevel(max(connections.level, logging.INFO))
        self._lines = [_Line(each, address_of(each, environ), pause_s) for each in receivers]

    def tell(self, event: Event) -> None:
        """Have an event told; returns at once."""
        for line in self._lines:
            line.take(event)

    def close(self, seconds: float = 10.0) -> None:
        """Wait so long at most for what is still to be told; the rest is dropped, and said."""
        deadline = time.monotonic() + seconds
        for line in self._lines:
            line.end()
        for line in self._lines:
            line.wait(max(0.0, deadline - time.monotonic()))


class _Line:
    """The way to one receiver: what waits for it, and the thread that tells it."""

    def __init__(self, receiver: ReceiverSettings, url: str, pause_s: float) -> None:
        self._receiver, self._url, self._host = receiver, url, shown_host(url)
        self._waiting: queue.Queue[Event | None] = queue.Queue()
        self._given_up = threading.Event()
        self._fails = False
        self._tries = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, DeliveryError) and error.may_pass
            ),
            wait=wait_exponential(pause_s, max=30 * pause_s),
            stop=stop_after_attempt(TRIES) | stop_when_event_set(self._given_up),
            sleep=sleep_using_event(self._given_up),
            reraise=True,
        )
        self._thread = threading.Thread(target=self._work, name=f"notify {self._host}", daemon=True)
        self._thread.start()

    def take(self, event: Event) -> None:
        if event.kind not in self._receiver.events:
            return
        while self._waiting.qsize() >= LONGEST_QUEUE:
            try:
                self._waiting.get_nowait()
            except queue.Empty:
                break
        self._waiting.put(event)

    def end(self) -> None:
        self._waiting.put(None)

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._given_up.set()
            _log.warning("notify: %s has not taken all that it was to be told", self._host)

    def _work(self) -> None:
        while (event := self._waiting.get()) is not None:
            if self._given_up.is_set():
                return
            try:
                self._tries(post, self._url, document_of(event, self._receiver.kind))
                self._fails = False
            except DeliveryError as error:
                if not self._fails:
                    _log.warning(
                        "notify: %s is not told (%s); check its address, the schedule goes on",
                        self._host,
                        error,
                    )
                self._fails = True


def _reason(error: requests.RequestException) -> str:
    """Why a receiver could not be told, without its URL, which requests' own texts are full of."""
    reasons: Sequence[tuple[type[Exception], str]] = (
        (requests.Timeout, "no answer in time"),
        (requests.exceptions.SSLError, "its certificate is not trusted"),
        (requests.exceptions.ProxyError, "the proxy does not let us through"),
        (requests.ConnectionError, "it cannot be connected to"),
    )
    found = next((said for kind, said in reasons if isinstance(error, kind)), None)
    return found or type(error).__name__


def _finite(value: Any) -> Any:
    """A value for which JSON has a word."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
