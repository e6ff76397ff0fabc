"""Baselines on tiny bases: a choice of each, its plan, and its adaptation with a fresh head."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Plan
from tests.trainables.conftest import VOCABULARY, tiny_bert, tiny_task
from trainables.adaptations.adaptation import Adaptation, lora_draw
from trainables.adaptations.baselines.allocated import AllocatedAdaptation
from trainables.adaptations.registry import adaptation_for
from trainables.bases.structure import base_size, resolve_targets

CHOICES: dict[str, dict[str, Any]] = {
    "rslora": {"rank": 3},
    "dora": {"rank": 3},
    "pissa": {"rank": 3},
    "adalora": {"rank": 2, "initial_rank": 4},
    "ia3": {},
    "vera": {"rank": 20},
    "lora_xs": {"rank": 3},
    "milora": {"rank": 3},
    "lora_dash": {"rank": 3, "directions": 2},
    "dylora": {"rank": 4},
    "sora": {"rank": 4},
    "bottleneck": {"size": 5},
    "bitfit": {},
    "full": {},
    "eva": {"rank": 3},
    "gora": {"rank": 3, "batches": 2},
    "para": {"rank": 4, "keep": 0.6},
}
OF_PEFT = ("rslora", "dora", "pissa", "adalora", "ia3", "vera")
LOW_RANK = (
    "rslora", "pissa", "adalora", "vera", "lora_xs", "milora", "lora_dash", "dylora", "sora",
    "eva", "gora", "para",
)  # fmt: skip
HEADS = {"bert": "classifier", "gpt2": "score"}
PATTERNS = {"bert": ("query", "output.dense"), "gpt2": ("c_attn", "c_proj", "c_fc")}


def tiny_gpt2(dtype: torch.dtype = torch.float64) -> Any:
    """A two-layer GPT-2 classifier with random weights; its layers are transposed Conv1D."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, num_labels=2,
        pad_token_id=0, initializer_range=0.3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero as they are, they would hide what happens to them
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    return model.requires_grad_(False).eval()


def tiny_base(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    return {"bert": tiny_bert, "gpt2": tiny_gpt2}[kind](dtype)


def plan_of(model: Any, kind: str, method: str, **more: Any) -> Plan:
    """The plan of a method's choice in CHOICES, with some keys of it changed."""
    targets = resolve_targets(model, (HEADS[kind],), PATTERNS[kind])
    choice = parse_choice({"method": method, **CHOICES[method], **more})
    return make_plan(choice, targets, None, base_size(model, (HEADS[kind],)))


def fresh_heads(model: Any, kind: str) -> dict[str, nn.Module]:
    """A trainable copy of the head."""
    head = copy.deepcopy(model.get_submodule(HEADS[kind])).requires_grad_(True)
    return {HEADS[kind]: head}


def adapted(model: Any, kind: str, method: str, seed: int = 3, dropout: float = 0.0) -> Adaptation:
    """The adaptation of a method's example, with a fresh head."""
    head = fresh_heads(model, kind)
    return adaptation_of(plan_of(model, kind, method), model, seed=seed, dropout=dropout, head=head)


def adaptation_of(plan: Plan, model: Any, **settings: Any) -> Adaptation:
    """The adaptation of a plan; one that looks at training rows first starts as a LoRA would."""
    adaptation = adaptation_for(plan, model, **settings)
    if isinstance(adaptation, AllocatedAdaptation):
        assert plan.tuner is not None
        rank, generator = int(plan.tuner.settings["rank"]), torch.Generator().manual_seed(11)
        start = {}
        for target in plan.targets:
            out, in_ = target.shape
            start[target.name] = lora_draw(rank, in_, in_, generator), torch.zeros(out, rank)
        adaptation.start_with(start)
    return adaptation


def moved_at_random(adaptation: Adaptation, scale: float = 0.2) -> None:
    """Train the one stage by moving every parameter by some random number."""
    parameters = adaptation.begin_stage(0, 4)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in parameters.adapters.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((scale * drawn).to(parameter.dtype))
    adaptation.end_stage()


def logits_of(model: Any, mode: bool = False) -> torch.Tensor:
    """What a model says of the rows of the tiny task's dev split."""
    split = tiny_task().splits["dev"]
    batch = split.batch(np.arange(len(split)))
    batch.pop("labels")
    with torch.no_grad():
        logits: torch.Tensor = model.train(mode)(**batch).logits
    model.eval()
    return logits


def with_parameters(model: Any, changed: Mapping[str, torch.Tensor]) -> Any:
    """A plain copy of a model with some of its parameters replaced."""
    plain = copy.deepcopy(model)
    parameters = dict(plain.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in changed.items():
            parameters[name].copy_(value)
    return plain


class Layered(nn.Module):
    """Two layers around a non-linearity; the first may be GPT-2's transposed Conv1D."""

    def __init__(self, transposed: bool, out: int = 7, in_: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.o_proj = Conv1D(out, in_) if transposed else nn.Linear(in_, out)
        self.second = nn.Linear(out, in_)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(drawn)
        self.requires_grad_(False)

    @property
    def weight(self) -> torch.Tensor:
        """The first layer's weight as [out, in]."""
        weight: torch.Tensor = self.o_proj.weight
        return weight.T if isinstance(self.o_proj, Conv1D) else weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.o_proj(x)))

    def with_first(self, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """The output where the first layer gives `first`."""
        return self.second(torch.tanh(first))


def plan_of_first(model: Layered, method: str, **more: Any) -> Plan:
    """A plan that adapts the first layer alone."""
    targets = resolve_targets(model, (), ("o_proj",))
    choice = parse_choice({"method": method, **CHOICES[method], **more})
    return make_plan(choice, targets, None, base_size(model, ()))
