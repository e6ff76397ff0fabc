"""A base's own head is taken where its classes are the task's; else a fresh one is drawn.

The oracle is transformers: what the checkpoint's own classifier says of a row, by the names of its
classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from spaces.errors import BaseModelError
from trainables.bases.heads import matched
from trainables.bases.loading import Base, fresh_head, load_base
from trainables.bases.structure import base_size, meta_base, resolve_targets

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SHAPE, "vocab_size": 40, "intermediate_size": 24, "max_position_embeddings": 20}
SEQ2SEQ = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "max_position_embeddings": 20, "eos_token_id": 2,
}  # fmt: skip
PICTURES = {**SHAPE, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
THEIRS = (" Neutral", "POSITIVE", "negative")
OURS = ("negative", "neutral", "positive")

FAMILIES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "bert": (transformers.BertConfig(**TEXT), ("classifier",)),
    "roberta": (transformers.RobertaConfig(**TEXT), ("classifier",)),
    "distilbert": (
        transformers.DistilBertConfig(
            vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=20
        ),
        ("pre_classifier", "classifier"),
    ),
    "electra": (transformers.ElectraConfig(**TEXT, embedding_size=16), ("classifier",)),
    "deberta-v2": (transformers.DebertaV2Config(**TEXT), ("pooler", "classifier")),
    "modernbert": (
        transformers.ModernBertConfig(**TEXT, pad_token_id=0, global_attn_every_n_layers=1),
        ("head", "classifier"),
    ),
    "xlnet": (
        transformers.XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=24),
        ("sequence_summary", "logits_proj"),
    ),
    "bart": (transformers.BartConfig(**SEQ2SEQ), ("classification_head",)),
    "t5": (
        transformers.T5Config(
            vocab_size=40,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=1,
            num_heads=2,
            eos_token_id=2,
            decoder_start_token_id=0,
        ),
        ("classification_head",),
    ),
    "llama": (transformers.LlamaConfig(**TEXT, pad_token_id=0, eos_token_id=2), ("score",)),
    "vit": (transformers.ViTConfig(**PICTURES), ("classifier",)),
    "resnet": (
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]),
        ("classifier",),
    ),
    "deit": (
        transformers.DeiTConfig(
            **PICTURES, architectures=["DeiTForImageClassificationWithTeacher"]
        ),
        ("cls_classifier", "distillation_classifier"),
    ),
    "clip": (
        transformers.CLIPConfig(
            vision_config=PICTURES, text_config={**TEXT, "bos_token_id": 0, "eos_token_id": 2}
        ),
        ("classifier",),
    ),
}


def kind_of(family: str) -> str:
    pictures = family in ("vit", "resnet", "deit", "clip")
    return "image_classification" if pictures else "classification"


def headed(folder: Path, family: str, names: Sequence[str] = THEIRS) -> Any:
    """A random classifier of a family whose outputs have these names, saved in `folder`."""
    config = type(FAMILIES[family][0]).from_dict(FAMILIES[family][0].to_dict())
    config.id2label, config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    auto = (
        transformers.AutoModelForSequenceClassification
        if kind_of(family) == "classification"
        else transformers.AutoModelForImageClassification
    )
    torch.manual_seed(0)
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return model.eval()


def rewritten(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def batch_of(family: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    if kind_of(family) != "classification":
        return {"pixel_values": torch.rand(3, 3, 8, 8)}
    ids = torch.randint(3, 40, (3, 6))
    ids[:, -1] = 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits_with(base: Base, head: dict[str, Any], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    for name, module in head.items():
        base.model.set_submodule(name, module)
    with torch.no_grad():
        logits: torch.Tensor = base.model.eval()(**batch).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_the_tasks_classes_says_of_a_row_what_it_said(
    family: str, tmp_path: Path
) -> None:
    model, batch = headed(tmp_path, family), batch_of(family)
    with torch.no_grad():
        said = model(**batch).logits
    uri, kind = f"path:{tmp_path}", kind_of(family)
    base = load_base(uri, kind, OURS)
    assert base.head_modules == FAMILIES[family][1]
    assert base.head.about.startswith("the base's own")
    if family != "resnet":  # which has no layer to adapt
        assert base.head == meta_base(uri, kind, OURS, ["all-linear"]).head

    resident = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    head, other = fresh_head(base, 1), fresh_head(base, 2)
    assert all(p.requires_grad for module in head.values() for p in module.parameters())
    for name, module in head.items():
        same = other[name].state_dict()
        assert all(torch.equal(same[key], tensor) for key, tensor in module.state_dict().items())
    assert all(torch.equal(resident[n], t) for n, t in base.model.state_dict().items())
    got = logits_with(base, head, batch)
    by_name = said[:, [2, 0, 1]]  # negative, neutral, positive among THEIRS
    torch.testing.assert_close(got, by_name, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_other_classes_is_replaced_whole(family: str, tmp_path: Path) -> None:
    headed(tmp_path, family)
    uri, kind = f"path:{tmp_path}", kind_of(family)
    for classes, why in (
        (("a", "b", "negative"), "the base's own is of "),
        (("negative", "positive"), "the base's own has 3 outputs, the task 2 classes"),
    ):
        base = load_base(uri, kind, classes)
        assert base.head_modules == FAMILIES[family][1]
        assert why in base.head.about
        if family != "resnet":
            assert base.head == meta_base(uri, kind, classes, ["all-linear"]).head
        first, other = fresh_head(base, 1), fresh_head(base, 2)
        for name, module in first.items():
            theirs = other[name].state_dict()
            drawn = [k for k, t in module.state_dict().items() if not torch.equal(theirs[k], t)]
            assert any(key.endswith("weight") for key in drawn) or name in ("sequence_summary",)
        assert logits_with(base, first, batch_of(family)).shape == (3, len(classes))


def test_the_head_is_neither_adapted_nor_counted_with_the_base(tmp_path: Path) -> None:
    headed(tmp_path, "roberta")
    base = load_base(f"path:{tmp_path}", "classification", OURS)
    targets = resolve_targets(base.model, base.head_modules, ["all-linear"])
    assert not [target.name for target in targets if target.name.startswith("classifier")]
    whole = sum(p.numel() for p in base.model.parameters())
    head = sum(p.numel() for p in base.model.classifier.parameters())
    assert base_size(base.model, base.head_modules).params == whole - head


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, "label2id": None}, "name"),
        ({"id2label": None, "label2id": None}, "does not name its classes"),
        ({"label2id": {"negative": 0, "neutral": 1, "positive": 2}}, "does not name its classes"),
        ({"problem_type": "multi_label_classification"}, "for multi_label_classification"),
        ({"problem_type": "regression"}, "for regression"),
        ({"architectures": ["BertForTokenClassification"]}, "that of a BertForTokenClassification"),
    ],
)
def test_a_head_that_is_for_something_else_is_replaced(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    headed(tmp_path, "bert")
    rewritten(tmp_path, **changes)
    if changes.get("id2label", 0) is None:  # a config without names is of two classes
        rewritten(tmp_path, num_labels=3)
    base = load_base(f"path:{tmp_path}", "classification", OURS)
    assert base.head.order is None
    assert "fresh" in base.head.about
    assert why in base.head.about
    assert base.head_modules == ("classifier",)


def test_names_may_stand_in_label2id_alone(tmp_path: Path) -> None:
    headed(tmp_path, "bert")
    rewritten(tmp_path, id2label={str(i): f"LABEL_{i}" for i in range(3)})
    assert load_base(f"path:{tmp_path}", "classification", OURS).head.order == (2, 0, 1)


def test_a_head_without_its_pooler_is_no_whole_head(tmp_path: Path) -> None:
    headed(tmp_path, "bert")
    weights = tmp_path / "model.safetensors"
    kept = {name: t for name, t in load_file(weights).items() if "pooler" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    base = load_base(f"path:{tmp_path}", "classification", OURS)
    assert base.head_modules == ("bert.pooler", "classifier")
    assert "lacks bert.pooler.dense.bias" in base.head.about


@pytest.mark.parametrize(
    ("theirs", "ours", "order"),
    [
        (("positive", "negative"), ("negative", "positive"), (1, 0)),
        (("0", "1"), ("0", "1"), (0, 1)),
        (("POSITIVE ", "Negative"), ("negative", "positive"), (1, 0)),
        (("no", "yes", "maybe"), ("maybe", "no", "yes"), (2, 0, 1)),
        (("very  good", "caf\u00e9"), ("Cafe\u0301", "very\u00a0good"), (1, 0)),
        (("LABEL_0", "LABEL_1"), ("LABEL_1", "LABEL_0"), (1, 0)),
        (("no", "No"), ("no", "yes"), None),
        (("no", "yes"), ("no", "No"), None),
        (("no", "yes"), ("0", "1"), None),
        (("no", "yes", "maybe"), ("no", "yes"), None),
    ],
)
def test_classes_are_matched_by_name_one_to_one(
    theirs: tuple[str, ...], ours: tuple[str, ...], order: tuple[int, ...] | None
) -> None:
    assert matched(theirs, ours) == order


def test_a_profiles_key_tells_what_an_own_head_has_changed_and_no_more(tmp_path: Path) -> None:
    headed(tmp_path / "roberta", "roberta")
    headed(tmp_path / "bert", "bert")
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**TEXT)).save_pretrained(tmp_path / "bare")

    def in_key(name: str, classes: Sequence[str]) -> str | None:
        return meta_base(
            f"path:{tmp_path / name}", "classification", classes, ["query"]
        ).head.in_key

    assert in_key("bare", OURS) is None
    assert in_key("bert", OURS) == "own"
    assert in_key("bert", ("a", "b", "c")) == "fresh"  # its own was kept, frozen
    assert in_key("bert", ("a", "b")) is None  # all of it was drawn before
    assert in_key("roberta", ("a", "b")) == "fresh"  # its dense layer was kept, frozen


def test_a_base_that_gives_every_logit_alone_is_refused_where_it_should_write(
    tmp_path: Path,
) -> None:
    config = transformers.xLSTMConfig(vocab_size=40, hidden_size=16, num_heads=2, num_blocks=1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    said = r"^base: path:\S+ \(xlstm\) gives the logits of every token, .*; use a base .*task.kind$"
    with pytest.raises(BaseModelError, match=said):
        meta_base(f"path:{tmp_path}", "causal", 1, ["q"])  # before a weight is loaded
    with pytest.raises(BaseModelError, match=said):
        load_base(f"path:{tmp_path}", "causal", 1)
