"""The profile on a language model's loss, against float64 brute force, however rows go through.

The oracle takes one unpadded row at a time. The targets are PiLoRA's: q, k, v, up and down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spaces.profile import Profile
from spaces.target import TargetModule
from tests.trainables.conftest import run_group
from tests.trainables.profile_oracle import assert_profile_is, initial_phase, static_pass
from tests.trainables.tasks.kinds.examples import DECODER, MadeKind, make_kind
from trainables.adaptations.blocks import plain_lora
from trainables.bases.loading import Base
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import Workers
from trainables.profiling.initial_phase import ScoredLoRA, training_of
from trainables.profiling.mask_counts import weight_counts
from trainables.profiling.profile import compute_profile
from trainables.profiling.settings import ProfileSettings
from trainables.profiling.static_pass import micro_batches
from trainables.tasks.kinds.language import LanguageKind
from trainables.tasks.kinds.registry import KINDS
from trainables.tasks.language.sequences import Sequences
from trainables.tasks.split import Pass, epoch_order
from trainables.tasks.task import Task
from trainables.training.finetune import finetune

SETTINGS = ProfileSettings(
    target_modules=DECODER, rank=3, epochs=2, score_every=2, calibration_batches="all",
    batch_size=5, top_percent=(2, 30), learning_rate=5e-3, seed=4, max_grad_norm=0.5,
    weight_decay=0.01,
)  # fmt: skip
FIELDS = (
    "hits", "row_importance", "hessian_diag", "sensitivity_row_count", "sensitivity_col_count",
    "gradient_row_count", "gradient_col_count",
)  # fmt: skip
NAMES = (
    "causal on llama", "causal on qwen2", "generation on llama", "generation on qwen2",
    "multiple_choice on llama", "multiple_choice on qwen2",
)  # fmt: skip


@dataclass(frozen=True)
class InOnePass(Sequences):
    """Rows that go through together, padded to the longest."""

    def passes(self, indices: Any, on_cpu: bool) -> list[Pass]:
        return [self.batch(indices)]


@dataclass(frozen=True)
class OneByOne(Sequences):
    """Rows that go through each by itself: no padding at all."""

    def passes(self, indices: Any, on_cpu: bool) -> list[Pass]:
        return [self.batch(indices[i : i + 1]) for i in range(len(indices))]


@dataclass(frozen=True)
class InUnevenPacks(Sequences):
    """Rows in two lines, the shorter filled up, and the last by itself beside padding."""

    def passes(self, indices: Any, on_cpu: bool) -> list[Pass]:
        if len(indices) < 4:
            return [self.packed([indices])]
        return [self.packed([indices[:1], indices[1:-1]]), self.packed([indices[-1:]])]


WAYS: dict[str, type[Sequences] | bool] = {
    "padded together": InOnePass,
    "of like length": False,  # as a base that packs wrongly has them
    "packed": True,
    "in lines that are filled up": InUnevenPacks,
    "one by one": OneByOne,
}


def going(task: Task, way: type[Sequences] | bool) -> Task:
    """The task whose training rows go through a base in that way."""
    split = task.splits["train"]
    assert isinstance(split, Sequences)
    if isinstance(way, bool):
        return replace(task, splits={**task.splits, "train": replace(split, packs=way)})
    plain = way(split.input_ids, split.targets_mask, split.offsets, split.pad_token_id)
    return replace(task, splits={**task.splits, "train": plain})


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeKind:
    return make_kind(request.param, tmp_path_factory.mktemp("kind"))


def targets_of(base: Base) -> tuple[TargetModule, ...]:
    return resolve_targets(base.model, base.head_modules, SETTINGS.target_modules)


def profile_of(
    base: Base, task: Task, workers: Workers, settings: ProfileSettings = SETTINGS
) -> Profile:
    return compute_profile(base.model, {}, targets_of(base), task, settings, workers=workers)


def assert_same_profile(one: Profile, other: Profile, rel: float) -> None:
    assert one.scored_steps == other.scored_steps
    assert one.modules.keys() == other.modules.keys()
    for name in one.modules:
        for field in FIELDS:
            np.testing.assert_allclose(
                one.require(name, field), other.require(name, field), rtol=rel, err_msg=name
            )


def test_every_kind_that_writes_is_profiled_here() -> None:
    kinds = {name for name, kind in KINDS.items() if isinstance(kind, LanguageKind)}
    assert {name.split()[0] for name in NAMES} == kinds


def test_rows_differ_in_their_targets_and_tokens(made: MadeKind) -> None:
    # Else a mean over rows, or over padding too, would be taken for that over targets.
    split = made.task.splits["train"]
    assert len(set(split.targets.tolist())) > 1
    assert len(set(split.lengths.tolist())) > 1
    shares = [split.targets[rows].sum() for rows in micro_batches(len(split), SETTINGS)]
    assert len(set(shares)) > 1


def test_every_statistic_equals_brute_force(made: MadeKind, alone: Workers) -> None:
    base = made.base(torch.float64)
    task = made.fitted(base)
    split = task.splits["train"]
    assert isinstance(split, Sequences)
    assert split.packs
    passes = [each for rows in micro_batches(13, SETTINGS) for each in split.passes(rows, True)]
    assert any("position_ids" in each for each in passes)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    profile = profile_of(base, task, alone)
    assert {t.name.rpartition(".")[2] for t in profile.targets} == set(DECODER)
    assert_profile_is(profile, base.model, {}, targets_of(base), task, SETTINGS)
    after = base.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_how_rows_go_through_a_base_is_no_part_of_a_profile(made: MadeKind, alone: Workers) -> None:
    base, settings = made.base(torch.float64), SETTINGS.model_copy(update={"epochs": 1})
    profiles = {
        name: profile_of(base, going(made.task, way), alone, settings) for name, way in WAYS.items()
    }
    one = profiles.pop("one by one")
    for other in profiles.values():
        assert_same_profile(one, other, rel=2e-7)  # its statistics are float32


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_gradients_in_full_are_those_of_a_micro_batchs_mean_loss(
    way: type[Sequences] | bool, alone: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A micro-batch of several passes has one gradient, of which the absolute value counts.
    made = make_kind("causal on llama", tmp_path)
    base = made.base(torch.float64)
    task, targets = going(made.fitted(base), way), targets_of(base)
    found: list[np.ndarray] = []
    counts = weight_counts

    def seen(weight: torch.Tensor, gradient: torch.Tensor, *more: Any) -> Any:
        found.append(gradient.numpy().copy())
        return counts(weight, gradient, *more)

    monkeypatch.setattr("trainables.profiling.static_pass.weight_counts", seen)
    profile_of(base, task, alone)
    gradients, _ = static_pass(base.model, targets, task, SETTINGS, {})
    for target, gradient in zip(targets, found, strict=True):
        np.testing.assert_allclose(gradient, gradients[target.name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("way", ["padded together", "packed"])
def test_gradients_accumulated_over_forward_passes_are_scored_once_a_step(
    way: str, made: MadeKind, alone: Workers
) -> None:
    base = made.base(torch.float64)
    task, targets = going(made.fitted(base), WAYS[way]), targets_of(base)
    settings = SETTINGS.model_copy(update={"batch_size": 6})
    training = training_of(settings).model_copy(update={"gradient_accumulation_steps": 3})
    lora = plain_lora(targets, settings.rank, settings.resolved_alpha)
    with ScoredLoRA(
        base.model, lora, seed=settings.seed, head={}, every=settings.score_every, workers=alone
    ) as scored:
        finetune(
            base.model, scored, task, training, learning_rate=settings.learning_rate,
            seed=settings.seed, workers=alone, evaluate_on=None,
        )  # fmt: skip
        found = scored.tally()
    hits, importance, steps, _ = initial_phase(base.model, {}, targets, task, settings)
    assert scored.scored_steps == steps == 3  # of 3 steps an epoch: 0, 2 and 4
    for target in targets:
        name = target.name
        np.testing.assert_array_equal(found[f"{name}/hits"].numpy(), hits[name])
        mean = found[f"{name}/importance"].numpy() / steps
        np.testing.assert_allclose(mean, importance[name], rtol=1e-6)


def test_a_sum_in_full_does_not_depend_on_packing(made: MadeKind, alone: Workers) -> None:
    base = made.base(torch.float64)
    tallies = []
    for packs in (False, True):
        lora = plain_lora(targets_of(base), 3, 6.0)
        with ScoredLoRA(base.model, lora, seed=4, head={}, every=2, workers=alone) as scored:
            finetune(
                base.model, scored, going(made.fitted(base), packs), training_of(SETTINGS),
                learning_rate=5e-3, seed=4, workers=alone, evaluate_on=None,
            )  # fmt: skip
            tallies.append(scored.tally())
    for name, apart in tallies[0].items():
        np.testing.assert_allclose(tallies[1][name].numpy(), apart.numpy(), rtol=1e-10)


# -- several workers -------------------------------------------------------------------------------

FEW = SETTINGS.model_copy(update={"batch_size": 4})
"""13 rows in batches of 4: the last holds one row, so that a worker has none."""


def _profile_in_a_group(workers: Workers, folder: Path, kinds: Sequence[MadeKind]) -> None:
    rank = workers.rank
    for i, made in enumerate(kinds):
        base = made.base(torch.float64)
        for packs in (False, True):
            profile = profile_of(base, going(made.task, packs), workers, FEW)
            profile.write(f"{folder}/{i}-{packs}-{rank}.safetensors")


@pytest.mark.group
def test_two_workers_find_what_one_does(alone: Workers, tmp_path: Path) -> None:
    names = ("causal on llama", "generation on qwen2", "multiple_choice on qwen2")
    kinds = [make_kind(name, tmp_path / str(i)) for i, name in enumerate(names)]
    (tmp_path / "group").mkdir()
    run_group(_profile_in_a_group, 2, tmp_path / "group", kinds)
    for i, made in enumerate(kinds):
        targets = made.task.splits["train"].targets
        halves = [(targets[rows[::2]].sum(), targets[rows[1::2]].sum()) for rows in steps_of(FEW)]
        assert any(one != other for one, other in halves)
        base = made.base(torch.float64)
        one = profile_of(base, made.fitted(base), alone, FEW)
        assert_profile_is(one, base.model, {}, targets_of(base), made.task, FEW)
        for packs in (False, True):
            for rank in (0, 1):
                file = tmp_path / "group" / f"{i}-{packs}-{rank}.safetensors"
                assert_same_profile(Profile.read(file), one, rel=1e-6)


def steps_of(settings: ProfileSettings) -> list[np.ndarray]:
    """The rows of each step of the first epoch."""
    order = epoch_order(13, settings.seed, 1)
    return [order[i : i + settings.batch_size] for i in range(0, 13, settings.batch_size)]
