"""A job server that knows jobs and runs none: what it is asked is kept, what it says is set."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JobServerStub:
    """Answers as Ray's dashboard does, on loopback.

    `on_submit` may answer a submission in its place with a status and a text.
    """

    def __init__(self, ray_version: str = "2.60.0") -> None:
        self.version: dict[str, str] = {"version": "4", "ray_version": ray_version}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.submitted: list[dict[str, Any]] = []
        self.packages: dict[str, bytes] = {}
        self.on_submit: Callable[[dict[str, Any]], tuple[int, str] | None] = lambda _asked: None
        stub = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/api/version":
                    self.answer(200, json.dumps(stub.version))
                elif self.path == "/api/jobs/":
                    self.answer(200, json.dumps(list(stub.jobs.values())))
                elif self.path.startswith("/api/jobs/"):
                    self.answer(200, json.dumps(stub.jobs[self.path.rpartition("/")[2]]))
                else:
                    self.answer(404, "")

            def do_PUT(self) -> None:
                stub.packages[self.path.rpartition("/")[2]] = self.body()
                self.answer(200, "")

            def do_POST(self) -> None:
                asked = json.loads(self.body() or b"null")
                if self.path.endswith("/stop"):
                    job = stub.jobs[self.path.split("/")[-2]]
                    job["status"] = "STOPPED"
                    self.answer(200, json.dumps({"stopped": True}))
                    return
                refused = stub.on_submit(asked)
                if refused is not None:
                    self.answer(*refused)
                    return
                stub.submitted.append(asked)
                stub.add(asked["submission_id"], "RUNNING", asked["metadata"])
                self.answer(200, json.dumps({"submission_id": asked["submission_id"],
                                             "job_id": asked["submission_id"]}))  # fmt: skip

            def body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def answer(self, status: int, text: str) -> None:
                content = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def add(self, job_id: str, status: str, metadata: dict[str, str]) -> None:
        self.jobs[job_id] = {
            "type": "SUBMISSION", "submission_id": job_id, "status": status, "entrypoint": "x",
            "metadata": metadata,
        }  # fmt: skip

    def of_sweep(self, sweep: str, number: int, status: str, folder: str = "~/x") -> None:
        said = {"ranksweep_sweep": sweep, "ranksweep_number": str(number)}
        self.add(f"{sweep}-{number}", status, {**said, "ranksweep_folder": folder})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
