"""How far the profiles of two tasks on one base agree, module by module.

SmolLM2-135M on two of the choice sets of examples/language, some rows of each. The first is
profiled twice, the second time on other rows and with another seed: what two profiles of one task
share is the most that those of two tasks can be expected to. Compared are PiLoRA's dominant rows
(rule cumulative) and TASO's core rows and columns by their Jaccard index, |A and B| / |A or B|, and
the Hessian's diagonals by Spearman's correlation; a figure is the mean over the layers of a module.
Chance is the expected Jaccard index of as many indices drawn at random.

    python benchmarks/profiles_of_tasks.py --tasks siqa commonsenseqa --rows 320
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from conditions import CHECKOUT
from numpy.typing import NDArray
from results import Run

if TYPE_CHECKING:
    from search.config.sweep import SweepConfig
    from spaces.profile import Profile
    from spaces.target import TargetModule

EXAMPLES = CHECKOUT / "examples" / "language"
CHOICES = ("boolq", "commonsenseqa", "openbookqa", "piqa", "siqa")
SHARES = (0.5, 0.7)
"""Thresholds of PiLoRA's rule cumulative."""
RETENTION, TOP_PERCENT = 0.1, 5.0
"""Of TASO's core."""

Indices = NDArray[np.int32]
Agreement = dict[str, tuple[float, float]]
"""What is compared -> how far it agrees, and by chance."""


# Profiles ----------------------------------------------------------------------------------------


def config_of(name: str, rows: int, seed: int) -> SweepConfig:
    """An example with so many rows and no more, chosen and profiled with this seed."""
    from search.config.reading import load_sweep

    settings = [f"task.rows={{train: {rows}, seed: {seed}}}", f"profile.seed={seed}"]
    with contextlib.chdir(CHECKOUT):  # where its data is
        return load_sweep(EXAMPLES / f"{name}.yaml", settings)


def profiles(tasks: Sequence[str], rows: int) -> list[Profile]:
    """Those of the first task, of the second, and of the first again, on a base loaded once."""
    from trainables.bases.loading import load_base
    from trainables.bases.structure import resolve_targets
    from trainables.engine.workers import join
    from trainables.profiling.profile import compute_profile
    from trainables.tasks.task import build_task

    workers, made = join(), []
    base = None
    for name, seed in (*((name, 0) for name in tasks), (tasks[0], 1)):
        started = time.monotonic()
        config = config_of(name, rows, seed)
        with contextlib.chdir(CHECKOUT):
            task = build_task(config.task, config.base)
        base = base or load_base(config.base, task.head, task.outputs)
        task = task.fitted(base.model)
        targets = resolve_targets(base.model, base.head_modules, config.profile.target_modules)
        made.append(compute_profile(base.model, {}, targets, task, config.profile, workers=workers))
        print(f"{name}, seed {seed}: profiled in {time.monotonic() - started:.0f} s", flush=True)
    return made


# Agreement ---------------------------------------------------------------------------------------


def jaccard(a: Indices, b: Indices) -> float:
    """|A and B| / |A or B|; NaN of two empty sets."""
    either = len(np.union1d(a, b))
    return len(np.intersect1d(a, b)) / either if either else math.nan


def by_chance(a: int, b: int, size: int) -> float:
    """The expected Jaccard index of `a` and `b` of `size` indices drawn at random; NaN of none."""
    from scipy.stats import hypergeom

    if not a + b:
        return math.nan
    common = np.arange(max(0, a + b - size), min(a, b) + 1)
    return float((hypergeom.pmf(common, size, a, b) * common / (a + b - common)).sum())


def taken(profile: Profile) -> dict[str, list[Indices]]:
    """What is compared -> the indices that the profile takes of each module."""
    from spaces.methods.pilora import Partition, dominant_rows
    from spaces.methods.taso import TasoChoice, core

    choice = TasoChoice(retention=RETENTION, top_percent=TOP_PERCENT)
    cores = core(choice, profile.targets, profile)
    dominant = {
        f"dominant rows, {share:g}": [
            dominant_rows(Partition(rule="cumulative", threshold=share), target, profile, (0, i))
            for i, target in enumerate(profile.targets)
        ]
        for share in SHARES
    }
    return {
        **dominant,
        "core rows": [rows for rows, _ in cores],
        "core columns": [cols for _, cols in cores],
    }


