"""Prompt and answer are cut apart as lm-eval cuts them, and too long ones lose what they may."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from spaces.errors import BaseModelError, DataError
from tests.trainables.tasks.language.decoders import byte_tokenizer
from trainables.tasks.language.continuations import (
    joined,
    prompt_tokens,
    scored_pairs,
    shortened,
    trained_pairs,
)

PROMPTS = ["the film", "the film ", "a plot\n", "", " ", "the film is a ", "<s>the", "é plot"]
ANSWERS = [" good", "bad", " ", "<s> good", "the the the", "\nbad é", "film</s>"]


def as_lm_eval(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """lm-eval's own cut, without a model."""
    from lm_eval.models.huggingface import HFLM

    class Cutting(HFLM):
        def __init__(self) -> None:
            self.tokenizer, self.add_bos_token = tokenizer, None
            self.custom_prefix_token_id, self.enable_thinking = None, None
            self.cut: list[tuple[list[int], list[int]]] = []

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
            self.cut = [(before, behind) for _, before, behind in requests]

    class Request:
        args = (prompt, answer)

    cutting = Cutting()
    cutting.loglikelihood([Request()], disable_tqdm=True)
    return cutting.cut[0]


@pytest.mark.command
@pytest.mark.parametrize("first", ["<s>", None])
def test_tokens_are_those_of_lm_eval(first: str | None) -> None:
    pytest.importorskip("lm_eval")
    tokenizer = byte_tokenizer(first=first)
    for prompt in PROMPTS:
        for answer in ANSWERS:
            if not prompt.strip() and prompt and first is None:
                continue  # lm-eval stops at a prompt of white space that leaves no token
            ((ids, start),) = scored_pairs(tokenizer, [prompt], [answer])
            assert (ids[:start], ids[start:]) == as_lm_eval(tokenizer, prompt, answer)


def test_white_space_at_the_end_of_a_prompt_counts_to_the_answer() -> None:
    tokenizer = byte_tokenizer(first="<s>")
    pairs = scored_pairs(tokenizer, ["the film ", "the film"], ["good", " good"])
    assert pairs[0] == pairs[1]
    ids, start = pairs[0]
    assert tokenizer.decode(ids[start:]) == " good"
    assert ids[0] == tokenizer.bos_token_id


def test_an_end_token_follows_once() -> None:
    tokenizer = byte_tokenizer()
    (plain, ended) = trained_pairs(tokenizer, ["a", "a"], [" film", " film</s>"])
    assert plain == ended
    assert plain[0][-2:].count(tokenizer.eos_token_id) == 1


def test_what_a_tokenizer_puts_behind_a_text_is_left_out() -> None:
    usual = scored_pairs(byte_tokenizer(first="<s>"), ["a film"], [" good"])
    closing = scored_pairs(byte_tokenizer(first="<s>", last="</s>"), ["a film"], [" good"])
    assert closing == usual


def test_an_empty_prompt_is_the_first_token_or_the_end_token() -> None:
    for first in ("<s>", None):
        tokenizer = byte_tokenizer(first=first)
        ((ids, start),) = scored_pairs(tokenizer, [""], ["film"])
        assert start == 1
        assert ids[0] == (tokenizer.bos_token_id if first else tokenizer.eos_token_id)


def test_an_answer_that_melts_into_its_prompt_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        scored_pairs(byte_tokenizer(), ["the fil", "a film"], ["m", ""])
    assert str(caught.value) == (
        "task: 2 of 2 answers have no token of their own, such as 'm' after 'the fil'; put white "
        "space between prompt and answer with task.delimiter, or drop these rows"
    )


def test_an_answer_of_nothing_is_refused_though_an_end_token_would_follow_it() -> None:
    for asked in (False, True):
        with pytest.raises(DataError, match=r"^task: 1 of 2 answers have no token of their own"):
            trained_pairs(byte_tokenizer(), ["a film", "a"], ["", "b"], asked=asked)


MELTING = [
    ("the fil", "m"),
    ("a ", "film"),
    ("the", "re is"),
    ("film ", " good"),
    ("is\n", "\nbad"),
]


