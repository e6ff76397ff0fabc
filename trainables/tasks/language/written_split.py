"""A split that is measured on what a base writes: prompts, and the answers that are accepted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trainables.bases.parts import load_generation_config, load_tokenizer
from trainables.engine.divided import together
from trainables.engine.workers import CancelledError, Workers
from trainables.tasks.kinds.kind import EncodedRows
from trainables.tasks.language.chat import check_asked
from trainables.tasks.language.continuations import prompt_tokens
from trainables.tasks.language.encoding import Encoder, given_with_prompts
from trainables.tasks.language.extraction import ExtractSettings
from trainables.tasks.language.forms import Form
from trainables.tasks.language.generation_settings import GenerationSettings
from trainables.tasks.language.messages import asked_and_answer, from_json
from trainables.tasks.language.sequences import TOKENS_AT_ONCE, Sequences
from trainables.tasks.language.writing import batches_by_tokens, end_tokens, prompt_room, written
from trainables.tasks.language.written_metrics import References, commonest_answer, written_metric
from trainables.tasks.rows import Rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.texts import TokenRows
from trainables.tasks.work import Work


@dataclass(frozen=True)
class WrittenSplit(Sequences):
    """Prompts with their answers as sequences, and the prompts alone.

    Row i has the prompt tokens prompt_offsets[i] to prompt_offsets[i + 1] of `prompts` int32, and
    the accepted answers references[i]. `positions` is the longest row that the base takes, None
    where it sets no limit.
    """

    prompts: NDArray[np.int32] = field(kw_only=True)
    prompt_offsets: NDArray[np.int64] = field(kw_only=True)
    references: References = field(kw_only=True)
    base_uri: str = field(kw_only=True)
    generation: GenerationSettings = field(kw_only=True)
    extract: ExtractSettings | None = field(kw_only=True)
    positive: str | None = field(kw_only=True)
    positions: int | None = field(kw_only=True)

    def first(self, rows: int) -> Self:
        offsets = self.prompt_offsets[: rows + 1]
        return replace(
            super().first(rows),
            prompts=self.prompts[: offsets[-1]],
            prompt_offsets=offsets,
            references=self.references[:rows],
        )

    def measuring_work(self, on_cpu: bool) -> Work:
        """What writing puts through a base, and finding the loss of each right answer."""
        return super().measuring_work(on_cpu) + self._writing()

    def _writing(self) -> Work:
        """Every prompt once, padded to the longest of its batch, then a token a pass for each row.

        A base that has learned the task writes as much as the longest right answer of a batch.
        """
        new, prompts = self.generation.max_new_tokens, np.diff(self.prompt_offsets)
        room = prompt_room(self.generation, self.positions)
        prompts = np.clip(prompts, 1, room)
        answers = np.clip(self.lengths - prompts, 1, new)
        batches = list(batches_by_tokens(prompts.tolist(), self.generation))
        shapes = [(len(rows), int(prompts[rows].max())) for rows in batches]
        read = Work.of((rows, longest, rows) for rows, longest in shapes)
        return replace(
            read,
            seen=read.seen + sum(rows * new * (longest + new / 2) for rows, longest in shapes),
            steps=len(batches) * new,
            written=len(self) * new,
            share=float(np.mean([answers[rows].max() for rows in batches])) / new,
        )

    def write(self, model: Any, workers: Workers) -> list[str]:
        """What the model writes for every row, on every worker. A collective.

        Raises CancelledError on all of them where one has heard that it should stop.
        """
        order = np.argsort(np.diff(self.prompt_offsets), kind="stable")
        own = workers.share(order)
        bounds = self.prompt_offsets
        mine: list[tuple[int, str]] | None = None
        with suppress(CancelledError), together(model):
            texts = written(
                model,
                _tokenizer_of(self.base_uri),
                [self.prompts[bounds[i] : bounds[i + 1]].tolist() for i in own],
                self.generation,
                device=workers.device,
                most_tokens=self.positions,
                should_stop=workers.should_stop,
            )
            mine = list(zip(own.tolist(), texts, strict=True))
        every = [""] * len(self)
        for part in workers.gather_objects(mine):
            if part is None:
                raise CancelledError
            for row, text in part:
                every[row] = text
        return every

    def statistics(self, metric: str, texts: Sequence[str]) -> NDArray[np.float64]:
        """What `metric` is made of, of each row [n, k]."""
        measure = written_metric(
            metric, extract=self.extract, references=self.references, positive=self.positive
        )
        return measure.rows(texts, self.references)

    @property
    def commonest(self) -> tuple[str, str]:
        """The answer that most rows accept, as it is compared, and a text that gives it."""
        return commonest_answer(self.references, self.extract)


def written_splits(
    rows: Mapping[str, Rows], form: Form, settings: TaskSettings, base_uri: str
) -> EncodedRows:
    """Every split as tokens. Raises DataError and BaseModelError as an `Encoder` does."""
    encoder = Encoder(settings, base_uri)
    prompt_room(settings.generation, encoder.limits.tokens)
    sequences = encoder.of_form(rows, form, asked=True, answer_of=_first_answer)
    splits: dict[str, Sequences] = {}
    for split, part in rows.items():
        if split == "train":  # nothing is written for it
            splits[split] = sequences[split]
            if form.is_conversation:
                for row in part.inputs:
                    check_asked(from_json(str(row[0])))
            continue
        asked = _asked(encoder, part, form, given_with_prompts(settings))
        encoder.check_tokens(asked, part, split)
        trained = sequences[split]
        splits[split] = WrittenSplit(
            trained.input_ids, trained.targets_mask, trained.offsets, trained.pad_token_id,
            prompts=asked.input_ids, prompt_offsets=asked.offsets,
            references=references_of(part, form), base_uri=base_uri,
            generation=settings.generation, extract=settings.extract,
            positive=settings.positive_class, positions=encoder.limits.tokens,
        )  # fmt: skip
    _note_endless(encoder, sequences, settings)
    return encoder.encoded(splits)


def _note_endless(
    encoder: Encoder, sequences: Mapping[str, Sequences], settings: TaskSettings
) -> None:
    """Say where nothing that is trained ends a text, so that a base never learns to stop."""
    trained, stop = sequences.get("train"), settings.generation.stop
    if trained is None or stop:
        return
    ends = end_tokens(load_generation_config(encoder.base_uri), encoder.tokenizer)
    if not _has_target(trained, ends):
        encoder.notes.append(
            "task.chat_template: no answer of train ends with an end token of the base, so that "
            "writing goes on to max_new_tokens; end a turn with one, or give task.generation.stop"
        )


def _has_target(split: Sequences, tokens: Sequence[int]) -> bool:
    """Whether one of these tokens bears loss somewhere."""
    parts = range(0, len(split.input_ids), TOKENS_AT_ONCE)
    return any(
        np.isin(split.input_ids[part][split.targets_mask[part]], tokens).any()
        for part in (slice(start, start + TOKENS_AT_ONCE) for start in parts)
    )


def _first_answer(label: str) -> str:
    """The answer that is trained."""
    return str(json.loads(label)[0])


def references_of(rows: Rows, form: Form) -> References:
    """What is accepted after each prompt, or as the last turn of each conversation."""
    if form.is_conversation:
        return [(asked_and_answer(from_json(str(row[0])))[1],) for row in rows.inputs]
    return [tuple(json.loads(label)) for label in rows.labels]


def _asked(encoder: Encoder, rows: Rows, form: Form, given: str) -> TokenRows:
    """The tokens of each prompt, whole and with what is `given` behind it."""
    texts = [str(row[0]) for row in rows.inputs]
    if form.is_conversation:
        chat = encoder.chat()
        asked = [chat.prompt_of(from_json(text))[0] for text in texts]
        ids = encoder.tokenizer(asked, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        ids = prompt_tokens(encoder.tokenizer, [text + given for text in texts])
    return TokenRows.of(ids)


@lru_cache(maxsize=1)
def _tokenizer_of(base_uri: str) -> Any:
    """The tokenizer of the base that a worker has, which it reads once."""
    return load_tokenizer(base_uri)
