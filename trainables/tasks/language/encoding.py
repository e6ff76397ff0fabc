"""Rows for a language model as tokens: which of them bear loss, and what is cut away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from spaces.errors import BaseModelError, DataError
from trainables.bases.limits import TextLimits, text_limits
from trainables.bases.location import chat_template_files, locate, processor_files
from trainables.bases.parts import padded_tokenizer
from trainables.tasks.care import Cuts
from trainables.tasks.kinds.kind import EncodedRows
from trainables.tasks.language import token_files
from trainables.tasks.language.chat import Chat, chat_of
from trainables.tasks.language.chat_template import read_chat_template
from trainables.tasks.language.continuations import (
    Part,
    first_text,
    joined,
    shortened,
    trained_pairs,
)
from trainables.tasks.language.forms import Form
from trainables.tasks.language.messages import from_json
from trainables.tasks.language.sequences import Sequences
from trainables.tasks.rows import Rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.texts import HasTokens, check_length, check_padding, check_vocabulary

Marked = tuple[Sequence[int], Sequence[bool]]
"""A row's tokens, and which of them bear loss."""
ENCODING = 1
"""To be raised where rows become other tokens than before: then those on disk are made anew."""
LEAST_TOKENS = 2
"""Of a row with an answer: the first token of a row is predicted from nothing."""


