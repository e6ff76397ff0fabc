"""The baselines that PEFT has, against PEFT itself in a plain PyTorch loop."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import peft
import pytest
import torch

from spaces.plan import Plan
from tests.trainables.conftest import head_of, hearing, tiny_bert, tiny_task
from tests.trainables.tuner_examples import (
    HEADS,
    OF_PEFT,
    adapted,
    logits_of,
    moved_at_random,
    plan_of,
    tiny_base,
)
from trainables.adaptations.baselines.peft import DoraAdaptation, Ia3Adaptation
from trainables.adaptations.baselines.tuner import TunerAdaptation
from trainables.adaptations.registry import adaptation_for
from trainables.engine.workers import Workers
from trainables.tasks.split import epoch_order
from trainables.training.finetune import finetune
from trainables.training.settings import TrainSettings

SETTINGS = TrainSettings(epochs=3, batch_size=6, dropout=0.0, warmup_ratio=0.2)
STEPS, RATE = 12, 2e-2
ADALORA = {"initial_share": 0.2, "final_share": 0.35, "orthogonal_weight": 0.3}


def peer_config(method: str, plan: Plan) -> Any:
    """What a user of PEFT would write for the choice in the examples."""
    modules = [target.name for target in plan.targets]
    lora: dict[str, Any] = {"target_modules": modules, "r": 3, "lora_dropout": 0.0}
    return {
        "rslora": lambda: peft.LoraConfig(**lora, lora_alpha=16, use_rslora=True),
        "dora": lambda: peft.LoraConfig(**lora, lora_alpha=16, use_dora=True),
        "pissa": lambda: peft.LoraConfig(**lora, lora_alpha=3, init_lora_weights="pissa"),
        "adalora": lambda: peft.AdaLoraConfig(
            target_modules=modules, init_r=4, target_r=2, lora_alpha=16, total_step=STEPS,
            tinit=2, tfinal=4, deltaT=1, orth_reg_weight=0.3, lora_dropout=0.0,
        ),
        "ia3": lambda: peft.IA3Config(
            target_modules=modules,
            # the feed-forward's second matrix: in 24 is above out 16 and the smallest in, 16
            feedforward_modules=[f"bert.encoder.layer.{i}.output.dense" for i in (0, 1)],
        ),
        "vera": lambda: peft.VeraConfig(
            target_modules=modules, r=20, d_initial=0.1, vera_dropout=0.0, projection_prng_key=3
        ),
    }[method]()  # fmt: skip


def part_of(layer: Any, name: str) -> torch.Tensor:
    """A parameter of a PEFT layer by the name that our weights give it."""
    held = getattr(layer, name)
    item = held.get("default", held) if hasattr(held, "get") else held["default"]
    return getattr(item, "weight", item)


def plain_loop(peer: Any, method: str, orders: list[np.ndarray]) -> float:
    """Train with AdamW, clipping and a linear schedule with warm-up; the last epoch's mean loss."""
    trained = [p for n, p in peer.named_parameters() if p.requires_grad and "ranknum" not in n]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    split, step, warmup = tiny_task().splits["train"], 0, math.ceil(0.2 * STEPS)
    losses: list[float] = []
    for order in orders:
        losses = []
        for start in range(0, len(order), 6):
            batch = split.batch(order[start : start + 6])
            labels = batch["labels"] if method == "adalora" else batch.pop("labels")
            out = peer.base_model(**batch)
            loss = torch.nn.functional.cross_entropy(out.logits, labels)
            losses.append(loss.item() * len(labels))
            optimizer.zero_grad()
            # given labels, PEFT's AdaLoRA adds its orthogonal penalty to the model's own loss
            (out.loss if method == "adalora" else loss).backward()
            unclipped = [p.grad.clone() for p in trained]
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            factor = (
                (step + 1) / (warmup + 1) if step < warmup else (STEPS - step) / (STEPS - warmup)
            )
            optimizer.param_groups[0]["lr"] = RATE * factor
            optimizer.step()
            step += 1
            if method == "adalora":
                for parameter, gradient in zip(trained, unclipped, strict=True):
                    parameter.grad = gradient
                peer.base_model.update_and_allocate(step)
    return sum(losses) / len(order)


