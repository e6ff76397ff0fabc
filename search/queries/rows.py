"""Trials as rows that can be ranked: each choice by what it holds over all its seeds."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from search.objective import Mode, Objective
from search.queries.holding import Seeds, noise_of
from search.redaction import redacted
from search.tracking.facts import RunFacts, choice_tag, of_members
from search.tracking.liveness import fate, told
from search.tracking.runs import RecordedRuns
from spaces.errors import TrackingError
from spaces.methods.registry import recorded as as_recorded

logger = logging.getLogger(__name__)

Key = tuple[str | None, str]
"""Run id of a sweep, and the text of a choice."""


@dataclass(frozen=True)
class BestRow:
    """One complete trial, as MLflow has it.

    `value` is the metric after the trial's last epoch, and the mean over `seeds` trials where its
    sweep has repeated the choice with other seeds. `holds` is the lower bound that ranks
    (search/queries/holding.py), by all that was measured of the choice on dev: its trials and the
    seeds that confirm it, `holds_of` seeds together; `collapsed` counts those of them that predict
    one class alone.
    `trainable_params` and `head_params` are counts (the head, where fresh, is counted apart).
    `choice` can be given to `spaces.methods.parse_choice` as it is. `task_fingerprint` names the
    rows, how they become inputs, and the metric; `data` is the same of all rows that can be ranked
    together. `suite` has "<member>/<metric>" of each member of a suite, whose mean `value` is.
    """

    run_id: str
    experiment: str
    sweep: str
    task: str
    base: str
    base_uri: str
    method: str
    metric: str
    mode: Mode
    value: float
    trainable_params: int
    head_params: int
    epochs: int
    choice: dict[str, Any]
    profile_key: str | None
    plan_digest: str | None
    task_fingerprint: str | None = None
    data: str | None = None
    seeds: int = 1
    suite: Mapping[str, float] = field(default_factory=dict)
    holds: float = math.nan
    holds_of: int = 1
    collapsed: int = 0

    @property
    def rank(self) -> tuple[bool, float, int]:
        """A key that sorts rows, best first: of equal ones the smaller."""
        gain = Objective(self.metric, self.mode).gain(self.holds)
        return self.collapsed > 0, -gain, self.trainable_params

    @property
    def gain(self) -> float:
        """`value`, of which more is better always."""
        return Objective(self.metric, self.mode).gain(self.value)


def recorded(
    tracking_uri: str,
    tags: Mapping[str, str],
    *,
    experiment: str | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
) -> list[tuple[str | None, BestRow]]:
    """The complete trials with these tags, newest first, each with the run id of its sweep.

    Errors and the rest as in `best`.
    """
    found = _complete_trials(tracking_uri, tags, experiment, say_what_is_gone=True)
    confirmed = [run for _, run in _complete(tracking_uri, "confirm", tags, experiment)]
    return rows_of(found, metric, mode, confirmed)


def rows_of(
    every: Sequence[tuple[str, RunFacts]],
    metric: str | None = None,
    mode: Mode | None = None,
    confirmed: Iterable[RunFacts] = (),
) -> list[tuple[str | None, BestRow]]:
    """Complete trials, with the names of their experiments and newest first, as `recorded` has
    them: a choice that was repeated with other seeds is one row. `confirmed` are the complete
    confirmations of their sweeps."""
    return _with_what_they_hold(measured(every, metric, mode, confirmed))


@dataclass(frozen=True)
class Measured:
    """A choice of a sweep, by the sweep's run id: its row, which says nothing yet of what it holds,
    and all that was measured of it on dev."""

    sweep_run: str | None
    row: BestRow
    seeds: Seeds


def measured(
    every: Sequence[tuple[str, RunFacts]],
    metric: str | None = None,
    mode: Mode | None = None,
    confirmed: Iterable[RunFacts] = (),
) -> list[Measured]:
    """The choices of complete trials, as `rows_of` is given them."""
    repeated: dict[Key, list[BestRow]] = {}
    firsts: list[tuple[str | None, BestRow]] = []
    found = [(name, run) for name, run in every if run.warm_from is None]
    say_what_is_warm(len(every) - len(found))
    same = same_data([run for _, run in found])
    seen: set[str] = set()
    for experiment_name, run in found:
        if run.token in seen:  # a sweep that went on in another experiment has its trials there too
            continue
        seen |= {run.token} if run.token else set()
        row = row_of(run, experiment_name, metric, mode, same)
        if row is None:
            continue
        if run.repeat is not None:
            repeated.setdefault((run.parent, _recorded(row.choice)), []).append(row)
        else:
            firsts.append((run.parent, row))
    again = _by_choice(confirmed)
    choices = []
    for sweep_run, row in firsts:
        key = sweep_run, _recorded(row.choice)
        rows = [row, *repeated.get(key, [])]
        choices.append(Measured(sweep_run, _mean(rows), _seeds(rows, again.get(key, {}))))
    return choices


def say_what_is_warm(warm: int) -> None:
    """Say how many complete trials are ranked with none: they started from trained weights."""
    if warm:
        logger.warning(
            "%d complete trial%s left out that started from the weights of another: `ranksweep "
            "trials SWEEP list` shows them", warm, " is" if warm == 1 else "s are",
        )  # fmt: skip


def _by_choice(confirmed: Iterable[RunFacts]) -> dict[Key, dict[int | None, RunFacts]]:
    """Sweep and choice -> seed -> its confirmation."""
    found: dict[Key, dict[int | None, RunFacts]] = {}
    for run in confirmed:
        if run.choice is not None:
            key = run.parent, _recorded(run.choice)
            found.setdefault(key, {}).setdefault(run.seed, run)
    return found


def _with_what_they_hold(known: Sequence[Measured]) -> list[tuple[str | None, BestRow]]:
    """A row of each choice, by the noise of its sweep.

    That of a sweep without repetitions is taken from the others over the same data: or what was
    looked at once would be set above what was looked at well.
    """
    of_sweep: dict[object, list[Seeds]] = {}
    for each in known:
        for key in ((each.sweep_run, each.row.metric), (None, each.row.data, each.row.metric)):
            of_sweep.setdefault(key, []).append(each.seeds)
    noise = {key: noise_of(every) for key, every in of_sweep.items()}
    found = []
    for each in known:
        row = each.row
        its = noise[each.sweep_run, row.metric] or noise[None, row.data, row.metric]
        found.append((each.sweep_run, holding(row, each.seeds, its)))
    return found


def holding(row: BestRow, seeds: Seeds, noise: float) -> BestRow:
    """A row with what its choice holds, by the noise of its sweep."""
    holds = seeds.holds(noise, Objective(row.metric, row.mode))
    return replace(row, holds=holds, holds_of=len(seeds.values), collapsed=seeds.collapsed)


def _seeds(rows: Sequence[BestRow], confirmed: Mapping[int | None, RunFacts]) -> Seeds:
    """All that was measured of a choice on dev."""
    again = [
        (value, run.collapsed)
        for run in confirmed.values()
        if (value := on_dev(run, rows[0].metric)) is not None
    ]
    values = (*(row.value for row in rows), *(value for value, _ in again))
    return Seeds(values, sum(row.collapsed for row in rows) + sum(each for _, each in again))


def on_dev(confirmed: RunFacts, metric: str) -> float | None:
    """What a confirmation has measured on dev, which it calls so where it has test's as well."""
    value = confirmed.metrics.get(f"dev_{metric}", confirmed.metrics.get(metric))
    return value if value is not None and _is_number(value) else None


