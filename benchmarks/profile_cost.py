"""What a profile costs: all three statistics in one job, against one epoch of plain LoRA.

All run in this process, in turn, on the same resident base and the same rows, with one thread like
a resident worker with one CPU. The plain epoch is LoRA of the profile's rank through the same
fine-tuning loop and nothing else. The profile is that epoch with its gradients scored (PiLoRA),
then a static pass over `--calibration-batches` micro-batches at the untouched base (TASO,
Sensitivity-LoRA), then the counting of the masks. The calibration batches also go through the
frozen base alone, forward and backward: what a profile must cost beside its epoch.

    python benchmarks/profile_cost.py --rows 640 --repeat 3
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]
from conditions import BASE, TARGET_MODULES, movie_task
from results import Run, measured, spread

if TYPE_CHECKING:
    from trainables.bases.loading import Base
    from trainables.engine.workers import Workers
    from trainables.profiling.settings import ProfileSettings
    from trainables.tasks.task import Task

SAMPLE_S = 0.02  # how often the resident memory is read
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """One run: seconds in all and by phase, and resident memory in bytes before it and at most."""

    seconds: float
    phases: dict[str, float]
    memory_before: int
    memory_peak: int

    @property
    def memory(self) -> float:
        """What the run added to the process's resident memory at its peak, in MiB."""
        return (self.memory_peak - self.memory_before) / MIB


class _Peak:
    """The highest resident memory of this process while the thread runs."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._done = threading.Event()
        self.before = self.highest = self._process.memory_info().rss

    def watch(self) -> None:
        """Sample until `stop`."""
        while not self._done.wait(SAMPLE_S):
            self.highest = max(self.highest, self._process.memory_info().rss)

    def stop(self) -> None:
        """End the sampling."""
        self._done.set()


@contextmanager
def _peak_memory() -> Iterator[_Peak]:
    """Watch the resident memory, from a state in which freed memory has gone back."""
    import torch

    from trainables.engine.memory import give_back

    give_back(torch.device("cpu"))
    peak = _Peak()
    thread = threading.Thread(target=peak.watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak.stop()
        thread.join()


def plain_epoch(base: Base, task: Task, settings: ProfileSettings, workers: Workers) -> Cost:
    """Train LoRA of the profile's rank for one epoch, and do nothing else."""
    from trainables.adaptations.blocks import BlockAdaptation, plain_lora
    from trainables.bases.loading import fresh_head
    from trainables.bases.structure import resolve_targets
    from trainables.profiling.initial_phase import training_of
    from trainables.training.finetune import finetune

    with _peak_memory() as peak:
        started = time.perf_counter()
        targets = resolve_targets(base.model, base.head_modules, settings.target_modules)
        plan = plain_lora(targets, settings.rank, settings.resolved_alpha)
        head = fresh_head(base, settings.seed)
        with BlockAdaptation(base.model, plan, seed=settings.seed, head=head) as adaptation:
            finetune(
                base.model, adaptation, task, training_of(settings),
                learning_rate=settings.learning_rate, seed=settings.seed, workers=workers,
                evaluate_on=None, base_dropout=settings.base_dropout,
            )  # fmt: skip
        seconds = time.perf_counter() - started
    return Cost(seconds, {}, peak.before, peak.highest)


def calibration(base: Base, task: Task, settings: ProfileSettings) -> float:
    """Seconds of the calibration batches' forward and backward through frozen weights."""
    import torch

    from trainables.profiling.static_pass import micro_batches

    split, kind = task.splits["train"], task.its_kind
    base.model.eval()
    entrance = base.model.get_input_embeddings()
    handle = entrance.register_forward_hook(lambda *call: call[2].requires_grad_(True))
    try:
        started = time.perf_counter()
        for rows in micro_batches(len(split.labels), settings):
            batch = split.batch(rows)
            labels = batch.pop("labels")
            torch.autograd.backward(kind.summed_loss(base.model(**batch).logits, labels))
        return time.perf_counter() - started
    finally:
        handle.remove()


def profile(base: Base, task: Task, settings: ProfileSettings, workers: Workers) -> Cost:
    """Compute the profile and its file's bytes; its phases end at their last step."""
    from trainables.bases.loading import fresh_head
    from trainables.bases.structure import resolve_targets
    from trainables.profiling.profile import compute_profile

    ends: dict[str, float] = {}

    def on_progress(phase: str, _done: int, _total: int, _rate: float | None = None) -> None:
        ends[phase] = time.perf_counter()

    with _peak_memory() as peak:
        started = time.perf_counter()
        targets = resolve_targets(base.model, base.head_modules, settings.target_modules)
        compute_profile(
            base.model, fresh_head(base, settings.seed), targets, task, settings,
            workers=workers, base_fingerprint=base.fingerprint, on_progress=on_progress,
        ).to_bytes()  # fmt: skip
        ended = time.perf_counter()
    phases = {
        "initial phase": ends["initial phase"] - started,
        "static pass": ends["static pass"] - ends["initial phase"],
        "masks": ended - ends["static pass"],
    }
    return Cost(ended - started, phases, peak.before, peak.highest)


