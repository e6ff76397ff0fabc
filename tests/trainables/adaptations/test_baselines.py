"""What holds for the adaptation of every baseline, on Linear layers and on GPT-2's Conv1D."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from spaces.errors import JobError, UsageError
from spaces.methods.registry import METHODS, make_plan, parse_choice
from spaces.plan import Plan, Tuner
from tests.trainables.conftest import head_of, run_group, tiny_bert, tiny_task
from tests.trainables.tuner_examples import (
    CHOICES,
    HEADS,
    LOW_RANK,
    adaptation_of,
    adapted,
    fresh_heads,
    logits_of,
    moved_at_random,
    plan_of,
    tiny_base,
    with_parameters,
)
from trainables.adaptations.baselines import decompositions, singular
from trainables.adaptations.registry import TUNERS, adaptation_for
from trainables.bases.structure import base_size, resolve_targets
from trainables.engine.workers import Workers
from trainables.training.finetune import finetune, untimed
from trainables.training.settings import TrainSettings

SETTINGS = TrainSettings(epochs=2, batch_size=6, dropout=0.0, warmup_ratio=0.0)
METHOD = pytest.mark.parametrize("method", CHOICES)
BASE = pytest.mark.parametrize("kind", HEADS)
DRAWN = ("rslora", "dora", "adalora", "vera", "lora_dash", "dylora", "sora", "bottleneck")
DROPPED = tuple(name for name in CHOICES if name not in ("ia3", "bitfit", "full"))


def test_every_baseline_has_an_adaptation_and_an_example() -> None:
    baselines = {name for name, method in METHODS.items() if method.baseline}
    assert set(TUNERS) == baselines
    assert set(CHOICES) == baselines


def test_a_tuner_that_nothing_trains_is_refused() -> None:
    plan = Plan.of_tuner(Tuner("sorra", {}, 0), ())
    with pytest.raises(UsageError, match="'sorra'; did you mean 'sora'"):
        adaptation_for(plan, tiny_bert(), seed=0)


@METHOD
@BASE
def test_as_many_numbers_train_as_the_plan_counts(method: str, kind: str) -> None:
    model = tiny_base(kind)
    plan, head = plan_of(model, kind, method), fresh_heads(model, kind)
    assert plan.tuner is not None
    with adaptation_of(plan, model, seed=0, head=head) as adaptation:
        stage = adaptation.begin_stage(0, 10)
        trained = [p for p in stage.adapters.parameters() if p.requires_grad]
        most, least = plan.tuner.params, plan.tuner.least_params
        assert (most if least is None else least) <= sum(p.numel() for p in trained) <= most
        assert len(trained) == len(list(stage.adapters.parameters()))
        groups = stage.parameter_groups(1e-3, 0.0)
        assert {id(p) for group in groups for p in group["params"]} == {
            id(p) for p in stage.parameters()
        }
        # and they are what the base's output depends on
        batch = tiny_task().splits["dev"].batch(np.arange(3))
        batch.pop("labels")
        logits = stage(batch)
        assert logits.requires_grad


@METHOD
def test_a_plan_that_counts_otherwise_is_refused_with_both_numbers(method: str) -> None:
    model = tiny_base("bert")
    plan = plan_of(model, "bert", method)
    assert plan.tuner is not None
    one_more = plan.tuner.params + 1
    wrong = Plan.of_tuner(replace(plan.tuner, params=one_more, least_params=None), plan.targets)
    head = fresh_heads(model, "bert")
    right = str(plan.tuner.params) if plan.tuner.least_params is None else r"\d+"
    with (
        adaptation_of(wrong, model, seed=0, head=head) as adaptation,
        pytest.raises(JobError, match=f"{method} trains {right} .* counts {one_more};"),
    ):
        adaptation.begin_stage(0, 10)


@METHOD
@BASE
def test_a_trial_starts_from_the_base(method: str, kind: str) -> None:
    model = tiny_base(kind)
    before = logits_of(model)
    with adapted(model, kind, method) as adaptation:
        adaptation.begin_stage(0, 10)
        assert torch.equal(logits_of(model), before)


@METHOD
@BASE
def test_leaving_gives_the_base_back_bit_for_bit_also_after_an_error(
    method: str, kind: str
) -> None:
    model = tiny_base(kind)
    logits = logits_of(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    attributes = set(vars(model))

    def fail() -> None:
        with adapted(model, kind, method) as adaptation:
            moved_at_random(adaptation)
            assert not torch.allclose(logits_of(model), logits, atol=1e-3)
            raise RuntimeError("in the middle of a job")

    with pytest.raises(RuntimeError, match="middle"):
        fail()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert parameter is parameters.pop(name)
        assert torch.equal(parameter, state[name])
        assert not parameter.requires_grad
    for name, module in model.named_modules(remove_duplicate=False):
        assert module is modules.pop(name)
        assert not module._forward_hooks
        assert "forward" not in vars(module)
    assert not parameters
    assert not modules
    assert set(vars(model)) == attributes
    assert torch.equal(logits_of(model), logits)


@METHOD
def test_draws_depend_on_the_seed_alone_and_leave_the_generators(method: str) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        model = tiny_base("bert", torch.float32)
        torch.rand(seed)  # other uses of the global generator do not matter
        states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        with adapted(model, "bert", method, seed) as adaptation:
            adaptation.begin_stage(0, 10)
            assert torch.equal(torch.get_rng_state(), states[0])
            assert (random.getstate(), str(np.random.get_state())) == states[1:]
            adaptation.end_stage()
            return adaptation.weights()

    one, again, other = drawn(5), drawn(5), drawn(6)
    assert one.keys() == again.keys() == other.keys()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one) == (method not in DRAWN)


@METHOD
@BASE
def test_loading_gives_the_trained_function_without_the_seed(method: str, kind: str) -> None:
    model = tiny_base(kind, torch.float32)
    with adapted(model, kind, method, dropout=0.3) as adaptation:
        moved_at_random(adaptation)
        trained = logits_of(model)
        data = safetensors.torch.save(adaptation.weights())
    assert not torch.allclose(trained, logits_of(model), atol=1e-2)
    other = tiny_base(kind, torch.float32)
    weights = safetensors.torch.load(data)
    assert all(name.startswith("tuner/") for name in weights)
    with adapted(other, kind, method, seed=99, dropout=0.3) as loaded:
        loaded.load(weights)
        torch.testing.assert_close(logits_of(other), trained, rtol=1e-6, atol=1e-6)
        backbone = getattr(other, other.base_model_prefix)
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        assert loaded.weights().keys() == weights.keys()
        # in training mode too: what is frozen has no dropout
        torch.testing.assert_close(logits_of(other, True), trained, rtol=1e-6, atol=1e-6)


@METHOD
def test_loading_half_of_the_weights_is_refused(method: str) -> None:
    model = tiny_base("bert")
    with adapted(model, "bert", method) as adaptation:
        adaptation.begin_stage(0, 2)
        adaptation.end_stage()
        weights = adaptation.weights()
    name = sorted(weights)[0]
    del weights[name]
    with (
        adapted(model, "bert", method) as loaded,
        pytest.raises(UsageError, match=f"weights: {name} is missing"),
    ):
        loaded.load(weights)


@pytest.mark.parametrize("method", [name for name in CHOICES if name != "bottleneck"])
@BASE
def test_the_base_with_the_merged_parameters_computes_what_was_trained(
    method: str, kind: str
) -> None:
    model = tiny_base(kind)
    with adapted(model, kind, method) as adaptation:
        moved_at_random(adaptation)
        trained = logits_of(model)
        attached = adaptation.merged()
    left = adaptation.merged()
    assert all(torch.equal(attached[name], left[name]) for name in left)
    merged = logits_of(with_parameters(model, left))
    torch.testing.assert_close(merged, trained, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(trained, logits_of(model), atol=1e-2)


@pytest.mark.parametrize("method", LOW_RANK)
@BASE
def test_the_factors_are_the_whole_update(method: str, kind: str) -> None:
    model = tiny_base(kind)
    plan = plan_of(model, kind, method)
    with adapted(model, kind, method) as adaptation:
        moved_at_random(adaptation)
        trained = logits_of(model)
        factors = adaptation.factors()
    changed = {
        f"{name}.weight": model.get_submodule(name).weight
        + (B @ A if kind == "bert" else (B @ A).T)
        for name, (A, B) in factors.items()
    }
    merged = logits_of(with_parameters(model, changed))
    torch.testing.assert_close(merged, trained, rtol=1e-9, atol=1e-9)
    if method == "para":  # which leaves each module ranks of its own
        return
    rank = CHOICES[method]["rank"]
    rank = {"adalora": 4, "pissa": 2 * rank, "milora": 2 * rank, "lora_dash": rank + 2}.get(
        method, rank
    )
    for target in plan.targets:
        A, B = factors[target.name]
        assert A.shape == (rank, target.shape[1])
        assert B.shape == (target.shape[0], rank)
        assert A.dtype == B.dtype == torch.float64
    assert factors.keys() == {target.name for target in plan.targets}


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("dora", "not of low rank; use --to merged, or --to peft"),
        ("ia3", "multiplies .* no low-rank update; use --to merged, or --to peft"),
        ("bottleneck", "non-linear"),
        ("bitfit", "own parameters, .* use --to merged"),
        ("full", "own parameters, .* use --to merged"),
    ],
)
def test_what_is_no_low_rank_update_says_why(method: str, reason: str) -> None:
    model = tiny_base("bert")
    with adapted(model, "bert", method) as adaptation:
        moved_at_random(adaptation)
        with pytest.raises(UsageError, match=reason):
            adaptation.factors()
        if method == "bottleneck":
            with pytest.raises(UsageError, match=reason):
                adaptation.merged()


@METHOD
def test_dropout_is_on_while_training_and_off_while_measuring(method: str) -> None:
    model = tiny_base("bert")
    with adapted(model, "bert", method, dropout=0.5) as adaptation:
        stage = adaptation.begin_stage(0, 10)
        with torch.no_grad():
            for parameter in stage.adapters.parameters():
                parameter.add_(0.1)

        def varies() -> bool:
            return not torch.equal(logits_of(model), logits_of(model))

        stage.train()  # as the engine does before every step
        assert varies() == (method in DROPPED)
        adaptation.eval()
        assert not varies()
        stage.train()
        assert varies() == (method in DROPPED)


# -- trained by the loop ---------------------------------------------------------------------------


def trained(
    method: str,
    workers: Workers,
    dtype: torch.dtype = torch.float64,
    settings: TrainSettings = SETTINGS,
    model: Any = None,
    **more: Any,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The kept weights and the last report of one job."""
    model = tiny_bert(dtype) if model is None else model
    plan = plan_of(model, "bert", method)
    with adaptation_for(plan, model, seed=3, head=head_of(model, 3)) as adaptation:
        report = finetune(
            model, adaptation, tiny_task(), settings, learning_rate=1e-2, seed=3,
            workers=workers, **more,
        )  # fmt: skip
    return adaptation.weights(), untimed(report)


