"""A web server on loopback that notes what it is sent, and answers as a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, str], tuple[int, bytes]]
"""Of a request's method and path: status and content."""


@dataclass
class Receiver:
    """What has come so far: method, path, and the JSON that was posted."""

    port: int
    heard: list[tuple[str, str, Any]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for(self, count: int) -> list[Any]:
        """The first documents that are posted, once there are so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.heard) >= count, timeout=20)
            return [document for _, _, document in self.heard[:count]]


@contextmanager
def receiving(answer: Answer = lambda *_: (200, b"ok")) -> Iterator[Receiver]:
    """A receiver that runs meanwhile."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with receiver.changed:
                document = json.loads(body) if body else None
                receiver.heard.append((self.command, self.path, document))
                receiver.changed.notify_all()
            status, content = answer(self.command, self.path)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    yield receiver
    server.shutdown()
    server.server_close()
    thread.join()
