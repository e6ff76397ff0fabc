"""The comparison of a sweep's methods on test, read back from MLflow alone."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from search.config.published import PublishedSettings
from search.objective import Objective
from search.queries.best_choice import BestChoice
from search.queries.differences import (
    CONFIDENCE,
    Difference,
    Floats,
    difference,
    drawn_values,
    holm,
    mean_interval,
)
from search.queries.fallen import fallen
from search.queries.lm_eval_scores import base_scores, scores_of
from search.queries.luck import luck_line, luck_of
from search.queries.same_test import named_alike, same_test
from search.queries.sweep_state import best_of_arms, sweep_named
from search.tracking import liveness
from search.tracking.facts import TEST_ROWS, RunFacts, of_members
from search.tracking.runs import RecordedRuns
from spaces.errors import RanksweepError, TrackingError, UsageError, nearest
from trainables.tasks.collapse import is_collapsed
from trainables.tasks.measured_rows import MeasuredRows, read_measured_rows

_log = logging.getLogger(__name__)
WITHIN = "within the noise"


@dataclass(frozen=True)
class OnTest:
    """What one confirmation has measured on test; `rows` is None where they were not kept.

    `suite` has "<member>/<metric>" of each member of a suite, whose mean `value` is. `lm_eval` are
    lm-eval's scores of it, such as `piqa/acc`, where there are some, and `lm_eval_digest` is that
    of what lm-eval was asked for.
    """

    value: float
    rows: MeasuredRows | None = None
    lm_eval: Mapping[str, float] = field(default_factory=dict)
    suite: Mapping[str, float] = field(default_factory=dict)
    lm_eval_digest: str | None = None
    on_dev: float | None = None
    """The same metric on dev; None where it is not known."""
    collapsed: bool = False
    """Whether one class alone is predicted on dev."""

    @classmethod
    def of(
        cls,
        value: float,
        rows: MeasuredRows | None,
        metrics: Mapping[str, float],
        lm_eval_digest: str | None,
        metric: str,
    ) -> OnTest:
        """What the metrics of a confirmation's run say of it, and its rows."""
        return cls(
            value,
            rows,
            scores_of(metrics),
            of_members(metrics, "test_"),
            lm_eval_digest,
            metrics.get(f"dev_{metric}"),
            is_collapsed(metrics),
        )

    def is_asked_otherwise(self, digest: str | None) -> bool:
        """Whether it has scores of lm-eval, and by other settings than those of the digest."""
        return bool(self.lm_eval) and self.lm_eval_digest != digest

    def by_settings(self, digest: str | None) -> OnTest:
        """The same without scores of lm-eval by other settings, which are no values of one mean."""
        return replace(self, lm_eval={}) if self.is_asked_otherwise(digest) else self


Found = tuple[Mapping[str, Any], Mapping[int, OnTest]]
"""Method, arm, number, choice and size of a choice, and what its confirmations measured by seed."""


@dataclass(frozen=True)
class Comparison:
    """What MLflow has of a sweep's confirmations: the choices `rows`, best mean first.

    `constant` is what a model that answers every test row alike would reach; None where no launch
    said so. `lm_eval_of_base` are lm-eval's scores of the untouched base, where it was measured,
    and `published` is what a paper prints for the sweep, None where it says nothing. `fallen` has a
    line for each choice that does not hold what it was chosen for.
    """

    rows: list[Confirmation]
    fallen: list[str]
    constant: float | None
    lm_eval_of_base: Mapping[str, float]
    published: PublishedSettings | None
    luck: str | None = None
    """What the choice that was best on dev has kept of its lead, in one sentence."""


@dataclass(frozen=True)
class _Part:
    """One of the sweeps that are compared: its run, what its confirmations measured, and what they
    were chosen from."""

    run: RunFacts
    objective: Objective
    choices: list[Found]
    chosen_from: list[BestChoice]
    published: PublishedSettings | None


