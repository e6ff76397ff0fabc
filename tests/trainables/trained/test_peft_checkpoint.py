"""A trained adaptation leaves for PEFT and for transformers as the function that was trained.

The oracle is the peer library: what it loads from the checkpoint must compute what the adaptation
computed on its resident base.
"""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from spaces.errors import UsageError
from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Block, Plan
from spaces.target import TargetModule
from tests.trainables.bases.test_loading import write_gguf
from tests.trainables.families import Made, make
from tests.trainables.trained_examples import (
    BASELINES,
    CHOICES,
    Example,
    assert_same,
    auto_class,
    batch_of,
    example_of,
    logits_of,
    plan_of,
    trained_at_random,
    untouched,
)
from trainables.adaptations.lora_config import lora_config
from trainables.adaptations.registry import adaptation_for
from trainables.bases.loading import load_base
from trainables.bases.location import from_pretrained_arguments
from trainables.bases.structure import resolve_targets
from trainables.tasks.task import build_task
from trainables.trained.merged_checkpoint import write_merged_checkpoint
from trainables.trained.peft_checkpoint import peft_checkpoint, write_peft_checkpoint
from trainables.trained.restored import restored
from trainables.trained.weights import Trained, TrainedFacts


def written(example: Example, folder: Path) -> dict[str, Any]:
    kind = example.trained.facts.task_kind
    with restored(example.trained, example.plan, example.base) as adaptation:
        return write_peft_checkpoint(folder, adaptation, example.plan, example.base, kind)


def loaded_by_peft(model: Any, folder: Path) -> Any:
    """The model with the checkpoint; every key of it must have found its place, and no other."""
    with warnings.catch_warnings():
        for kind in (UserWarning, RuntimeWarning):
            warnings.simplefilter("error", kind)
        # PEFT says this of every GPT-2, whatever the checkpoint's fan_in_fan_out.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        adapted = peft.PeftModel.from_pretrained(model, folder)
    again: Any = peft.set_peft_model_state_dict(adapted, peft.utils.load_peft_weights(str(folder)))
    assert not again.unexpected_keys
    assert not [key for key in again.missing_keys if ".default" in key]
    return adapted


NO_LOW_RANK = ("bottleneck", "bitfit", "full")
FOR_PEFT = CHOICES | {name: each for name, each in BASELINES.items() if name not in NO_LOW_RANK}
MERGEABLE = CHOICES | {name: each for name, each in BASELINES.items() if name != "bottleneck"}


@pytest.mark.parametrize("choice", FOR_PEFT.values(), ids=FOR_PEFT)
def test_peft_computes_what_was_trained(
    family: Made, choice: dict[str, Any], tmp_path: Path
) -> None:
    example = example_of(family, choice)
    written(example, tmp_path)
    adapted = loaded_by_peft(untouched(family, example.base), tmp_path)
    got = logits_of(adapted, example.batch)
    assert_same(got, example.logits)
    assert (example.logits - logits_of(example.base.model, example.batch)).abs().max() > 0.01


def test_a_stage_that_trains_nothing_leaves_nothing(family: Made, tmp_path: Path) -> None:
    base = load_base(family.uri, family.kind, 2)
    taso = plan_of(base, family.suffixes, CHOICES["taso of two rounds"])
    plan = Plan.of([taso.stages[0], {}, *taso.stages[1:3], {}], taso.targets)
    example = trained_at_random(family, base, plan)
    written(example, tmp_path)
    adapted = loaded_by_peft(untouched(family, base), tmp_path)
    got = logits_of(adapted, example.batch)
    assert_same(got, example.logits)


@pytest.mark.parametrize("choice", MERGEABLE.values(), ids=MERGEABLE)
def test_transformers_computes_what_was_trained(
    family: Made, choice: dict[str, Any], tmp_path: Path
) -> None:
    if choice == BASELINES["bitfit"] and family.name == "llama":
        pytest.skip("there is no bias in a Llama")
    example = example_of(family, choice)
    merged_into(example, tmp_path)
    model = plainly_loaded(family, tmp_path)
    got = logits_of(model, example.batch)
    assert_same(got, example.logits)
    assert model.config.id2label == dict(enumerate(family.task.labels))
    assert model.config.label2id == {label: i for i, label in enumerate(family.task.labels)}


