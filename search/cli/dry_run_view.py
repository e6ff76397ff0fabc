"""A dry run on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from search.cli.output import count_range_text
from search.launch.dry_run import DryRun
from search.launch.memory_plan import MemoryPlan
from search.wording import classes_line, duration, figure, knobs, tokens_line

LONGEST_EXAMPLE = 600
"""Characters of an example that are shown: half from its beginning, half from its end."""
MARKS = ("\u27e6", "\u27e7")
ASCII_MARKS = ("[[", "]]")
"""What stands around tokens that bear loss where there is neither bold nor underlined type."""


@dataclass(frozen=True)
class Example:
    """A row in pieces, each with whether its tokens bear loss: these are bold and underlined."""

    pieces: tuple[tuple[str, bool], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        before, after = ("", "")
        if console.color_system is None:
            before, after = ASCII_MARKS if options.ascii_only else MARKS
        text = Text()
        for piece, bears_loss in shortened(self.pieces, LONGEST_EXAMPLE):
            seen = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in piece)
            if bears_loss:
                text.append(f"{before}{seen}{after}", "" if before else "bold underline")
            else:
                text.append(seen)
        yield text


def shortened(pieces: Sequence[tuple[str, bool]], most: int) -> list[tuple[str, bool]]:
    """Pieces of at most so many characters together: what is too much is cut from the middle."""
    length = sum(len(text) for text, _ in pieces)
    if length <= most:
        return list(pieces)
    half = most // 2
    kept: list[tuple[str, bool]] = []
    begin = 0
    for text, bears_loss in pieces:
        end = begin + len(text)
        head = text[: max(0, half - begin)]
        tail = text[max(0, length - half - begin) :]
        middle = " [...] " if begin <= half < end else ""
        if head or middle or tail:
            kept.append((head + middle + tail, bears_loss))
        begin = end
    return kept


def drawn_dry_run(result: DryRun) -> Group:
    """What a launch would do and cost, for the terminal."""
    profile, search, rows = result.profile, result.search, result.task["rows"]
    cached = "cached" if profile["cached"] else "not cached"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("base", Text(f"{result.base['uri']}, {result.base['params']:,} parameters"))
    facts.add_row("task", ", ".join(f"{count:,} {name}" for name, count in rows.items()) + " rows")
    if result.task["longest"]:
        facts.add_row("tokens", f"{tokens_line(result.task)} (median / 95 % / most)")
    for number, row in enumerate(result.task["longest"]):
        begins = f"{row['tokens']:,} of {row['split']}: {row['begins']}"
        facts.add_row("" if number else "longest", Text(begins))
    if result.task["classes"]:
        facts.add_row("classes", Text(classes_line(result.task["classes"])))
    beside = "" if result.task["classes"] else "measure"
    for split, constant in result.task["constant_answers"].items():
        answer = "one for each set" if constant["answer"] is None else repr(constant["answer"])
        facts.add_row(
            beside,
            Text(
                f"a constant answer ({answer}) has {constant['metric']} "
                f"{figure(constant['value'])} on {split}"
            ),
        )
        beside = ""
    if result.task["example"]:
        pieces = [(each["text"], each["loss"]) for each in result.task["example"]]
        facts.add_row("example", Example(tuple(pieces)))
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
        least, greatest = each.learning_rates
        rates = f" ({figure(least)} to {figure(greatest)})" if least < greatest else ""
        low, high = (
            f"{100 * count / result.base['params']:.3f}" for count in each.trainable_params
        )
        counts.add_row(
            each.method,
            count_range_text(*each.trainable_params),
            low if each.exact else f"{low} to {high}",
            f"learning_rate={figure(each.choice['learning_rate'])}{rates} {knobs(each.choice)}",
        )
    times = Table(
        "stage", *(Column(name, justify="right") for name in ("at least", "about", "at most"))
    )
    for name in ("start", "profile", "search", "confirm", "total"):
        span = (result.seconds_low, result.seconds, result.seconds_high)
        times.add_row(name, *(duration(seconds[name]) for seconds in span))
    memory = [] if result.memory is None else [drawn_memory(result.memory)]
    config = yaml.safe_dump(result.config, sort_keys=False, default_flow_style=None, width=60)
    return Group(
        Syntax(config.rstrip(), "yaml", background_color="default", word_wrap=True),
        Text(),
        facts,
        counts,
        times,
        *memory,
        *(Text(f"note: {note}", style="dim") for note in result.notes),
    )


def drawn_memory(plan: MemoryPlan) -> Group:
    """What each worker holds, whether that fits, and what would."""
    columns = {"process": plan.process, **plan.parts}
    table = Table("memory", *(Column(name, justify="right") for name in columns), "peaks")
    peaks = ", ".join(f"{name} {_gib(size)}" for name, size in plan.stages.items())
    table.add_row("GiB of a worker", *map(_gib, columns.values()), peaks)
    lines = []
    how = []
    if plan.activation_checkpointing:
        how.append("with activation checkpointing")
    if plan.profile_passes > 1:
        how.append(f"the profile's static pass in {plan.profile_passes} turns")
    if plan.limit is None:
        remedy = "; name the GPU by cluster.gpu" if plan.on_gpu else ""
        lines.append(", ".join([f"the memory of {plan.device} is not known{remedy}", *how]))
    else:
        verdict = "fits into" if plan.fits else "does not fit into"
        there = f"{verdict} the {_gib(plan.limit)} GiB that a worker has of {plan.device}"
        lines.append(", ".join([there, *how]))
    lines += [f"  would fit: {each.what} ({_gib(each.peak)} GiB)" for each in plan.changes]
    if plan.fits is False and plan.least_gpus is not None:
        lines.append(
            f"  would fit: cluster.workers_per_group: {plan.least_gpus} with "
            "deepspeed.zero_optimization.stage: 3"
        )
    elif plan.fits is False and not plan.changes:
        lines.append("  no single change of the sweep would make it fit: use more memory a worker")
    return Group(table, *(Text(line) for line in lines))


def _gib(size: int) -> str:
    gib = size / 2**30
    return f"{gib:.2f}" if gib < 10 else f"{gib:.1f}"
