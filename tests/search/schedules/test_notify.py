"""Webhooks are told what befell a schedule; one that is away or hangs delays nothing."""

from __future__ import annotations

import logging
import math
import socket
import threading
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from search.schedules.notify import (
    TRIES,
    Event,
    Notifier,
    ReceiverSettings,
    address_of,
    document_of,
    shown_host,
)
from spaces.errors import ConfigError
from tests.search.schedules.receiver import receiving

SECRET = "T000/B000/very-secret"
DONE = Event("done", "nightly", "tiny is done: 0.91", {"sweep": "tiny", "best": 0.91})
SEEN = Event("seen", "nightly", "encoder version 3")


@pytest.fixture
def silent() -> Iterator[str]:
    """URL of a server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/{SECRET}"


def free_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/{SECRET}"


def test_slack_gets_a_line_and_others_the_event() -> None:
    with receiving() as slack, receiving() as plain:
        notifier = Notifier(
            [
                ReceiverSettings(url=f"{slack.url}/{SECRET}"),
                ReceiverSettings(url="env:HOOK", kind="json", events=("done",)),
            ],
            environ={"HOOK": f"{plain.url}/hook"},
        )
        notifier.tell(SEEN)
        notifier.tell(DONE)
        notifier.close()
    assert slack.heard == [
        ("POST", f"/{SECRET}", {"text": "nightly: encoder version 3"}),
        ("POST", f"/{SECRET}", {"text": "nightly: tiny is done: 0.91"}),
    ]
    assert plain.heard == [
        (
            "POST",
            "/hook",
            {
                "event": "done",
                "schedule": "nightly",
                "text": "tiny is done: 0.91",
                "sweep": "tiny",
                "best": 0.91,
            },
        )
    ]


def test_what_is_posted_is_json_on_one_line_and_without_credentials() -> None:
    event = Event(
        "failed",
        "nightly",
        "no <b>way</b> to\npostgresql://me:hunter2@db/x",
        {"event": "other", "loss": math.nan, "all": [math.inf, {"a": 1.5}], "uri": "s3://k:p@b/x"},
    )
    slack = document_of(event, "slack")["text"]
    assert slack == "nightly: no &lt;b&gt;way&lt;/b&gt; to postgresql://***@db/x"
    assert document_of(event, "json") == {
        "event": "failed",
        "schedule": "nightly",
        "text": "no <b>way</b> to postgresql://***@db/x",
        "loss": None,
        "all": [None, {"a": 1.5}],
        "uri": "s3://***@b/x",
    }


def test_a_receiver_that_hangs_delays_neither_who_tells_nor_the_others(silent: str) -> None:
    with receiving() as other:
        notifier = Notifier(
            [ReceiverSettings(url=silent), ReceiverSettings(url=f"{other.url}/x", kind="json")]
        )
        for _ in range(500):  # more than wait for one
            notifier.tell(DONE)
        assert other.wait_for(3)
        notifier.close(0)


def test_a_server_that_is_away_for_a_moment_is_told_all_the_same() -> None:
    answers = iter([503, 429, 200, 200])
    with receiving(lambda *_: (next(answers), b"")) as receiver:
        notifier = Notifier([ReceiverSettings(url=receiver.url)], pause_s=0.01)
        notifier.tell(SEEN)
        notifier.tell(DONE)
        notifier.close()
    texts = [document["text"] for _, _, document in receiver.heard]
    assert texts == ["nightly: encoder version 3"] * 3 + ["nightly: tiny is done: 0.91"]


@pytest.mark.parametrize(("status", "requests"), [(500, 2 * TRIES), (404, 2), (302, 2)])
def test_a_failure_is_said_once_and_a_refusal_is_not_tried_again(
    status: int, requests: int, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving(lambda *_: (status, b"")) as receiver:
        notifier = Notifier([ReceiverSettings(url=f"{receiver.url}/{SECRET}")], pause_s=0.001)
        notifier.tell(SEEN)
        notifier.tell(DONE)
        notifier.close()
    assert len(receiver.heard) == requests
    (said,) = caplog.messages
    assert f"it answers {status}" in said
    assert receiver.url in said


def test_the_address_of_a_webhook_is_neither_logged_nor_shown(
    caplog: pytest.LogCaptureFixture, silent: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with receiving() as receiver:
        hooks = [free_url(), f"{receiver.url}/{SECRET}", "https://user:hunter2@127.0.0.1:1/x"]
        settings = [ReceiverSettings(url=each) for each in hooks]
        notifier = Notifier(settings, pause_s=0.001)
        notifier.tell(DONE)
        notifier.close()
    assert "it cannot be connected to" in caplog.text
    shown = caplog.text + str([each.model_dump(mode="json") for each in settings])
    assert SECRET not in shown
    assert "hunter2" not in shown
    assert shown_host(silent) == silent.replace(SECRET, "***")


def test_what_is_left_to_tell_is_dropped_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier([ReceiverSettings(url=free_url())], pause_s=600)
    notifier.tell(DONE)
    notifier.close(0.05)
    assert "has not taken all" in caplog.text
    assert [t for t in threading.enumerate() if t.name.startswith("notify") and not t.daemon] == []


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"url": f"hooks.slack.com/{SECRET}"}, "is no URL; write https://"),
        ({"url": "https:///x"}, "is no URL"),
        ({"url": f"https://host:port/{SECRET}"}, "is no URL"),
        ({"url": [f"https://host/{SECRET}"]}, "is no URL"),
        ({"url": "env:"}, "write env:NAME"),
        ({"url": "https://h/x", "events": ["sean"]}, "did you mean 'seen'?"),
        ({"url": "https://h/x", "events": []}, "names none"),
    ],
)
def test_a_webhook_that_cannot_be_is_refused_without_its_address(
    raw: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        ReceiverSettings.model_validate(raw)
    (error,) = refused.value.errors()
    assert said in error["msg"]
    assert SECRET not in error["msg"]


def test_a_variable_that_holds_no_address_is_refused() -> None:
    receiver = ReceiverSettings(url="env:HOOK")
    with pytest.raises(ConfigError, match=r"HOOK is not set; set it to the URL"):
        address_of(receiver, {})
    with pytest.raises(ConfigError, match=r"what HOOK holds is no URL") as refused:
        Notifier([receiver], environ={"HOOK": SECRET})
    assert SECRET not in str(refused.value)