class Encoder:
    """Turns the rows of a task into tokens of a base; `notes` are what a user should know of it."""

    def __init__(self, settings: TaskSettings, base_uri: str) -> None:
        self._settings, self.base_uri = settings, base_uri
        self.tokenizer: Any
        self.tokenizer, pads_with_end = _tokenizer_and_padding(base_uri)
        self.limits: TextLimits = text_limits(base_uri, "causal")
        check_padding(self.tokenizer, self.limits.vocabulary, base_uri)
        check_length(settings, self.tokenizer, self.limits.tokens, base_uri)
        if settings.max_length < LEAST_TOKENS:
            raise DataError(
                f"task.max_length: {settings.max_length} leaves no room for an answer, which a "
                f"token of its prompt stands before; use at least {LEAST_TOKENS}"
            )
        self.notes: list[str] = []
        if pads_with_end:
            self.notes.append(
                f"base: {base_uri} has no padding token; its end token stands for it, and bears "
                "loss only where it ends an answer"
            )

    def chat(self) -> Chat:
        """The chat template of the task. Raises DataError where there is none."""
        return chat_for(self._settings, self.base_uri, self.tokenizer)

    def of_form(
        self,
        rows: Mapping[str, Rows],
        form: Form,
        *,
        asked: bool = False,
        answer_of: Callable[[str], str] = str,
    ) -> dict[str, Sequences]:
        """Every split of rows of a form: conversations, running texts, or prompts with answers,
        which follow what the base is `asked` with where it is to write them. `answer_of` is the
        answer that a row's label holds."""
        made = {}
        for split, part in rows.items():
            cuts = Cuts()
            marked = self._marked(part, form, split, cuts, asked, answer_of)
            if part.are_stored:
                made[split], cuts = self._stored(marked, part, cuts, self._facts(form, asked))
                self.check_tokens(made[split], part, split)
            else:
                made[split] = self.checked(marked, part, split)
            self.note(cuts, split, len(part))
            if part.are_stored:
                self.notes.append(
                    f"task.data.{split}: {len(part):,} rows are too many for memory; their "
                    f"{made[split].offsets[-1]:,} tokens are mapped from the node's cache"
                )
        return made

    def _marked(
        self,
        rows: Rows,
        form: Form,
        split: str,
        cuts: Cuts,
        asked: bool,
        answer_of: Callable[[str], str],
    ) -> Iterator[Marked]:
        """Each row as tokens; `cuts` counts what is cut. Few rows are in memory at a time."""
        if form.is_conversation:
            conversations = (from_json(str(row[0])) for row in rows.inputs)
            return self._cut_behind(self.chat().encoded(conversations), split, cuts)
        if not form.has_prompt:
            return self._cut_behind(self._running(rows), split, cuts)
        return self._cut_before(self._pairs(rows, asked, answer_of), cuts)

    def _pairs(
        self, rows: Rows, asked: bool, answer_of: Callable[[str], str]
    ) -> Iterator[tuple[list[int], int]]:
        delimiter = delimiter_of(self._settings)
        given = given_with_prompts(self._settings) if asked else ""
        before = 0
        for inputs, labels in rows.blocks():
            prompts = [str(row[0]) for row in inputs]
            answers = [
                joined(prompt, answer_of(label), delimiter).removeprefix(given)
                for prompt, label in zip(prompts, labels, strict=True)
            ]
            prompts = [prompt + given for prompt in prompts]
            part = Part(before, len(rows))
            yield from trained_pairs(self.tokenizer, prompts, answers, asked=asked, part=part)
            before += len(prompts)

    def _facts(self, form: Form, asked: bool) -> dict[str, Any]:
        """What decides how the rows of a form become tokens, beside the tokenizer."""
        return {
            "encoding": ENCODING,
            "max_length": self._settings.max_length,
            "chat_template": self.chat().template if form.is_conversation else None,
            "delimiter": [delimiter_of(self._settings)] if form.has_prompt else None,
            "given": given_with_prompts(self._settings) if asked else None,
            "first": first_text(self.tokenizer),
        }

    def _stored(
        self, marked: Iterator[Marked], rows: Rows, cuts: Cuts, facts: dict[str, Any]
    ) -> tuple[Sequences, Cuts]:
        """The tokens of rows that lie in a file, mapped from files: made once."""
        pad = int(self.tokenizer.pad_token_id)
        key = token_files.key_of(self.tokenizer, rows.hashes, facts)
        if (there := token_files.found(key, pad)) is None:
            token_files.write(key, marked, cuts)
            there = token_files.found(key, pad)
        if there is None:
            raise DataError(
                f"task.data: the tokens in {token_files.folder_of(key)} are gone since they were "
                "written; launch again"
            )
        return there

    def checked(self, marked: Iterable[Marked], rows: Rows, split: str) -> Sequences:
        """Rows as the tokens of a split. Raises DataError for a token that the base lacks."""
        made = Sequences.of(marked, int(self.tokenizer.pad_token_id))
        self.check_tokens(made, rows, split)
        return made

    def check_tokens(self, tokens: HasTokens, rows: Rows, split: str) -> None:
        """Raise DataError where the base lacks one of the tokens of some rows."""
        held = self.limits.vocabulary
        check_vocabulary(tokens, rows, self.tokenizer, held, split, self.base_uri)

    def _running(self, rows: Rows) -> Iterator[Marked]:
        """Running texts as TRL has them: the tokenizer's own tokens, and an end token."""
        end = self.tokenizer.eos_token_id
        if end is None:
            raise BaseModelError(
                f"base: {self.base_uri} has a tokenizer without an end token, with which a text "
                "ends; set eos_token in tokenizer_config.json"
            )
        for inputs, _ in rows.blocks():
            texts = [str(row[0]) for row in inputs]
            for ids in self.tokenizer(texts, verbose=False)["input_ids"]:
                whole = ids if ids[-1:] == [end] else [*ids, end]
                yield whole, [True] * len(whole)

    def _cut_before(self, pairs: Iterable[tuple[list[int], int]], cuts: Cuts) -> Iterator[Marked]:
        """Prompts with answers: a prompt loses its beginning, then an answer its end."""
        longest = self._settings.max_length
        for ids, start in pairs:
            kept, begins, lost = shortened(ids, start, longest)
            cuts.rows += len(kept) < len(ids)
            cuts.answers += lost > 0
            yield kept, [False] * begins + [True] * (len(kept) - begins)

    def _cut_behind(self, marked: Iterable[Marked], split: str, cuts: Cuts) -> Iterator[Marked]:
        """Texts and conversations: they lose their end. Raises DataError where one would bear no
        loss."""
        number, longest, lost, empty = 0, self._settings.max_length, 0, 0
        for ids, targets in marked:
            number += 1
            cuts.rows += len(ids) > longest
            cuts.answers += any(targets[longest:])
            empty += not any(targets[1:])
            lost += not any(targets[1:longest])
            yield ids[:longest], targets[:longest]
        if empty:
            raise DataError(
                f"task.data.{split}: {empty:,} of {number:,} rows have nothing to learn, for the "
                "one token that would bear loss is their first, which nothing predicts; drop these "
                "rows"
            )
        if lost:
            raise DataError(
                f"task.max_length: {lost:,} of {number:,} rows of {split} have nothing to learn in "
                f"their first {longest} tokens, for their answers come later; raise max_length, or "
                "drop these rows"
            )

    def note(self, cuts: Cuts, split: str, number: int) -> None:
        """Say what was cut of a split of so many rows."""
        if (note := cuts.note(split, number, self._settings.max_length)) is not None:
            self.notes.append(note)

    def encoded(self, splits: Mapping[str, Sequences]) -> EncodedRows:
        """The splits, with what is to be known of them and a row of the first as an example."""
        first = next(iter(splits.values()))  # train, unless a suite's member is encoded
        return EncodedRows(dict(splits), tuple(self.notes), self._example(first))

    def _example(self, split: Sequences) -> tuple[tuple[str, bool], ...]:
        """The first row as the base reads it, in pieces that bear loss or do not."""
        begin, end = split.offsets[:2]
        ids, bears = split.input_ids[begin:end], split.targets_mask[begin:end]
        changes = np.flatnonzero(np.diff(bears.astype(np.int8))) + 1
        return tuple(
            (self.tokenizer.decode(part), bool(marks[0]))
            for part, marks in zip(np.split(ids, changes), np.split(bears, changes), strict=True)
        )


