"""What a submitted sweep writes, followed to its end, and the result that it ends with."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from search.launch.submission.job_server import ENDED, Job, JobServer
from spaces.errors import JobError

RESULT = "ranksweep result: "
"""What the line of a job's output starts with that holds its result."""
ERROR = "error: "
PATIENCE_S = 300.0
"""How long a job server that does not answer is asked again."""
AGAIN_S = 2.0


@dataclass(frozen=True)
class Outcome:
    """How a job has ended. `document` and `drawn` are its result, None where it came to none.

    `error` is what it told last, or what Ray says of it.
    """

    job: Job
    document: Any
    drawn: str | None
    error: str


def result_line(document: Any, drawn: str, error: str) -> str:
    """The line that tells a result to whoever follows the job."""
    return RESULT + json.dumps(
        {"document": document, "drawn": drawn, "error": error}, allow_nan=False
    )


class _Lines:
    """The lines of a job's output: passed on, but for its result and the error at its end."""

    def __init__(self, hear: Callable[[str], object]) -> None:
        self._hear = hear
        self._begun = ""
        self._held: str | None = None
        self.taken = 0
        self.result: dict[str, Any] = {}

    def take(self, text: str) -> None:
        self.taken += len(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._line(line)

    def _line(self, line: str) -> None:
        if line.startswith(RESULT):
            self.result = json.loads(line.removeprefix(RESULT))
            return
        if self._held is not None:
            self._hear(self._held)
            self._held = None
        if line.startswith(ERROR):
            self._held = line
        else:
            self._hear(line)

    def error(self) -> str:
        """The error that the output has ended with; empty where with none."""
        if self._begun:
            self._line(self._begun)
            self._begun = ""
        return (self._held or "").removeprefix(ERROR)


def follow(server: JobServer, job: Job, hear: Callable[[str], object]) -> Outcome:
    """Pass on what a job writes, from its beginning on, until it has ended.

    A connection that breaks is made again where it broke. Raises JobError where the job server does
    not answer for minutes; KeyboardInterrupt leaves the job to go on.
    """
    lines = _Lines(hear)
    heard, silent_since = -1, 0.0
    while True:
        try:
            asyncio.run(_read(server, job.id, lines))
            now = server.job(job.id)
        except JobError as error:
            if lines.taken > heard:
                heard, silent_since = lines.taken, time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_S:
                raise JobError(
                    f"the job server of {server.address} does not answer any more; the sweep goes "
                    f"on there, as long as its cluster does: `ranksweep watch {job.sweep} "
                    f"--address {server.address}` follows it again"
                ) from error
        else:
            heard = -1
            if now.status in ENDED:
                return _outcome(now, lines)
        time.sleep(AGAIN_S)


async def _read(server: JobServer, job_id: str, lines: _Lines) -> None:
    # From the beginning each time, as the server has it: what was taken before is passed over.
    known = lines.taken
    async for text in server.output(job_id):
        new = text[known:]
        known = max(0, known - len(text))
        if new:
            lines.take(new)


def _outcome(job: Job, lines: _Lines) -> Outcome:
    error = lines.error()
    if not error and job.status == "FAILED":
        error = _of_ray(job)
    result = lines.result
    return Outcome(
        job, result.get("document"), result.get("drawn"), error or result.get("error", "")
    )


def _of_ray(job: Job) -> str:
    """What Ray says of a job that has failed without a word of its own."""
    said = [line.strip() for line in job.message.splitlines() if line.strip()]
    what = " ".join(said)[:600] or "Ray does not say why"
    if "'pip'" in what or "pip: " in what:
        what += " (every node needs pip on the PATH that `ray start` had)"
    elif job.exit_code == 127:
        what = "the head node has no `python` on the PATH that `ray start` had"
    return f"the job {job.id} failed: {what}"
