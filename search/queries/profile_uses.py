"""How many runs in MLflow use a profile."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from search.tracking.liveness import fate
from search.tracking.runs import RecordedRuns


@dataclass(frozen=True)
class ProfileUse:
    """How many runs in MLflow use one profile."""

    runs: int = 0
    """Trials and confirmations, whatever became of them."""
    running: int = 0
    """Those of them that run now."""
    running_sweeps: int = 0
    """Sweeps on it that run now; such a one may not have a trial yet."""

    @property
    def text(self) -> str:
        """For a table: 12, or 12 (2 running)."""
        running = f" ({self.running} running)" if self.running else ""
        return f"{self.runs:,}{running}"

    @property
    def sentence(self) -> str:
        """For an error: 12 runs, of which 2 are running, and 1 running sweep use."""
        runs = f"{self.runs:,} run{'' if self.runs == 1 else 's'}"
        runs += f", {self.running:,} of them running now," if self.running else ""
        sweeps = f"{self.running_sweeps:,} running sweep{'' if self.running_sweeps == 1 else 's'}"
        users = [runs] * (self.runs > 0) + [sweeps] * (self.running_sweeps > 0)
        one = self.runs + self.running_sweeps == 1
        return f"{' and '.join(users)} {'uses' if one else 'use'}"


def profile_uses(tracking_uri: str, key: str | None = None) -> dict[str, ProfileUse]:
    """Key -> its uses over all experiments, for one profile or for all that are used.

    A run uses the profile that its tag `profile_key` names. Runs that were deleted in MLflow do not
    count; those that a killed launch has left open count as running where it cannot be seen that it
    is gone.

    Raises:
        TrackingError: the tracking server or database cannot be read.
    """
    recorded = RecordedRuns(tracking_uri)
    experiments = recorded.experiments()
    wanted = {} if key is None else {"profile_key": key}
    runs: Counter[str] = Counter()
    running: Counter[str] = Counter()
    running_sweeps: Counter[str] = Counter()
    gone: set[str] = set()
    for kind in ("sweep", "trial", "confirm"):
        for run in recorded.search({"kind": kind, **wanted}, experiments):
            if run.profile_key is None:
                continue
            if kind == "sweep":
                if fate(run) == "gone":
                    gone.add(run.run_id)
                running_sweeps[run.profile_key] += run.is_open and run.run_id not in gone
            else:
                runs[run.profile_key] += 1
                running[run.profile_key] += run.is_open and run.parent not in gone
    return {
        used: ProfileUse(runs[used], running[used], running_sweeps[used])
        for used in runs + running_sweeps
    }
