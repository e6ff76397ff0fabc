"""A tiny decoder, tasks of lm-eval over local files, and lm-eval's own answer for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch
import yaml
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from spaces.plan import Block, Plan
from spaces.target import TargetModule
from trainables.adaptations.blocks import BlockAdaptation
from trainables.training.lm_eval_scores import BOOTSTRAP_ITERS
from trainables.training.lm_eval_settings import LmEvalSettings
from trainables.training.lm_eval_state import undisturbed
from trainables.training.lm_eval_tasks import LmEvalTasks

WORDS = ("red", "green", "blue", "stone", "river", "cloud", "under", "over", "beside")

CHOICE: dict[str, Any] = {
    "task": "tiny_choice",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "rows.json", "test": "rows.json"}},
    "training_split": "train",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ],
}
WRITING: dict[str, Any] = {
    "task": "tiny_writing",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.json"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[label]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        {"metric": "chrf", "aggregation": "chrf", "higher_is_better": True},
    ],
}
PROSE: dict[str, Any] = {
    "task": "tiny_prose",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.json"}},
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}


def write_tasks(folder: Path, *tasks: dict[str, Any], rows: int = 17) -> list[str]:
    """Write the tasks' files, and the rows that all of them read, into `folder`."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    lines = [
        {
            "question": " ".join(rng.choice(WORDS, rng.integers(3, 9))),
            "choices": [" ".join(rng.choice(WORDS, n)) for n in rng.integers(1, 4, 3)],
            "label": int(rng.integers(3)),
        }
        for _ in range(rows)
    ]
    (folder / "rows.json").write_text("\n".join(map(json.dumps, lines)))
    files = []
    for task in tasks:
        file = folder / f"{task.get('group', task.get('task'))}.yaml"
        file.write_text(yaml.safe_dump(task))
        files.append(str(file))
    return files


def asked_of(tasks: Sequence[str], folder: Path, **settings: Any) -> LmEvalTasks:
    return LmEvalTasks(
        LmEvalSettings.model_validate({"tasks": list(tasks), "batch_size": 4, **settings}),
        str(folder),
    )


def save_decoder(folder: Path) -> Path:
    """A tiny Llama of random weights that writes, with a tokenizer of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [" ".join(WORDS)] * 3,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128, initializer_range=0.3,
        eos_token_id=0, bos_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
        folder
    )
    return folder


def decoder(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model.requires_grad_(False).eval()


def adapted(model: Any) -> BlockAdaptation:
    """Random blocks on two modules of a decoder, as a trained trial has them attached; enter it."""
    names = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
    targets = [TargetModule(name, tuple(model.get_submodule(name).weight.shape)) for name in names]
    blocks = {
        target.name: [
            Block(
                2,
                np.arange(0, target.shape[0], 2, dtype=np.int32),
                np.arange(target.shape[1], dtype=np.int32),
                2.0,
            )
        ]
        for target in targets
    }
    return BlockAdaptation(model, Plan.of([blocks], tuple(targets)), seed=1, dropout=0.5)


def draw(adaptation: BlockAdaptation) -> None:
    """Give every factor random values, and end the stage."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adaptation.begin_stage(0, 1).parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    adaptation.end_stage()
    adaptation.eval()


def of_lm_eval(model_folder: Path, tasks: Sequence[str], **settings: Any) -> dict[str, float]:
    """What lm-eval says of a checkpoint that it loads itself; names as in MLflow."""
    with undisturbed():
        found: Any = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model_folder), "dtype": "float32"},
            tasks=[yaml.safe_load(Path(task).read_text()) for task in tasks],
            task_manager=TaskManager(include_defaults=False),
            batch_size=4,
            device="cpu",
            bootstrap_iters=BOOTSTRAP_ITERS,
            log_samples=False,
            **settings,
        )
    return {
        f"{task}/{key.removesuffix(',none')}": float(value)
        for task, metrics in found["results"].items()
        for key, value in metrics.items()
        if "," in key and isinstance(value, int | float)
    }