def same_data(runs: Iterable[RunFacts]) -> dict[str | None, str]:
    """Fingerprint of a task -> that of its data.

    Older runs do not say which data is the same where metrics differ; newer ones tell of them.
    """
    return {run.task_fingerprint: run.data_fingerprint for run in runs if run.data_fingerprint}


def _recorded(choice: Mapping[str, Any]) -> str:
    """A choice, told alike by the versions of ranksweep that may have trained it."""
    return choice_tag(as_recorded(choice))


def _mean(rows: Sequence[BestRow]) -> BestRow:
    value = sum(row.value for row in rows) / len(rows)
    suite = {
        name: sum(row.suite[name] for row in rows) / len(rows)
        for name in rows[0].suite
        if all(name in row.suite for row in rows)
    }
    return replace(rows[0], value=value, seeds=len(rows), suite=suite)


def _complete_trials(
    tracking_uri: str,
    tags: Mapping[str, str],
    experiment: str | None = None,
    *,
    say_what_is_gone: bool = False,
) -> list[tuple[str, RunFacts]]:
    """The complete trials with these tags, with the name of their experiment."""
    if say_what_is_gone and "task" in tags:
        every = RecordedRuns(tracking_uri)
        names = _experiments(every, experiment)
        say_whose_launch_is_gone(every.search({"kind": "sweep", "task": tags["task"]}, names))
    return _complete(tracking_uri, "trial", tags, experiment)


