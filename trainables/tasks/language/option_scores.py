"""How likely a base finds each option of a row, with the prompt computed once for all of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spaces.errors import DataError, shown
from trainables.tasks.grouping import within_budget
from trainables.tasks.language.continuations import joined, scored_pairs, shortened
from trainables.tasks.texts import TokenRows
from trainables.tasks.work import Work

LOGITS_AT_ONCE = 2**24
"""Logits of one softmax: 64 MiB in float32."""
CPU_TOKENS, DEVICE_TOKENS = 256, 8192
"""Tokens of a pass: on SmolLM2-135M passes of 2,048 took a CPU a fifth to three quarters longer."""
PROBE_TOKENS = 5
"""Of a prompt, and at most of an option, on which it is seen whether options can share a pass."""
MOST_APART = {torch.float64: 1e-4, torch.float32: 1e-2}
"""How far sums over so few tokens may be apart for rounding alone; 0.5 in half precision."""
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ChoiceRows:
    """The rows of a split as tokens, in flat arrays that can be shared between processes.

    Row i has the prompt tokens prompt_offsets[i] to prompt_offsets[i + 1] and the options first[i]
    to first[i + 1]; option j has the tokens option_offsets[j] to option_offsets[j + 1], which are
    behind the prompt's. `prompts` and `options` int32 [tokens], the offsets and `first` int64;
    `option_bytes` int64 [options]: the UTF-8 of the option's text; `right` int64 [n]: which option
    of its row is right. `prompts_cut` rows have lost the beginning of their prompt, `options_cut`
    options their end.
    """

    prompts: NDArray[np.int32]
    prompt_offsets: Integers
    options: NDArray[np.int32]
    option_offsets: Integers
    first: Integers
    option_bytes: Integers
    right: Integers
    prompts_cut: int = 0
    options_cut: int = 0

    def __len__(self) -> int:
        return len(self.right)

    def first_rows(self, rows: int) -> ChoiceRows:
        """At most so many rows."""
        first = self.first[: rows + 1]
        prompt_offsets = self.prompt_offsets[: rows + 1]
        option_offsets = self.option_offsets[: first[-1] + 1]
        return replace(
            self,
            prompts=self.prompts[: prompt_offsets[-1]],
            prompt_offsets=prompt_offsets,
            options=self.options[: option_offsets[-1]],
            option_offsets=option_offsets,
            first=first,
            option_bytes=self.option_bytes[: first[-1]],
            right=self.right[:rows],
        )

    def row(self, index: int) -> tuple[list[int], list[list[int]]]:
        """The tokens of a row: of its prompt, and of each option."""
        start, end = self.prompt_offsets[index : index + 2]
        bounds = self.option_offsets[self.first[index] : self.first[index + 1] + 1]
        options = [self.options[a:b].tolist() for a, b in pairwise(bounds)]
        return self.prompts[start:end].tolist(), options

    @cached_property
    def most_options(self) -> int:
        """Options of the row that has most."""
        return int(np.diff(self.first).max(initial=0))

    @cached_property
    def lengths(self) -> Integers:
        """Tokens of each row, its prompt once and all its options, int64 [n]."""
        of_options = np.diff(self.option_offsets[self.first])
        return np.diff(self.prompt_offsets) + of_options

    @cached_property
    def token_counts(self) -> Integers:
        """Tokens of each option, int64 [n, most options], 0 beyond a row's."""
        return self._table(np.diff(self.option_offsets))

    @cached_property
    def byte_counts(self) -> Integers:
        """Bytes of each option, int64 [n, most options], 0 beyond a row's."""
        return self._table(self.option_bytes)

    def work(self, on_cpu: bool, shares_prompts: bool) -> Work:
        """What `option_log_likelihoods` of all rows puts through a base that lets the options of a
        row share its prompt, or does not."""
        shapes = self._shapes(on_cpu, shares_prompts)
        return Work.of((lines, longest, lines * logits) for lines, longest, logits in shapes)

    def widest(self, on_cpu: bool, shares_prompts: bool) -> tuple[int, int, int]:
        """The lines of the pass of most tokens of those, the positions of each, and at how many of
        them the next token is predicted."""
        return max(self._shapes(on_cpu, shares_prompts), key=lambda shape: shape[0] * shape[1])

    def _shapes(self, on_cpu: bool, shares_prompts: bool) -> Iterator[tuple[int, int, int]]:
        grown = _tree if shares_prompts else _branches
        made = (grown(*self.row(index), index) for index in range(len(self)))
        trees = [each for one in made for each in ((one,) if isinstance(one, _Tree) else one)]
        for batch in _passes(trees, CPU_TOKENS if on_cpu else DEVICE_TOKENS):
            longest = len(batch[0])
            kept = min(tree.first_target + longest - len(tree) for tree in batch)
            yield len(batch), longest, longest - kept

    def _table(self, of_options: Integers) -> Integers:
        counts = np.diff(self.first)
        table = np.zeros((len(self), self.most_options), dtype=np.int64)
        table[np.arange(self.most_options) < counts[:, None]] = of_options
        return table


