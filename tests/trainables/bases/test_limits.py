"""What a base cannot take is found before anything is started; the oracle is the model itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from spaces.errors import BaseModelError
from tests.trainables.bases.test_heads import SEQ2SEQ, SHAPE, TEXT
from trainables.bases.limits import check_pixels, check_weights, is_finite, text_limits
from trainables.bases.loading import load_base
from trainables.bases.structure import meta_base, meta_linear_layers

DECODER = {**TEXT, "pad_token_id": 0, "eos_token_id": 2}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20}
TABLES: dict[str, tuple[Any, int]] = {
    "bert": (transformers.BertConfig(**TEXT), 20),
    "roberta": (transformers.RobertaConfig(**TEXT), 18),
    "roberta, padding 0": (transformers.RobertaConfig(**TEXT, pad_token_id=0), 19),
    "xlm-roberta": (transformers.XLMRobertaConfig(**TEXT), 18),
    "camembert": (transformers.CamembertConfig(**TEXT), 18),
    "mpnet": (transformers.MPNetConfig(**TEXT), 18),
    "longformer": (transformers.LongformerConfig(**TEXT, attention_window=4), 18),
    "esm": (transformers.EsmConfig(**TEXT, pad_token_id=1, mask_token_id=4), 18),
    "distilbert": (
        transformers.DistilBertConfig(
            vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=20
        ),
        20,
    ),
    "nystromformer": (
        transformers.NystromformerConfig(**TEXT, segment_means_seq_len=20, num_landmarks=20),
        20,
    ),
    "bart": (transformers.BartConfig(**SEQ2SEQ), 20),
    "opt": (
        transformers.OPTConfig(
            **SHAPE, vocab_size=40, ffn_dim=24, max_position_embeddings=20, word_embed_proj_dim=16
        ),
        20,
    ),
    "gpt2": (transformers.GPT2Config(**GPT2, pad_token_id=0), 20),
}


def saved(folder: Path, config: Any) -> str:
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return f"path:{folder}"


@pytest.mark.parametrize("family", TABLES)
def test_a_row_of_the_longest_length_is_taken_and_a_longer_one_is_not(
    family: str, tmp_path: Path
) -> None:
    config, longest = TABLES[family]
    limits = text_limits(saved(tmp_path, config), "classification")
    assert (limits.tokens, limits.vocabulary) == (longest, 40)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()

    def take(tokens: int) -> None:
        ids = torch.full((1, tokens), 5)
        ids[:, -1] = 2
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))

    take(longest)
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        take(longest + 1)


@pytest.mark.parametrize(
    "config",
    [
        transformers.XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=24),
        transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1),
    ],
    ids=lambda config: config.model_type,
)
def test_relative_positions_have_no_end(config: Any, tmp_path: Path) -> None:
    assert text_limits(saved(tmp_path, config), "classification").tokens is None


# -- weights ---------------------------------------------------------------------------------------


def spoilt(folder: Path, name: str, value: float, **changes: Any) -> str:
    """A BERT with one value of one tensor replaced."""
    uri = saved(folder, transformers.BertConfig(**TEXT, **changes))
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, weights, metadata={"format": "pt"})
    return uri


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_an_infinity_in_16_bits_is_seen_whatever_it_is_loaded_in(
    stored: torch.dtype, value: float
) -> None:
    values = torch.tensor([1.0, value], dtype=stored)
    assert not any(is_finite(values, dtype) for dtype in (torch.float32, torch.bfloat16, stored))
    assert is_finite(values[:1], torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e5])
def test_a_value_that_is_no_number_is_named_before_and_at_loading(
    value: float, tmp_path: Path
) -> None:
    name = "encoder.layer.1.output.dense.weight"
    uri = spoilt(tmp_path, name, value)
    wide = value == 1e5  # a number in float32
    for precision in ("float16",) if wide else ("float32", "bfloat16", "float16"):
        dtype = getattr(torch, precision)
        for act in (
            lambda precision=precision: check_weights(uri, "classification", 2, precision),
            lambda dtype=dtype: load_base(uri, "classification", 2, dtype),
        ):
            with pytest.raises(
                BaseModelError, match=f"{name} that is no finite number in {precision}"
            ):
                act()
    if wide:
        check_weights(uri, "classification", 2, "float32")
        load_base(uri, "classification", 2)


def test_running_statistics_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    uri, weights = saved(tmp_path, config), tmp_path / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name][0] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    for act in (
        lambda: check_weights(uri, "image_classification", 2, "float32"),
        lambda: load_base(uri, "image_classification", 2),
    ):
        with pytest.raises(BaseModelError, match=f"{name} that is no finite number"):
            act()


def test_a_tensor_that_is_no_part_of_the_model_may_hold_anything(tmp_path: Path) -> None:
    uri = saved(tmp_path, transformers.BertConfig(**TEXT))
    weights = tmp_path / "model.safetensors"
    more = {
        "cls.predictions.bias": torch.tensor([float("nan")]),
        "mask": torch.tensor([-torch.inf]),
    }
    save_file(load_file(weights) | more, weights, metadata={"format": "pt"})
    check_weights(uri, "classification", 2, "float32")
    load_base(uri, "classification", 2)


# -- what takes no adapter -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "fp8"}},
        {"compression_config": {"format": "pack-quantized"}},
    ],
    ids=lambda wanted: str(next(iter(wanted.values()))),
)
def test_a_quantized_base_is_refused(wanted: dict[str, Any], tmp_path: Path) -> None:
    uri = saved(tmp_path, transformers.LlamaConfig(**DECODER))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wanted))
    for act in (
        lambda: load_base(uri, "classification", 2),
        lambda: meta_base(uri, "classification", 2, ["q_proj"]),
        lambda: text_limits(uri, "classification"),
    ):
        with pytest.raises(BaseModelError, match=r"is quantized .*use the model that it was"):
            act()
    path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(wanted)))
    assert meta_base(uri, "classification", 2, ["q_proj"]).targets


MOE = {**DECODER, "num_key_value_heads": 1, "head_dim": 8, "moe_intermediate_size": 8}
EXPERTS: dict[str, tuple[Any, str, str]] = {
    "mixtral": (
        transformers.MixtralConfig(**DECODER, num_key_value_heads=1, num_local_experts=4),
        "experts.gate_up_proj",
        "k_proj, o_proj, q_proj, v_proj",
    ),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig(**MOE, num_experts=4, num_experts_per_tok=2),
        "experts.gate_up_proj",
        "k_proj, o_proj, q_proj, v_proj",
    ),
    "gpt_oss": (
        transformers.GptOssConfig(
            **DECODER, num_key_value_heads=1, head_dim=8, num_local_experts=4
        ),
        "experts.gate_up_proj",
        "k_proj, o_proj, q_proj, v_proj",
    ),
    "jetmoe": (  # also the attention's
        transformers.JetMoeConfig(
            **{key: value for key, value in DECODER.items() if key != "num_attention_heads"},
            num_key_value_heads=2, kv_channels=8, num_local_experts=4,
        ),
        "input_linear.weight",
        "kv_proj",
    ),
    "deepseek_v2": (  # experts shared by all tokens are linear layers
        transformers.DeepseekV2Config(
            **DECODER, num_key_value_heads=2, moe_intermediate_size=8, n_routed_experts=4,
            n_shared_experts=1, num_experts_per_tok=2, kv_lora_rank=8, q_lora_rank=8,
            qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, first_k_dense_replace=1,
        ),
        "experts.gate_up_proj",
        "gate_proj",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_in_one_tensor_are_named_and_not_passed_over(family: str, tmp_path: Path) -> None:
    config, tensor, usable = EXPERTS[family]
    config.save_pretrained(tmp_path)
    uri = f"path:{tmp_path}"
    with pytest.raises(BaseModelError, match="all experts in one tensor") as caught:
        meta_base(uri, "classification", 2, ["all-linear"])
    said = str(caught.value)
    assert tensor in said
    assert usable in said
    suffix = usable.split(", ")[0]
    by_name = meta_base(uri, "classification", 2, [suffix]).targets
    assert by_name
    assert {target.name for target in by_name} <= {
        target.name for target in meta_linear_layers(uri, "classification", 2)
    }


def test_a_suffix_of_experts_names_them_too(tmp_path: Path) -> None:
    EXPERTS["deepseek_v2"][0].save_pretrained(tmp_path)
    uri = f"path:{tmp_path}"
    with pytest.raises(BaseModelError, match=r"'down_proj' takes in .*mlp.experts.down_proj"):
        meta_base(uri, "classification", 2, ["down_proj"])
    named = meta_base(uri, "classification", 2, ["shared_experts.down_proj"]).targets
    assert [target.name for target in named] == ["model.layers.1.mlp.shared_experts.down_proj"]


# -- models of texts and pictures ------------------------------------------------------------------

VISION = {**SHAPE, "intermediate_size": 24, "image_size": 8, "patch_size": 4}


def gemma3() -> Any:
    return transformers.Gemma3Config(
        text_config={**DECODER, "num_key_value_heads": 1, "head_dim": 8},
        vision_config=VISION, mm_tokens_per_image=1,
    )  # fmt: skip


def test_a_text_adapts_what_texts_go_through(tmp_path: Path) -> None:
    """Every module that is adapted has a gradient on a batch of texts, and no other has one."""
    uri = saved(tmp_path, gemma3())
    base = load_base(uri, "classification", 2)
    targets = meta_base(uri, "classification", 2, ["all-linear"]).targets
    base.model.requires_grad_(True)
    ids = torch.randint(5, 40, (2, 6))
    base.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    reached = {
        name
        for name, module in base.model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.weight.grad is not None
    }
    assert {target.name for target in targets} == reached - {"score"}
    assert not any("vision" in name for name in reached)
    with pytest.raises(
        BaseModelError, match=r"names model.vision_tower.* which a text does not go"
    ):
        meta_base(uri, "classification", 2, ["fc1"])
    assert text_limits(uri, "classification").tokens == 20


def test_a_config_alone_tells_what_a_classifier_of_pictures_takes_of_a_larger_model(
    tmp_path: Path,
) -> None:
    """CLIP ViT-B/32: rank 8 on all linear layers of its vision tower is 1,327,104 parameters."""
    config = transformers.CLIPConfig()
    config.save_pretrained(tmp_path / "alone")
    targets = meta_base(
        f"path:{tmp_path / 'alone'}", "image_classification", 2, ["all-linear"]
    ).targets
    assert sum(8 * sum(target.shape) for target in targets) == 1_327_104
    assert all(target.name.startswith("vision_model.") for target in targets)

    for make in (transformers.CLIPConfig, transformers.SiglipConfig):
        folder = tmp_path / make.model_type
        uri = saved(
            folder,
            make(vision_config=VISION, text_config={**TEXT, "bos_token_id": 0, "eos_token_id": 2}),
        )
        whole = meta_base(uri, "image_classification", 2, ["all-linear"]).targets
        bare = tmp_path / f"{make.model_type}-config"
        bare.mkdir()
        shutil.copy(folder / "config.json", bare)
        assert meta_base(f"path:{bare}", "image_classification", 2, ["all-linear"]).targets == whole


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_packed_weights_are_refused_though_the_config_says_nothing(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    uri = saved(tmp_path, transformers.BertConfig(**TEXT))
    weights = tmp_path / "model.safetensors"
    packed = {n: t.to(dtype) if t.ndim == 2 else t for n, t in load_file(weights).items()}
    save_file(packed, weights, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"is quantized \(.*weight is of (I8|F8_E4M3)\)"):
        check_weights(uri, "classification", 2, "float32")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "nope"}, "cannot be built from its config .*nope"),
        ({"pad_token_id": 500}, "cannot be built from its config .*Padding_idx"),
        ({"attn_implementation": "flash_attention_2"}, "needs what is not installed"),
        ({"transformers_weights": "other.safetensors"}, "takes its weights from 'other.safe"),
    ],
)
def test_a_config_that_makes_no_model_here_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    uri = saved(tmp_path, transformers.BertConfig(**TEXT))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BaseModelError, match=said) as caught:
        meta_base(uri, "classification", 2, ["query"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_pixels_of_a_size_that_the_model_takes_pass_and_others_do_not(
    kind: str, tmp_path: Path
) -> None:
    configs: dict[str, Any] = {
        "vit": transformers.ViTConfig(**VISION),
        "resnet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]),
    }
    uri = saved(tmp_path, configs[kind])
    model = transformers.AutoModelForImageClassification.from_config(configs[kind]).eval()
    for shape in ((3, 8, 8), (3, 16, 16), (3, 12, 8), (1, 8, 8)):
        try:
            with torch.no_grad():
                model(pixel_values=torch.zeros(1, *shape))
        except (ValueError, RuntimeError):
            with pytest.raises(BaseModelError, match=f"cannot take the {shape[1]} x {shape[2]}"):
                check_pixels(uri, "image_classification", shape)
        else:
            check_pixels(uri, "image_classification", shape)
