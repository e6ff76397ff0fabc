"""What a sweep's choices were measured to be, as several figures draw it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from search.objective import Objective
from search.queries.best import on_dev
from search.queries.best_choice import BestChoice
from search.queries.differences import mean_interval
from search.queries.holding import Seeds, noise_of
from search.queries.sweep_record import SweepRecord
from search.queries.sweep_state import best_of_arms
from search.reports.colours import ArmStyle, style_of
from search.tracking.facts import RunFacts, flattened


@dataclass(frozen=True)
class Choice:
    """A choice with all that was measured of it on dev: its trials and the seeds that confirm it.

    `holds` is what ranks (search/queries/holding.py).
    """

    row: BestChoice
    seeds: Seeds
    holds: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of the mean over seeds, by Student's t; None of one seed."""
        return mean_interval(self.seeds.values)


def choices_of(record: SweepRecord) -> list[Choice]:
    """Every choice that was trained to its end, best first."""
    again: dict[int | None, list[RunFacts]] = {}
    for run in record.confirmations:
        again.setdefault(run.number, []).append(run)
    rows = best_of_arms(record.trials, record.objective, top=max(len(record.trials), 1))
    seeds = [_seeds(row, again.get(row.number, []), record.objective.metric) for row in rows]
    noise, objective = noise_of(seeds), record.objective
    found = [
        Choice(row, each, each.holds(noise, objective))
        for row, each in zip(rows, seeds, strict=True)
    ]
    found.sort(
        key=lambda each: (
            *each.seeds.rank(noise, objective),
            each.row.trainable_params,
            each.row.number,
        )
    )
    return found


def _seeds(row: BestChoice, confirmed: Iterable[RunFacts], metric: str) -> Seeds:
    runs = [(value, run) for run in confirmed if (value := on_dev(run, metric)) is not None]
    values = (*row.values, *(value for value, _ in runs))
    return Seeds(values, row.collapsed + sum(run.collapsed for _, run in runs))


def front_of(best_first: Sequence[Choice]) -> list[Choice]:
    """Those that no other beats in what it holds or in parameters without losing in the other,
    fewest parameters first; what has collapsed is on no front beside what has not."""
    front: list[Choice] = []
    for each in best_first:
        if front and each.seeds.collapsed and not front[0].seeds.collapsed:
            break
        if not front or each.row.trainable_params < front[-1].row.trainable_params:
            front.append(each)
    return front[::-1]


def tuned_lora(choices: Sequence[Choice]) -> Choice | None:
    """LoRA's best choice, the line to beat; None where none was trained to its end."""
    return next((each for each in choices if "lora" in (each.row.arm, each.row.method)), None)


def complete(record: SweepRecord) -> list[RunFacts]:
    """The trials that ran from the base to their end and have the metric and a choice."""
    return [
        run
        for run in record.trials
        if run.status == "complete"
        and run.warm_from is None
        and run.choice is not None
        and record.objective.metric in run.metrics
    ]


def arm_of(run: RunFacts) -> str:
    """The arm of a trial, which older runs call by its method."""
    return run.arm or run.method


def arms_of(record: SweepRecord) -> list[str]:
    """Every arm that has a trial, LoRA first, then as they began."""
    arms = list(dict.fromkeys(map(arm_of, record.trials)))
    return sorted(arms, key=lambda arm: arm != "lora")


def styles(record: SweepRecord) -> dict[str, ArmStyle]:
    """How each arm of a sweep is drawn."""
    return style_of(arms_of(record))


def keys_of(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice chooses beside its method and seed, under dotted keys."""
    return {k: v for k, v in flattened(choice).items() if k not in ("method", "seed")}


def better(objective: Objective) -> str:
    """Which way is better, for an axis."""
    return "higher is better" if objective.mode == "max" else "lower is better"


def label(text: object) -> str:
    """A text of a run for a figure of Plotly's, which reads some tags in it."""
    return escape(str(text), quote=False)
