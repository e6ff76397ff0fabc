"""The training loop: against a plain PyTorch loop over PEFT's LoRA, and against itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import get_scheduler

from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Block, Plan
from spaces.target import TargetModule
from tests.spaces.example_profiles import drawn_profile
from tests.trainables.conftest import adapters_of, head_of, hearing, tiny_bert, tiny_task
from trainables.adaptations.blocks import BlockAdaptation
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import CancelledError, Workers
from trainables.profiling.profile import compute_profile
from trainables.profiling.settings import ProfileSettings
from trainables.tasks import grouping
from trainables.tasks.grouping import PASS_TOKENS, of_like_length
from trainables.tasks.measured_rows import ClassRows
from trainables.tasks.split import epoch_order
from trainables.tasks.task import Task
from trainables.training.evaluate import evaluate, evaluate_rows
from trainables.training.finetune import finetune, untimed
from trainables.training.settings import TrainSettings
from trainables.training.stage import DivergedError, Schedule

PATTERNS = ("query", "output.dense")
SETTINGS = TrainSettings(epochs=3, batch_size=6, dropout=0.0, warmup_ratio=0.2)


def targets_of(model: Any) -> tuple[TargetModule, ...]:
    return resolve_targets(model, ("classifier",), PATTERNS)


def lora(model: Any, rank: int = 2) -> Plan:
    choice = parse_choice({"method": "lora", "rank": rank, "alpha": 6})
    return make_plan(choice, targets_of(model), None)


def reports_of(
    model: Any,
    plan: Plan,
    workers: Workers,
    settings: TrainSettings = SETTINGS,
    *,
    rate: float = 1e-2,
    seed: int = 3,
    task: Task | None = None,
    **hooks: Any,
) -> list[dict[str, float]]:
    """The report of every epoch of one job, which `hooks` hear of."""
    found = []
    observer = hearing(on_epoch=lambda _epoch, report: found.append(report), **hooks)
    with BlockAdaptation(
        model, plan, seed=seed, dropout=settings.dropout, head=head_of(model, seed)
    ) as adaptation:
        finetune(
            model, adaptation, task or tiny_task(), settings, learning_rate=rate, seed=seed,
            workers=workers, observer=observer,
        )  # fmt: skip
    return [untimed(report) for report in found]


@pytest.mark.parametrize("pass_tokens", [0, grouping.PASS_TOKENS, 10**6])
def test_a_lora_trial_is_what_peft_in_a_plain_loop_gives(
    alone: Workers, pass_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the rows of a batch are grouped by their length."""
    monkeypatch.setattr(grouping, "PASS_TOKENS", pass_tokens)
    model, task = tiny_bert(), tiny_task()
    plan, names = lora(model), [t.name for t in targets_of(model)]
    with BlockAdaptation(model, plan, seed=3) as drawn:
        draws = {
            name: adapter.blocks[0].now()[0].detach().clone()
            for name, adapter in zip(names, adapters_of(drawn.begin_stage(0, 1)), strict=True)
        }
    ours = reports_of(model, plan, alone)

    peer_base = tiny_bert()
    peer_base.classifier = head_of(peer_base, 3)["classifier"]
    peer: Any = get_peft_model(
        peer_base, LoraConfig(r=2, lora_alpha=6, target_modules=list(names), lora_dropout=0.0)
    )
    peer.base_model.model.classifier.requires_grad_(True)
    for name, draw in draws.items():
        layer = peer.base_model.model.get_submodule(name)
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(draw)
    trained = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    split, rows = task.splits["train"], len(task.splits["train"])
    steps = math.ceil(rows / 6) * 3
    warmup = math.ceil(0.2 * steps)
    step = 0
    for epoch in (1, 2, 3):
        order, losses = epoch_order(rows, 3, epoch), []
        for start in range(0, rows, 6):
            batch = split.batch(order[start : start + 6])
            labels = batch.pop("labels")
            loss = torch.nn.functional.cross_entropy(peer(**batch).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            factor = (
                (step + 1) / (warmup + 1) if step < warmup else (steps - step) / (steps - warmup)
            )
            optimizer.param_groups[0]["lr"] = 1e-2 * factor
            optimizer.step()
            losses.append(loss.item() * len(labels))
            step += 1
        with torch.no_grad():
            dev = task.splits["dev"]
            batch = dev.batch(np.arange(len(dev)))
            labels = batch.pop("labels")
            logits = peer(**batch).logits
        report = ours[epoch - 1]
        assert report["train_loss"] == pytest.approx(sum(losses) / rows, rel=1e-8)
        assert report["learning_rate"] == pytest.approx(1e-2 * factor, rel=1e-12)
        wanted = torch.nn.functional.cross_entropy(logits, labels).item()
        assert report["dev_loss"] == pytest.approx(wanted, rel=1e-7)
        assert report["accuracy"] == (logits.argmax(1) == labels).double().mean().item()
    assert ours[-1]["train_loss"] < ours[0]["train_loss"]


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_like_length_are_grouped_at_the_least_cost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 8))
    lengths = rng.integers(1, 200, rows)

    def cost(groups: Sequence[Sequence[int]]) -> int:
        return sum(len(group) * max(lengths[i] for i in group) + PASS_TOKENS for group in groups)

    def partitions(of: list[int]) -> Iterator[list[list[int]]]:
        if not of:
            yield []
            return
        for rest in partitions(of[1:]):
            yield [[of[0]], *rest]
            for i, group in enumerate(rest):
                yield [*rest[:i], [of[0], *group], *rest[i + 1 :]]

    groups = [group.tolist() for group in of_like_length(lengths)]
    assert sorted(i for group in groups for i in group) == list(range(rows))
    assert cost(groups) == min(map(cost, partitions(list(range(rows)))))


