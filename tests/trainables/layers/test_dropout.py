"""Dropout by the gaps between dropped entries drops as dropout does."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

from tests.trainables.conftest import tiny_bert
from trainables.layers.dropout import dropped_entries, quick_dropout


@pytest.mark.parametrize("probability", [1e-4, 0.01, 0.05, 0.1, 0.25, 0.3, 0.9])
def test_every_entry_is_dropped_with_the_same_probability_on_its_own(probability: float) -> None:
    torch.manual_seed(0)
    number, times = 2000, 400
    counts = torch.zeros(number)
    lag = first = both = 0
    for _ in range(times):
        entries = dropped_entries(number, probability)
        assert torch.equal(entries, torch.unique(entries))
        dropped = torch.zeros(number, dtype=torch.bool)
        dropped[entries] = True
        counts += dropped
        lag += int((dropped[1:] & dropped[:-1]).sum())
        first += int(dropped[0])
        both += int(dropped[0] & dropped[-1])
    draws = number * times

    def likely(count: int, of: int, share: float) -> bool:
        return bool(stats.binomtest(count, of, share).pvalue > 1e-4)

    assert likely(int(counts.sum()), draws, probability)
    assert likely(lag, draws - times, probability**2)
    assert likely(first, times, probability)
    assert likely(both, times, probability**2)
    # how often each place was dropped is binomial: its variance over places tells
    spread = float(counts.var()) / (times * probability * (1 - probability))
    assert abs(spread - 1) < 6 * math.sqrt(2 / number) + 3 * math.sqrt(
        1 / (number * times * probability)
    )


@pytest.mark.parametrize("number", [0, 1, 2, 17])
@pytest.mark.parametrize("probability", [1e-6, 0.05, 0.25, 0.99])
def test_few_entries_are_drawn_too(number: int, probability: float) -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        entries = dropped_entries(number, probability)
        assert entries.dtype == torch.long
        assert all(0 <= int(entry) < number for entry in entries)


def test_the_draw_follows_torchs_seed() -> None:
    torch.manual_seed(5)
    first = dropped_entries(10_000, 0.05)
    second = dropped_entries(10_000, 0.05)
    torch.manual_seed(5)
    assert torch.equal(dropped_entries(10_000, 0.05), first)
    assert not torch.equal(first, second)


def test_a_layer_drops_what_is_drawn_and_scales_the_rest_forward_and_backward() -> None:
    x = torch.randn(3, 40, 7, dtype=torch.float64).transpose(0, 1).requires_grad_(True)
    layer = nn.Dropout(0.2)
    torch.manual_seed(4)
    mask = torch.full((x.numel(),), 1.25, dtype=torch.float64)
    mask[dropped_entries(x.numel(), 0.2)] = 0
    mask = mask.view(x.shape)
    torch.manual_seed(4)
    with quick_dropout(layer):
        y = layer(x)
    assert 0 < int((mask == 0).sum()) < x.numel()
    torch.testing.assert_close(y, x * mask)
    weights = torch.randn_like(y)
    (found,) = torch.autograd.grad((y * weights).sum(), x)
    torch.testing.assert_close(found, weights * mask)


def test_layers_drop_only_in_training_and_are_as_they_were_afterwards() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.9), nn.Dropout(0.1, inplace=True))
    x = torch.ones(50, 50)
    with quick_dropout(model):
        assert "forward" in vars(model[0])
        others = list(model)[1:]  # not faster, not ours
        assert not any("forward" in vars(layer) for layer in others)
        assert torch.equal(model.eval()(x), x)
    assert not any("forward" in vars(layer) for layer in model)


def test_a_bases_dropout_layers_drop_as_often_as_they_say() -> None:
    model = tiny_bert().float().train()
    layers = [layer for layer in model.modules() if type(layer) is nn.Dropout]
    for layer in layers:
        layer.p = 0.1
    kept, seen = 0, 0

    def count(
        _layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        nonlocal kept, seen
        kept, seen = kept + int((output != 0).sum()), seen + int((inputs[0] != 0).sum())

    handles = [layer.register_forward_hook(count) for layer in layers]
    torch.manual_seed(0)
    with quick_dropout(model):
        for _ in range(20):
            model(input_ids=torch.ones(16, 12, dtype=torch.long))
    for handle in handles:
        handle.remove()
    assert len(layers) > 2
    assert stats.binomtest(seen - kept, seen, 0.1).pvalue > 1e-4