def merged_into(example: Example, folder: Path) -> None:
    with restored(example.trained, example.plan, example.base) as adaptation:
        labels = example.trained.facts.labels
        write_merged_checkpoint(folder, adaptation, example.base, labels)


def plainly_loaded(made: Made, folder: Path) -> Any:
    """A merged checkpoint, which must hold all that its class asks for and nothing else."""
    auto = auto_class(made.kind)
    model, told = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values())
    return model


def test_a_merged_checkpoint_reads_its_rows_as_the_base_did(family: Made, tmp_path: Path) -> None:
    example = example_of(family, CHOICES["lora"])
    merged_into(example, tmp_path)
    again = build_task(family.settings, f"path:{tmp_path}")
    split = again.splits["dev"]
    batch = split.batch(np.arange(len(split)))
    batch.pop("labels")
    assert batch.keys() == example.batch.keys()
    assert all(torch.equal(batch[key], example.batch[key]) for key in batch)
    if family.kind == "classification":
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert tokenizer.pad_token_id == example.base.model.config.pad_token_id


# -- one claim at a time, on BERT ------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("bert", tmp_path_factory.mktemp("bert"))


def test_every_adapter_has_scale_one_and_the_rank_of_its_update(bert: Made, tmp_path: Path) -> None:
    example = example_of(bert, CHOICES["sensitivity"])
    config = written(example, tmp_path)
    ranks = {name: blocks[0].rank for name, blocks in example.plan.stages[0].items()}
    assert len(set(ranks.values())) > 1
    assert config["r"] in ranks.values()
    assert config["rank_pattern"] == {n: r for n, r in ranks.items() if r != config["r"]}
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert config["lora_alpha"] == config["r"]
    adapted = loaded_by_peft(untouched(bert, example.base), tmp_path).base_model.model
    for name, rank in ranks.items():
        layer = adapted.get_submodule(name)
        assert (layer.r["default"], layer.scaling["default"]) == (rank, 1.0)


def test_a_module_without_update_is_left_out(bert: Made, tmp_path: Path) -> None:
    base = load_base(bert.uri, bert.kind, 2)
    whole = plan_of(base, bert.suffixes, CHOICES["lora"])
    spared = whole.targets[2].name
    stage = {name: blocks for name, blocks in whole.stages[0].items() if name != spared}
    example = trained_at_random(bert, base, Plan.of([stage], whole.targets))
    assert written(example, tmp_path)["target_modules"] == list(stage)
    adapted = loaded_by_peft(untouched(bert, base), tmp_path).base_model.model
    assert type(adapted.get_submodule(spared)) is torch.nn.Linear


def test_a_trial_without_any_update_is_no_adapter(bert: Made) -> None:
    base = load_base(bert.uri, bert.kind, 2)
    targets = resolve_targets(base.model, base.head_modules, bert.suffixes)
    example = trained_at_random(bert, base, Plan.of([{}], targets))
    with (
        restored(example.trained, example.plan, base) as adaptation,
        pytest.raises(UsageError, match=r"no update of any module.*use --to merged"),
    ):
        peft_checkpoint(adaptation, example.plan, base, bert.kind)


@pytest.mark.parametrize("method", NO_LOW_RANK)
def test_what_is_no_adapter_of_peft_is_refused_with_what_can_be_had(
    bert: Made, method: str
) -> None:
    example = example_of(bert, BASELINES[method])
    form = "--to plan" if method == "bottleneck" else "--to merged"
    with (
        restored(example.trained, example.plan, example.base) as adaptation,
        pytest.raises(UsageError, match=f"{method}.*{form}"),
    ):
        peft_checkpoint(adaptation, example.plan, example.base, bert.kind)


