"""Records a surface: some hundred short trials of one task, for `search_quality.py` to search.

The trials are those of a sweep: plans from one profile, trained by the function that a resident
worker runs, in this process, without Ray and with one thread. Their choices fill the space of each
method evenly (scrambled Sobol points), and each has a seed of its own; some choices are then
repeated with other seeds, which tells the noise. Only numbers are kept, in benchmarks/surfaces:
<task>.jsonl has one line for what was recorded and then one a trial, <task>.safetensors is the
profile. A recording that was cut off goes on where it was.

    python examples/prepare_digits.py --out data/digits
    python benchmarks/record_surface.py digits
    python benchmarks/record_surface.py parity --per-method 12 --repeated 0

The sweep is that of examples/digits-vit.yaml, shortened: a trial takes three to five seconds of one
core, and choices differ by far more than seeds do. `parity` is another task for the same base: odd
or even, learned from other rows.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import Run

if TYPE_CHECKING:
    from search.config.sweep import SweepConfig
    from search.launch.prepare import SweepInputs
    from spaces.choice import Choice
    from spaces.profile import Profile

ROOT = Path(__file__).resolve().parent.parent
SURFACES = Path(__file__).resolve().parent / "surfaces"
TASKS = ("digits", "parity")
ROWS_SEED = {"digits": 0, "parity": 1}
# Short enough for some hundred trials an hour on one core, long enough for choices to differ.
OVERRIDES = (
    "train.epochs=2",
    "search.objectives=[accuracy, trainable_params]",
    "cluster.resources_per_worker={CPU: 1}",
    "confirm=null",
)
TRAIN_ROWS = 800


@dataclass(frozen=True)
class Record:
    """One trial: `accuracy` and `dev_loss` per epoch, `seconds` by the clock."""

    number: int
    choice: dict[str, Any]
    seed: int
    trainable_params: int
    accuracy: list[float]
    dev_loss: list[float]
    seconds: float

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


def surface_sweep(task: str) -> SweepConfig:
    """The sweep of examples/digits-vit.yaml, shortened, on a task of this benchmark.

    Raises SystemExit where the data has not been made yet.
    """
    from search.config.reading import load_sweep

    data = ROOT / "data"
    if not (data / "digits" / "train.parquet").is_file():
        raise SystemExit("no data; make it with python examples/prepare_digits.py")
    if task == "parity":
        make_parity(data / "digits", data / "parity")
    rows = f"task.rows={{train: {TRAIN_ROWS}, seed: {ROWS_SEED[task]}}}"
    files = (f"task.data.{split}={data}/{task}/{split}.parquet" for split in ("train", "dev"))
    names = (f"name={task}-surface", f"task.name={task}", "task.data.test=null")
    base = f"base=path:{data}/digits/vit-self-trained"
    store = f"store=file://{ROOT}/.ranksweep/store"
    overrides = (*OVERRIDES, *files, *names, rows, base, store)
    return load_sweep(ROOT / "examples" / "digits-vit.yaml", overrides)


def compute_bytes(config: SweepConfig, prepared: SweepInputs) -> bytes:
    """The file of a sweep's profile, computed here."""
    from trainables.bases.loading import fresh_head, load_base
    from trainables.engine.workers import join
    from trainables.profiling.profile import compute_profile

    base = load_base(prepared.base_uri, config.task.kind, prepared.task.labels)
    return compute_profile(
        base.model, fresh_head(base, config.profile.seed), prepared.targets, prepared.task,
        config.profile, workers=join(), base_fingerprint=base.fingerprint,
    ).to_bytes()  # fmt: skip


def design(
    prepared: SweepInputs, start: int, per_method: int, repeated: int, repeats: int
) -> Iterator[tuple[Choice, int]]:
    """(choice, seed) of every trial, the methods in turn.

    The first `repeated` choices, which are spread over methods and space as all are, come once more
    with each of `repeats` other seeds before the rest; so `per_method` may be raised later on.
    """
    import numpy as np
    from optuna.trial import FixedTrial
    from scipy.stats.qmc import Sobol

    space = prepared.space
    points = {
        method: Sobol(len(domains), seed=np.random.default_rng([start, number])).random_base2(
            max(1, per_method - 1).bit_length()
        )
        for number, (method, domains) in enumerate(space.domains.items())
    }
    choices = [
        space.suggest(FixedTrial({"method": method, **_at(space.domains[method], method, row)}))
        for rows in zip(*(points[method][:per_method] for method in space.methods), strict=True)
        for method, row in zip(space.methods, rows, strict=True)
    ]
    numbered = list(enumerate(choices))
    for number, choice in numbered[:repeated]:
        yield choice, number
    for repeat in range(1, repeats + 1):
        for number, choice in numbered[:repeated]:
            yield choice, 100_000 * repeat + number
    for number, choice in numbered[repeated:]:
        yield choice, number


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
    base = load_base(prepared.base_uri, config.task.kind, prepared.task.labels)
    train = partial(_trained, base, prepared.task, config.train, join())
    start_of_design = 7 + TASKS.index(task)
    wanted = list(design(prepared, start_of_design, per_method, repeated, repeats))
    for number, (choice, seed) in enumerate(wanted):
        if number in done:
            continue
        if time.monotonic() > until:
            print(f"{task}: {len(done)} of {len(wanted)} trials after {minutes:g} minutes")
            return
        started = time.perf_counter()
        plan = planner.plan(choice)
        accuracy, dev_loss = train(plan, choice.learning_rate, seed)
        found = Record(
            number, choice.as_dict(), seed, plan.trainable_params, accuracy, dev_loss,
            round(time.perf_counter() - started, 2),
        )  # fmt: skip
        with (SURFACES / f"{task}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")
        done.add(number)
        print(
            f"{number + 1}/{len(wanted)} {choice.method:11} lr {choice.learning_rate:.1e} "
            f"{plan.trainable_params:8} {found.value:.4f} {found.seconds:.1f} s, "
            f"load {os.getloadavg()[0]:.1f}",
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
        "--per-method", type=int, default=56, metavar="N",
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
