"""What MLflow alone can answer: the best trials of a task, a Pareto front, a profile's uses."""

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
from spaces.errors import ConfigError, TrackingError, nearest
from spaces.methods.registry import method_named
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


def best(
    tracking_uri: str,
    task: str,
    *,
    base: str | None = None,
    method: str | None = None,
    metric: str | None = None,
    max_params: int | None = None,
    top: int | None = None,
    pareto: bool = False,
    experiment: str | None = None,
    mode: Mode | None = None,
    data: str | None = None,
) -> list[BestRow]:
    """The best complete trials of a task over all experiments, best first, by what they hold.

    Trials over other data cannot be compared, whatever the task is called: other rows, a longer
    `max_length`, another template. Those of the newest trial's data are ranked, or of the data
    whose fingerprint starts with `data`; a warning says what is left out.

    `base` is the start of a base's fingerprint or a part of its URI; `metric` defaults to the one
    that the trials were searched by, `mode` to what their sweep said (for another metric: `min` for
    losses and times, else `max`); `max_params` bounds `trainable_params`. `top` rows are returned
    (default 1). Equal values rank by fewer parameters. With `pareto`, the trials that no other
    beats in metric or parameters without losing in the other, fewest parameters first (all of them,
    unless `top` is given). A trial that was stopped, failed, or has no such metric is left out. A
    choice that its sweep has repeated with other seeds is one row, with the mean. A trial that
    started from the trained weights of another has trained for longer: it is left out, and said.

    Raises:
        ChoiceError: there is no such method.
        ConfigError: `top` or `max_params` is below 1, or the trials were searched by several
            metrics and none was named, or `data` is the start of no or of several fingerprints.
        TrackingError: the tracking server or database cannot be read, or has no such experiment.
    """
    if top is not None and top < 1:
        raise ConfigError(f"--top: {top} is not a number of rows; use 1 or more")
    if max_params is not None and max_params < 1:
        raise ConfigError(
            f"--max-params: {max_params} is not a number of parameters; use 1 or more"
        )
    if method is not None:
        method_named(method, "--method")
    # All methods are read: the noise is that of the whole sweep.
    found = recorded(tracking_uri, {"task": task}, experiment=experiment, metric=metric, mode=mode)
    rows = [
        row
        for _, row in found
        if (base is None or _base_matches(row, base)) and method in (None, row.method)
    ]
    ranked = _of_the_same_data(rows, data)
    if data is None:
        _say_what_is_left_out(rows, ranked)
    rows = ranked
    names = sorted({row.metric for row in rows})
    if len(names) > 1:
        raise ConfigError(
            f"--metric: the trials of task {task!r} were searched by {' and '.join(names)}; "
            "name one with --metric"
        )
    if len({row.mode for row in rows}) > 1:
        raise ConfigError(
            f"--metric: sweeps of task {task!r} disagree on whether more {names[0]} is better; "
            "choose trials by --base or --method"
        )
    if max_params is not None:
        rows = [row for row in rows if row.trainable_params <= max_params]
    rows.sort(key=lambda row: row.rank)
    if pareto:
        front = _front(rows)
        return front if top is None else front[:top]
    return rows[: 1 if top is None else top]


def _of_the_same_data(rows: Sequence[BestRow], data: str | None) -> list[BestRow]:
    """The rows over the data that is asked for, else over that of the newest, which come first."""
    groups = _by_data(rows)
    if data is None:
        return next(iter(groups.values()), [])
    names = {key: {key, *(row.task_fingerprint for row in each)} for key, each in groups.items()}
    wanted = [k for k, of in names.items() if any(name and name.startswith(data) for name in of)]
    if rows and len(wanted) != 1:
        each = ", ".join(_data_name(key) for key in groups)
        are = "none" if not wanted else "several"
        raise ConfigError(f"--data: {data!r} is the start of {are} of the data: {each}")
    return [row for key in wanted for row in groups[key]]


def _by_data(rows: Sequence[BestRow]) -> dict[str | None, list[BestRow]]:
    groups: dict[str | None, list[BestRow]] = {}
    for row in rows:
        groups.setdefault(row.data, []).append(row)
    return groups


def _say_what_is_left_out(rows: Sequence[BestRow], ranked: Sequence[BestRow]) -> None:
    others = [(key, each) for key, each in _by_data(rows).items() if key != ranked[0].data]
    if others:
        logger.warning(
            "ranked are the trials over the data of the newest, %s; left out for their rows, "
            "lengths or templates differ: %s (--data shows them)",
            _data_name(ranked[0].data),
            ", ".join(f"{len(each)} over {_data_name(key)}" for key, each in others),
        )


def _data_name(fingerprint: str | None) -> str:
    return "data that has no name" if fingerprint is None else fingerprint[:12]


