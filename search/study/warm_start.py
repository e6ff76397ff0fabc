"""What earlier sweeps have found: their best choices, as the tracking server has them.

Three groups tell something of a task on a base: other sweeps of the same, of the same task on other
bases, and of other tasks on the same base. Of each, every method gives its best choice by the dev
metric of complete trials; no test score is looked at. Values are compared between sweeps where the
task is the same, and so the metric and the rows are. Between tasks they mean nothing: there the
sweep counts that has tried the method most often, and its best by its own metric and direction.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna

from search.queries.rows import BestRow, recorded
from search.study.in_time import in_time
from search.study.study import choice_text
from search.tracking.facts import flattened
from spaces.alpha import ALPHA_OVER_RANK, over_rank
from spaces.choice import Choice
from spaces.domain import closest, holds
from spaces.errors import ChoiceError
from spaces.methods.registry import METHODS, from_record
from spaces.search_space import SearchSpace

logger = logging.getLogger(__name__)

_FOUND = "ranksweep_warm_start"


@dataclass(frozen=True)
class Earlier:
    """A choice of the space, and the MLflow run of the earlier trial that it is from."""

    choice: Choice
    run_id: str


def earlier_choices(
    tracking_uri: str,
    space: SearchSpace,
    *,
    task_fingerprint: str,
    base_fingerprint: str,
    sweep_run_id: str | None,
    at_most: int,
) -> list[Earlier]:
    """The best earlier choice of each method and group, nearest group first, `at_most` in all.

    A choice is moved to the nearest values that the space holds; its learning rate is kept where
    the space has it. One of another alpha is left out: its learning rate says little of this one's.
    `sweep_run_id` is that of the sweep itself, which is not its own past.

    Raises:
        TrackingError: the tracking server or database cannot be read.
    """
    of_task = recorded(tracking_uri, {"task_fingerprint": task_fingerprint})
    of_base = recorded(tracking_uri, {"base": base_fingerprint})
    of_task = [(sweep, row) for sweep, row in of_task if sweep != sweep_run_id]
    both = [(sweep, row) for sweep, row in of_task if row.base == base_fingerprint]
    other_bases = [(sweep, row) for sweep, row in of_task if row.base != base_fingerprint]
    known = {row.run_id for _, row in of_task}
    other_tasks = [
        (sweep, row) for sweep, row in of_base if row.run_id not in known and sweep != sweep_run_id
    ]
    found: dict[str, Earlier] = {}
    for group, compared in ((both, True), (other_bases, True), (other_tasks, False)):
        for method in space.methods:
            rows = [
                (sweep, row)
                for sweep, row in group
                if row.method == method and _has_its_alpha(space, row)
            ]
            row = _best(rows if compared else _most_tried(rows))
            if row is None:
                continue
            try:
                choice = moved_into(space, from_record(row.choice))
            except ChoiceError as error:  # written by another version
                logger.warning("run %s: no choice starts from it: %s", row.run_id, error)
                continue
            found.setdefault(choice_text(choice), Earlier(choice, row.run_id))
    return list(found.values())[:at_most]


def moved_into(space: SearchSpace, choice: Choice) -> Choice:
    """The choice of the space that is nearest to one of another space, key by key."""
    rate = closest(space.domains[choice.method]["learning_rate"], choice.learning_rate)
    near = space.default_choice(choice.method, flattened(choice.as_dict()))
    return near.model_copy(update={"learning_rate": rate})


def _has_its_alpha(space: SearchSpace, row: BestRow) -> bool:
    """Whether the space can scale an update as a row's trial did."""
    if "alpha" not in row.choice:
        return True
    domains = space.domains[row.method]
    if ALPHA_OVER_RANK in domains:
        ratio = over_rank(METHODS[row.method].choice_class, row.choice)
        return holds(domains[ALPHA_OVER_RANK], ratio)
    moved = space.default_choice(row.method, {"alpha": row.choice["alpha"]})
    return bool(moved.as_dict().get("alpha") == row.choice["alpha"])


def remember_earlier(study: optuna.Study, find: Callable[[], list[Earlier]]) -> list[Earlier]:
    """What `find` returned when the study was first searched, which is written into the study: a
    resumed sweep starts from the same.

    Where the tracking server cannot be read, or not in time, there is nothing.
    """
    if _FOUND not in study.user_attrs:
        found = in_time(find, "no choice starts from earlier sweeps")
        rows = [[each.choice.as_dict(), each.run_id] for each in found]
        study.set_user_attr(_FOUND, json.dumps(rows))
    rows = json.loads(study.user_attrs[_FOUND])
    return [Earlier(from_record(choice), run_id) for choice, run_id in rows]


def announcement(earlier: Sequence[Earlier]) -> str:
    """For the user: 2 choices start from earlier sweeps: pilora from run ab12cd34, ..."""
    each = ", ".join(f"{one.choice.method} from run {one.run_id[:8]}" for one in earlier)
    starts = "choice starts" if len(earlier) == 1 else "choices start"
    return f"{len(earlier)} {starts} from earlier sweeps: {each}"


def _best(rows: Sequence[tuple[str | None, BestRow]]) -> BestRow | None:
    if not rows:
        return None
    return min((row for _, row in rows), key=lambda row: row.rank)


def _most_tried(
    rows: Sequence[tuple[str | None, BestRow]],
) -> list[tuple[str | None, BestRow]]:
    """The rows of the sweep that has most of them, of equal ones the newest."""
    by_sweep: dict[str | None, list[tuple[str | None, BestRow]]] = {}
    for sweep, row in rows:
        by_sweep.setdefault(sweep, []).append((sweep, row))
    return max(by_sweep.values(), key=len, default=[])
