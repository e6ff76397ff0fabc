"""A key that a sweep does not have is refused wherever it stands, and so is a value that is not
what its key takes."""

from __future__ import annotations

from typing import Any

import pytest

from search.config.defaults import sweep_name_of
from search.config.reading import parse_sweep
from search.paths import check_sweep_name
from spaces.errors import UsageError


def raw(**sections: Any) -> dict[str, Any]:
    """A sweep with what is required, and `sections` besides."""
    files = {"train": "train.csv", "dev": "dev.csv", "test": "test.csv"}
    task = {"name": "movie", "data": files, "text": "sentence", **sections.pop("task", {})}
    return {"base": "path:model", "task": task, **sections}


def nested(path: str, value: Any) -> dict[str, Any]:
    """The section that says `path`."""
    outer, _, inner = path.partition(".")
    return {outer: nested(inner, value) if inner else value}


def refusal(path: str, value: Any) -> str:
    """The one line that a sweep with this value is refused with."""
    section = nested(path, value)
    if path.startswith("task.data."):
        section["task"]["data"] |= raw()["task"]["data"]
    with pytest.raises(UsageError) as caught:
        parse_sweep(raw(**section))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [None, 1, {}])
@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("confrim", "confirm"),
        ("task.labl", "label"),
        ("task.data.tets", "test"),
        ("task.rows.trian", "train"),
        ("task.split.dev_fracton", "dev_fraction"),
        ("profile.rnak", "rank"),
        ("space.learning_rte", "learning_rate"),
        ("space.methods.pilora.rnk", "rank"),
        ("space.methods.pilora.partition.rle", "rule"),
        ("space.methods.taso.retention.hihg", "high"),
        ("search.trails", "trials"),
        ("search.scheduler.grace", "grace_epochs"),
        ("search.repeats.sedes", "seeds"),
        ("train.epoch", "epochs"),
        ("cluster.gruops", "groups"),
        ("tracking.experimnt", "experiment"),
        ("confirm.sed", "seeds"),
    ],
)
def test_an_unknown_key_is_refused_whatever_its_value(path: str, near: str, value: Any) -> None:
    line = refusal(path, value)
    assert line.startswith(f"{path}: unknown key")
    assert f"'{near}'" in line


def test_a_letter_of_another_alphabet_is_named() -> None:
    line = refusal("search.tri\u0430ls", 2)
    assert "with U+0430 CYRILLIC SMALL LETTER A in it; did you mean 'trials'?" in line


