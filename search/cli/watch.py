"""The command watch: the live view of a sweep that runs elsewhere, or its end, from MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from search.cli.app import EXIT_FAILED, JsonOption, TrackingOption, app
from search.cli.jobs import AddressOption, follow_job
from search.cli.output import Result, add_row, prints_result
from search.wording import duration, figure, percent
from spaces.errors import RanksweepError, TrackingError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from search.cli.view import View
    from search.config.sweep import SweepConfig
    from search.launch.result import LaunchResult
    from search.queries.sweep_state import SweepReader, SweepState, TrialState

LOOK_S = 2.0
"""How often MLflow is asked; of a sweep that takes long to read, as long as ten looks take."""
PATIENCE_S = 5.0


@app.command()
@prints_result
def watch(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's name or run id.")],
    once: Annotated[bool, typer.Option("--once", help="Show where it stands, and leave.")] = False,
    address: AddressOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Watch a sweep that runs elsewhere until it ends, from MLflow alone; Ctrl-C only leaves.

    With --address it is the output of its job on that cluster that is followed.
    """
    if address is not None:
        if once or tracking is not None:
            raise UsageError(
                "--address: follows the job on the cluster to its end; leave out --once and "
                "--tracking, which ask MLflow"
            )
        return follow_job(sweep, address)
    from search.cli.view import View
    from search.queries.sweep_state import SweepReader
    from search.tracking.runs import RecordedRuns

    reader = SweepReader(RecordedRuns(tracking_of_sweep(sweep, tracking), PATIENCE_S), sweep)
    state = reader.look()
    if once or json_output:
        return Result(state, drawn_state(state), exit_code=_exit_code(state))
    if state.launch not in ("ended", "gone"):
        with View(state.name, metric=state.metric) as view:
            state = followed(reader, state, view)
    return Result(state, drawn_end(reader, state), error=_how_it_ended(state))


def tracking_of_sweep(sweep: str, option: str | None) -> str:
    """Where a sweep is tracked to: by the option, else as its folder here says, else the default.

    A sweep's run id names no folder.
    """
    from search.config.reading import resolve_tracking
    from search.launch.closing import tracking_of
    from search.paths import SweepPaths, check_sweep_name

    folder = SweepPaths(name=check_sweep_name(sweep))
    return option or tracking_of(folder) or resolve_tracking()


def followed(reader: SweepReader, state: SweepState, view: View) -> SweepState:
    """Keep the view up to date until the sweep ends, or its launch is gone; returns its last state.

    A server that is away for a while is said once, and asked again.
    """
    feed = Feed(view)
    if state.launch == "unknown" and state.told is not None:
        view.message(state.told)
    is_away, pause = False, LOOK_S
    while True:
        feed.show(state)
        if state.launch in ("ended", "gone"):
            return state
        time.sleep(pause)
        started = time.monotonic()
        try:
            state = reader.look()
        except TrackingError as error:
            if not is_away:
                view.message(f"{error}; it is asked again")
            is_away = True
            continue
        pause = max(LOOK_S, 10 * (time.monotonic() - started))
        if is_away:
            is_away = False
            view.message("MLflow answers again")