def compare(tracking_uri: str, sweep: str | Sequence[str], against: str = "lora") -> Comparison:
    """The confirmed choices of a sweep, or of several, side by side; a sweep is its name or its run
    id.

    `against` is the arm or method that the others are set beside, of several sweeps the best of
    that name on dev, or one's as `SWEEP:ARM`. Sweeps are compared where they were measured on the
    same test rows by the same metric and rule. A choice has what a paper prints for it where the
    sweep says so. Of several sweeps of one name the newest is taken; one that still runs is
    compared as far as it is, with a warning. lm-eval's scores are those by the settings that the
    first sweep was last launched with. Raises RanksweepError where there is no such sweep or
    nothing of it was confirmed, UsageError where sweeps cannot be compared, TrackingError where
    MLflow cannot be read.
    """
    recorded = RecordedRuns(tracking_uri)
    names = [sweep] if isinstance(sweep, str) else list(dict.fromkeys(sweep))
    runs = {run.run_id: run for run in (newest_sweep(recorded, name) for name in names)}
    read = (
        (run, recorded.search({"status": "complete"}, [run.experiment_id], run.run_id))
        for run in runs.values()
    )
    return compared(recorded, read, against)


def compared(
    recorded: RecordedRuns,
    sweeps: Iterable[tuple[RunFacts, Sequence[RunFacts]]],
    against: str = "lora",
) -> Comparison:
    """As `compare`, of sweeps that were read: the run of each, and the complete runs of its trials
    and confirmations, newest first."""
    read = list(sweeps)
    first = read[0][0]
    parts = [_part(recorded, run, children, first.lm_eval_digest) for run, children in read]
    objective = parts[0].objective
    every = parts[0].choices if len(parts) == 1 else _together(recorded, parts)
    arms = {
        name
        for row, _ in every
        for key in ("arm", "method")
        for name in (str(row[key]), *([f"{row['sweep']}:{row[key]}"] if len(parts) > 1 else []))
    }
    if against != "lora" and against not in arms:
        raise UsageError(f"--against: {against!r} was not confirmed; {nearest(against, arms)}")
    rows = summarize(every, objective, against)
    rows = [_of_its_sweep(row, parts) for row in rows]
    its = next((_trained(row) for row, seen in every if seen and _is_called(against, row)), None)
    beside = next((row for row in rows if _trained(vars(row)) == its), None)
    of_part = [[row for row in rows if row.sweep_run == part.run.run_id] for part in parts]
    papers = [part.published for part in parts if part.published is not None]
    constants = [part.run.metrics.get("constant_answer_test") for part in parts]
    return Comparison(
        rows=rows,
        fallen=[
            line if len(parts) == 1 else f"{part.run.sweep}: {line}"
            for part, own in zip(parts, of_part, strict=True)
            for line in fallen(own, part.chosen_from, objective)
        ],
        constant=next((each for each in constants if each is not None), None),
        lm_eval_of_base=base_scores(
            recorded, first.experiment_id, first.run_id, first.lm_eval_digest
        )
        if len({part.run.base for part in parts}) == 1
        else {},
        published=papers[0] if papers and all(each == papers[0] for each in papers) else None,
        luck=luck_line(rows, objective, beside, called(against)),
    )


def _part(
    recorded: RecordedRuns,
    newest: RunFacts,
    children: Sequence[RunFacts],
    lm_eval_digest: str | None,
) -> _Part:
    if (told := liveness.told(newest)) is not None:
        _log.warning("%s; what it has not confirmed is missing", told)
    confirmed = [run for run in children if run.kind == "confirm"]
    if not confirmed:
        raise RanksweepError(
            f"{newest.sweep}: nothing of it is confirmed on test yet; where the sweep has "
            "`confirm`, a launch does so once its search is over, also one that goes on with "
            "--resume (and --set 'confirm={top: 1, seeds: 5}' where it has none)"
        )
    objective = Objective(newest.metric or "accuracy", newest.mode or "max")
    trials = [run for run in children if run.kind == "trial"]
    trials.sort(key=lambda run: run.number or 0)
    chosen_from = best_of_arms(trials, objective, top=len(trials))
    choices = _choices(confirmed, chosen_from, objective, recorded, lm_eval_digest)
    named = {"sweep": newest.sweep, "sweep_run": newest.run_id}
    return _Part(
        newest,
        objective,
        [({**row, **named}, tested) for row, tested in choices],
        chosen_from,
        _published(newest),
    )


