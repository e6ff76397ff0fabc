"""From a trial's hand-over to the end of its first optimizer step: resident workers or a fresh run.

Two ways to run the same trial (the same choice, rows, adapters, DeepSpeed config, one worker with
one CPU), in turn, under Ray Tune on one local Ray:

- resident: the light Tune function of a sweep hands the plan to workers that hold the base;
- fresh: a Tune function calls `TorchTrainer(...).fit()`, as Ray's documentation shows it; the train
  function loads the base and then trains the plan through the same loop.

Both clocks start when Tune's function starts and stop when the first optimizer step has ended; the
time to the start of that step, which is what the hand-over alone costs, is printed apart.

    python benchmarks/handover.py --fresh 5 --resident-per-fresh 3
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conditions import BASE, TARGET_MODULES, local_ray, movie_task
from results import Run, measured, spread

if TYPE_CHECKING:
    from search.tuning.trial import TrialContext
    from trainables.resident.jobs import TrialResult
    from trainables.tasks.task import Task

EPOCHS = 1
DEV_ROWS = 32
FRESH_PHASES = ("placement and processes", "imports", "base and task", "DeepSpeed and first step")


@dataclass(frozen=True)
class HandOver:
    """One trial's clock, in seconds.

    `ready` is from the start of Tune's function to the first forward pass, engine and batch ready,
    `seconds` to the end of the first optimizer step,
    `from_suggestion` from Tune asking for the trial, `step` the median step of the whole trial,
    `trial` from the start of the function to its end. `phases` are those of a fresh run.
    """

    ready: float
    seconds: float
    from_suggestion: float
    step: float
    trial: float
    phases: Mapping[str, float]


class EventTap:
    """The job queue as `run_trial` uses it, whose events can be read once more afterwards."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._references: list[Any] = []
        self.submit = queue.submit
        self.next_event = self

    def remote(self, job_id: str, timeout_s: float) -> Any:
        """`next_event.remote` of the queue."""
        self._references.append(self._queue.next_event.remote(job_id, timeout_s))
        return self._references[-1]

    def result(self) -> TrialResult:
        """What the last event that the trial has read gives."""
        import ray

        result: TrialResult = ray.get(self._references[-1]).result
        return result


# In a Tune trial ----------------------------------------------------------------------------------


def resident_trial(config: dict[str, Any], *, queue: Any, context: TrialContext) -> None:
    """A sweep's own Tune function, then a second report with the worker's clock."""
    started = time.time()
    from ray import tune

    from search.tuning.trial import run_trial

    tap = EventTap(queue)
    run_trial(config, queue=tap, context=context)
    result = tap.result()
    moments = (result.ready_at, result.first_step_at)
    tune.report(_clock(config, started, *moments, result.metrics["step_time"], {}))


def fresh_trial(
    config: dict[str, Any], *, task: list[Any], context: TrialContext, storage: str
) -> None:
    """Ray's pattern: a Tune function that runs a `TorchTrainer` of its own to its end.

    `task` is a list with one reference to the task in the object store, which the worker reads.
    """
    started = time.time()
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from spaces.methods.registry import parse_choice

    choice = parse_choice(config["choice"])
    plan = context.planner.plan(choice)
    trainer = TorchTrainer(
        fresh_worker,
        train_loop_config={
            "plan": plan.to_bytes(),
            "learning_rate": choice.learning_rate,
            "train": context.train,
            "task": task,
        },
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=f"fresh-{config['number']}", storage_path=storage),
        torch_config=TorchConfig(backend="gloo"),
    )
    at = trainer.fit().return_value
    moments = [started, at["entered"], at["imported"], at["loaded"], at["first_step"]]
    lengths = [after - before for before, after in itertools.pairwise(moments)]
    phases = dict(zip(FRESH_PHASES, lengths, strict=True))
    tune.report(_clock(config, started, at["ready"], at["first_step"], at["step_time"], phases))


