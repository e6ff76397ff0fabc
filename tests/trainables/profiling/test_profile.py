"""Every statistic of a profile against float64 brute force written from the equations."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from spaces.errors import JobError
from spaces.profile import Profile
from spaces.target import TargetModule
from tests.trainables.conftest import (
    VOCABULARY,
    head_of,
    hearing,
    run_group,
    tiny_bert,
    tiny_task,
)
from tests.trainables.profile_oracle import (
    assert_profile_is,
    initial_phase,
    mask_counts,
    static_pass,
)
from trainables.adaptations.blocks import plain_lora
from trainables.adaptations.registry import adaptation_for
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import Workers
from trainables.profiling.initial_phase import ScoredLoRA
from trainables.profiling.mask_counts import COUNTING_BYTES, top_percent_counts, weight_counts
from trainables.profiling.profile import compute_profile
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.task import Task
from trainables.training.finetune import finetune, untimed
from trainables.training.settings import TrainSettings

SETTINGS = ProfileSettings(
    target_modules=("query", "output.dense"), rank=3, epochs=2, score_every=3,
    calibration_batches=3, batch_size=5, top_percent=(2, 7.5, 30), learning_rate=5e-3, seed=4,
    max_grad_norm=0.05, weight_decay=0.01,
)  # fmt: skip
FIELDS = (
    "hits", "row_importance", "hessian_diag", "sensitivity_row_count", "sensitivity_col_count",
    "gradient_row_count", "gradient_col_count",
)  # fmt: skip


def targets_of(model: Any) -> tuple[TargetModule, ...]:
    return resolve_targets(model, ("classifier",), SETTINGS.target_modules)


def test_every_statistic_equals_brute_force(alone: Workers) -> None:
    model, task = tiny_bert(), tiny_task()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    targets = targets_of(model)
    assert targets[0].name.endswith("attention.self.query")
    profile = compute_profile(model, head_of(model), targets, task, SETTINGS, workers=alone)

    assert profile.scored_steps == 4
    assert_profile_is(profile, model, head_of(model), targets, task, SETTINGS)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_one_matrix_of_two_layers_is_profiled_once_over_both_uses(alone: Workers) -> None:
    model, task = tiny_bert(), tiny_task()
    first, second = (layer.attention.self for layer in model.bert.encoder.layer)
    second.query.weight = first.query.weight
    targets = targets_of(model)
    shared = targets[0]
    assert len(shared.names) == 2
    assert len(targets) == 5
    profile = compute_profile(model, head_of(model), targets, task, SETTINGS, workers=alone)
    assert_profile_is(profile, model, head_of(model), targets, task, SETTINGS)


def test_a_layer_that_reads_positions_beside_tokens_is_measured_on_its_tokens(
    alone: Workers,
) -> None:
    # DeBERTa sends its relative positions, 16 of them here, through projections: those of its
    # tokens, or projections of their own
    def diagonals(shared: bool, batch_size: int) -> tuple[Any, dict[str, np.ndarray]]:
        torch.manual_seed(0)
        config = transformers.DebertaV2Config(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=32, relative_attention=True,
            pos_att_type=["p2c", "c2p"], position_buckets=8, share_att_key=shared,
            initializer_range=0.3, num_labels=2,
        )  # fmt: skip
        model = transformers.DebertaV2ForSequenceClassification(config).double()
        model.requires_grad_(False).eval()
        names = ("query_proj", "pos_key_proj")[: 1 if shared else 2]
        targets = resolve_targets(model, ("classifier",), names)
        settings = SETTINGS.model_copy(
            update={"batch_size": batch_size, "calibration_batches": "all", "epochs": 1}
        )
        profile = compute_profile(
            model, head_of(model), targets, tiny_task(), settings, workers=alone
        )
        return model, {
            t.name.split(".")[-1]: profile.require(t.name, "hessian_diag") for t in targets
        }

    model, found = diagonals(shared=True, batch_size=5)
    split, tokens = tiny_task().splits["train"], []
    model.deberta.encoder.layer[0].register_forward_pre_hook(
        lambda _layer, inputs: tokens.append(inputs[0].reshape(-1, 16))
    )
    for i in range(len(split)):
        batch = split.batch(np.array([i]))
        model(input_ids=batch["input_ids"])
    read = torch.cat(tokens).numpy()
    np.testing.assert_allclose(found["query_proj"], 2 * np.mean(read**2, 0), rtol=1e-6)
    _, again = diagonals(shared=True, batch_size=3)
    np.testing.assert_allclose(again["query_proj"], found["query_proj"], rtol=1e-6)

    model, found = diagonals(shared=False, batch_size=5)
    positions = model.deberta.encoder.rel_embeddings.weight.numpy()
    np.testing.assert_allclose(found["pos_key_proj"], 2 * np.mean(positions**2, 0), rtol=1e-6)


def test_a_layer_that_no_gradient_reaches_is_never_hit_nor_counted(alone: Workers) -> None:
    model, task = tiny_bert(), tiny_task()
    with torch.no_grad():  # what comes before this norm is forgotten
        norm = model.bert.encoder.layer[1].attention.output.LayerNorm
        norm.weight.zero_()
        norm.bias.copy_(torch.linspace(-1, 1, 16))
    targets = targets_of(model)
    profile = compute_profile(model, head_of(model), targets, task, SETTINGS, workers=alone)
    for target in targets[:-1]:
        found = profile.modules[target.name]
        for field in FIELDS:
            assert getattr(found, field).any() == (field == "hessian_diag"), (target.name, field)
    importance = profile.modules[targets[-1].name].row_importance
    assert importance is not None
    assert importance.any()
    assert_profile_is(profile, model, head_of(model), targets, task, SETTINGS)


def test_a_heads_own_dropout_is_off_while_profiling(alone: Workers) -> None:
    model, task = tiny_bert(), tiny_task()
    targets, head = targets_of(model), head_of(model)["classifier"]

    def dropping(p: float) -> dict[str, Any]:
        return {
            "classifier": torch.nn.Sequential(torch.nn.Dropout(p), head_of(model)["classifier"])
        }

    quiet, noisy = (
        compute_profile(
            model, dropping(0.7), targets, task,
            SETTINGS.model_copy(update={"base_dropout": base_dropout}), workers=alone,
        )
        for base_dropout in (False, True)
    )  # fmt: skip
    plain = compute_profile(model, {"classifier": head}, targets, task, SETTINGS, workers=alone)
    for target in targets:
        np.testing.assert_array_equal(
            quiet.require(target.name, "row_importance"),
            plain.require(target.name, "row_importance"),
        )
    name = targets[0].name
    assert (noisy.require(name, "row_importance") != plain.require(name, "row_importance")).any()


def test_gradients_accumulated_over_forward_passes_are_scored_once_a_step(alone: Workers) -> None:
    model, task = tiny_bert(), tiny_task()
    targets = targets_of(model)
    scores = []
    for accumulation in (1, 3):
        settings = TrainSettings(
            epochs=2, batch_size=6, gradient_accumulation_steps=accumulation, dropout=0.0
        )
        with ScoredLoRA(
            model, plain_lora(targets, 3, 6.0), seed=4, head=head_of(model), every=3, workers=alone
        ) as scored:
            finetune(
                model, scored, task, settings, learning_rate=5e-3, seed=4, workers=alone,
                evaluate_on=None,
            )  # fmt: skip
            assert scored.scored_steps == 3  # of 4 steps an epoch: 0, 3 and 6
            scores.append(scored.scores())
    for target in targets:
        one, same = (found[target.name] for found in scores)
        np.testing.assert_array_equal(one["hits"], same["hits"])
        np.testing.assert_allclose(one["row_importance"], same["row_importance"], rtol=1e-6)


# -- half precision --------------------------------------------------------------------------------


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed trains float16 on this CPU, be it in hardware or not."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)


def large_head(model: Any, factor: float) -> dict[str, Any]:
    """A head whose gradients are that many times larger."""
    head = head_of(model)
    with torch.no_grad():
        head["classifier"].weight.mul_(factor)
    return head


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("factor", [1.0, 40.0], ids=["no step refused", "steps refused"])
def test_float16_scores_are_unscaled_and_refused_steps_do_not_count(
    stage: int, factor: float, alone: Workers, halves: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[bool] = []
    counted = ScoredLoRA.after_step

    def after_step(self: ScoredLoRA, skipped: bool, learning_rate: float) -> None:
        refused.append(skipped)
        counted(self, skipped, learning_rate)

    monkeypatch.setattr(ScoredLoRA, "after_step", after_step)
    settings = SETTINGS.model_copy(update={"score_every": 2, "max_grad_norm": None})
    model, task = tiny_bert(torch.float16), tiny_task()
    targets = targets_of(model)
    found = compute_profile(
        model, large_head(model, factor), targets, task, settings, workers=alone,
        deepspeed={"zero_optimization": {"stage": stage}},
    )  # fmt: skip
    assert len(refused) == 10
    assert (sum(refused) > 0) == (factor > 1)
    assert not all(refused)

    exact = tiny_bert(torch.float16).double()
    head = {name: module.double() for name, module in large_head(model, factor).items()}
    steps = [i for i, skipped in enumerate(refused) if skipped]
    _, importance, scored, _ = initial_phase(exact, head, targets, task, settings, steps)
    assert found.scored_steps == scored == -(-(10 - len(steps)) // 2)
    for target in targets:
        np.testing.assert_allclose(
            found.require(target.name, "row_importance"), importance[target.name], rtol=0.05
        )


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_bfloat16_profile_is_the_exact_one_to_its_precision(stage: int, alone: Workers) -> None:
    model, task = tiny_bert(torch.bfloat16), tiny_task()
    targets = targets_of(model)
    found = compute_profile(
        model, head_of(model), targets, task, SETTINGS, workers=alone,
        deepspeed={"zero_optimization": {"stage": stage}},
    )  # fmt: skip
    exact = tiny_bert(torch.bfloat16).double()
    head = {name: module.double() for name, module in head_of(model).items()}
    _, importance, scored, trained = initial_phase(exact, head, targets, task, SETTINGS)
    _, hessian = static_pass(exact, targets, task, SETTINGS, trained)
    assert found.scored_steps == scored
    for target in targets:
        name = target.name
        np.testing.assert_allclose(
            found.require(name, "row_importance"), importance[name], rtol=0.15
        )
        np.testing.assert_allclose(found.require(name, "hessian_diag"), hessian[name], rtol=0.05)


def test_float16_gradients_too_small_for_it_are_counted_all_the_same(
    alone: Workers, halves: None
) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-9})  # the head stays as it is
    model, task = tiny_bert(torch.float16), tiny_task()
    targets = targets_of(model)
    head = large_head(model, 1e-5)
    exact = {name: module.double() for name, module in large_head(model, 1e-5).items()}
    found = compute_profile(model, head, targets, task, settings, workers=alone)
    still = {f"classifier.{name}": p.detach() for name, p in exact["classifier"].named_parameters()}
    gradients, _ = static_pass(tiny_bert(torch.float16).double(), targets, task, settings, still)
    for target in targets:
        gradient = gradients[target.name]
        assert np.median(gradient) < 2**-22  # float16 has four values below that
        counts = np.stack([mask_counts(gradient, k)[0] for k in settings.top_percent])
        differing = np.abs(found.require(target.name, "gradient_row_count") - counts.astype(int))
        assert differing.sum() < 0.1 * counts.sum()


def test_a_gradient_too_large_for_its_precision_is_said_aloud(alone: Workers, halves: None) -> None:
    model, task = tiny_bert(torch.float16), tiny_task()
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-9})
    with pytest.raises(JobError, match=r"is not finite; use profile.precision: fp32"):
        compute_profile(
            model, large_head(model, 3e3), targets_of(model), task, settings, workers=alone
        )


def test_a_profile_reads_back_as_it_was_written(alone: Workers, tmp_path: Path) -> None:
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
        wanted_rows, wanted_cols = mask_counts(score, percent)
        np.testing.assert_array_equal(rows[line], wanted_rows)
        np.testing.assert_array_equal(cols[line], wanted_cols)


@pytest.mark.parametrize("entries", [1, 8, 2**18])
@pytest.mark.parametrize("transposed", [False, True])
def test_masks_are_the_same_however_few_entries_exist_at_once(
    entries: int, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.profiling.mask_counts.ENTRIES_AT_ONCE", entries)
    rng = np.random.default_rng(2)
    weight, gradient = rng.integers(-2, 3, (9, 6)).astype(float), rng.integers(0, 3, (9, 6)) / 2
    one, other = (torch.tensor(m.T.copy() if transposed else m) for m in (weight, gradient))
    grid = (5.0, 25.0, 60.0)
    counts = weight_counts(one, other, grid, transposed)
    np.testing.assert_array_equal(one.numpy(), weight.T if transposed else weight)
    for signal, score in (("gradient", gradient), ("sensitivity", np.abs(weight) * gradient)):
        for line, percent in enumerate(grid):
            rows, cols = mask_counts(score, percent)
            np.testing.assert_array_equal(counts[f"{signal}_row_count"][line], rows)
            np.testing.assert_array_equal(counts[f"{signal}_col_count"][line], cols)


def test_a_copy_of_a_matrix_is_all_that_counting_its_masks_adds() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.rand(2048, 2048, generator=generator) for _ in range(2))
    matrix = weight.numel() * weight.itemsize
    tracemalloc.start()  # sees NumPy's arrays; torch's own are parts of ENTRIES_AT_ONCE
    weight_counts(weight, gradient, (1.0, 10.0))
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert highest < matrix + COUNTING_BYTES


@pytest.mark.parametrize(
    ("written", "size"), [("2GiB", 2 * 2**30), ("500 MB", 500 * 10**6), (1048576, 2**20)]
)
def test_a_memory_limit_is_a_size(written: str | int, size: int) -> None:
    assert ProfileSettings.model_validate({"memory_limit": written}).memory_limit == size


@pytest.mark.parametrize("written", ["much", "2 apples", -1, 0, "-2GiB"])
def test_a_memory_limit_that_is_no_size_is_refused(written: str | int) -> None:
    with pytest.raises(ValidationError, match="memory_limit"):
        ProfileSettings.model_validate({"memory_limit": written})


def test_how_often_it_is_saved_and_in_how_much_memory_is_no_part_of_a_profile(
    alone: Workers,
) -> None:
    model, task = tiny_bert(), tiny_task()
    profiles = [
        compute_profile(
            model, head_of(model), targets_of(model), task, SETTINGS.model_copy(update=update),
            workers=alone,
        )
        for update in (
            {}, {"checkpoint_every": None, "memory_limit": 2**50, "deterministic": True},
        )
    ]  # fmt: skip
    assert profiles[0].to_bytes() == profiles[1].to_bytes()


# -- several workers -------------------------------------------------------------------------------


def trial_of(
    model: Any, task: Task, workers: Workers, deepspeed: dict[str, Any]
) -> list[dict[str, float]]:
    """Every epoch's report of a LoRA trial with accumulated gradients, but for its times."""
    settings = TrainSettings(
        epochs=2, batch_size=6, gradient_accumulation_steps=2, dropout=0.0, weight_decay=0.01
    )
    reports: list[dict[str, float]] = []
    observer = hearing(on_epoch=lambda _epoch, report: reports.append(report))
    plan = plain_lora(targets_of(model), 2, 4.0)
    with adaptation_for(plan, model, seed=5, head=head_of(model)) as adaptation:
        finetune(
            model, adaptation, task, settings, learning_rate=1e-2, seed=5, workers=workers,
            deepspeed=deepspeed, observer=observer,
        )  # fmt: skip
    return [untimed(report) for report in reports]


