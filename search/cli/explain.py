"""The command explain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from search.cli.app import JsonOption, StoreOption, TrackingOption, app
from search.cli.output import ByWidth, Result, add_row, prints_result
from search.cli.watch import tracking_of_sweep
from search.wording import figure, knobs

if TYPE_CHECKING:
    from rich.console import RenderableType

    from search.surrogate.explain import (
        Earlier,
        Explanation,
        FeatureEffect,
        KeyEffect,
        More,
        NextTrial,
        Predicted,
        Sureness,
    )

WIDE = 130
"""From so many columns on a trial that would be tried stands on a line of its own."""
TELLING = 0.05
"""Adjusted p-value up to which a method's own key is shown."""


@app.command()
@prints_result
def explain(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's name or run id.")],
    top: Annotated[
        int, typer.Option("--top", metavar="K", help="How many next trials to show.")
    ] = 5,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Show what moved a sweep's metric, how sure that is, and what would be tried next."""
    from search.launch.explain import explain_sweep

    uri = tracking_of_sweep(sweep, tracking)
    found = explain_sweep(sweep, tracking_uri=uri, store=store, top=top)
    return Result(found, drawn_explanation(found))


def drawn_explanation(found: Explanation) -> list[RenderableType]:
    """An explanation as it is printed."""
    trials = f"{found.complete} complete trial{'' if found.complete == 1 else 's'}"
    better = "more" if found.mode == "max" else "less"
    drawn: list[RenderableType] = [f"{found.sweep}: {trials}, {found.metric} ({better} is better)"]
    if found.history:
        drawn.append(f"learns from earlier sweeps: {', '.join(map(_earlier, found.history))}")
    if (best := found.best) is not None:
        seeds = f"mean of {best.seeds} seeds" if best.seeds > 1 else "one seed"
        drawn.append(
            f"best by the model: trial {best.number}, {best.method}, {_interval(best.predicted)}; "
            f"measured {best.measured:.4f} ({seeds}), {best.trainable_params:,} parameters"
        )
    if found.features:
        drawn.append(features_table(found.features, found.metric))
    telling = [each for each in found.keys if each.p_value <= TELLING]
    if telling:
        drawn.append(keys_table(telling, found.metric))
    if found.sureness is not None:
        drawn.append(sureness_line(found.sureness, found.metric))
    if found.next:
        drawn.append(ByWidth(_wide_next(found), _narrow_next(found), at=WIDE))
    if found.more is not None:
        drawn.append(more_line(found.more, found.metric))
    return [*drawn, *(f"note: {note}" for note in found.notes)]


def features_table(features: Sequence[FeatureEffect], metric: str) -> Table:
    """What moved the metric, by the features of plans, most first."""
    table = Table("feature of the plan", title=f"what moved {metric}", title_justify="left")
    for name in ("share", f"{metric} from worst to best", "best at", "tried"):
        table.add_column(name, justify="right")
    for each in features:
        name = each.name
        best, low, high = (plain_value(name, value) for value in (each.best, each.low, each.high))
        add_row(
            table, feature_name(name), f"{each.share:.0%}", f"{each.swing:.4f}", best,
            f"{low} to {high}",
        )  # fmt: skip
    return table


def keys_table(keys: Sequence[KeyEffect], metric: str) -> Table:
    """Keys of the methods that have to do with the metric, least by chance first."""
    table = Table("method", "key", title="keys of the methods", title_justify="left")
    for name in ("trials", f"rank correlation with {metric}", "best", "p (adjusted)"):
        table.add_column(name, justify="right")
    for each in keys:
        correlation = None if each.correlation is None else f"{each.correlation:+.2f}"
        add_row(
            table, each.method, each.key, each.trials, correlation,
            figure(each.best) if isinstance(each.best, float) else each.best,
            f"{each.p_value:.2g}",
        )  # fmt: skip
    return table


def sureness_line(found: Sureness, metric: str) -> str:
    """How sure the model is, in a line."""
    told = [f"{found.choices} choices, each predicted from others"]
    if found.r2 is not None:
        told.append(f"R² {found.r2:.2f}")
    if found.rank_correlation is not None:
        told.append(f"rank correlation {found.rank_correlation:.2f}")
    told.append(f"{found.covered:.0%} of values within their 95 % intervals")
    seeds = f"{found.repeated} choices with several seeds" if found.repeated else "no repeats"
    told.append(f"deviation between seeds {found.noise_sd:.4f} of {metric} ({seeds})")
    return f"how sure: {'; '.join(told)}"


def more_line(found: More, metric: str) -> str:
    """Whether more trials are worth their cost."""
    verdict = "worth their cost" if found.are_worth_it else "not worth their cost"
    return (
        f"the next {found.trials} trials: expected to improve {metric} by {found.gain:.2g}, "
        f"{found.in_noise:.2f} of the deviation between seeds: {verdict} "
        f"(from {found.at_least:g} on)"
    )


def _earlier(found: Earlier) -> str:
    how = f"believed {found.believed:.0%}" if found.believed else "given up, for it misleads"
    return f"{found.run_id[:8]} ({found.trials} trials, {how})"


def _wide_next(found: Explanation) -> Table:
    table = Table(Column("arm", style="cyan"), title="would be tried next", title_justify="left")
    for name in (f"{found.metric} (95 %)", "gain", "by value", "params", "learning rate"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("choice", "why"):
        table.add_column(name, overflow="fold")
    for each in found.next:
        add_row(table, each.arm, *_figures(each), knobs(each.choice), each.why)
    return table


def _narrow_next(found: Explanation) -> Table:
    """The same with all that is not compared by eye in one column."""
    table = Table(title="would be tried next", title_justify="left")
    table.add_column(f"{found.metric} (95 %)", justify="right")
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("choice", overflow="fold")
    for each in found.next:
        value, gain, by_value, params, rate = _figures(each)
        told = [
            f"{each.arm}, {params} parameters",
            f"learning_rate={rate} {knobs(each.choice)}",
            f"{each.why} ({by_value} of the gain by value)",
        ]
        add_row(table, value, gain, "\n".join(told))
        table.add_section()
    return table


def _figures(each: NextTrial) -> tuple[str, str, str, str, str]:
    return (
        _interval(each.predicted),
        f"{each.gain:.2g}",
        f"{each.by_value:.0%}",
        f"{each.trainable_params:,}",
        figure(each.choice.get("learning_rate")),
    )


def _interval(found: Predicted) -> str:
    return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"


def feature_name(name: str) -> str:
    """A feature in words: `log10_first_update` is the first update."""
    return name.removeprefix("log10_").removeprefix("log2_").replace("_", " ")


def plain_value(name: str, value: float) -> str:
    """A value of a feature out of its logarithm."""
    if name.startswith("log10_"):
        value = 10**value
    elif name.startswith("log2_"):
        value = 2**value
    return f"{value:,.0f}" if name == "log10_params" else f"{value:.3g}"
