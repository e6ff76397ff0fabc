"""EVA and GoRA look at training rows first, PARA prunes: each against its paper's formula.

The oracles are PEFT, numpy's decompositions in float64 and plain loops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spaces.errors import ChoiceError, JobError
from spaces.methods.baselines.gora import allocated_ranks
from spaces.methods.registry import count_range, make_plan, parse_choice
from spaces.plan import Plan
from spaces.target import TargetModule
from tests.trainables.conftest import head_of, hearing, tiny_bert, tiny_task
from tests.trainables.families import Made
from tests.trainables.tuner_examples import plan_of
from trainables.adaptations.baselines.gora import compressed
from trainables.adaptations.registry import adaptation_for
from trainables.adaptations.training_rows import TrainingRows
from trainables.bases.loading import fresh_head, load_base
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import Workers
from trainables.training.evaluate import evaluate
from trainables.training.finetune import finetune
from trainables.training.settings import TrainSettings

SETTINGS = TrainSettings(epochs=2, batch_size=6, dropout=0.0, warmup_ratio=0.0)
RATE = 1e-2


def factors_after_a_look(
    model: Any, plan: Plan, rows: TrainingRows, **settings: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and scale * B of every module that an adaptation has given ranks, before any training."""
    with adaptation_for(plan, model, seed=3, **settings) as adaptation:
        adaptation.look(rows)
        adaptation.begin_stage(0, 4)
        adaptation.end_stage()
        return {name: (A.numpy(), B.numpy()) for name, (A, B) in adaptation.factors().items()}


# -- EVA -------------------------------------------------------------------------------------------


class OneBatch(list[dict[str, torch.Tensor]]):
    """All training rows of the tiny task in one batch."""

    def __init__(self, rows: TrainingRows) -> None:
        (batch,) = rows.batches()
        super().__init__([rows.inputs(batch)])


@pytest.mark.parametrize("keys", [{}, {"rho": 1.0}, {"rank": 2, "whiten": True}])
def test_eva_starts_as_pefts_own_model_of_eva(alone: Workers, keys: dict[str, Any]) -> None:
    model, rows = tiny_bert(torch.float32), TrainingRows(tiny_task(), alone, 0, 100)
    plan = plan_of(model, "bert", "eva", **keys)
    assert plan.tuner is not None
    settings: dict[str, Any] = dict(plan.tuner.settings)
    found = factors_after_a_look(model, plan, rows)
    config = peft.LoraConfig(
        r=settings["rank"], target_modules=[target.name for target in plan.targets],
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=settings.get("rho", 2.0), whiten=bool(settings["whiten"])),
    )  # fmt: skip
    peer = peft.get_peft_model(tiny_bert(torch.float32), config)
    peft.initialize_lora_eva_weights(peer, OneBatch(rows), show_progress_bar=False)
    theirs = {
        name.removeprefix("base_model.model."): layer.lora_A["default"].weight
        for name, layer in peer.named_modules()
        if hasattr(layer, "lora_A")
    }
    assert found.keys() == theirs.keys()
    for name, (A, B) in found.items():
        np.testing.assert_allclose(A, theirs[name].detach().numpy(), rtol=1e-4, atol=1e-5)
        assert not B.any()
    given_ranks = [len(A) for A, _ in found.values()]
    assert sum(given_ranks) == settings["rank"] * len(plan.targets)
    assert max(given_ranks) <= settings["max_rank"]
    assert (len(set(given_ranks)) == 1) == (settings["rho"] == 1)


