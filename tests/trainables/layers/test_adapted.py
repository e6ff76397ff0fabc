"""Adapted layers compute what each would by itself, whoever reads what and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from tests.trainables.conftest import tiny_bert
from trainables.layers import low_rank
from trainables.layers.adapted import update_layers
from trainables.layers.dropout import DrawnAgain
from trainables.layers.low_rank import LowRank

SIZE = 6
LAYERS = ("q_proj", "k_proj", "v_proj")
Apply = Callable[[str, torch.Tensor], torch.Tensor]


def in_turn(layer: Apply, x: torch.Tensor) -> list[torch.Tensor]:
    return [layer(name, x) for name in LAYERS]


def in_another_order(layer: Apply, x: torch.Tensor) -> list[torch.Tensor]:
    return [layer(name, x) for name in ("k_proj", "q_proj", "v_proj")]


def of_another_input(layer: Apply, x: torch.Tensor) -> list[torch.Tensor]:
    other = x.tanh()
    return [layer("q_proj", x), layer("k_proj", other), layer("v_proj", other)]


def one_after_another(layer: Apply, x: torch.Tensor) -> list[torch.Tensor]:
    return [layer("v_proj", layer("k_proj", layer("q_proj", x)))]


def twice(layer: Apply, x: torch.Tensor) -> list[torch.Tensor]:
    return [layer(name, x) for name in (*LAYERS, *LAYERS, "q_proj", "q_proj")]


def one_left_out(layer: Apply, x: torch.Tensor) -> list[torch.Tensor]:
    return [layer("q_proj", x), layer("v_proj", x)]


def one_unused(layer: Apply, x: torch.Tensor) -> list[torch.Tensor]:
    q, _, v = in_turn(layer, x)
    return [q, v]


def last_unused(layer: Apply, x: torch.Tensor) -> list[torch.Tensor]:
    return in_turn(layer, x)[:2]


def changed_in_between(layer: Apply, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        changed = x * 1
        first = layer("q_proj", changed)
        second = layer("k_proj", changed.add_(1))
    return [first, second, layer("v_proj", x)]


def without_gradients_at_first(layer: Apply, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        first = layer("q_proj", x)
    return [first, layer("k_proj", x), layer("v_proj", x)]


def in_rows(layer: Apply, x: torch.Tensor) -> list[torch.Tensor]:
    return [layer(name, x.transpose(0, 1)) for name in LAYERS] + [layer("q_proj", x[0])]


FORWARDS = (
    in_turn, in_another_order, of_another_input, one_after_another, twice, one_left_out, one_unused,
    last_unused, changed_in_between, without_gradients_at_first, in_rows,
)  # fmt: skip


class Reading(nn.Module):
    """Three layers of one size, the second of GPT-2's kind."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(SIZE, SIZE), Conv1D(SIZE, SIZE), nn.Linear(SIZE, SIZE, bias=False),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        for parameter in self.double().requires_grad_(False).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def layer(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.get_submodule(name)(x)
        return y


def drawn_updates(dropout: float = 0.0) -> dict[str, LowRank]:
    """An update of each layer, of different ranks and scales."""
    generator = torch.Generator().manual_seed(1)
    updates = {}
    for number, name in enumerate(LAYERS, 1):
        A, B = (
            torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_(True)
            for size in ((number, SIZE), (SIZE, number))
        )
        updates[name] = LowRank(A, B, float(number), dropout)
    return updates


def attach(model: nn.Module, updates: dict[str, LowRank], prefix: str = "") -> list[Any]:
    def given(update: LowRank) -> Callable[[], LowRank]:
        return lambda: update

    return update_layers(model, [((prefix + n,), given(u)) for n, u in updates.items()])


@pytest.mark.parametrize("x_trains", [True, False])
@pytest.mark.parametrize("forward", FORWARDS)
def test_whoever_reads_what_the_layers_are_the_dense_ones(
    forward: Callable[[Apply, torch.Tensor], list[torch.Tensor]], x_trains: bool
) -> None:
    model, updates = Reading(), drawn_updates()

    def dense(name: str, x: torch.Tensor) -> torch.Tensor:
        layer: Any = model.get_submodule(name)
        A, B, scale, *_ = updates[name]
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        return linear(x, weight + scale * B @ A, layer.bias)

    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, SIZE, generator=generator, dtype=torch.float64, requires_grad=x_trains)
    factors = [factor for update in updates.values() for factor in (update.A, update.B)]
    asked = [x, *factors] if x_trains else factors
    expected = forward(dense, x)
    oracles = torch.autograd.grad(sum(y.square().sum() for y in expected), asked, allow_unused=True)  # type: ignore[arg-type]
    attach(model, updates)
    for _ in range(2):
        values = forward(model.layer, x)
        found = torch.autograd.grad(sum(y.square().sum() for y in values), asked, allow_unused=True)  # type: ignore[arg-type]
        for one, other in zip((*values, *found), (*expected, *oracles), strict=True):
            if other is None:
                assert one is None or not one.any()
            else:
                torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    with torch.inference_mode():
        for one, other in zip(forward(model.layer, x * 1), expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("way", ["by gaps", "drawn again"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_drop_the_same_entries_again(
    reentrant: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "drawn again":
        monkeypatch.setattr(low_rank, "input_dropout", lambda _device, p: DrawnAgain(p))
    model, updates = Reading(), drawn_updates(dropout=0.3)
    attach(model, updates)
    x = torch.randn(2, 5, SIZE, dtype=torch.float64, requires_grad=True)
    asked = [x, *(factor for update in updates.values() for factor in (update.A, update.B))]

    def block(read: torch.Tensor) -> torch.Tensor:
        q, k, v = in_turn(model.layer, read.tanh())
        return (q * k).softmax(-1) * v + model.layer("q_proj", v)

    def gradients(layers: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        torch.manual_seed(5)
        layers(layers(x)).square().sum().backward()
        found = [each.grad.clone() for each in asked if each.grad is not None]
        for each in asked:
            each.grad = None
        return found

    expected = gradients(block)
    found = gradients(lambda read: checkpoint(block, read, use_reentrant=reentrant))
    assert len(found) == len(expected) == len(asked)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_pass_does_not_read_on_where_another_has_stopped() -> None:
    class Base(Reading):
        def forward(self, x: torch.Tensor, *names: str) -> list[torch.Tensor]:
            return [self.layer(name, x) for name in names]

    model, updates = Base(), drawn_updates()
    attach(model, updates)
    x = torch.randn(4, SIZE, dtype=torch.float64)
    with torch.no_grad():
        model(x, "q_proj")
        updates["k_proj"].A.zero_()
        (value,) = model(x, "k_proj")
    torch.testing.assert_close(value, x @ model.k_proj.weight + model.k_proj.bias)


def test_a_bases_layers_are_as_they_were_once_the_updates_are_gone() -> None:
    model = tiny_bert()
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    handles = update_layers(model, [((name,), lambda: None) for name in names])
    assert all("forward" in vars(model.get_submodule(name)) for name in names)
    for handle in handles:
        handle.remove()
    assert not any("forward" in vars(model.get_submodule(name)) for name in names)
