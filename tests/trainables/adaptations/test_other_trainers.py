"""What a plan is in the file of another trainer trains there what the plan trains.

Each file is read by the trainer's own parser and made an adapter by its own code. Axolotl and
LLaMA-Factory are looked for where they are installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import yaml
from torch import nn
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM

from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Plan
from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule
from trainables.adaptations.lora_config import lora_config_of
from trainables.adaptations.other_trainers import (
    OtherTrainer,
    keys_of_adapter,
    lacking,
    trainer_keys,
)
from trainables.trained.untrained_adapter import write_untrained_adapter

RATE = 3e-4
UNIFORM: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 3, "alpha": 7},
    "rslora": {"method": "rslora", "rank": 4},
    "dora": {"method": "dora", "rank": 2},
}
PISSA = {"method": "pissa", "rank": 2}
ALLOCATED = {"method": "sensitivity", "mean_rank": 4, "alpha": 10, "weighting": "equal"}
OF_ANY_ALPHA = {**ALLOCATED, "alpha": 10.5}


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def plan_of(choice: Mapping[str, Any]) -> Plan:
    ends = ("q_proj", "v_proj", "up_proj")
    targets = tuple(
        TargetModule(name, (module.out_features, module.in_features))
        for name, module in tiny_llama().named_modules()
        if isinstance(module, nn.Linear) and name.endswith(ends)
    )
    modules = {
        target.name: ModuleProfile(
            hessian_diag=np.geomspace(1.0 + number, 0.1, target.shape[1]).astype(np.float32)
        )
        for number, target in enumerate(targets)
    }
    return make_plan(parse_choice(dict(choice)), targets, Profile(targets, 0, (), modules, {}))


def adapters_of(model: Any) -> dict[str, tuple[int, float]]:
    """Name of a module -> rank and scale of its adapter, as PEFT has it."""
    return {
        name: (layer.r["default"], layer.scaling["default"])
        for name, layer in model.base_model.model.named_modules()
        if isinstance(layer, peft.tuners.lora.Linear)
    }


def check(model: Any, plan: Plan) -> None:
    """The adapters are those of the plan, and as many numbers train."""
    wanted = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**lora_config_of(plan)))
    assert adapters_of(model) == adapters_of(wanted)
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == plan.trainable_params


def file_of(trainer: OtherTrainer, choice: Mapping[str, Any], folder: Path) -> tuple[Path, Plan]:
    """The trainer's file, as `plan --as` writes it, with an untrained adapter where need be."""
    plan = plan_of(choice)
    config = lora_config_of(plan)
    if lacking(trainer, config) is None:
        keys = trainer_keys(trainer, config, RATE)
    else:
        write_untrained_adapter(folder / "adapter", config, plan)
        keys = keys_of_adapter(trainer, config, str(folder / "adapter"), RATE)
    file = folder / "lora.yaml"
    file.write_text(yaml.safe_dump(keys, sort_keys=False))
    return file, plan


@pytest.mark.parametrize("choice", UNIFORM.values(), ids=UNIFORM.keys())
def test_trl_trains_what_the_plan_trains(choice: dict[str, Any], tmp_path: Path) -> None:
    trl: Any = pytest.importorskip("trl")
    file, plan = file_of("trl", choice, tmp_path)
    parser = trl.TrlParser((trl.ModelConfig, trl.SFTConfig))
    on_cpu = ["--use_cpu", "true", "--bf16", "false", "--output_dir", str(tmp_path)]
    model_args, training = parser.parse_args_and_config(["--config", str(file), *on_cpu])
    assert training.learning_rate == RATE
    check(peft.get_peft_model(tiny_llama(), trl.get_peft_config(model_args)), plan)


@pytest.mark.parametrize(
    ("trainer", "choice", "words"),
    [
        ("trl", ALLOCATED, "one rank for all modules"),
        ("trl", PISSA, "initialized"),
        ("llamafactory", ALLOCATED, "one rank for all modules"),
        ("axolotl", OF_ANY_ALPHA, "whole numbers"),
    ],
)
def test_what_keys_cannot_say_has_a_reason(
    trainer: OtherTrainer, choice: dict[str, Any], words: str
) -> None:
    reason = lacking(trainer, lora_config_of(plan_of(choice)))
    assert reason is not None
    assert words in reason


def test_an_untrained_adapter_leaves_the_base_as_it_is_and_can_be_trained(tmp_path: Path) -> None:
    plan = plan_of(OF_ANY_ALPHA)
    write_untrained_adapter(tmp_path / "adapter", lora_config_of(plan), plan)
    base, tokens = tiny_llama(), torch.arange(8)[None]
    before = base(tokens).logits
    model = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True)
    check(model, plan)
    assert torch.equal(model(tokens).logits, before)
    model(tokens).logits.square().mean().backward()
    moved = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    assert all(grad is not None and grad.abs().max() > 0 for grad in moved)


@pytest.mark.parametrize(
    "choice",
    [*UNIFORM.values(), PISSA, ALLOCATED, OF_ANY_ALPHA],
    ids=[*UNIFORM, "pissa", "allocated", "of any alpha"],
)
def test_axolotl_trains_what_the_plan_trains(choice: dict[str, Any], tmp_path: Path) -> None:
    schema = pytest.importorskip("axolotl.utils.schemas.config")
    adapter = pytest.importorskip("axolotl.loaders.adapter")
    from axolotl.utils.dict import DictDefault

    file, plan = file_of("axolotl", choice, tmp_path)
    others = {
        "base_model": "some/base",
        "datasets": [{"path": "some/set", "type": "alpaca"}],
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
    }
    read = schema.AxolotlInputConfig(**yaml.safe_load(file.read_text()), **others)
    assert read.learning_rate == RATE
    model, _ = adapter.load_lora(tiny_llama(), DictDefault(read.model_dump(exclude_none=True)))
    check(model, plan)


@pytest.mark.parametrize(
    "choice",
    [*UNIFORM.values(), PISSA, ALLOCATED, OF_ANY_ALPHA],
    ids=[*UNIFORM, "pissa", "allocated", "of any alpha"],
)
def test_llamafactory_trains_what_the_plan_trains(choice: dict[str, Any], tmp_path: Path) -> None:
    hparams = pytest.importorskip("llamafactory.hparams")
    adapter = pytest.importorskip("llamafactory.model.adapter")
    file, plan = file_of("llamafactory", choice, tmp_path)
    keys = yaml.safe_load(file.read_text())
    assert keys.pop("learning_rate") == RATE  # of transformers' TrainingArguments
    parser = HfArgumentParser((hparams.ModelArguments, hparams.FinetuningArguments))
    model_args, finetuning = parser.parse_dict({"model_name_or_path": "some/base", **keys})
    model = tiny_llama()
    model = adapter.init_adapter(model.config, model, model_args, finetuning, is_trainable=True)
    check(model, plan)
