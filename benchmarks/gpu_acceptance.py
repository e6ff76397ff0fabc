"""What must hold on a GPU, checked in one go: at most eight minutes on one H200 with 16 cores.

Nothing is needed but the checkout and its packages: a random 7B Llama is made on the device, MiniLM
comes from its package, rows are drawn. Every check has one figure and one goal; one that raises, or
takes longer than it may, has failed, and the others go on. The checks of a room share a process,
which ends with a check that raises; those that measure the device have it to themselves.

    python benchmarks/gpu_acceptance.py --out acceptance.jsonl
    python benchmarks/gpu_acceptance.py --only dense bf16
    python benchmarks/gpu_acceptance.py --rehearse

A rehearsal runs the logic of every check on the CPU, on a tiny Llama; what only a device can show
is not judged then. The exit code is 1 where a check has failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conditions import CHECKOUT

if TYPE_CHECKING:
    from acceptance.ground import Ground

MINUTES = 8.0
PATIENCE = 4.0  # a rehearsal, which tells of no speed, may take so many times longer
START_S = 150.0  # a room's process imports all it needs within this
ENDING_S = 30.0  # and ends within this once it is told to


@dataclass(frozen=True)
class Check:
    """One check: a function of that name in the room's file, which returns a `Found`.

    Its figure is to be at most, or `at_least`, the `goal`. What is `of_the_device` is judged on a
    device alone.
    """

    name: str
    what: str
    goal: float
    unit: str = ""
    at_least: bool = False
    of_the_device: bool = False
    limit_s: float = 60.0

    @property
    def function(self) -> str:
        """The name of its function."""
        return self.name.replace("-", "_")

    @property
    def goal_in_words(self) -> str:
        """Its goal for the table."""
        return f"{'>=' if self.at_least else '<='} {self.goal:g} {self.unit}".strip()

    def is_met_by(self, figure: float) -> bool:
        """Whether a figure reaches the goal; one that is no number does not."""
        return figure >= self.goal if self.at_least else figure <= self.goal


@dataclass(frozen=True)
class Room:
    """Checks of one subject, in the file `acceptance/<name>.py`; they share a process.

    `trains` where the process itself trains on the device, and not workers of Ray.
    """

    name: str
    checks: tuple[Check, ...]
    trains: bool = True


CORRECTNESS = Room("correctness", (
    Check("cuda-cpu", "losses of 20 fp32 steps, device against CPU, MiniLM",
          1e-4, "relative", limit_s=120),
    Check("dense", "the five block methods against dense matrices in float64",
          1e-4, "relative"),
    Check("bf16", "methods that fail in bf16, or leave the base changed",
          0, "methods", limit_s=120),
    Check("fp16", "methods that fail in fp16, or leave the base changed",
          0, "methods", limit_s=120),
    Check("overflow", "fp16 steps that overflowed and were scored all the same", 0, "steps"),
    Check("mask-counts", "counts of masks that differ from the CPU's", 0, "counts"),
    Check("resumed", "values of a resumed profile that differ from those of a whole one",
          0, "values"),
    Check("memory-limit", "the static pass's peak, of profile.memory_limit",
          1.0, "of it", of_the_device=True),
    Check("growth", "memory that ten jobs leave behind", 1.0, "MiB", limit_s=90),
))  # fmt: skip
SWEEPS = Room("sweeps", (
    Check("cpu-worker", "a sweep on a CPU worker beside a GPU", 1, "trial", at_least=True,
          limit_s=150),
    Check("gpu-1", "a sweep with GPU: 1", 4, "trials", at_least=True, limit_s=150),
    Check("gpu-half", "a sweep on two groups with GPU: 0.5 each", 4, "trials", at_least=True,
          limit_s=150),
), trains=False)  # fmt: skip
ACCIDENTS = Room("accidents", (
    Check("out-of-memory", "jobs served after one that ran out of memory", 1, "job",
          at_least=True, limit_s=120),
    Check("device-assert", "jobs served after one that failed on the device", 1, "job",
          at_least=True, limit_s=120),
), trains=False)  # fmt: skip
SPEED = Room("speed", (
    Check("matmul", "bf16 product of 8192 x 8192, of the GPU's peak", 0.6, "of peak",
          at_least=True, of_the_device=True),
    Check("tokens", "LoRA of a 7B, 16 x 128: tokens a second, of PEFT's", 1.0, "x",
          at_least=True, of_the_device=True, limit_s=90),
    Check("peak", "the same: peak memory, of PEFT's", 1.0, "x", of_the_device=True, limit_s=90),
    Check("lora-floor", "LoRA of a 7B: forward and backward, of the frozen base's",
          1.35, "x", of_the_device=True),
    Check("joint-floor", "joint of a 7B: forward and backward, of the frozen base's",
          1.45, "x", of_the_device=True),
    Check("optimizer", "optimizer step of the 448 factors of a 7B", 10.0, "ms", of_the_device=True),
    Check("static-pass", "the static pass of a 7B, a batch", 1.5, "training steps",
          of_the_device=True, limit_s=120),
    Check("counting", "counting the masks of a 7B", 15.0, "s", of_the_device=True, limit_s=120),
    Check("svd", "MiLoRA's second start on a base, of its first", 0.1, "x", of_the_device=True,
          limit_s=90),
))  # fmt: skip
PHASES = ((CORRECTNESS, SWEEPS), (ACCIDENTS,), (SPEED,))
"""Rooms one after another; those of one phase at the same time, for they measure no speed."""


@dataclass(frozen=True)
class Outcome:
    """How a check has ended: pass, fail, or skipped with the reason in `text`."""

    name: str
    result: str
    figure: float | None
    goal: str
    seconds: float
    text: str


class Report:
    """The table on the terminal and the lines in a file, as outcomes come."""

    def __init__(self, out: Path | None, *, rehearsal: bool = False) -> None:
        self._out, self._lock = out, threading.Lock()
        self._rehearsal = rehearsal
        if rehearsal:
            print("a rehearsal on the CPU, with tiny shapes: it says nothing of a GPU")
        self.outcomes: list[Outcome] = []
        print(
            f"{'check':14} {'result':8} {'figure':>10}  {'goal':18} {'seconds':>7}  what came out"
        )

    def add(self, outcome: Outcome) -> None:
        """Tell one outcome."""
        figure = "-" if outcome.figure is None else f"{outcome.figure:.4g}"
        with self._lock:
            self.outcomes.append(outcome)
            print(
                f"{outcome.name:14} {outcome.result:8} {figure:>10}  {outcome.goal:18} "
                f"{outcome.seconds:7.1f}  {outcome.text}",
                flush=True,
            )
            if self._out is not None:
                line = vars(outcome) | {"rehearsal": self._rehearsal}
                if outcome.figure is not None and not math.isfinite(outcome.figure):
                    line = line | {"figure": None}
                with self._out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


class RoomRun:
    """A room's checks, in processes of its own: a new one after each that has ended early.

    Nothing goes on after `until`, by the monotonic clock. `program` is what the processes run.
    """

    def __init__(
        self,
        room: Room,
        report: Report,
        *,
        rehearsal: bool,
        until: float,
        program: Sequence[str] = (sys.executable, __file__),
    ) -> None:
        self._room, self._report, self._program = room, report, program
        self._rehearsal, self._until = rehearsal, until
        self._patience = PATIENCE if rehearsal else 1.0

    def run(self) -> None:
        """Run all checks; each has an outcome afterwards."""
        left = list(self._room.checks)
        while left:
            if time.monotonic() >= self._until:
                for check in left:
                    self._tell(check, None, 0.0, "not begun before the time was over")
                return
            with tempfile.TemporaryDirectory(prefix="acceptance-") as folder:
                done = self._process(left, Path(folder))
            left = left[done:]

    def _process(self, checks: Sequence[Check], folder: Path) -> int:
        """Run checks in a process until they are done or it ends; returns how many have one."""
        told = folder / "told.jsonl"
        told.touch()
        with self._child(checks, folder) as process:
            done, read, began, limit = 0, 0, time.monotonic(), START_S * self._patience
            while True:
                ended = process.poll() is not None
                for fact in _facts(told)[read:]:
                    read, began = read + 1, time.monotonic()
                    limit = checks[done].limit_s if fact["event"] == "began" else START_S
                    limit *= self._patience
                    if fact["event"] == "ended":
                        self._tell(checks[done], fact["figure"], fact["seconds"], fact["text"])
                        done += 1
                        if fact["last"] or done == len(checks):
                            return done
                spent = time.monotonic() - began
                late = spent > limit or time.monotonic() > self._until
                if ended or late:
                    if late:
                        os.killpg(process.pid, signal.SIGINT)  # Ray's processes then end with it
                    why = f"not done after {spent:.0f} s" if late else _last_words(folder)
                    self._tell(checks[done], None, spent, why)
                    return done + 1
                time.sleep(0.1)

    @contextlib.contextmanager
    def _child(self, checks: Sequence[Check], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
        """The process of some checks; it and all that it has started are gone afterwards."""
        command = [*self._program, "--room", self._room.name, "--folder", str(folder)]
        command += [*(["--rehearse"] if self._rehearsal else []), "--only"]
        with (folder / "said.txt").open("wb") as said:
            process = subprocess.Popen(
                [*command, *(check.name for check in checks)],
                env=_environment(self._room, folder, self._rehearsal),
                stdout=said,
                stderr=said,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=ENDING_S)
                for sign in (signal.SIGTERM, signal.SIGKILL):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, sign)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=ENDING_S)

    def _tell(self, check: Check, figure: float | None, seconds: float, text: str) -> None:
        if figure is None:
            result = "skipped" if text.startswith("skipped: ") else "fail"
        elif check.of_the_device and self._rehearsal:
            result, text = "skipped", f"{text}; judged on a device alone"
        else:
            result = "pass" if check.is_met_by(figure) else "fail"
        text = f"{check.what}: {text.removeprefix('skipped: ')}"
        self._report.add(
            Outcome(check.name, result, figure, check.goal_in_words, round(seconds, 1), text)
        )


def _environment(room: Room, folder: Path, rehearsal: bool) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "RANKSWEEP_"))}
    made = {
        "PYTHONPATH": str(CHECKOUT),
        "RANKSWEEP_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DEEPSPEED_LOG_LEVEL": "error",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS's sums are in no fixed order
    }
    if rehearsal:
        made["CUDA_VISIBLE_DEVICES"] = ""
    if room.trains:
        made["DS_ACCELERATOR"] = "cpu" if rehearsal else "cuda"
    return kept | made


def _facts(told: Path) -> list[dict[str, Any]]:
    """What a room's process has told so far; it may be writing."""
    *lines, _ = told.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def _last_words(folder: Path) -> str:
    lines = (folder / "said.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return f"its process has ended: {said[-1][:300] if said else 'it said nothing'}"


# The side of a room's process ---------------------------------------------------------------------


def run_checks(room: str, checks: Sequence[Check], ground: Ground, told: Path) -> None:
    """Run checks one after another; the first that raises is the last."""
    from acceptance.ground import Skipped

    def tell(**fact: Any) -> None:
        with told.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fact) + "\n")

    functions = import_module(f"acceptance.{room}")
    for check in checks:
        tell(event="began")
        started = time.perf_counter()
        figure, ends = None, False
        try:
            figure, text = getattr(functions, check.function)(ground)
        except Skipped as reason:
            text = f"skipped: {reason}"
        except Exception as error:  # whatever it is, it is this check's
            import traceback

            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            text, ends = f"{type(error).__name__}: {lines[0][:300]}", True
        seconds = time.perf_counter() - started
        tell(event="ended", figure=figure, text=text, seconds=seconds, last=ends)
        if ends:
            return


