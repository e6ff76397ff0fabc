"""What a sweep has found, in three sentences made of its numbers, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from search.queries.comparison import Confirmation
from search.queries.sweep_record import SweepRecord
from search.reports.page import Answer, Command, KeyNumber
from search.reports.sweep.beside import reference_of
from search.reports.sweep.hours import gpus_of, shares_of
from search.reports.sweep.measured import Choice, arms_of, choices_of, tuned_lora
from search.reports.words import change, count, hours, listed, plural, value
from search.tracking.liveness import fate

TELLING = 0.002
"""Share of a metric below which what did not hold is not worth a word."""
MORE_SEEDS = 20
"""What more seeds are advised up to; a difference that takes more is too small to matter."""


def answer_of(record: SweepRecord) -> Answer:
    """The answer, as far as the sweep has come."""
    choices = choices_of(record)
    found = _Found(record, choices)
    return Answer(
        sentences=(_searched(record), found.won, found.next_sentence),
        commands=tuple(found.commands),
        numbers=tuple(_numbers(record, choices)),
    )


# -- what was searched -----------------------------------------------------------------------------


def stands(record: SweepRecord) -> str:
    """How the sweep stands: running, complete, interrupted or failed."""
    state = fate(record.run)
    if state == "gone":
        return "interrupted"
    return "running" if state in ("runs", "unknown") else record.run.status or "running"


def _searched(record: SweepRecord) -> str:
    run, metric = record.run, record.objective.metric
    way = "highest" if record.objective.mode == "max" else "lowest"
    arms = arms_of(record)
    what = f"{plural(len(record.trials), 'trial')} of {listed(arms)}" if arms else "No trial"
    rows = record.told.get("rows")
    train = rows.get("train") if isinstance(rows, dict) else None
    on = f" ({train:,} training rows)" if isinstance(train, int) else ""
    head = {
        "running": "The sweep still runs: so far ",
        "interrupted": "The sweep was interrupted: ",
        "failed": "The sweep has failed: ",
    }.get(stands(record), "")
    searched = (
        f"{what} searched for the {way} {metric} on dev of the task {run.task}{on}, with the base "
        f"{run.base_uri or run.base[:12]}"
    )
    if head and not arms:
        searched = searched[0].lower() + searched[1:]
    searched = head + searched
    states = Counter(trial.status or "running" for trial in record.trials)
    goes_on = stands(record) == "running"
    told = [
        plural(states.pop(state), one, many)
        for state, one, many in (
            ("complete", "ran to its end", "ran to their end"),
            ("pruned", "was stopped early for falling behind",
             "were stopped early for falling behind"),
            ("failed", "failed", "failed"),
            ("running", "still runs", "still run") if goes_on
            else ("running", "was cut off", "were cut off"),
        )
        if states.get(state)
    ]  # fmt: skip
    told += [f"{number:,} {state}" for state, number in sorted(states.items())]
    ended = f" ({run.reason})" if run.reason else ""
    return f"{searched}: {listed(told)}{ended}." if told else f"{searched}{ended}."


# -- what won, and what to do next -----------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    record: SweepRecord
    choices: Sequence[Choice]

    @property
    def _metric(self) -> str:
        return self.record.objective.metric

    @property
    def _confirmed(self) -> Sequence[Confirmation]:
        return () if self.record.comparison is None else self.record.comparison.rows

    @property
    def _constant(self) -> float | None:
        return self.record.run.metrics.get("constant_answer_dev")

    @property
    def nothing_learned(self) -> bool:
        """Whether no choice beats a constant answer on dev."""
        if not self.choices or self._constant is None:
            return False
        best = max(self.record.objective.gain(each.seeds.mean) for each in self.choices)
        return best <= self.record.objective.gain(self._constant)

    @property
    def won(self) -> str:
        """The second sentence."""
        if not self.choices:
            over = "yet" if stands(self.record) == "running" else ""
            return (
                f"No trial has run to its end{' ' + over if over else ''}, so nothing can be "
                "said of the methods."
            )
        if self.nothing_learned:
            return (
                f"Nothing was learned: the best {self._metric} on dev, "
                f"{value(self.choices[0].seeds.mean)}, does not beat a constant answer, "
                f"{value(self._constant)}."
            )
        return self._won_on_test() if self._confirmed else self._won_on_dev()

    def _won_on_dev(self) -> str:
        best, lora = self.choices[0], tuned_lora(self.choices)
        seeds = len(best.seeds.values)
        told = (
            f"On dev {best.row.arm} is best, {self._metric} {value(best.seeds.mean)} with "
            f"{count(best.row.trainable_params)} parameters (trial {best.row.number}, "
            f"{'one seed' if seeds == 1 else f'mean of {seeds} seeds'})"
        )
        if len({each.row.arm for each in self.choices}) == 1:
            also = (
                "" if len(arms_of(self.record)) == 1 else " alone had a trial that ran to its end"
            )
            return (
                f"{told}; {best.row.arm}{also or ' alone was searched'}, so there is nothing to "
                "set it beside."
            )
        if lora is None:
            return f"{told}; no LoRA ran to its end, so there is no line to beat."
        if best is lora:
            other = next(each for each in self.choices if each.row.arm != best.row.arm)
            gap = abs(best.seeds.mean - other.seeds.mean)
            return (
                f"{told}: nothing beats tuned LoRA, and the next, {other.row.arm}, is "
                f"{value(gap)} behind; nothing is confirmed on test, so which is better is "
                "not known beyond luck."
            )
        gap = best.seeds.mean - lora.seeds.mean
        return (
            f"{told}, {change(gap)} from tuned LoRA's {value(lora.seeds.mean)}; nothing is "
            "confirmed on test, and the best of many owes a part of its lead to luck."
        )

    def _won_on_test(self) -> str:
        rows, metric = self._confirmed, self._metric
        lora = reference_of(rows)
        best = rows[0]
        luck = self._luck(best)
        if lora is None or len({row.number for row in rows}) == 1:
            why = (
                "LoRA was not confirmed, so there is no difference to tell"
                if lora is None
                else "nothing else was confirmed, so there is no difference to tell"
            )
            return (
                f"On test {best.arm} has a mean {metric} of {value(best.mean)} over "
                f"{plural(len(best.values), 'seed')}; {why}{luck}."
            )
        better = [row for row in rows if row.verdict == "better"]
        worse = [row for row in rows if row.verdict == "worse"]
        if better:
            first = better[0]
            others = (
                f", and so {'is' if len(better) == 2 else 'are'} "
                f"{listed([row.arm for row in better[1:]])}"
                if better[1:]
                else ""
            )
            return (
                f"On test {first.arm} is better than tuned LoRA beyond the noise: {metric} "
                f"{value(first.mean)} against {value(lora.mean)}, {change(first.mean - lora.mean)} "
                f"(95 % interval {_interval(first)}), with {count(first.trainable_params)} "
                f"parameters against {count(lora.trainable_params)}{others}{self._luck(first)}."
            )
        rest = [row for row in rows if row is not lora]
        near = next((row for row in rest if row.adjusted is not None), None)
        if near is None:
            return (
                f"On test the best mean {metric} is {best.arm}'s, {value(best.mean)}, beside tuned "
                f"LoRA's {value(lora.mean)}; with so few seeds no difference can be told from "
                f"noise{luck}."
            )
        told = (
            f"On test no method is better than tuned LoRA ({metric} {value(lora.mean)}) beyond the "
            f"noise: the best of the others, {near.arm}, is {change(near.mean - lora.mean)} from "
            f"it (95 % interval {_interval(near)}) with {count(near.trainable_params)} parameters "
            f"against {count(lora.trainable_params)}"
        )
        if worse:
            told += (
                f"; {listed([row.arm for row in worse])} {'is' if len(worse) == 1 else 'are'} worse"
            )
        return f"{told}{luck}."

    def _luck(self, row: Confirmation) -> str:
        """How far the winner has fallen on dev since it was chosen for its value there."""
        lost = luck_of(self.record, row)
        if lost is None or lost < TELLING * abs(row.mean):
            return ""
        return (
            f"; of {row.arm}'s {self._metric} on dev when it was chosen, {value(lost)} did not "
            "hold over the seeds that confirm it"
        )

    # -- next ----------------------------------------------------------------------------------

    @property
    def _state(self) -> str:
        return stands(self.record)

    @property
    def next_sentence(self) -> str:
        """The third sentence."""
        return self._next()[0]

    @property
    def commands(self) -> list[Command]:
        """What the third sentence advises, as it can be given."""
        return self._next()[1]

    def _next(self) -> tuple[str, list[Command]]:
        name = self.record.run.sweep
        if self._state == "running":
            return "It is not over: watch it, and make this page again once it is.", [
                self._command("what it does now", "ranksweep", "watch", name)
            ]
        if self._state in ("interrupted", "failed"):
            why = f" ({self.record.run.error})" if self.record.run.error else ""
            return f"It is not whole{why}: go on with it where it stopped.", [self._resume()]
        if not self.choices:
            return "Look at why its trials ended, mend that, and launch it under another name.", [
                self._command("its trials, with their errors", "ranksweep", "trials", name, "list")
            ]
        if self.nothing_learned:
            return (
                "Try a higher learning rate and more epochs, and look whether the labels belong to "
                "their rows.",
                [self._again("a new sweep of another name", "train.epochs=10")],
            )
        if not self._confirmed:
            return (
                "Confirm the best of each method with more seeds on test before believing any "
                "lead.",
                [self._resume("confirm with five seeds each", "confirm={top: 1, seeds: 5}")],
            )
        return self._after_confirmation()

    def _after_confirmation(self) -> tuple[str, list[Command]]:
        rows = self._confirmed
        lora = reference_of(rows)
        better = [row for row in rows if row.verdict == "better"]
        if better:
            first = better[0]
            told = f"Use it: export {first.arm} (trial {first.number}) for PEFT and transformers."
            return told, [
                self._export(first.number),
                self._command("all figures of the comparison", "ranksweep", "compare",
                              self.record.run.sweep),
            ]  # fmt: skip
        if lora is None or len({row.number for row in rows}) == 1:
            return "Search other methods beside it, or use it as it is.", [
                self._export(rows[0].number)
            ]
        best = rows[0]
        told = (
            f"Use LoRA as it was tuned (trial {best.number})"
            if best is lora
            else f"Use {best.arm} (trial {best.number}), whose lead may be luck"
        )
        smaller = [
            row
            for row in rows
            if row.verdict != "worse" and row.trainable_params < best.trainable_params
        ]
        if smaller:
            near = smaller[0]
            told += (
                f"; where parameters count, {near.arm} has {count(near.trainable_params)}, at "
                f"{change(near.mean - best.mean)} on test, within the noise"
            )
        commands, seeds = [self._export(best.number)], self._seeds_to_tell()
        if seeds is None:
            told += (
                f". The differences are too small for {MORE_SEEDS} seeds to tell: search longer."
            )
            more = self._resume("twice the trials", f"search.trials={2 * self._trials}")
        else:
            told += f". With {seeds} seeds each the largest difference would be told, were it real."
            more = self._resume(f"confirm with {seeds} seeds", f"confirm.seeds={seeds}")
        return told, [*commands, more]

    @property
    def _trials(self) -> int:
        return self.record.run.trials or len(self.record.trials)

    def _seeds_to_tell(self) -> int | None:
        """Seeds by which the largest difference that was seen would be told, were it real."""
        lora = reference_of(self._confirmed)
        found = [
            math.ceil(len(row.values) * (row.detectable / abs(row.mean - lora.mean)) ** 2)
            for row in self._confirmed
            if lora is not None
            and row.verdict == "within the noise"
            and row.detectable is not None
            and row.mean != lora.mean
        ]
        had = max(len(row.values) for row in self._confirmed)
        if not found:
            return had + 2 if had < 5 else None
        least = max(min(found), had + 1)
        return least if least <= MORE_SEEDS else None

    def _command(self, why: str, *words: str) -> Command:
        return Command(why, shlex.join([*words, *self._tracking()]))

    def _tracking(self) -> list[str]:
        uri = self.record.tracking_uri
        return ["--tracking", uri] if uri.startswith(("http://", "https://")) else []

    def _export(self, number: int) -> Command:
        run_id = next(
            (each.run_id for each in self.record.trials if each.number == number), str(number)
        )
        out = f"{self.record.run.sweep}-trial-{number}"
        return self._command(
            "a checkpoint that PEFT loads", "ranksweep", "export", run_id, "--to", "peft", "--out",
            out,
        )  # fmt: skip

    @property
    def _file(self) -> str:
        return f".ranksweep/sweeps/{self.record.run.sweep}/sweep.yaml"

    def _resume(self, why: str = "go on, where it was launched", *settings: str) -> Command:
        sets = [word for each in settings for word in ("--set", each)]
        return Command(why, shlex.join(["ranksweep", "launch", self._file, "--resume", *sets]))

    def _again(self, why: str, *settings: str) -> Command:
        name = f"name={self.record.run.sweep}-2"
        sets = [word for each in (name, *settings) for word in ("--set", each)]
        return Command(why, shlex.join(["ranksweep", "launch", self._file, *sets]))


def luck_of(record: SweepRecord, row: Confirmation) -> float | None:
    """What of a choice's dev metric, when it was chosen, its confirming seeds did not hold; below
    zero where they had more. None where dev is not known."""
    chosen = next((each for each in choices_of(record) if each.row.number == row.number), None)
    if chosen is None or not row.on_dev:
        return None
    gain = record.objective.gain
    return gain(chosen.row.value) - gain(sum(row.on_dev) / len(row.on_dev))


def _interval(row: Confirmation) -> str:
    assert row.adjusted is not None
    low, high = row.adjusted
    return f"{change(low)} to {change(high)}"


# -- key numbers -----------------------------------------------------------------------------------


def _numbers(record: SweepRecord, choices: Sequence[Choice]) -> list[KeyNumber]:
    metric = record.objective.metric
    found = []
    rows = () if record.comparison is None else record.comparison.rows
    if rows:
        best, lora = rows[0], reference_of(rows)
        deviation = "" if best.deviation is None else f" ± {value(best.deviation, 2)}"
        found.append(
            KeyNumber(f"{metric} on test", f"{value(best.mean)}",
                      f"{best.arm}, {plural(len(best.values), 'seed')}{deviation}")
        )  # fmt: skip
        if lora is not None and lora is not best:
            found.append(
                KeyNumber("minus tuned LoRA", change(best.mean - lora.mean),
                          best.verdict or "no interval")
            )  # fmt: skip
        if (lost := luck_of(record, best)) is not None:
            found.append(
                KeyNumber("luck of the choice", change(-record.objective.gain(lost)),
                          f"{metric} on dev since it was chosen")
            )  # fmt: skip
        found.append(KeyNumber("trained parameters", count(best.trainable_params), best.arm))
    elif choices:
        best_choice = choices[0]
        found.append(
            KeyNumber(f"{metric} on dev", value(best_choice.seeds.mean),
                      f"{best_choice.row.arm}, trial {best_choice.row.number}")
        )  # fmt: skip
        lora_choice = tuned_lora(choices)
        if lora_choice is not None and lora_choice is not best_choice:
            found.append(
                KeyNumber("minus tuned LoRA",
                          change(best_choice.seeds.mean - lora_choice.seeds.mean),
                          "on dev, not confirmed")
            )  # fmt: skip
        found.append(
            KeyNumber("trained parameters", count(best_choice.row.trainable_params),
                      best_choice.row.arm)
        )  # fmt: skip
    whole = sum(run.status == "complete" for run in record.trials)
    found.append(KeyNumber("trials", count(len(record.trials)), f"{whole:,} ran to their end"))
    seconds = sum(share.seconds for share in shares_of(record))
    if seconds:
        gpus = gpus_of(record)
        note = (
            f"{value(gpus * seconds / 3600, 3)} GPU-hours" if gpus else "of worker groups, on CPUs"
        )
        found.append(KeyNumber("time", hours(seconds), note))
    return found
