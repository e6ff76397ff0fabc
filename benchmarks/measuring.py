"""What measuring multiple choice costs, and how far its numbers are from lm-eval's, in one run.

SmolLM2-135M in float32, one thread: the options of some rows of data/choices (made by
examples/prepare_choices.py) scored by ranksweep and by lm-eval's HFLM at batch size 16, text to
log-likelihoods, in turn, with the same template. Time is the processor's. The largest difference is
of an option's log-likelihood, a sum over its tokens.

    python benchmarks/measuring.py --rows 40
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from adapter_step import BASES
from conditions import CHECKOUT
from numpy.typing import NDArray
from results import Run, measured, spread

TEMPLATES = {
    "boolq": "{passage}\nQuestion: {question}?\nAnswer:",
    "piqa": "Question: {question}\nAnswer:",
    "commonsenseqa": "Question: {question}\nAnswer:",
    "openbookqa": "{question}",
    "siqa": "{passage}\nQuestion: {question}\nAnswer:",
}
MAX_LENGTH = 2048
BATCH_SIZE = 16  # of lm-eval
CHOICES = CHECKOUT / "data" / "choices"

Scores = NDArray[np.float64]
Side = Callable[["Questions"], Scores]


@dataclass(frozen=True)
class Questions:
    """Some rows of a set: their prompts, options, and which is right."""

    prompts: list[str]
    options: list[list[str]]
    right: list[int]


def questions(name: str, number: int) -> Questions:
    """A seeded choice of the test rows of a set. Raises SystemExit where it is not made yet."""
    file = CHOICES / name / "test.jsonl"
    if not file.is_file():
        raise SystemExit(f"{file}: no data; make it with python examples/prepare_choices.py")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = random.Random(0).sample(rows, min(number, len(rows)))
    return Questions(
        [TEMPLATES[name].format(**row) for row in rows],
        [row["options"] for row in rows],
        [row["answer"] for row in rows],
    )


def loaded() -> tuple[Any, Any]:
    """The base that writes, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainables.bases.location import from_pretrained_arguments
    from trainables.bases.parts import load_tokenizer

    uri = BASES["smollm2"].base
    path, options = from_pretrained_arguments(uri)
    model = AutoModelForCausalLM.from_pretrained(path, **options, dtype=torch.float32)
    return model.eval(), load_tokenizer(uri)


def ours(model: Any, tokenizer: Any) -> Side:
    """Prompts once, options behind them."""
    import torch

    from trainables.tasks.language.option_scores import choice_rows, option_log_likelihoods

    def score(asked: Questions) -> Scores:
        rows = choice_rows(
            tokenizer, asked.prompts, asked.options, asked.right, max_length=MAX_LENGTH
        )
        every = np.arange(len(rows))
        return option_log_likelihoods(model, rows, every, device=torch.device("cpu"))

    return score


def lm_evals(model: Any, tokenizer: Any) -> Side:
    """Every option behind its own copy of the prompt, but for options of one token."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    peer = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=BATCH_SIZE,
        max_length=MAX_LENGTH,
    )

    def score(asked: Questions) -> Scores:
        requests = [
            Instance("loglikelihood", {}, (prompt, f" {option}"), 0)
            for prompt, options in zip(asked.prompts, asked.options, strict=True)
            for option in options
        ]
        found = iter(peer.loglikelihood(requests, disable_tqdm=True))
        scores = np.full((len(asked.prompts), max(map(len, asked.options))), np.nan)
        for row, options in enumerate(asked.options):
            scores[row, : len(options)] = [next(found)[0] for _ in options]
        return scores

    return score


def compared(
    sides: Mapping[str, Side], asked: Questions, repeat: int
) -> tuple[dict[str, list[float]], dict[str, Scores]]:
    """Seconds of processor time of each side's turns, and what it says."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    scores: dict[str, Scores] = {}
    for _ in range(repeat):
        for name, score in sides.items():
            started = time.process_time()
            scores[name] = score(asked)
            times[name].append(time.process_time() - started)
    return times, scores


def main() -> None:
    """Measure set by set, in turn; print the figures and record the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=40, help="rows of each set (default 40)")
    parser.add_argument("--repeat", type=int, default=1, help="turns of each side (default 1)")
    parser.add_argument("--sets", nargs="+", choices=tuple(TEMPLATES), default=tuple(TEMPLATES))
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    run = Run.begin()
    print(run)
    base = loaded()
    sides = {"ours": ours(*base), "lm_eval": lm_evals(*base)}
    sides["ours"](questions("piqa", 4))  # what only the first call costs is nobody's
    sides["lm_eval"](questions("piqa", 4))
    report(run, sides, arguments.sets, arguments.rows, arguments.repeat)


def report(
    run: Run, sides: Mapping[str, Side], names: Sequence[str], rows: int, repeat: int
) -> None:
    """Measure every set, print its figures and record the row of all."""
    totals = {side: [0.0] * repeat for side in sides}
    figures: dict[str, Any] = {}
    for name in names:
        asked = questions(name, rows)
        times, scores = compared(sides, asked, repeat)
        for side, seconds in times.items():
            totals[side] = [a + b for a, b in zip(totals[side], seconds, strict=True)]
        apart = np.abs(scores["ours"] - scores["lm_eval"])
        right = {
            side: int((np.nan_to_num(each, nan=-np.inf).argmax(axis=1) == asked.right).sum())
            for side, each in scores.items()
        }
        figures[name] = {
            "rows": len(asked.right),
            "seconds": {side: measured(seconds) for side, seconds in times.items()},
            "of_lm_eval": sum(times["ours"]) / sum(times["lm_eval"]),
            "apart": float(np.nanmax(apart)),
            "apart_relative": float(np.nanmax(apart / np.abs(scores["lm_eval"]))),
            "right": right,
        }
        print(
            f"{name:13} {len(asked.right)} rows: {spread(times['ours'])} s of processor, lm-eval "
            f"{spread(times['lm_eval'])}, {figures[name]['of_lm_eval']:.2f} of it; apart by at "
            f"most {figures[name]['apart']:.1e}, relatively {figures[name]['apart_relative']:.1e}; "
            f"right {right['ours']} and {right['lm_eval']}",
            flush=True,
        )
    ratios = [a / b for a, b in zip(totals["ours"], totals["lm_eval"], strict=True)]
    apart = max(each["apart"] for each in figures.values())
    relative = max(each["apart_relative"] for each in figures.values())
    alike = all(each["right"]["ours"] == each["right"]["lm_eval"] for each in figures.values())
    by_set = ", ".join(f"{name} {each['of_lm_eval']:.2f}" for name, each in figures.items())
    run.record(
        f"measuring multiple choice, SmolLM2-135M, {rows} rows of each set, float32, against "
        f"lm-eval at batch size {BATCH_SIZE}",
        {**figures, "of_lm_eval": measured(ratios), "apart": apart, "apart_relative": relative},
        f"processor time: {spread(totals['ours'], 1)} s, lm-eval {spread(totals['lm_eval'], 1)} s; "
        f"of lm-eval's by set: {by_set}; log-likelihoods apart by at most {apart:.1e} "
        f"({relative:.1e} of them); accuracies {'the same' if alike else 'not the same'}",
        f"**{spread(ratios)}** of lm-eval's time",
    )


if __name__ == "__main__":
    main()