def choice_rows(
    tokenizer: Any,
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    right: Sequence[int],
    *,
    max_length: int,
    delimiter: str | None = None,
) -> ChoiceRows:
    """Tokens of the prompts [n], of the options of each row, and which of them is right.

    All options of a row follow the same prompt: where prompt and longest option have more than
    `max_length` tokens, it loses its beginning for all of them. (lm-eval lets a shorter option see
    more of it.) Raises DataError and BaseModelError as `scored_pairs` does, and
    DataError where options differ only in what they lose.
    """
    first = np.cumsum([0, *map(len, options)])
    pairs = scored_pairs(
        tokenizer,
        [prompt for prompt, texts in zip(prompts, options, strict=True) for _ in texts],
        [
            joined(prompt, text, delimiter)
            for prompt, texts in zip(prompts, options, strict=True)
            for text in texts
        ],
    )
    kept_prompts: list[list[int]] = []
    kept_options: list[list[int]] = []
    prompts_cut = options_cut = 0
    alike: list[int] = []
    for begin, end in pairwise(first):
        of_row = pairs[begin:end]
        cut = [shortened(ids, start, max_length) for ids, start in of_row]
        prompt = min((ids[:start] for ids, start, _ in cut), key=len)
        kept_prompts.append(prompt)
        kept = [ids[start:] for ids, start, _ in cut]
        kept_options += kept
        prompts_cut += len(prompt) < of_row[0][1]
        lost = sum(lost > 0 for _, _, lost in cut)
        options_cut += lost
        if lost and len(set(map(tuple, kept))) < len({tuple(ids[at:]) for ids, at in of_row}):
            alike.append(len(kept_prompts) - 1)
    if alike:
        raise DataError(
            f"task.max_length: {len(alike):,} of {len(prompts):,} rows have options that are the "
            f"same in their first {max_length - 1} tokens, such as the row of the prompt "
            f"{shown(prompts[alike[0]], 40)!r}; raise max_length, or drop these rows"
        )
    flat_prompts, flat_options = TokenRows.of(kept_prompts), TokenRows.of(kept_options)
    return ChoiceRows(
        prompts=flat_prompts.input_ids,
        prompt_offsets=flat_prompts.offsets,
        options=flat_options.input_ids,
        option_offsets=flat_options.offsets,
        first=first,
        option_bytes=np.array([len(text.encode()) for texts in options for text in texts]),
        right=np.asarray(right, dtype=np.int64),
        prompts_cut=prompts_cut,
        options_cut=options_cut,
    )


@torch.no_grad()
def option_log_likelihoods(
    model: nn.Module,
    rows: ChoiceRows,
    indices: Integers,
    *,
    device: torch.device,
    batch_tokens: int | None = None,
) -> NDArray[np.float64]:
    """The log-likelihood of each option behind its prompt: float64 [len(indices), most options].

    Sums over an option's tokens; NaN beyond the options of a row. Prompt and options of a row are
    one sequence, in which an option sees the prompt and itself, and what options begin with alike
    is there once; where a base knows no such attention, each option goes through it behind a copy
    of the prompt. A pass takes rows of like length up to `batch_tokens` tokens, padding included,
    and at least one row; a CPU is fastest with few, which it gets where nothing is said. Softmax in
    float32, or in float64 where the base computes in it. The model's own dropout is the caller's to
    switch off.
    """
    scores = np.full((len(indices), rows.most_options), np.nan)
    of_rows = [rows.row(int(index)) for index in indices]
    trees = [_tree(prompt, options, place) for place, (prompt, options) in enumerate(of_rows)]
    forked = [row for row, tree in zip(of_rows, trees, strict=True) if tree.is_forked]
    shared = bool(forked) and _shares_prompts(model, forked[0], max(map(len, trees)), device)
    if forked and not shared:
        trees = [
            branch
            for place, (prompt, options) in enumerate(of_rows)
            for branch in _branches(prompt, options, place)
        ]
    if batch_tokens is None:
        batch_tokens = CPU_TOKENS if device.type == "cpu" else DEVICE_TOKENS
    for batch in _passes(trees, batch_tokens):
        _add_scores(scores, model, batch, device, placed=shared)
    return scores


