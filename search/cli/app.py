"""What the commands share: the application, its exit codes and the options that many take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXIT_FAILED = 1
app = typer.Typer(
    name="ranksweep",
    help="Finds how to spend low-rank adaptation capacity: one profile, many cheap trials.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="The sweep.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as train.epochs=5."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URI",
        help="Store of profiles; else the sweep's, RANKSWEEP_STORE, file://.ranksweep/store.",
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        metavar="URI",
        help="MLflow tracking; else the sweep's, MLFLOW_TRACKING_URI, .ranksweep/mlflow.db.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")
]
CsvOption = Annotated[
    bool, typer.Option("--csv", help="Print the result as CSV on stdout, a line of each row.")
]
ChoiceFile = Annotated[
    Path, typer.Option("--choice", metavar="CHOICE.yaml", help="A method and its settings.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"ranksweep {version('ranksweep')}")
        except PackageNotFoundError:
            print("ranksweep (not installed)")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options of every command; `main` reads --debug itself, for it must know of every error."""