def _serve_in_a_group(workers: Workers, folder: Path) -> None:
    rank = workers.rank
    for stage in (0, 1, 2):
        zero = {"zero_optimization": {"stage": stage}}
        model, task = tiny_bert(), tiny_task()
        profile = compute_profile(
            model, head_of(model), targets_of(model), task, SETTINGS, workers=workers,
            deepspeed=zero,
        )  # fmt: skip
        profile.write(f"{folder}/zero{stage}-rank{rank}.safetensors")
        trial = trial_of(model, task, workers, zero)
        Path(f"{folder}/zero{stage}-rank{rank}.json").write_text(json.dumps(trial))


@pytest.mark.group
@pytest.mark.parametrize("size", [2, 3])
def test_several_workers_give_what_one_gives_under_every_zero_stage(
    size: int, alone: Workers, tmp_path: Path
) -> None:
    # 21 rows in batches of 5: the last batch holds one row, so that some workers have none.
    model, task = tiny_bert(), tiny_task()
    one = compute_profile(model, head_of(model), targets_of(model), task, SETTINGS, workers=alone)
    trial = trial_of(model, task, alone, {})
    run_group(_serve_in_a_group, size, tmp_path)
    for stage in (0, 1, 2):
        for rank in range(size):
            place = tmp_path / f"zero{stage}-rank{rank}"
            other = Profile.read(place.with_suffix(".safetensors"))
            assert other.scored_steps == one.scored_steps
            for name in one.modules:
                for field in FIELDS:
                    np.testing.assert_allclose(
                        other.require(name, field), one.require(name, field), rtol=1e-5
                    )
            for found, wanted in zip(
                json.loads(place.with_suffix(".json").read_text()), trial, strict=True
            ):
                assert found == pytest.approx(wanted, rel=1e-7)  # ZeRO keeps float32


@pytest.mark.parametrize("stage", [1, 2])
def test_one_worker_gives_the_same_under_every_zero_stage(stage: int, alone: Workers) -> None:
    model, task = tiny_bert(), tiny_task()
    zero = {"zero_optimization": {"stage": stage}}
    targets = targets_of(model)
    profile = compute_profile(
        model, head_of(model), targets, task, SETTINGS, workers=alone, deepspeed=zero
    )
    assert_profile_is(profile, model, head_of(model), targets, task, SETTINGS)
    for found, wanted in zip(
        trial_of(model, task, alone, zero), trial_of(model, task, alone, {}), strict=True
    ):
        assert found == pytest.approx(wanted, rel=1e-7)  # ZeRO keeps float32