@pytest.mark.parametrize("method", OF_PEFT)
def test_a_trial_is_what_peft_in_a_plain_loop_gives(method: str, alone: Workers) -> None:
    dtype = torch.float32 if method == "pissa" else torch.float64  # PEFT's PiSSA takes no float64
    tolerance = 1e-5 if method == "pissa" else 1e-7
    model, task = tiny_bert(dtype), tiny_task()
    more = ADALORA if method == "adalora" else {}
    plan = plan_of(model, "bert", method, **more)
    with adaptation_for(plan, model, seed=3) as drawn:
        drawn.begin_stage(0, STEPS)
        drawn.end_stage()
        start = {name: tensor.clone() for name, tensor in drawn.weights().items()}
    with adaptation_for(plan, model, seed=3, head=head_of(model, 3)) as adaptation:
        report = finetune(
            model, adaptation, task, SETTINGS, learning_rate=RATE, seed=3, workers=alone
        )
        logits = logits_of(model)
    ours = adaptation.weights()

    base = tiny_bert(dtype)
    base.classifier = head_of(base, 3)["classifier"]
    peer = peft.get_peft_model(base, peer_config(method, plan), autocast_adapter_dtype=False)
    peer.base_model.model.classifier.requires_grad_(True)
    layers = {t.name: peer.base_model.model.get_submodule(t.name) for t in plan.targets}
    with torch.no_grad():
        for name, tensor in start.items():
            module, _, part = name.removeprefix("tuner/").rpartition("/")
            if part.startswith("initial_"):
                continue
            held = [layers[module]] if module else list(layers.values())
            for layer in held:
                part_of(layer, part).copy_(tensor)
    orders = [epoch_order(len(task.splits["train"]), 3, epoch) for epoch in (1, 2, 3)]
    loss = plain_loop(peer, method, orders)

    for name, tensor in ours.items():
        module, _, part = name.removeprefix("tuner/").rpartition("/")
        if module and not part.startswith("initial_"):
            wanted = part_of(layers[module], part)
            torch.testing.assert_close(tensor, wanted.detach(), rtol=tolerance, atol=tolerance)
    assert report["train_loss"] == pytest.approx(loss, rel=tolerance)
    torch.testing.assert_close(logits, logits_of(peer), rtol=tolerance, atol=tolerance)
    moved = max(float((ours[name] - start[name]).abs().max()) for name in ours)
    assert moved > 0.02


def test_pissa_starts_from_peft_s_own_decomposition() -> None:
    model = tiny_bert(torch.float32)
    plan = plan_of(model, "bert", "pissa")
    with adaptation_for(plan, model, seed=3) as adaptation:
        adaptation.begin_stage(0, 2)
        adaptation.end_stage()
        ours = adaptation.weights()
    peer = peft.get_peft_model(tiny_bert(torch.float32), peer_config("pissa", plan))
    for target in plan.targets:
        layer = peer.base_model.model.get_submodule(target.name)
        for factor in ("A", "B"):
            wanted = part_of(layer, f"lora_{factor}").detach()
            assert torch.equal(ours[f"tuner/{target.name}/lora_{factor}"], wanted)
            assert torch.equal(ours[f"tuner/{target.name}/initial_{factor}"], wanted)


# -- AdaLoRA ---------------------------------------------------------------------------------------


def open_ranks(weights: dict[str, torch.Tensor]) -> int:
    return sum(int((t != 0).sum()) for name, t in weights.items() if name.endswith("lora_E"))


@pytest.mark.parametrize(
    ("steps", "shares", "interval", "warmup"),
    [
        (1, (0.1, 0.3), 1, 0.0),
        (1, (0.0, 1.0), 3, 0.0),
        (2, (0.1, 0.3), 1, 0.0),
        (2, (0.1, 0.3), 1, 0.5),  # the first step is at a learning rate of 0
        (2, (0.0, 1.0), 1, 0.5),
        (3, (1.0, 0.0), 2, 0.0),
        (4, (0.5, 0.5), 1, 0.0),
        (7, (0.0, 0.0), 3, 0.2),
        (7, (0.1, 0.3), 3, 0.0),
    ],
)
def test_adalora_meets_its_budget_by_the_last_step_however_few(
    steps: int, shares: tuple[float, float], interval: int, warmup: float, alone: Workers
) -> None:
    model = tiny_bert()
    plan = plan_of(
        model, "bert", "adalora", initial_share=shares[0], final_share=shares[1], interval=interval
    )
    settings = SETTINGS.model_copy(update={"epochs": 1, "warmup_ratio": warmup})
    task = tiny_task(train=6 * steps)
    with adaptation_for(plan, model, seed=3, head=head_of(model, 3)) as adaptation:
        finetune(model, adaptation, task, settings, learning_rate=RATE, seed=3, workers=alone)
    assert open_ranks(adaptation.weights()) == 2 * len(plan.targets)
    ranks = {name: len(A) for name, (A, _) in adaptation.factors().items()}
    assert sum(ranks.values()) == 2 * len(plan.targets)
    assert all(ranks.values())  # a module that has lost every rank is left out


