"""The trained weights that a warm clone starts from: from the workers, this machine or MLflow."""

from __future__ import annotations

import threading
from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray

from search.paths import SweepPaths, private_files
from search.queries.trial_run import WEIGHTS, find_trial
from search.study.requests import Request
from search.study.warm_clone import Source, WarmWeights
from search.tracking.weights import WeightFiles
from search.tuning.trial import job_name
from spaces.errors import JobError, UsageError, one_line
from spaces.plan import Plan
from spaces.planner import Planner
from trainables.trained.warm import Agreement, agreement, warm_weights
from trainables.trained.weights import read_trained

ASK_AGAIN_S = 0.5


class WarmFiles(WarmWeights):
    """Fetches weights beside the search and keeps what is fetched in a folder, by request.

    A trial that is complete has left them where `tracking.keep_weights` lets it: in the sweep's
    folder until the search ends, then with MLflow. One that trains yet is asked for what it has at
    the end of its epoch.
    """

    def __init__(self, paths: SweepPaths, planner: Planner, queue: Any, tracking_uri: str) -> None:
        self._folder, self._kept = paths.warm, WeightFiles(paths.weights, "trial")
        self._planner, self._queue, self._uri = planner, queue, tracking_uri
        self._fetched: dict[str, Future[Path]] = {}
        self._closed = threading.Event()

    def agree(self, source: Source, plan: Plan) -> str:
        agreed = self._agreement(source, plan)
        if source.state not in (None, "complete"):
            raise UsageError(
                f"--warm: trial {source.number} is {source.state}, and its weights are gone; clone "
                "one that trains or is complete, or clone it without --warm"
            )
        return f"{agreed.in_words} start from its weights"

    def file(self, request: Request, source: Source, plan: Plan) -> Path | None:
        file = self._folder / f"{request.id}.safetensors"
        if file.is_file():  # fetched by an earlier launch
            return file
        if request.id not in self._fetched:
            self._fetched[request.id] = future = Future[Path]()
            thread = threading.Thread(
                target=self._fetch,
                args=(future, file, source, self._agreement(source, plan)),
                name="weights of another trial",
                daemon=True,
            )
            thread.start()
        future = self._fetched[request.id]
        return future.result() if future.done() else None

    def close(self, over: Collection[str]) -> None:
        """Fetch no more, and drop the files of requests that are `over`."""
        self._closed.set()
        for request in over:
            (self._folder / f"{request}.safetensors").unlink(missing_ok=True)

    def _agreement(self, source: Source, plan: Plan) -> Agreement:
        return agreement(self._planner.plan(source.choice), plan)

    def _fetch(self, future: Future[Path], file: Path, source: Source, agreed: Agreement) -> None:
        try:
            trained = read_trained(self._weights(source), f"trial {source.number}", own_code=True)
            part = file.with_suffix(".part")
            with private_files():
                self._folder.mkdir(parents=True, exist_ok=True)
                part.write_bytes(warm_weights(trained, agreed).to_bytes())
                part.replace(file)
            future.set_result(file)
        except UsageError as error:
            future.set_exception(error)
        except Exception as error:  # whatever it is: the search waits for this to end
            future.set_exception(
                UsageError(
                    f"--warm: the weights of trial {source.number} cannot be had "
                    f"({one_line(error)}); ask again later, or clone it without --warm"
                )
            )

    def _weights(self, source: Source) -> bytes:
        """The file of a trial's weights, as they are now.

        Raises UsageError where it has none, RanksweepError where they cannot be had now.
        """
        so_far = self._so_far(source) if source.state is None else None
        if so_far is not None:
            return so_far
        kept = self._kept.file(source.number)
        if kept.is_file():
            return kept.read_bytes()
        if source.run_id is not None and source.state == "complete":
            try:
                run = find_trial(self._uri, source.run_id)
            except UsageError as error:  # the run is gone
                raise JobError(str(error)) from error
            if WEIGHTS in run.files:
                return run.artifact(WEIGHTS)
        raise UsageError(
            f"--warm: trial {source.number} has kept no weights; clone one that trains yet or is "
            "the best of its method, or launch with tracking.keep_weights: all"
        )

    def _so_far(self, source: Source) -> bytes | None:
        """What a trial that trains has at the end of its epoch; None where it ends before."""
        job = job_name(source.number)
        may_come = bool(ray.get(self._queue.ask_so_far.remote(job)))
        while may_come and not self._closed.wait(ASK_AGAIN_S):
            made, may_come = ray.get(self._queue.collect_so_far.remote(job))
            if made is not None:
                return bytes(made)
        return None
