"""What a base writes after prompts: transformers' own `generate`, in batches of a token budget."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from spaces.errors import BaseModelError, ConfigError, DataError
from trainables.bases.key_values import key_value_bytes
from trainables.engine.workers import CancelledError, never
from trainables.tasks.grouping import within_budget
from trainables.tasks.language.continuations import begin_alike, first_token
from trainables.tasks.language.generation_settings import GenerationSettings

CACHE_BYTES = 2**31
"""What the keys and values of a batch may take: those of 4,096 tokens of a 7B in 16 bits."""
ENDED_SHARE = 0.25
"""Of a batch's rows: when so many have ended, the others go on in a batch of their own."""
LEAST_SHARED = 8
"""Tokens that all prompts begin with, from which on they go through the model once for all."""
# What a release of transformers 5 calls the keys and values that a prompt has left.
_FIELDS = {field.name for field in fields(GenerateDecoderOnlyOutput)}
_CACHE = "cache" if "cache" in _FIELDS else "past_key_values"


@torch.no_grad()
def written(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    device: torch.device,
    most_tokens: int | None = None,
    should_stop: Callable[[], bool] = never,
) -> list[str]:
    """What `model` writes after each of the `prompts` (token ids), in their order.

    A text ends before an end token (the tokenizer's, and those of the model's generation config),
    before the first of `settings.stop` behind the white space that it begins with, or after
    `settings.max_new_tokens`; special tokens are left out of it. A prompt of more than
    `most_tokens`, the base's positions, less `max_new_tokens` loses its beginning; an empty one is
    the beginning of a text.

    Rows of like length go through the model together, padded on the left; what all prompts begin
    with, such as an instruction, goes through it once, and the padding stands behind it. A text
    depends on its prompt, the settings and the model alone, sampled or not, as far as rounding lets
    it: where two tokens are alike to a float's last digits, another batch may turn them. The model
    writes in the mode that it is in: call `model.eval()` before. Its generation config is back in
    its place afterwards.

    Raises CancelledError where `should_stop` says so, which is asked before every batch,
    ConfigError where no token of a prompt would be left, DataError where a prompt is empty
    and the tokenizer has no token to begin with, BaseModelError where the model cannot write.
    """
    check_can_write(model)
    room = prompt_room(settings, most_tokens)
    begun = [_begun(prompt, place, tokenizer, room) for place, prompt in enumerate(prompts)]
    ends = end_tokens(model.generation_config, tokenizer)
    at_most = tokens_within(CACHE_BYTES, model.config, next(model.parameters()).dtype)
    texts = [""] * len(begun)
    with _bare_generation(model):
        shared = _shared_beginning(model, begun, device)
        for rows in batches_by_tokens([len(prompt) for prompt in begun], settings, at_most):
            if should_stop():
                raise CancelledError
            batch = _Batch(model, tokenizer, settings, ends, device, shared)
            for row, tokens in zip(rows, batch.write([begun[row] for row in rows]), strict=True):
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                texts[row] = cut_at(text, settings.stop)
    return texts


def check_can_write(model: Any) -> None:
    """Raise BaseModelError where a model has no way to write one token after another."""
    can_generate = getattr(model, "can_generate", None)
    if can_generate is None or not can_generate() or model.config.is_encoder_decoder:
        raise BaseModelError(
            f"base: {type(model).__name__} cannot write; use a decoder, which "
            "AutoModelForCausalLM loads"
        )


def prompt_room(settings: GenerationSettings, most_tokens: int | None) -> int | None:
    """How many tokens of a prompt the base's positions leave; None where it has no limit.

    Raises ConfigError where that is none.
    """
    if most_tokens is None:
        return None
    if settings.max_new_tokens >= most_tokens:
        raise ConfigError(
            f"task.generation.max_new_tokens: {settings.max_new_tokens:,} leave no room for a "
            f"prompt in the {most_tokens:,} positions of the base; give fewer"
        )
    return most_tokens - settings.max_new_tokens


def tokens_within(size: int, config: Any, dtype: torch.dtype) -> int | None:
    """Of how many tokens a base keeps keys and values in `size` bytes; None where of any number."""
    of_a_token = key_value_bytes(config, dtype)
    return size // of_a_token if of_a_token else None


