"""A sweep that is submitted to a cluster of two nodes which know nothing of ranksweep."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.search.launch.submission.bare_nodes import BareNodes
from tests.search.launches import Launch, check_nothing_runs, environment

pytestmark = [pytest.mark.ray, pytest.mark.long]


@pytest.fixture
def nodes(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BareNodes]:
    """A cluster that asks for a token, which the test has."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    running = BareNodes(short_folder)
    yield running
    running.kill()


def ranksweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "search.cli.main", *arguments],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_it_is_sent_left_followed_stopped_and_resumed_to_its_end(
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    nodes: BareNodes,
    launched: Callable[..., Launch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The metric is the user's own, in a file of the directory that it is submitted from.
    (tmp_path / "my_metric.py").write_text(
        "def share_right(answers, references):\n"
        "    return [float(a == r) for a, r in zip(answers, references)]\n"
    )
    sweep = {**tiny_sweep, "train": {"epochs": 60, "batch_size": 16}}
    sweep["task"] = {**tiny_sweep["task"], "metric": "my_metric:share_right"}
    sweep["space"] = {"methods": ["taso"]}
    sweep["search"] = {"trials": 4, "scheduler": "none"}
    # A group to each node, whichever the address that the file names.
    sweep["cluster"] = {"address": "local", "groups": 2, "resources_per_worker": {"CPU": 1}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    submit = ("--submit", nodes.address)
    kept = nodes.home / "ranksweep"

    # Ray's own port is no dashboard, and another token is not this cluster's.
    refused = ranksweep(tmp_path, "launch", "sweep.yaml", "--submit", f"127.0.0.1:{nodes.ray_port}")
    assert refused.returncode == 2
    assert "is no dashboard of Ray" in refused.stderr
    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        refused = ranksweep(tmp_path, "launch", "sweep.yaml", *submit)
    assert refused.returncode == 2
    assert "asks for a token, or for another" in refused.stderr

    sent = ranksweep(tmp_path, "launch", "sweep.yaml", *submit, "--detach", "--json")
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout)["job"] == "tiny-1"

    again = ranksweep(tmp_path, "launch", "sweep.yaml", *submit)
    assert again.returncode == 2
    assert "runs at" in again.stderr

    # Who follows it can leave it again.
    follower = launched(tmp_path, *submit, "--resume")
    follower.wait_for(r"tiny runs already, as job tiny-1")
    at = follower.wait_for(r"trial \d+: .* complete")
    follower.wait_for(r"trial \d+: epoch", at)
    follower.process.send_signal(signal.SIGINT)
    assert follower.end() == 130, follower.said
    assert "detached; tiny goes on" in follower.said

    stopped = ranksweep(tmp_path, "stop", "tiny", "--address", nodes.address, "--json")
    assert stopped.returncode == 0, stopped.stderr
    assert json.loads(stopped.stdout)["status"] == "STOPPED"
    done = check_nothing_runs(kept)
    assert 0 < len(done) < 4

    # At once, as a second Ctrl-C, which Ray itself does not send.
    resumed = launched(tmp_path, *submit, "--resume")
    resumed.wait_for(r"trial \d+: epoch")
    stopped = ranksweep(tmp_path, "stop", "tiny", "--address", nodes.address, "--now")
    assert stopped.returncode == 0, stopped.stderr
    assert resumed.end() == 130, resumed.said
    assert "tiny was stopped; submit it with --resume" in resumed.said
    assert check_nothing_runs(kept) >= done

    resumed = launched(tmp_path, *submit, "--resume")
    assert resumed.end(300) == 0, resumed.said
    result = resumed.result()
    assert result["states"]["complete"] == 4, resumed.said
    assert result["profile_cached"]
    assert result["job"]["job"] == "tiny-3"
    assert check_nothing_runs(kept) > done
