"""Prompt and answer are cut apart as lm-eval cuts them, and too long ones lose what they may."""

from __future__ import annotations

from typing import Any

import pytest

from spaces.errors import BaseModelError, DataError
from tests.trainables.tasks.language.decoders import byte_tokenizer
from trainables.tasks.language.continuations import encoded_pairs, joined, shortened

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
            ((ids, start),) = encoded_pairs(tokenizer, [prompt], [answer], end=False)
            assert (ids[:start], ids[start:]) == as_lm_eval(tokenizer, prompt, answer)


def test_white_space_at_the_end_of_a_prompt_counts_to_the_answer() -> None:
    tokenizer = byte_tokenizer(first="<s>")
    pairs = encoded_pairs(tokenizer, ["the film ", "the film"], ["good", " good"], end=False)
    assert pairs[0] == pairs[1]
    ids, start = pairs[0]
    assert tokenizer.decode(ids[start:]) == " good"
    assert ids[0] == tokenizer.bos_token_id


def test_an_end_token_follows_once() -> None:
    tokenizer = byte_tokenizer()
    (plain, ended) = encoded_pairs(tokenizer, ["a", "a"], [" film", " film</s>"], end=True)
    assert plain == ended
    assert plain[0][-2:].count(tokenizer.eos_token_id) == 1


def test_what_a_tokenizer_puts_behind_a_text_is_left_out() -> None:
    usual = encoded_pairs(byte_tokenizer(first="<s>"), ["a film"], [" good"], end=False)
    closing = encoded_pairs(
        byte_tokenizer(first="<s>", last="</s>"), ["a film"], [" good"], end=False
    )
    assert closing == usual


def test_an_empty_prompt_is_the_first_token_or_the_end_token() -> None:
    for first in ("<s>", None):
        tokenizer = byte_tokenizer(first=first)
        ((ids, start),) = encoded_pairs(tokenizer, [""], ["film"], end=False)
        assert start == 1
        assert ids[0] == (tokenizer.bos_token_id if first else tokenizer.eos_token_id)


def test_an_answer_that_melts_into_its_prompt_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        encoded_pairs(byte_tokenizer(), ["the fil", "a film"], ["m", ""], end=False)
    assert str(caught.value) == (
        "task: 2 of 2 answers have no token of their own, such as 'm' after 'the fil'; put white "
        "space between prompt and answer with task.delimiter, or drop these rows"
    )


def test_a_tokenizer_without_an_end_token_is_refused_where_answers_end() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(BaseModelError, match=r"^base: its tokenizer has no end-of-sequence token"):
        encoded_pairs(tokenizer, ["a"], [" film"], end=True)
    with pytest.raises(BaseModelError, match="for an empty prompt, as in row 1; set bos_token"):
        encoded_pairs(tokenizer, [""], ["film"], end=False)


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