def _together(recorded: RecordedRuns, parts: Sequence[_Part]) -> list[Found]:
    """The choices of several sweeps, best on dev first, their test rows under one name.

    Raises UsageError where they were not measured alike.
    """
    first, *others = parts
    data: Mapping[str, str] = {}
    for part in others:
        beside = f"SWEEP: {part.run.sweep} cannot be set beside {first.run.sweep}"
        if part.objective != first.objective:
            one, other = (f"{p.objective.metric} ({p.objective.mode})" for p in (part, first))
            raise UsageError(f"{beside}: it was measured by {one}, that by {other}")
        its = same_test(recorded, (part.run.run_id, part.run), (first.run.run_id, first.run))
        if its is None:
            raise UsageError(f"{beside}: it was measured on other test rows, or by another rule")
        data = its
    objective = first.objective
    ranked: list[tuple[float, Found]] = []
    for part in parts:
        held = {row.number: objective.gain(row.holds) for row in part.chosen_from}
        ranked += [(held.get(row["number"], -math.inf), (row, seen)) for row, seen in part.choices]
    ranked.sort(key=lambda each: -each[0])
    return [
        (row, {seed: _named_alike(each, data) for seed, each in tested.items()})
        for _, (row, tested) in ranked
    ]


def _named_alike(tested: OnTest, data: Mapping[str, str]) -> OnTest:
    return tested if tested.rows is None else replace(tested, rows=named_alike(tested.rows, data))


def _of_its_sweep(row: Confirmation, parts: Sequence[_Part]) -> Confirmation:
    """A row with what its own sweep says of it: what it was chosen for, and what a paper prints."""
    part = next(part for part in parts if part.run.run_id == row.sweep_run)
    chosen = next((each for each in part.chosen_from if each.number == row.number), None)
    row = as_chosen(row, None if chosen is None else chosen.value, part.objective)
    return beside_paper([row], part.published)[0]


def _published(newest: RunFacts) -> PublishedSettings | None:
    if newest.published is None:
        return None
    try:
        told = json.loads(newest.published)
        return None if told is None else PublishedSettings.model_validate(told)
    except ValueError:  # of JSON, or of the section
        _log.warning("%s: what a paper prints for it cannot be read from MLflow", newest.sweep)
        return None


def newest_sweep(recorded: RecordedRuns, sweep: str) -> RunFacts:
    """The newest sweep of this name, or that of this run id. Raises RanksweepError without one."""
    newest, names = sweep_named(recorded, sweep)
    if newest is None:
        raise RanksweepError(
            f"{sweep}: no sweep of this name or run id in MLflow; it has "
            f"{', '.join(names[:10]) or 'none'}"
        )
    return newest


