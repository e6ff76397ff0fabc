"""Launches on clusters of several nodes: one that is lost, those that an autoscaler starts."""

from __future__ import annotations

import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.search.launches import Launch, check_nothing_runs, environment

pytestmark = pytest.mark.ray


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Node:
    """One Ray node of one CPU, as `ray start` makes it, in processes of its own."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        folder.mkdir()
        options = ["--num-cpus=1", "--disable-usage-stats", f"--temp-dir={folder}", "--block"]
        self._process = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), "start", *arguments, *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**environment(), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", **variables},
        )  # fmt: skip

    def kill(self) -> None:
        """As when the machine loses its power."""
        if self._process.poll() is not None:
            return
        parent = psutil.Process(self._process.pid)
        processes = [*parent.children(recursive=True), parent]
        for process in processes:
            process.suspend()  # none of them sees another die
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)
        self._process.wait()


def start_head(folder: Path, port: int, *arguments: str, **variables: str) -> Node:
    options = ["--include-dashboard=false", "--node-ip-address=127.0.0.1"]
    return Node(folder, "--head", f"--port={port}", *options, *arguments, **variables)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters ask for a token, and launches have it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))


@pytest.fixture
def two_nodes(short_folder: Path, token: None) -> Iterator[tuple[str, Node]]:
    """The address of a cluster, and its second node."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    head = start_head(short_folder / "h", port)
    try:
        second = Node(short_folder / "w", f"--address={address}")
        try:
            yield address, second
        finally:
            second.kill()
    finally:
        head.kill()


@pytest.fixture
def autoscaled(short_folder: Path, token: None) -> Iterator[str]:
    """The address of a cluster whose autoscaler starts up to two more nodes, as processes here."""
    port = free_port()
    one_cpu = {"resources": {"CPU": 1}, "node_config": {}}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray")
    config = {
        "cluster_name": "fake",
        "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"},
        "available_node_types": {
            "ray.head.default": {**one_cpu, "max_workers": 0},
            "more": {**one_cpu, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 1,
        **{f"{name}_commands": [] for name in (*commands, "worker_start_ray")},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }
    file = short_folder / "autoscaler.yaml"
    file.write_text(yaml.safe_dump(config))
    head = start_head(
        short_folder / "h", port, f"--autoscaling-config={file}",
        AUTOSCALER_UPDATE_INTERVAL_S="1", RAY_FAKE_CLUSTER="1",
    )  # fmt: skip
    try:
        yield f"127.0.0.1:{port}"
    finally:
        head.kill()


def sweep_on(
    address: str, tiny_sweep: dict[str, Any], folder: Path, *, epochs: int, groups: int
) -> None:
    """Writes a sweep of six trials on a cluster, one group to a node."""
    sweep = {**tiny_sweep, "train": {"epochs": epochs, "batch_size": 16}}
    sweep["search"] = {"trials": 6, "scheduler": "none"}
    sweep["cluster"] = {"address": address, "groups": groups, "resources_per_worker": {"CPU": 1}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))


def wait_for_trials_at_once(launch: Launch, number: int) -> int:
    """Until so many trials have reported and not ended: the line that it was seen at."""
    at = launch.wait_for(r"trial \d+: epoch [2-9] of")
    while True:
        begun = set(re.findall(r"trial (\d+): epoch", launch.said))
        ended = set(re.findall(r"trial (\d+): [^\n]* complete", launch.said))
        if len(begun - ended) >= number:
            return at
        at = launch.wait_for(r"trial \d+: epoch", at)


def test_a_lost_nodes_trial_goes_to_the_other_group_and_the_sweep_ends_whole(
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    two_nodes: tuple[str, Node],
    launched: Callable[..., Launch],
) -> None:
    address, second = two_nodes
    sweep_on(address, tiny_sweep, tmp_path, epochs=30, groups=2)
    launch = launched(tmp_path)
    at = wait_for_trials_at_once(launch, 2)
    second.kill()
    launch.wait_for(r"group \d lost a worker .* starts again", at)
    assert launch.end(300) == 0, launch.said
    assert launch.result()["states"] == {"complete": 6}, launch.said
    assert len(check_nothing_runs(tmp_path)) == 6


@pytest.mark.long
def test_groups_come_up_on_the_nodes_that_an_autoscaler_starts_for_them(
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    autoscaled: str,
    launched: Callable[..., Launch],
) -> None:
    sweep_on(autoscaled, tiny_sweep, tmp_path, epochs=500, groups=3)
    launch = launched(tmp_path)
    wait_for_trials_at_once(launch, 3)
    launch.process.send_signal(signal.SIGINT)
    assert launch.end() == 130, launch.said
    check_nothing_runs(tmp_path)
