"""What is counted on fake tensors is what torch's profiler sees allocated in a real run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from trainables.adaptations.blocks import BlockAdaptation, plain_lora
from trainables.bases.structure import resolve_targets
from trainables.footprint import counted
from trainables.footprint.activations import Counting
from trainables.footprint.footprint import Run, footprint, trained_bytes
from trainables.footprint.passes import Measured, Rows
from trainables.layers.dropout import quick_dropout
from trainables.layers.recomputed import recomputed
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.split import Pass, outputs_of
from trainables.training.settings import TrainSettings

GIB = 2**30


def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(outputs.float(), labels, reduction="sum")


def language_rows(rows: int, tokens: int) -> Pass:
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, -2:] = 0  # rows of one length would have no mask, which fake tensors do not tell
    return {
        "attention_mask": mask,
        "input_ids": torch.zeros(rows, tokens, dtype=torch.long),
        "logits_to_keep": torch.arange(tokens - 1),
        "labels": torch.zeros(rows * (tokens - 1), dtype=torch.long),
        "places": torch.arange(rows * (tokens - 1)),
    }


def text_rows(rows: int, tokens: int) -> Pass:
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, -2:] = 0
    return {
        "input_ids": torch.zeros(rows, tokens, dtype=torch.long),
        "attention_mask": mask,
        "labels": torch.zeros(rows, dtype=torch.long),
    }


def llama(layers: int = 3, **shapes: Any) -> Any:
    config = transformers.LlamaConfig(
        **{
            "num_hidden_layers": layers, "hidden_size": 64, "intermediate_size": 160,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 600, **shapes,
        }
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def bert() -> Any:
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=160,
        vocab_size=100,
    )  # fmt: skip
    return transformers.AutoModelForSequenceClassification.from_config(config)


CASES: dict[str, tuple[Callable[[], Any], Pass, tuple[str, ...]]] = {
    "llama": (llama, language_rows(6, 40), ()),
    "bert": (bert, text_rows(6, 40), ("classifier",)),
}


def counting(made: Callable[[], Any], head: tuple[str, ...] = (), **how: Any) -> Counting:
    with torch.device("meta"):
        model = made()
    targets = resolve_targets(model, head, ("all-linear",))
    return Counting(model, head, targets, loss, **{"dtype": torch.float32, "on_gpu": False, **how})


def most_allocated(run: Callable[[], None]) -> int:
    """Bytes at most, as torch's own profiler of the CPU's allocator has them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    now = most = 0
    events: Any = seen.profiler
    for event in events.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_training_is_counted_as_it_is(case: str, recompute: bool) -> None:
    made, batch, head = CASES[case]
    told = counting(made, head).training(
        [batch], rank=4, dropout=0.05, base_dropout=True, recompute=recompute
    )
    torch.manual_seed(0)
    model = made().requires_grad_(False)
    targets = resolve_targets(model, head, ("all-linear",))
    heads = {name: model.get_submodule(name) for name in head}
    with BlockAdaptation(
        model, plain_lora(targets, 4, 4.0), seed=0, dropout=0.05, head=heads
    ) as adaptation:
        parameters = adaptation.begin_stage(0, 1).requires_grad_(True).train()
        model.train()
        for each in parameters.parameters():
            each.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))

        def step() -> None:
            given = {key: value.clone() for key, value in batch.items()}
            labels = given.pop("labels")
            with quick_dropout(model), recomputed(model, recompute):
                loss(parameters(given), labels).backward()

        assert told == pytest.approx(most_allocated(step), rel=0.04)


@pytest.mark.parametrize("case", CASES)
def test_the_static_pass_and_measuring_are_counted_as_they_are(case: str) -> None:
    made, batch, head = CASES[case]
    counted_base = counting(made, head)
    static = counted_base.static_pass([batch], base_dropout=False, recompute=False)
    measured = counted_base.measuring(batch)
    model: nn.Module = made().requires_grad_(False).eval()
    targets = resolve_targets(model, head, ("all-linear",))

    def forward() -> torch.Tensor:
        given = {key: value.clone() for key, value in batch.items()}
        labels = given.pop("labels")
        return loss(outputs_of(model, given), labels)

    with torch.no_grad():
        assert measured == pytest.approx(most_allocated(lambda: (forward(), None)[1]), rel=0.04)
    for target in targets:
        weight = model.get_parameter(f"{target.names[0]}.weight").requires_grad_(True)
        weight.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    assert static == pytest.approx(most_allocated(lambda: forward().backward()), rel=0.04)


def test_many_layers_are_told_by_few(monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> tuple[int, ...]:
        base, batch = counting(lambda: llama(layers=9)), [language_rows(6, 40)]
        train = base.training(batch, rank=4, dropout=0.0, base_dropout=True, recompute=True)
        return train, base.static_pass(batch, base_dropout=False, recompute=False)

    few = told()
    monkeypatch.setattr(counted, "FEW_LAYERS", 9)
    assert few == told()


SEVEN = {
    "layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000,
}  # fmt: skip
SEVENTY = {
    "layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
    "num_key_value_heads": 8, "vocab_size": 32000,
}  # fmt: skip


@pytest.mark.parametrize(("shapes", "parameters"), [(SEVEN, 6.738e9), (SEVENTY, 68.98e9)])
def test_a_large_base_is_planned_from_its_config(shapes: dict[str, int], parameters: float) -> None:
    batch = language_rows(16, 128)
    base = counting(lambda: llama(**shapes), dtype=torch.bfloat16, on_gpu=True)
    rows = Rows([batch], [batch], [batch], [Measured(batch)])
    run = Run(TrainSettings(), ProfileSettings(), largest_plan=10**8)
    kept, again = (footprint(base, rows, run, recompute=each) for each in (False, True))
    assert kept.base == pytest.approx(2 * parameters, rel=1e-3)
    assert kept.accumulators == pytest.approx(4 * parameters, rel=0.05)
    assert kept.adapters == trained_bytes(10**8, torch.bfloat16, 1, {}) == 24 * 10**8
    assert again.training < kept.training / 5
    assert kept.measuring < 2 * GIB


def test_a_layer_that_is_computed_again_keeps_what_it_reads() -> None:
    batch, tokens = [language_rows(16, 128)], 16 * 128
    fewer, more = (
        counting(lambda: llama(**{**SEVEN, "layers": layers}), dtype=torch.bfloat16, on_gpu=True)  # noqa: B023
        .training(batch, rank=8, dropout=0.05, base_dropout=True, recompute=True)
        for layers in (2, 3)
    )  # fmt: skip
    assert more - fewer == tokens * 4096 * 2  # a vector of its width a token: 8 KiB
