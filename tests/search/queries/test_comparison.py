"""`compare` sets what a sweep confirmed side by side, from MLflow alone."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient

from search.cli.main import main
from search.queries.comparison import compare, verdict
from spaces.errors import RanksweepError, UsageError


class Sweeps:
    """Runs as docs/files.md defines them, written without the code under test."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(tracking_uri=self.uri)
        (folder / "mlartifacts").mkdir()
        place = (folder / "mlartifacts").as_uri()
        self.experiment = self.client.create_experiment("movies", place)

    def run(self, tags: dict[str, str], parent: str | None = None, **metrics: float) -> str:
        run = self.client.create_run(self.experiment)
        every = {f"ranksweep.{key}": value for key, value in tags.items()}
        every |= {"mlflow.parentRunId": parent} if parent else {}
        self.client.log_batch(
            run.info.run_id,
            metrics=[Metric(key, value, 0, 0) for key, value in metrics.items()],
            tags=[RunTag(key, value) for key, value in every.items()],
        )
        return str(run.info.run_id)

    def sweep(self, name: str) -> str:
        return self.run({"kind": "sweep", "sweep": name, "metric": "accuracy", "mode": "max"})

    def choice(
        self,
        sweep: str,
        number: int,
        arm: str,
        chosen_at: float,
        test: list[float],
        dev: list[float] | None = None,
    ) -> None:
        method = arm.partition(" ")[0]
        tags = {"method": method, "arm": arm, "number": str(number), "status": "complete",
                "choice": json.dumps({"method": method, "learning_rate": 1e-3})}  # fmt: skip
        size = {"trainable_params": 100.0 * (number + 1)}
        self.run({**tags, "kind": "trial"}, sweep, accuracy=chosen_at, **size)
        for seed, value in enumerate(test, start=1):
            on_dev = {} if dev is None else {"dev_accuracy": dev[seed - 1]}
            of_seed = {**tags, "kind": "confirm", "seed": str(seed), "task_fingerprint": "f" * 64}
            self.run(of_seed, sweep, test_accuracy=value, **on_dev, **size)


PUBLISHED = {
    "source": "TASO, Table 2", "metric": "accuracy", "unit": "percent",
    "figures": {"lora": 71.5, "pilora partition.rule=hits": 80.9, "AdaLoRA": 70.25},
    "columns": {"f1": {"lora": 70.1}},
}  # fmt: skip


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    made = Sweeps(tmp_path_factory.mktemp("compare"))
    old = made.sweep("movie")
    made.choice(old, 0, "lora", 0.1, [0.1, 0.2])
    new = made.sweep("movie")
    made.choice(new, 0, "lora", 0.80, [0.70, 0.72, 0.74])
    made.choice(new, 1, "lora", 0.79, [0.90, 0.91, 0.92])
    made.choice(new, 2, "pilora partition.rule=hits", 0.85, [0.80, 0.81, 0.82])
    made.choice(new, 3, "pilora partition.rule=random", 0.7, [0.71, 0.72, 0.74])
    made.choice(new, 4, "taso", 0.7, [0.50])
    made.sweep("unconfirmed")
    running = made.run({"kind": "sweep", "sweep": "running", "status": "running"})
    made.choice(running, 0, "lora", 0.8, [0.7, 0.8])
    tags = {"kind": "sweep", "metric": "accuracy", "mode": "max"}
    rte = made.run({**tags, "sweep": "rte", "published": json.dumps(PUBLISHED)})
    made.choice(rte, 0, "lora", 0.80, [0.70, 0.72, 0.74])
    made.choice(rte, 1, "pilora partition.rule=hits", 0.85, [0.80, 0.81, 0.82])
    made.choice(rte, 2, "taso", 0.7, [0.6, 0.62, 0.61])
    others = {"gone": "null", "odd": json.dumps({"source": 3}), "torn": '{"sour...'}
    for name, said in others.items():
        made.choice(made.run({**tags, "sweep": name, "published": said}), 0, "lora", 0.8, [0.7])
    return made


