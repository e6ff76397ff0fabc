"""Trials as if they had been trained: what they leave, and what their function computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Plan
from tests.spaces.example_profiles import drawn_profile
from tests.trainables import tuner_examples
from tests.trainables.families import Made
from trainables.bases.loading import Base, fresh_head, load_base
from trainables.bases.structure import base_size, resolve_targets
from trainables.trained.weights import Trained, TrainedFacts

CHOICES: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 3},
    "pilora": {
        "method": "pilora", "rank": 3, "supplementary_rank": 1,
        "partition": {"rule": "top", "threshold": 0.4},
    },
    "taso of two rounds": {"method": "taso", "retention": 0.3, "rounds": 2, "alpha": 2},
    "sensitivity": {"method": "sensitivity", "mean_rank": 3},
    "joint": {"method": "joint", "mean_rank": 2, "partition": {"rule": "top", "threshold": 0.4}},
}  # fmt: skip

BASELINES = {name: {"method": name, **own} for name, own in tuner_examples.CHOICES.items()}


@dataclass(frozen=True)
class Example:
    """A trial that was trained: on what, what it left, and what its function gives for a batch."""

    base: Base
    plan: Plan
    trained: Trained
    batch: Mapping[str, torch.Tensor]
    logits: torch.Tensor


def batch_of(made: Made) -> dict[str, torch.Tensor]:
    split = made.task.splits["dev"]
    batch = split.batch(np.arange(len(split)))
    batch.pop("labels")
    return batch


def logits_of(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(**batch).logits
    return logits


def trained_at_random(
    made: Made,
    base: Base,
    plan: Plan,
    method: str = "",
    batch: Mapping[str, torch.Tensor] | None = None,
    seed: int = 5,
) -> Example:
    """What training would leave, had it moved every parameter by some random number."""
    generator = torch.Generator().manual_seed(seed)
    labels = ("no", "yes") if made.task is None else made.task.labels
    head, batch = fresh_head(base, 3), batch_of(made) if batch is None else batch
    with tuner_examples.adaptation_of(plan, base.model, seed=3, head=head) as adaptation:
        for stage in range(adaptation.stages):
            with torch.no_grad():
                for parameter in adaptation.begin_stage(stage, 4).parameters():
                    drawn = torch.randn(parameter.shape, generator=generator)
                    parameter.add_((0.1 * drawn).to(parameter.dtype))
            adaptation.end_stage()
        weights = adaptation.weights()
        adaptation.eval()
        logits = logits_of(base.model, batch)
    facts = TrainedFacts(
        base_uri=base.uri, base_fingerprint=base.fingerprint, model_kind=base.model_kind,
        task_kind=made.kind, labels=labels, head_modules=tuple(head), method=method,
        dtype=str(base.model.dtype).removeprefix("torch."), seed=3,
    )  # fmt: skip
    states = {name: module.state_dict() for name, module in head.items()}
    return Example(base, plan, Trained(facts, weights, states), batch, logits)


def plan_of(base: Base, suffixes: tuple[str, ...], choice: Mapping[str, Any]) -> Plan:
    targets = resolve_targets(base.model, base.head_modules, suffixes)
    size = base_size(base.model, base.head_modules)
    return make_plan(parse_choice(choice), targets, drawn_profile(targets), size)


def example_of(made: Made, choice: Mapping[str, Any]) -> Example:
    base = load_base(made.uri, made.kind, made.task.labels)
    return trained_at_random(made, base, plan_of(base, made.suffixes, choice), choice["method"])


def untouched(made: Made, base: Base) -> Any:
    """The base as a user loads it, with a head of random weights.

    A decoder finds the last token of a row by the padding token, which its config may lack.
    """
    padding = (
        {"pad_token_id": base.model.config.pad_token_id} if made.kind == "classification" else {}
    )
    folder = made.uri.removeprefix("path:")
    return auto_class(made.kind).from_pretrained(folder, num_labels=2, **padding)


def auto_class(kind: str) -> Any:
    return {
        "classification": transformers.AutoModelForSequenceClassification,
        "image_classification": transformers.AutoModelForImageClassification,
    }[kind]


def assert_same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Within 1e-5, or that share of the largest logit: a tiny CLIP's are in the hundreds."""
    assert float((got - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))