def chat_for(settings: TaskSettings, base_uri: str, tokenizer: Any = None) -> Chat:
    """The chat template of a task, its own or that of the base's tokenizer. Raises DataError where
    there is none."""
    tokenizer = tokenizer_of(base_uri) if tokenizer is None else tokenizer
    return chat_of(tokenizer, read_chat_template(settings.chat_template), base_uri)


def tokenizer_of(base_uri: str) -> Any:
    """The tokenizer of a base, its files read once as long as they stay as they are.

    Every caller has the same one, so none may change it. Raises BaseModelError as `load_tokenizer`
    does.
    """
    return _tokenizer_and_padding(base_uri)[0]


def _tokenizer_and_padding(base_uri: str) -> tuple[Any, bool]:
    path = locate(base_uri, weights=False)
    names = [*processor_files(path), *chat_template_files(path)] if path.is_dir() else [""]
    stats = [(path / name).stat() for name in names]
    return _read_tokenizer(base_uri, tuple((each.st_mtime_ns, each.st_size) for each in stats))


@lru_cache(maxsize=2)
def _read_tokenizer(base_uri: str, stamps: tuple[tuple[int, int], ...]) -> tuple[Any, bool]:
    return padded_tokenizer(base_uri)


def given_with_prompts(settings: TaskSettings) -> str:
    """What of the delimiter a base is given that is to write the answer: all but the spaces that
    end it, which most tokenizers hold in one token with the word behind them."""
    return (delimiter_of(settings) or "").rstrip(" ")


def delimiter_of(settings: TaskSettings) -> str | None:
    """What stands between prompt and answer; None for a space where none is there yet.

    A column of prompts ends them as it does, as in TRL.
    """
    return "" if settings.delimiter is None and settings.template is None else settings.delimiter
