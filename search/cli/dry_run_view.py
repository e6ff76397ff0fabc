"""A dry run on a terminal."""

from __future__ import annotations

import yaml
from rich.console import Group
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from search.cli.output import count_range_text
from search.launch.dry_run import DryRun
from search.wording import classes_line, duration, figure, knobs


def drawn_dry_run(result: DryRun) -> Group:
    """What a launch would do and cost, for the terminal."""
    profile, search, rows = result.profile, result.search, result.task["rows"]
    cached = "cached" if profile["cached"] else "not cached"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("base", Text(f"{result.base['uri']}, {result.base['params']:,} parameters"))
    facts.add_row("task", ", ".join(f"{count:,} {name}" for name, count in rows.items()) + " rows")
    if result.task["classes"]:
        facts.add_row("classes", Text(classes_line(result.task["classes"])))
    for split, constant in result.task["constant_answers"].items():
        answer = "one for each set" if constant["answer"] is None else repr(constant["answer"])
        facts.add_row(
            "",
            Text(
                f"a constant answer ({answer}) has {constant['metric']} "
                f"{figure(constant['value'])} on {split}"
            ),
        )
    facts.add_row("profile", Text(f"{profile['key']} ({cached} in {profile['store']})"))
    facts.add_row(
        "",
        f"{profile['modules']} modules, {profile['optimizer_steps']} steps of which "
        f"{profile['scored_steps']} scored, {profile['calibration_batches']} micro-batches",
    )
    facts.add_row(
        "search",
        f"{search['trials']} trials of {search['epochs']} epochs "
        f"({search['steps_per_trial']} steps), {search['at_once']} at once",
    )
    if result.confirm is not None:
        facts.add_row("confirm", f"{result.confirm['trials']} trials, measured on test")

    counts = Table("method", "params", "% of the base", Column("default choice", overflow="fold"))
    for each in result.methods:
        low, high = (
            f"{100 * count / result.base['params']:.3f}" for count in each.trainable_params
        )
        counts.add_row(
            each.method,
            count_range_text(*each.trainable_params),
            low if each.exact else f"{low} to {high}",
            f"learning_rate={figure(each.choice['learning_rate'])} {knobs(each.choice)}",
        )
    times = Table(
        "stage", *(Column(name, justify="right") for name in ("at least", "about", "at most"))
    )
    for name in ("start", "profile", "search", "confirm", "total"):
        span = (result.seconds_low, result.seconds, result.seconds_high)
        times.add_row(name, *(duration(seconds[name]) for seconds in span))
    config = yaml.safe_dump(result.config, sort_keys=False, default_flow_style=None, width=60)
    return Group(
        Syntax(config.rstrip(), "yaml", background_color="default", word_wrap=True),
        Text(),
        facts,
        counts,
        times,
        *(Text(f"note: {note}", style="dim") for note in result.notes),
    )