def agreement(one: Profile, other: Profile) -> dict[str, Agreement]:
    """Module, such as q_proj, -> how far the profiles agree, on the mean over its layers."""
    from scipy.stats import spearmanr

    ours, theirs = taken(one), taken(other)
    found: dict[str, Agreement] = {}
    for module, places in grouped(one.targets).items():
        told: Agreement = {}
        for what, sets in ours.items():
            pairs = [(sets[i], theirs[what][i], size_of(one.targets[i], what)) for i in places]
            told[what] = (
                mean_of(jaccard(a, b) for a, b, _ in pairs),
                mean_of(by_chance(len(a), len(b), size) for a, b, size in pairs),
            )
        diagonals = [
            [each.require(one.targets[i].name, "hessian_diag") for each in (one, other)]
            for i in places
        ]
        correlations = (float(spearmanr(*pair).statistic) for pair in diagonals)
        told["Hessian's diagonal"] = (mean_of(correlations), 0.0)
        found[module] = told
    return found


def grouped(targets: Sequence[TargetModule]) -> dict[str, list[int]]:
    """Last part of a module's name -> where its layers stand."""
    groups: dict[str, list[int]] = {}
    for index, target in enumerate(targets):
        groups.setdefault(target.name.rpartition(".")[2], []).append(index)
    return groups


def size_of(target: TargetModule, what: str) -> int:
    """How many indices there are to take."""
    return target.shape[1] if what == "core columns" else target.shape[0]


def mean_of(values: Iterator[float]) -> float:
    """The mean of those that are numbers; 0 where none is."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else 0.0


# What is told ------------------------------------------------------------------------------------


def table(two: Mapping[str, Agreement], again: Mapping[str, Agreement]) -> str:
    """A line for each module, a column for each comparison: two tasks / one task / chance."""
    columns = list(next(iter(two.values())))
    lines = [f"{'':10}" + "".join(f"{column:>22}" for column in columns)]
    for module, told in two.items():
        cells = (
            f"{told[each][0]:.2f} / {again[module][each][0]:.2f} / {told[each][1]:.2f}"
            for each in columns
        )
        lines.append(f"{module:10}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def report(run: Run, tasks: Sequence[str], rows: int, made: Sequence[Profile]) -> None:
    """Print the table and record the row of all."""
    first, second, repeated = made
    two, again = agreement(first, second), agreement(first, repeated)
    print("two tasks / one task on other rows and another seed / chance")
    print(table(two, again), flush=True)
    figures: dict[str, Any] = {
        module: {
            what: {"two": value, "one": again[module][what][0], "chance": chance}
            for what, (value, chance) in told.items()
        }
        for module, told in two.items()
    }
    columns = list(next(iter(two.values())))
    means = {
        what: tuple(
            fmean(each[what][place] for each in figures.values())
            for place in ("two", "one", "chance")
        )
        for what in columns
    }
    run.record(
        f"agreement of the profiles of {' and '.join(tasks)}, SmolLM2-135M, {rows} rows of each",
        figures,
        "; ".join(
            f"{what} {two:.2f} (one task {one:.2f}, chance {chance:.2f})"
            for what, (two, one, chance) in means.items()
        ),
        "of what two profiles of one task share beyond chance, those of two tasks share: "
        + ", ".join(
            f"{what} **{(two - chance) / (one - chance):.0%}**"
            for what, (two, one, chance) in means.items()
            if one > chance
        ),
    )


def main() -> None:
    """Profile, compare, and record what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs=2, choices=CHOICES, default=("siqa", "commonsenseqa"))
    parser.add_argument("--rows", type=int, default=320, help="of each task (default 320)")
    arguments = parser.parse_args()
    run = Run.begin()
    print(run, flush=True)
    made = profiles(arguments.tasks, arguments.rows)
    report(run, arguments.tasks, arguments.rows, made)


if __name__ == "__main__":
    main()
