"""What a search brings on language-model tasks: examples/language, beside the untouched base.

For each task, in one run: the untouched base is measured on dev and test, the example is launched
(`ranksweep launch`, its profile and its confirmation included), and the best trial, chosen on dev,
is set beside the base by the 95 % interval of their difference on test, over seeds and rows. Then
the best leaves as a PEFT adapter (`ranksweep export`), which plain transformers and PEFT put on the
base, and is measured again. The padding is the share of the positions that go through the base in
an epoch of training which hold no token. A head that a base lacks is as it was drawn in what is
called the untouched base. With `--lm-eval` the best of a multiple choice leaves as a merged model
too, which lm-eval's own command line measures on the same test rows, asked alike. All is computed
on CPUs.

    python benchmarks/language_tasks.py --tasks siqa boolq --trials 6 --seeds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from conditions import CHECKOUT, environment
from results import Run, measured, spread

if TYPE_CHECKING:
    from search.config.sweep import SweepConfig
    from search.queries.comparison import OnTest
    from search.queries.differences import Difference
    from search.tracking.facts import RunFacts
    from trainables.tasks.task import Task

EXAMPLES = CHECKOUT / "examples" / "language"
WORKERS = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TASKS = tuple(sorted(file.stem for file in EXAMPLES.glob("*.yaml")))


@dataclass(frozen=True)
class Sweep:
    """An example as it is launched: its folder, the overrides and what they make of it."""

    folder: Path
    name: str
    overrides: Sequence[str]
    config: SweepConfig
    task: Task

    @property
    def metric(self) -> str:
        """What it is searched by, and measured on test."""
        return self.config.task.metric


@dataclass(frozen=True)
class Untouched:
    """What the base is measured to be, and the shares of padding, by where it would train."""

    dev: float
    test: OnTest
    padding: Mapping[str, float]


@dataclass(frozen=True)
class Best:
    """The best trial on dev, and what its confirmations measured on test, by seed."""

    run_id: str
    method: str
    params: int
    dev: float
    test: Mapping[int, OnTest]
    runs: Mapping[str, RunFacts]


@contextlib.contextmanager
def prepared(name: str, folder: Path, arguments: argparse.Namespace) -> Iterator[Sweep]:
    """While open, `folder` is the working directory, and holds the data and the example.

    Raises SystemExit where the data has not been made yet.
    """
    from search.config.reading import load_sweep
    from spaces.errors import DataError
    from trainables.tasks.task import build_task

    folder.mkdir(parents=True, exist_ok=True)
    overrides = [f"search.trials={arguments.trials}", f"confirm.seeds={arguments.seeds}"]
    if arguments.methods:
        overrides.append(f"space.methods=[{', '.join(arguments.methods)}]")
    overrides += arguments.set
    with contextlib.chdir(folder):
        if not Path("data").exists():
            Path("data").symlink_to(CHECKOUT / "data")
        config = load_sweep(
            EXAMPLES / f"{name}.yaml", overrides, store="file://store", tracking="sqlite:///m.db"
        )
        try:
            task = build_task(config.task, config.base)
        except DataError as error:
            raise SystemExit(f"{name}: {error} (the example's first lines say how)") from error
        yield Sweep(folder, name, overrides, config, task)


# What is set beside each other -------------------------------------------------------------------


def untouched(sweep: Sweep) -> Untouched:
    """The base with nothing attached, measured as a trial is."""
    from search.queries.comparison import OnTest
    from spaces.plan import Plan
    from trainables.adaptations.blocks import BlockAdaptation
    from trainables.bases.loading import load_base
    from trainables.engine.workers import join
    from trainables.training.evaluate import evaluate, evaluate_rows

    workers = join()
    base = load_base(sweep.config.base, sweep.task.head, sweep.task.outputs)
    task = sweep.task.fitted(base.model)
    with BlockAdaptation(base.model, Plan.of([{}], ()), seed=0) as nothing:
        dev = evaluate(base.model, nothing, task, "dev", workers)
        test, rows = evaluate_rows(base.model, nothing, task, "test", workers)
    shares = {place: padding(task, sweep.config, place == "cpu") for place in ("cpu", "device")}
    return Untouched(dev[sweep.metric], OnTest(test[sweep.metric], rows), shares)


def padding(task: Task, config: SweepConfig, on_cpu: bool) -> float:
    """The share of an epoch's positions that hold no token, in the passes that training takes."""
    from trainables.tasks.grouping import in_batches
    from trainables.tasks.split import epoch_order

    split, train = task.splits["train"], config.train
    order = epoch_order(len(split), train.seed, 1)
    positions = 0
    for batch in in_batches(order, train.batch_size):
        for rows in np.array_split(batch, train.gradient_accumulation_steps):
            if len(rows):
                passes = split.passes(rows, on_cpu)
                positions += sum(each["input_ids"].numel() for each in passes)
    return 1 - int(split.lengths.sum()) / positions


