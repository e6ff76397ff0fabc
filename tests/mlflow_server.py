"""A real MLflow server on loopback, to be stopped, killed and started again in a test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


class MlflowServer:
    """One server with its database and artifacts in a folder; its address stays the same."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = self._folder / "server.log"
        with log.open("a") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server"),
                    *("--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{self._folder}/server.db"),
                    *("--artifacts-destination", str(self._folder / "served")),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._folder,
                # Its workers for jobs take seconds to start, and no test asks for them.
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                    assert answer.status == 200
                return
            except OSError:
                assert self._process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)

    def pause(self) -> None:
        """Let it hang: it takes connections and answers none."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill it with all its workers; may be called twice."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait(timeout=20)
            self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)
