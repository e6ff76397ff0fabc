"""The commands best, compare, export and compose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Column, Table

from search.cli.app import CsvOption, JsonOption, TrackingOption, app
from search.cli.lm_eval_table import lm_eval_table
from search.cli.narrowing import (
    ArmOption,
    BaseOption,
    MaxMemoryOption,
    MaxParamsOption,
    MaxStepTimeOption,
    MethodOption,
    MinParamsOption,
    SinceOption,
    SweepOption,
    TagOption,
    UntilOption,
    narrowed,
)
from search.cli.output import ByWidth, Result, add_row, prints_result

if TYPE_CHECKING:
    from rich.console import RenderableType

    from search.config.published import PublishedSettings
    from search.queries.comparison import Confirmation
    from search.queries.rows import BestRow
    from search.trained.compose import Composition

ItsBaseOption = Annotated[
    str | None, typer.Option("--base", metavar="BASE", help="Where the trial's base is now.")
]
AsSearchedOption = Annotated[
    bool, typer.Option("--as-searched", help="The trial itself, not the confirmation of it.")
]
OwnCodeOption = Annotated[
    bool,
    typer.Option("--own-code", help="Run the code of the task's own that the run names."),
]

WIDE_BEST = 130
"""From so many columns on a trial of `best` stands on a line of its own."""


@app.command()
@prints_result
def best(
    *,
    task: Annotated[str, typer.Option("--task", metavar="T", help="Name of the task.")],
    base: BaseOption = None,
    method: MethodOption = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="M", help="Rank by this metric, not the searched one."),
    ] = None,
    arm: ArmOption = None,
    min_params: MinParamsOption = None,
    max_params: MaxParamsOption = None,
    max_memory: MaxMemoryOption = None,
    max_step_time: MaxStepTimeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    sweep: SweepOption = None,
    tag: TagOption = None,
    top: Annotated[
        int | None, typer.Option("--top", metavar="K", help="How many to show; default 1.")
    ] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="The front of metric against parameters.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="D", help="Trials over this data; default: the newest's."),
    ] = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
    csv_output: CsvOption = False,
) -> Result:
    """Show the best complete trials of a task, from MLflow alone."""
    from search.config.reading import resolve_tracking
    from search.queries import best

    uri = resolve_tracking(tracking)
    where = narrowed(
        base=base,
        method=method,
        arm=arm,
        min_params=min_params,
        max_params=max_params,
        max_memory=max_memory,
        max_step_time=max_step_time,
        since=since,
        until=until,
        sweep=sweep,
        tag=tag,
    )
    asked: dict[str, Any] = {"metric": metric, "data": data, "where": where}
    rows = best.best(uri, task, **asked, top=top, pareto=pareto)
    error = "" if rows else best.why_none(uri, task, **asked)
    return Result(rows, _best_of(uri, rows) if rows else [], error)


def _best_of(uri: str, rows: Sequence[BestRow]) -> list[RenderableType]:
    from search.tracking.runs import RecordedRuns

    drawn: list[RenderableType] = [best_table(rows)]
    if uri.startswith(("http://", "https://")) and (
        link := RecordedRuns(uri).link_to(rows[0].run_id)
    ):
        drawn.append(f"the first in MLflow: {link}")
    return drawn


@app.command()
@prints_result
def compare(
    sweeps: Annotated[
        list[str],
        typer.Argument(metavar="SWEEP...", help="A sweep's name or run id; several of one task."),
    ],
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="ARM",
            help="What the others are set beside; of one of several sweeps, SWEEP:ARM.",
        ),
    ] = "lora",
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
    csv_output: CsvOption = False,
) -> Result:
    """Set the methods of sweeps side by side on test, as confirmed, from MLflow alone."""
    from search.config.reading import resolve_tracking
    from search.queries import comparison

    uri = resolve_tracking(tracking)
    compared = comparison.compare(uri, sweeps, against)
    rows = compared.rows
    verdict = comparison.verdict(rows, against)
    drawn: list[RenderableType] = [
        confirmation_table(rows, against),
        *([] if (of_each := suite_table(rows, compared.published)) is None else [of_each]),
        *compared.fallen,
        verdict,
        *([] if compared.luck is None else [compared.luck]),
        *comparison.resolution(rows),
    ]
    if compared.constant is not None and rows:
        drawn.append(f"a constant answer on test: {rows[0].metric} {compared.constant:.4f}")
    drawn += lm_eval_table(rows, compared.lm_eval_of_base)
    published = compared.published
    if published is not None:
        drawn.append(paper_line(published, rows))
    document = {
        "choices": rows,
        "verdict": verdict,
        "luck": compared.luck,
        "fallen": compared.fallen,
        "constant_answer": compared.constant,
        "lm_eval_of_base": compared.lm_eval_of_base,
        "published": None if published is None else published.model_dump(mode="json"),
    }
    return Result(document, drawn, lines=rows)


@app.command("export")
@prints_result
def export_trial(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A trial, as `best` shows it.")],
    form: Annotated[
        Literal["peft", "merged", "plan"],
        typer.Option("--to", help="A PEFT checkpoint, a plain one of transformers, or the masks."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Write here: a folder that is not there.")
    ],
    *,
    base: ItsBaseOption = None,
    as_searched: AsSearchedOption = False,
    prune: Annotated[
        float | None,
        typer.Option(
            "--prune",
            metavar="SHARE",
            help="Leave this share of the update's singular components, the largest.",
        ),
    ] = None,
    own_code: OwnCodeOption = False,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Write a trained trial as a checkpoint that others load, or its plan."""
    from search.config.reading import resolve_tracking
    from search.trained.export import export

    uri = resolve_tracking(tracking)
    written = export(
        uri, run_id, form, out, base, as_searched=as_searched, own_code=own_code, prune=prune
    )
    lines = ["\n  ".join([f"wrote {written['out']}", *written["files"]])]
    if cut := written.get("pruned"):
        lines.append(
            f"pruned from {cut['params_before']:,} to {cut['params']:,} parameters, from "
            f"{cut['ranks_before']:,} ranks to {cut['ranks']:,}; what is cut is {cut['error']:.2%} "
            "of the update by its Frobenius norm"
        )
    if written["confirms"]:
        lines.append(
            f"it is {written['run_id']}, the best on dev of the seeds that confirm this trial; "
            "--as-searched writes the trial itself"
        )
    return Result(written, lines)