def assert_alike(
    one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], tolerance: float
) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=tolerance, atol=tolerance)


@METHOD
def test_every_zero_stage_trains_the_same(method: str, alone: Workers) -> None:
    weights, report = trained(method, alone)
    for stage in (1, 2):
        zero = {"zero_optimization": {"stage": stage}}
        others, other = trained(method, alone, deepspeed=zero)
        assert other == pytest.approx(report, rel=1e-4)
        assert_alike(weights, others, 1e-4)  # masters are float32


@METHOD
def test_a_base_in_bf16_trains(method: str, alone: Workers) -> None:
    precise = trained(method, alone, torch.float32)[1]
    model = tiny_bert(torch.bfloat16)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for stage in (0, 1, 2):
        zero = {"zero_optimization": {"stage": stage}}
        weights, report = trained(method, alone, model=model, deepspeed=zero)
        assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
        assert report["train_loss"] == pytest.approx(precise["train_loss"], abs=0.02)
    assert all(torch.equal(state[name], now) for name, now in model.state_dict().items())


def test_full_fine_tuning_takes_parameters_that_nothing_reads(alone: Workers) -> None:
    model = tiny_bert()
    model.unread = nn.Linear(3, 5).double().requires_grad_(False)
    for stage in (0, 1, 2):
        zero = {"zero_optimization": {"stage": stage}}
        weights, _ = trained("full", alone, model=model, deepspeed=zero)
        assert torch.equal(weights["tuner/unread.weight"], model.unread.weight)
        assert not torch.equal(
            weights["tuner/bert.pooler.dense.bias"], model.bert.pooler.dense.bias
        )