def _choices(
    confirmed: Sequence[RunFacts],
    chosen_from: Sequence[BestChoice],
    objective: Objective,
    recorded: RecordedRuns,
    lm_eval_digest: str | None,
) -> list[Found]:
    """Every choice with what its seeds measured, best on dev first."""
    name = f"test_{objective.metric}"
    runs: dict[int, dict[int, RunFacts]] = {}
    for run in confirmed:
        if name in run.metrics and run.number is not None and run.seed is not None:
            runs.setdefault(run.number, {}).setdefault(run.seed, run)
    ranks = {row.number: rank for rank, row in enumerate(chosen_from)}
    rows = kept_rows(recorded, [run.run_id for seeds in runs.values() for run in seeds.values()])
    found: list[Found] = []
    for number in sorted(runs, key=lambda number: (ranks.get(number, math.inf), number)):
        by_seed = {seed: runs[number][seed] for seed in sorted(runs[number])}
        first = next(iter(by_seed.values()))
        row = {
            "method": first.method,
            "arm": first.arm or first.method,
            "number": number,
            "choice": first.choice,
            "trainable_params": int(first.metrics["trainable_params"]),
        }
        tested = {
            seed: OnTest.of(
                run.metrics[name],
                rows.get(run.run_id),
                run.metrics,
                run.lm_eval_digest,
                objective.metric,
            )
            for seed, run in by_seed.items()
        }
        found.append((row, tested))
    every = [each for _, tested in found for each in tested.values()]
    if others := sum(each.is_asked_otherwise(lm_eval_digest) for each in every):
        _log.warning(
            "%d of %d confirmations have scores of lm-eval by other settings than the sweep was "
            "last launched with; they are left out", others, len(every),
        )  # fmt: skip
    return [
        (row, {seed: each.by_settings(lm_eval_digest) for seed, each in tested.items()})
        for row, tested in found
    ]


def kept_rows(recorded: RecordedRuns, run_ids: Sequence[str]) -> dict[str, MeasuredRows]:
    """What confirmations said of each test row, by run id, as far as their runs have kept it."""
    found: dict[str, MeasuredRows] = {}
    try:
        for run_id in run_ids:
            if TEST_ROWS in recorded.files(run_id):
                data = recorded.artifact(run_id, TEST_ROWS)
                found[run_id] = read_measured_rows(data, f"{run_id}/{TEST_ROWS}")
    except (OSError, TrackingError, UsageError) as error:
        _log.warning("what confirmations said of each test row cannot be had: %s", error)
    return found


@dataclass(frozen=True)
class Confirmation:
    """One choice over several seeds: its test metric, and its difference from tuned LoRA's.

    `arm` is the method, with the keys that `search.arms` divides it by. `deviation` is the sample
    standard deviation (None of a single value). What follows is of mean minus the reference's mean
    (tuned LoRA's unless another arm is named); None for the reference itself and where no interval
    can be told: either has fewer than two values, or all their values are equal and the test rows
    are not known. `difference` is [low, high], the 95% interval of this comparison by itself;
    `p_value` belongs to it. `adjusted` and `p_adjusted` are for all comparisons of the sweep
    together (Holm): `within_noise` says whether `adjusted` holds zero, and `verdict` is "better",
    "worse" or "within the noise". `detectable` is the smallest difference that would have been seen
    in four of five such sweeps. `paired_seeds` counts the seeds that both have (None: the seeds are
    no pairs), `test_rows` the rows that were resampled (None: the seeds alone were looked at).
    `suite` has the mean of "<member>/<metric>" for each member of a suite. `on_dev` are the values
    of the seeds on dev, as far as they are known, and `collapsed` counts those that predict one
    class alone there. `lm_eval` maps each of lm-eval's scores to its values, one of each seed that
    has it. `paper` is what a paper prints for it, and `minus_paper` the 95% interval of its own
    mean over the seeds, less that. `chosen_at` is its value on dev when it was chosen, and `luck`
    by how much it is worse there over the seeds that confirm it. `sweep` and `sweep_run` are the
    name and the run id of its sweep.
    """

    method: str
    arm: str
    number: int
    choice: Mapping[str, Any]
    trainable_params: int
    metric: str
    values: tuple[float, ...]
    mean: float
    deviation: float | None
    difference: tuple[float, float] | None
    within_noise: bool | None
    adjusted: tuple[float, float] | None
    p_value: float | None
    p_adjusted: float | None
    verdict: str | None
    detectable: float | None
    paired_seeds: int | None
    test_rows: int | None
    lm_eval: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    paper: float | None = None
    suite: Mapping[str, float] = field(default_factory=dict)
    on_dev: tuple[float, ...] = ()
    collapsed: int = 0
    minus_paper: tuple[float, float] | None = None
    chosen_at: float | None = None
    luck: float | None = None
    sweep: str = ""
    sweep_run: str | None = None