def test_a_sweep_that_still_runs_is_compared_and_said(
    sweeps: Sweeps, caplog: pytest.LogCaptureFixture
) -> None:
    (row,) = compare(sweeps.uri, "running").rows
    assert row.mean == pytest.approx(0.75)
    assert "running runs, or its launch is gone" in caplog.text
    caplog.clear()
    compare(sweeps.uri, "movie")
    assert caplog.text == ""


def test_the_newest_sweep_of_a_name_is_set_beside_its_best_lora(sweeps: Sweeps) -> None:
    rows = compare(sweeps.uri, "movie").rows
    assert [(row.arm, row.number) for row in rows] == [
        ("lora", 1),
        ("pilora partition.rule=hits", 2),
        ("pilora partition.rule=random", 3),
        ("lora", 0),
        ("taso", 4),
    ]
    hits = rows[1]
    assert hits.values == (0.80, 0.81, 0.82)
    assert hits.mean == pytest.approx(0.81)
    assert hits.deviation == pytest.approx(0.01)
    assert hits.trainable_params == 300
    # Welch by hand: s^2 = 1e-4 and 4e-4, n = 3: se = sqrt(5e-4 / 3), df = 2.9412, t = 3.2130
    assert hits.difference == pytest.approx((0.09 - 0.041478, 0.09 + 0.041478), abs=2e-4)
    assert hits.within_noise is False
    assert hits.p_value is not None
    # t = 6.9714 of 2.9412: p = 0.0064; with the other LoRA's smaller one it is the second of three
    assert hits.p_value == pytest.approx(0.0064, abs=1e-4)
    assert hits.p_adjusted == pytest.approx(2 * hits.p_value)
    assert (hits.verdict, hits.test_rows) == ("better", None)
    assert rows[2].within_noise is True
    assert rows[3].difference is None  # the best LoRA on dev is what the others are set beside
    assert rows[4].deviation is None
    assert rows[4].difference is None


def test_another_arm_can_be_what_the_others_are_set_beside(sweeps: Sweeps) -> None:
    against = "pilora partition.rule=random"
    rows = {(row.arm, row.number): row for row in compare(sweeps.uri, "movie", against).rows}
    assert rows[against, 3].difference is None
    low, high = rows["pilora partition.rule=hits", 2].difference or (0, 0)
    assert (low + high) / 2 == pytest.approx(0.81 - 0.72333, abs=1e-4)


def test_what_a_constant_answer_reaches_on_test_is_the_sweep_s_own(tmp_path: Path) -> None:
    made = Sweeps(tmp_path)
    sweep = made.sweep("movie")
    made.choice(sweep, 0, "lora", 0.8, [0.7])
    assert compare(made.uri, "movie").constant is None
    made.client.log_metric(sweep, "constant_answer_test", 0.625)
    made.client.log_metric(sweep, "constant_answer_dev", 0.5)
    assert compare(made.uri, "movie").constant == 0.625


def test_the_verdict_says_who_differs_among_how_many(sweeps: Sweeps) -> None:
    rows = compare(sweeps.uri, "movie").rows
    assert verdict(rows) == (
        "better than tuned LoRA beyond the noise: lora, pilora partition.rule=hits "
        "(3 compared, at 5% over all of them)"
    )
    within = [row for row in rows if row.within_noise is not False]
    assert verdict(within) == "no difference from tuned LoRA is beyond the noise (1 compared)"
    lora = next(row for row in rows if row.arm == "lora" and row.difference is None)
    taso = next(row for row in rows if row.arm == "taso")
    pilora = replace(next(row for row in rows if row.method == "pilora"), difference=None)
    cannot = "no difference can be told: that takes"
    assert verdict([taso]) == f"{cannot} tuned LoRA and two seeds of each choice"
    assert verdict([lora, taso]) == f"{cannot} two seeds of each choice"
    assert verdict([pilora]) == f"{cannot} tuned LoRA"
    assert verdict([lora]) == (
        "nothing but tuned LoRA was confirmed: there is no difference to tell"
    )


def test_what_is_not_there_is_said(sweeps: Sweeps) -> None:
    names = "gone, movie, odd, rte, running, torn, unconfirmed"
    with pytest.raises(RanksweepError, match=rf"nowhere: no sweep .* it has {names}"):
        compare(sweeps.uri, "nowhere")
    with pytest.raises(RanksweepError, match="nothing of it is confirmed on test yet"):
        compare(sweeps.uri, "unconfirmed")
    with pytest.raises(UsageError, match="--against: 'pilor' was not confirmed"):
        compare(sweeps.uri, "movie", "pilor")