def test_evas_directions_are_those_in_which_inputs_vary_most(alone: Workers) -> None:
    """The largest shares of the variance of all modules' inputs, padding left out, in float64."""
    model, rows = tiny_bert(torch.float32), TrainingRows(tiny_task(), alone, 0, 100)
    plan = plan_of(model, "bert", "eva", rank=2)
    found = factors_after_a_look(model, plan, rows)
    inputs: dict[str, np.ndarray] = {}
    (batch,) = rows.batches()
    given_inputs = rows.inputs(batch)
    is_token = given_inputs["attention_mask"].bool()
    hooks = [
        model.get_submodule(target.name).register_forward_hook(
            lambda _, x, __, name=target.name: inputs.update({name: x[0][is_token].numpy()})
        )
        for target in plan.targets
    ]
    with torch.no_grad():
        model(**given_inputs)
    for hook in hooks:
        hook.remove()
    pairs, vectors = [], {}
    for name, x in inputs.items():
        values, columns = np.linalg.eigh(np.cov(x.astype(np.float64), rowvar=False))
        order = np.argsort(values)[::-1]
        vectors[name] = columns[:, order].T
        pairs += [(value / values.sum(), name) for value in values[order][:4]]  # rho * rank
    largest = sorted(pairs, reverse=True)[: 2 * len(plan.targets)]
    ranks = {name: sum(owner == name for _, owner in largest) for name in inputs}
    assert {name: len(A) for name, (A, _) in found.items()} == {n: r for n, r in ranks.items() if r}
    for name, (A, _) in found.items():
        cosines = np.abs((A * vectors[name][: len(A)]).sum(1))
        np.testing.assert_allclose(cosines, 1.0, atol=1e-3)


def test_eva_of_too_few_rows_is_refused_and_leaves_the_base_as_it_was(alone: Workers) -> None:
    model = tiny_bert()
    plan = plan_of(model, "bert", "eva", rank=8)
    with (
        adaptation_for(plan, model, seed=3, head=head_of(model)) as adaptation,
        pytest.raises(JobError, match=r"^method: eva finds \d+ inputs of .* needs 16; lower rank"),
    ):
        adaptation.look(TrainingRows(tiny_task(train=1), alone, 0, 4))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("rho", [1.0, 1.5, 3.0])
def test_evas_count_is_the_range_over_every_way_to_share_out(rho: float) -> None:
    targets = [
        TargetModule("a", (9, 8)), TargetModule("b", (30, 12)), TargetModule("c", (10, 40)),
    ]  # fmt: skip
    choice = parse_choice({"method": "eva", "rank": 2, "rho": rho})
    most = min(round(2 * rho), 4)
    counts = [
        sum(rank * sum(target.shape) for rank, target in zip(ranks, targets, strict=True))
        for ranks in np.ndindex(*(most + 1 for _ in targets))
        if sum(ranks) == 2 * len(targets)
    ]
    assert count_range(choice, targets) == (min(counts), max(counts))


def test_a_rank_that_leaves_eva_no_room_names_the_module() -> None:
    with pytest.raises(ChoiceError, match=r"^rank: 5 is above in / 2 = 4 of module 'q' \[12, 8\]"):
        count_range(parse_choice({"method": "eva", "rank": 5}), [TargetModule("q", (12, 8))])


# -- GoRA ------------------------------------------------------------------------------------------


def shared_out_by_hand(
    importances: Sequence[float], targets: Sequence[TargetModule], rank: int, low: int, high: int
) -> list[float]:
    """Each module's share of the budget in ranks, before it is rounded."""
    budget = sum(rank * math.sqrt(sum(target.shape)) for target in targets)
    return [
        budget * (importance / sum(importances)) / math.sqrt(sum(target.shape))
        for importance, target in zip(importances, targets, strict=True)
    ]


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.integers(16, 90), st.integers(16, 90)), min_size=1),
    st.integers(2, 8),
)
def test_goras_ranks_are_the_rounded_shares_within_a_loras_budget(
    modules: list[tuple[float, int, int]], rank: int
) -> None:
    targets = [TargetModule(f"m{i}", (rows, cols)) for i, (_, rows, cols) in enumerate(modules)]
    importances = [importance for importance, *_ in modules]
    low, high = math.ceil(rank / 2), 4 * rank
    ranks = allocated_ranks(importances, targets, rank, low, high)
    shares = shared_out_by_hand(importances, targets, rank, low, high)
    rounded = [
        min(max(math.floor(share + 0.5), low), high, *target.shape)
        for share, target in zip(shares, targets, strict=True)
    ]
    sizes = [sum(target.shape) for target in targets]
    budget = rank * sum(sizes)
    assert sum(own * size for own, size in zip(ranks, sizes, strict=True)) <= budget
    assert all(low <= own <= most for own, most in zip(ranks, rounded, strict=True))
    if sum(own * size for own, size in zip(rounded, sizes, strict=True)) <= budget:
        assert ranks == rounded


