"""What is told of a job while it is followed, and how it has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from search.launch.submission import following
from search.launch.submission.following import Outcome, follow, result_line
from search.launch.submission.job_server import Job, JobServer
from spaces.errors import JobError

JOB = Job("s-1", "s", 1, "RUNNING", "~/x", "", None, None)


class Told(JobServer):
    """A job server that tells these pieces of output, and breaks off at each that is None."""

    address = "http://cluster"

    def __init__(self, pieces: Sequence[str | None], end: Job) -> None:
        self._pieces = list(pieces)
        self._end = end
        self._breaks = pieces.count(None)

    async def output(self, job_id: str) -> AsyncIterator[str]:
        left = self._breaks
        for piece in self._pieces:
            if piece is not None:
                yield piece
            elif left == self._breaks:
                self._breaks -= 1
                self._pieces.remove(None)
                raise JobError("the connection is gone")

    def job(self, job_id: str) -> Job:
        return self._end


def followed(
    pieces: Sequence[str | None], status: str, exit_code: int | None = None, message: str = ""
) -> tuple[list[str], Outcome]:
    heard: list[str] = []
    end = replace(JOB, status=status, exit_code=exit_code, message=message)
    return heard, follow(Told(pieces, end), JOB, heard.append)


def test_lines_are_told_whole_and_the_result_is_kept_apart() -> None:
    line = result_line({"states": {"complete": 2}}, "a table\n", "")
    text = f"one\ntwo\n{line}\n"
    heard, outcome = followed([text[:5], text[5:40], text[40:]], "SUCCEEDED", 0)
    assert heard == ["one", "two"]
    assert outcome.document == {"states": {"complete": 2}}
    assert outcome.drawn == "a table\n"
    assert outcome.error == ""


def test_the_error_that_it_ends_with_is_the_outcomes_and_an_earlier_one_a_line() -> None:
    heard, outcome = followed(["error: a\nb\nerror: c: d\n"], "FAILED", 2)
    assert heard == ["error: a", "b"]
    assert outcome.error == "c: d"
    assert outcome.document is None


def test_a_connection_that_breaks_is_made_again_where_it_broke(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "AGAIN_S", 0.0)
    heard, _ = followed(["one\ntw", None, "o\nthree\n"], "SUCCEEDED", 0)
    assert heard == ["one", "two", "three"]


def test_where_the_job_says_nothing_ray_does() -> None:
    _, outcome = followed([], "FAILED", None, "Failed to set up\nruntime environment")
    assert outcome.error == "the job s-1 failed: Failed to set up runtime environment"
    _, outcome = followed(["sh: python: not found\n"], "FAILED", 127, "exit code 127")
    assert "no `python`" in outcome.error


def test_a_server_that_stays_silent_is_given_up_and_the_sweep_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Gone(Told):
        def job(self, job_id: str) -> Job:
            raise JobError("nobody answers")

    monkeypatch.setattr(following, "AGAIN_S", 0.0)
    monkeypatch.setattr(following, "PATIENCE_S", 0.0)
    with pytest.raises(JobError, match=r"the sweep goes on there, .*`ranksweep watch s --address"):
        follow(Gone([], JOB), JOB, print)
