"""Ray's job server: submits, finds, follows and stops the jobs that sweeps run as."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import requests
from packaging.requirements import Requirement
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from search.launch.private_ray import version_of_server
from search.launch.ray_environment import token_remedy
from search.launch.submission.address import dashboard_url
from search.launch.submission.wheel import this_distribution
from spaces.errors import ConfigError, JobError, one_line

SWEEP, NUMBER, FOLDER = "ranksweep_sweep", "ranksweep_number", "ranksweep_folder"
"""What the metadata of a job say of it."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOP_WAIT_S = 120
"""Seconds that a job has to end in order, after which Ray kills what is left of it."""
LOOK_S = 0.5
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray that tell each step of a submission, and warn of each large file."""
_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


class TakenError(JobError):
    """There is a job of this id already."""


@dataclass(frozen=True)
class Job:
    """One job that a sweep runs as, or ran: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.

    `folder` is the remote folder as it was given; `pid` its process on the head node, once it has
    joined the cluster.
    """

    id: str
    sweep: str
    number: int
    status: str
    folder: str
    message: str
    exit_code: int | None
    pid: int | None

    @property
    def has_ended(self) -> bool:
        """Whether it is over, however it ended."""
        return self.status in ENDED


class JobServer:
    """The job server of one cluster, which runs a Ray that ranksweep goes with.

    Raises ConfigError where there is none at the address, it asks for another token, or its Ray is
    of another version. `option` is the one that gives the address, which an error names.
    """

    def __init__(self, address: str, option: str) -> None:
        if importlib.util.find_spec("aiohttp") is None:
            raise ConfigError(
                f"{option}: Ray's client of jobs is not installed; run `pip install "
                "'ranksweep[cluster]'`"
            )
        self.address = dashboard_url(address, option)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        with _no_other_address(), _opening(self.address, option):
            self._client = JobSubmissionClient(self.address)
        self._check_version(option)

    @property
    def ray_version(self) -> str | None:
        """The version of its Ray, where it says that."""
        return version_of_server(self._client)

    def _check_version(self, option: str) -> None:
        there = self.ray_version
        (wanted,) = (
            each for each in map(Requirement, this_distribution().requires) if each.name == "ray"
        )
        if there is not None and not wanted.specifier.contains(there, prereleases=True):
            raise ConfigError(
                f"{option}: the cluster at {self.address} runs Ray {there}, and ranksweep needs "
                f"ray{wanted.specifier}; start the cluster with that, or use a ranksweep of its "
                "time"
            )

    def jobs_of(self, sweep: str) -> list[Job]:
        """The jobs that the cluster knows of a sweep, the last one last."""
        with _asking(self.address):
            every = self._client.list_jobs()
        jobs = [_job(each) for each in every if (each.metadata or {}).get(SWEEP) == sweep]
        return sorted(jobs, key=lambda job: job.number)

    def job(self, job_id: str) -> Job:
        """A job as it is now."""
        with _asking(self.address):
            return _job(self._client.get_job_info(job_id))

    def submit(
        self,
        job_id: str,
        entrypoint: str,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> None:
        """Start a job, on the head node and without a CPU of its own.

        Raises TakenError where its id is taken, JobError where the server refuses it otherwise.
        """
        try:
            with _asking(self.address):
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=job_id,
                    runtime_env=dict(runtime_env),
                    metadata=dict(metadata),
                )
        except JobError as error:
            if "already exists" in str(error.__cause__):
                raise TakenError(f"the job {job_id} exists already") from error
            raise

    async def output(self, job_id: str) -> AsyncIterator[str]:
        """What a job writes, from its beginning on, in pieces of any length, until it has ended.

        Raises JobError where the connection breaks.
        """
        import aiohttp

        try:
            async for text in self._client.tail_job_logs(job_id):
                yield text
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise JobError(f"the job server of {self.address}: {one_line(error)}") from error

    def stop(self, job: Job, *, at_once: bool = False) -> Job:
        """End a job as Ctrl-C would, `at_once` as pressing it twice; the job once it has ended.

        Raises JobError where it has not ended in time.
        """
        with _asking(self.address):
            self._client.stop_job(job.id)
        helper = self._hurry(job) if at_once and job.pid is not None else None
        try:
            return self.ended(job.id, STOP_WAIT_S + 30)
        finally:
            if helper is not None:
                self._forget(helper)

    def ended(self, job_id: str, seconds: float) -> Job:
        """A job once it has ended. Raises JobError where it does not within so many seconds."""
        give_up = time.monotonic() + seconds
        while not (job := self.job(job_id)).has_ended:
            if time.monotonic() > give_up:
                raise JobError(
                    f"the job {job_id} has not ended within {seconds:g} s; look at it with "
                    f"`ray job logs --address {self.address} {job_id}`"
                )
            time.sleep(LOOK_S)
        return job

    def _hurry(self, job: Job) -> str:
        """Signal a job's process once more, by a job that does nothing else: Ray does so once."""
        helper = f"{job.id}.hurried-{time.time_ns():x}"
        self.submit(helper, f"kill -TERM {job.pid}", {}, {})
        return helper

    def _forget(self, job_id: str) -> None:
        with suppress(JobError):
            self.ended(job_id, 30)
            with _asking(self.address):
                self._client.delete_job(job_id)


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    driver = details.driver_info
    return Job(
        id=str(details.submission_id),
        sweep=metadata.get(SWEEP, ""),
        number=int(metadata.get(NUMBER, 0)),
        status=str(getattr(details.status, "value", details.status)),
        folder=metadata.get(FOLDER, ""),
        message=details.message or "",
        exit_code=details.driver_exit_code,
        pid=int(driver.pid) if driver is not None and str(driver.pid).isdigit() else None,
    )


@contextmanager
def _no_other_address() -> Iterator[None]:
    """While open, no variable stands in for the address that is given, as Ray would have it."""
    before = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _opening(address: str, option: str) -> Iterator[None]:
    try:
        yield
    except AuthenticationError:
        raise ConfigError(
            f"{option}: the cluster at {address} asks for a token, or for another than is set "
            f"here; {token_remedy()}"
        ) from None
    except Exception as error:  # whatever its first question comes to
        raise ConfigError(
            f"{option}: the cluster at {address} takes no jobs ({one_line(error)[:300]}); check "
            "that its head node has ray[default]"
        ) from error


@contextmanager
def _asking(address: str) -> Iterator[None]:
    """Raise what a request to the job server fails with as JobError."""
    try:
        yield
    except (RuntimeError, OSError, AuthenticationError) as error:
        if isinstance(error, requests.exceptions.ConnectionError):
            reason = "it does not answer any more"
        else:
            reason = _last_line(str(error))
        raise JobError(
            f"the job server of {address}: {reason}; check that the cluster runs"
        ) from error


def _last_line(text: str) -> str:
    """Of a server's error that may be a whole traceback what it comes to."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it fails without a word"