def test_a_key_with_a_dot_is_told_how_a_file_writes_it() -> None:
    with pytest.raises(UsageError) as caught:
        parse_sweep(raw(**{"search.trials": None}))
    line = "search.trials: unknown key; dots are for --set, in a file write"
    assert str(caught.value) == f"{line} `search: {{trials: ...}}`"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("train.lr", "that is space.learning_rate"),
        ("train.learning_rate", "that is space.learning_rate"),
        ("learning_rate", "that is space.learning_rate"),
        ("space.lr", "did you mean 'learning_rate'?"),
        ("profile.lr", "did you mean 'learning_rate'?"),
        ("train.num_train_epochs", "did you mean 'epochs'?"),
        ("train.per_device_train_batch_size", "did you mean 'batch_size'?"),
        ("train.lr_scheduler_type", "did you mean 'lr_scheduler'?"),
        ("train.bf16", "did you mean 'precision'?"),
        ("epochs", "that is profile.epochs or train.epochs"),
        ("warmup_ratio", "that is profile.warmup_ratio or train.warmup_ratio"),
        ("batch_size", "that is train.batch_size"),
        ("target_modules", "that is profile.target_modules"),
        ("train.target_modules", "that is profile.target_modules"),
        ("metric", "that is task.metric or search.metric"),
        ("search.n_trials", "did you mean 'trials'?"),
        ("model_name_or_path", "did you mean 'base'?"),
        ("space.methods.lora.r", "did you mean 'rank'?"),
        ("space.methods.lora.lora_alpha", "did you mean 'alpha'?"),
        ("space.methods.lora.lora_dropout", "that is train.dropout"),
        ("train.retention", "that is space.methods.METHOD.retention"),
    ],
)
def test_what_other_tools_call_a_key_is_known(path: str, meant: str) -> None:
    line = refusal(path, 1)
    assert line.startswith(f"{path}: unknown key")
    assert line.endswith(meant)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("search.trials", "8", "search.trials: should be an integer, not '8'; write 8, without"),
        ("search.trials", "1,000", "search.trials: should be an integer, not '1,000'; write 1000"),
        ("search.trials", 8.0, "search.trials: should be an integer, not 8.0; write 8"),
        ("search.trials", 8.5, "search.trials: should be an integer, not 8.5; write a plain"),
        ("search.trials", True, "search.trials: should be an integer, not true; yes, no, on"),
        ("train.epochs", None, "train.epochs: should be an integer, not null; write one"),
        ("train.epochs", [3], "train.epochs: should be an integer, not [3]; write one value"),
        ("train.dropout", "0,05", "train.dropout: should be a number, not '0,05'; write a plain"),
        (
            "train.dropout",
            "5e-2",
            "train.dropout: should be a number, not '5e-2'; write it without",
        ),
        ("train.weight_decay", float("nan"), "train.weight_decay: should be a finite number"),
        ("search.time_budget", "1:30", "search.time_budget: should be a number or null, not '1:3"),
        ("search.warm_start", "nope", "search.warm_start: should be true or false, not 'nope'"),
        ("search.warm_start", 1, "search.warm_start: should be true or false, not 1"),
        ("name", False, "name: should be text, not false; put it in quotes"),
        ("task.name", 2026, "task.name: should be text, not 2026; put it in quotes"),
        ("task.label", True, "task.label: should be text, not true; put it in quotes"),
        ("profile.use", 1234, "profile.use: should be text or null, not 1234; put it in quotes"),
        ("profile.target_modules", [1], "profile.target_modules[0]: should be text, not 1"),
        ("profile.top_percent", 5, "profile.top_percent: should be a list, not 5"),
        ("profile.top_percent", [True], "profile.top_percent[0]: should be a number, not true"),
        ("profile.memory_limit", True, "profile.memory_limit: 'True' is not a size"),
        ("search.arms", ["rank", None], "search.arms[1]: should be text, not null"),
        ("search", "trials:2", "search: should be a mapping of its keys, not 'trials:2'; write a"),
        ("cluster.resources_per_worker", {"GPU": True}, "cluster.resources_per_worker.GPU: should"),
        ("space.learning_rate", "1:30", "space.learning_rate: '1:30' is refused; it should be a"),
        ("space.methods.lora.rank", [True, 2], "space.methods.lora.rank: True is refused; it"),
        ("space.methods.lora.rank", [2, "4"], "space.methods.lora.rank: '4' is refused; it"),
        ("space.methods.lora.rank", [2, None], "space.methods.lora.rank: None is refused; it"),
        ("space.methods.lora.rank", {"low": False, "high": 4}, "space.methods.lora.rank.low: F"),
        ("space.methods.taso.lr_scaling", [1, 0], "space.methods.taso.lr_scaling: 1 is refused"),
        ("task.name", "a\nb", "task.name: 'a\\nb' has the character U+000A CONTROL CHARACTER"),
        ("task.name", "\ud800", "task.name: '\\ud800' has the character U+D800"),
        ("task.name", " ", "task.name: ' ' is no name"),
        ("confirm", False, "confirm: should be a mapping of its keys, not false; write null for"),
        ("train.seed", 2**31, "train.seed: should be less than 2147483648"),
        ("search.seed", 2**40, "search.seed: should be less than 2147483648"),
        ("space.learning_rate", "0,001", "space.learning_rate: '0,001' is refused; it should be a"),
        ("space.methods", ["LoRA"], "space.methods: 'LoRA' is no method; did you mean 'lora'?"),
        ("tracking.experiment", "x" * 501, "tracking.experiment: "),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_to_write(
    path: str, value: Any, line: str
) -> None:
    assert refusal(path, value).startswith(line)


