"""Tiny bases that write, on disk with a tokenizer, and tasks of every kind for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from spaces.methods.registry import make_plan, parse_choice
from tests.spaces.example_profiles import drawn_profile
from tests.trainables.families import Made
from tests.trainables.tasks.language.decoders import SHAPE, TOKENS, byte_tokenizer
from tests.trainables.trained_examples import Example, trained_at_random
from trainables.bases.loading import Base, load_base
from trainables.bases.structure import base_size, resolve_targets
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import build_task

CHAT = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
MARKED_CHAT = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ':' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '</s>' }}{% endgeneration %}{% else %}"
    "{{ m['content'] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class Writer:
    """A family: its config, and the layers that are usually adapted."""

    config: Any
    suffixes: tuple[str, ...]


LLAMA = ("q_proj", "v_proj", "up_proj", "down_proj")
WRITERS: Mapping[str, Writer] = {
    "llama": Writer(transformers.LlamaConfig(**SHAPE, num_key_value_heads=2), LLAMA),
    "tied llama": Writer(
        transformers.LlamaConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True), LLAMA
    ),
    "qwen2": Writer(transformers.Qwen2Config(**SHAPE, num_key_value_heads=2), LLAMA),
    "gpt2": Writer(  # tied, and its weights are stored transposed
        transformers.GPT2Config(
            vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=256,
            initializer_range=0.3, bos_token_id=0, eos_token_id=1,
        ),
        ("c_attn", "c_proj", "c_fc"),
    ),
}  # fmt: skip

ROWS = [
    {
        "q": "a q" if i == 0 else f"the film {i} is",
        "a": "an answer" if i == 0 else "good" if i % 2 else "bad",
        "right": i % 2,
        "number": 0.5 * i,
        "instruction": "an instruction" if i == 0 else f"say {i}",
        "input": "an input" if i < 6 else "",
        "m": [
            {"role": "user", "content": "a question" if i == 0 else f"film {i}?"},
            {"role": "assistant", "content": "an answer" if i == 0 else "good"},
        ],
    }
    for i in range(12)
]
"""The first is the row that a README takes for an example."""


def write_base(name: str, folder: Path, **tokens: Any) -> str:
    """Write a base; returns its name. Its own ways of writing are odd ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(WRITERS[name].config)
    model.save_pretrained(folder)
    own = {"eos_token_id": [1, 7], "bos_token_id": 0, "repetition_penalty": 4.0, "use_cache": True}
    (folder / "generation_config.json").write_text(json.dumps(own))
    tokenizer = byte_tokenizer(**{"first": "<s>"} | tokens)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return f"path:{folder}"


def task_on(uri: str, folder: Path, kind: str, suffixes: tuple[str, ...], **section: Any) -> Made:
    """A task of a kind on a base, its rows written into `folder`."""
    folder.mkdir(exist_ok=True, parents=True)
    for split in ("train", "dev", "test"):
        lines = [json.dumps(row) for row in ROWS]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    data = {split: str(folder / f"{split}.jsonl") for split in ("train", "dev", "test")}
    settings = TaskSettings.model_validate(
        {"name": f"tiny-{kind}", "kind": kind, "data": data, "max_length": 64, **section}
    )
    unused: Any = None  # only bases of families.py have one
    return Made(kind, unused, uri, kind, build_task(settings, uri), settings, suffixes)


def its_base(made: Made) -> Base:
    """The base with the head of its task."""
    return load_base(made.uri, made.task.head, made.task.outputs)


def batch_of_tokens() -> dict[str, torch.Tensor]:
    """Two rows of tokens, the second filled up on the right."""
    ids = torch.randint(2, TOKENS, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def trained_writer(made: Made, choice: Mapping[str, Any], seed: int = 5) -> Example:
    """A trial of a task as if it had been trained, and its logits of `batch_of_tokens`."""
    base = its_base(made)
    targets = resolve_targets(base.model, base.head_modules, made.suffixes)
    size = base_size(base.model, base.head_modules)
    plan = make_plan(parse_choice(choice), targets, drawn_profile(targets), size)
    return trained_at_random(made, base, plan, choice["method"], batch_of_tokens(), seed)