def test_rows_of_one_length_stay_together_in_their_order() -> None:
    (group,) = of_like_length(np.full(50, 30))
    assert group.tolist() == list(range(50))


def test_accumulating_gradients_changes_nothing_but_memory(alone: Workers) -> None:
    model = tiny_bert()
    whole = reports_of(model, lora(model), alone)
    settings = SETTINGS.model_copy(update={"gradient_accumulation_steps": 3})
    parts = reports_of(model, lora(model), alone, settings)
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_the_same_trial_first_and_tenth_gives_the_same_losses_bit_for_bit(alone: Workers) -> None:
    model = tiny_bert(torch.float32, dropout=0.1)
    task, targets = tiny_task(), targets_of(model)
    settings = SETTINGS.model_copy(update={"dropout": 0.1})
    profile_settings = ProfileSettings(target_modules=PATTERNS, rank=2, batch_size=6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    profile = compute_profile(model, head_of(model), targets, task, profile_settings, workers=alone)
    first = reports_of(model, lora(model), alone, settings)
    for method in ("pilora", "taso", "sensitivity", "joint"):
        for rounds in ({}, {"seed": 1}):
            plan = make_plan(parse_choice({"method": method, **rounds}), targets, profile)
            other = reports_of(model, plan, alone, settings, seed=11)
            assert other != first
    assert reports_of(model, lora(model), alone, settings) == first
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_every_stage_of_a_plan_is_trained_and_the_schedule_starts_anew(alone: Workers) -> None:
    model = tiny_bert()
    targets = targets_of(model)
    plan = two_halves(targets)
    with BlockAdaptation(model, plan, seed=0, head=head_of(model)) as adaptation:
        rates = []
        finetune(
            model, adaptation, tiny_task(), SETTINGS.model_copy(update={"warmup_ratio": 0.0}),
            learning_rate=1e-2, seed=0, workers=alone,
            observer=hearing(on_epoch=lambda _e, report: rates.append(report["learning_rate"])),
        )  # fmt: skip
        updates = adaptation.updates()
    # 4 steps an epoch, 12 in all: each stage trains 6, and its rate falls from 1 to 1/6
    assert rates == pytest.approx([1e-2 * 3 / 6, 1e-2 * 5 / 6, 1e-2 * 1 / 6])
    for target in targets:
        rows = updates[target.name].abs().sum(1)
        touched = {*range(target.shape[0] // 2), *range(4, 4 + target.shape[0] // 2)}
        assert set(torch.nonzero(rows).reshape(-1).tolist()) == touched


def two_halves(targets: Sequence[TargetModule], stage_steps: Any = "split") -> Plan:
    """Two stages, of the first and the last rows of every matrix."""
    stages = [
        {
            t.name: [
                Block(1, np.arange(t.shape[0] // 2, dtype=np.int32) + offset,
                      np.arange(t.shape[1], dtype=np.int32), 1.0)
            ]
            for t in targets
        }
        for offset in (0, 4)
    ]  # fmt: skip
    return Plan.of(stages, targets, stage_steps)


def rates_of_steps(
    model: Any, plan: Plan, settings: TrainSettings, workers: Workers
) -> list[float]:
    """The learning rate that each optimizer step of a job has trained at, where 1 is the job's."""
    rates = []

    class Heard(BlockAdaptation):
        def after_step(self, skipped: bool, learning_rate: float) -> None:
            rates.append(learning_rate)

    with Heard(model, plan, seed=0, head=head_of(model)) as adaptation:
        finetune(
            model, adaptation, tiny_task(), settings, learning_rate=1.0, seed=0, workers=workers
        )
    return rates


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(
    "warmup", [{"warmup_ratio": 0.3}, {"warmup_steps": 2}, {"warmup_ratio": 0}]
)
@pytest.mark.parametrize("stage_steps", ["split", "full"])
def test_every_step_of_every_stage_trains_at_a_rate_of_transformers_schedule(
    alone: Workers, schedule: Any, warmup: dict[str, Any], stage_steps: Any
) -> None:
    """From its second step on, as its first is at 0; after the warm-up the two are the same."""
    model = tiny_bert()
    settings = TrainSettings(epochs=3, batch_size=6, lr_scheduler=schedule, **warmup)
    rates = rates_of_steps(model, two_halves(targets_of(model), stage_steps), settings, alone)
    steps = 6 if stage_steps == "split" else 12  # 4 steps in each of 3 epochs
    assert len(rates) == 2 * steps
    warm = warmup.get("warmup_steps", math.ceil(warmup.get("warmup_ratio", 0) * steps))
    name = {"constant": "constant_with_warmup"}.get(schedule, schedule)

    def peer(warm: int, steps: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler, found = get_scheduler(name, optimizer, warm, steps), []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    expected = peer(warm + 1, steps + 1)[1:]
    assert rates == pytest.approx([*expected, *expected], rel=1e-12)
    assert min(rates) > 0
    assert rates[warm:steps] == pytest.approx(peer(warm, steps)[warm:], rel=1e-12)
    assert max(rates) == 1


@pytest.mark.parametrize("warmup", [{"warmup_steps": 100}, {"warmup_ratio": 0.99}])
def test_a_warm_up_longer_than_its_stage_reaches_the_full_rate_with_its_last_step(
    alone: Workers, warmup: dict[str, Any]
) -> None:
    model = tiny_bert()
    settings = TrainSettings(epochs=2, batch_size=6, **warmup)
    rates = rates_of_steps(model, two_halves(targets_of(model)), settings, alone)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0] * 2)


def test_full_stages_train_a_trials_epochs_each(alone: Workers) -> None:
    model = tiny_bert()
    plan = two_halves(targets_of(model), "full")
    whole = reports_of(model, plan, alone)
    settings = SETTINGS.model_copy(update={"epochs": 6})
    as_long = reports_of(model, two_halves(targets_of(model)), alone, settings)
    # Two full stages of 3 epochs are what two stages share of 6.
    assert whole == as_long
    assert len(whole) == 2 * SETTINGS.epochs


@pytest.mark.parametrize("stages", [1, 2, 3, 8])
@pytest.mark.parametrize(("per_epoch", "epochs"), [(4, 3), (1, 2), (7, 1)])
def test_stages_divide_the_steps_as_the_formula_says(
    stages: int, per_epoch: int, epochs: int
) -> None:
    schedule = Schedule(per_epoch, epochs, stages)
    steps = per_epoch * epochs
    bounds = [math.floor(i * steps / stages) for i in range(stages + 1)]
    for stage in range(stages):
        trained = list(range(bounds[stage], bounds[stage + 1]))
        assert schedule.stage_steps(stage) == len(trained)
        assert all(schedule.stage_of(step) == stage for step in trained)


def test_losses_within_an_epoch_are_means_over_the_rows_since_the_point_before(
    alone: Workers,
) -> None:
    model, task = tiny_bert(), tiny_task(train=123)
    told: list[list[tuple[int, float]]] = []
    settings = SETTINGS.model_copy(update={"epochs": 2})
    # At such a rate every row's loss stays that of the base with its fresh head.
    reports = reports_of(
        model, lora(model), alone, settings, task=task, rate=1e-14, on_losses=told.append
    )
    split = task.splits["train"]
    model.classifier.load_state_dict(head_of(model, 3)["classifier"].state_dict())
    batch = split.batch(np.arange(123))
    labels = torch.as_tensor(batch.pop("labels"))
    inputs = {key: torch.as_tensor(value) for key, value in batch.items()}
    losses = torch.nn.functional.cross_entropy(
        model(**inputs).logits, labels, reduction="none"
    ).detach().numpy()  # fmt: skip
    for epoch, points in enumerate(told, start=1):
        order = epoch_order(123, 3, epoch)
        ends = [*range(12, 121, 12), 123]  # 21 steps of 6 rows: a point for every two, and the last
        starts = [0, *ends[:-1]]
        steps = [21 * (epoch - 1) + math.ceil(end / 6) for end in ends]
        assert [step for step, _ in points] == steps
        means = [losses[order[a:b]].mean() for a, b in zip(starts, ends, strict=True)]
        assert [loss for _, loss in points] == pytest.approx(means, rel=1e-9)
        assert reports[epoch - 1]["train_loss"] == pytest.approx(losses.mean(), rel=1e-9)


def test_a_loss_that_is_not_finite_ends_the_job_and_says_so(alone: Workers) -> None:
    model = tiny_bert(torch.float32)
    with pytest.raises(DivergedError, match=r"not finite at step .*lower learning_rate"):
        reports_of(model, lora(model), alone, rate=1e30)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert not any(layer._forward_hooks or "forward" in vars(layer) for layer in model.modules())


def test_a_cancelled_job_stops_at_its_next_step(alone: Workers) -> None:
    model = tiny_bert()
    steps: list[int] = []
    with pytest.raises(CancelledError):
        reports_of(
            model, lora(model), alone, on_step=steps.append, should_stop=lambda: len(steps) == 5
        )
    assert steps == [1, 2, 3, 4, 5]
    assert not any(layer._forward_hooks or "forward" in vars(layer) for layer in model.modules())


def test_a_job_says_once_that_it_is_ready_right_before_its_first_forward_pass(
    alone: Workers,
) -> None:
    model, order = tiny_bert(), []
    handle = model.register_forward_pre_hook(lambda *_: order.append("forward"))
    reports_of(model, lora(model), alone, on_ready=lambda: order.append("ready"))
    handle.remove()
    assert order[:2] == ["ready", "forward"]
    assert order.count("ready") == 1


def test_measuring_in_batches_equals_measuring_row_by_row(alone: Workers) -> None:
    model, task = tiny_bert(dropout=0.3), tiny_task(dev=70)
    with BlockAdaptation(
        model, lora(model), seed=0, dropout=0.5, head=head_of(model)
    ) as adaptation:
        adaptation.begin_stage(0, 1)
        found = evaluate(model, adaptation, task, "dev", alone)
        split, losses, right, predicted = task.splits["dev"], [], 0, set()
        for i in range(70):
            batch = split.batch(np.array([i]))
            label = batch.pop("labels")
            logits = model(**batch).logits
            losses.append(torch.nn.functional.cross_entropy(logits, label).item())
            right += int(logits.argmax() == label)
            predicted.add(int(logits.argmax()))
    expected = {"dev_loss": np.mean(losses), "accuracy": right / 70}
    assert found == pytest.approx(expected | {"predicted_classes": len(predicted)}, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_job_that_is_over_computes_what_its_last_epoch_was_measured_with(
    rounds: int, dtype: torch.dtype, alone: Workers
) -> None:
    """So that what a confirmation measures afterwards is what its weights rebuild."""
    model, task = tiny_bert().to(dtype), tiny_task(dev=70)
    choice = parse_choice({"method": "taso", "retention": 0.5, "rounds": rounds, "alpha": 8})
    plan = make_plan(choice, targets_of(model), drawn_profile(targets_of(model)))
    with BlockAdaptation(model, plan, seed=3, head=head_of(model, 3)) as adaptation:
        report = finetune(
            model, adaptation, task, SETTINGS, learning_rate=1e-2, seed=3, workers=alone
        )
        again, rows = evaluate_rows(model, adaptation, task, "dev", alone)
    assert again == pytest.approx({key: report[key] for key in again}, rel=1e-7)
    assert isinstance(rows, ClassRows)
    assert (rows.predictions == rows.labels).mean() == report["accuracy"]
    assert rows.rows == task.fingerprint


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_step_is_adams_first_step_in_every_precision(
    alone: Workers, stage: int, dtype: torch.dtype
) -> None:
    # Adam's first step moves every number by the learning rate, against its gradient's sign.
    model, task = tiny_bert(dtype), tiny_task()
    once = TrainSettings(
        epochs=1, batch_size=len(task.splits["train"]), warmup_ratio=0.0, dropout=0.0,
        lr_scheduler="constant", max_grad_norm=None,
    )  # fmt: skip
    with BlockAdaptation(model, lora(model), seed=0, head=head_of(model)) as adaptation:
        finetune(
            model, adaptation, task, once, learning_rate=0.01, seed=0, workers=alone,
            deepspeed={"zero_optimization": {"stage": stage}},
        )  # fmt: skip
        moved = [tensor for name, tensor in adaptation.weights().items() if name.endswith("/B")]
    assert moved
    for tensor in moved:
        sizes = tensor.double().abs()
        assert float((sizes - 0.01).abs().median()) < 1e-4


@pytest.mark.parametrize("stage", [1, 2])
def test_what_trains_is_one_parameter_and_a_bucket_as_large(alone: Workers, stage: int) -> None:
    """DeepSpeed's own is half a billion numbers, and it looks at every gradient for infinity."""
    model, task, engines = tiny_bert(torch.bfloat16), tiny_task(), []
    written = {"zero_optimization": {"stage": stage, "reduce_bucket_size": 40}}
    reports = []
    for section in ({"zero_optimization": {"stage": stage}}, written):
        observer = hearing(restore=lambda engine, _: engines.append(engine.optimizer))
        with BlockAdaptation(model, lora(model), seed=0, head=head_of(model)) as adaptation:
            reports.append(
                finetune(
                    model, adaptation, task, SETTINGS, learning_rate=0.01, seed=0, workers=alone,
                    deepspeed=section, observer=observer,
                )
            )  # fmt: skip
            of_head = sum(p.numel() for p in head_of(model)["classifier"].parameters())
        trained = lora(model).trainable_params + of_head
    assert len(engines[0].bit16_groups[0]) == 3  # the blocks', the head's weight and its bias
    assert engines[0].reduce_bucket_size == engines[0].allgather_bucket_size == trained
    assert engines[1].reduce_bucket_size == 40
    assert not any(each.check_grad_overflow for each in engines)
    assert untimed(reports[0]) == untimed(reports[1])
