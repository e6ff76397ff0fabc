"""A trained adaptation as a checkpoint of PEFT: adapter_config.json, adapter_model.safetensors.

Any update of low rank is a LoRA: the stages of a plan are stacked along the rank, blocks on some
rows and columns are widened with zeros, and the scale lies in B, so that alpha = rank everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers.pytorch_utils import Conv1D

from spaces.errors import UsageError
from spaces.plan import Plan
from spaces.target import TargetModule
from trainables.adaptations.adaptation import Adaptation, Factors
from trainables.adaptations.lora_config import PREFIX, lora_config
from trainables.bases.heads import is_within
from trainables.bases.loading import Base
from trainables.bases.location import from_pretrained_arguments
from trainables.bases.parts import head_class
from trainables.tasks.kinds.registry import kind_of

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CLASSIFIERS = ("classifier", "score")
"""Ends of module names that PEFT saves whole in a checkpoint of a classifier of texts."""

Checkpoint = tuple[dict[str, Any], dict[str, torch.Tensor]]


def write_peft_checkpoint(
    folder: Path,
    adaptation: Adaptation,
    plan: Plan,
    base: Base,
    task_kind: str,
    update: Mapping[str, Factors] | None = None,
) -> dict[str, Any]:
    """Write the checkpoint of an adaptation that is in place on its base; returns the config.

    `update` is what to write of it in place of the whole. Raises UsageError where PEFT has no such
    adapter.
    """
    config, state = peft_checkpoint(adaptation, plan, base, task_kind, update)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    safetensors.torch.save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return config


def peft_checkpoint(
    adaptation: Adaptation,
    plan: Plan,
    base: Base,
    task_kind: str,
    update: Mapping[str, Factors] | None = None,
) -> Checkpoint:
    """adapter_config.json and the tensors of adapter_model.safetensors, float32 on the CPU.

    The task's head goes along whole, as modules_to_save. Raises UsageError where PEFT has no such
    adapter, or there is no update at all.
    """
    # DoRA and IA3 are no sum of low-rank factors, but PEFT's own.
    own = getattr(adaptation, "peft_state", None)
    if update is None and own is not None:
        config, state = own()
    else:
        config, state = _lora_checkpoint(update or adaptation.factors(), plan, base)
    whole, task_type = _saved_whole(base, plan.targets, task_kind)
    name, arguments = from_pretrained_arguments(base.uri)
    config |= {
        "base_model_name_or_path": name,
        "revision": arguments.get("revision"),
        "inference_mode": True,
        "task_type": task_type,
        "modules_to_save": whole or None,
    }
    if task_type is None:
        model_class = type(base.model)
        config["auto_mapping"] = {
            "base_model_class": model_class.__name__,
            "parent_library": model_class.__module__,
        }
    for module in whole:
        for key, tensor in base.model.get_submodule(module).state_dict().items():
            state[f"{PREFIX}{module}.{key}"] = tensor
    # Each tensor with memory of its own, as safetensors wants it.
    return config, {key: tensor.detach().float().cpu().clone() for key, tensor in state.items()}


def _lora_checkpoint(update: Mapping[str, Factors], plan: Plan, base: Base) -> Checkpoint:
    """The update as a LoRA of scale 1, under the name of every layer that uses the matrix."""
    names = {target.name: target.names for target in plan.targets}
    factors = {
        name: (A, B) for module, (A, B) in update.items() for name in names[module] if len(A)
    }
    if not factors:
        raise UsageError(
            "--to peft: the trial has no update of any module, and PEFT has no adapter on nothing; "
            "use --to merged"
        )
    state = {}
    for name, (A, B) in factors.items():
        state[f"{PREFIX}{name}.lora_A.weight"] = A
        state[f"{PREFIX}{name}.lora_B.weight"] = B
    every_module = [name for name, _ in base.model.named_modules(remove_duplicate=False)]
    config = lora_config({name: (len(A), len(A)) for name, (A, _) in factors.items()}, every_module)
    layers = (base.model.get_submodule(name) for name in factors)
    config["fan_in_fan_out"] = any(isinstance(layer, Conv1D) for layer in layers)
    return config, state


def _saved_whole(
    base: Base, targets: Iterable[TargetModule], task_kind: str
) -> tuple[list[str], str | None]:
    """The modules that PEFT saves whole, and its task type.

    Of a classifier PEFT takes every module of CLASSIFIERS for the task's head and wants its weights
    in the checkpoint, also where the base's own head was kept. Where such a head is adapted itself,
    the checkpoint is of no task type, and only the fresh head goes along. The head of a base that
    writes is its own, and stays there.
    """
    kind = kind_of(task_kind)
    task_type = kind.peft_task_type
    if task_type is None or head_class(kind.head).writes:
        return list(base.head_modules), task_type
    outermost: list[str] = []
    for name, _ in base.model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in outermost)
        if name and not inside and name.endswith((*base.head_modules, *CLASSIFIERS)):
            outermost.append(name)
    adapted = [name for target in targets for name in target.names]
    if {part for name in adapted for part in name.split(".")} & set(CLASSIFIERS):
        whole = (h for h in base.head_modules if not any(is_within(name, [h]) for name in adapted))
        return list(whole), None
    return outermost, task_type