def test_goras_ranks_where_no_gradient_tells_them_apart() -> None:
    targets = [TargetModule("a", (20, 30)), TargetModule("b", (40, 30))]
    assert allocated_ranks([0.0, 0.0], targets, 4, 2, 16) == [4, 4]


def test_gora_starts_from_the_compressed_gradients(alone: Workers) -> None:
    model, rows = tiny_bert(), TrainingRows(tiny_task(), alone, 7, 6)
    plan = plan_of(model, "bert", "gora", batches=2, gamma=0.3, alpha=6.0)
    head = head_of(model, 3)
    found = factors_after_a_look(model, plan, rows, head=head)
    assert all(parameter.grad is None for parameter in head["classifier"].parameters())
    assert not any(parameter.requires_grad for parameter in model.bert.parameters())
    # by hand: every weight's gradient of the mean loss, averaged over the first two micro-batches
    other = tiny_bert()
    other.classifier = head["classifier"]
    weights = {target.name: other.get_submodule(target.name).weight for target in plan.targets}
    gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    for batch in rows.batches()[:2]:
        inputs = rows.task.splits["train"].batch(batch)
        labels = inputs.pop("labels")
        loss = torch.nn.functional.cross_entropy(other(**inputs).logits, labels)
        for name, each in zip(weights, torch.autograd.grad(loss, [*weights.values()]), strict=True):
            gradients[name] += each / 2
    importances = [float((weights[n] * gradients[n]).detach().abs().mean()) for n in weights]
    shares = shared_out_by_hand(importances, plan.targets, 3, 2, 12)
    assert {name: len(A) for name, (A, _) in found.items()} == dict(
        zip(weights, allocated_ranks(importances, plan.targets, 3, 2, 12), strict=True)
    )
    assert len({len(A) for A, _ in found.values()}) > 1, shares
    for name, (A, B) in found.items():
        rank, inner = A.shape
        G = gradients[name].numpy()
        expected = -0.3 * math.sqrt(inner / rank) * G @ np.linalg.pinv(A) @ A
        np.testing.assert_allclose(B @ A, expected, rtol=1e-9, atol=1e-12)


def test_the_compressed_gradient_is_about_as_long_as_a_step_of_descent() -> None:
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(50, 400, generator=generator, dtype=torch.float64)
    lengths = []
    for _ in range(20):
        A = torch.randn(8, 400, generator=generator, dtype=torch.float64)
        lengths.append(float((2.0 * compressed(G, A, 0.1, 2.0) @ A).norm() / (0.1 * G.norm())))
    assert np.mean(lengths) == pytest.approx(1.0, abs=0.02)