def test_adalora_masks_nothing_where_the_ranks_are_to_stay(alone: Workers) -> None:
    model = tiny_bert()
    plan = plan_of(model, "bert", "adalora", rank=4)
    with adaptation_for(plan, model, seed=3, head=head_of(model, 3)) as adaptation:
        finetune(model, adaptation, tiny_task(), SETTINGS, learning_rate=RATE, seed=3,
                 workers=alone)  # fmt: skip
    assert open_ranks(adaptation.weights()) == 4 * len(plan.targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_adalora_masks_ever_more_and_the_engine_s_masters_too(
    dtype: torch.dtype, stage: int, alone: Workers
) -> None:
    from deepspeed.utils import safe_get_full_fp32_param

    model = tiny_bert(dtype)
    plan = plan_of(model, "bert", "adalora", final_share=0.5)
    found = []

    with adaptation_for(plan, model, seed=3, head=head_of(model, 3)) as adaptation:

        def look(_step: int) -> None:
            assert isinstance(adaptation, TunerAdaptation)
            entries = [p for name, p in adaptation.trained.items() if name.endswith("lora_E")]
            found.append(sum(int((p != 0).sum()) for p in entries))
            masters = [safe_get_full_fp32_param(p) for p in entries]
            for entry, master in zip(entries, masters, strict=True):
                assert master is None or not master[entry == 0].any()

        finetune(
            model, adaptation, tiny_task(), SETTINGS, learning_rate=RATE, seed=3, workers=alone,
            deepspeed={"zero_optimization": {"stage": stage}},
            observer=hearing(on_step=look),
        )  # fmt: skip
    assert found[0] > 2 * len(plan.targets)
    assert found == sorted(found, reverse=True)
    # the last 6 of 12 steps train the final pattern
    assert found[5:] == [2 * len(plan.targets)] * 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bf16"])
def test_adalora_s_penalty_is_the_distance_from_orthogonal_factors(dtype: torch.dtype) -> None:
    model = tiny_bert(dtype)
    plan = plan_of(model, "bert", "adalora", orthogonal_weight=0.3)
    with adaptation_for(plan, model, seed=3) as adaptation:
        stage = adaptation.begin_stage(0, 5)
        parameters = list(stage.adapters.parameters())
        penalty = adaptation.penalty()
        assert penalty is not None
        found = torch.autograd.grad(penalty, parameters, allow_unused=True)
        adaptation.end_stage()
        weights = adaptation.weights()
    leaves = {
        name: tensor.double().requires_grad_()
        for name, tensor in weights.items()
        if not name.endswith("lora_E")
    }
    distances = []
    for name, P in leaves.items():
        gram = P @ P.T if name.endswith("lora_A") else P.T @ P
        distances.append((gram - torch.eye(4, dtype=torch.float64)).square().sum().sqrt())
    expected = 0.3 * torch.stack(distances).sum() / len(distances)
    wanted = dict(zip(leaves, torch.autograd.grad(expected, list(leaves.values())), strict=True))
    close: dict[str, Any] = (
        {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 1e-3}
    )
    torch.testing.assert_close(penalty.detach().double(), expected.detach(), **close)
    for name, gradient in zip(weights, found, strict=True):
        if name in wanted:
            torch.testing.assert_close(gradient.double(), wanted[name], **close)
        else:
            assert gradient is None  # the singular values have none


def test_adalora_without_a_penalty_adds_nothing() -> None:
    model = tiny_bert()
    plan = plan_of(model, "bert", "adalora", orthogonal_weight=0)
    with adaptation_for(plan, model, seed=3) as adaptation:
        adaptation.begin_stage(0, 5)
        assert adaptation.penalty() is None


# -- PEFT's own checkpoints ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dora", "ia3"])
@pytest.mark.parametrize("kind", HEADS)
def test_peft_loads_the_state_as_its_own(method: str, kind: str) -> None:
    model = tiny_base(kind)
    plain = copy.deepcopy(model)
    with adapted(model, kind, method) as adaptation:
        moved_at_random(adaptation)
        trained = logits_of(model)
        assert isinstance(adaptation, (DoraAdaptation, Ia3Adaptation))
        plain_config, state = adaptation.peft_state()
        state = {key: tensor.clone() for key, tensor in state.items()}
    config = json.loads(json.dumps(plain_config))
    names = [target.name for target in plan_of(model, kind, method).targets]
    assert config["target_modules"] == sorted(names)
    assert config["fan_in_fan_out"] == (kind == "gpt2")
    config_class = {"dora": peft.LoraConfig, "ia3": peft.IA3Config}[method]
    peer = peft.get_peft_model(
        plain, config_class.from_peft_type(**config), autocast_adapter_dtype=False
    )
    assert peft.get_peft_model_state_dict(peer).keys() == state.keys()
    told: Any = peft.set_peft_model_state_dict(peer, state)
    assert not told.unexpected_keys
    assert not [key for key in told.missing_keys if ".default" in key]
    torch.testing.assert_close(logits_of(peer), trained, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", [name for name in OF_PEFT if name not in ("dora", "ia3")])
def test_what_is_low_rank_leaves_as_a_lora_and_has_no_state_of_its_own(method: str) -> None:
    model = tiny_bert()
    with adaptation_for(plan_of(model, "bert", method), model, seed=3) as adaptation:
        assert not hasattr(adaptation, "peft_state")