# -- several sweeps --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    made = Sweeps(tmp_path_factory.mktemp("several"))
    tags = {"kind": "sweep", "metric": "accuracy", "mode": "max", "task_fingerprint": "f" * 64}
    one = made.run({**tags, "sweep": "one", "published": json.dumps(PUBLISHED)})
    made.choice(one, 0, "lora", 0.80, [0.70, 0.72, 0.74], dev=[0.79, 0.79, 0.79])
    made.choice(one, 1, "pilora", 0.84, [0.80, 0.81, 0.82], dev=[0.80, 0.81, 0.82])
    two = made.run({**tags, "sweep": "two"})
    made.choice(two, 0, "lora", 0.83, [0.75, 0.76, 0.78], dev=[0.8, 0.8, 0.8])
    made.choice(two, 1, "taso", 0.82, [0.60, 0.61, 0.65], dev=[0.8, 0.8, 0.8])
    by_f1 = made.run({**tags, "sweep": "by f1", "metric": "f1"})
    size = {"trainable_params": 10.0}
    said = {"method": "lora", "number": "0", "status": "complete", "choice": "{}", "seed": "1"}
    made.run({**said, "kind": "confirm"}, by_f1, test_f1=0.7, **size)
    other = made.run({**tags, "sweep": "other", "task_fingerprint": "e" * 64})
    made.choice(other, 0, "lora", 0.8, [0.7, 0.7])
    return made


def test_sweeps_stand_side_by_side_beside_the_best_lora_of_them(several: Sweeps) -> None:
    compared = compare(several.uri, ["one", "two", "one"])
    rows = {(row.sweep, row.arm): row for row in compared.rows}
    assert len(compared.rows) == 4
    assert rows["two", "lora"].difference is None  # the best on dev of both
    values = {key: np.array(row.values) for key, row in rows.items()}
    others = [key for key in rows if key != ("two", "lora")]
    p_values = {}
    for key in others:  # the same seeds: pairs, or Welch where that is wider
        gaps = values[key] - values["two", "lora"]
        row = rows[key]
        paired = scipy.stats.ttest_rel(values[key], values["two", "lora"])
        welch = scipy.stats.ttest_ind(values[key], values["two", "lora"], equal_var=False)
        widths = [np.diff(test.confidence_interval())[0] for test in (paired, welch)]
        wider = (paired, welch)[int(np.argmax(widths))]
        assert row.difference == pytest.approx(tuple(wider.confidence_interval()))
        assert sum(row.difference or ()) / 2 == pytest.approx(gaps.mean())
        p_values[key] = float(wider.pvalue)
    running = 0.0
    for step, key in enumerate(sorted(others, key=lambda key: p_values[key])):
        running = max(running, min(1.0, (len(others) - step) * p_values[key]))
        assert rows[key].p_adjusted == pytest.approx(running, rel=1e-4)
    assert verdict(compared.rows) == (
        "better than tuned LoRA beyond the noise: one:pilora; worse than tuned LoRA beyond the "
        "noise: one:lora, two:taso (3 compared, at 5% over all of them)"
    )


def test_an_arm_of_one_sweep_can_be_named(several: Sweeps) -> None:
    rows = compare(several.uri, ["one", "two"], "one:lora").rows
    beside = [(row.sweep, row.arm) for row in rows if row.difference is None]
    assert beside == [("one", "lora")]
    with pytest.raises(UsageError, match="--against: 'two:pilora' was not confirmed"):
        compare(several.uri, ["one", "two"], "two:pilora")


def test_what_was_not_measured_alike_is_not_compared(several: Sweeps) -> None:
    with pytest.raises(UsageError, match=r"it was measured by f1 \(max\), that by accuracy"):
        compare(several.uri, ["one", "by f1"])
    with pytest.raises(UsageError, match=r"other cannot be set beside one: .* on other test rows"):
        compare(several.uri, ["one", "other"])