# -- both ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["eva", "gora"])
def test_every_family_and_its_padding_can_be_looked_at(
    family: Made, method: str, alone: Workers
) -> None:
    base = load_base(family.uri, family.kind, family.task.labels)
    targets = resolve_targets(base.model, base.head_modules, family.suffixes)
    plan = make_plan(parse_choice({"method": method, "rank": 2}), targets, None)
    rows = TrainingRows(family.task, alone, 0, 4)
    state = torch.get_rng_state()
    found = factors_after_a_look(base.model, plan, rows, head=fresh_head(base, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.isfinite(A).all() and np.isfinite(B).all() for A, B in found.values())
    assert all(len(A) for A, _ in found.values())
    assert not any(module._forward_hooks for module in base.model.modules())


@pytest.mark.parametrize("method", ["eva", "gora"])
def test_what_has_seen_no_rows_does_not_train(method: str) -> None:
    model = tiny_bert()
    with (
        adaptation_for(plan_of(model, "bert", method), model, seed=0) as adaptation,
        pytest.raises(JobError, match=f"^method: {method} has seen no training rows"),
    ):
        adaptation.begin_stage(0, 4)


@pytest.mark.parametrize("method", ["eva", "gora", "para"])
def test_a_report_tells_the_numbers_that_are_kept(method: str, alone: Workers) -> None:
    model = tiny_bert()
    plan = plan_of(model, "bert", method)
    with adaptation_for(plan, model, seed=3, head=head_of(model, 3)) as adaptation:
        report = finetune(
            model, adaptation, tiny_task(), SETTINGS, learning_rate=RATE, seed=3, workers=alone
        )
    kept = sum(tensor.numel() for tensor in adaptation.weights().values())
    assert report["kept_params"] == kept
    assert 0 < kept <= plan.trainable_params


# -- PARA ------------------------------------------------------------------------------------------


def test_para_trains_as_lora_does_and_is_measured_as_numpy_cuts_it(alone: Workers) -> None:
    """After every epoch, of all modules' singular values together; training goes on uncut."""

    def train(plan: Plan, epochs: int) -> tuple[dict[str, Any], list[dict[str, float]]]:
        model, reports = tiny_bert(), []
        # DeepSpeed clips by a norm in float32, which tells parameters that lie apart from one.
        unlike = {"epochs": epochs, "lr_scheduler": "constant", "max_grad_norm": None}
        settings = SETTINGS.model_copy(update=unlike)
        with adaptation_for(plan, model, seed=3, head=head_of(model, 3)) as adaptation:
            finetune(
                model, adaptation, tiny_task(), settings, learning_rate=RATE, seed=3,
                workers=alone, observer=hearing(on_epoch=lambda _, each: reports.append(each)),
            )  # fmt: skip
            updates = adaptation.updates()
            last = evaluate(model, adaptation, tiny_task(), "dev", alone)
        assert last["dev_loss"] == pytest.approx(reports[-1]["dev_loss"], rel=1e-12)
        return updates, reports

    para = plan_of(tiny_bert(), "bert", "para", rank=4, keep=0.4)
    lora = make_plan(parse_choice({"method": "lora", "rank": 4}), para.targets, None)
    for epochs in (1, 2):
        whole, of_lora = train(lora, epochs)
        cut, of_para = train(para, epochs)
        assert of_para[-1]["train_loss"] == pytest.approx(of_lora[-1]["train_loss"], rel=1e-9)
        values, ranks = cut_by_numpy({name: each.numpy() for name, each in whole.items()}, 4, 0.4)
        assert sum(ranks.values()) == math.floor(0.4 * 4 * len(para.targets) + 0.5)
        for name, (U, S, Vt) in values.items():
            expected = U[:, : ranks[name]] * S[: ranks[name]] @ Vt[: ranks[name]]
            ours = cut.get(name, torch.zeros(expected.shape))
            np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6, atol=1e-9)
        assert of_para[-1]["dev_loss"] != pytest.approx(of_lora[-1]["dev_loss"], rel=1e-6)


def cut_by_numpy(
    updates: dict[str, np.ndarray], rank: int, share: float
) -> tuple[dict[str, Any], dict[str, int]]:
    """Every update's decomposition, and how many of its first `rank` values are among the largest
    share of all."""
    found = {name: np.linalg.svd(update, full_matrices=False) for name, update in updates.items()}
    pooled = sorted((S[i], name) for name, (_, S, _) in found.items() for i in range(rank))
    kept = [name for _, name in pooled[::-1][: math.floor(share * len(pooled) + 0.5)]]
    return found, {name: kept.count(name) for name in updates}


def test_para_that_keeps_all_is_the_lora_it_has_trained(alone: Workers) -> None:
    model = tiny_bert()
    plan = plan_of(model, "bert", "para", rank=4, keep=1.0)
    with adaptation_for(plan, model, seed=3, head=head_of(model, 3)) as adaptation:
        stage = adaptation.begin_stage(0, 4)
        with torch.no_grad():
            for parameter in stage.adapters.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64))
        trained = {
            target.name: 4.0 * (cast(torch.Tensor, tuned.B) @ cast(torch.Tensor, tuned.A)).detach()
            for target, tuned in zip(plan.targets, stage.adapters, strict=True)
        }
        adaptation.end_stage()
        for name, update in adaptation.updates().items():
            torch.testing.assert_close(update, trained[name], rtol=1e-10, atol=1e-12)