@app.command("compose")
@prints_result
def compose_trials(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A trial, as `best` shows it.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="Another, of the same base.")],
    split: Annotated[
        Literal["test", "dev"], typer.Option("--split", help="The split that is measured.")
    ] = "test",
    rows: Annotated[
        int | None, typer.Option("--rows", metavar="N", help="Measure at most N rows of it.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Where the trials' base is now."),
    ] = None,
    own_code: OwnCodeOption = False,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Add the updates of two trials to one base and measure both tasks."""
    from search.config.reading import resolve_tracking
    from search.trained.compose import compose

    composition = compose(
        resolve_tracking(tracking), (run_a, run_b), split, rows, base, own_code=own_code
    )
    return Result(composition.as_dict(), [composition_table(composition)])


# -- drawing ---------------------------------------------------------------------------------------


def best_table(rows: Sequence[BestRow]) -> RenderableType:
    """The rows as a table for the terminal; run ids, which are copied, are never broken."""
    return ByWidth(_wide_best_table(rows), _narrow_best_table(rows), at=WIDE_BEST)


def _narrow_best_table(rows: Sequence[BestRow]) -> Table:
    """The same with all that is not compared by eye in one column."""
    metric = rows[0].metric if rows else "value"
    table = Table(Column("run", no_wrap=True), Column(metric, justify="right", no_wrap=True))
    table.add_column("trial", overflow="fold")
    several = _several_bases(rows)
    for row in rows:
        told = [
            f"{row.method}, {row.trainable_params:,} parameters",
            f"head {row.head_params:,}, {row.epochs} epochs",
            *([f"{row.seeds} seeds"] if row.seeds > 1 else []),
            f"holds {_holds_text(row)}",
            *([members_text(row.suite)] if row.suite else []),
            f"sweep {row.sweep}",
            *([f"base {row.base_uri}"] if several else []),
            _choice_text(row.choice),
        ]
        add_row(table, row.run_id, f"{row.value:.4f}", "\n".join(told))
        table.add_section()
    return table


def _wide_best_table(rows: Sequence[BestRow]) -> Table:
    metric = rows[0].metric if rows else "value"
    table = Table(Column("run", no_wrap=True))
    several = _several_bases(rows)
    for name in ("sweep", *(["base"] if several else []), "method"):
        table.add_column(name, overflow="fold")
    for name in (metric, "holds", "seeds", "params", "head", "epochs"):
        table.add_column(name, justify="right")
    table.add_column("choice", overflow="fold")
    for row in rows:
        add_row(
            table,
            row.run_id,
            row.sweep,
            *([row.base_uri] if several else []),
            row.method,
            f"{row.value:.4f}",
            _holds_text(row),
            row.seeds,
            f"{row.trainable_params:,}",
            f"{row.head_params:,}",
            row.epochs,
            " ".join(filter(None, [_choice_text(row.choice), members_text(row.suite)])),
        )
    return table


def _holds_text(row: BestRow) -> str:
    """What a choice holds; of how many seeds, where those that confirm it are among them."""
    of = f" (of {row.holds_of} seeds)" if row.holds_of != row.seeds else ""
    return f"{row.holds:.4f}{of}{_collapsed_text(row.collapsed)}"


def _collapsed_text(seeds: int) -> str:
    return f", {seeds} collapsed" if seeds else ""


def _several_bases(rows: Sequence[BestRow]) -> bool:
    return len({row.base for row in rows}) > 1


def _choice_text(choice: Mapping[str, Any]) -> str:
    from search.tracking.facts import flattened

    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in flattened(choice).items()
        if key != "method"
    )


def confirmation_table(rows: Sequence[Confirmation], reference: str = "lora") -> Table:
    """The confirmations as a table: mean, deviation, parameters, difference from the reference.

    The interval is the one for all comparisons together, which the verdict goes by. Where a paper
    prints a figure for any of them, it stands beside the mean, which is then called "here".
    """
    from search.queries.comparison import called, names_of

    metric = rows[0].metric if rows else "metric"
    table = Table("method", title=f"confirmed on test ({metric})", title_justify="left")
    has_paper = any(row.paper is not None for row in rows)
    has_collapsed = any(row.collapsed for row in rows)
    has_minus = any(row.minus_paper is not None for row in rows)
    means: tuple[str, ...] = ("paper", "here") if has_paper else ("mean",)
    means += ("minus paper (95%)",) if has_minus else ()
    collapsed = ("collapsed",) if has_collapsed else ()
    for name in (
        *means,
        "deviation",
        "seeds",
        *collapsed,
        "params",
        f"minus {called(reference)} (95%)",
    ):
        table.add_column(name, justify="right")
    for row, name in zip(rows, names_of(rows), strict=True):
        difference = None
        if row.adjusted is not None:
            low, high = row.adjusted
            difference = f"{low:+.4f} to {high:+.4f}, {row.verdict}"
        add_row(
            table,
            name,
            *([None if row.paper is None else f"{row.paper:.4f}"] if has_paper else []),
            f"{row.mean:.4f}",
            *([_interval_text(row.minus_paper)] if has_minus else []),
            None if row.deviation is None else f"{row.deviation:.4f}",
            len(row.values),
            *([f"{row.collapsed} of {len(row.values)}"] if has_collapsed else []),
            f"{row.trainable_params:,}",
            difference,
        )
    return table


def _interval_text(interval: tuple[float, float] | None) -> str | None:
    return None if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def members_text(suite: Mapping[str, float]) -> str:
    """What each member of a suite has measured, on one line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in suite.items())