ONE_EPOCH = SETTINGS.model_copy(update={"epochs": 1})
SHARED_OUT = (
    "adalora", "sora", "dylora", "full", "lora_xs", "pissa", "lora_dash", "eva", "gora", "para",
)  # fmt: skip


def _train_in_a_group(workers: Workers, folder: Path) -> None:
    rank = workers.rank
    if rank == 1:  # another processor may find the singular vectors the other way round
        decompose = decompositions.singular_components

        def turned(weight: torch.Tensor) -> decompositions.Components:
            of = decompose(weight)
            return decompositions.Components(-of.U, of.S, -of.Vt)

        for module in (decompositions, singular):
            vars(module)["singular_components"] = turned
    for method in SHARED_OUT:
        zero = {"zero_optimization": {"stage": 1}}
        weights, _ = trained(method, workers, settings=ONE_EPOCH, deepspeed=zero)
        safetensors.torch.save_file(weights, f"{folder}/{method}-{rank}.safetensors")


@pytest.mark.group
def test_two_workers_train_what_one_does(alone: Workers, tmp_path: Path) -> None:
    run_group(_train_in_a_group, 2, tmp_path)
    for method in SHARED_OUT:
        one, _ = trained(method, alone, settings=ONE_EPOCH)
        ranks = [
            safetensors.torch.load_file(tmp_path / f"{method}-{rank}.safetensors")
            for rank in (0, 1)
        ]
        assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in one)
        assert_alike(one, ranks[0], 1e-4)