def batches_by_tokens(
    lengths: Sequence[int], settings: GenerationSettings, at_most: int | None = None
) -> list[NDArray[np.int64]]:
    """Places of prompts of these lengths, in batches of like length, the longest first.

    A batch's rows times its longest prompt and `max_new_tokens` is at most `batch_tokens`, and
    `at_most`, where that is less.
    """
    budget = settings.batch_tokens if at_most is None else min(settings.batch_tokens, at_most)
    return within_budget(np.asarray(lengths) + settings.max_new_tokens, budget)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings in it.

    The white space that it begins with holds none: it stands between prompt and answer.
    """
    begin = len(text) - len(text.lstrip())
    found = (text.find(each, max(0, begin - len(each) + 1)) for each in stop)
    return text[: min((place for place in found if place >= 0), default=None)]


def _begun(prompt: Sequence[int], place: int, tokenizer: Any, room: int | None) -> list[int]:
    """A prompt as it goes into the model: at least a token, and no more than there is room for."""
    if prompt:
        return list(prompt if room is None else prompt[-room:])
    if (token := first_token(tokenizer)) is not None:
        return [token]
    raise DataError(
        f"task.prompt: row {place} is empty, and the base's tokenizer has no token that a text "
        "begins with; give the row a prompt"
    )


def end_tokens(generation: GenerationConfig, tokenizer: Any) -> list[int]:
    """The tokens that end a text by a base's generation config and its tokenizer, each once."""
    ends: set[int] = set()
    for token in (tokenizer.eos_token_id, generation.eos_token_id):
        ends.update([] if token is None else [token] if isinstance(token, int) else token)
    return sorted(ends)


@dataclass(frozen=True)
class _Shared:
    """The tokens that all prompts begin with, and the cache that they leave."""

    tokens: list[int]
    cache: Any = None


def _shared_beginning(model: Any, prompts: Sequence[list[int]], device: torch.device) -> _Shared:
    """What all prompts begin with: nothing where it is short, or no cache can be had of it."""
    if len(prompts) < 2:
        return _Shared([])
    # The first and the last in order differ earliest; a token of each prompt's own is left.
    first = min(prompts)
    number = min(begin_alike(first, max(prompts)), min(map(len, prompts)) - 1)
    if number < LEAST_SHARED:
        return _Shared([])
    ids = torch.tensor([first[:number]], device=device)
    cache = model(input_ids=ids, use_cache=True).get(_CACHE)
    # A window that slides over columns would count the padding behind them.
    if not _is_plain(cache, (DynamicLayer,)):
        return _Shared([])
    return _Shared(first[:number], cache)


@contextmanager
def _bare_generation(model: Any) -> Iterator[None]:
    """The model without its own generation config.

    transformers fills from it whatever a config given to `generate` leaves open: sampling,
    repetition penalty, least lengths.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _Batch:
    """Rows that go through the model together."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: GenerationSettings,
        ends: Sequence[int],
        device: torch.device,
        shared: _Shared,
    ) -> None:
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._ends, self._device, self._shared = ends, device, shared
        # It is never looked at: the mask hides it, and a row's tokens end before it.
        self._pad = next((t for t in (tokenizer.pad_token_id, *ends) if t is not None), 0)

    def write(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The tokens written after each prompt, an end token left out.

        The rows that have not ended go on by themselves as soon as enough others have, over what
        their own prompts have left in the cache.
        """
        ids, mask = self._padded(prompts)
        prompt_tokens = ids.shape[1]
        most = self._settings.max_new_tokens
        draws = [draws_of(self._settings.seed, prompt) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        rows, cache = list(range(len(prompts))), copy.deepcopy(self._shared.cache)
        if cache is not None:
            cache.batch_repeat_interleave(len(prompts))
        while rows:
            ended = _Ended(self._tokenizer, self._ends, self._settings.stop, prompt_tokens)
            outputs = self._model.generate(
                ids,
                attention_mask=mask,
                generation_config=self._config(most - (ids.shape[1] - prompt_tokens)),
                stopping_criteria=StoppingCriteriaList([ended]),
                logits_processor=self._processors([draws[row] for row in rows]),
                **({} if cache is None else {_CACHE: cache}),
            )
            ids = outputs.sequences
            last = ids.shape[1] - prompt_tokens == most
            for place, row in enumerate(rows):
                if last or place in ended.tokens:
                    answer = ids[place, prompt_tokens:].tolist()
                    answers[row] = answer[: ended.tokens.get(place)]
            open_places = [] if last else [p for p in range(len(rows)) if p not in ended.tokens]
            kept = torch.tensor(open_places, dtype=torch.long, device=self._device)
            cache = selected(outputs.get(_CACHE), kept)
            ids, mask = ids[kept], mask[kept]
            mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
            rows = [rows[place] for place in open_places]
        return answers

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, int64 [rows, longest], padded on the left.

        The padding stands behind what all prompts begin with.
        """
        shared, longest = self._shared.tokens, max(map(len, prompts))
        ids, mask = [], []
        for prompt in prompts:
            own, padding = list(prompt[len(shared) :]), longest - len(prompt)
            ids.append([*shared, *[self._pad] * padding, *own])
            mask.append([1] * len(shared) + [0] * padding + [1] * len(own))
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)

    def _config(self, new_tokens: int) -> GenerationConfig:
        # Greedy and without end tokens: drawing and ending are done by what is handed to it.
        return GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=self._pad,
            return_dict_in_generate=True,
        )

    def _processors(self, draws: Sequence[torch.Generator]) -> LogitsProcessorList:
        settings = self._settings
        processors = LogitsProcessorList()
        if settings.do_sample:
            processors.append(TemperatureLogitsWarper(settings.temperature))
            if settings.top_p < 1.0:
                processors.append(TopPLogitsWarper(settings.top_p))
            processors.append(Drawn(draws))
        return processors