def test_whole_numbers_and_lists_are_what_they_stand_for() -> None:
    config = parse_sweep(
        raw(
            train={"dropout": 0, "max_grad_norm": 1},
            profile={"top_percent": [5, 1], "target_modules": ["query"], "memory_limit": "2GiB"},
            search={"arms": ["rank"], "objectives": ["accuracy", "trainable_params"]},
            space={"methods": {"lora": {"rank": [2, 4]}}},
            cluster={"resources_per_worker": {"CPU": 2}},
        )
    )
    assert config.train.max_grad_norm == 1.0
    assert config.profile.top_percent == (1.0, 5.0)
    assert config.profile.memory_limit == 2**31
    assert config.cluster.resources_per_worker == {"CPU": 2.0}


# -- DeepSpeed's own -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"zero_optimization": True}, "deepspeed.zero_optimization: should be a mapping"),
        ({"zero_optimization": {"stage": True}}, "deepspeed.zero_optimization.stage: should be 0"),
        ({"zero_optimization": {"stage": "1"}}, "deepspeed.zero_optimization.stage: should be 0"),
        ({"zero_optimization": {"stage": 4}}, "deepspeed.zero_optimization.stage: should be 0"),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "deepspeed.zero_optimization.offload_param: goes with stage 3",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "deepspeed.zero_optimization.offload_param.device: should be cpu or none, not 'nvme'",
        ),
        (
            {"zero_optimisation": {"stage": 1}},
            "deepspeed.zero_optimisation: unknown key; did you mean 'zero_optimization'?",
        ),
    ],
)
def test_a_section_that_deepspeed_does_not_take_is_refused(
    section: dict[str, Any], line: str
) -> None:
    assert refusal("deepspeed", section).startswith(line)


# -- names -----------------------------------------------------------------------------------------

TASKS = ("movie", "Movie", "影评", "影評", "фильмы", "Фильмы", "Δ", "😀", "😁", "C++", "C#", "a/b",
         "a:b", "..", "...", "Résumé", "Resume", "x" * 300, "x" * 301, "影评 2", "电影 2", "_", "-",
         "a\u00a0b", "a\u200bb", "a" * 100)  # fmt: skip


def test_tasks_of_other_names_have_sweeps_of_other_names() -> None:
    names = {sweep_name_of(task) for task in TASKS}
    assert len(names) == len(TASKS)
    for name in names:
        assert check_sweep_name(name) == name
        assert not name.startswith(".")


def test_a_sweeps_name_is_the_same_at_every_launch_and_can_be_read() -> None:
    assert sweep_name_of("movie sentiment") == "movie-sentiment"
    assert sweep_name_of("影评") == "sweep-4e0548d2"
    assert sweep_name_of("Résumés, ranked") == f"Resumes-ranked-{digest('Résumés, ranked')}"
    assert parse_sweep(raw(task={"name": "影评"})).name == "sweep-4e0548d2"
    assert parse_sweep(raw(task={"name": "影评"})).tracking.experiment == "影评"


def digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"kind": "causal", "map": {"format": [5]}}, "task.map.format: should be text, not [5]"),
        (
            {"kind": "multiple_choice", "prompt": "q", "options": {"colums": ["a"]}},
            "task.options.colums: unknown key; did you mean 'columns'?",
        ),
        (
            {"kind": "multiple_choice", "prompt": "q", "options": {}},
            "task.options.columns: is required; add it",
        ),
        (
            {"kind": "multiple_choice", "prompt": "q", "options": ["a", 5]},
            "task.options[1]: should be text, not 5",
        ),
        (
            {"kind": "generation", "prompt": "q", "completion": "c", "extract": {"patern": "a"}},
            "task.extract.patern: unknown key; did you mean 'pattern'?",
        ),
    ],
)
def test_of_a_key_that_has_several_forms_the_one_that_was_meant_is_told(
    keys: dict[str, Any], line: str
) -> None:
    task = {"name": "a", "data": {"train": "train.csv", "dev": "dev.csv"}, **keys}
    with pytest.raises(UsageError) as caught:
        parse_sweep({"base": "path:model", "task": task})
    assert str(caught.value).startswith(line)
