"""What a step costs: each method's adapters against PEFT's LoRA and against the frozen base alone.

Forward and backward of one batch on MiniLM, 16 x 64 tokens, adapters on q, k, v and both dense
layers, dropout 0.05, one thread, all sides in turn in one process. The floor is the same model with
frozen weights, forward and backward through its activations only. No optimizer: it is the same for
all.

    python benchmarks/adapter_step.py --repeat 12
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

from conditions import BASE, TARGET_MODULES, load, machine, spread
from plans import drawn_profile

BATCH, TOKENS, RANK, DROPOUT = 16, 64, 8, 0.05
CHOICES = {
    "lora": {"method": "lora", "rank": RANK},
    "pilora": {"method": "pilora", "rank": RANK, "supplementary_rank": 1},
    "taso": {"method": "taso", "retention": 0.1},
    "sensitivity": {"method": "sensitivity", "mean_rank": RANK},
    "joint": {"method": "joint", "mean_rank": RANK},
}


Step = Callable[[], None]


def sides(dropout: float) -> dict[str, Step]:
    """Every side, each on a model of its own; the profile is drawn at random."""
    import torch
    from peft import LoraConfig, get_peft_model

    from spaces.methods import make_plan, parse_choice
    from trainables.adapters import BlockAdaptation
    from trainables.bases import load_base, meta_targets

    torch.manual_seed(0)
    ids = torch.randint(1000, 20000, (BATCH, TOKENS))
    labels = torch.randint(0, 2, (BATCH,))

    def model() -> torch.nn.Module:
        made = load_base(BASE, "classification", 2, torch.float32, torch.device("cpu")).model
        made.eval()
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(name.startswith("classifier"))
        return made

    def side(trained: torch.nn.Module, adapters: tuple[torch.nn.Parameter, ...] = ()) -> Step:
        def step() -> None:
            loss = trained(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
            loss.backward()
            for parameter in (*trained.parameters(), *adapters):
                parameter.grad = None

        return step

    floor = model()
    floor.get_input_embeddings().register_forward_hook(lambda *a: a[2].requires_grad_(True))
    config = LoraConfig(
        r=RANK, lora_alpha=16, target_modules=list(TARGET_MODULES), lora_dropout=dropout
    )
    peft = get_peft_model(model(), config)
    for name, module in peft.named_modules():
        module.training = "lora_dropout" in name
    found = {"floor": side(floor), "peft": side(peft)}
    targets = meta_targets(BASE, "classification", 2, TARGET_MODULES)
    profile = drawn_profile(targets)
    for name, choice in CHOICES.items():
        resident = model()
        plan = make_plan(parse_choice(choice), targets, profile)
        adaptation = BlockAdaptation(resident, plan, seed=0, dropout=dropout, head={})
        stage = adaptation.begin_stage(0, 10)
        found[name] = side(resident, tuple(stage.parameters()))
    return found


def main() -> None:
    """Measure in turn and print a row for the table of each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=12, help="steps of each side (default 12)")
    parser.add_argument("--dropout", type=float, default=DROPOUT)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    began = load()
    made = sides(arguments.dropout)
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(arguments.repeat + 2):
        for name, each in made.items():
            started = time.process_time()
            each()
            if turn >= 2:
                times[name].append((time.process_time() - started) * 1000)
    print(machine())
    middle = {name: median(values) for name, values in times.items()}
    for name, values in times.items():
        print(
            f"| {name} | {spread(values, 0)} ms of processor | {middle[name] / middle['peft']:.2f} "
            f"of PEFT | {middle[name] / middle['floor']:.2f} of the floor | load {began:.1f} |"
        )


if __name__ == "__main__":
    main()