def test_what_is_no_part_of_a_weight_is_not_merged(bert: Made, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bottleneck.*--to plan"):
        merged_into(example_of(bert, BASELINES["bottleneck"]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_says_what_it_belongs_to(bert: Made, tmp_path: Path) -> None:
    config = written(example_of(bert, CHOICES["lora"]), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == config
    assert config["base_model_name_or_path"] == bert.uri.removeprefix("path:")
    assert (config["task_type"], config["inference_mode"]) == ("SEQ_CLS", True)
    assert config["modules_to_save"] == ["classifier"]
    assert peft.LoraConfig.from_pretrained(str(tmp_path)).peft_type == peft.PeftType.LORA


def test_a_classifier_of_pictures_has_no_task_type_and_is_found_by_its_class(
    tmp_path: Path,
) -> None:
    vit = make("vit", tmp_path)
    example = example_of(vit, CHOICES["lora"])
    config = written(example, tmp_path / "out")
    assert config["task_type"] is None
    adapted = peft.AutoPeftModel.from_pretrained(tmp_path / "out", num_labels=2)
    got = logits_of(adapted, example.batch)
    assert_same(got, example.logits)


@pytest.fixture
def headed(bert: Made, tmp_path: Path) -> Made:
    """A base with a head of its own, its outputs in the other order than the task's classes."""
    folder = tmp_path / "base"
    copied = Path(bert.uri.removeprefix("path:"))
    torch.manual_seed(1)
    transformers.AutoModelForSequenceClassification.from_pretrained(
        copied, id2label={0: "1", 1: "0"}, label2id={"1": 0, "0": 1}
    ).save_pretrained(folder)
    for file in copied.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return replace(bert, uri=f"path:{folder}", suffixes=("query",))


def test_a_head_that_the_base_had_leaves_as_it_was_trained(headed: Made, tmp_path: Path) -> None:
    example = example_of(headed, {"method": "lora", "rank": 2})
    assert example.base.head.order == (1, 0)
    config = written(example, tmp_path / "out")
    assert config["modules_to_save"] == ["classifier"]
    got = logits_of(
        loaded_by_peft(untouched(headed, example.base), tmp_path / "out"), example.batch
    )
    assert_same(got, example.logits)
    merged_into(example, tmp_path / "merged")
    model = plainly_loaded(headed, tmp_path / "merged")
    assert model.config.id2label == {0: "0", 1: "1"}
    assert_same(logits_of(model, example.batch), example.logits)


@pytest.mark.parametrize("suffixes", [("query",), ("query", "classifier")])
def test_a_trial_that_had_kept_the_bases_own_head_leaves_with_it(
    headed: Made, suffixes: tuple[str, ...], tmp_path: Path
) -> None:
    """As trials had before such a head was trained, also where they adapted the head itself."""
    base = load_base(headed.uri, headed.kind, 2)
    targets = resolve_targets(base.model, (), suffixes)
    plan = make_plan(parse_choice({"method": "lora", "rank": 2}), targets, None)
    with adaptation_for(plan, base.model, seed=3, head={}) as adaptation:
        with torch.no_grad():
            for parameter in adaptation.begin_stage(0, 4).parameters():
                parameter.normal_(0, 0.3)
        adaptation.end_stage()
        adaptation.eval()
        batch = batch_of(headed)
        logits, weights = logits_of(base.model, batch), adaptation.weights()
    facts = TrainedFacts(
        base.uri, base.fingerprint, "bert", headed.kind, ("0", "1"), (), "lora", "float32", 3
    )
    example = Example(base, plan, Trained(facts, weights, {}), batch, logits)
    written(example, tmp_path / "out")
    adapted = loaded_by_peft(untouched(headed, base), tmp_path / "out")
    assert_same(logits_of(adapted, batch), logits)


def test_a_matrix_of_two_layers_has_its_update_under_both_names(bert: Made, tmp_path: Path) -> None:
    base = load_base(bert.uri, bert.kind, 2)
    one, two = (f"bert.encoder.layer.{i}.attention.self.query" for i in range(2))
    base.model.get_submodule(two).weight = base.model.get_submodule(one).weight
    tied = copy.deepcopy(base.model)
    rows, cols = np.arange(0, 16, 2, dtype=np.int32), np.arange(16, dtype=np.int32)
    target = TargetModule(one, (16, 16), (one, two))
    plan = Plan.of([{one: [Block(2, rows, cols, 1.5)]}], (target,))
    example = trained_at_random(bert, base, plan)
    assert written(example, tmp_path)["target_modules"] == [one, two]
    got = logits_of(loaded_by_peft(tied, tmp_path), example.batch)
    assert_same(got, example.logits)


def test_a_merged_checkpoint_keeps_the_precision_of_its_base(bert: Made, tmp_path: Path) -> None:
    base = load_base(bert.uri, bert.kind, 2, torch.bfloat16)
    example = trained_at_random(bert, base, plan_of(base, bert.suffixes, CHOICES["lora"]))
    merged_into(example, tmp_path)
    model = plainly_loaded(bert, tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    got = logits_of(model, example.batch)
    torch.testing.assert_close(got, example.logits, rtol=0.1, atol=0.1)


def test_a_gguf_base_leaves_as_plain_weights(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    base = load_base(f"path:{file}", "classification", 2)
    unread: Any = None  # no test data are made for it
    made = Made("gguf", unread, base.uri, "classification", unread, unread, ("q_proj", "down_proj"))
    plan = plan_of(base, made.suffixes, CHOICES["pilora"])
    batch = {"input_ids": torch.tensor([[5, 6, 39], [7, 2, 2]])}
    batch["attention_mask"] = torch.tensor([[1, 1, 1], [1, 0, 0]])
    example = trained_at_random(made, base, plan, batch=batch)
    config = written(example, tmp_path / "peft")
    assert config["base_model_name_or_path"] == str(tmp_path)
    bare = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, gguf_file=file.name, num_labels=2, pad_token_id=base.model.config.pad_token_id,
        quantization_config=transformers.GgufConfig(dequantize=True), dtype=torch.float32,
    )  # fmt: skip
    got = logits_of(loaded_by_peft(bare, tmp_path / "peft"), batch)
    assert_same(got, example.logits)

    merged_into(example, tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())
    got = logits_of(plainly_loaded(made, tmp_path / "merged"), batch)
    assert_same(got, example.logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("ab").input_ids[-1] == 39
    assert tokenizer.pad_token_id == base.model.config.pad_token_id


@pytest.mark.parametrize(
    ("uri", "name", "more"),
    [
        ("hub:org/name@abc", "org/name", {"revision": "abc"}),
        ("hub:org/name", "org/name", {}),
        ("hub:org/name/q8.gguf@v1", "org/name", {"revision": "v1", "gguf_file": "q8.gguf"}),
    ],
)
def test_a_base_of_the_hub_is_named_as_transformers_asks_for_it(
    uri: str, name: str, more: dict[str, str]
) -> None:
    assert from_pretrained_arguments(uri) == (name, more)


# -- the LoraConfig --------------------------------------------------------------------------------


class Nested(torch.nn.Module):
    """Layers whose names are also ends of other names."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.a = torch.nn.ModuleDict({"q": torch.nn.Linear(8, 8), "k": torch.nn.Linear(8, 8)})


@pytest.mark.parametrize(
    "modules",
    [
        {"q": (2, 4.0), "a.q": (2, 8.0), "a.k": (3, 4.0)},
        {"q": (5, 4.0)},
        {"a.q": (5, 5.0)},
        {"k": (1, 1.0), "a.q": (1, 1.0), "q": (4, 1.0)},
    ],
)
def test_a_lora_config_means_the_modules_that_it_names(
    modules: dict[str, tuple[int, float]],
) -> None:
    model = Nested()
    names = [name for name, _ in model.named_modules()]
    config = peft.LoraConfig(**lora_config(modules, names))
    adapted = peft.inject_adapter_in_model(config, model)
    found = {
        name: (layer.r["default"], layer.lora_alpha["default"])
        for name, layer in adapted.named_modules()
        if isinstance(layer, peft.tuners.lora.Linear)
    }
    assert found == modules


def test_alpha_is_what_gives_the_scale_again() -> None:
    scale = 16 / 3
    config = lora_config({"a": (3, scale * 3), "b": (7, (16 / 7) * 7), "c": (7, 0.1 * 7)})
    assert config["lora_alpha"] == 16
    assert config["alpha_pattern"] == {"c": 0.7}
