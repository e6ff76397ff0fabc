"""A trial's run as MLflow has it: its choice, its plan, and the weights that it has kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.config.yaml_file import parse_yaml
from search.objective import Objective
from search.redaction import redacted
from search.tracking.facts import RunFacts
from search.tracking.liveness import fate
from search.tracking.runs import RecordedRuns
from spaces.errors import ConfigError, UsageError
from spaces.plan import Plan
from trainables.trained.weights import Trained, read_trained

PLAN, CHOICE, WEIGHTS, SWEEP = (
    "plan.safetensors",
    "choice.yaml",
    "weights.safetensors",
    "sweep.yaml",
)


@dataclass(frozen=True)
class TrialRun:
    """The run of a trial: what it says of itself, and the names of its artifacts."""

    facts: RunFacts
    files: frozenset[str]
    recorded: RecordedRuns

    @property
    def run_id(self) -> str:
        """Its id in MLflow."""
        return self.facts.run_id

    @property
    def method(self) -> str:
        """The method of its choice."""
        return self.facts.method

    def artifact(self, name: str) -> bytes:
        """One artifact of the run. Raises UsageError where it has none of that name."""
        if name not in self.files:
            raise UsageError(f"{self.run_id}: has no {name} in MLflow; give the run of a trial")
        return self.recorded.artifact(self.run_id, name)

    def plan(self) -> Plan:
        """The plan that was trained."""
        return Plan.from_bytes(self.artifact(PLAN), f"{self.run_id}/{PLAN}")

    def trained(self, *, own_code: bool = False) -> Trained:
        """The weights that were trained. Raises UsageError, with the way to them, where none are
        kept, and for a kind of task of a user's own unless `own_code` is wanted."""
        if WEIGHTS not in self.files:
            raise UsageError(f"{self.run_id}: {self._why_no_weights()}")
        return read_trained(self.artifact(WEIGHTS), f"{self.run_id}/{WEIGHTS}", own_code=own_code)

    def sweep(self) -> dict[str, Any]:
        """The sweep that the trial was part of, as plain data."""
        parent = self.facts.parent
        if parent is None:
            raise UsageError(f"{self.run_id}: belongs to no sweep; give the run of a trial")
        text = self.recorded.artifact(parent, SWEEP).decode()
        sweep: dict[str, Any] = parse_yaml(text, f"{parent}/{SWEEP}")
        return sweep

    @property
    def objective(self) -> Objective:
        """The metric that its sweep has searched for, and the direction that is better."""
        return Objective(self.facts.metric or "accuracy", self.facts.mode or "max")

    def confirmations(self) -> list[RunFacts]:
        """The complete confirmations of its choice in its sweep, one of each seed, by seed."""
        if self.facts.parent is None:
            return []
        found = self.recorded.search(
            {"kind": "confirm", "status": "complete"},
            [self.facts.experiment_id],
            self.facts.parent,
        )
        by_seed: dict[int, RunFacts] = {}
        for run in found:
            is_its = run.number == self.facts.number or run.choice == self.facts.choice
            if is_its and run.seed is not None:
                by_seed.setdefault(run.seed, run)
        return [by_seed[seed] for seed in sorted(by_seed)]

    def confirmed_best(self) -> TrialRun:
        """The confirmation of its choice that is best on dev, of those that have weights.

        Itself where it is a confirmation, or none of its choice has weights. What was measured on
        test decides nothing: that would flatter the test score.
        """
        if self.facts.kind == "confirm":
            return self
        objective, best = self.objective, None
        name = f"dev_{objective.metric}"
        for run in self.confirmations():
            if name not in run.metrics:
                continue
            files = self.recorded.files(run.run_id)
            if WEIGHTS in files and (
                best is None or objective.is_better(run.metrics[name], best.facts.metrics[name])
            ):
                best = TrialRun(run, files, self.recorded)
        return best or self

    def _sweep_runs(self) -> bool:
        sweep = None if self.facts.parent is None else self.recorded.find(self.facts.parent)
        return sweep is not None and fate(sweep) == "runs"

    def _why_no_weights(self) -> str:
        if self.facts.kind == "confirm":
            number = "?" if self.facts.number is None else self.facts.number
            return (
                "is a confirmation that has kept no weights; export the trial that it confirms "
                f"(number {number} of its sweep)"
            )
        status = self.facts.status or "running"
        if status == "running":
            return "has no weights yet; export it when its sweep has ended"
        if status != "complete":
            return (
                f"has no weights, for it is {status}; export a complete trial "
                "(`ranksweep best` shows them)"
            )
        if self._sweep_runs():
            return (
                "has no weights in MLflow yet; they are sent when the search of its sweep is over"
            )
        return (
            "has kept no weights; launch with tracking.keep_weights: all (best keeps those of each "
            "method's best trial), or export a trial that has them"
        )


def find_trial(tracking_uri: str, run_id: str) -> TrialRun:
    """The run of a trial. Raises ConfigError where no run has that id, or it is no trial's."""
    recorded = RecordedRuns(tracking_uri)
    run = recorded.find(run_id)
    if run is None:
        raise ConfigError(
            f"RUN_ID: {redacted(tracking_uri)} has no run {run_id[:80]!r}; "
            "`ranksweep best --task T` shows the ids of trials"
        )
    if run.kind not in ("trial", "confirm"):
        what = "no run of ranksweep" if run.kind is None else f"the run of a {run.kind}"
        raise ConfigError(
            f"RUN_ID: {run_id} is {what}; give that of a trial (`ranksweep best --task T` shows "
            "them)"
        )
    return TrialRun(run, recorded.files(run_id), recorded)