def _complete(
    tracking_uri: str, kind: str, tags: Mapping[str, str], experiment: str | None
) -> list[tuple[str, RunFacts]]:
    every = RecordedRuns(tracking_uri)
    names = _experiments(every, experiment)
    wanted = {"kind": kind, "status": "complete", **tags}
    return [(names[run.experiment_id], run) for run in every.search(wanted, names)]


def _experiments(every: RecordedRuns, experiment: str | None) -> dict[str, str]:
    names = every.experiments()
    if experiment is not None:
        names = {key: name for key, name in names.items() if name == experiment}
        if not names:
            raise TrackingError(
                f"tracking: {redacted(every.uri)} has no experiment {experiment!r}; "
                "leave --experiment out to search all of them"
            )
    return names


def say_whose_launch_is_gone(sweeps: Sequence[RunFacts]) -> None:
    """Say which of these sweeps runs no more, though MLflow takes it for running."""
    for run in sweeps:
        if fate(run) == "gone":
            logger.warning("%s", told(run))


def row_of(
    run: RunFacts,
    experiment: str,
    metric: str | None,
    mode: Mode | None,
    same: Mapping[str | None, str],
) -> BestRow | None:
    """A row of a trial's run; None when it lacks the metric, its count or its choice."""
    name = metric or run.metric
    if name is None:
        return None
    value, count = run.metrics.get(name), run.metrics.get("trainable_params")
    if value is None or count is None or not _is_number(value) or run.choice is None:
        return None
    searched_by = run.mode if name == run.metric else None
    return BestRow(
        run_id=run.run_id,
        experiment=experiment,
        sweep=run.sweep,
        task=run.task,
        base=run.base,
        base_uri=run.base_uri,
        method=run.method,
        metric=name,
        mode=mode or searched_by or _usual_mode(name),
        value=value,
        trainable_params=int(count),
        head_params=run.head_params,
        epochs=run.epoch,
        choice=dict(run.choice),
        profile_key=run.profile_key,
        plan_digest=run.plan_digest,
        task_fingerprint=run.task_fingerprint,
        data=same.get(run.task_fingerprint, run.task_fingerprint),
        suite=of_members(run.metrics),
        collapsed=int(run.collapsed),
    )


def row_of_run(run: RunFacts, experiment: str, same: Mapping[str | None, str]) -> BestRow | None:
    """The row of one run by the metric that it was searched by; None where it lacks what ranks.

    `same` tells the fingerprint of a task's data by that of the task.
    """
    return row_of(run, experiment, None, None, same)


def _is_number(value: float) -> bool:
    """Whether a metric is finite; databases keep an infinite one as the largest float."""
    return math.isfinite(value) and abs(value) < sys.float_info.max


def _usual_mode(metric: str) -> Mode:
    """Whether less of a metric is better, told by its name."""
    return "min" if metric.endswith(("loss", "error", "time", "seconds", "params")) else "max"


def front_of(rows: Sequence[BestRow]) -> list[BestRow]:
    """The non-dominated rows; `rows` come best first, equal ones by fewer parameters."""
    front: list[BestRow] = []
    for row in rows:
        # Those before it are at least as good: it stays where it needs fewer parameters than all
        # of them, or equals the last one in both.
        last = front[-1] if front else None
        if row.collapsed and front and not front[0].collapsed:
            break  # however small, it has learned nothing
        if last is None or row.trainable_params < last.trainable_params or row.rank == last.rank:
            front.append(row)
    return front[::-1]
