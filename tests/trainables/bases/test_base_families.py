"""What holds for a base of every family, from its files to what is trained on it.

The claims run on the tiny bases of families.py, each made once; no family has a test of its own
that another one would pass.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import Profile
from tests.trainables.conftest import hearing
from tests.trainables.families import Made
from tests.trainables.profile_oracle import assert_profile_is
from trainables.adaptations.blocks import BlockAdaptation
from trainables.bases.loading import Base, fresh_head, load_base
from trainables.bases.location import fingerprint
from trainables.bases.structure import meta_base, resolve_targets
from trainables.engine.workers import Workers
from trainables.profiling.profile import compute_profile
from trainables.profiling.settings import ProfileSettings
from trainables.training.finetune import finetune, untimed
from trainables.training.settings import TrainSettings

SETTINGS = ProfileSettings(
    rank=2, score_every=2, calibration_batches="all", batch_size=5, top_percent=(5, 20),
    learning_rate=5e-3, seed=4,
)  # fmt: skip
TWO_STEPS = TrainSettings(epochs=1, batch_size=7, warmup_ratio=0.0)
CHOICES = {
    "lora": {"method": "lora", "rank": 2},
    "pilora": {"method": "pilora", "rank": 2, "partition": {"rule": "top", "threshold": 0.4}},
    "taso": {"method": "taso", "retention": 0.3, "top_percent": 20},
    "joint": {"method": "joint", "mean_rank": 2, "top_percent": 20},
}


@pytest.fixture(scope="module")
def base(family: Made) -> Base:
    """The family's base, loaded once and never written to."""
    return load_base(family.uri, family.kind, len(family.task.labels), torch.float64)


@pytest.fixture(scope="module")
def profile(family: Made, base: Base, alone: Workers) -> Profile:
    """The profile of the family's usual target modules on its task."""
    targets = resolve_targets(base.model, base.head_modules, family.suffixes)
    return compute_profile(
        base.model, fresh_head(base, SETTINGS.seed), targets, family.task, SETTINGS, workers=alone
    )


State = tuple[dict[str, torch.Tensor], list[tuple[list[int], list[int]]]]


def state(base: Base) -> State:
    """A copy of every tensor of a base, and what is attached to each of its modules."""
    tensors = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    hooks = [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in base.model.modules()]
    return tensors, hooks


def assert_untouched(base: Base, before: State) -> None:
    (tensors, hooks), (same, same_hooks) = before, state(base)
    assert tensors.keys() == same.keys()
    assert all(torch.equal(tensors[name], same[name]) for name in tensors)
    assert hooks == same_hooks
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_a_base_loads_frozen_with_the_head_that_its_checkpoint_lacks(
    family: Made, base: Base
) -> None:
    assert base.fingerprint == fingerprint(family.uri)
    assert base.model_kind == family.family.config.model_type
    assert base.head_modules == family.family.head
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize("usual", [True, False], ids=["usual", "all-linear"])
def test_targets_found_without_weights_are_those_of_the_loaded_base(
    family: Made, base: Base, usual: bool
) -> None:
    patterns = family.suffixes if usual else ("all-linear",)
    found = resolve_targets(base.model, base.head_modules, patterns)
    assert meta_base(family.uri, family.kind, len(family.task.labels), patterns).targets == found
    for pattern in family.suffixes:
        assert any(name.endswith(pattern) for target in found for name in target.names)


def test_a_batch_is_scored_as_its_rows_are_one_by_one(family: Made, base: Base) -> None:
    split = family.task.splits["train"]
    batch = split.batch(np.arange(len(split)))
    del batch["labels"]
    with torch.no_grad():
        together = base.model(**batch).logits
        for i in range(len(split)):
            row = split.batch(np.array([i]))
            del row["labels"]
            torch.testing.assert_close(
                base.model(**row).logits[0], together[i], rtol=1e-5, atol=1e-6
            )


def test_every_statistic_of_the_profile_equals_brute_force(
    family: Made, base: Base, profile: Profile
) -> None:
    targets = resolve_targets(base.model, base.head_modules, family.suffixes)
    head = fresh_head(base, SETTINGS.seed)
    before = state(base)
    assert_profile_is(profile, base.model, head, targets, family.task, SETTINGS)
    assert_untouched(base, before)


@pytest.mark.parametrize("method", CHOICES)
def test_a_plan_trains_and_leaves_the_base_as_it_was(
    family: Made, base: Base, profile: Profile, method: str, alone: Workers
) -> None:
    plan = make_plan(parse_choice(CHOICES[method]), profile.targets, profile)
    assert len(plan.stages) == (2 if method == "taso" else 1)
    before = state(base)

    def trained() -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        steps: list[int] = []
        head = fresh_head(base, 1)
        with BlockAdaptation(base.model, plan, seed=1, dropout=0.05, head=head) as adaptation:
            report = finetune(
                base.model, adaptation, family.task, TWO_STEPS, learning_rate=1e-2, seed=1,
                workers=alone, observer=hearing(on_step=steps.append),
            )  # fmt: skip
            updates = adaptation.updates()
        assert steps == [1, 2]
        return untimed(report), updates

    report, updates = trained()
    assert {"train_loss", "dev_loss", "accuracy"} <= report.keys()
    assert all(math.isfinite(value) for value in report.values())
    assert any(update.any() for update in updates.values())
    assert_untouched(base, before)
    again, same = trained()
    assert again == report
    assert all(torch.equal(same[name], updates[name]) for name in updates)