# -- prompts with the options that grow from them --------------------------------------------------


@dataclass(frozen=True)
class _Tree:
    """Tokens that go through the base as one sequence.

    Of each token `positions` is the place that it has in its own text, and `parents` the place in
    the sequence of the token before it there. Each of `targets` is the place of the token that
    predicts, the token that is predicted, and the row and option that its log-likelihood counts to;
    the first place that predicts is `first_target`.
    """

    ids: list[int]
    positions: list[int]
    parents: list[int]
    first_target: int
    targets: list[tuple[int, int, int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_forked(self) -> bool:
        """Whether there are tokens that must not see all those before them."""
        return any(parent != place - 1 for place, parent in enumerate(self.parents))

    def seen(self) -> NDArray[np.bool_]:
        """Whether each token sees each: those before it in its own text, and itself."""
        sees = np.tri(len(self), dtype=bool)
        for place in range(self.first_target + 1, len(self)):
            sees[place, :place] = sees[self.parents[place], :place]
        return sees


def _tree(prompt: Sequence[int], options: Sequence[Sequence[int]], row: int) -> _Tree:
    """A prompt once and its options behind it, which share the tokens with which they begin alike.

    The last token of an option predicts nothing, so it is not there.
    """
    last = len(prompt) - 1
    tree = _Tree(list(prompt), list(range(len(prompt))), list(range(-1, last)), last)
    children: dict[tuple[int, int], int] = {}
    for number, option in enumerate(options):
        place = last
        for token in option[:-1]:
            tree.targets.append((place, token, row, number))
            child = children.setdefault((place, token), len(tree))
            if child == len(tree):
                tree.ids.append(token)
                tree.positions.append(tree.positions[place] + 1)
                tree.parents.append(place)
            place = child
        tree.targets.append((place, option[-1], row, number))
    return tree


def _branches(prompt: Sequence[int], options: Sequence[Sequence[int]], row: int) -> Iterator[_Tree]:
    """Each option behind a copy of the prompt."""
    for number, option in enumerate(options):
        tree = _tree(prompt, [option], row)
        targets = [(place, token, row, number) for place, token, _, _ in tree.targets]
        yield replace(tree, targets=targets)


def _passes(trees: Sequence[_Tree], batch_tokens: int) -> Iterator[list[_Tree]]:
    """Trees of like length, and among those of one length of like prompts."""
    ordered = sorted(trees, key=lambda tree: tree.first_target, reverse=True)
    for places in within_budget(np.array([len(tree) for tree in ordered]), batch_tokens):
        yield [ordered[place] for place in places]


# -- passes ----------------------------------------------------------------------------------------


def _add_scores(
    scores: NDArray[np.float64],
    model: nn.Module,
    trees: Sequence[_Tree],
    device: torch.device,
    *,
    placed: bool,
) -> None:
    """Write the log-likelihoods of the options of some trees into `scores`, by one pass.

    A base whose tokens can be `placed` is told their positions and filled up on the left, so that
    options end in one column; else it is filled up behind all that counts, which any base ignores.
    """
    accepted = inspect.signature(model.forward).parameters
    longest = max(map(len, trees))
    shifts = [longest - len(tree) if placed else 0 for tree in trees]
    ids = np.zeros((len(trees), longest), dtype=np.int64)
    positions, real = np.zeros_like(ids), np.zeros_like(ids)
    for row, (tree, shift) in enumerate(zip(trees, shifts, strict=True)):
        inside = slice(shift, shift + len(tree))
        ids[row, inside], positions[row, inside], real[row, inside] = tree.ids, tree.positions, 1
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(device)}
    if any(tree.is_forked for tree in trees):
        seen = torch.from_numpy(visible(trees, shifts)).to(device)
        inputs["attention_mask"] = seen if _attention(model) == "sdpa" else _added(seen, model)
    else:
        inputs["attention_mask"] = torch.from_numpy(real).to(device)
    if placed:
        inputs["position_ids"] = torch.from_numpy(positions).to(device)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    kept = min(tree.first_target + shift for tree, shift in zip(trees, shifts, strict=True))
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = torch.arange(kept, longest, device=device)
    logits = model(**inputs).logits[:, kept - longest :]
    targets = np.array(
        [
            (row * (longest - kept) + place + shift - kept, *rest)
            for row, (tree, shift) in enumerate(zip(trees, shifts, strict=True))
            for place, *rest in tree.targets
        ]
    )
    found = _log_likelihoods(logits.flatten(0, 1), targets[:, 0], targets[:, 1])
    cells = targets[:, 2], targets[:, 3]
    scores[cells] = 0.0
    np.add.at(scores, cells, found)


def visible(trees: Sequence[_Tree], shifts: Sequence[int]) -> NDArray[np.bool_]:
    """Which tokens each sees, [trees, 1, longest, longest].

    What fills a row up sees itself, for a softmax over nothing is no number.
    """
    longest = max(map(len, trees))
    seen = np.zeros((len(trees), 1, longest, longest), dtype=bool)
    seen[:] = np.eye(longest, dtype=bool)
    for row, (tree, shift) in enumerate(zip(trees, shifts, strict=True)):
        inside = slice(shift, shift + len(tree))
        seen[row, 0, inside, inside] = tree.seen()
    return seen


def _added(seen: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """The mask as what transformers' own attention adds to its scores."""
    dtype = _dtype(model)
    hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return hidden.masked_fill_(~seen, torch.finfo(dtype).min)


def _log_likelihoods(
    logits: torch.Tensor, places: Integers, tokens: Integers
) -> NDArray[np.float64]:
    """log p of the tokens [targets] by the logits [places, vocabulary] at their places."""
    used, of_target = np.unique(places, return_inverse=True)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    at = torch.from_numpy(used).to(logits.device)
    sums = torch.cat(
        [
            logits[part].to(dtype).logsumexp(dim=-1)
            for part in at.split(max(1, LOGITS_AT_ONCE // logits.shape[-1]))
        ]
    )
    target = torch.from_numpy(places), torch.from_numpy(tokens)
    of_tokens = logits[tuple(index.to(logits.device) for index in target)].to(dtype)
    found = of_tokens - sums[torch.from_numpy(of_target).to(logits.device)]
    return found.double().cpu().numpy()


def _shares_prompts(
    model: nn.Module, row: tuple[list[int], list[list[int]]], longest: int, device: torch.device
) -> bool:
    """Whether options can grow from one prompt in a pass: whether that changes no number.

    A base whose attention is another function of the mask, such as ALiBi's or one without any, is
    found out by trying on a few tokens of a forked row, with more of its prompt and with less.
    """
    config = _config(model)
    windows = (getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size"))
    if (
        "position_ids" not in inspect.signature(model.forward).parameters
        or _attention(model) not in ("sdpa", "eager")
        or getattr(config, "alibi", False)
        or getattr(model, "_is_stateful", False)
        or any(isinstance(window, int) and window < longest for window in windows)
    ):
        return False
    prompt, options = _fork(*row)
    probes = [(prompt[-PROBE_TOKENS:], options), (prompt[-2:], options)]
    shared, whole = (np.full((2, len(options)), np.nan) for _ in range(2))
    try:
        trees = [_tree(*probe, place) for place, probe in enumerate(probes)]
        _add_scores(shared, model, trees, device, placed=True)
    except (ValueError, RuntimeError, TypeError, IndexError):  # it takes no such mask
        return False
    for place, probe in enumerate(probes):
        for branch in _branches(*probe, place):
            _add_scores(whole, model, [branch], device, placed=False)
    return bool(np.abs(shared - whole).max() <= MOST_APART.get(_dtype(model), 0.5))


def _fork(
    prompt: Sequence[int], options: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """Two options of a forked row from where they part, and what is before them both."""
    for one, other in combinations(options, 2):
        for place in range(min(len(one), len(other)) - 1):  # the last token is not there
            if one[place] != other[place]:
                parts = [list(each[place : place + PROBE_TOKENS]) for each in (one, other)]
                return [*prompt, *one[:place]], parts
    raise ValueError("no two options part before their last tokens")


def _config(model: nn.Module) -> Any:
    """The config of what reads text."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _attention(model: nn.Module) -> str | None:
    return getattr(_config(model), "_attn_implementation", None)


def _dtype(model: nn.Module) -> torch.dtype:
    """The precision that a base computes in; a quantised one keeps its weights in another."""
    floats = (each.dtype for each in model.parameters() if each.is_floating_point())
    return next(floats, torch.float32)
