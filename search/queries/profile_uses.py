"""How many runs in MLflow use a profile."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from search.tracking.facts import PREFIX
from search.tracking.mlflow import connect, experiment_names, search_runs


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
    count; a run that a killed launch has left open counts as running until its sweep is resumed.

    Raises:
        TrackingError: the tracking server or database cannot be read.
    """
    client = connect(tracking_uri, must_exist=True)
    experiments = list(experiment_names(client, tracking_uri))
    wanted = {} if key is None else {"profile_key": key}
    counts: dict[str, dict[str, int]] = {}
    for kind in ("trial", "confirm", "sweep"):
        for run in search_runs(client, tracking_uri, experiments, {"kind": kind, **wanted}):
            used = run.data.tags.get(PREFIX + "profile_key")
            if used is None:
                continue
            of_key = counts.setdefault(used, dict.fromkeys(asdict(ProfileUse()), 0))
            running = run.info.status == "RUNNING"
            if kind == "sweep":
                of_key["running_sweeps"] += running
            else:
                of_key["runs"] += 1
                of_key["running"] += running
    uses = {used: ProfileUse(**each) for used, each in counts.items()}
    return {used: use for used, use in uses.items() if use != ProfileUse()}
