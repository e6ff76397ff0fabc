"""Every statistic of a profile against float64 brute force written from the equations."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch.func import functional_call

from spaces.profile import Profile
from tests.trainables.conftest import head_of, join_in_float64, tiny_bert, tiny_task
from trainables.adapters import Adaptation, plain_lora
from trainables.bases import resolve_targets
from trainables.profiling import compute_profile, top_percent_counts
from trainables.settings import ProfileSettings
from trainables.tasks import epoch_order

SETTINGS = ProfileSettings(
    target_modules=("query", "output.dense"), rank=3, epochs=2, score_every=3,
    calibration_batches=3, batch_size=5, top_percent=(2, 7.5, 30), learning_rate=5e-3, seed=4,
    max_grad_norm=0.05, weight_decay=0.01,
)  # fmt: skip
FIELDS = (
    "hits", "row_importance", "hessian_diag", "sensitivity_row_count", "sensitivity_col_count",
    "gradient_row_count", "gradient_col_count",
)  # fmt: skip


def targets_of(model):
    return resolve_targets(model, ("classifier",), SETTINGS.target_modules)


def row_of(split, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = split.input_ids[split.offsets[i] : split.offsets[i + 1]]
    return torch.tensor(tokens, dtype=torch.long)[None], torch.tensor(split.labels[i])


def loss_of_rows(model, weights, split, rows) -> torch.Tensor:
    """Mean cross-entropy, one unpadded row at a time, with some of the weights replaced."""
    losses = []
    for i in rows:
        tokens, label = row_of(split, i)
        logits = functional_call(model, weights, (tokens,)).logits
        losses.append(torch.nn.functional.cross_entropy(logits[0], label))
    return torch.stack(losses).mean()


def brute_force_initial_phase(model, targets, task):
    """PiLoRA Algorithm 1, lines 3 to 13, with LoRA written out as W + (alpha / r) B A."""
    split, names = task.splits["train"], [t.name for t in targets]
    with Adaptation(model, plain_lora(targets, 3, 6.0), seed=SETTINGS.seed) as drawn:
        start = [adapter.blocks[0].A.detach().clone() for adapter in drawn.begin_stage(0).adapters]
    A = [a.requires_grad_() for a in start]
    B = [torch.zeros(t.shape[0], 3, dtype=torch.float64, requires_grad=True) for t in targets]
    head = head_of(model)["classifier"]
    head_weights = {"classifier.weight": head.weight, "classifier.bias": head.bias}
    everything = [*A, *B, *head_weights.values()]
    optimizer = torch.optim.AdamW(everything, lr=SETTINGS.learning_rate, weight_decay=0.01)
    base = dict(model.named_parameters())
    rows = len(split.labels)
    steps = math.ceil(rows / 5) * 2
    hits = [np.zeros(t.shape[0], int) for t in targets]
    importance = [np.zeros(t.shape[0]) for t in targets]
    scored = step = 0
    for epoch in (1, 2):
        order = epoch_order(rows, SETTINGS.seed, epoch)
        for start_row in range(0, rows, 5):
            weights = {
                f"{name}.weight": base[f"{name}.weight"] + 6.0 / 3 * b @ a
                for name, a, b in zip(names, A, B, strict=True)
            }
            loss = loss_of_rows(
                model, weights | head_weights, split, order[start_row : start_row + 5]
            )
            gradients = torch.autograd.grad(loss, everything)
            if step % 3 == 0:
                for m in range(len(targets)):
                    grad_A, grad_B = gradients[m], gradients[len(targets) + m]
                    G = B[m].detach() @ grad_A + grad_B @ A[m].detach()  # Eq. 7
                    S = G.abs().sum(1).numpy()  # Eq. 8
                    hits[m] += S.mean() < S
                    importance[m] += S
                scored += 1
            norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
            for parameter, gradient in zip(everything, gradients, strict=True):
                parameter.grad = gradient * min(1.0, 0.05 / (norm + 1e-6))
            optimizer.param_groups[0]["lr"] = SETTINGS.learning_rate * (steps - step) / steps
            optimizer.step()
            step += 1
    trained_head = {name: value.detach() for name, value in head_weights.items()}
    return hits, [i / scored for i in importance], scored, trained_head


def brute_force_counts(score: np.ndarray, percent: float) -> tuple[np.ndarray, np.ndarray]:
    """TASO Eq. 2 by sorting every entry: largest first, ties row-major, zeros left out."""
    out, in_ = score.shape
    entries = sorted(
        ((-score[i, j], i * in_ + j) for i in range(out) for j in range(in_)),
    )
    mask = np.zeros(out * in_, bool)
    for value, at in entries[: math.floor(percent / 100 * out * in_ + 0.5)]:
        mask[at] = value < 0
    mask = mask.reshape(out, in_)
    return mask.sum(1), mask.sum(0)


def brute_force_static_pass(model, targets, task, trained_head):
    """Mean abs(g) over micro-batches, and 2 E[x x^T] from one unpadded row at a time."""
    split = task.splits["train"]
    order = epoch_order(len(split.labels), SETTINGS.seed, 0)
    batches = [order[i : i + 5] for i in range(0, len(order), 5)][:3]
    base = dict(model.named_parameters())
    mean_gradient = {t.name: np.zeros(t.shape) for t in targets}
    for rows in batches:
        leaves = {
            f"{t.name}.weight": base[f"{t.name}.weight"].detach().clone().requires_grad_()
            for t in targets
        }
        loss = loss_of_rows(model, leaves | trained_head, split, rows)
        for target, gradient in zip(
            targets, torch.autograd.grad(loss, leaves.values()), strict=True
        ):
            mean_gradient[target.name] += gradient.abs().numpy() / len(batches)
    outer = {t.name: np.zeros((t.shape[1], t.shape[1])) for t in targets}
    tokens = {t.name: 0 for t in targets}
    hooks = []
    for target in targets:

        def see(_layer, inputs, _output, name=target.name) -> None:
            x = inputs[0].detach().numpy().reshape(-1, inputs[0].shape[-1])
            outer[name] += x.T @ x
            tokens[name] += len(x)

        hooks.append(model.get_submodule(target.name).register_forward_hook(see))
    with torch.no_grad():
        for i in np.concatenate(batches):
            model(row_of(split, int(i))[0])
    for hook in hooks:
        hook.remove()
    return mean_gradient, {n: np.diag(2 * outer[n] / tokens[n]) for n in outer}


def test_every_statistic_equals_brute_force(alone) -> None:
    model, task = tiny_bert(), tiny_task()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    targets = targets_of(model)
    assert targets[0].name.endswith("attention.self.query")
    profile = compute_profile(model, head_of(model), targets, task, SETTINGS, workers=alone)

    hits, importance, scored, head = brute_force_initial_phase(model, targets, task)
    gradients, hessian = brute_force_static_pass(model, targets, task, head)
    assert scored == 4
    assert profile.scored_steps == scored
    for m, target in enumerate(targets):
        found = profile.modules[target.name]
        np.testing.assert_array_equal(found.hits, hits[m])
        np.testing.assert_allclose(found.row_importance, importance[m], rtol=1e-5)
        np.testing.assert_allclose(found.hessian_diag, hessian[target.name], rtol=1e-6)
        weight = model.get_parameter(f"{target.name}.weight").detach().numpy()
        gradient = gradients[target.name]
        for signal, score in (
            ("sensitivity", np.abs(weight) * gradient), ("gradient", gradient),
        ):  # fmt: skip
            for line, percent in enumerate(SETTINGS.top_percent):
                rows, cols = brute_force_counts(score, percent)
                np.testing.assert_array_equal(getattr(found, f"{signal}_row_count")[line], rows)
                np.testing.assert_array_equal(getattr(found, f"{signal}_col_count")[line], cols)
    assert any(h.any() for h in hits)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_profile_reads_back_as_it_was_written(alone, tmp_path: Path) -> None:
    model, task = tiny_bert(), tiny_task()
    targets = targets_of(model)
    profile = compute_profile(
        model, head_of(model), targets, task, SETTINGS, workers=alone, base_fingerprint="b" * 64
    )
    profile.write(tmp_path / "p.safetensors")
    again = Profile.read(tmp_path / "p.safetensors")
    assert again.targets == targets
    assert again.metadata["base"] == "b" * 64
    assert again.metadata["settings"]["rank"] == 3
    for name in profile.modules:
        for field in FIELDS:
            np.testing.assert_array_equal(again.require(name, field), profile.require(name, field))


@pytest.mark.parametrize(
    "score",
    [
        np.zeros((4, 3)),
        np.ones((1, 9)),
        np.array([[0.0, 2.0, 2.0], [2.0, 0.0, 1.0]]),
        np.random.default_rng(0).integers(0, 3, (13, 7)).astype(float),
        np.random.default_rng(1).random((8, 21)),
    ],
    ids=["all zero", "one row of ties", "ties at the edge", "many ties", "no ties"],
)
def test_top_percent_masks_break_ties_row_major_and_leave_zeros_out(score: np.ndarray) -> None:
    grid = (1.0, 10.0, 33.0, 50.0, 100.0)
    rows, cols = top_percent_counts(torch.tensor(score), grid)
    assert rows.dtype == np.uint16
    for line, percent in enumerate(grid):
        wanted_rows, wanted_cols = brute_force_counts(score, percent)
        np.testing.assert_array_equal(rows[line], wanted_rows)
        np.testing.assert_array_equal(cols[line], wanted_cols)


def _profile_in_a_group(rank: int, size: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(f"{folder}/store", size), rank=rank,
        world_size=size,
    )  # fmt: skip
    workers = join_in_float64()
    for stage in (0, 1, 2):
        model, task = tiny_bert(), tiny_task()
        profile = compute_profile(
            model, head_of(model), targets_of(model), task, SETTINGS, workers=workers,
            deepspeed={"zero_optimization": {"stage": stage}},
        )  # fmt: skip
        profile.write(f"{folder}/zero{stage}-rank{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_workers_give_the_profile_of_one_under_every_zero_stage(alone, tmp_path: Path) -> None:
    # 21 rows in batches of 5: the last batch holds one row, so that one worker has none.
    model, task = tiny_bert(), tiny_task()
    one = compute_profile(model, head_of(model), targets_of(model), task, SETTINGS, workers=alone)
    mp.spawn(_profile_in_a_group, (2, str(tmp_path)), nprocs=2)
    for stage in (0, 1, 2):
        for rank in (0, 1):
            other = Profile.read(tmp_path / f"zero{stage}-rank{rank}.safetensors")
            assert other.scored_steps == one.scored_steps
            for name in one.modules:
                for field in FIELDS:
                    np.testing.assert_allclose(
                        other.require(name, field), one.require(name, field), rtol=1e-5
                    )
