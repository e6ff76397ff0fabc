"""Texts that a base cannot read as they are, because of its tokenizer or its limits, are told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from spaces.errors import DataError
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import Task, build_task
from trainables.tasks.texts import EncodedSplit

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = tuple("abcdefghijklmnop")
SHAPE = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 20,
}  # fmt: skip


def a_base(folder: Path, vocabulary: int = 20, more: Sequence[str] = (), **config: Any) -> str:
    """A base of `vocabulary` tokens: four special ones, sixteen words, and `more` added ones."""
    words = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    made.add_tokens(list(more))
    made.save_pretrained(folder)
    kind = config.pop("kind", transformers.BertConfig)
    kind(**{**SHAPE, "vocab_size": vocabulary, **config}).save_pretrained(folder)
    return f"path:{folder}"


def rows_of(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"text": text, "other": "b", "label": i % 2} for i, text in enumerate(texts)]


TEXTS = [" ".join(WORDS[i : i + 5]) for i in range(10)]


def the_task(
    folder: Path, base: str, train: Sequence[str] = TEXTS, dev: Sequence[str] = TEXTS, **more: Any
) -> Task:
    data = {}
    for split, texts in (("train", train), ("dev", dev)):
        data[split] = str(folder / f"{split}.jsonl")
        Path(data[split]).write_text("".join(json.dumps(row) + "\n" for row in rows_of(texts)))
    values = {"name": "t", "data": data, "text": "text", "max_length": 16} | more
    return build_task(TaskSettings.model_validate(values), base)


def tokens_of(task: Task) -> list[list[int]]:
    split = task.splits["train"]
    assert isinstance(split, EncodedSplit)
    return [part.tolist() for part in np.split(split.input_ids, split.offsets[1:-1])]


@pytest.mark.parametrize(("columns", "least"), [("text", 3), (["text", "other"], 5)])
def test_a_length_without_room_for_a_text_is_refused(
    columns: Any, least: int, tmp_path: Path
) -> None:
    base = a_base(tmp_path / "base")
    texts = [f"{word} a b" for word in WORDS]
    task = the_task(tmp_path, base, texts, texts, text=columns, max_length=least)
    assert {len(tokens) for tokens in tokens_of(task)} == {least}
    for length in range(1, least):
        with pytest.raises(DataError, match=f"leaves no room for a text .* use at least {least}$"):
            the_task(tmp_path, base, texts, texts, text=columns, max_length=length)


@pytest.mark.parametrize(("padding", "longest"), [(0, 19), (1, 18)])
def test_a_length_beyond_the_positions_of_a_roberta_is_refused(
    padding: int, longest: int, tmp_path: Path
) -> None:
    base = a_base(tmp_path / "base", kind=transformers.RobertaConfig, pad_token_id=padding)
    assert the_task(tmp_path, base, max_length=longest)
    with pytest.raises(DataError, match=f"is more than the {longest} tokens"):
        the_task(tmp_path, base, max_length=longest + 1)


def test_texts_of_unknown_tokens_are_refused(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    strange = [f"{word} quite unknown words" for word in WORDS]
    for train, dev, split in ((strange, TEXTS, "train"), (TEXTS, strange, "dev")):
        with pytest.raises(DataError, match=rf"75% of the tokens of {split} are unknown \(\[UNK"):
            the_task(tmp_path, base, train, dev)


def test_some_unknown_tokens_are_said_and_few_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = a_base(tmp_path / "base")
    the_task(tmp_path, base, [f"{text} strange" for text in TEXTS])
    (said,) = [line for line in caplog.messages if "unknown" in line]
    assert "17% of the tokens of train are unknown ([UNK])" in said
    caplog.clear()
    the_task(tmp_path, base, [*TEXTS[:-1], "strange a b"])  # 1 of 48
    assert not [line for line in caplog.messages if "unknown" in line]


def test_texts_that_become_the_same_tokens_are_refused(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base")
    alike = [f"a b c {word}" for word in WORDS]
    assert len(set(map(tuple, tokens_of(the_task(tmp_path, base, alike))))) == len(WORDS)
    with pytest.raises(
        DataError, match=r"16 of 16 different texts of train are the same tokens .*raise task.max_l"
    ):
        the_task(tmp_path, base, alike, max_length=5)
    assert the_task(tmp_path, base, ["a b"] * 10, max_length=5)  # one text, which is no fault here


def test_a_token_beyond_the_embedding_is_named_with_its_row(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", more=["<film>"])
    with pytest.raises(
        DataError, match=r"a row of dev, 'a <film> b', has token 20 \('<film>'\).* holds 20 tokens"
    ):
        the_task(tmp_path, base, dev=[*TEXTS, "a <film> b"])


def test_a_type_that_the_base_does_not_embed_is_refused(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", type_vocab_size=1)
    assert the_task(tmp_path, base)
    with pytest.raises(DataError, match=r"tokens of train the type 1, but the base embeds 1 types"):
        the_task(tmp_path, base, text=["text", "other"])


def test_rows_must_end_alike_where_the_base_reads_it_at_its_end(tmp_path: Path) -> None:
    """As BART and T5 do, whose classifiers refuse a batch of rows with more or fewer ends."""
    bart = {
        "kind": transformers.BartConfig, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    }  # fmt: skip
    base = a_base(tmp_path / "ends", **bart, eos_token_id=3)
    assert the_task(tmp_path, base)
    with pytest.raises(
        DataError, match=r"a row of dev, 'a \[SEP\] b', has the end token .*2 times"
    ):
        the_task(tmp_path, base, dev=[*TEXTS, "a [SEP] b"])
    assert the_task(tmp_path, base, text=["text", "other"]), "a pair has ends of its own"
    with pytest.raises(DataError, match=r"has the end token .* 0 times"):
        the_task(
            tmp_path, a_base(tmp_path / "none", **bart, eos_token_id=19), [t[2:] for t in TEXTS]
        )
    with pytest.raises(DataError, match=r"its end token, with which batches are filled up too"):
        the_task(tmp_path, a_base(tmp_path / "padding", **bart, eos_token_id=0))


@pytest.mark.parametrize(
    ("vocabulary", "more", "said"),
    [
        (20, ["<film>"], "a tokenizer of 21 tokens and an embedding of 20"),
        (50, [], "a tokenizer of 20 tokens and an embedding of 50"),
        (20, [], None),
        (24, [], None),  # padded to a round number
    ],
)
def test_a_tokenizer_of_another_size_than_the_embedding_is_said(
    vocabulary: int,
    more: list[str],
    said: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    the_task(tmp_path, a_base(tmp_path / "base", vocabulary, more))
    found = [line for line in caplog.messages if "has a tokenizer of" in line]
    assert ([said in line for line in found] == [True]) if said else not found
