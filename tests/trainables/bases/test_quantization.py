"""A base in 4 bits: on a CPU where bitsandbytes is installed, else what is asked of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from spaces.errors import BaseModelError
from spaces.methods.registry import make_plan, parse_choice
from tests.trainables.conftest import VOCABULARY, tiny_task
from trainables.adaptations.registry import adaptation_for
from trainables.bases import loading
from trainables.bases.loading import Base, fresh_head, load_base
from trainables.bases.quantization import is_packed, unpacked
from trainables.bases.structure import base_size, meta_base, resolve_targets
from trainables.bases.whole_weights import weight_of_layer, whole_weights
from trainables.engine.workers import Workers
from trainables.profiling.profile import compute_profile
from trainables.profiling.settings import ProfileSettings
from trainables.training.finetune import finetune
from trainables.training.settings import TrainSettings

MISSING = importlib.util.find_spec("bitsandbytes") is None
PATTERNS = ("q_proj", "down_proj")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=32, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return f"path:{tmp_path}"


@pytest.mark.skipif(not MISSING, reason="bitsandbytes is installed")
def test_without_the_package_it_is_said_how_to_install_it(uri: str) -> None:
    with pytest.raises(BaseModelError, match=r"pip install 'ranksweep\[nf4\]'"):
        load_base(uri, "classification", 2, quantization="nf4")


@pytest.mark.parametrize(
    ("head", "whole"), [("classification", ["score"]), ("causal", ["lm_head"])]
)
def test_all_but_the_heads_is_quantized(
    head: str, whole: list[str], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[torch.dtype, list[str]]] = []

    class AskedError(Exception):
        pass

    def quantizing(dtype: torch.dtype, whole: list[str]) -> None:
        asked.append((dtype, whole))
        raise AskedError

    monkeypatch.setattr(loading, "check_installed", lambda _: None)
    monkeypatch.setattr(loading, "quantizing", quantizing)
    with pytest.raises(AskedError):
        load_base(uri, head, 2, torch.bfloat16, quantization="nf4")
    assert asked == [(torch.bfloat16, whole)]


def test_a_plain_base_is_left_alone_by_whole_weights() -> None:
    layer = nn.Linear(3, 2)
    model, weight = nn.Sequential(layer, nn.ReLU()), layer.weight
    with whole_weights(model, ["0"]):
        assert layer.weight is weight
        assert "forward" not in vars(layer)
    assert weight_of_layer(model, "0").data_ptr() == weight.data_ptr()


# -- with the package ------------------------------------------------------------------------------

packed = pytest.mark.skipif(MISSING, reason="needs bitsandbytes")


@pytest.fixture
def base(uri: str) -> Base:
    loaded = load_base(uri, "classification", 2, torch.float32, quantization="nf4")
    for module in loaded.model.modules():
        # Some CPUs, and they alone, else pack a weight anew where no gradient is asked for.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return loaded


@packed
def test_targets_are_those_that_the_config_tells(base: Base, uri: str) -> None:
    assert type(base.model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    assert type(base.model.score) is nn.Linear
    found = resolve_targets(base.model, base.head_modules, PATTERNS)
    assert found == meta_base(uri, "classification", 2, PATTERNS).targets


@packed
def test_weights_unpack_for_a_while_and_compute_the_same(base: Base) -> None:
    name = "model.layers.0.self_attn.q_proj"
    layer: Any = base.model.get_submodule(name)
    own, x = layer.weight, torch.randn(3, 5, 64)
    y = layer(x)
    with whole_weights(base.model, [name]):
        assert layer.weight.shape == (64, 64)
        torch.testing.assert_close(layer(x), y, rtol=1e-5, atol=1e-5)
    assert layer.weight is own
    assert is_packed(own)
    assert torch.equal(layer(x), y)
    assert torch.equal(weight_of_layer(base.model, name), unpacked(own))


@packed
def test_a_profile_of_packed_weights_is_that_of_their_values(base: Base, alone: Workers) -> None:
    settings = ProfileSettings(
        target_modules=PATTERNS, rank=2, epochs=1, score_every=2, calibration_batches=2,
        batch_size=5, top_percent=(5,), learning_rate=5e-3, seed=4,
    )  # fmt: skip
    plain = transformers.AutoModelForSequenceClassification.from_config(
        base.model.config, dtype=torch.float32
    )
    plain.requires_grad_(False).eval()
    values = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            values[name].copy_(unpacked(parameter) if is_packed(parameter) else parameter)
    targets = resolve_targets(base.model, base.head_modules, PATTERNS)
    one, other = (
        compute_profile(model, fresh_head(base, 1), targets, tiny_task(), settings, workers=alone)
        for model in (base.model, plain)
    )
    for module, statistics in one.modules.items():
        for field, found in vars(statistics).items():
            wanted = np.asarray(vars(other.modules[module])[field], dtype=np.float64)
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1, err_msg=field)


@packed
@pytest.mark.parametrize(
    "choice",
    [
        {"method": "lora"}, {"method": "rslora"}, {"method": "adalora"}, {"method": "ia3"},
        {"method": "vera"}, {"method": "lora_xs"}, {"method": "milora"}, {"method": "pissa"},
        {"method": "lora_dash"}, {"method": "dylora"}, {"method": "sora"},
        {"method": "bottleneck"}, {"method": "eva", "rank": 2}, {"method": "para"},
    ],
    ids=lambda choice: choice["method"],
)  # fmt: skip
def test_a_trial_trains_on_packed_weights(choice: dict, base: Base, alone: Workers) -> None:
    targets = resolve_targets(base.model, base.head_modules, PATTERNS)
    plan = make_plan(parse_choice(choice), targets, None, base_size(base.model, ()))
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    settings = TrainSettings(epochs=2, batch_size=6)
    head = fresh_head(base, 1)
    with adaptation_for(plan, base.model, seed=1, head=head) as adaptation:
        report = finetune(
            base.model, adaptation, tiny_task(), settings, learning_rate=5e-3, seed=1,
            workers=alone,
        )  # fmt: skip
    assert np.isfinite(report["train_loss"])
    assert adaptation.weights()
    after = base.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