@pytest.mark.parametrize("first", ["<s>", None])
def test_what_is_trained_bears_loss_where_trl_has_it(first: str | None) -> None:
    from trl.data_utils import common_prefix_length

    tokenizer = byte_tokenizer(first=first)
    others = [(p, a) for p in PROMPTS for a in ANSWERS if p and not p.startswith("<s>")]
    told, rows = [], []
    for prompt, answer in [*MELTING, *others]:
        ended = answer if answer.endswith("</s>") else f"{answer}</s>"
        before, ids = (tokenizer(text)["input_ids"] for text in (prompt, prompt + ended))
        if start := common_prefix_length(before, ids):  # else there is no token to predict from
            told.append((ids, start))
            rows.append((prompt, answer))
    alone = [len(tokenizer(prompt)["input_ids"]) for prompt, _ in rows]
    assert any(start < length for length, (_, start) in zip(alone, told, strict=True))
    assert trained_pairs(tokenizer, *map(list, zip(*rows, strict=True))) == told


def test_an_answer_that_melts_into_the_whole_prompt_follows_the_first_token() -> None:
    tokenizer = byte_tokenizer()
    ((ids, start),) = trained_pairs(tokenizer, [" fil"], ["m"])
    assert (start, tokenizer.decode(ids)) == (1, "</s> film</s>")


def pieces_of_text() -> Any:
    """A tokenizer like Llama's, which begins every text with a space and cuts none into words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=40, special_tokens=["</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(["the:**a film\n\n.**", "film:**", "a:**", ".\n"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize("made", [byte_tokenizer, lambda: byte_tokenizer("<s>"), pieces_of_text])
def test_a_base_is_asked_with_the_tokens_that_its_training_has_before_the_loss(made: Any) -> None:
    tokenizer = made()
    melting = [("film:", "**a film"), ("the:*", "*"), ("a film\n", "\n.**"), ("the ", "film")]
    pairs = [*melting, *(MELTING if made is not pieces_of_text else [])]
    prompts, answers = map(list, zip(*pairs, strict=True))
    asked = prompt_tokens(tokenizer, prompts)
    trained = trained_pairs(tokenizer, prompts, answers, asked=True)
    for before, (ids, start), prompt, answer in zip(asked, trained, prompts, answers, strict=True):
        assert before == tokenizer(prompt)["input_ids"] == ids[:start]
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt + answer
        assert ids[-1] == tokenizer.eos_token_id
    assert any(
        [*before, *tokenizer(answer, add_special_tokens=False)["input_ids"]] != ids[:-1]
        or ids[:-1] != tokenizer(prompt + answer)["input_ids"]
        for before, (ids, _), prompt, answer in zip(asked, trained, prompts, answers, strict=True)
    )


@pytest.mark.command
@pytest.mark.parametrize("first", ["<s>", None])
def test_a_base_is_asked_as_lm_eval_asks_it(first: str | None) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface")

    class Asking(huggingface.HFLM):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.tokenizer, self.add_bos_token = byte_tokenizer(first=first), None
            self.tokenizer.pad_token = "</s>"

    for prompt in filter(None, PROMPTS):
        (told,) = Asking().tok_batch_encode([prompt])[0].tolist()
        assert prompt_tokens(byte_tokenizer(first=first), [prompt]) == [told]


def test_a_tokenizer_without_an_end_token_is_refused_where_answers_end() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(BaseModelError, match=r"^base: its tokenizer has no end-of-sequence token"):
        trained_pairs(tokenizer, ["a"], [" film"])
    with pytest.raises(BaseModelError, match="for an empty prompt, as in row 1; set bos_token"):
        scored_pairs(tokenizer, [""], ["film"])


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        (9, ([1, 2, 3, 4, 5, 6, 7], 4, 0)),
        (7, ([1, 2, 3, 4, 5, 6, 7], 4, 0)),
        (6, ([2, 3, 4, 5, 6, 7], 3, 0)),
        (4, ([4, 5, 6, 7], 1, 0)),
        (3, ([4, 5, 6], 1, 1)),
        (2, ([4, 5], 1, 2)),
    ],
)
def test_a_prompt_loses_its_beginning_before_an_answer_loses_its_end(
    length: int, kept: tuple[list[int], int, int]
) -> None:
    assert shortened([1, 2, 3, 4, 5, 6, 7], 4, length) == kept


@pytest.mark.parametrize(
    ("prompt", "answer", "delimiter", "follows"),
    [
        ("Answer:", "yes", None, " yes"),
        ("Answer: ", "yes", None, "yes"),
        ("Answer:\n", "yes", None, "yes"),
        ("Answer:", " yes", None, " yes"),
        ("Answer:", "yes", "", "yes"),
        ("Answer: ", "yes", "\n", "\nyes"),
    ],
)
def test_a_space_is_put_where_there_is_no_white_space(
    prompt: str, answer: str, delimiter: str | None, follows: str
) -> None:
    assert joined(prompt, answer, delimiter) == follows
