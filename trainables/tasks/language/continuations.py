"""A prompt and the answer that continues it, as tokens.

An option is cut from its prompt as lm-eval 0.4.13 does (`TemplateLM._encode_pair` and
`HFLM.tok_encode`), so that what is measured here is what others measure: the prompt's tokens are
those of the prompt alone, the option's those that follow as many in the tokens of both together.
Where the two melt into one token, that is not all of the option's text. What is trained loses
nothing: the loss of an answer begins where the tokens of both together leave those of the prompt,
as trl 1.16 has it (`common_prefix_length`), or, where the base is asked with the prompt, behind the
prompt's own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from spaces.errors import BaseModelError, DataError

Pair = tuple[list[int], int]
"""The tokens of a prompt and its answer, and the place where the answer begins."""


class Part(NamedTuple):
    """Which rows of a split some are: those behind the first `before`, of `rows` in all."""

    before: int
    rows: int

    def answers(self, number: int) -> str:
        """How many answers have been seen with so many of it, in words."""
        seen = self.before + number
        return f"{seen} answers" if seen == self.rows else f"the first {seen:,} answers"


def joined(prompt: str, answer: str, delimiter: str | None) -> str:
    """The answer as it follows the prompt: behind the delimiter.

    None stands for a space, unless the prompt ends, or the answer begins, with white space.
    """
    if delimiter is None:
        delimiter = "" if prompt[-1:].isspace() or answer[:1].isspace() else " "
    return delimiter + answer


def scored_pairs(tokenizer: Any, prompts: Sequence[str], options: Sequence[str]) -> list[Pair]:
    """The tokens of every prompt with the option that follows it, and where the option begins.

    White space that ends a prompt counts to its option, for most tokenizers hold a space and the
    word behind it in one token. Special tokens are put before a prompt where the tokenizer puts
    them and the prompt does not begin with them; what a tokenizer puts behind a text is left out.
    A prompt without a token is the tokenizer's first token (BOS, or EOS where it has none).

    Raises BaseModelError where the tokenizer has no such token, and DataError where an option has
    no token of its own.
    """
    stripped = [prompt.rstrip() for prompt in prompts]
    wholes = [prompt + option for prompt, option in zip(prompts, options, strict=True)]
    tokens = _encoded(tokenizer, [*stripped, *wholes])
    cut = [
        (tokens[before], tokens[whole][len(tokens[before]) :])
        for before, whole in zip(stripped, wholes, strict=True)
    ]
    return _pairs(tokenizer, cut, prompts, options)


def trained_pairs(
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    asked: bool = False,
    part: Part | None = None,
) -> list[Pair]:
    """The tokens of every prompt with its answer and an end-of-sequence token behind it, unless it
    ends with one, and where the loss begins: no character of an answer is left out of it.

    A token that holds the end of a prompt and the beginning of its answer bears loss, unless the
    base is `asked` with the prompts: then the row begins with `prompt_tokens` of the prompt, and
    such an answer is made tokens by itself. Otherwise as `scored_pairs`, but that white space which
    ends a prompt is the prompt's where it has tokens of its own.
    """
    last = tokenizer.eos_token_id
    if last is None:
        raise BaseModelError(
            "base: its tokenizer has no end-of-sequence token, with which an answer ends; set "
            "eos_token in tokenizer_config.json"
        )
    wholes = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    tokens = _encoded(tokenizer, [*prompts, *wholes])
    cut: list[tuple[list[int], list[int]]] = []
    for prompt, answer, whole in zip(prompts, answers, wholes, strict=True):
        before, both = tokens[prompt], tokens[whole]
        common = begin_alike(before, both)
        if common == len(before):
            cut.append((before, both[common:]))
        elif asked:
            cut.append((before, _by_itself(tokenizer, answer)))
        else:
            cut.append((both[:common], both[common:]))
    pairs = _pairs(tokenizer, cut, prompts, answers, part)
    return [(ids if ids[-1] == last else [*ids, last], start) for ids, start in pairs]


def prompt_tokens(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens that a base is asked with, as lm-eval gives them to `generate_until`: those of the
    text as it is, and for an empty one what `scored_pairs` has in its place."""
    tokens = _encoded(tokenizer, prompts)
    return [
        tokens[prompt] or [_in_place_of_a_prompt(tokenizer, row)]
        for row, prompt in enumerate(prompts)
    ]


def _pairs(
    tokenizer: Any,
    cut: Sequence[tuple[list[int], list[int]]],
    prompts: Sequence[str],
    answers: Sequence[str],
    part: Part | None = None,
) -> list[Pair]:
    """Prompts and answers as tokens, put together; an empty prompt is the first token."""
    part = part or Part(0, len(prompts))
    pairs: list[Pair] = []
    empty: list[int] = []
    for row, (prompt, answer) in enumerate(cut):
        before = prompt or [_in_place_of_a_prompt(tokenizer, part.before + row)]
        behind = answer[1:] if not prompt and answer[:1] == before else answer
        if not behind:
            empty.append(row)
        pairs.append(([*before, *behind], len(before)))
    if empty:
        row = empty[0]
        raise DataError(
            f"task: {len(empty)} of {part.answers(len(pairs))} have no token of their own, such as "
            f"{answers[row]!r:.40} after {prompts[row][-40:]!r}; put white space between prompt "
            "and answer with task.delimiter, or drop these rows"
        )
    return pairs


def begin_alike(tokens: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(tokens), len(others))
    return next((i for i in range(shorter) if tokens[i] != others[i]), shorter)


def _by_itself(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that goes on, without the space that some tokenizers begin a text with.

    That stands before what is put in front here, the first that does not melt into the text: a
    character of private use is in no token with another one.
    """
    for before in ("\ue000", "\n", ".", ""):
        ids, both = (
            tokenizer(each, add_special_tokens=False, verbose=False)["input_ids"]
            for each in (before, before + text)
        )
        if both[: len(ids)] == ids:
            break
    return list(both[len(ids) :])


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


def _in_place_of_a_prompt(tokenizer: Any, row: int) -> int:
    """The token that stands for a prompt without one. Raises BaseModelError where there is none."""
    if (first := first_token(tokenizer)) is None:
        raise BaseModelError(
            "base: its tokenizer has neither a first nor an end token to stand for an "
            f"empty prompt, as in row {row + 1}; set bos_token in tokenizer_config.json"
        )
    return first


def first_token(tokenizer: Any) -> int | None:
    """What lm-eval puts in an empty prompt's place (`HFLM.prefix_token_id`)."""
    token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return None if token is None else int(token)


def first_text(tokenizer: Any) -> str | None:
    """That token as text: a text that begins with it has its special tokens already."""
    token = first_token(tokenizer)
    return None if token is None else str(tokenizer.decode([token])) or None


def tokens_behind(tokenizer: Any) -> int:
    """How many special tokens a tokenizer puts behind a text."""
    if not (added := tokenizer.num_special_tokens_to_add()):
        return 0
    plain, whole = tokenizer("a", add_special_tokens=False), tokenizer("a", verbose=False)
    text, ids = plain["input_ids"], whole["input_ids"]
    before = (n for n in range(added + 1) if ids[n : n + len(text)] == text)
    return int(added - next(before, added))
