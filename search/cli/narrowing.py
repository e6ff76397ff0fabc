"""The options that narrow a query down, which best, history and sweeps list share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from spaces.errors import ConfigError

if TYPE_CHECKING:
    from search.queries.filters import Filters

BaseOption = Annotated[
    str | None,
    typer.Option("--base", metavar="B", help="Part of the base's name, or its fingerprint."),
]
MethodOption = Annotated[
    str | None, typer.Option("--method", metavar="M", help="Only trials of this method.")
]
ArmOption = Annotated[
    str | None, typer.Option("--arm", metavar="A", help="Only trials of this arm of a sweep.")
]
MinParamsOption = Annotated[
    int | None, typer.Option("--min-params", metavar="N", help="At least N parameters.")
]
MaxParamsOption = Annotated[
    int | None, typer.Option("--max-params", metavar="N", help="At most N parameters.")
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option("--max-memory", metavar="SIZE", help="At most so much of a worker, as 12GiB."),
]
MaxStepTimeOption = Annotated[
    float | None,
    typer.Option("--max-step-time", metavar="S", help="At most S seconds a step (median)."),
]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="Begun since: a date, a time, or an age as 7d."),
]
UntilOption = Annotated[
    str | None,
    typer.Option("--until", metavar="WHEN", help="Begun until; a date is a whole day."),
]
SweepOption = Annotated[
    str | None, typer.Option("--sweep", metavar="NAME", help="Only of sweeps of this name.")
]
TagOption = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="KEY=VALUE", help="Only runs with this tag; may be repeated."),
]


def narrowed(
    *,
    base: str | None = None,
    method: str | None = None,
    arm: str | None = None,
    min_params: int | None = None,
    max_params: int | None = None,
    max_memory: str | None = None,
    max_step_time: float | None = None,
    since: str | None = None,
    until: str | None = None,
    sweep: str | None = None,
    tag: list[str] | None = None,
) -> Filters:
    """What these options ask for. Raises ConfigError where one cannot be read."""
    from datetime import UTC, datetime

    from search.queries.filters import Filters, day_end_ms, moment_ms, tags_of
    from trainables.settings import bytes_of

    now = datetime.now(UTC)
    memory = None
    if max_memory is not None:
        try:
            memory = bytes_of(max_memory)
        except ValueError as error:
            raise ConfigError(f"--max-memory: {error}") from None
    return Filters(
        base=base,
        method=method,
        arm=arm,
        min_params=min_params,
        max_params=max_params,
        max_memory=memory,
        max_step_time=max_step_time,
        since_ms=None if since is None else moment_ms("--since", since, now),
        until_ms=None if until is None else day_end_ms("--until", until, now),
        sweep=sweep,
        tags=tags_of(tag or ()),
    )