def draws_of(seed: int, prompt: Sequence[int]) -> torch.Generator:
    """A row's own draws, which no other row and no batch has a part in."""
    digest = hashlib.sha256(repr((seed, list(prompt))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def selected(cache: Any, rows: torch.Tensor) -> Any:
    """The cache of these rows of a batch; None where it must be computed again."""
    if not _is_plain(cache, (DynamicLayer, DynamicSlidingWindowLayer)):
        return None
    cache.batch_select_indices(rows)
    return cache


def _is_plain(cache: Any, layers: tuple[type, ...]) -> bool:
    """Whether a cache is of keys and values alone, in layers of these types."""
    return type(cache) is DynamicCache and all(type(each) in layers for each in cache.layers)


class Drawn(LogitsProcessor):  # type: ignore[misc]
    """Scores whose largest is a draw from their softmax, by Gumbel's noise, row by row."""

    def __init__(self, draws: Sequence[torch.Generator]) -> None:
        self.draws_of = draws

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(scores.shape)
        for row, generator in zip(noise, self.draws_of, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log().to(scores.device)


class _Ended(StoppingCriteria):  # type: ignore[misc]
    """Which rows have ended: `tokens` has how many tokens each that has ended has written.

    It stops a batch when enough of its rows have. An end token is not counted; the tokens of a stop
    string are, for they may have more in them.
    """

    def __init__(
        self, tokenizer: Any, ends: Sequence[int], stop: Sequence[str], prompt_tokens: int
    ) -> None:
        self._tokenizer, self._stop, self._begin = tokenizer, stop, prompt_tokens
        self._ends = frozenset(ends)
        # A token has a byte of a text at least, and the first ones may decode otherwise.
        self._looked_back = max((len(each.encode()) for each in stop), default=0) + 4
        self.tokens: dict[int, int] = {}
        self._begun: dict[int, int] = {}  # tokens after which each row has more than white space

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        count = input_ids.shape[1] - self._begin
        newest = input_ids[:, -1].tolist()
        for row, token in enumerate(newest):
            if row not in self.tokens and token in self._ends:
                self.tokens[row] = count - 1
        if self._stop:
            self._look_for_stops(input_ids, count)
        stopped = len(self.tokens) >= ENDED_SHARE * len(newest)
        return torch.full((len(newest),), stopped, dtype=torch.bool, device=input_ids.device)

    def _look_for_stops(self, input_ids: torch.Tensor, count: int) -> None:
        open_rows = [row for row in range(len(input_ids)) if row not in self.tokens]
        back = count - self._looked_back
        whole = [row for row in open_rows if back < self._begun.get(row, count)]
        tails = [
            ids[-count if row in whole else -self._looked_back :]
            for row, ids in zip(open_rows, input_ids[open_rows].tolist(), strict=True)
        ]
        for row, tail in zip(open_rows, self._tokenizer.batch_decode(tails), strict=True):
            if row in whole:
                if tail.strip():
                    self._begun.setdefault(row, count)
                stopped = cut_at(tail, self._stop) != tail
            else:
                stopped = any(each in tail for each in self._stop)
            if stopped:
                self.tokens[row] = count
