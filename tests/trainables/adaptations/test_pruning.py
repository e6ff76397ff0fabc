"""Pruning against numpy's singular value decomposition in float64 (Eckart and Young)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Plan
from tests.spaces.example_profiles import drawn_profile
from tests.trainables.conftest import tiny_bert
from tests.trainables.trained_examples import CHOICES
from tests.trainables.tuner_examples import PATTERNS
from trainables.adaptations.adaptation import Part
from trainables.adaptations.pruning import components_of, kept_ranks, pruned
from trainables.adaptations.registry import adaptation_for
from trainables.bases.structure import resolve_targets


def drawn(shape: tuple[int, int], rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, shape[1], generator=generator, dtype=torch.float64)
    return A, torch.randn(shape[0], rank, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("shape", "rank"), [((9, 7), 3), ((5, 12), 5), ((4, 6), 6)])
def test_components_are_the_singular_value_decomposition(shape: tuple[int, int], rank: int) -> None:
    """Also where an update has more ranks than its matrix."""
    A, B = drawn(shape, rank, 1)
    found = components_of(A, B)
    U, S, Vt = np.linalg.svd((B @ A).numpy(), full_matrices=False)
    count = min(rank, *shape)
    assert found.S.shape == (count,)
    np.testing.assert_allclose(found.S.numpy(), S[:count], rtol=1e-12)
    for kept in range(count + 1):
        first_A, first_B = found.first(kept)
        nearest = U[:, :kept] * S[:kept] @ Vt[:kept]
        np.testing.assert_allclose((first_B @ first_A).numpy(), nearest, atol=1e-12)


@pytest.mark.parametrize("share", [1e-9, 0.2, 0.5, 0.77, 1.0])
def test_the_largest_values_of_all_are_kept(share: float) -> None:
    rng = np.random.default_rng(4)
    values = [np.sort(rng.integers(0, 6, size))[::-1] for size in (4, 1, 0, 7)]  # with ties
    wanted = max(1, math.floor(share * 12 + 0.5))
    pool = [(-value, i, j) for i, each in enumerate(values) for j, value in enumerate(each)]
    owners = [i for _, i, _ in sorted(pool)[:wanted]]
    found = kept_ranks(
        [torch.as_tensor(each.copy(), dtype=torch.float64) for each in values], share
    )
    assert found == [owners.count(i) for i in range(len(values))]


def test_nothing_to_keep_is_nothing_kept() -> None:
    assert kept_ranks([], 0.5) == []
    assert pruned({}, 0.5).error == 0


def block_parts(choice: str) -> tuple[Plan, dict[str, list[Part]], dict[str, torch.Tensor]]:
    """The parts and the updates of a plan of blocks that was trained at random."""
    model = tiny_bert()
    targets = resolve_targets(model, ("classifier",), PATTERNS["bert"])
    plan = make_plan(parse_choice(CHOICES[choice]), targets, drawn_profile(targets))
    generator = torch.Generator().manual_seed(2)
    with adaptation_for(plan, model, seed=3) as adaptation:
        for stage in range(adaptation.stages):
            with torch.no_grad():
                for parameter in adaptation.begin_stage(stage, 4).parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator).double())
            adaptation.end_stage()
        return plan, adaptation.parts(), adaptation.updates()


def by_numpy(
    parts: dict[str, list[Part]], share: float
) -> tuple[dict[str, np.ndarray], list[int], int]:
    """Each module's update of what is left, every block's rank, and the numbers to store."""
    blocks = [(name, part) for name, own in parts.items() for part in own]
    every = [np.linalg.svd((p.B @ p.A).numpy(), full_matrices=False) for _, p in blocks]
    counts = [min(len(part.A), len(S)) for (_, part), (_, S, _) in zip(blocks, every, strict=True)]
    pool = sorted(
        ((S[j], i) for i, (_, S, _) in enumerate(every) for j in range(counts[i])), reverse=True
    )
    owners = [i for _, i in pool[: max(1, math.floor(share * len(pool) + 0.5))]]
    ranks = [owners.count(i) for i in range(len(blocks))]
    left = {name: np.zeros(own[0].shape) for name, own in parts.items()}
    stored = 0
    for (name, part), (U, S, Vt), rank in zip(blocks, every, ranks, strict=True):
        place = np.ix_(part.rows.numpy(), part.cols.numpy())
        left[name][place] += U[:, :rank] * S[:rank] @ Vt[:rank]
        stored += rank * (len(part.rows) + len(part.cols))
    return left, ranks, stored


def norm(matrices: Sequence[np.ndarray]) -> float:
    return math.sqrt(sum(float((each**2).sum()) for each in matrices))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_every_block_is_cut_by_itself_and_stays_in_its_place(choice: str, share: float) -> None:
    plan, parts, updates = block_parts(choice)
    assert sum(part.params for own in parts.values() for part in own) == plan.trainable_params
    left, ranks, stored = by_numpy(parts, share)
    found = pruned(parts, share)
    assert (found.params_before, found.params) == (plan.trainable_params, stored)
    assert found.ranks == sum(ranks)
    assert found.factors.keys() == {name for name, each in left.items() if each.any()}
    for name, (A, B) in found.factors.items():
        np.testing.assert_allclose((B @ A).numpy(), left[name], rtol=1e-9, atol=1e-9)
        # nothing beside the blocks, not even a rounded zero
        reached = torch.zeros(parts[name][0].shape, dtype=torch.bool)
        for part in parts[name]:
            reached[part.rows[:, None], part.cols] = True
        assert not (B @ A)[~reached].any()
    cut = [updates[name].numpy() - left[name] for name in left]
    whole = norm([each.numpy() for each in updates.values()])
    assert found.error == pytest.approx(norm(cut) / whole, rel=1e-9)


@pytest.mark.parametrize("choice", CHOICES)
def test_to_leave_all_changes_nothing(choice: str) -> None:
    _, parts, updates = block_parts(choice)
    found = pruned(parts, 1.0)
    assert found.error == 0
    for name, update in updates.items():
        A, B = found.factors[name]
        torch.testing.assert_close(B @ A, update, rtol=1e-10, atol=1e-10)
