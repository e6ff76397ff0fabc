"""Layers that are computed again in the backward pass give what layers give that keep all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from tests.trainables.families import ENCODER, make
from trainables.adaptations.blocks import BlockAdaptation, plain_lora
from trainables.bases.loading import Base, fresh_head, load_base
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import Workers
from trainables.layers.recomputed import recomputed, repeatable_layers
from trainables.profiling.profile import compute_profile
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.task import Task
from trainables.training.finetune import finetune, untimed
from trainables.training.settings import TrainSettings

TRAIN = TrainSettings(epochs=1, batch_size=6, dropout=0.1)
PROFILE = ProfileSettings(rank=2, batch_size=5, calibration_batches=2, score_every=2, dropout=0.1)


@pytest.fixture(scope="module", params=["bert", "llama"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Base, Task]:
    made = make(request.param, tmp_path_factory.mktemp(request.param))
    return load_base(made.uri, made.task.head, made.task.outputs, torch.float64), made.task


def targets_of(base: Base) -> Any:
    return resolve_targets(base.model, base.head_modules, ("all-linear",))


def runs_of_a_layer(model: nn.Module) -> list[int]:
    """One more entry with every forward of the first layer that can be computed again."""
    runs: list[int] = []
    first = next(repeatable_layers(model)[0].children())
    first.register_forward_hook(lambda *_: runs.append(1))
    return runs


def test_training_is_the_same(loaded: tuple[Base, Task], alone: Workers) -> None:
    (base, task), found = loaded, []
    runs = runs_of_a_layer(base.model)
    for recompute in (False, True):
        runs.clear()
        with BlockAdaptation(
            base.model, plain_lora(targets_of(base), 2, 4.0), seed=1, dropout=TRAIN.dropout,
            head=fresh_head(base, 1),
        ) as adaptation:  # fmt: skip
            report = finetune(
                base.model, adaptation, task, TRAIN, learning_rate=1e-2, seed=1, workers=alone,
                recompute=recompute, evaluate_on=None,
            )  # fmt: skip
        found.append((untimed(report), adaptation.weights(), len(runs)))
    (kept, kept_weights, once), (again, again_weights, twice) = found
    assert kept == again
    assert all(torch.equal(kept_weights[name], again_weights[name]) for name in kept_weights)
    assert twice == 2 * once


def test_a_profile_is_the_same(loaded: tuple[Base, Task], alone: Workers) -> None:
    base, task = loaded
    kept, again = (
        compute_profile(
            base.model, fresh_head(base, 0), targets_of(base), task, PROFILE, workers=alone,
            recompute=recompute,
        )
        for recompute in (False, True)
    )  # fmt: skip
    for name, module in kept.modules.items():
        for field, values in vars(module).items():
            assert np.array_equal(values, getattr(again.modules[name], field)), (name, field)


def test_a_layer_in_evaluation_mode_drops_nothing() -> None:
    # OPT's layers apply dropout themselves, in training mode
    config = transformers.OPTConfig(
        **{**ENCODER, "dropout": 0.5}, ffn_dim=24, word_embed_proj_dim=16
    )
    model = transformers.OPTForCausalLM(config).eval()
    ids = torch.arange(8)[None]
    kept = model(input_ids=ids, use_cache=False).logits
    with recomputed(model, True):
        again = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(kept, again)


def test_a_family_that_does_not_know_of_it_has_no_such_layers(tmp_path: Path) -> None:
    made = make("albert", tmp_path)  # its layers are one layer, called several times
    base = load_base(made.uri, made.task.head, made.task.outputs)
    assert repeatable_layers(base.model) == []
    with recomputed(base.model, True):
        assert not any("forward" in vars(each) for each in base.model.modules())


def test_of_layers_in_layers_the_inner_ones_are_computed_again() -> None:
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    names = [type(each).__name__ for each in repeatable_layers(transformers.SwinModel(config))]
    assert names == ["SwinLayer"] * 4
