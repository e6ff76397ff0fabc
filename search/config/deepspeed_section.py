"""The section `deepspeed`: what of DeepSpeed's own settings a sweep may say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from trainables.engine.section import DIVIDING_STAGE

DECIDED_BY_TRIAL = {
    "optimizer": "train.optimizer",
    "scheduler": "train.lr_scheduler",
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.gradient_accumulation_steps",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_clipping": "train.max_grad_norm",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
}
"""Keys of DeepSpeed that a sweep may not set, and the sweep's own that decides each."""

STAGES = (0, 1, 2, DIVIDING_STAGE)


def refusal_of_deepspeed(section: Mapping[str, Any]) -> str | None:
    """Why a section cannot be, from the key on; None where it can.

    DeepSpeed itself is asked, in a process of its own and for two seconds, about all but the stage
    of ZeRO: loading it loads MLflow, which reads at import what is yet to be set.
    """
    for key in section:
        if key in DECIDED_BY_TRIAL:
            return f": {key} is decided by the trial; remove it and set {DECIDED_BY_TRIAL[key]}"
    zero = section.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        return f".zero_optimization: should be a mapping of its keys, not {zero!r}"
    stage = zero.get("stage", 0)
    if type(stage) is not int:
        return f".zero_optimization.stage: should be 0, 1, 2 or 3, not {str(stage)[:60]!r}"
    if stage not in STAGES:
        return f".zero_optimization.stage: should be 0, 1, 2 or 3, not {stage}"
    if refused := _refusal_of_offload(zero.get("offload_param"), stage):
        return f".zero_optimization.offload_param{refused}"
    if set(section) <= {"zero_optimization"} and set(zero) <= {"stage"}:
        return None
    try:
        text = json.dumps(section, allow_nan=False)
    except (TypeError, ValueError):
        return ": holds a value that is neither a finite number nor a text; correct it"
    return _said_by_deepspeed(text)


def _refusal_of_offload(offload: object, stage: int) -> str | None:
    """Why the base's parameters cannot be where a section wants them."""
    if offload is None:
        return None
    if stage != DIVIDING_STAGE:
        return f": goes with stage 3, which divides the base, and this is stage {stage}; remove it"
    if not isinstance(offload, Mapping):
        return f": should be a mapping of its keys, not {str(offload)[:60]!r}"
    if (device := offload.get("device", "none")) not in ("none", "cpu"):
        return f".device: should be cpu or none, not {str(device)[:60]!r}"
    return None


@lru_cache
def _said_by_deepspeed(section: str) -> str | None:
    # Not the folder that the command was started in, where a user has files of any name.
    path = os.pathsep.join(folder for folder in sys.path if folder)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainables.engine.accepted"],
        input=section,
        env={**os.environ, "PYTHONPATH": path, "DEEPSPEED_LOG_LEVEL": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f": DeepSpeed cannot be asked about it ({said[:200]}); `ranksweep doctor` looks why"
    refused: str | None = json.loads(done.stdout.splitlines()[-1])
    return None if refused is None else f".{refused}"