def why_none(
    tracking_uri: str,
    task: str,
    *,
    base: str | None = None,
    method: str | None = None,
    metric: str | None = None,
    max_params: int | None = None,
    data: str | None = None,
) -> str:
    """Where `best` finds nothing: the first of what it was asked that no trial meets, in one line.

    Raises ConfigError and TrackingError as `best` does.
    """
    runs = [run for _, run in _complete_trials(tracking_uri, {"task": task})]
    if not runs:
        every = _complete_trials(tracking_uri, {})
        tasks = sorted({run.task for _, run in every} - {""})
        found = nearest(task, tasks) if tasks else "there is none of any task"
        return f"--task: no complete trial of task {task!r} is recorded; {found}"
    metrics = sorted(set().union(*(run.metrics for run in runs)))
    if metric is not None and metric not in metrics:
        whole = f"the {len(runs):,} complete trials of task {task!r}"
        return f"--metric: none of {whole} has {metric!r}; {nearest(metric, metrics)}"
    same = _same_data(runs)
    rows = [row for run in runs if (row := _row(run, "", metric, None, same)) is not None]
    of = f"complete trials of task {task!r}"
    if base is not None:
        bases = ", ".join(sorted({f"{row.base_uri} ({row.base[:12]})" for row in rows}))
        reason = f"--base: none of the {len(rows):,} {of} is on {base!r}; they are on {bases}"
        rows, of = [row for row in rows if _base_matches(row, base)], f"{of} on {base!r}"
        if not rows:
            return reason
    if method is not None:
        methods = ", ".join(sorted({row.method for row in rows}))
        reason = f"--method: none of the {len(rows):,} {of} is of {method!r}; they are of {methods}"
        rows, of = [row for row in rows if row.method == method], f"{of} by {method}"
        if not rows:
            return reason
    ranked = _of_the_same_data(rows, data)
    if len(ranked) < len(rows):
        rows, of = ranked, f"{of} over {_data_name(ranked[0].data)}"
    least = min((row.trainable_params for row in rows), default=0)
    if max_params is not None and least > max_params:
        return (
            f"--max-params: none of the {len(rows):,} {of} has so few parameters; the least is "
            f"{least:,}"
        )
    return f"--task: none of the {len(runs):,} {of} has all that is ranked by"


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
    repeated: dict[Key, list[BestRow]] = {}
    firsts: list[tuple[str | None, BestRow]] = []
    found = [(name, run) for name, run in every if run.warm_from is None]
    if warm := len(every) - len(found):
        logger.warning(
            "%d complete trial%s left out that started from the weights of another: `ranksweep "
            "trials SWEEP list` shows them", warm, " is" if warm == 1 else "s are",
        )  # fmt: skip
    same = _same_data([run for _, run in found])
    seen: set[str] = set()
    for experiment_name, run in found:
        if run.token in seen:  # a sweep that went on in another experiment has its trials there too
            continue
        seen |= {run.token} if run.token else set()
        row = _row(run, experiment_name, metric, mode, same)
        if row is None:
            continue
        if run.repeat is not None:
            repeated.setdefault((run.parent, _recorded(row.choice)), []).append(row)
        else:
            firsts.append((run.parent, row))
    trials = [
        (sweep_run, [row, *repeated.get((sweep_run, _recorded(row.choice)), [])])
        for sweep_run, row in firsts
    ]
    return _with_what_they_hold(trials, _by_choice(confirmed))


def _by_choice(confirmed: Iterable[RunFacts]) -> dict[Key, dict[int | None, RunFacts]]:
    """Sweep and choice -> seed -> its confirmation."""
    found: dict[Key, dict[int | None, RunFacts]] = {}
    for run in confirmed:
        if run.choice is not None:
            key = run.parent, _recorded(run.choice)
            found.setdefault(key, {}).setdefault(run.seed, run)
    return found


def _with_what_they_hold(
    trials: Sequence[tuple[str | None, Sequence[BestRow]]],
    confirmed: Mapping[Key, Mapping[int | None, RunFacts]],
) -> list[tuple[str | None, BestRow]]:
    """A row of each choice, whose trials these are, by the noise of its sweep.

    That of a sweep without repetitions is taken from the others over the same data: or what was
    looked at once would be set above what was looked at well.
    """
    known = [
        (sweep_run, rows, _seeds(rows, confirmed.get((sweep_run, _recorded(rows[0].choice)), {})))
        for sweep_run, rows in trials
    ]
    of_sweep: dict[object, list[Seeds]] = {}
    for sweep_run, (row, *_), seeds in known:
        for key in ((sweep_run, row.metric), (None, row.data, row.metric)):
            of_sweep.setdefault(key, []).append(seeds)
    noise = {key: noise_of(every) for key, every in of_sweep.items()}
    found = []
    for sweep_run, rows, seeds in known:
        row = _mean(rows)
        its = noise[sweep_run, row.metric] or noise[None, row.data, row.metric]
        holds = seeds.holds(its, Objective(row.metric, row.mode))
        count, fallen = len(seeds.values), seeds.collapsed
        found.append((sweep_run, replace(row, holds=holds, holds_of=count, collapsed=fallen)))
    return found


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


def _same_data(runs: Iterable[RunFacts]) -> dict[str | None, str]:
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
        _say_whose_launch_is_gone(every.search({"kind": "sweep", "task": tags["task"]}, names))
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


def _say_whose_launch_is_gone(sweeps: Sequence[RunFacts]) -> None:
    for run in sweeps:
        if fate(run) == "gone":
            logger.warning("%s", told(run))


def _base_matches(row: BestRow, base: str) -> bool:
    return row.base.startswith(base) or base in row.base_uri


def _row(
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


def _is_number(value: float) -> bool:
    """Whether a metric is finite; databases keep an infinite one as the largest float."""
    return math.isfinite(value) and abs(value) < sys.float_info.max


def _usual_mode(metric: str) -> Mode:
    """Whether less of a metric is better, told by its name."""
    return "min" if metric.endswith(("loss", "error", "time", "seconds", "params")) else "max"


def _front(rows: Sequence[BestRow]) -> list[BestRow]:
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
