"""A prompt and the answer that continues it, as tokens.

They are cut apart as lm-eval 0.4.13 does (`TemplateLM._encode_pair` and `HFLM.tok_encode`), so that
what is trained and measured here is what others measure: the prompt's tokens are those of the
prompt alone, the answer's those that follow as many in the tokens of both together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spaces.errors import BaseModelError, DataError

Pair = tuple[list[int], int]
"""The tokens of a prompt and its answer, and the place where the answer begins."""


def joined(prompt: str, answer: str, delimiter: str | None) -> str:
    """The answer as it follows the prompt: behind the delimiter.

    None stands for a space, unless the prompt ends, or the answer begins, with white space.
    """
    if delimiter is None:
        delimiter = "" if prompt[-1:].isspace() or answer[:1].isspace() else " "
    return delimiter + answer


def encoded_pairs(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], *, end: bool
) -> list[Pair]:
    """The tokens of every prompt with the answer that follows it, and where the answer begins.

    White space that ends a prompt counts to its answer, for most tokenizers hold a space and the
    word behind it in one token. Special tokens are put before a prompt where the tokenizer puts
    them and the prompt does not begin with them; what a tokenizer puts behind a text is left out.
    A prompt without a token is the tokenizer's first token (BOS, or EOS where it has none). With
    `end` an end-of-sequence token follows the answer, unless the answer ends with it.

    Raises BaseModelError where the tokenizer has no such token, and DataError where an answer has
    no token of its own.
    """
    if len(prompts) != len(answers):
        raise ValueError(f"{len(prompts)} prompts and {len(answers)} answers")
    stripped = [prompt.rstrip() for prompt in prompts]
    wholes = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    tokens = _encoded(tokenizer, [*stripped, *wholes])
    first, last = _first_token(tokenizer), tokenizer.eos_token_id
    if end and last is None:
        raise BaseModelError(
            "base: its tokenizer has no end-of-sequence token, with which an answer ends; set "
            "eos_token in tokenizer_config.json"
        )
    pairs: list[Pair] = []
    empty: list[int] = []
    for row, (before, whole) in enumerate(zip(stripped, wholes, strict=True)):
        prompt, answer = tokens[before], tokens[whole][len(tokens[before]) :]
        if not prompt:
            if first is None:
                raise BaseModelError(
                    "base: its tokenizer has neither a first nor an end token to stand for an "
                    f"empty prompt, as in row {row + 1}; set bos_token in tokenizer_config.json"
                )
            prompt, answer = [first], answer[1:] if answer[:1] == [first] else answer
        if end and answer[-1:] != [last]:
            answer = [*answer, last]
        if not answer:
            empty.append(row)
        pairs.append(([*prompt, *answer], len(prompt)))
    if empty:
        row = empty[0]
        raise DataError(
            f"task: {len(empty)} of {len(pairs)} answers have no token of their own, such as "
            f"{answers[row]!r:.40} after {prompts[row][-40:]!r}; put white space between prompt "
            "and answer with task.delimiter, or drop these rows"
        )
    return pairs


def shortened(ids: Sequence[int], start: int, max_length: int) -> tuple[list[int], int, int]:
    """The tokens cut to `max_length`, where the answer begins in them, and tokens that it lost.

    The prompt loses its beginning, but for one token, before the answer loses its end: the answer's
    first token is predicted from the prompt's last.
    """
    answer = min(len(ids) - start, max_length - 1)
    prompt = min(start, max_length - answer)
    kept = [*ids[start - prompt : start], *ids[start : start + answer]]
    return kept, prompt, len(ids) - start - answer


def _encoded(tokenizer: Any, texts: Sequence[str]) -> dict[str, list[int]]:
    """The tokens of each text, special ones in front as lm-eval has them."""
    own_first = first_text(tokenizer)
    behind = tokens_behind(tokenizer)
    tokens: dict[str, list[int]] = {}
    for special in (False, True):
        asked = [
            text
            for text in dict.fromkeys(texts)
            if special != (own_first is not None and text.startswith(own_first))
        ]
        if not asked:
            continue
        ids = tokenizer(asked, add_special_tokens=special, padding=False, verbose=False)
        kept = (each[: len(each) - behind] if special else each for each in ids["input_ids"])
        tokens |= zip(asked, kept, strict=True)
    return tokens


def _first_token(tokenizer: Any) -> int | None:
    """What lm-eval puts in an empty prompt's place (`HFLM.prefix_token_id`)."""
    token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return None if token is None else int(token)


def first_text(tokenizer: Any) -> str | None:
    """That token as text: a text that begins with it has its special tokens already."""
    token = _first_token(tokenizer)
    return None if token is None else str(tokenizer.decode([token])) or None


def tokens_behind(tokenizer: Any) -> int:
    """How many special tokens a tokenizer puts behind a text."""
    if not (added := tokenizer.num_special_tokens_to_add()):
        return 0
    plain, whole = tokenizer("a", add_special_tokens=False), tokenizer("a", verbose=False)
    text, ids = plain["input_ids"], whole["input_ids"]
    before = (n for n in range(added + 1) if ids[n : n + len(text)] == text)
    return int(added - next(before, added))