# -- a matrix that several layers use --------------------------------------------------------------


class Tied(nn.Module):
    """Two layers on one matrix, each with a bias of its own; the second has two names."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(2)
        first, second = nn.Linear(8, 8), nn.Linear(8, 8)
        second.weight = first.weight
        self.one: Any = nn.ModuleDict({"o_proj": first})
        self.two: Any = nn.ModuleDict({"o_proj": second})
        self.again: Any = self.two
        self.to(dtype).requires_grad_(False).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again.o_proj(torch.tanh(self.one.o_proj(x)))


def tied_plan(model: Tied, method: str) -> Plan:
    targets = resolve_targets(model, (), ("o_proj",))
    assert targets[0].names == ("one.o_proj", "two.o_proj", "again.o_proj")
    choice = parse_choice({"method": method, **CHOICES[method]})
    return make_plan(choice, targets, None, base_size(model, ()))


@METHOD
def test_a_matrix_of_several_layers_is_adapted_once_and_in_all_of_them(method: str) -> None:
    model = Tied()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(5, 8, dtype=torch.float64)
    plan = tied_plan(model, method)
    with adaptation_of(plan, model, seed=3) as adaptation:
        moved_at_random(adaptation)
        trained = model(x)
        assert not torch.allclose(trained, model.two.o_proj(torch.tanh(model.one.o_proj(x) - 1)))
    weights = adaptation.weights()
    if method == "bottleneck":
        down, up, low, high = (
            weights[f"tuner/one.o_proj/{part}"] for part in ("down", "up", "down_bias", "up_bias")
        )

        def behind(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
            y = layer(x)
            return y + torch.nn.functional.gelu(y @ down.T + low) @ up.T + high

        expected = behind(model.two.o_proj, torch.tanh(behind(model.one.o_proj, x)))
    else:
        expected = with_parameters(model, adaptation.merged())(x)
    torch.testing.assert_close(trained, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(trained, model(x), atol=1e-2)
    other = Tied()
    with adaptation_of(plan, other, seed=9) as loaded:
        loaded.load(weights)
        torch.testing.assert_close(other(x), trained, rtol=1e-10, atol=1e-10)
    assert model.two.o_proj.weight is model.one.o_proj.weight
    assert all(torch.equal(state[name], now) for name, now in model.state_dict().items())
