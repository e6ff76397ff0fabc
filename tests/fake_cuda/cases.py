"""What is run on the fake device: each function is a case, its arguments and result are JSON."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.fake_cuda.device import Launches, fake_cuda, fake_tensors, llama
from tests.fake_cuda.profile_cases import profile  # noqa: F401


def frozen_layer() -> int:
    """Launches of one layer of a frozen 7B, forward and backward."""
    return launches_of_a_layer(lambda _model: None)


def launches_of_a_layer(attach: Callable[[nn.Module], object]) -> int:
    """Launches that a layer adds to a step at 16 x 128 tokens once `attach` has had the model."""
    found = []
    for layers in (2, 3):
        with fake_cuda():
            model = llama(layers)
            attach(model)
            inputs = torch.zeros(16, 128, 4096, dtype=torch.bfloat16, requires_grad=True)
            with Launches() as launches:
                hidden = model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state  # type: ignore[operator]
                hidden.backward(torch.ones_like(hidden))
        found.append(launches.number)
    return found[1] - found[0]


def index_left_on_the_cpu() -> None:
    """What must fail: an index of the CPU used on the device."""
    with fake_cuda():
        x = torch.zeros(4, 4, requires_grad=True)
        x.index_select(0, torch.arange(2, device="cpu")).sum().backward()


def value_asked_for() -> None:
    """What must fail: a host that waits for a value."""
    with fake_cuda():
        float(torch.zeros(4).sum())


def steps_without_a_wait() -> dict[str, Any]:
    """Steps of a job as the loop takes them; a host that asks the device for a value fails."""
    import sys

    from spaces.methods.registry import make_plan, parse_choice
    from tests.trainables.conftest import tiny_bert, tiny_task
    from trainables.adaptations.blocks import BlockAdaptation
    from trainables.bases.structure import resolve_targets
    from trainables.engine.workers import Workers
    from trainables.training.made_ahead import made_ahead
    from trainables.training.observer import Observer
    from trainables.training.settings import TrainSettings
    from trainables.training.stage import Schedule, Stages
    from trainables.training.unhurried import LossCheck, StepClock

    sys.modules["deepspeed"] = SimpleNamespace(initialize=_PlainEngine.initialized)  # type: ignore[assignment]
    torch.cuda.set_device = lambda device: None
    torch.cuda.Event = _Event  # type: ignore[assignment,misc]
    torch.Tensor.pin_memory = torch.Tensor.contiguous  # type: ignore[assignment,method-assign]
    task, device = tiny_task(train=60), torch.device("cuda", 0)
    settings = TrainSettings(batch_size=6, gradient_accumulation_steps=2, dropout=0.1)
    base = tiny_bert(torch.float32)
    targets = resolve_targets(base, ("classifier",), ("query", "output.dense"))
    plan = make_plan(parse_choice({"method": "lora", "rank": 2, "alpha": 6}), targets, None)
    with fake_cuda():
        model, other = (type(base)(base.config) for _ in range(2))
    with fake_tensors():
        workers, head = Workers(0, 1, device), {"classifier": other.classifier}
        model.requires_grad_(False)
        adaptation = BlockAdaptation(model, plan, seed=0, dropout=0.1, head=head)
        split, batches = task.splits["train"], np.split(np.arange(60), 10)
        stages = Stages(
            adaptation, task.its_kind, settings, Schedule(10, 1, 1), learning_rate=1e-3,
            config={"zero_optimization": {}}, workers=workers, base_dropout=True,
            observer=Observer(),
        )  # fmt: skip
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        clock, check = StepClock(device), LossCheck(workers)
        with adaptation, Launches() as launches:
            model.train()
            with made_ahead(lambda r: stages.micro_batches(split, r), batches, device) as made:
                for step, batch in enumerate(batches):
                    with clock.step():
                        loss_sum += stages.step(step, split, batch, next(made))
            check.look(loss_sum, len(batches))
        return {"seconds": clock.seconds(), "launches": launches.number, "waits": _Event.waits}


class _PlainEngine:
    """What the loop asks of DeepSpeed's engine, which itself cannot run on fake tensors."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self.set_gradient_accumulation_boundary = lambda is_boundary: None

    @classmethod
    def initialized(cls, model: Any, optimizer: Any, **_: Any) -> tuple[Any, ...]:
        return (cls(model, optimizer),)

    def __call__(self, *batches: Any) -> Any:
        return self.module(*batches)

    def train(self) -> None:
        self.module.train()

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            trained = [each for each in group["params"] if each.grad is not None]
            with torch.no_grad():
                torch._foreach_add_(trained, [each.grad for each in trained], alpha=-group["lr"])
        self.optimizer.zero_grad()
        vars(self.optimizer)["_opt_called"] = True  # its schedule asks for it


class _Event:
    """An event of a device that has not come to it before it is waited for; a step takes 2 ms."""

    waits = 0

    def __init__(self, enable_timing: bool = False) -> None:
        self._came = False

    def record(self) -> None:
        return

    def query(self) -> bool:
        return self._came

    def synchronize(self) -> None:
        self._came = True
        _Event.waits += 1

    def elapsed_time(self, end: _Event) -> float:
        assert end._came
        return 2.0