def as_chosen(row: Confirmation, value: float | None, objective: Objective) -> Confirmation:
    """A confirmation with what its choice was worth on dev when it was chosen, where that is known,
    and how much of it was luck."""
    if value is None:
        return row
    return replace(row, chosen_at=value, luck=luck_of(row, value, objective))


def beside_paper(
    rows: Sequence[Confirmation], published: PublishedSettings | None
) -> list[Confirmation]:
    """The confirmations, each with what a paper prints for it."""
    if published is None:
        return list(rows)
    beside = []
    for row in rows:
        paper = published.figure(row.metric, row.arm)
        own = mean_interval(row.values)
        known = paper is not None and own is not None
        minus = (own[0] - paper, own[1] - paper) if known else None  # type: ignore[operator,index]
        beside.append(replace(row, paper=paper, minus_paper=minus))
    return beside


def summarize(
    found: Sequence[Found], objective: Objective, reference: str = "lora"
) -> list[Confirmation]:
    """The choices, best on dev first, with what they measured, beside the reference; best first.

    One without any value is left out. `reference` is the arm (its best choice) or method that all
    are set beside.
    """
    measured = [(row, tested) for row, tested in found if tested]
    beside = next((each for each in measured if _is_called(reference, each[0])), None)
    differences: list[Difference | None] = [None] * len(measured)
    if beside is not None:
        # Two arms of one trial are one training: compared with itself it says nothing.
        others = {i for i, (row, _) in enumerate(measured) if _trained(row) != _trained(beside[0])}
        drawn = _drawn([tested for _, tested in measured], objective.metric)
        for i in others:
            differences[i] = _difference(measured[i][1], beside[1], drawn)
    known = [each for each in differences if each is not None]
    levels = iter(holm([each.p_value for each in known]))
    summary = [
        _summary(row, tested, objective, each, None if each is None else next(levels), len(known))
        for (row, tested), each in zip(measured, differences, strict=True)
    ]
    return sorted(summary, key=lambda each: -objective.gain(each.mean))


def _is_called(reference: str, row: Mapping[str, Any]) -> bool:
    names = row["arm"], row["method"]
    return reference in (*names, *(f"{row.get('sweep')}:{name}" for name in names))


def _trained(row: Mapping[str, Any]) -> tuple[Any, int]:
    return row.get("sweep_run"), row["number"]


def names_of(rows: Sequence[Confirmation]) -> list[str]:
    """What each row is called: its arm, with its sweep before it where there are several."""
    several = len({row.sweep_run for row in rows}) > 1
    return [f"{row.sweep}:{row.arm}" if several else row.arm for row in rows]


def _drawn(every: Sequence[Mapping[int, OnTest]], metric: str) -> dict[int, Floats]:
    """Id of the rows of a confirmation -> its metric on resamples of them, where all are alike."""
    kept = [each.rows for tested in every for each in tested.values() if each.rows is not None]
    kept = [rows for rows in kept if rows.metric == metric and rows.is_of(kept[0])]
    drawn = drawn_values(kept) if kept else None
    return {} if drawn is None else dict(zip(map(id, kept), drawn, strict=True))


def _difference(
    tested: Mapping[int, OnTest], beside: Mapping[int, OnTest], drawn: Mapping[int, Floats]
) -> Difference | None:
    values, others = ({s: each.value for s, each in t.items()} for t in (tested, beside))
    both = [*tested.values(), *beside.values()]
    if any(id(each.rows) not in drawn for each in both):
        return difference(values, others)
    ours, theirs = ({s: drawn[id(each.rows)] for s, each in t.items()} for t in (tested, beside))
    rows = both[0].rows
    return difference(values, others, ours, theirs, None if rows is None else len(rows))


