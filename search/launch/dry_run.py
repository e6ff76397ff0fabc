"""What a launch would do and cost: everything is checked, nothing is started."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from search.config.sweep import SearchSettings, SweepConfig
from search.launch.begun import dtype_as_begun
from search.launch.cost import Cost, estimated, profile_steps, steps_an_epoch
from search.launch.lm_eval import check_lm_eval
from search.launch.memory_plan import MemoryPlan, Planning
from search.launch.prepare import SweepInputs, fewer_trials, prepare
from search.launch.resume import as_begun, check_data, check_name
from search.launch.task_summary import task_summary
from search.paths import SweepPaths
from search.redaction import redacted
from search.tracking.also.listeners import check_also
from search.tracking.artifacts import check_experiment
from search.tracking.liveness import running
from search.wording import percent
from spaces.domain import ends
from spaces.profile import Profile
from spaces.search_space import Arm
from trainables.bases.structure import base_parameters, meta_linear_layers
from trainables.engine.section import said_of_division
from trainables.footprint.activations import UncountableError
from trainables.tasks.task import Task

BUSY = 1.2
"""From so many times on a machine's other work is worth a word."""


@dataclass(frozen=True)
class MethodCount:
    """Trainable parameters of a method's default choice: [least, most], equal where `exact`.

    `learning_rates` are the least and the greatest that are searched.
    `length` says how many times `train.epochs` its trials have on average: more than 1 where each
    stage trains them all.
    """

    method: str
    choice: dict[str, Any]
    trainable_params: tuple[int, int]
    exact: bool
    length: float
    learning_rates: tuple[float, float]


@dataclass(frozen=True)
class DryRun:
    """What `launch` would do with a sweep. `seconds` are estimates where no trial is stopped early,
    but after a cheap look;
    `seconds_low` and `seconds_high` are the range in which they will be.

    `base` has uri, fingerprint and params; `task` what `task_summary` tells of it;
    `profile` its key, whether it is cached, and what computing it takes; `search` and `confirm`
    (None where it is skipped) trials, epochs and steps; `memory` what each worker comes to hold,
    None where the base's way depends on values.
    `notes` say what a user should know of the rows, and what the estimate rests on.
    """

    config: dict[str, Any]
    base: dict[str, Any]
    task: dict[str, Any]
    profile: dict[str, Any]
    methods: tuple[MethodCount, ...]
    search: dict[str, Any]
    confirm: dict[str, Any] | None
    seconds: dict[str, float]
    seconds_low: dict[str, float]
    seconds_high: dict[str, float]
    memory: MemoryPlan | None
    notes: tuple[str, ...]


def dry_run(config: SweepConfig, *, resume: bool = False) -> DryRun:
    """Check a sweep against its base, its data and the store, and estimate what it takes.

    Raises the errors that `launch` would raise before it starts anything: ConfigError, ChoiceError,
    BaseModelError, DataError, StoreError; with `resume` those of a launch that goes on.
    """
    paths = SweepPaths(name=config.name).absolute()
    if resume:
        config = as_begun(config, paths)
        check_name(config, paths, resume)
    check_experiment(config.tracking.uri, config.tracking.experiment)
    check_lm_eval(config)
    check_also(config.tracking.also)
    inputs = prepare(config, dtype_as_begun(config, paths) if resume else None)
    check_data(config, paths, inputs, resume)
    task, targets, space = inputs.task, inputs.targets, inputs.space
    cached = inputs.store.get(inputs.key)

    methods = tuple(_method_count(arm, inputs, cached) for arm in space.arms(config.search.arms))
    profile = {
        "key": inputs.key,
        "cached": cached is not None,
        "store": inputs.store.name,
        "modules": len(targets),
        "weights": sum(math.prod(target.shape) for target in targets),
        **profile_steps(config, task),
    }
    search = {
        "trials": config.search.trials,
        "methods": list(space.methods),
        "epochs": config.train.epochs,
        "steps_per_trial": steps_an_epoch(task, config.train.batch_size) * config.train.epochs,
        "at_once": config.cluster.groups,
    }
    confirm = _confirm(config, task, len(methods))
    linear = meta_linear_layers(inputs.base_uri, task.head, task.outputs)
    adapted = {target.name for target in targets}
    dtype = getattr(torch, inputs.precision.dtype)
    cost = Cost.measured(config, linear, adapted, task.head, dtype)
    times = fmean(each.length for each in methods)
    expected = task.expected(inputs.base_uri)
    estimate = estimated(config, expected, cost, profile, confirm, times, len(methods))
    notes = [f"head: {inputs.head.about}"]
    if inputs.precision.note is not None:
        notes.append(inputs.precision.note)
    divided = said_of_division(config.deepspeed, config.cluster.workers_per_group)
    if divided is not None:
        notes.append(divided)
    notes += [*task.notes, *_notes(config, cost, methods, resume)]
    memory = None
    try:
        memory = Planning(config, inputs, profiled=cached is None).plan()
    except UncountableError as error:
        notes.append(f"there is no memory plan of this base ({error})")
    return DryRun(
        config=config.resolved(),
        base={
            "uri": inputs.base_uri,
            "fingerprint": inputs.base_fingerprint,
            "params": base_parameters(inputs.base_uri),
        },
        task=task_summary(task),
        profile=profile,
        methods=methods,
        search=search,
        confirm=confirm,
        seconds=estimate.about,
        seconds_low=estimate.low,
        seconds_high=estimate.high,
        memory=memory,
        notes=tuple(notes),
    )