def test_what_a_paper_prints_is_set_against_what_its_sweep_has(several: Sweeps) -> None:
    rows = {(row.sweep, row.arm): row for row in compare(several.uri, ["one", "two"]).rows}
    assert rows["two", "lora"].paper is None
    low, high = rows["one", "lora"].minus_paper or (0, 0)
    # mean 0.72, s = 0.02, n = 3, t of 2 degrees of freedom 4.3027
    assert (low, high) == pytest.approx((0.005 - 0.04968, 0.005 + 0.04968), abs=1e-4)


def test_what_was_luck_is_said(several: Sweeps, capsys: pytest.CaptureFixture[str]) -> None:
    compared = compare(several.uri, "one")
    rows = {row.arm: row for row in compared.rows}
    assert (rows["pilora"].chosen_at, rows["lora"].chosen_at) == (0.84, 0.80)
    assert rows["pilora"].luck == pytest.approx(0.84 - 0.81)
    assert rows["lora"].luck == pytest.approx(0.01)
    # it led by 0.04 when it was chosen, and by 0.81 - 0.79 over the seeds
    assert compared.luck == (
        "pilora was best on dev when it was chosen (0.8400), and over the 3 seeds that confirm it "
        "has 0.8100 on dev and 0.8100 on test: of the 0.0400 by which it led tuned LoRA on dev, "
        "0.0200 did not hold"
    )
    assert (compare(several.uri, "two").luck or "").endswith(
        "nothing of the 0.0100 by which it led taso on dev holds"
    )
    assert compare(several.uri, "by f1").luck is None
    with pytest.raises(SystemExit):
        main(["compare", "one", "two", "--tracking", several.uri, "--csv"])
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["sweep"] for line in table] == ["one", "two", "one", "two"]
    means = [float(line["mean"]) for line in table]
    assert means == pytest.approx([0.81, 0.76333, 0.72, 0.62], abs=1e-4)
    assert table[0]["choice.learning_rate"] == "0.001"
    assert json.loads(table[0]["values"]) == [0.80, 0.81, 0.82]


# -- beside what a paper prints --------------------------------------------------------------------


def test_what_a_paper_prints_stands_beside_what_was_measured(sweeps: Sweeps) -> None:
    rows = compare(sweeps.uri, "rte").rows
    papers = {row.arm: row.paper for row in rows}
    assert papers["lora"] == pytest.approx(0.715)
    assert papers["pilora partition.rule=hits"] == pytest.approx(0.809)
    assert papers["taso"] is None
    told = compare(sweeps.uri, "rte").published
    assert told is not None
    assert told.model_dump() == PUBLISHED


def test_a_sweep_that_says_nothing_of_a_paper_has_none(
    sweeps: Sweeps, caplog: pytest.LogCaptureFixture
) -> None:
    assert compare(sweeps.uri, "gone").published is None
    assert compare(sweeps.uri, "movie").published is None
    assert caplog.text == ""
    for name in ("odd", "torn"):
        (row,) = compare(sweeps.uri, name).rows
        assert row.paper is None
        assert f"{name}: what a paper prints for it cannot be read from MLflow" in caplog.text


def test_the_command_prints_paper_beside_here(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def run(uri: str, *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *arguments, "--tracking", uri])
        assert not ended.value.code
        return capsys.readouterr().out

    shown = run(sweeps.uri, "rte")
    head, *lines = (line for line in shown.splitlines() if "paper" in line or "lora" in line)
    assert [cell.strip() for cell in head.split("┃")[1:4]] == ["method", "paper", "here"]
    drawn = [[cell.strip() for cell in line.split("│")] for line in lines]
    cells = {row[1]: row[2:4] for row in drawn if len(row) > 1}
    assert cells["lora"] == ["0.7150", "0.7200"]
    assert "paper: TASO, Table 2 (accuracy); it also prints in percent AdaLoRA 70.25" in shown
    document = json.loads(run(sweeps.uri, "rte", "--json"))
    papers = [choice["paper"] for choice in document["choices"]]
    assert papers == pytest.approx([0.809, 0.715, None])
    assert document["published"] == PUBLISHED
    plain = run(sweeps.uri, "movie")
    assert "paper" not in plain
    assert "mean" in plain