def _summary(
    row: Mapping[str, Any],
    tested: Mapping[int, OnTest],
    objective: Objective,
    found: Difference | None,
    adjustment: tuple[float, float] | None,
    compared: int,
) -> Confirmation:
    values = tuple(tested[seed].value for seed in sorted(tested))
    told: dict[str, Any] = dict.fromkeys(
        ("difference", "within_noise", "adjusted", "p_value", "p_adjusted", "verdict", "detectable",
         "paired_seeds", "test_rows")
    )  # fmt: skip
    if found is not None and adjustment is not None:
        p_adjusted, level = adjustment
        low, high = found.interval(level)
        is_within = low <= 0 <= high
        better = objective.gain(found.gap) > 0
        told = {
            "difference": found.interval(1 - CONFIDENCE),
            "within_noise": is_within,
            "adjusted": (low, high),
            "p_value": found.p_value,
            "p_adjusted": p_adjusted,
            "verdict": WITHIN if is_within else "better" if better else "worse",
            "detectable": found.detectable((1 - CONFIDENCE) / compared),
            "paired_seeds": found.seeds,
            "test_rows": found.rows,
        }
    return Confirmation(
        method=row["method"],
        arm=row["arm"],
        number=row["number"],
        choice=row["choice"],
        trainable_params=row["trainable_params"],
        metric=objective.metric,
        values=values,
        mean=float(np.mean(values)),
        deviation=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        lm_eval=_scores_by_seed([tested[seed].lm_eval for seed in sorted(tested)]),
        **told,
        suite={
            name: float(np.mean([each.suite[name] for each in tested.values()]))
            for name in next(iter(tested.values())).suite
            if all(name in each.suite for each in tested.values())
        },
        on_dev=tuple(each.on_dev for each in tested.values() if each.on_dev is not None),
        collapsed=sum(each.collapsed for each in tested.values()),
        sweep=row.get("sweep", ""),
        sweep_run=row.get("sweep_run"),
    )


def _scores_by_seed(every: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    names = sorted({name for scores in every for name in scores})
    return {name: tuple(scores[name] for scores in every if name in scores) for name in names}


def verdict(rows: Sequence[Confirmation], reference: str = "lora") -> str:
    """One sentence on what the confirmations show of the methods beside the reference."""
    beside = called(reference)
    compared = [row for row in rows if row.difference is not None]
    if not compared:
        return _why_none_is_told(rows, reference)
    named = list(zip(rows, names_of(rows), strict=True))
    told = [
        f"{how} than {beside} beyond the noise: {', '.join(names)}"
        for how in ("better", "worse")
        if (names := [name for row, name in named if row.verdict == how])
    ]
    if not told:
        return f"no difference from {beside} is beyond the noise ({len(compared)} compared)"
    return f"{'; '.join(told)} ({len(compared)} compared, at 5% over all of them)"


def resolution(rows: Sequence[Confirmation]) -> list[str]:
    """What the comparison could have seen, and what it lacks: lines for below the verdict."""
    compared = [row for row in rows if row.detectable is not None]
    if not compared:
        return []
    lines = []
    smallest = [row.detectable for row in compared if row.detectable is not None]
    low, high = (f"{value:.4f}" for value in (min(smallest), max(smallest)))
    size = low if low == high else f"{low} to {high}, by method,"
    lines.append(f"a difference of {size} would be seen in four of five such sweeps")
    if any(row.test_rows is None for row in compared):
        lines.append(
            "what each test row was taken for is not kept of all these runs: the seeds alone were "
            "compared"
        )
    return lines


def _why_none_is_told(rows: Sequence[Confirmation], reference: str) -> str:
    beside = called(reference)
    own = next((row for row in rows if _is_called(reference, vars(row))), None)
    if own is not None and all(_trained(vars(row)) == _trained(vars(own)) for row in rows):
        return f"nothing but {beside} was confirmed: there is no difference to tell"
    lacks = [] if own is not None else [beside]
    lacks += ["two seeds of each choice"] if any(len(row.values) < 2 for row in rows) else []
    takes = f": that takes {' and '.join(lacks)}" if lacks else " from these values"
    return f"no difference can be told{takes}"


def called(reference: str) -> str:
    """What the others are set beside, as a reader is told."""
    return "tuned LoRA" if reference == "lora" else reference