def suite_table(
    rows: Sequence[Confirmation], published: PublishedSettings | None = None
) -> Table | None:
    """The mean over the seeds on each member of a suite, an arm a column; None without a suite.

    What a paper prints for a member stands behind it.
    """
    members = list(dict.fromkeys(name for row in rows for name in row.suite))
    if not members:
        return None
    table = Table("each set on test", *(Column(row.arm, justify="right") for row in rows))
    for name in members:
        add_row(table, name, *(_of_member(row, name, published) for row in rows))
    return table


def _of_member(row: Confirmation, name: str, published: PublishedSettings | None) -> str | None:
    value = row.suite.get(name)
    if value is None:
        return None
    paper = None if published is None else published.of_member(name, row.arm)
    return f"{value:.4f}" + ("" if paper is None else f" (paper {paper:.4f})")


def paper_line(published: PublishedSettings, rows: Sequence[Confirmation]) -> str:
    """Where the figures of a paper stand, and those of what was not confirmed here."""
    shown = [row.arm for row in rows if row.paper is not None]
    others = {k: v for k, v in published.figures.items() if k not in shown}
    unit = " in percent" if published.unit == "percent" else ""
    told = ", ".join(f"{name} {figure:g}" for name, figure in others.items())
    more = f"; it also prints{unit} {told}" if told else ""
    return f"paper: {published.source} ({published.metric}){more}"


def composition_table(composition: Composition) -> Table:
    """Both sides of a composition, and their average."""
    table = Table(title=f"composed, measured on {composition.split}", title_justify="left")
    for name in ("", "task", "method"):
        table.add_column(name, overflow="fold")
    for name in ("metric", "rows", "alone", "A + B", "difference"):
        table.add_column(name, justify="right")
    for letter, side in zip("AB", composition.sides, strict=True):
        told = (letter, side.task, side.method, side.metric, f"{side.rows:,}")
        add_row(table, *told, *_change(side.alone, side.composed))
    table.add_section()
    add_row(table, "average", *[""] * 4, *_change(composition.alone, composition.composed))
    return table


def _change(alone: float, composed: float) -> tuple[str, str, str]:
    return f"{alone:.4f}", f"{composed:.4f}", f"{composed - alone:+.4f}"