def launched(sweep: Sweep) -> dict[str, Any]:
    """What `ranksweep launch --json` says of the whole sweep."""
    given = [text for override in sweep.overrides for text in ("--set", override)]
    done = subprocess.run(
        [
            sys.executable, "-m", "search.cli.main", "launch",
            str(EXAMPLES / f"{sweep.name}.yaml"), *given,
            "--store", "file://store", "--tracking", "sqlite:///m.db", "--json",
        ],
        cwd=sweep.folder, env=environment(), check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def best_of(sweep: Sweep, result: Mapping[str, Any]) -> Best:
    """The best choice of a launch, with its confirmations. Raises SystemExit where it has none."""
    from search.queries.comparison import OnTest, kept_rows
    from search.queries.trial_run import find_trial

    if not result["best"]:
        raise SystemExit(f"{sweep.name}: no trial is complete; see {sweep.folder}")
    first = result["best"][0]
    run = find_trial(sweep.config.tracking.uri, first["run_id"])
    confirmed = {each.run_id: each for each in run.confirmations()}
    rows = kept_rows(run.recorded, list(confirmed))
    tested = {
        int(each.seed or 0): OnTest(each.metrics[f"test_{sweep.metric}"], rows.get(run_id))
        for run_id, each in confirmed.items()
    }
    if not tested:
        raise SystemExit(f"{sweep.name}: the best trial is not confirmed; see {sweep.folder}")
    return Best(
        first["run_id"], first["method"], first["trainable_params"], first["value"], tested,
        confirmed,
    )  # fmt: skip


def gained(best: Mapping[int, OnTest], base: OnTest) -> Difference:
    """How far the best is from the untouched base on the same test rows; of one seed the rows alone
    speak. Raises SystemExit where what is said of each row was not kept."""
    from search.queries.differences import Difference, difference, drawn_values

    runs = [each.rows for each in (base, *best.values())]
    known = [each for each in runs if each is not None]
    drawn = drawn_values(known) if len(known) == len(runs) else None
    if drawn is None or not all(each.is_of(known[0]) for each in known):
        raise SystemExit("what is said of each test row is not kept, or is of other rows")
    ours = dict(zip(best, drawn[1:], strict=True))
    values = {seed: each.value for seed, each in best.items()}
    rows = len(known[0])
    found = difference(
        values, dict.fromkeys(best, base.value), ours, dict.fromkeys(best, drawn[0]), rows
    )
    if found is not None:
        return found
    (seed,) = values
    part = (float((ours[seed] - drawn[0]).var(ddof=1)), max(rows - 1.0, 1.0))
    return Difference(values[seed] - base.value, ((part,),), 1, rows)


# The best as others load it ----------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """The test metric of the seed that was exported: as it was recorded, as it is loaded, and what
    lm-eval's command line says of it, if it was asked."""

    recorded: float
    loaded: float
    merged: float | None = None


def exported(sweep: Sweep, best: Best) -> Exported:
    """The best as a PEFT adapter, put on its base without a line of ours and measured again."""
    from search.trained.export import export
    from trainables.engine.workers import join

    adapter = sweep.folder / "adapter"
    written = export(sweep.config.tracking.uri, best.run_id, "peft", adapter)
    model = with_adapter(sweep.config.base, sweep.task, adapter)
    kind = sweep.task.its_kind
    import torch

    with torch.no_grad():
        readings = kind.readings(model, sweep.task, "test", join())
    value = kind.measure(sweep.task, "test", readings).metrics[sweep.metric]
    return Exported(best.runs[written["run_id"]].metrics[f"test_{sweep.metric}"], value)


def with_adapter(uri: str, task: Task, adapter: Path) -> Any:
    """The base as transformers loads it, with what PEFT puts into it."""
    from peft import PeftModel
    from transformers import GgufConfig

    from trainables.bases.location import from_pretrained_arguments
    from trainables.bases.parts import auto_class, quiet

    place, arguments = from_pretrained_arguments(uri)
    options: dict[str, Any] = dict(arguments)
    if "gguf_file" in options:
        options["quantization_config"] = GgufConfig(dequantize=True)
    if task.head != "causal":
        options |= {"num_labels": len(task.labels) or 1, "ignore_mismatched_sizes": True}
    with quiet():
        base = auto_class(task.head).from_pretrained(place, dtype="float32", **options)
        return PeftModel.from_pretrained(base, str(adapter)).get_base_model().eval()


def task_of_lm_eval(sweep: Sweep) -> dict[str, Any]:
    """A multiple choice as a task of lm-eval's, over `rows/test.jsonl` as `ranksweep rows` writes
    it.

    Raises SystemExit for another kind.
    """
    task = sweep.config.task
    if task.kind != "multiple_choice":
        raise SystemExit(f"{sweep.name}: --lm-eval goes with multiple choice alone")
    return {
        "task": f"ours_{sweep.name}",  # for lm-eval has some of the same name
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(sweep.folder / "rows" / "test.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": f"{{{{{task.label}}}}}",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_bytes")
        ],
    }


def of_lm_eval(sweep: Sweep, best: Best) -> float:
    """What lm-eval's own command line says of the best as a merged model."""
    from search.launch.rows import write_rows
    from search.trained.export import export
    from trainables.tasks.rows import load_rows

    task = task_of_lm_eval(sweep)
    export(sweep.config.tracking.uri, best.run_id, "merged", sweep.folder / "merged")
    write_rows(load_rows(sweep.config.task), sweep.config.task, sweep.folder / "rows")
    (sweep.folder / "tasks").mkdir()
    (sweep.folder / "tasks" / "task.yaml").write_text(yaml.safe_dump(task))
    # Without what `join` leaves there, by which lm-eval would look for other workers.
    alone = {key: value for key, value in environment().items() if key not in WORKERS}
    subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "--model", "hf", "--batch_size", "8",
            "--model_args", f"pretrained={sweep.folder / 'merged'},dtype=float32",
            "--tasks", task["task"], "--include_path", str(sweep.folder / "tasks"),
            "--device", "cpu", "--output_path", str(sweep.folder / "scores.json"),
        ],
        env=alone | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (file,) = sweep.folder.glob("scores*.json")
    of_metric = {"accuracy": "acc", "accuracy_per_byte": "acc_bytes"}[sweep.metric]
    value: float = json.loads(file.read_text())["results"][task["task"]][f"{of_metric},none"]
    return value


