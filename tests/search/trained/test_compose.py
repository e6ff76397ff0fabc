"""`ranksweep compose`: two trials in MLflow, one base, four numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from search.cli.main import main
from tests.search.trial_runs import TrialRuns
from tests.trainables.families import Made, make
from tests.trainables.trained_examples import CHOICES, Example, plan_of, trained_at_random
from tests.trainables.trained_writers import (
    WRITERS,
    its_base,
    task_on,
    trained_writer,
    write_base,
)
from trainables.bases.loading import Base, load_base
from trainables.engine.workers import join
from trainables.tasks.task import build_task
from trainables.trained.composition import Side, compose
from trainables.trained.restored import load_its_base, restored
from trainables.trained.weights import TrainedFacts


@dataclass(frozen=True)
class Kept:
    """A trial in MLflow and what it was made of."""

    made: Made
    example: Example
    run_id: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrialRuns:
    return TrialRuns(tmp_path_factory.mktemp("tracking"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("bert", tmp_path_factory.mktemp("bert"))


def kept_trial(runs: TrialRuns, made: Made, name: str, seed: int) -> Kept:
    base = load_base(made.uri, made.kind, len(made.task.labels))
    plan = plan_of(base, made.suffixes, CHOICES[name])
    example = trained_at_random(made, base, plan, seed=seed)
    return Kept(made, example, runs.trial(made, CHOICES[name], plan, example.trained))


def relabelled(table: pa.Table, file: Path, name: Callable[[int, str], str]) -> None:
    columns = table.to_pydict()
    labels = [name(i, label) for i, label in enumerate(columns["label"])]
    pq.write_table(pa.table({**columns, "label": labels}), file)


@pytest.fixture(scope="module")
def pair(
    runs: TrialRuns, bert: Made, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kept, Kept]:
    """A task of two classes and one of three, on one base."""
    folder = tmp_path_factory.mktemp("three")
    for split in ("train", "dev", "test"):
        table = pq.read_table(getattr(bert.settings.data, split))
        relabelled(table, folder / f"{split}.parquet", lambda i, _: f"class {i % 3}")
    data = {split: str(folder / f"{split}.parquet") for split in ("train", "dev", "test")}
    settings = bert.settings.model_copy(
        update={
            "name": "three",
            "metric": "macro_f1",
            "data": bert.settings.data.model_copy(update=data),
        }
    )
    other = replace(bert, settings=settings, task=build_task(settings, bert.uri))
    return kept_trial(runs, bert, "pilora", 1), kept_trial(runs, other, "taso of two rounds", 2)


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compose_runs(runs: TrialRuns, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run `ranksweep compose`: exit code, stdout, stderr."""

    def run(one: str, two: str, *more: object) -> tuple[int, str, str]:
        given = ["compose", one, two, "--tracking", runs.uri, *map(str, more)]
        with pytest.raises(SystemExit) as left:
            main(given)
        told = capfd.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


@pytest.mark.parametrize("split", ["test", "dev"])
def test_both_tasks_are_measured_alone_and_composed(
    pair: tuple[Kept, Kept], compose_runs: Command, split: str
) -> None:
    code, out, err = compose_runs(pair[0].run_id, pair[1].run_id, "--split", split, "--json")
    assert code == 0, err
    one, other = (
        Side(each.example.trained, each.example.plan, each.made.task, each.example.base)
        for each in pair
    )
    wanted = compose((one, other), split, join())
    found = json.loads(out)
    for letter, method, each, (own, both) in zip(
        "ab", ("pilora", "taso"), pair, wanted, strict=True
    ):
        assert found[letter] == {
            "run_id": each.run_id, "method": method,
            "task": each.made.settings.name, "metric": each.made.settings.metric,
            "rows": len(each.made.task.splits[split]), "alone": own, "composed": both,
            "task_changed": False,
        }  # fmt: skip
    assert found["split"] == split
    for key in ("alone", "composed"):
        assert found["average"][key] == pytest.approx((found["a"][key] + found["b"][key]) / 2)


def test_the_table_shows_the_same_numbers(pair: tuple[Kept, Kept], compose_runs: Command) -> None:
    ids = pair[0].run_id, pair[1].run_id
    found, shown = json.loads(compose_runs(*ids, "--json")[1]), compose_runs(*ids)[1]
    assert "composed, measured on test" in shown
    for side in (found["a"], found["b"], found["average"]):
        assert f"{side['alone']:.4f}" in shown
        assert f"{side['composed']:.4f}" in shown
    for word in ("tiny-bert", "three", "macro_f1", "pilora", "taso"):
        assert word in shown


def test_a_trial_composed_with_itself_keeps_its_own_number(
    pair: tuple[Kept, Kept], compose_runs: Command
) -> None:
    one = pair[0].run_id
    found = json.loads(compose_runs(one, one, "--rows", 4, "--json")[1])
    assert found["a"] == found["b"]
    assert found["a"]["rows"] == 4


@pytest.fixture
def changed(bert: Made) -> Iterator[Path]:
    """One row fewer in the test split of the first task."""
    file = Path(str(bert.settings.data.test))
    before = file.read_bytes()
    table = pq.read_table(file)
    pq.write_table(table.slice(0, len(table) - 1), file)
    yield file
    file.write_bytes(before)


