"""Ray nodes whose Python has what ranksweep depends on, and no ranksweep."""

from __future__ import annotations

import os
import site
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

import psutil
import requests


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class BareNodes:
    """A head that takes jobs and a second node, of one CPU each; files are in a short folder.

    Their Python is one of its own that finds the packages of this one by PYTHONPATH. What a
    checkout is installed by, files that a site folder alone reads, does not count there.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        port, dashboard = free_port(), free_port()
        self.ray_port = port
        self.address = f"http://127.0.0.1:{dashboard}"
        venv.create(folder / "env")
        self._python = folder / "env" / "bin" / "python"
        self._start(
            *("--head", f"--port={port}", "--node-ip-address=127.0.0.1"),
            *("--include-dashboard=true", f"--dashboard-port={dashboard}"),
            "--dashboard-host=127.0.0.1",
        )
        self._wait_for_dashboard()
        self._start(f"--address=127.0.0.1:{port}")

    def _start(self, *arguments: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RANKSWEEP_"))}
        tokens = {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH_")}
        # pip for Ray, which installs the wheel with it, is that of this Python
        path = f"{self._python.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {
            **kept, **tokens, "HOME": str(self.home), "PATH": path,
            "PYTHONPATH": ":".join(site.getsitepackages()),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        }  # fmt: skip
        folder = self._folder / f"n{len(self._processes)}"
        options = ["--num-cpus=1", "--disable-usage-stats", f"--temp-dir={folder}", "--block"]
        self._processes.append(
            subprocess.Popen(
                [str(self._python), "-m", "ray.scripts.scripts", "start", *arguments, *options],
                cwd=self.home, env=environment, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip

    def _wait_for_dashboard(self) -> None:
        give_up = time.monotonic() + 90
        while time.monotonic() < give_up:
            try:
                if requests.get(f"{self.address}/api/version", timeout=5).status_code < 500:
                    return
            except requests.exceptions.ConnectionError:
                time.sleep(0.2)
        raise AssertionError("the head's dashboard does not answer")

    def kill(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                every = [*parent.children(recursive=True), parent]
                for each in every:
                    each.kill()
                psutil.wait_procs(every, timeout=30)
            process.wait()