def measure(
    rows: int | None, repeat: int, calibration_batches: int, report: Callable[[str], None]
) -> tuple[int, list[Cost], list[Cost], list[float]]:
    """(training rows, plain epochs, profiles, seconds of the calibration batches alone).

    Taken in turn after a short warm-up of each.
    """
    import torch

    from trainables.bases.loading import load_base
    from trainables.engine.workers import join
    from trainables.profiling.settings import ProfileSettings

    torch.set_num_threads(1)
    settings = ProfileSettings(
        target_modules=TARGET_MODULES, calibration_batches=calibration_batches
    )
    workers = join()
    task = movie_task(rows, dev_rows=64)
    base = load_base(BASE, task.kind, len(task.labels))
    warm_up = movie_task(4 * settings.batch_size, dev_rows=64)
    plain_epoch(base, warm_up, settings, workers)
    profile(base, warm_up, settings, workers)
    plain: list[Cost] = []
    profiles: list[Cost] = []
    batches: list[float] = []
    for number in range(1, repeat + 1):
        plain.append(plain_epoch(base, task, settings, workers))
        profiles.append(profile(base, task, settings, workers))
        batches.append(calibration(base, task, settings))
        phases = ", ".join(f"{name} {s:.2f}" for name, s in profiles[-1].phases.items())
        report(
            f"{number}/{repeat}: plain epoch {plain[-1].seconds:.2f} s, "
            f"profile {profiles[-1].seconds:.2f} s ({phases}), "
            f"calibration batches alone {batches[-1]:.2f} s"
        )
    return len(task.splits["train"].labels), plain, profiles, batches


def main(arguments: list[str] | None = None) -> None:
    """Measure, then print the figures and record the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rows", type=int, default=640, help="training rows, 0 for all (default: %(default)s)"
    )
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs of each, in turn (default: %(default)s)"
    )
    parser.add_argument(
        "--calibration-batches", type=int, default=32, metavar="N",
        help="micro-batches of the static pass (default: %(default)s, as in a sweep)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.rows < 0 or options.repeat < 1 or options.calibration_batches < 1:
        parser.error("--rows must not be negative, --repeat and --calibration-batches at least 1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    run = Run.begin()

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    rows, plain, profiles, batches = measure(
        options.rows or None, options.repeat, options.calibration_batches, report
    )
    ratios = [b.seconds / a.seconds for a, b in zip(plain, profiles, strict=True)]
    epoch = statistics.median(cost.seconds for cost in plain)
    print(f"{run}; {rows} rows, batch 16, rank 8")
    print(f"plain epoch     {spread([c.seconds for c in plain])} s")
    print(f"profile         {spread([c.seconds for c in profiles])} s")
    phases = {phase: [cost.phases[phase] for cost in profiles] for phase in profiles[0].phases}
    for phase, seconds in phases.items():
        share = statistics.median(seconds) / epoch
        print(f"  {phase:13} {spread(seconds)} s, {share:.2f} of an epoch")
    print(f"ratio           {spread(ratios)}")
    beside = [
        (b.seconds - alone) / a.seconds
        for a, b, alone in zip(plain, profiles, batches, strict=True)
    ]
    print(f"batches alone   {spread(batches)} s, forward and backward through frozen weights")
    print(f"beside those    {spread(beside)} of an epoch, at most 1.8 wanted")
    all_rows = movie_task(None, dev_rows=64).splits["train"].labels.size
    initial, static, masks = (statistics.median(seconds) for seconds in phases.values())
    scaled = (initial + (static + masks) * rows / all_rows) / epoch
    print(f"computed        {scaled:.2f} with all {all_rows} rows and as long a static pass")
    print(f"memory added    plain {spread([c.memory for c in plain], 0)} MiB, "
          f"profile {spread([c.memory for c in profiles], 0)} MiB")  # fmt: skip
    peaks = [max(cost.memory_peak for cost in costs) / MIB for costs in (profiles, plain)]
    print(f"peak resident   plain {peaks[1]:.0f} MiB, profile {peaks[0]:.0f} MiB")
    run.record(
        f"profile against one plain epoch, {rows} rows",
        {
            "profile_s": measured([cost.seconds for cost in profiles]),
            "phases_s": {phase: measured(seconds) for phase, seconds in phases.items()},
            "epoch_s": measured([cost.seconds for cost in plain]),
            "calibration_s": measured(batches),
            "ratio": measured(ratios),
            "beside_calibration": measured(beside),
            "with_all_rows": scaled,
            "peak_mib": dict(zip(("profile", "epoch"), peaks, strict=True)),
        },
        f"{spread([cost.seconds for cost in profiles], 1)} s against {epoch:.1f} s; initial phase "
        f"{initial:.1f}, static pass {static:.1f}, masks {masks:.1f} s; calibration batches alone "
        f"{statistics.median(batches):.1f} s",
        f"**{spread(beside)}** of an epoch beside the calibration batches (limit 1.8), "
        f"{statistics.median(ratios):.2f} with them; peak memory {peaks[0]:.0f} against "
        f"{peaks[1]:.0f} MiB; computed for all {all_rows:,} rows: {scaled:.2f}",
    )


if __name__ == "__main__":
    main()
