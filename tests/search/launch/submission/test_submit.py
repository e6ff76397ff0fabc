"""Submissions to a job server that runs nothing: ids, races, versions, addresses."""

from __future__ import annotations

import importlib.util
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.cli.main import main
from search.launch.submission import submit
from tests.search.launch.submission.job_server_stub import JobServerStub

Command = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServerStub]:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(submit, "APART_S", (0.0, 0.0))
    # Who says where to submit means it, whatever else the environment names.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    stub = JobServerStub()
    yield stub
    stub.close()


@pytest.fixture
def ranksweep(
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """Runs a command where a sweep lies: exit code, the document, what stands on stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tiny_sweep))

    def run(*arguments: str) -> tuple[int, Any, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--json"])
        out, err = capfd.readouterr()
        return int(left.value.code or 0), json.loads(out) if out else None, err

    return run


LAUNCH = ("launch", "sweep.yaml", "--detach", "--submit")


def test_a_sweep_is_sent_as_a_job_of_its_name_with_its_wheel(
    cluster: JobServerStub, ranksweep: Command
) -> None:
    code, document, _ = ranksweep(*LAUNCH, cluster.address)
    assert code == 0
    assert document == {
        "name": "tiny", "job": "tiny-1", "address": cluster.address, "folder": "~/ranksweep",
        "status": "RUNNING",
    }  # fmt: skip
    (asked,) = cluster.submitted
    assert asked["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
    wheel, base = asked["runtime_env"]["py_modules"]
    assert wheel.startswith("gcs://ranksweep-")
    assert wheel.endswith(".whl")
    assert {wheel.removeprefix("gcs://"), base.removeprefix("gcs://")} < set(cluster.packages)


def test_a_sweep_that_runs_is_not_started_again_and_one_that_has_ended_is(
    cluster: JobServerStub, ranksweep: Command
) -> None:
    cluster.of_sweep("tiny", 3, "RUNNING", "/kept")
    cluster.of_sweep("other", 9, "RUNNING")
    code, _, err = ranksweep(*LAUNCH, cluster.address)
    assert code == 2
    assert f"name: the sweep 'tiny' runs at {cluster.address} as job tiny-3" in err
    code, document, err = ranksweep(*LAUNCH, cluster.address, "--resume")
    assert (code, document["job"]) == (0, "tiny-3")
    assert "runs already" in err
    assert not cluster.submitted

    cluster.of_sweep("tiny", 3, "STOPPED", "/kept")
    code, document, _ = ranksweep(*LAUNCH, cluster.address, "--resume")
    assert (document["job"], document["folder"]) == ("tiny-4", "/kept")
    cluster.of_sweep("tiny", 4, "FAILED", "/kept")
    _, document, _ = ranksweep(*LAUNCH, cluster.address, "--remote-folder", "/new")
    assert (document["job"], document["folder"]) == ("tiny-5", "/new")


def test_of_two_that_submit_at_once_the_later_finds_the_others_job(
    cluster: JobServerStub, ranksweep: Command
) -> None:
    def another_was_first(asked: dict[str, Any]) -> tuple[int, str]:
        cluster.of_sweep("tiny", 1, "PENDING")
        return 400, f"ValueError: Job with submission_id {asked['submission_id']} already exists."

    cluster.on_submit = another_was_first
    code, _, err = ranksweep(*LAUNCH, cluster.address)
    assert code == 2
    assert "as job tiny-1" in err


def test_where_both_fail_the_next_number_is_tried(
    cluster: JobServerStub, ranksweep: Command
) -> None:
    def both_fail(asked: dict[str, Any]) -> tuple[int, str] | None:
        if asked["submission_id"] != "tiny-1":
            return None
        cluster.of_sweep("tiny", 1, "FAILED")
        return 400, "ValueError: Job with submission_id tiny-1 already exists."

    cluster.on_submit = both_fail
    code, document, _ = ranksweep(*LAUNCH, cluster.address)
    assert (code, document["job"]) == (0, "tiny-2")


def test_a_job_server_that_fails_is_told_on_one_line(
    cluster: JobServerStub, ranksweep: Command
) -> None:
    cluster.on_submit = lambda _asked: (500, "Traceback\n  File x\nRuntimeError: no agent")
    code, _, err = ranksweep(*LAUNCH, cluster.address)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "RuntimeError: no agent" in line


def test_stop_asks_the_job_of_the_sweep_and_finds_none_where_it_has_ended(
    cluster: JobServerStub, ranksweep: Command
) -> None:
    where = ("--address", cluster.address)
    code, _, err = ranksweep("stop", "tiny", *where)
    assert (code, "knows no job of a sweep 'tiny'" in err) == (2, True)
    cluster.of_sweep("tiny", 1, "RUNNING")
    code, document, _ = ranksweep("stop", "tiny", *where)
    assert (code, document["status"]) == (0, "STOPPED")
    code, _, err = ranksweep("stop", "tiny", *where)
    assert (code, "there is nothing to stop" in err) == (1, True)
    code, _, err = ranksweep("stop", "tiny", *where, "--gone")
    assert (code, "--gone: " in err) == (2, True)


def test_a_cluster_of_another_ray_is_refused_with_both_versions(
    cluster: JobServerStub, ranksweep: Command
) -> None:
    cluster.version["ray_version"] = "2.41.0"
    code, _, err = ranksweep(*LAUNCH, cluster.address)
    assert code == 2
    assert "runs Ray 2.41.0, and ranksweep needs ray<2.61,>=2.60" in err


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("auto", "'auto' is no address of a cluster"),
        ("redis://host:1", "'redis://host:1' is no address of a cluster"),
        ("http://127.0.0.1:99999", "is no address of a cluster"),
        ("http://me:word@127.0.0.1:8265", "holds no credentials"),
        ("ray://127.0.0.1:1", "nobody listens at ray://127.0.0.1:1 (Connection refused)"),
    ],
)
def test_a_wrong_address_is_told_before_anything_is_sent(
    address: str, told: str, ranksweep: Command
) -> None:
    code, _, err = ranksweep(*LAUNCH, address)
    assert code == 2
    assert f"error: --submit: {told}" in err or told in err
    assert "word@" not in err


def test_what_is_no_dashboard_is_told_as_such(ranksweep: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    code, _, err = ranksweep(*LAUNCH, nobody)
    assert (code, f"nobody listens at http://{nobody}" in err) == (2, True)
    stub = JobServerStub()
    stub.version = {"something": "else"}
    code, _, err = ranksweep(*LAUNCH, stub.address)
    stub.close()
    assert (code, "is no dashboard of Ray" in err) == (2, True)


def test_a_dry_run_says_what_would_travel_and_asks_nobody(
    ranksweep: Command, tiny_sweep: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKSWEEP_STORE", "s3://bucket/x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "its-value")
    code, document, err = ranksweep(
        "launch", "sweep.yaml", "--submit", "http://127.0.0.1:1", "--dry-run"
    )
    assert code == 0, err
    train = Path(tiny_sweep["task"]["data"]["train"])
    by_key = {each["key"]: each for each in document["travels"]}
    assert by_key["task.data.train"]["bytes"] == train.stat().st_size
    assert "base" in by_key
    assert document["rows"] == {"train": 96, "dev": 40, "test": 40}
    assert document["required"] == {"RANKSWEEP_STORE": "the store"}
    assert "AWS_ACCESS_KEY_ID" in document["wanted"]
    assert "its-value" not in json.dumps(document)


@pytest.mark.parametrize("option", ["--detach", "--shared", "--remote-folder=x"])
def test_what_goes_with_submit_is_refused_without_it(option: str, ranksweep: Command) -> None:
    code, _, err = ranksweep("launch", "sweep.yaml", option)
    assert code == 2
    assert f"error: {option.partition('=')[0]}: goes with --submit ADDRESS" in err


def test_where_rays_client_of_jobs_is_lacking_the_line_says_what_to_install(
    ranksweep: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "aiohttp" else found(name)
    )
    code, _, err = ranksweep(*LAUNCH, "http://127.0.0.1:1")
    assert code == 2
    assert "pip install 'ranksweep[cluster]'" in err
