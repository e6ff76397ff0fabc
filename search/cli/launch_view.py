"""What a launch has done, on a terminal: its tables, and the commands that look further."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table

from search.cli.lm_eval_table import lm_eval_table
from search.cli.output import add_row
from search.cli.results import confirmation_table, suite_table
from search.config.reading import resolve_store, resolve_tracking
from search.redaction import redacted
from search.tracking.ui import LOCAL_SERVER, ui_link
from search.wording import duration, figure, knobs

if TYPE_CHECKING:
    from rich.console import RenderableType

    from search.config.sweep import SweepConfig
    from search.launch.result import LaunchResult
    from search.queries.best_choice import BestChoice


def drawn_profile(config: SweepConfig, result: LaunchResult) -> Iterator[RenderableType]:
    """What a launch that stops after the profile has done."""
    yield _profile_line(result)
    if result.profile_kept_in is None:
        at = [] if config.store == resolve_store() else ["--store", redacted(config.store)]
        yield _command("ranksweep", "profiles", "show", result.profile_key[:12], *at)


def drawn_launch(config: SweepConfig, result: LaunchResult) -> Iterator[RenderableType]:
    """What a launch has done, also one that was cut off."""
    from search.queries.comparison import resolution, verdict

    yield _profile_line(result)
    states = ", ".join(f"{count} {state}" for state, count in sorted(result.states.items()))
    took = duration(sum(result.seconds.values()))
    yield f"trials: {states or 'none'}; this launch took {took}"
    if not result.best:
        return
    metric = config.search.metric
    yield results_table(result.best, metric, f"best of each method on dev ({metric})")
    if result.front:
        title = f"front of {metric} against parameters"
        yield results_table(result.front, metric, title)
    yield from (
        f"trial {each.number} ({each.arm}) started from the weights of trial {each.warm_from}, and "
        f"is ranked with none: {metric} {figure(each.value)}"
        for each in result.warm
    )
    yield from _beside_constant_answers(result)
    yield from (f"no trial of {arm} ran to its end ({why})" for arm, why in result.unranked.items())
    if result.confirmation:
        yield confirmation_table(result.confirmation)
        yield from result.fallen
        if (of_each := suite_table(result.confirmation, config.published)) is not None:
            yield of_each
        yield verdict(result.confirmation)
        yield from resolution(result.confirmation)
        if (constant := result.constant_answers.get("test")) is not None:
            beaten = any(constant.is_beaten_by(row.mean) for row in result.confirmation)
            yield (
                f"a constant answer on test: {constant.metric} {constant.in_words}"
                f"{'' if beaten else '; nothing that was confirmed beats it'}"
            )
    yield from lm_eval_table(result.confirmation or (), result.lm_eval_of_base)
    if result.report is not None:
        yield f"report: {result.report}"
    yield "\n".join(["look further:", *_look_further(config, result)])


def _profile_line(result: LaunchResult) -> str:
    where = "taken from the store" if result.profile_cached else "computed"
    return f"profile {result.profile_key} ({where})"


def _beside_constant_answers(result: LaunchResult) -> Iterator[str]:
    constant = result.constant_answers.get("dev")
    if constant is not None:
        best = result.best[0]
        yield (
            f"best: {constant.metric} {figure(best.value)} ({best.arm}, trial {best.number}); a "
            f"constant answer has {constant.in_words}"
        )
    if result.nothing_learned is not None:
        yield result.nothing_learned


def _look_further(config: SweepConfig, result: LaunchResult) -> Iterator[str]:
    """Commands that can be given as they stand, but for a password, which is never shown."""
    uri = redacted(result.tracking_uri)
    at = [] if config.tracking.uri == resolve_tracking() else ["--tracking", uri]
    which = ["--pareto"] if len(config.search.objectives) > 1 else ["--top", "10"]
    asked = ["--task", config.task.name, "--metric", config.search.metric]
    yield _command("ranksweep", "best", *asked, *which, *at)
    if result.confirmation:
        yield _command("ranksweep", "compare", config.name, *at)
    run, experiment = result.sweep_run_id, result.experiment_id
    if uri.startswith(("http://", "https://")):
        yield f"  {(experiment and ui_link(uri, experiment, view=run)) or uri}"
    else:
        yield _command("mlflow", "server", "--backend-store-uri", uri)
        if experiment:
            yield f"  {ui_link(LOCAL_SERVER, experiment, view=run)}"
    if "***" in uri:
        yield "  (with what stands for *** put in)"


def _command(*words: str) -> str:
    return f"  {shlex.join(words)}"


def results_table(
    rows: Sequence[BestChoice], metric: str = "value", title: str | None = None
) -> Table:
    """A table of the best trials, best first; with how many seeds, and what it holds over them
    (search/queries/holding.py), where one was repeated."""
    repeated = any(row.seeds > 1 for row in rows)
    collapsed = any(row.collapsed for row in rows)
    table = Table(
        Column("method", style="cyan"),
        Column(metric, justify="right"),
        *([Column("holds", justify="right")] if repeated else []),
        *([Column("seeds", justify="right")] if repeated else []),
        *([Column("collapsed", justify="right")] if collapsed else []),
        Column("params", justify="right"),
        Column("learning rate", justify="right"),
        Column("choice", overflow="fold"),
        Column("trial", overflow="fold"),
        title=title,
        title_justify="left",
    )
    for row in rows:
        add_row(
            table,
            row.arm,
            figure(row.value),
            *([figure(row.holds), row.seeds] if repeated else []),
            *([f"{row.collapsed} of {row.seeds}"] if collapsed else []),
            f"{row.trainable_params:,}",
            figure(row.choice.get("learning_rate")),
            knobs(row.choice),
            row.number,
        )
    return table
