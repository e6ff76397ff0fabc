"""What is run on the fake device: each function is a case, its arguments and result are JSON."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.fake_cuda.device import Launches, fake_cuda, llama


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