def main() -> int:
    """Run what is asked for; 1 where a check has failed, 2 where there is nothing to run it on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [check.name for phase in PHASES for room in phase for check in room.checks]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help=", ".join(names))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--out", type=Path, help="file to append the outcomes to, as JSON lines")
    parser.add_argument("--room", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    wanted = set(arguments.only or names)
    phases = [[_cut(room, wanted) for room in phase] for phase in PHASES]
    if arguments.room is not None:
        from acceptance.ground import Ground

        (room,) = [r for phase in phases for r in phase if r.name == arguments.room]
        with Ground.of(arguments.rehearse, arguments.folder) as ground:
            run_checks(room.name, room.checks, ground, arguments.folder / "told.jsonl")
        return 0
    if not arguments.rehearse and not _has_cuda():
        print("no CUDA device here; --rehearse runs the logic on the CPU", file=sys.stderr)
        return 2
    started = time.monotonic()
    until = started + 60 * MINUTES * (PATIENCE if arguments.rehearse else 1.0)
    report = Report(arguments.out, rehearsal=arguments.rehearse)
    for phase in phases:
        runs = [RoomRun(room, report, rehearsal=arguments.rehearse, until=until) for room in phase]
        with ThreadPoolExecutor(len(runs)) as pool:
            list(pool.map(RoomRun.run, runs))
    results = [outcome.result for outcome in report.outcomes]
    counts = ", ".join(f"{results.count(each)} {each}" for each in ("pass", "fail", "skipped"))
    print(f"{counts}; {time.monotonic() - started:.0f} s")
    return int("fail" in results)


def _cut(room: Room, wanted: set[str]) -> Room:
    return replace(room, checks=tuple(c for c in room.checks if c.name in wanted))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
