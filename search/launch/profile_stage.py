"""The first stage of a launch: the profile from the store, or computed once among all launches."""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from search.config.sweep import SweepConfig
from search.launch.prepare import SweepInputs, same_result
from search.paths import SweepPaths, private_files
from search.progress import Progress
from search.store import keys
from search.store.lease import Lease, Leases, Owner, this_process
from search.tracking.tracker import Tracker
from search.wording import duration
from spaces.errors import JobError, RanksweepError, StoreError
from spaces.profile import Profile
from trainables.resident.jobs import Event, Message, ProfileJob, ProfileSteps, Started

if TYPE_CHECKING:
    from search.store.objects import ObjectStorage
    from trainables.resident.groups import ResidentWorkers

logger = logging.getLogger(__name__)


class _LeaseLostError(Exception):
    """Another launch has taken over the profile while this one was paused."""


class ProfileStage(AbstractContextManager["ProfileStage"]):
    """The profile of a launch. On entry it is found in the store, or this launch is the one to
    compute it; where another launch computes it, entry waits for that one to publish or to die.

    `profile` is the one found. Raises StoreError where the store cannot be asked, before any work.
    """

    def __init__(
        self, config: SweepConfig, prepared: SweepInputs, sweep_paths: SweepPaths, view: Progress
    ) -> None:
        self._config, self._prepared, self._view = config, prepared, view
        self._kept = sweep_paths.unpublished_profile(prepared.key)
        self.lease: Lease | None = None
        self._held = ExitStack()
        self._shown: str | None = None
        self.profile: Profile | None = None
        self.seconds: float | None = None
        """How long the computation took, with all its waiting; None where the store had it."""
        self.kept_in: str | None = None
        """File of a profile that the store did not take."""

    def __enter__(self) -> ProfileStage:
        self._find_or_claim()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def obtained(
        self, workers: ResidentWorkers, tracker: Tracker, sweep_run_id: str | None
    ) -> Profile:
        """The profile from the store, or computed, published and logged. Raises JobError."""
        prepared, store = self._prepared, self._prepared.store
        run_id = tracker.start_profile(
            sweep_run_id,
            prepared.key,
            params=self._config.profile.model_dump(mode="json"),
            tags=prepared.profile_of,
        )
        started = time.monotonic()
        tags: dict[str, str] = {"store": store.name}
        metrics: dict[str, float] = {}
        try:
            while self.profile is None:
                try:
                    self.profile, tags, metrics = self._computed(workers)
                    self.seconds = time.monotonic() - started
                except _LeaseLostError:
                    self._view.message(
                        "another launch has taken over this profile while this one was paused; "
                        "what was computed here is discarded"
                    )
                    self._held.close()
                    self._find_or_claim()
        except BaseException as error:
            tracker.end(run_id, "failed", error=str(error) or type(error).__name__)
            raise
        if self.seconds is not None or tracker.find_profile(prepared.key) != run_id:
            self._log_pictures(tracker, run_id)
            tracker.end(run_id, "complete", metrics=metrics, tags=tags)
        return self.profile

    def _log_pictures(self, tracker: Tracker, run_id: str) -> None:
        """Keep the figures of `profiles show` with the profile's run."""
        # Not at the top: they load matplotlib, which a launch with a known profile has no use for.
        from search.reports.profile_figures import profile_report
        from search.reports.profile_pictures import write_pictures

        assert self.profile is not None, "it has just been had"
        with TemporaryDirectory(prefix="ranksweep-") as folder:
            try:
                write_pictures(profile_report(self.profile), Path(folder))
            except RanksweepError as error:  # one without what the figures show, or a full disk
                logger.warning("the figures of profile %s: %s", self._prepared.key[:12], error)
                return
            tracker.log_folder(run_id, Path(folder), "figures")

    # Finding and claiming ---------------------------------------------------------------------

    def is_cached(self) -> bool:
        """Whether the store has the profile; says so where it has."""
        store, key = self._prepared.store, self._prepared.key
        self.profile = store.get(key, self._unfit)
        if self.profile is not None:
            self._view.message(f"profile {key[:12]} is cached in {store.name}")
            if self._prepared.borrowed is not None:
                self._view.message(self._whose())
        return self.profile is not None

    def _find_or_claim(self) -> None:
        """Set `profile`, or hold the lease to compute it; waits for a launch that holds it."""
        store, key = self._prepared.store, self._prepared.key
        if self.is_cached() or self._kept.is_file():
            return
        if self._prepared.borrowed is not None:
            raise StoreError(f"profile.use: {key} has gone from {store.name}; name another")
        if not store.objects.creates_once():
            self._view.message(
                f"{store.name} ignores conditional writes, so launches cannot share leases there; "
                "this one computes the profile without looking whether another does"
            )
            return

        def is_needed() -> bool:
            self.profile = store.get(key, self._unfit)
            return self.profile is None

        place = store.objects.under(keys.profile_prefix(key))
        leases = Leases(place, self._config.cluster.lease_seconds)
        self.lease = leases.take(is_needed, self._say_whom_we_wait_for)
        if self.lease is not None:
            self._held.enter_context(self.lease)
            if self._shown is not None:
                self._view.message(f"this launch takes over from {self._shown}")
        elif self._shown is not None:
            self._view.message(f"profile {key[:12]} was published by another launch")

    def _whose(self) -> str:
        """Of what a borrowed profile is, and how that differs from the sweep."""
        prepared, of = self._prepared, self._prepared.profile_of
        differs = [
            name
            for name, own, its in (
                ("another base", prepared.base_fingerprint, of["base"]),
                ("other rows or max_length", prepared.task.train_fingerprint, of["rows"]),
            )
            if own != its
        ]
        shown = f" ({' and '.join(differs)} than the sweep's)" if differs else ""
        return f"it is of the task {of['task']} and the base {of['base_uri']}{shown}"

    def _unfit(self, profile: Profile) -> str | None:
        """Why a profile that verifies cannot be that of this base, task and target modules."""
        prepared, said = self._prepared, profile.metadata
        if prepared.borrowed is not None:
            return None
        if said.get("base") != prepared.base_fingerprint:
            return "it is the profile of another base"
        if said.get("task") != prepared.task.train_fingerprint:
            return "it is the profile of another task"
        if profile.targets != prepared.targets:
            return "it is the profile of other target modules"
        if not same_result(said.get("settings"), self._config.profile):
            return "it is a profile with other settings"
        return None

    @property
    def _checkpoints(self) -> ObjectStorage:
        """Where the job that computes the profile saves it on the way."""
        return self._prepared.store.objects.under(keys.checkpoint_prefix(self._prepared.key))

    def _say_whom_we_wait_for(self, owner: Owner, silent: float) -> None:
        if self._shown != str(owner):
            self._shown = str(owner)
            self._view.message(
                f"profile {self._prepared.key[:12]} is being computed by {owner}; waiting for it, "
                f"or {duration(owner.seconds)} without a sign of life"
            )
        detail = f"waiting for {owner}"
        if silent > owner.seconds / 2:
            detail += f"; no sign of life for {duration(silent)}"
        self._view.stage("profile", detail)

    # Computing --------------------------------------------------------------------------------

    def _computed(
        self, workers: ResidentWorkers
    ) -> tuple[Profile, dict[str, str], dict[str, float]]:
        """The computed and published profile, and the tags and metrics of its run."""
        data, seconds = self._kept_or_made(workers)
        profile = Profile.from_bytes(data, "the computed profile")
        where = self._publish(data, profile, seconds)
        self._view.message(f"profile {self._prepared.key[:12]} is in {where}")
        tags = {"profile_sha256": hashlib.sha256(data).hexdigest(), "store": where}
        metrics = {
            "seconds": seconds,
            "scored_steps": float(profile.scored_steps),
            "bytes": float(len(data)),
        }
        return profile, tags, metrics

    def _kept_or_made(self, workers: ResidentWorkers) -> tuple[bytes, float]:
        """The profile's file as bytes, and the seconds that it took."""
        view, prepared = self._view, self._prepared
        if self._kept.is_file():
            view.message(f"profile {prepared.key[:12]} is taken from {self._kept}")
            return self._kept.read_bytes(), 0.0
        modules = f"{len(prepared.targets)} modules"
        view.stage("profile", f"{modules}; the workers are starting")

        def on_event(event: Event) -> None:
            self._check_lease()
            match event:
                case Started():
                    view.stage("profile", modules)
                case ProfileSteps(phase, done, total, learning_rate):
                    view.stage("profile", phase)
                    view.profile_step(done, total, learning_rate)
                case Message(text):
                    view.message(text)

        job = ProfileJob(settings=self._config.profile, checkpoints=self._checkpoints)
        made = workers.run(job, on_event=on_event)
        self._check_inputs_unchanged()
        return made.profile, made.seconds

    def _check_lease(self) -> None:
        if self.lease is not None and self.lease.lost.is_set():
            raise _LeaseLostError

    def _check_inputs_unchanged(self) -> None:
        """Hash base and training rows again: a profile is published for what it was made of."""
        from trainables.bases.location import fingerprint
        from trainables.tasks.task import build_task

        prepared = self._prepared
        if fingerprint(prepared.base_uri) != prepared.base_fingerprint:
            raise JobError("base: its files changed while it was profiled; launch again")
        task = build_task(self._config.task, self._config.base)
        if task.train_fingerprint != prepared.task.train_fingerprint:
            raise JobError("task.data: the rows changed while they were profiled; launch again")

    def _publish(self, data: bytes, profile: Profile, seconds: float) -> str:
        """Publish a profile; returns where it is: a store that is away costs nobody the profile."""
        from trainables.profiling.checkpoints import remove_checkpoints

        prepared, kept = self._prepared, self._kept
        manifest = {
            "base": prepared.base_uri,
            "base_fingerprint": prepared.base_fingerprint,
            "task": self._config.task.name,
            "train_fingerprint": prepared.task.train_fingerprint,
            "modules": len(prepared.targets),
            "scored_steps": profile.scored_steps,
            "top_percent_grid": list(profile.top_percent_grid),
            "seconds": round(seconds, 3),
            "by": this_process(),
        }
        try:
            if self.lease is not None and not self.lease.is_held():
                raise _LeaseLostError
            first = prepared.store.put(prepared.key, data, manifest)
        except StoreError as error:
            with private_files():
                kept.write_bytes(data)
            self._view.message(f"{error}; the profile is kept in {kept}, for the next launch")
            self.kept_in = str(kept)
            return str(kept)
        kept.unlink(missing_ok=True)
        try:
            remove_checkpoints(self._checkpoints)
        except StoreError as error:
            self._view.message(f"{error}; the job's checkpoints are left there")
        if not first:
            self._view.message("another launch has published this profile first")
        return prepared.store.name