def fresh_worker(config: dict[str, Any]) -> dict[str, float]:
    """The train function of a fresh run: load, adapt, train. Returns Unix times and `step_time`."""
    at = {"entered": time.time()}
    import ray
    import torch
    from transformers import AutoModelForSequenceClassification

    from spaces.plan import Plan
    from trainables.adaptations.blocks import BlockAdaptation
    from trainables.bases.heads import Head
    from trainables.bases.loading import Base, fresh_head
    from trainables.bases.location import locate
    from trainables.engine.workers import join
    from trainables.training.finetune import finetune
    from trainables.training.observer import Observer

    torch.set_num_threads(1)
    workers = join()
    at["imported"] = time.time()
    task = ray.get(config["task"][0])
    model = AutoModelForSequenceClassification.from_pretrained(
        locate(BASE), num_labels=len(task.labels), dtype=torch.float32
    )
    model.requires_grad_(False)
    base = Base(BASE, "", model, Head(("classifier",), "a fresh one"), model.config.model_type)
    at["loaded"] = time.time()

    class Clock(Observer):
        def on_ready(self) -> None:
            at["ready"] = time.time()

        def on_step(self, step: int, steps: int, learning_rate: float) -> None:
            at.setdefault("first_step", time.time())

    settings = config["train"]
    with BlockAdaptation(
        model, Plan.from_bytes(config["plan"]), seed=settings.seed, dropout=settings.dropout,
        head=fresh_head(base, settings.seed),
    ) as adaptation:  # fmt: skip
        report = finetune(
            model, adaptation, task, settings, learning_rate=config["learning_rate"],
            seed=settings.seed, workers=workers, observer=Clock(),
        )  # fmt: skip
    return at | {"step_time": report["step_time"]}


def _clock(
    config: Mapping[str, Any],
    started: float,
    ready: float,
    first_step: float,
    step: float,
    phases: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "ready": ready - started,
        "seconds": first_step - started,
        "from_suggestion": first_step - config["suggested_at"],
        "step": step,
        "trial": time.time() - started,
        "phases": dict(phases),
    }


# On the driver ------------------------------------------------------------------------------------


def run_trials(
    function: Any, choice: dict[str, Any], numbers: Sequence[int], *, reuse: bool, storage: str
) -> list[HandOver]:
    """Run one trial after another under Tune, each for the same choice; their clocks in order."""
    from ray import tune
    from ray.tune.search import Searcher

    from search.tuning.tune import light_resources

    waiting = list(numbers)

    class OneByOne(Searcher):  # type: ignore[misc]
        def suggest(self, _trial_id: str) -> Any:
            if not waiting:
                return Searcher.FINISHED
            asked = {"choice": choice, "seed": 0, "repeat": 0, "suggested_at": time.time()}
            return {**asked, "number": waiting.pop(0)}

        def on_trial_complete(self, *_args: Any, **_kwargs: Any) -> None:
            pass

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

    tuner = tune.Tuner(
        tune.with_resources(function, light_resources()),
        tune_config=tune.TuneConfig(
            search_alg=OneByOne(), num_samples=-1, max_concurrent_trials=1, reuse_actors=reuse
        ),
        run_config=tune.RunConfig(name=f"from-{numbers[0]}", storage_path=storage, verbose=0),
    )
    results = tuner.fit()
    if results.errors:
        raise SystemExit(f"a trial failed: {str(results.errors[0]).strip().splitlines()[-1]}")
    fields = HandOver.__dataclass_fields__
    rows = sorted((r.metrics for r in results), key=lambda metrics: metrics["config"]["number"])
    return [HandOver(**{field: row[field] for field in fields}) for row in rows]


