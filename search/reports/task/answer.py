"""What a task's sweeps have found, in three sentences made of their numbers."""

from __future__ import annotations

import shlex

from search.queries.history import Step
from search.reports.page import Answer, Command, KeyNumber
from search.reports.sweep.answer import stands
from search.reports.sweep.hours import gpus_of
from search.reports.task.bases import best_of_bases
from search.reports.task.cost import gpu_hours
from search.reports.task.record import TaskRecord, called
from search.reports.words import change, count, hours, listed, plural, value
from search.wording import moment


def answer_of(record: TaskRecord) -> Answer:
    """Where the best is; whether the last sweep moved it beyond the noise; what to try next."""
    next_sentence, commands = _next(record)
    return Answer(
        sentences=(_searched(record), _moved(record), next_sentence),
        commands=tuple(commands),
        numbers=tuple(_numbers(record)),
    )


def _searched(record: TaskRecord) -> str:
    trials = sum(len(sweep.trials) for sweep in record.sweeps)
    first, last = record.sweeps[0].run, record.sweeps[-1].run
    when = moment(first.started_ms)[:10], moment(last.started_ms)[:10]
    told = (
        f"{plural(len(record.sweeps), 'sweep')} with {plural(trials, 'trial')} looked at the task "
        f"{record.task} on {plural(max(len(record.bases), 1), 'base')}, "
        f"{f'on {when[0]}' if when[0] == when[1] else f'from {when[0]} to {when[1]}'}"
    )
    best = record.leader
    if best is None:
        return f"{told}; no trial of them has run to its end."
    test = (
        "not confirmed on test"
        if best.test is None
        else f"{value(best.test)} on test over {plural(best.seeds, 'seed')}"
    )
    told += (
        f"; the best is {best.method} on {called(best)} in the sweep {best.sweep}: {best.metric} "
        f"{value(best.value)} on dev, {test}"
    )
    if len(record.comparable) < len(record.steps):
        told += "; sweeps over other data or by another metric are shown, but not ranked with it"
    return f"{told}."


def _moved(record: TaskRecord) -> str:
    move = record.move
    if move is None:
        return "So there is nothing to compare yet."
    last, before = move.last, move.before
    if before is None:
        alone = "the only sweep" if len(record.sweeps) == 1 else "the first on this base and data"
        return f"The last sweep, {last.sweep}, is {alone}, so it has moved nothing yet."
    gap = last.value - before.value
    on_dev = (
        f"The last sweep, {last.sweep}, found {value(last.value)} on dev by {last.method}, "
        f"{change(gap)} from the best before it ({before.sweep}, {before.method})"
    )
    told = move.rivalry
    if told is not None and told.gap is not None and told.low is not None:
        by = f"{'better' if told.gap >= 0 else 'worse'} by {value(abs(told.gap))}"
        span = f"on test {by}, 95 % interval {change(told.low)} to {change(told.high or 0.0)}"
        if told.low > 0:
            return f"{on_dev}, and that is beyond the noise ({span})."
        if (told.high or 0.0) < 0:
            return f"{on_dev}, and on test it is worse beyond the noise ({span})."
        return f"{on_dev}, which is within the noise ({span})."
    lacks = [each.sweep for each in (last, before) if each.seeds < 2]
    why = (
        f"{' and '.join(dict.fromkeys(lacks))} {'has' if len(set(lacks)) == 1 else 'have'} not "
        "confirmed it on test with two seeds or more"
        if lacks
        else "what they measured on test cannot be had"
        if told is None
        else "they were measured on other test rows or in another way"
    )
    return f"{on_dev}; whether that is more than luck cannot be told, for {why}."


def _next(record: TaskRecord) -> tuple[str, list[Command]]:
    best, last = record.leader, record.sweeps[-1].run.sweep
    running = [each.run.sweep for each in record.sweeps if stands(each) == "running"]
    if running:
        return f"{listed(running)} still {'runs' if len(running) == 1 else 'run'}: watch.", [
            _command(record, "how it stands", "watch", running[-1])
        ]
    if best is None:
        return "Look at why the trials ended, mend that, and launch again.", [
            _command(record, "the newest sweep's trials, with their errors", "trials", last, "list")
        ]
    report = _command(
        record, "what that sweep found", "report", best.sweep_run, "--out", f"{best.sweep}-report"
    )
    if best.seeds < 2:
        file = f".ranksweep/sweeps/{best.sweep}/sweep.yaml"
        words = ["ranksweep", "launch", file, "--resume", "--set", "confirm={top: 1, seeds: 5}"]
        return (
            f"Confirm the best of {best.sweep} on test with more seeds, or its lead may be luck.",
            [Command("confirm with five seeds each, where it was launched", shlex.join(words)),
             report],
        )  # fmt: skip
    if best.champion is None:
        return (
            "Make it champion, which is refused unless it beats the present one beyond the noise.",
            [_command(record, "promote the best", "promote", best.run_id), report],
        )
    return (
        f"The best is {'champion' if best.reigns else 'a former champion'} already: see what "
        "moved the metric and what would be tried next, or search another base.",
        [_command(record, "what moved it, and what next", "explain", best.sweep_run), report],
    )


def _command(record: TaskRecord, why: str, *words: str) -> Command:
    uri = record.sweeps[-1].tracking_uri
    where = ["--tracking", uri] if uri.startswith(("http://", "https://")) else []
    return Command(why, shlex.join(["ranksweep", *words, *where]))


def _numbers(record: TaskRecord) -> list[KeyNumber]:
    found = []
    best: Step | None = record.leader
    if best is not None:
        found.append(
            KeyNumber(f"best {best.metric} on dev", value(best.value),
                      f"{best.method}, {best.sweep}")
        )  # fmt: skip
        if best.test is not None:
            found.append(KeyNumber("on test", value(best.test), plural(best.seeds, "seed")))
        if bases := best_of_bases(record):
            params = bases[0].choice.row.trainable_params
            found.append(KeyNumber("trained parameters", count(params), bases[0].base))
    found.append(KeyNumber("sweeps", count(len(record.sweeps)), plural(len(record.bases), "base")))
    seconds = sum(sum(sweep.seconds.values()) for sweep in record.sweeps)
    if seconds:
        gpu = sum(gpu_hours(sweep) or 0.0 for sweep in record.sweeps)
        on_gpus = any(gpus_of(sweep) for sweep in record.sweeps)
        note = f"{value(gpu, 3)} GPU-hours" if on_gpus else "of last launches, on CPUs"
        found.append(KeyNumber("time", hours(seconds), note))
    return found
