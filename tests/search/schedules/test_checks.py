"""The doctor of a schedule tries registry, claims, address, webhooks, clock and zone."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from search.check import Check
from search.schedules import checks
from search.schedules.checks import ScheduleNeeds, examine_schedule
from search.schedules.notify import ReceiverSettings
from search.store.objects import ObjectStorage
from tests.mlflow_server import MlflowServer
from tests.search.schedules.receiver import receiving

SECRET = "T000/very-secret"


def test_everything_is_tried_and_named(database: str, tmp_path: Path) -> None:
    with receiving(lambda *_: (200, json.dumps({"ray_version": version("ray")}).encode())) as other:
        needs = ScheduleNeeds(
            "nightly",
            store=f"file://{tmp_path}/store",
            tracking=database,
            timezone="Europe/Berlin",
            submit=other.url,
            receivers=(ReceiverSettings(url=f"{other.url}/{SECRET}"),),
        )
        found = {each.name: each for each in examine_schedule(needs)}
        heard = [(method, path) for method, path, _ in other.heard]
        told = examine_schedule(needs, post_test=True)
    assert {name: each.ok for name, each in found.items()} == {
        "registry": True,
        "claims": True,
        f"submit {other.url}": True,
        "notify[0]": True,
        "time zone": True,
        "clock of the cluster": True,
    }
    assert {each for each in heard if each[0] != "HEAD"} == {("GET", "/api/version")}, "no post"
    assert heard.count(("HEAD", "/")) == 2
    assert [each for each in other.heard if each[0] == "POST"] == [
        (
            "POST",
            f"/{SECRET}",
            {"text": "nightly: `ranksweep doctor` asks whether this is read"},
        )
    ]
    assert all(each.ok for each in told)
    assert SECRET not in str([found, told])
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_a_registry_takes_a_model_and_keeps_none(database: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    assert checks.check_registry(database).ok is True
    assert MlflowClient(database, database).search_registered_models() == []
    absent = checks.check_registry(f"sqlite:///{tmp_path}/none.db")
    assert absent.ok is None
    assert not (tmp_path / "none.db").exists()


def test_a_store_that_ignores_conditions_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.check_conditions(f"file://{tmp_path}/a").ok is True
    monkeypatch.setattr(ObjectStorage, "create", lambda *_: True)
    check = checks.check_conditions(f"file://{tmp_path}/a")
    assert check.ok is False
    assert "again" in check.detail
    assert "conditions" in check.remedy
    assert checks.check_conditions("ftp://x").ok is False


def test_an_address_that_is_no_dashboard_of_this_ray_is_told() -> None:
    with receiving(lambda *_: (200, b'{"ray_version": "2.1.0"}')) as old:
        check = checks.check_submit(old.url)
    assert check.ok is False
    assert "runs Ray 2.1.0, and ranksweep needs ray" in check.detail
    assert check.remedy.startswith("start the cluster with that")
    with receiving(lambda *_: (401, b"Unauthorized: Missing authentication token")) as closed:
        check = checks.check_submit(closed.url)
    assert check.ok is False
    assert "RAY_AUTH_TOKEN" in check.remedy
    with receiving(lambda *_: (200, b"<html>")) as other:
        assert "no dashboard of Ray" in checks.check_submit(other.url).detail
    for address in ("http://me:hunter2@127.0.0.1:9", "http://127.0.0.1:9", "127.0.0.1:9", "ray://"):
        gone = checks.check_submit(address)
        assert gone.ok is False, address
        assert gone.remedy, address
        assert "hunter2" not in str(gone)
        assert not gone.detail.startswith("submit: ")


def test_an_address_is_taken_in_every_form_that_a_submission_takes() -> None:
    answer = json.dumps({"ray_version": version("ray")}).encode()
    with receiving(lambda *_: (200, answer)) as cluster:
        for address in (cluster.url, f"{cluster.url}/", f"127.0.0.1:{cluster.port}"):
            check = checks.check_submit(address)
            assert (check.ok, check.detail) == (True, f"takes jobs, Ray {version('ray')}")
        (clock,) = checks.check_clock("file:///x", "sqlite:///x.db", f"127.0.0.1:{cluster.port}")
    assert (clock.name, clock.ok) == ("clock of the cluster", True)


@pytest.mark.parametrize("told_of", [None, "nightly"])
def test_a_webhook_that_is_not_there_is_told_without_its_address(
    told_of: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = ReceiverSettings(url=f"http://127.0.0.1:9/{SECRET}")
    check = checks.check_webhook(1, away, told_of)
    assert (check.name, check.ok) == ("notify[1]", False)
    assert check.detail == "http://127.0.0.1:9/***: it cannot be connected to"
    monkeypatch.delenv("NO_SUCH_HOOK", raising=False)
    unset = checks.check_webhook(0, ReceiverSettings(url="env:NO_SUCH_HOOK"), told_of)
    assert unset.ok is False
    assert unset.remedy == "set it to the URL"


def test_a_time_zone_is_known_or_not() -> None:
    assert checks.check_timezone("Asia/Tokyo").detail.startswith("Asia/Tokyo, ")
    assert checks.check_timezone(None).ok is True
    for unknown in ("Mars/Olympus", "../etc/passwd", ""):
        assert checks.check_timezone(unknown).ok is False


@pytest.mark.parametrize(
    ("off", "ok"), [(0.0, True), (50.0, True), (3600.0, False), (-90.0, False)]
)
def test_the_clock_is_held_against_a_server(off: float, ok: bool, tmp_path: Path) -> None:
    with receiving() as server:
        (check,) = checks.check_clock(
            f"file://{tmp_path}", server.url, now=lambda: time.time() + off
        )
    assert (check.name, check.ok) == ("clock of MLflow", ok)
    if not ok:
        assert ("ahead of" if off > 0 else "behind") in check.detail
        assert check.remedy


def test_a_clock_that_no_server_tells_does_not_matter(tmp_path: Path) -> None:
    local = checks.check_clock(f"file://{tmp_path}", "sqlite:///x.db")
    assert local == [Check("clock", None, "no server to compare it with")]
    assert checks.check_clock(f"file://{tmp_path}", "http://127.0.0.1:9")[0].ok is None


@pytest.mark.server
def test_real_servers_say_what_time_it_is(s3: str, server: MlflowServer) -> None:
    found = checks.check_clock(s3, server.uri)
    assert [(each.name, each.ok) for each in found] == [
        ("clock of the store", True),
        ("clock of MLflow", True),
    ]
    assert checks.check_conditions(s3).ok is True
    assert checks.check_registry(server.uri).ok is True
