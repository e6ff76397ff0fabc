"""Whether all that a schedule needs can be had, and why not: its part of `ranksweep doctor`."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import requests

from search.check import Check
from search.launch.ray_environment import set_ray_environment
from search.launch.submission.address import dashboard_url
from search.redaction import redacted
from search.schedules.notify import (
    DeliveryError,
    Event,
    ReceiverSettings,
    address_of,
    document_of,
    post,
    shown_host,
)
from search.store.objects import ObjectStorage
from search.tracking.mlflow import absolute_uri, sqlite_file
from search.tracking.registry_models import RegisteredModels
from spaces.errors import RanksweepError

MOST_APART_S = 60.0
"""Seconds that this machine's clock may differ from a server's."""
_TIMEOUT_S = 10.0
_SUBMIT = "submit"
"""The key that an address of a cluster is refused under."""


@dataclass(frozen=True)
class ScheduleNeeds:
    """What a schedule rests on."""

    name: str
    store: str
    tracking: str
    timezone: str | None = None
    submit: str | None = None
    """Address that sweeps are sent to; None where they run where the schedule does."""
    receivers: tuple[ReceiverSettings, ...] = ()


def examine_schedule(needs: ScheduleNeeds, *, post_test: bool = False) -> list[Check]:
    """Try what a schedule needs beyond what its sweeps do; nothing stays of it.

    A webhook is only asked whether its server answers; with `post_test` it is told of an event
    `test`, which people see. Where sweeps run on a Ray of this machine, or join one, is left to who
    examines that.
    """
    return [
        check_registry(needs.tracking),
        check_conditions(needs.store),
        *([check_submit(needs.submit)] if needs.submit is not None else []),
        *(
            check_webhook(number, each, needs.name if post_test else None)
            for number, each in enumerate(needs.receivers)
        ),
        check_timezone(needs.timezone),
        *check_clock(needs.store, needs.tracking, needs.submit),
    ]


def check_registry(uri: str) -> Check:
    """Whether MLflow's model registry takes a new model, which is removed again."""
    name = "registry"
    try:
        database = sqlite_file(absolute_uri(uri))
        if database is not None and not os.path.exists(database):
            return Check(name, None, f"{redacted(uri)} is not there yet; the first sweep makes it")
        RegisteredModels(uri).try_to_write(f"ranksweep-doctor-{secrets.token_hex(4)}")
    except RanksweepError as error:
        return Check.failed(name, error)
    return Check(name, True, f"{redacted(uri)} takes models")


def check_conditions(uri: str) -> Check:
    """Whether the store creates an object once only, which every claim rests on."""
    name = "claims"
    try:
        objects = ObjectStorage(uri)
        once = objects.creates_once()
    except RanksweepError as error:
        return Check.failed(name, error)
    detail = f"{objects.name} creates an object once only"
    if not once:
        detail = f"{objects.name} creates an object that is there again"
    return Check.tried(
        name,
        once,
        detail,
        "choose a store that keeps conditions (If-None-Match), such as S3 itself",
    )


def check_submit(address: str) -> Check:
    """Whether a cluster takes jobs where sweeps are sent to: asked as `launch --submit` does."""
    set_ray_environment("auto")
    # Not at the top: Ray reads at import what was set above.
    from search.launch.submission.job_server import JobServer

    name = f"submit {redacted(address)}"
    try:
        server = JobServer(address, _SUBMIT)
    except RanksweepError as error:
        check = Check.failed(name, error)
        return replace(check, detail=check.detail.removeprefix(f"{_SUBMIT}: "))
    theirs = server.ray_version
    return Check(name, True, "takes jobs" if theirs is None else f"takes jobs, Ray {theirs}")


