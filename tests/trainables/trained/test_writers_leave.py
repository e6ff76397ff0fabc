"""A trained base that writes, or predicts a number, leaves as the function that was trained.

The oracle is the peer library: what it loads must give the logits of the trial in memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors
import torch
import transformers

from tests.trainables.bases.test_loading import write_gguf
from tests.trainables.families import Made
from tests.trainables.trained_examples import (
    BASELINES,
    CHOICES,
    Example,
    assert_same,
    logits_of,
    plan_of,
    trained_at_random,
)
from tests.trainables.trained_writers import (
    CHAT,
    WRITERS,
    task_on,
    trained_writer,
    write_base,
)
from trainables.bases.loading import load_base
from trainables.tasks.kinds.usage import Tokenizing
from trainables.trained.merged_checkpoint import write_merged_checkpoint
from trainables.trained.peft_checkpoint import write_peft_checkpoint
from trainables.trained.processor import write_processor
from trainables.trained.restored import restored

LEAVE = CHOICES | {name: BASELINES[name] for name in ("dora", "ia3")}
MERGE = {name: LEAVE[name] for name in ("pilora", "taso of two rounds", "dora", "ia3")}
Causal = transformers.AutoModelForCausalLM
Numbers = transformers.AutoModelForSequenceClassification


@pytest.fixture(scope="module", params=WRITERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("writer")
    uri = write_base(request.param, folder / "base")
    suffixes = WRITERS[request.param].suffixes
    return task_on(uri, folder, "causal", suffixes, prompt="q", completion="a")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("llama")
    uri = write_base("tied llama", folder / "base")
    return task_on(uri, folder, "causal", WRITERS["llama"].suffixes, prompt="q", completion="a")


def place_of(made: Made) -> Path:
    return Path(made.uri.removeprefix("path:"))


def as_peft(example: Example, kind: str, folder: Path) -> dict[str, Any]:
    with restored(example.trained, example.plan, example.base) as adaptation:
        return write_peft_checkpoint(folder, adaptation, example.plan, example.base, kind)


def merged_into(example: Example, folder: Path, tokenizing: Tokenizing | None = None) -> None:
    with restored(example.trained, example.plan, example.base) as adaptation:
        labels = example.trained.facts.labels
        write_merged_checkpoint(folder, adaptation, example.base, labels, tokenizing)


@pytest.mark.parametrize("choice", LEAVE.values(), ids=LEAVE)
def test_peft_computes_what_was_trained(made: Made, choice: dict[str, Any], tmp_path: Path) -> None:
    example = trained_writer(made, choice)
    config = as_peft(example, made.kind, tmp_path)
    assert config["task_type"] == "CAUSAL_LM"
    assert config["modules_to_save"] is None
    assert config["base_model_name_or_path"] == str(place_of(made))
    adapted = peft.PeftModel.from_pretrained(Causal.from_pretrained(place_of(made)), tmp_path)
    assert isinstance(adapted, peft.PeftModelForCausalLM)
    assert_same(logits_of(adapted, example.batch), example.logits)
    untouched = logits_of(example.base.model, example.batch)
    assert (example.logits - untouched).abs().max() > 0.01


def test_the_adapter_finds_its_base_by_itself(made: Made, tmp_path: Path) -> None:
    """Also with the tokenizer beside it, by which PEFT may make the embedding larger."""
    example = trained_writer(made, CHOICES["joint"])
    as_peft(example, made.kind, tmp_path)
    write_processor(made.uri, tmp_path, Tokenizing("left"))
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    assert_same(logits_of(adapted, example.batch), example.logits)


@pytest.mark.parametrize("choice", MERGE.values(), ids=MERGE)
def test_transformers_computes_what_was_trained(
    made: Made, choice: dict[str, Any], tmp_path: Path
) -> None:
    example = trained_writer(made, choice)
    merged_into(example, tmp_path)
    model, told = Causal.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    assert_same(logits_of(model, example.batch), example.logits)
    theirs = Causal.from_pretrained(place_of(made))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight)
    assert model.config.use_cache == theirs.config.use_cache
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())


def test_how_the_base_writes_goes_along_as_it_is(llama: Made, tmp_path: Path) -> None:
    merged_into(trained_writer(llama, CHOICES["lora"]), tmp_path)
    name = "generation_config.json"
    assert (tmp_path / name).read_text() == (place_of(llama) / name).read_text()


def test_tied_weights_are_written_once(llama: Made, tmp_path: Path) -> None:
    merged_into(trained_writer(llama, CHOICES["lora"]), tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_a_gguf_base_that_writes_leaves_as_plain_weights(llama: Made, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    unread: Any = None
    base = load_base(f"path:{file}", "causal", 1)
    made = Made("gguf", unread, base.uri, "causal", unread, unread, ("q_proj", "down_proj"))
    batch = {"input_ids": torch.tensor([[5, 6, 39], [7, 2, 2]])}
    plan = plan_of(base, made.suffixes, CHOICES["pilora"])
    example = trained_at_random(made, base, plan, batch=batch)
    config = as_peft(example, "causal", tmp_path / "peft")
    assert config["base_model_name_or_path"] == str(tmp_path)
    bare = Causal.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )  # fmt: skip
    adapted = peft.PeftModel.from_pretrained(bare, tmp_path / "peft")
    assert_same(logits_of(adapted, batch), example.logits)
    merged_into(example, tmp_path / "merged", Tokenizing("left"))
    model = Causal.from_pretrained(tmp_path / "merged")
    assert_same(logits_of(model, batch), example.logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.padding_side == "left"


# -- a number --------------------------------------------------------------------------------------


def test_a_regression_leaves_with_its_head(llama: Made, tmp_path: Path) -> None:
    made = task_on(
        llama.uri, tmp_path / "rows", "regression", llama.suffixes, text=["q"], label="number"
    )
    example = trained_writer(made, CHOICES["pilora"])
    config = as_peft(example, made.kind, tmp_path / "peft")
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    merged_into(example, tmp_path / "merged")
    bare = Numbers.from_pretrained(
        place_of(llama), num_labels=1, pad_token_id=example.base.model.config.pad_token_id
    )
    adapted = peft.PeftModel.from_pretrained(bare, tmp_path / "peft")
    assert_same(logits_of(adapted, example.batch), example.logits)
    model = Numbers.from_pretrained(tmp_path / "merged")
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)
    assert_same(logits_of(model, example.batch), example.logits)


# -- the tokenizer beside it -----------------------------------------------------------------------


def test_the_tokenizer_of_a_model_that_writes_is_the_bases_and_pads_on_the_left(
    llama: Made, tmp_path: Path
) -> None:
    write_processor(llama.uri, tmp_path, Tokenizing("left"))
    written = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(place_of(llama))
    assert written.padding_side == "left"
    assert written.model_max_length == theirs.model_max_length
    assert written.pad_token_id is not None
    assert written.chat_template == theirs.chat_template == CHAT
    assert written("the film").input_ids == theirs("the film").input_ids


@pytest.mark.parametrize("several", [False, True])
def test_the_tasks_chat_template_is_the_tokenizers_one(
    llama: Made, several: bool, tmp_path: Path
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    tokenizer = transformers.AutoTokenizer.from_pretrained(place_of(llama))
    tokenizer.pad_token = tokenizer.eos_token
    if several:
        tokenizer.chat_template = {"default": CHAT, "rag": "{{ messages }}"}
    tokenizer.save_pretrained(base)
    for file in ("config.json", "model.safetensors"):
        (base / file).symlink_to(place_of(llama) / file)
    out.mkdir()
    write_processor(f"path:{base}", out, Tokenizing("left"))
    kept = transformers.AutoTokenizer.from_pretrained(out)
    assert kept.chat_template == tokenizer.chat_template
    write_processor(f"path:{base}", out, Tokenizing("left", None, "{{ messages[0]['content'] }}"))
    written = transformers.AutoTokenizer.from_pretrained(out)
    assert written.apply_chat_template([{"role": "user", "content": "é"}], tokenize=False) == "é"
    assert isinstance(written.chat_template, str)