def test_a_task_that_has_changed_is_said_aloud(
    pair: tuple[Kept, Kept],
    compose_runs: Command,
    changed: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    code, out, _ = compose_runs(pair[0].run_id, pair[1].run_id, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["a"]["task_changed"], found["b"]["task_changed"]) == (True, False)
    (warning,) = [record for record in caplog.records if record.name == "search.trained.compose"]
    assert "'tiny-bert' are no longer those it was trained on" in warning.getMessage()


# -- what is refused -------------------------------------------------------------------------------


def assert_refused(told: tuple[int, str, str], *words: str) -> None:
    assert told[:2] == (2, ""), told[2]
    (line,) = [line for line in told[2].splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line


def test_trials_of_two_bases_are_refused(
    runs: TrialRuns, pair: tuple[Kept, Kept], compose_runs: Command, tmp_path: Path
) -> None:
    other = kept_trial(runs, make("albert", tmp_path), "lora", 3)
    told = compose_runs(pair[0].run_id, other.run_id)
    assert_refused(told, other.run_id, "another base", "one base")


def test_a_trial_without_weights_is_refused(
    runs: TrialRuns, pair: tuple[Kept, Kept], compose_runs: Command
) -> None:
    bare = runs.trial(pair[0].made, CHOICES["lora"], pair[0].example.plan, None)
    assert_refused(compose_runs(pair[0].run_id, bare), bare, "tracking.keep_weights: all")


def test_an_unknown_run_is_refused(pair: tuple[Kept, Kept], compose_runs: Command) -> None:
    assert_refused(compose_runs("0" * 32, pair[0].run_id), "RUN_ID", "ranksweep best")


def test_data_that_is_gone_is_told_with_the_run(
    pair: tuple[Kept, Kept], compose_runs: Command, changed: Path
) -> None:
    changed.rename(changed.with_name("away"))
    try:
        told = compose_runs(pair[0].run_id, pair[1].run_id)
    finally:
        changed.with_name("away").rename(changed)
    assert_refused(told, pair[0].run_id, "no such file")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--rows", 0), ("--rows", "1 or more")),
        (("--split", "train"), ("--split", "'test', 'dev'")),
        (("--base", "path:nowhere"), ("does not exist",)),
    ],
)
def test_arguments_that_do_not_fit_are_told(
    pair: tuple[Kept, Kept], compose_runs: Command, more: tuple[Any, ...], words: tuple[str, ...]
) -> None:
    assert_refused(compose_runs(pair[0].run_id, pair[1].run_id, *more), *words)


def test_a_task_without_the_split_is_told(
    runs: TrialRuns, bert: Made, compose_runs: Command
) -> None:
    data = bert.settings.data.model_copy(update={"test": None})
    settings = bert.settings.model_copy(update={"data": data, "name": "without test"})
    made = replace(bert, settings=settings, task=build_task(settings, bert.uri))
    run_id = kept_trial(runs, made, "lora", 4).run_id
    assert_refused(compose_runs(run_id, run_id), "--split", "has no test", "--split dev")


def test_other_classes_than_were_trained_are_refused(
    pair: tuple[Kept, Kept], compose_runs: Command
) -> None:
    data = pair[1].made.settings.data
    files = [Path(str(getattr(data, split))) for split in ("train", "dev", "test")]
    before = [file.read_bytes() for file in files]
    for file in files:
        relabelled(pq.read_table(file), file, lambda _, label: label.replace("2", "9"))
    try:
        told = compose_runs(pair[0].run_id, pair[1].run_id)
    finally:
        for file, content in zip(files, before, strict=True):
            file.write_bytes(content)
    assert_refused(told, pair[1].run_id, "class 9 now", "class 2 when it was trained")


# -- bases that write ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writers(runs: TrialRuns, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kept, Kept]:
    """An answer that is written and a choice of two, on one base with one head."""
    folder = tmp_path_factory.mktemp("writers")
    uri, suffixes = write_base("tied llama", folder / "base"), WRITERS["llama"].suffixes
    written = task_on(
        uri, folder / "a", "generation", suffixes, prompt="q", completion="a", metric="rougeL",
        generation={"max_new_tokens": 4},
    )  # fmt: skip
    chosen = task_on(
        uri, folder / "b", "multiple_choice", suffixes, prompt="q", options=["bad", "good"],
        label="right", label_form="index",
    )  # fmt: skip

    def kept(made: Made, name: str, seed: int) -> Kept:
        example = trained_writer(made, CHOICES[name], seed)
        run_id = runs.trial(made, CHOICES[name], example.plan, example.trained)
        return Kept(made, example, run_id)

    return kept(written, "pilora", 1), kept(chosen, "taso of two rounds", 2)


def test_tasks_of_two_kinds_share_the_base_whose_head_both_need(
    writers: tuple[Kept, Kept], compose_runs: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[TrainedFacts] = []

    def load_once(facts: TrainedFacts, *more: Any) -> Base:
        loaded.append(facts)
        return load_its_base(facts, *more)

    monkeypatch.setattr("search.trained.compose.load_its_base", load_once)
    code, out, err = compose_runs(writers[0].run_id, writers[1].run_id, "--json")
    assert code == 0, err
    assert len(loaded) == 1
    found = json.loads(out)
    for letter, each in zip("ab", writers, strict=True):
        own, both = (merged_measure(each, others) for others in ([each], list(writers)))
        assert found[letter]["metric"] == each.made.settings.metric
        assert found[letter]["alone"] == pytest.approx(own)
        assert found[letter]["composed"] == pytest.approx(both)


def merged_measure(measured: Kept, summed: list[Kept]) -> float:
    """The metric of a task on test of W plus the updates, each from its merged weights."""
    task, base = measured.made.task, its_base(measured.made)
    updates = []
    for each in summed:
        with restored(each.example.trained, each.example.plan, each.example.base) as adaptation:
            updates.append(dict(adaptation.merged()))
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            changed = [update[name] - parameter for update in updates if name in update]
            parameter.add_(sum(changed, torch.zeros_like(parameter)))
    kind = task.its_kind
    measure = kind.measure(task, "test", kind.readings(model.eval(), task, "test", join()))
    return float(measure.metrics[task.metric])