def check_webhook(number: int, receiver: ReceiverSettings, told_of: str | None = None) -> Check:
    """Whether a receiver's server answers; with the name of a schedule, whether it takes an event.

    Without one nothing of the webhook's path, which is its secret, is sent: a request for the
    server's root shows that it is there and that its certificate is trusted.
    """
    name = f"notify[{number}]"
    try:
        url = address_of(receiver)
    except RanksweepError as error:
        return Check.failed(name, error)
    host, remedy = shown_host(url), "check its address, the network and the proxy variables"
    try:
        if told_of is not None:
            event = Event("test", told_of, "`ranksweep doctor` asks whether this is read")
            post(url, document_of(event, receiver.kind))
            return Check(name, True, f"{host} has taken a test")
        _head(f"{host.removesuffix('***')}")
    except DeliveryError as error:
        return Check(name, False, f"{host}: {error}", remedy)
    except requests.RequestException as error:
        return Check(name, False, f"{host}: {_said(error)}", remedy)
    return Check(name, True, f"{host} answers; --post has it told of a test")


def check_timezone(name: str | None) -> Check:
    """Whether this machine knows the time zone, and what time it is there."""
    try:
        zone = ZoneInfo(name) if name is not None else None
    except (OSError, ValueError, LookupError):
        return Check(
            "time zone", False, f"{name} is not known here", "pip install tzdata, or name another"
        )
    now = datetime.now(zone).astimezone(zone)
    said = name if name is not None else "that of the machine"
    return Check("time zone", True, f"{said}, {now:%Y-%m-%d %H:%M %Z} now")


def check_clock(
    store: str,
    tracking: str,
    submit: str | None = None,
    *,
    now: Callable[[], float] = time.time,
) -> list[Check]:
    """How far this machine's clock is from those of the servers that it talks to."""
    asked: dict[str, Callable[[], datetime | None]] = {}
    if urlsplit(store).scheme not in ("", "file"):
        asked["the store"] = lambda: ObjectStorage(store).clock()
    for what, uri in (("MLflow", tracking), ("the cluster", _dashboard(submit))):
        if urlsplit(uri).scheme in ("http", "https"):
            asked[what] = lambda uri=uri: _date(_head(uri))  # type: ignore[misc]
    checks = []
    for what, ask in asked.items():
        name = f"clock of {what}"
        try:
            begun, theirs = now(), ask()
        except (RanksweepError, requests.RequestException):
            continue  # that it does not answer is a finding of its own
        if theirs is None:
            checks.append(Check(name, None, "says no time"))
            continue
        middle = datetime.fromtimestamp((begun + now()) / 2, UTC)
        # Some servers write -0000 for UTC, which is read as a time without a zone.
        theirs = theirs if theirs.tzinfo is not None else theirs.replace(tzinfo=UTC)
        apart = (middle - theirs).total_seconds()
        ahead = "ahead of" if apart > 0 else "behind"
        checks.append(
            Check.tried(
                name,
                abs(apart) <= MOST_APART_S,
                f"this machine is {abs(apart):.0f} s {ahead} it",
                "set the clock, such as by NTP",
            )
        )
    return checks or [Check("clock", None, "no server to compare it with")]


def _dashboard(submit: str | None) -> str:
    """The dashboard of the cluster that sweeps are sent to; empty where there is none to be asked,
    which is a finding of its own."""
    try:
        return "" if submit is None else dashboard_url(submit, _SUBMIT)
    except RanksweepError:
        return ""


def _head(url: str) -> Mapping[str, str]:
    with requests.head(url, timeout=_TIMEOUT_S, allow_redirects=False) as answer:
        return answer.headers


def _date(headers: Mapping[str, str]) -> datetime | None:
    try:
        return parsedate_to_datetime(headers["Date"])
    except (KeyError, ValueError, TypeError):
        return None


def _said(error: Exception) -> str:
    """Why there was no answer, in one line and without an address."""
    reasons: Sequence[tuple[type[Exception], str]] = (
        (requests.HTTPError, ""),
        (requests.Timeout, f"no answer in {_TIMEOUT_S:g} s"),
        (requests.exceptions.SSLError, "its certificate is not trusted"),
        (requests.ConnectionError, "it cannot be connected to"),
    )
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"it answers {error.response.status_code}"
    found = next((said for kind, said in reasons if isinstance(error, kind)), "")
    return found or "it cannot be asked"
