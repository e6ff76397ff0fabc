"""An adapter of PEFT that has learned nothing, for trainers that go on training one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from spaces.plan import Plan
from trainables.adaptations.lora_config import PREFIX, adapted_modules
from trainables.trained.peft_checkpoint import CONFIG_FILE, WEIGHTS_FILE


def write_untrained_adapter(folder: Path, config: Mapping[str, Any], plan: Plan) -> None:
    """Write the adapter of a plan and its LoraConfig: A as PEFT draws it, B zero.

    The folder must not be there yet. float32; A is drawn from seed 0, uniform within
    1 / sqrt(columns).
    """
    ranks = {name: rank for name, (rank, _) in adapted_modules(plan).items()}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for target in plan.targets:
        rows, columns = target.shape
        for name in target.names:
            if name in ranks:
                A = torch.empty(ranks[name], columns)
                torch.nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
                state[f"{PREFIX}{name}.lora_A.weight"] = A
                state[f"{PREFIX}{name}.lora_B.weight"] = torch.zeros(rows, ranks[name])
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    safetensors.torch.save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