# -- what would be done ----------------------------------------------------------------------------


def _method_count(arm: Arm, inputs: SweepInputs, profile: Profile | None) -> MethodCount:
    choice = inputs.space.default_choice(arm.method, arm.values)
    span = inputs.planner(profile).params_range(choice)
    exact, length = span[0] == span[1], inputs.space.mean_length(arm)
    rates = ends(inputs.space.domains[arm.method]["learning_rate"])
    return MethodCount(arm.name, choice.as_dict(), span, exact, length, rates)


def _confirm(config: SweepConfig, task: Task, methods: int) -> dict[str, Any] | None:
    if config.confirm is None:
        return None
    return {
        "trials": methods * config.confirm.top * config.confirm.seeds,
        "seeds": config.confirm.seeds,
        "steps_per_trial": steps_an_epoch(task, config.train.batch_size) * config.train.epochs,
    }


def _notes_on_the_end(search: SearchSettings) -> list[str]:
    """What the last trials are spent on, and what may end a search before them."""
    notes = []
    if search.repeats is not None:
        top, seeds = search.repeats.top, search.repeats.seeds
        notes.append(
            f"the last {top * seeds} of the {search.trials} trials train the {top} best "
            f"choices again with {seeds} other seeds each, the best LoRA among them; one that "
            "falls makes room for the next"
        )
    if (end := search.stop_when) is not None:
        notes.append(
            f"search.stop_when may end the search earlier, once the next {end.trials} trials are "
            f"expected to improve the best by less than {end.improvement_below:g} deviations "
            "between seeds; not before each method has a complete trial and six choices have one"
        )
    return notes


def _notes(
    config: SweepConfig, cost: Cost, methods: Sequence[MethodCount], resume: bool
) -> tuple[str, ...]:
    notes = []
    if resume:
        notes.append("all trials are counted, those too that are done already")
    elif SweepPaths(name=config.name).sweep_file.is_file():
        runner = running(SweepPaths(name=config.name))
        remedy = "go on with --resume, or launch under another name"
        if runner is not None:
            remedy = f"process {runner.pid} on {runner.host} runs it; launch under another name"
        notes.append(f"the sweep {config.name!r} exists: {remedy}")
    notes.append(f"times are estimates from a short probe of this machine ({cost.device})")
    if cost.busy > BUSY:
        notes.append(
            f"this machine is busy: a layer takes {cost.busy:.1f} times what it takes alone; the "
            "longest times are as long as it stays so"
        )
    if (fewer := fewer_trials(config, len(methods))) is not None:
        notes.append(fewer)
    if config.confirm is not None and config.confirm.lm_eval is not None:
        tasks = ", ".join(config.confirm.lm_eval.tasks)
        notes.append(
            f"lm-eval measures every confirmed seed and the untouched base ({tasks}), which the "
            "times here leave out; sets of the hub are fetched before the launch starts"
        )
    longer = [f"{each.method} {each.length:.3g} times" for each in methods if each.length > 1]
    if longer:
        notes.append(
            f"trials with stage_steps full train {config.train.epochs} epochs in each stage: on "
            f"average {', '.join(longer)} as long as others"
        )
    notes += _notes_on_the_end(config.search)
    limit = config.search.max_params
    beyond = [each for each in methods if limit is not None and each.trainable_params[0] > limit]
    if beyond:
        least = ", ".join(f"{each.method} {each.trainable_params[0]:,}" for each in beyond)
        notes.append(
            f"search.max_params is {limit:,} and default choices have more ({least}): only smaller "
            "ones are trained, and a method that has none takes no part"
        )
    if config.search.study is not None:
        study = redacted(config.search.study)
        notes.append(f"the trials are shared with other launches of the sweep through {study}")
    if config.search.fidelity is not None:
        *looks, _ = config.search.fidelity.rows
        notes.append(
            f"each trial is first tried on {' and '.join(map(percent, looks))} of the rows; about: "
            f"one in {config.search.scheduler.reduction_factor:g} goes on each time, and the best "
            "of each method or arm; at most: all go on"
        )
    elif config.search.scheduler.name != "none":
        notes.append("about: where no trial is stopped early; at least: where all that may be are")
    if config.cluster.on_gpu and cost.device == "cpu":
        notes.append("the workers ask for a GPU, which this machine has not: they will be faster")
    if config.cluster.address != "local":
        notes.append(f"the workers run on the cluster {config.cluster.address}, not here")
    return tuple(notes)
