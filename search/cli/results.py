"""The commands best, compare, export and compose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from search.cli.app import JsonOption, TrackingOption, app
from search.cli.output import logs_on_stderr, print_result
from spaces.errors import RanksweepError

if TYPE_CHECKING:
    from search.queries.best import BestRow


@app.command()
def best(
    *,
    task: Annotated[str, typer.Option("--task", metavar="T", help="Name of the task.")],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="B", help="Part of the base's name, or its fingerprint."),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="M", help="Only trials of this method.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="M", help="Rank by this metric, not the searched one."),
    ] = None,
    max_params: Annotated[
        int | None, typer.Option("--max-params", metavar="N", help="At most N parameters.")
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", metavar="K", help="How many to show; default 1.")
    ] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="The front of metric against parameters.")
    ] = False,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show the best complete trials of a task, from MLflow alone."""
    from search.config.reading import resolve_tracking

    uri = resolve_tracking(tracking)
    with logs_on_stderr():
        from search.queries import best

        rows = best.best(
            uri,
            task,
            base=base,
            method=method,
            metric=metric,
            max_params=max_params,
            top=top,
            pareto=pareto,
        )
        why_none = ""
        if not rows:
            why_none = best.why_none(
                uri, task, base=base, method=method, metric=metric, max_params=max_params
            )
    if json_output:
        print_result(best.best_json(rows), json_output)
    elif rows:
        print_result(best_table(rows))
    if why_none:
        raise RanksweepError(why_none)


@app.command()
def compare(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's name or run id.")],
    against: Annotated[
        str, typer.Option("--against", metavar="ARM", help="What the others are set beside.")
    ] = "lora",
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Set a sweep's methods side by side on test, as confirmed, from MLflow alone."""
    from rich.text import Text

    from search.config.reading import resolve_tracking

    with logs_on_stderr():
        from search.queries import comparison

        rows = [
            row.as_dict() for row in comparison.compare(resolve_tracking(tracking), sweep, against)
        ]
    if json_output:
        document = {"choices": rows, "verdict": comparison.verdict(rows, against)}
        print_result(document, json_output)
    else:
        print_result(confirmation_table(rows, against))
        print_result(Text(comparison.verdict(rows, against)))


@app.command("export")
def export_trial(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A trial, as `best` shows it.")],
    form: Annotated[
        Literal["peft", "merged", "plan"],
        typer.Option("--to", help="A PEFT checkpoint, a plain one of transformers, or the masks."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Write here: a folder that is not there.")
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Where the trial's base is now."),
    ] = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write a trained trial as a checkpoint that others load, or its plan."""
    from rich.text import Text

    from search.config.reading import resolve_tracking

    with logs_on_stderr():
        from search.trained.export import export

        written = export(resolve_tracking(tracking), run_id, form, out, base)
    if json_output:
        print_result(written, json_output)
    else:
        files = "".join(f"\n  {name}" for name in written["files"])
        print_result(Text(f"wrote {written['out']}{files}"))


@app.command("compose")
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
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Add the updates of two trials to one base and measure both tasks."""
    from search.config.reading import resolve_tracking

    with logs_on_stderr():
        from search.trained.compose import compose

        uri = resolve_tracking(tracking)
        composition = compose(uri, (run_a, run_b), split, rows, base)
    print_result(composition.as_dict() if json_output else composition.table(), json_output)


def best_table(rows: Sequence[BestRow]) -> Table:
    """The rows as a table for the terminal."""
    name = rows[0].metric if rows else "value"
    table = Table()
    table.add_column("run", overflow="fold", min_width=16)
    for column in ("sweep", "method"):
        table.add_column(column, overflow="fold")
    for column in (name, "seeds", "params", "head", "epochs"):
        table.add_column(column, justify="right")
    table.add_column("choice", overflow="fold")
    for row in rows:
        shown = {key: value for key, value in row.choice.items() if key != "method"}
        cells = (
            row.run_id,
            row.sweep,
            row.method,
            f"{row.value:.4f}",
            str(row.seeds),
            f"{row.trainable_params:,}",
            f"{row.head_params:,}",
            str(row.epochs),
            _choice_text(shown),
        )
        # Text, for a name from a run is not to be read as Rich's markup.
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _choice_text(choice: dict[str, Any]) -> str:
    from search.tracking.facts import flattened

    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in flattened(choice).items()
    )


def confirmation_table(rows: Sequence[Mapping[str, Any]], reference: str = "lora") -> Table:
    """The confirmations as a table: mean, deviation, parameters, difference from the reference."""
    from rich.table import Table

    metric = rows[0]["metric"] if rows else "metric"
    table = Table(title=f"confirmed on test ({metric})", title_justify="left")
    from search.queries.comparison import called

    beside = called(reference)
    for name in ("method", "mean", "deviation", "seeds", "params", f"minus {beside} (95%)"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        if row["difference"] is None:
            shown = "-"
        else:
            low, high = row["difference"]
            noise = ", within the noise" if row["within_noise"] else ""
            shown = f"{low:+.4f} to {high:+.4f}{noise}"
        table.add_row(
            row["arm"],
            f"{row['mean']:.4f}",
            "-" if row["deviation"] is None else f"{row['deviation']:.4f}",
            str(len(row["values"])),
            f"{row['trainable_params']:,}",
            shown,
        )
    return table
