"""A tiny task of each kind on a tiny base with random weights, its rows in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.trainables.families import BAD, GOOD, WORDS, make
from tests.trainables.tasks.language.decoders import byte_tokenizer, decoder
from trainables.bases.loading import Base, load_base
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import Task, build_task

Row = dict[str, Any]

ROWS = {"train": 13, "dev": 7, "test": 6}
CHAT = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
ANSWERS = ("good", "bad", "a fine plot")


def sentence(rng: np.random.Generator) -> str:
    """Three to eight words."""
    return " ".join(rng.choice(WORDS, rng.integers(3, 9)))


def _of_classes(rng: np.random.Generator, i: int) -> Row:
    words = sentence(rng).split()
    good = np.isin(words, GOOD).sum() > np.isin(words, BAD).sum()
    return {"text": " ".join(words), "label": i if i < 2 else int(good)}  # both are there


def _of_numbers(rng: np.random.Generator, i: int) -> Row:
    words = sentence(rng).split()
    goodness = int(np.isin(words, GOOD).sum()) - int(np.isin(words, BAD).sum())
    return {"text": " ".join(words), "label": goodness + i / 8}


def _of_options(rng: np.random.Generator, i: int) -> Row:
    options = [sentence(rng) for _ in range(2 + i % 3)]  # rows have two, three or four
    return {"prompt": sentence(rng), "options": options, "label": int(rng.integers(len(options)))}


def _of_prompts(rng: np.random.Generator, i: int) -> Row:
    return {"prompt": sentence(rng), "completion": ANSWERS[i % 3 if i % 5 else 0]}


def _of_texts(rng: np.random.Generator, i: int) -> Row:
    return {"text": sentence(rng)}


def _of_messages(rng: np.random.Generator, i: int) -> Row:
    asked = {"role": "user", "content": sentence(rng)}
    answer = {"role": "assistant", "content": ANSWERS[i % 2]}
    before = [] if i % 3 else [{"role": "user", "content": "a film"}, answer]
    return {"messages": [*before, asked, answer]}


@dataclass(frozen=True)
class Example:
    """A kind on a base: what the section `task` says of it, and a row of it by its number.

    `suffixes` are the target modules that are usual.
    """

    kind: str
    base: str
    section: Mapping[str, Any]
    row: Callable[[np.random.Generator, int], Row]
    suffixes: tuple[str, ...]


ENCODER = ("query", "value", "intermediate.dense", "output.dense")
DECODER = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
_TEXT = {"text": "text", "max_length": 16}
_ANSWERED = {"prompt": "prompt", "completion": "completion", "delimiter": " "}
_TALKED = {"messages": "messages", "chat_template": CHAT}
_FEW = {"generation": {"max_new_tokens": 3}}
_WRITES = {"template": "Q: {prompt} A:", "completion": "completion", **_FEW}
_CHOOSES = {"prompt": "prompt", "options": "options"}

EXAMPLES: Mapping[str, Example] = {
    f"{each.kind} on {each.base}": each
    for each in (
        Example("classification", "bert", _TEXT, _of_classes, ENCODER),
        Example("classification", "llama", _TEXT, _of_classes, DECODER),
        Example("image_classification", "vit", {"image": "image"}, _of_texts, ("q_proj", "fc1")),
        Example("regression", "bert", {**_TEXT, "metric": "mse"}, _of_numbers, ENCODER),
        Example("regression", "llama", _TEXT, _of_numbers, DECODER),
        Example("multiple_choice", "llama", _CHOOSES, _of_options, DECODER),
        Example("multiple_choice", "qwen2", _CHOOSES, _of_options, DECODER),
        Example("causal", "llama", _ANSWERED, _of_prompts, DECODER),
        Example("causal", "qwen2", {"text": "text", "metric": "perplexity"}, _of_texts, DECODER),
        Example("generation", "llama", {**_WRITES, "metric": "accuracy"}, _of_prompts, DECODER),
        Example("generation", "qwen2", {**_TALKED, **_FEW}, _of_messages, DECODER),
    )
}
"""The forms of the rows differ from base to base, so that each goes the whole way once."""


@dataclass(frozen=True)
class MadeKind:
    """An example in a folder: its settings and base, and the task that they make."""

    example: Example
    settings: TaskSettings
    uri: str
    task: Task

    def base(self, dtype: torch.dtype = torch.float32) -> Base:
        """The base with the task's head, loaded."""
        return load_base(self.uri, self.task.head, self.task.outputs, dtype)

    def fitted(self, base: Base) -> Task:
        """The task as it goes through that base."""
        return self.task.fitted(base.model)

    def with_(self, **changes: Any) -> Task:
        """The task that the section makes with other values of some keys."""
        section = self.settings.model_dump(exclude_unset=True) | changes
        return build_task(TaskSettings.model_validate(section), self.uri)


def make_kind(name: str, folder: Path) -> MadeKind:
    """Write an example's base and rows into `folder`; the pictures are those of their family."""
    example = EXAMPLES[name]
    if example.base in ("bert", "vit"):
        family = make(example.base, folder)
        uri = family.uri
        if example.base == "vit":
            return MadeKind(example, family.settings, uri, family.task)
    else:
        uri = write_decoder(example.base, folder / "base")
    rng = np.random.default_rng(0)
    for split, number in ROWS.items():
        write_rows(folder / f"{split}.jsonl", [example.row(rng, i) for i in range(number)])
    section = {
        "name": name.replace(" ", "-"),
        "kind": example.kind,
        "data": {split: str(folder / f"{split}.jsonl") for split in ROWS},
        "max_length": 96,
        **example.section,
    }
    settings = TaskSettings.model_validate(section)
    return MadeKind(example, settings, uri, build_task(settings, uri))


def write_decoder(name: str, folder: Path) -> str:
    """Write a decoder with its tokenizer, which has no padding token; returns its URI."""
    decoder(name, torch.float32).save_pretrained(folder)
    byte_tokenizer(first="<s>").save_pretrained(folder)
    return f"path:{folder}"


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write a file of JSON lines."""
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