@contextlib.contextmanager
def _quiet_ray() -> Iterator[None]:
    """A local Ray under which neither Tune nor Train says anything."""
    with local_ray(
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_AIR_NEW_OUTPUT="0",
        RAY_CHDIR_TO_TRIAL_DIR="0",
        TOKENIZERS_PARALLELISM="false",
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    ):
        for name in ("ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield


def measure(
    task: Task, method: str, batch_size: int, fresh: int, resident_per_fresh: int
) -> tuple[float, list[HandOver], list[HandOver], list[HandOver]]:
    """(seconds until the group has served its first job, resident, process starts, fresh).

    The first trial of each turn of resident ones starts the process of Tune's light function, which
    then serves the others; it is measured apart. One turn of each comes before any is counted.
    """
    import ray
    from ray import tune

    from search.tuning.trial import TrialContext
    from spaces.methods.registry import parse_choice
    from spaces.profile import Profile
    from trainables.bases.location import fingerprint
    from trainables.profiling.settings import ProfileSettings
    from trainables.resident.groups import GroupSettings, ResidentWorkers
    from trainables.resident.jobs import ProfileJob
    from trainables.training.settings import TrainSettings

    choice = parse_choice({"method": method}).as_dict()
    train = TrainSettings(epochs=EPOCHS, batch_size=batch_size)
    settings = ProfileSettings(
        target_modules=TARGET_MODULES, batch_size=batch_size, calibration_batches=4, score_every=1
    )
    resident: list[HandOver] = []
    starts: list[HandOver] = []
    fresh_runs: list[HandOver] = []
    numbers = iter(range(10**6))
    with tempfile.TemporaryDirectory(prefix="handover-") as storage, _quiet_ray():
        began = time.monotonic()
        group = ResidentWorkers(
            base_uri=BASE, base_fingerprint=fingerprint(BASE), task=task, dtype="float32",
            deepspeed={}, settings=GroupSettings(resources_per_worker={"CPU": 1}),
            storage_path=str(Path(storage) / "group"),
        )  # fmt: skip
        with group as workers:
            data = workers.run(ProfileJob(settings=settings)).profile
            group_start = time.monotonic() - began
            profile = Profile.from_bytes(data, "the benchmark's profile")
            context = TrialContext(
                targets=profile.targets, profile=data, train=train, metric=task.metric,
            )  # fmt: skip
            light = tune.with_parameters(resident_trial, queue=workers.queue, context=context)
            heavy = tune.with_parameters(
                fresh_trial, task=[ray.put(task)], context=context,
                storage=str(Path(storage) / "fresh"),
            )  # fmt: skip
            for turn in range(fresh + 1):
                these = [next(numbers) for _ in range(resident_per_fresh + 1)]
                first, *others = run_trials(light, choice, these, reuse=True, storage=storage)
                (other,) = run_trials(heavy, choice, [next(numbers)], reuse=False, storage=storage)
                if turn:
                    starts.append(first)
                    resident += others
                    fresh_runs.append(other)
                name = f"{turn}/{fresh}" if turn else "warm-up"
                times = ", ".join(f"{run.seconds:.2f}" for run in others)
                print(
                    f"{name}: resident {times} s; fresh {other.seconds:.2f} s",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
    return group_start, resident, starts, fresh_runs


def main(arguments: list[str] | None = None) -> None:
    """Measure, then print the figures and record the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fresh", type=int, default=5, help="fresh runs (default: %(default)s)")
    parser.add_argument(
        "--resident-per-fresh", type=int, default=3, metavar="N",
        help="resident trials before each fresh run (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--method", default="joint", help="method whose default choice is trained (%(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, help="rows of a step (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if min(options.fresh, options.resident_per_fresh, options.batch_size) < 1:
        parser.error("--fresh, --resident-per-fresh and --batch-size must be at least 1")
    run = Run.begin()
    task = movie_task(4 * options.batch_size, DEV_ROWS)
    group_start, resident, starts, fresh = measure(
        task, options.method, options.batch_size, options.fresh, options.resident_per_fresh
    )
    a, b = [each.seconds for each in resident], [each.seconds for each in fresh]
    ratio = statistics.median(b) / statistics.median(a)
    a_asked = [each.from_suggestion for each in resident]
    b_asked = [each.from_suggestion for each in fresh]
    ratio_asked = statistics.median(b_asked) / statistics.median(a_asked)
    step = statistics.median(each.step for each in resident)
    print(f"{run}; {options.method}, batch {options.batch_size}, one worker with one CPU")
    before = [each.ready for each in resident]
    print("seconds from the start of Tune's function to the start of the first step:")
    print(f"  resident        {spread(before)}")
    print(f"  fresh           {spread([each.ready for each in fresh])}")
    print("seconds from the start of Tune's function to the end of the first step:")
    print(f"  resident        {spread(a)}, {len(a)} trials; a step alone {step:.2f}")
    print(f"  fresh           {spread(b)}, {len(b)} trials")
    for phase in FRESH_PHASES:
        print(f"    {phase:25} {spread([each.phases[phase] for each in fresh])}")
    print(f"  ratio of medians {ratio:.1f}; least fresh to most resident {min(b) / max(a):.1f}")
    print("seconds from Tune's asking for the trial:")
    print(f"  resident        {spread(a_asked)}; where the light function's process had to start "
          f"{spread([each.from_suggestion for each in starts])}")  # fmt: skip
    print(f"  fresh           {spread(b_asked)}")
    print(f"  ratio of medians {ratio_asked:.1f}")
    print(f"once per sweep: {group_start:.1f} s until the group had served its first job")
    phases = {
        phase: statistics.median(each.phases[phase] for each in fresh) for phase in FRESH_PHASES
    }
    told = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items())
    run.record(
        f"hand-over to the end of the first step, {options.method}, batch {options.batch_size}",
        {
            "resident_s": measured(a),
            "resident_to_the_step_s": measured(before),
            "fresh_s": measured(b),
            "fresh_phases_s": phases,
            "ratio": ratio,
            "ratio_from_asking": ratio_asked,
            "step_s": step,
            "group_start_s": group_start,
        },
        f"{spread(a)} s against {spread(b, 1)} s",
        f"**{ratio:.0f}x** (from Tune's asking {ratio_asked:.0f}x); to the start of the step "
        f"**{statistics.median(before):.2f}** s; fresh: {told} s",
    )


if __name__ == "__main__":
    main()