# One task ----------------------------------------------------------------------------------------


def run_task(run: Run, name: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Measure, launch, export and record one task."""
    with prepared(name, folder, arguments) as sweep:
        base = untouched(sweep)
        print(f"{name}: the untouched base {base.dev:.4f} on dev, {base.test.value:.4f} on test",
              flush=True)  # fmt: skip
        result = launched(sweep)
        best = best_of(sweep, result)
        adapter = exported(sweep, best)
        if arguments.lm_eval:
            adapter = replace(adapter, merged=of_lm_eval(sweep, best))
        report(run, sweep, base, best, gained(best.test, base.test), adapter, result)


def report(
    run: Run,
    sweep: Sweep,
    base: Untouched,
    best: Best,
    difference: Difference,
    adapter: Exported,
    result: Mapping[str, Any],
) -> None:
    """Print a task's figures and record its row."""
    from search.queries.differences import CONFIDENCE

    low, high = difference.interval(1 - CONFIDENCE)
    better = low > 0 if sweep.config.objective.mode == "max" else high < 0
    rows = {split: len(each) for split, each in sweep.task.splits.items()}
    seconds = result["seconds"]
    trial = seconds["search"] / result["states"]["complete"]
    values = [each.value for each in best.test.values()]
    its_base = Path(sweep.config.base).name
    run.record(
        f"{sweep.config.task.name} ({sweep.config.task.kind}, {sweep.metric}), {its_base}: "
        f"{rows['train']} rows trained, {rows['test']} tested",
        {
            "rows": rows,
            "base": {"dev": base.dev, "test": base.test.value},
            "best": {"dev": best.dev, "test": measured(values), "params": best.params},
            "difference": {"gap": difference.gap, "low": low, "high": high},
            "padding": base.padding,
            "seconds": {**seconds, "trial": trial},
            "exported": {name: each for name, each in vars(adapter).items() if each is not None},
        },
        f"base {base.dev:.4f} on dev, {base.test.value:.4f} on test; best ({best.method}, "
        f"{best.params:,} parameters) {best.dev:.4f} on dev, {spread(values, 4)} on test; "
        f"padding {base.padding['cpu']:.1%} (on an accelerator {base.padding['device']:.1%}); "
        f"profile {seconds.get('profile', 0):.0f} s, a trial {trial:.0f} s; the exported adapter "
        f"{adapter.loaded:.4f} where {adapter.recorded:.4f} is recorded"
        + ("" if adapter.merged is None else f", lm-eval of the merged model {adapter.merged:.4f}"),
        f"**{difference.gap:+.4f}** ({low:+.4f} to {high:+.4f}) on test: "
        + ("better than the untouched base" if better else "within the noise, or worse"),
    )


def main() -> None:
    """Run the tasks one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK",
                        help=f"of {', '.join(TASKS)} (default all)")  # fmt: skip
    parser.add_argument("--trials", type=int, default=10, help="of each sweep (default 10)")
    parser.add_argument("--seeds", type=int, default=3, help="of each confirmation (default 3)")
    parser.add_argument("--methods", nargs="+", help="that are searched (default the example's)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="as `ranksweep launch --set`, for every task")  # fmt: skip
    parser.add_argument("--lm-eval", action="store_true",
                        help="measure the merged model by lm-eval's command too")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where the sweeps are kept (default: nowhere)")
    arguments = parser.parse_args()
    run = Run.begin()
    print(run, flush=True)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder
        if folder is None:
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="ranksweep-"))
            folder = Path(made)
        for name in arguments.tasks:
            run_task(run, name, folder.resolve() / name, arguments)


if __name__ == "__main__":
    main()