class Feed:
    """Tells a view what has happened between two looks at a sweep."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._stage = ""
        self._trials = 0
        self._running: dict[tuple[int, int | None], int] = {}
        self._looks: dict[int, float] = {}
        self._over: set[tuple[int, int | None]] = set()
        self._best: tuple[int, float] | None = None

    def show(self, state: SweepState) -> None:
        """Tell what is new."""
        confirms = state.stage == "confirm"
        running = state.confirming if confirms else state.running
        ended = state.confirmed if confirms else state.ended
        if state.stage != self._stage:
            if confirms:  # what the search has ended with
                self._tell_of_trials([], state.ended)
            is_first, self._stage = not self._stage, state.stage
            self._begin_stage(state, ended, is_first)
        for _ in range(self._trials, 0 if confirms else state.trials):
            self._view.one_more_trial()
            self._trials += 1
        self._tell_of_trials(running, ended)
        self._tell_of_best(state)

    def _begin_stage(self, state: SweepState, ended: Sequence[TrialState], is_first: bool) -> None:
        self._trials = 0 if state.stage == "confirm" else state.trials
        what = {
            "profile": "no trial has begun",
            "search": f"{state.trials} trials",
            "confirm": "the best on test",
        }
        self._view.stage(state.stage, what[state.stage], self._trials)
        if is_first:  # what was over before this began is counted, and not told
            self._over |= {(each.number, each.seed) for each in ended}
            self._view.were_over(state.states if state.stage == "search" else {})

    def _tell_of_trials(self, running: Sequence[TrialState], ended: Sequence[TrialState]) -> None:
        for each in running:
            self._tell_start(each)
            self._tell_epoch(each)
        for each in ended:
            key = each.number, each.seed
            if key in self._over:
                continue
            self._tell_start(each)
            self._tell_epoch(each)
            self._over.add(key)
            self._running.pop(key, None)
            self._view.trial_finished(
                each.number, each.state, each.value, each.seed, each.collapsed
            )
            if each.error is not None and each.state == "failed":
                self._view.message(f"trial {each.number} failed: {each.error}")

    def _tell_start(self, trial: TrialState) -> None:
        key = trial.number, trial.seed
        if key in self._running:
            return
        self._running[key] = 0
        arm = trial.arm if trial.asked_by is None else f"{trial.arm} ({trial.asked_by})"
        ago = max(0.0, time.time() - trial.started_ms / 1000)
        self._view.trial_started(trial.number, arm, trial.trainable_params, trial.seed, ago=ago)

    def _tell_epoch(self, trial: TrialState) -> None:
        key = trial.number, trial.seed
        for share, value in trial.looks.items():
            if share > self._looks.get(trial.number, 0.0):
                self._looks[trial.number] = share
                self._view.trial_look(trial.number, share, value)
        if trial.seed is None and trial.epoch > self._running[key]:
            self._running[key] = trial.epoch
            self._view.trial_epoch(
                trial.number, trial.epoch, trial.epochs, trial.value, trial.collapsed
            )

    def _tell_of_best(self, state: SweepState) -> None:
        if state.best and (best := state.best[0]) and (best.number, best.value) != self._best:
            self._best = best.number, best.value
            self._view.best(best.number, best.arm, best.value, best.trainable_params)


# -- drawing ---------------------------------------------------------------------------------------


def drawn_state(state: SweepState) -> Iterator[RenderableType]:
    """Where a sweep stands."""
    from search.cli.launch_view import results_table

    yield f"{state.name}: {state.status}{f', {state.stage}' if state.status == 'running' else ''}"
    if state.told is not None:
        yield state.told
    elif state.error is not None:
        yield state.error
    over = ", ".join(f"{count} {name}" for name, count in sorted(state.states.items()))
    yield f"trials: {over or 'none is over'}; {len(state.running)} running, {state.trials} in all"
    if state.running or state.confirming:
        yield running_table([*state.running, *state.confirming], state.metric)
    if state.best:
        title = f"best of each method on dev ({state.metric})"
        yield results_table(state.best, state.metric, title)
    yield from _warm_lines(state)


def drawn_end(reader: SweepReader, state: SweepState) -> Iterator[RenderableType]:
    """What a sweep has come to, as its launch shows it; as far as it is, where it has not ended."""
    from search.cli.launch_view import drawn_launch
    from search.launch.result import LaunchResult
    from search.redaction import redacted

    config = _config(reader)
    if config is None or state.profile_key is None or state.status == "running":
        yield from drawn_state(state)
        return
    result = LaunchResult(
        name=state.name,
        profile_key=state.profile_key,
        profile_cached="profile" not in state.seconds,
        tracking_uri=redacted(reader.uri),
        sweep_run_id=state.run_id,
        experiment_id=reader.run.experiment_id,
        states=state.states,
        best=state.best,
        seconds=state.seconds,
    )
    _add_confirmation(result, reader)
    yield from drawn_launch(config, result)
    yield from _warm_lines(state)


def _add_confirmation(result: LaunchResult, reader: SweepReader) -> None:
    from search.queries.comparison import compare

    try:
        compared = compare(reader.uri, str(result.sweep_run_id))
    except RanksweepError:  # nothing was confirmed
        return
    result.confirmation = compared.rows
    result.fallen = compared.fallen
    result.lm_eval_of_base = compared.lm_eval_of_base


def _config(reader: SweepReader) -> SweepConfig | None:
    """The sweep that was launched; None where what MLflow has of it cannot be read as one."""
    from search.config.reading import parse_sweep

    try:
        return parse_sweep(reader.config)
    except RanksweepError:  # of another version, or an address that is told without its password
        return None


def _warm_lines(state: SweepState) -> Iterator[str]:
    for each in state.ended:
        if each.warm_from is not None and each.state == "complete":
            yield (
                f"trial {each.number} ({each.arm}) started from the weights of trial "
                f"{each.warm_from}, and is ranked with none: {state.metric} {figure(each.value)}"
            )


def running_table(trials: Sequence[TrialState], metric: str) -> Table:
    """What runs."""
    seeds = any(each.seed is not None for each in trials)
    table = Table(
        Column("trial", justify="right"),
        *([Column("seed", justify="right")] if seeds else []),
        Column("method", style="cyan"),
        *(Column(name, justify="right") for name in ("params", "epoch", "elapsed", metric)),
        title="running",
        title_justify="left",
    )
    for each in trials:
        add_row(
            table,
            each.number,
            *([each.seed] if seeds else []),
            each.arm,
            None if each.trainable_params is None else f"{each.trainable_params:,}",
            _how_far(each),
            duration(max(0.0, time.time() - each.started_ms / 1000)),
            figure(each.value),
        )
    return table


def _how_far(trial: TrialState) -> str:
    if trial.looks and not trial.epoch:
        return f"looks {percent(max(trial.looks))}"
    return f"{trial.epoch}/{trial.epochs}" if trial.epochs else str(trial.epoch)


def _exit_code(state: SweepState) -> int:
    return EXIT_FAILED if state.launch == "gone" else 0


def _how_it_ended(state: SweepState) -> str:
    """Why the watching ends with an error; empty where the sweep is complete."""
    if state.launch == "gone":
        return str(state.told)
    if state.status == "complete":
        return ""
    why = "" if state.error is None else f" ({state.error})"
    return f"{state.name}: {state.status}{why}"
