"""`ranksweep export` and `plan --as peft`: what they write, and what they refuse in one line."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from search.cli.main import main
from search.trained.readme import base_note
from spaces.plan import Plan
from tests.search.trained.readmes import run_by_readme
from tests.search.trial_runs import TrialRuns
from tests.spaces.example_profiles import drawn_profile
from tests.trainables.families import WORDS, Made, make
from tests.trainables.trained_examples import (
    BASELINES,
    CHOICES,
    Example,
    assert_same,
    example_of,
    logits_of,
    plan_of,
    trained_at_random,
)
from trainables.bases.heads import Head
from trainables.bases.loading import Base, load_base
from trainables.bases.parts import load_tokenizer
from trainables.bases.structure import resolve_targets
from trainables.tasks.rows import load_rows

CHOICE = CHOICES["pilora"]


@dataclass(frozen=True)
class Kept:
    """A trial in MLflow, and the function that it has trained."""

    made: Made
    runs: TrialRuns
    run_id: str
    example: Example


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrialRuns:
    return TrialRuns(tmp_path_factory.mktemp("tracking"))


@pytest.fixture(scope="module", params=["bert", "gpt2", "vit"])
def kept(
    request: pytest.FixtureRequest, runs: TrialRuns, tmp_path_factory: pytest.TempPathFactory
) -> Kept:
    return kept_trial(request.param, runs, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bert(runs: TrialRuns, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return kept_trial("bert", runs, tmp_path_factory.mktemp("one"))


def kept_trial(name: str, runs: TrialRuns, folder: Path) -> Kept:
    made = make(name, folder)
    example = example_of(made, CHOICE)
    run_id = runs.trial(made, CHOICE, example.plan, example.trained)
    return Kept(made, runs, run_id, example)


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command line: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        told = capfd.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


@pytest.fixture
def export(command: Command, tmp_path: Path) -> Command:
    """Export the trial of `kept` into tmp_path/out."""

    def run(kept: Kept, form: str, *more: object) -> tuple[int, str, str]:
        where = ("--tracking", kept.runs.uri, "--out", tmp_path / "out")
        return command("export", kept.run_id, "--to", form, *where, *more)

    return run


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_the_code_of_the_readme_loads_what_was_trained(
    kept: Kept, export: Command, form: str, tmp_path: Path
) -> None:
    code, _, err = export(kept, form)
    assert code == 0, err
    names = run_by_readme(tmp_path / "out")
    assert_same(logits_of(names["model"], kept.example.batch), kept.example.logits)
    assert set(names["predictions"]) <= set(kept.made.task.labels)
    if (tokenizer := names.get("tokenizer")) is not None:
        check_it_makes_the_trials_inputs(kept, tokenizer)


def check_it_makes_the_trials_inputs(kept: Kept, tokenizer: Any) -> None:
    """Also of texts that are longer than the trial reads; the dev rows have the trial's logits."""
    its = load_tokenizer(kept.made.uri)
    texts = ["good film the plot " * 9, "bad", *WORDS]
    cut = its(texts, truncation=True, max_length=16)["input_ids"]
    assert len(cut[0]) == 16
    assert tokenizer(texts, truncation=True)["input_ids"] == cut
    rows = load_rows(kept.made.settings)["dev"].inputs
    batch = tokenizer([row[0] for row in rows], truncation=True, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], kept.example.batch["input_ids"])
    assert torch.equal(batch["attention_mask"], kept.example.batch["attention_mask"])


@pytest.mark.parametrize("theirs", [("1", "0"), ("no", "yes", "maybe")])
@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_base_with_a_head_of_its_own_leaves_with_the_heads_classes_of_the_task(
    bert: Kept, export: Command, theirs: tuple[str, ...], form: str, tmp_path: Path
) -> None:
    """Whether the trial began with that head, in another order, or with a fresh one instead."""
    bare, folder = Path(bert.made.uri.removeprefix("path:")), tmp_path / "base"
    shutil.copytree(bare, folder)
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_pretrained(
        bare, id2label=dict(enumerate(theirs)), label2id={n: i for i, n in enumerate(theirs)}
    ).save_pretrained(folder)
    made = replace(bert.made, uri=f"path:{folder}")
    example = example_of(made, CHOICE)
    assert example.base.head.resized == (len(theirs) == 3)
    run_id = bert.runs.trial(made, CHOICE, example.plan, example.trained)
    code, _, err = export(replace(bert, made=made, run_id=run_id), form)
    assert code == 0, err
    model = run_by_readme(tmp_path / "out")["model"]
    assert model.config.id2label == {0: "0", 1: "1"}
    assert_same(logits_of(model, example.batch), example.logits)


def test_a_plan_leaves_with_its_choice_and_no_weights(
    bert: Kept, export: Command, tmp_path: Path
) -> None:
    assert export(bert, "plan")[0] == 0
    folder = tmp_path / "out"
    assert Plan.read(folder / "plan.safetensors").digest == bert.example.plan.digest
    assert json.loads((folder / "plan.json").read_text()) == bert.example.plan.summary()
    assert yaml.safe_load((folder / "choice.yaml").read_text()) == CHOICE
    assert len(list(folder.iterdir())) == 4  # and the README


def test_a_plan_needs_no_weights(bert: Kept, command: Command, tmp_path: Path) -> None:
    run_id = bert.runs.trial(bert.made, CHOICE, bert.example.plan, None, state="pruned")
    where = ("--tracking", bert.runs.uri, "--out", tmp_path / "out")
    assert command("export", run_id, "--to", "plan", *where)[0] == 0


def test_what_was_written_is_told(bert: Kept, export: Command, tmp_path: Path) -> None:
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    files += ["tokenizer.json", "tokenizer_config.json"]
    code, out, _ = export(bert, "peft", "--json")
    assert code == 0
    assert json.loads(out) == {
        "run_id": bert.run_id, "confirms": None, "method": "pilora", "to": "peft",
        "out": str(tmp_path / "out"), "files": files,
    }  # fmt: skip
    shutil.rmtree(tmp_path / "out")
    assert export(bert, "peft")[1].split() == ["wrote", str(tmp_path / "out"), *files]


def test_the_readme_says_where_it_came_from(bert: Kept, export: Command, tmp_path: Path) -> None:
    export(bert, "peft")
    text = (tmp_path / "out" / "README.md").read_text()
    for word in (bert.run_id, bert.runs.uri, bert.made.uri, bert.example.plan.digest, "classifier"):
        assert word in text


@dataclass(frozen=True)
class Confirmed:
    """A trial and the runs that confirm its choice, by seed, each with what it has trained."""

    trial: Kept
    seeds: Mapping[int, Kept]


@pytest.fixture(scope="module")
def confirmed(bert: Kept) -> Confirmed:
    """Seed 2 is the best of three on dev, seed 1 on test; seed 4 has kept no weights."""
    sweep, made, plan = bert.runs.sweep(bert.made), bert.made, bert.example.plan
    trial = bert.runs.trial(made, CHOICE, plan, bert.example.trained, sweep=sweep, accuracy=0.95)
    measured = {1: (0.70, 0.90), 2: (0.85, 0.60), 3: (0.80, 0.70), 4: (0.99, 0.80)}
    seeds = {}
    for seed, (dev, test) in measured.items():
        example = trained_at_random(made, bert.example.base, plan, seed=seed)
        trained = None if seed == 4 else example.trained
        run_id = bert.runs.trial(
            made, CHOICE, plan, trained, kind="confirm", sweep=sweep, seed=seed,
            dev_accuracy=dev, test_accuracy=test,
        )  # fmt: skip
        seeds[seed] = Kept(made, bert.runs, run_id, example)
    failed = {"dev_accuracy": 1.0, "test_accuracy": 1.0}
    bert.runs.trial(
        made, CHOICE, plan, bert.example.trained, "failed", "confirm", sweep=sweep, seed=5, **failed
    )
    return Confirmed(Kept(made, bert.runs, trial, bert.example), seeds)


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_of_a_confirmed_trial_the_seed_that_is_best_on_dev_is_written(
    confirmed: Confirmed, export: Command, form: str, tmp_path: Path
) -> None:
    code, out, err = export(confirmed.trial, form, "--json")
    assert code == 0, err
    best = confirmed.seeds[2]
    told = json.loads(out)
    assert (told["run_id"], told["confirms"]) == (best.run_id, confirmed.trial.run_id)
    model = run_by_readme(tmp_path / "out")["model"]
    assert_same(logits_of(model, best.example.batch), best.example.logits)


def test_its_readme_has_the_scores_of_dev_and_test(
    confirmed: Confirmed, export: Command, tmp_path: Path
) -> None:
    assert "--as-searched" in export(confirmed.trial, "peft")[1]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| accuracy | dev | test |" in text
    assert "| this model (seed 2) | 0.8500 | 0.6000 |" in text
    # mean of .70 .85 .80 .99 and of .90 .60 .70 .80; deviations with n - 1
    assert "| mean of 4 seeds, and their deviation | 0.8350 ± 0.1207 | 0.7500 ± 0.1291 |" in text
    assert "max_length = 16 tokens" in text
    assert confirmed.trial.run_id in text


def test_a_trial_can_be_written_as_it_was_searched(
    confirmed: Confirmed, export: Command, tmp_path: Path
) -> None:
    code, out, err = export(confirmed.trial, "merged", "--as-searched", "--json")
    assert code == 0, err
    assert json.loads(out)["run_id"] == confirmed.trial.run_id
    model = run_by_readme(tmp_path / "out")["model"]
    assert_same(logits_of(model, confirmed.trial.example.batch), confirmed.trial.example.logits)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| this model | 0.9500 | - |" in text
    assert "itself it was never measured on test" in text


def test_a_confirmation_is_written_by_its_own_id(
    confirmed: Confirmed, export: Command, tmp_path: Path
) -> None:
    code, out, err = export(confirmed.seeds[3], "merged", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["run_id"], told["confirms"]) == (confirmed.seeds[3].run_id, None)
    model = run_by_readme(tmp_path / "out")["model"]
    example = confirmed.seeds[3].example
    assert_same(logits_of(model, example.batch), example.logits)


def test_a_plan_is_that_of_the_trial(confirmed: Confirmed, export: Command) -> None:
    told = json.loads(export(confirmed.trial, "plan", "--json")[1])
    assert (told["run_id"], told["confirms"]) == (confirmed.trial.run_id, None)


def test_a_base_of_a_package_is_named_as_another_machine_finds_it(
    runs: TrialRuns, export: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "a_tiny_package"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    made = replace(make("bert", package), uri="package:a_tiny_package/base")
    example = example_of(made, CHOICE)
    kept = Kept(made, runs, runs.trial(made, CHOICE, example.plan, example.trained), example)
    code, _, err = export(kept, "peft")
    assert code == 0, err
    names = run_by_readme(tmp_path / "out")
    assert_same(logits_of(names["model"], example.batch), example.logits)
    (line,) = re.findall(r"^base = .*\n(.*)", (tmp_path / "out" / "README.md").read_text(), re.M)
    assert line.strip() == "str(files('a_tiny_package') / 'base'),"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("hub:some/model@abc123", ("`some/model` of the Hugging Face hub", "`abc123`")),
        ("hub:some/model/q8.gguf@abc123", ("`some/model`, file `q8.gguf`,", "`abc123`")),
        ("package:pytest/none", (f"pip install pytest=={pytest.__version__}",)),
    ],
)
def test_the_readme_says_what_the_base_is(uri: str, words: tuple[str, ...]) -> None:
    note = base_note(Base(uri, "f" * 64, None, Head((), "none"), "bert"))
    for word in (*words, "f" * 64):
        assert word in note


def test_the_origin_of_a_folder_is_not_taken_for_its_name(bert: Kept) -> None:
    """What a config calls its origin is what it was made from, not what it is."""
    config = Path(bert.made.uri.removeprefix("path:")) / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"_name_or_path": "some/parent"}))
    try:
        note = base_note(bert.example.base)
    finally:
        config.write_text(before)
    assert "`base`: bert" in note
    assert "made from `some/parent`" in note


def test_an_empty_folder_may_be_there_and_the_missing_ones_are_made(
    bert: Kept, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a" / "b"):
        arguments = ("--to", "plan", "--tracking", bert.runs.uri, "--out", out)
        assert command("export", bert.run_id, *arguments)[0] == 0
        assert (out / "plan.json").is_file()
        assert [file.name for file in out.parent.glob(".*")] == []


def test_the_current_folder_is_filled_and_stays_the_same(
    bert: Kept, command: Command, tmp_path: Path
) -> None:
    arguments = ("--to", "plan", "--tracking", bert.runs.uri, "--out", ".")
    with contextlib.chdir(tmp_path):
        assert command("export", bert.run_id, *arguments)[0] == 0
        assert Path("plan.json").is_file()
        assert_refused(command("export", bert.run_id, *arguments), "is not empty")


# -- pruned ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_trial_leaves_with_all_its_ranks_where_the_share_is_one(
    bert: Kept, export: Command, form: str, tmp_path: Path
) -> None:
    code, _, err = export(bert, form, "--prune", 1)
    assert code == 0, err
    model = run_by_readme(tmp_path / "out")["model"]
    assert_same(logits_of(model, bert.example.batch), bert.example.logits)


def test_a_pruned_trial_is_the_same_in_both_forms_and_says_what_was_cut(
    bert: Kept, export: Command, tmp_path: Path
) -> None:
    told, logits = {}, {}
    for name, share in (("whole", 1), ("merged", 0.3), ("peft", 0.3)):
        form = "peft" if name == "peft" else "merged"
        code, out, err = export(bert, form, "--prune", share, "--json")
        assert code == 0, err
        told[name] = json.loads(out[out.index("{") :])["pruned"]  # behind what the README printed
        logits[name] = logits_of(run_by_readme(tmp_path / "out")["model"], bert.example.batch)
        (tmp_path / "out").rename(tmp_path / name)
    assert told["merged"] == told["peft"]
    assert (told["whole"]["error"], told["whole"]["params"]) == (
        0,
        bert.example.plan.trainable_params,
    )
    cut = told["merged"]
    assert (cut["share"], cut["params_before"]) == (0.3, bert.example.plan.trainable_params)
    assert cut["ranks"] == math.floor(0.3 * cut["ranks_before"] + 0.5)
    assert 0 < cut["params"] < 0.6 * cut["params_before"]
    base = bert.example.base.model.state_dict()
    whole, merged = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "merged")
    )
    changed = [t.name for t in bert.example.plan.targets]
    squares = {"lost": 0.0, "update": 0.0}
    for name in (f"{module}.weight" for module in changed):
        squares["lost"] += float((whole[name].double() - merged[name].double()).pow(2).sum())
        squares["update"] += float((whole[name].double() - base[name].double()).pow(2).sum())
    assert cut["error"] == pytest.approx((squares["lost"] / squares["update"]) ** 0.5, rel=1e-4)
    assert_same(logits["merged"], logits["peft"])
    assert (logits["merged"] - logits["whole"]).abs().max() > 1e-3
    for form in ("merged", "peft"):
        text = " ".join((tmp_path / form / "README.md").read_text().split())
        assert f"{cut['params']:,} numbers of {cut['params_before']:,}" in text
        assert f"{cut['error']:.2%} of the update" in text


@pytest.mark.parametrize("share", ["0", "-0.5", "1.01", "nan"])
def test_a_share_that_is_none_is_refused(bert: Kept, export: Command, share: str) -> None:
    assert_refused(export(bert, "peft", "--prune", share), "--prune", "above 0, at most 1")


def test_a_plan_has_nothing_to_prune(bert: Kept, export: Command) -> None:
    assert_refused(export(bert, "plan", "--prune", 0.5), "--prune", "no weights", "--to peft")


@pytest.mark.parametrize("method", ["bitfit", "full", "ia3", "vera", "dora", "bottleneck"])
def test_what_pruning_has_no_meaning_for_is_refused(
    bert: Kept, export: Command, method: str, tmp_path: Path
) -> None:
    choice = BASELINES[method]
    example = example_of(bert.made, choice)
    run_id = bert.runs.trial(bert.made, choice, example.plan, example.trained)
    told = export(replace(bert, run_id=run_id), "merged", "--prune", 0.5)
    assert_refused(told, "error: --prune: ", method, "export it without --prune")
    assert not (tmp_path / "out").exists()


# -- what is refused -------------------------------------------------------------------------------


def assert_refused(told: tuple[int, str, str], *words: str, code: int = 2) -> None:
    """Nothing on stdout, one line on stderr, which names what is wrong and what to do."""
    assert told[:2] == (code, ""), told[2]
    (line,) = [line for line in told[2].splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line
    assert "Traceback" not in told[2]


def test_a_folder_in_use_is_refused_before_anything_else(
    bert: Kept, export: Command, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert_refused(export(bert, "peft", "--tracking", "sqlite:///nowhere.db"), "is not empty")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_file_in_the_place_of_the_folder_is_refused(
    bert: Kept, export: Command, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    assert_refused(export(bert, "peft"), "--out", "is no folder")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize("run_id", ["0" * 32, "no such run", "../../etc"])
def test_an_unknown_run_is_told(bert: Kept, export: Command, run_id: str, tmp_path: Path) -> None:
    told = export(replace(bert, run_id=run_id), "peft")
    assert_refused(told, "RUN_ID", "no run", "ranksweep best")
    assert list(tmp_path.iterdir()) == []


def test_the_run_of_a_sweep_is_no_trial(bert: Kept, export: Command) -> None:
    run_id = bert.runs.sweep(bert.made)
    assert_refused(export(replace(bert, run_id=run_id), "peft"), "run of a sweep", "of a trial")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("complete", ("kept no weights", "tracking.keep_weights: all")),
        ("pruned", ("it is pruned", "a complete trial")),
        ("failed", ("it is failed", "a complete trial")),
        ("running", ("no weights yet", "when its sweep has ended")),
    ],
)
@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_run_without_weights_says_how_to_have_them(
    bert: Kept, export: Command, form: str, state: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    run_id = bert.runs.trial(bert.made, CHOICE, bert.example.plan, None, state=state)
    assert_refused(export(replace(bert, run_id=run_id), form), run_id, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_confirmation_points_to_its_trial(bert: Kept, export: Command) -> None:
    run_id = bert.runs.trial(bert.made, CHOICE, bert.example.plan, None, kind="confirm")
    told = export(replace(bert, run_id=run_id), "peft")
    assert_refused(told, run_id, "is a confirmation", "number 7 of its sweep")


def test_a_disk_that_is_full_leaves_nothing(
    bert: Kept, export: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert_refused(export(bert, "plan"), "No space left on device", "make room", code=1)
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_are_told(bert: Kept, export: Command) -> None:
    class Damaged:
        def to_bytes(self) -> bytes:
            return bert.example.trained.to_bytes()[:-100]

    run_id = bert.runs.trial(bert.made, CHOICE, bert.example.plan, Damaged())  # type: ignore[arg-type]
    assert_refused(export(replace(bert, run_id=run_id), "peft"), run_id, "not the weights")


@pytest.fixture
def moved(bert: Kept, tmp_path: Path) -> Iterator[Path]:
    """Where the base is while it is not where the trial found it."""
    home = Path(bert.made.uri.removeprefix("path:"))
    away = home.with_name("moved")
    home.rename(away)
    yield away
    away.rename(home)


def test_a_base_that_has_moved_is_found_where_the_user_says(
    bert: Kept, export: Command, moved: Path, tmp_path: Path
) -> None:
    assert_refused(export(bert, "peft"), "does not exist", "--base")
    code, _, err = export(bert, "peft", "--base", f"path:{moved}")
    assert code == 0, err
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(moved)


def test_another_base_is_refused(bert: Kept, export: Command, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bert.made.uri.removeprefix("path:"), other)
    model = transformers.AutoModel.from_pretrained(other)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(other)
    for form in ("peft", "merged"):
        told = export(bert, form, "--base", f"path:{other}")
        assert_refused(told, "is not the base that was trained", "--base")
    assert not (tmp_path / "out").exists()


def test_a_missing_database_is_told(bert: Kept, export: Command) -> None:
    told = export(bert, "peft", "--tracking", "sqlite:///nowhere.db")
    assert_refused(told, "no database", "--tracking", code=1)


def test_another_form_is_told(bert: Kept, export: Command) -> None:
    assert_refused(export(bert, "onnx"), "--to", "'peft', 'merged', 'plan'")


# -- plan --as peft --------------------------------------------------------------------------------


@pytest.fixture
def plan(bert: Kept, command: Command, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run `plan --as peft` for a choice on a profile of BERT's targets."""
    targets = resolve_targets(bert.example.base.model, ("classifier",), bert.made.suffixes)
    profile = tmp_path / "profile.safetensors"
    profile.write_bytes(drawn_profile(targets).to_bytes())

    def run(choice: Mapping[str, Any], *more: object) -> tuple[int, str, str]:
        (tmp_path / "choice.yaml").write_text(yaml.safe_dump(dict(choice)))
        given = more if "--base" in more else ("--profile", profile, *more)
        return command("plan", "--choice", tmp_path / "choice.yaml", "--as", "peft", *given)

    return run


ON_WHOLE_MATRICES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # choice -> what PEFT's config says beside ranks and scales
    "lora": ({"method": "lora", "rank": 5, "alpha": 7}, {}),
    "sensitivity": ({"method": "sensitivity", "mean_rank": 3}, {}),
    "sensitivity with modules of rank 0": (
        {"method": "sensitivity", "mean_rank": 1, "min_rank": 0, "signal": "global"},
        {},
    ),
    "pilora of all rows": ({"method": "pilora", "rank": 3, "partition": {"rule": "all"}}, {}),
    "joint of all rows and columns": (
        {"method": "joint", "mean_rank": 3, "partition": {"rule": "all"}, "retention": 1},
        {},
    ),
    "rslora": ({"method": "rslora", "rank": 4}, {"use_rslora": True}),
    "dora": ({"method": "dora", "rank": 4}, {"use_dora": True}),
    "pissa": ({"method": "pissa", "rank": 4}, {"init_lora_weights": "pissa"}),
}


@pytest.mark.parametrize(
    ("choice", "switches"), ON_WHOLE_MATRICES.values(), ids=ON_WHOLE_MATRICES.keys()
)
def test_peft_gives_each_module_the_rank_and_scale_of_the_plan(
    bert: Kept, plan: Command, choice: dict[str, Any], switches: dict[str, Any]
) -> None:
    code, out, err = plan(choice)
    assert code == 0, err
    config = json.loads(out)
    assert {key: config[key] for key in switches} == switches
    model = load_base(bert.made.uri, bert.made.kind, 2).model
    peer: Any = peft.get_peft_model(model, peft.LoraConfig(**config))
    found = {
        name: (layer.r["default"], layer.scaling["default"])
        for name, layer in peer.base_model.model.named_modules()
        if isinstance(layer, peft.tuners.lora.Linear)
    }
    assert found == wanted_of(bert, choice)


def wanted_of(kept: Kept, choice: Mapping[str, Any]) -> dict[str, tuple[int, Any]]:
    """Module -> (rank, scale), of blocks from the plan, of PEFT's own from the method's paper."""
    made = plan_of(kept.example.base, kept.made.suffixes, choice)
    if made.tuner is None:
        return {
            name: (block.rank, pytest.approx(block.scale, rel=1e-12))
            for name, (block,) in made.stages[0].items()
        }
    rank = choice["rank"]
    scale = {"rslora": 16 / rank**0.5, "dora": 16 / rank, "pissa": 1.0}[choice["method"]]
    return {target.name: (rank, pytest.approx(scale)) for target in made.targets}


def test_the_config_is_written_as_peft_reads_it(plan: Command, tmp_path: Path) -> None:
    choice = {"method": "sensitivity", "mean_rank": 3}
    file = tmp_path / "adapter_config.json"
    assert plan(choice, "--out", file)[1] == f"wrote {file}\n"
    assert json.loads(file.read_text()) == json.loads(plan(choice)[1])
    read = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(read, peft.LoraConfig)
    assert read.rank_pattern == json.loads(file.read_text())["rank_pattern"]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"method": "taso"}, ("2 stages",)),
        (CHOICE, ("2 blocks",)),
        ({**CHOICE, "supplementary_rank": 0}, ("of 16 rows", "trains all")),
        (
            {"method": "joint", "mean_rank": 3, "partition": {"rule": "all"}, "retention": 0.5},
            ("reads", "of 16 columns"),
        ),
        ({"method": "ia3"}, ("ia3 is no LoRA",)),
        ({"method": "sora"}, ("sora is no LoRA",)),
    ],
)
def test_a_plan_that_no_lora_config_holds_is_refused_with_the_reason(
    plan: Command, choice: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    assert_refused(plan(choice, "--out", tmp_path / "c.json"), "--as", *words)
    assert not (tmp_path / "c.json").exists()


def test_another_trainer_gets_its_keys_or_an_adapter_or_the_reason(
    plan: Command, tmp_path: Path
) -> None:
    choice = {"method": "sensitivity", "mean_rank": 3, "learning_rate": 3e-4}
    file, folder = tmp_path / "lora.yaml", tmp_path / "lora-adapter"

    code, out, err = plan(choice, "--as", "axolotl")
    assert code == 0, err
    keys, config = yaml.safe_load(out), json.loads(plan(choice)[1])
    assert keys["lora_rank_pattern"] == config["rank_pattern"]
    assert keys["learning_rate"] == 3e-4
    plan(choice, "--as", "axolotl", "--out", file)
    assert (yaml.safe_load(file.read_text()), folder.exists()) == (keys, False)

    assert_refused(plan(choice, "--as", "llamafactory"), "one rank", "--out")
    assert plan(choice, "--as", "llamafactory", "--out", file)[0] == 0
    assert yaml.safe_load(file.read_text())["adapter_name_or_path"] == str(folder)
    assert json.loads((folder / "adapter_config.json").read_text()) == config
    assert_refused(plan(choice, "--as", "llamafactory", "--out", file), str(folder), "another")

    assert_refused(plan(choice, "--as", "trl", "--out", file), "one rank", "--as peft")
    assert_refused(plan(CHOICE, "--as", "axolotl"), "2 blocks")


def test_a_choice_without_a_profile_takes_the_base_alone(bert: Kept, plan: Command) -> None:
    base = ("--base", bert.made.uri, "--targets", "query,value")
    code, out, err = plan({"method": "lora", "rank": 2}, *base)
    assert code == 0, err
    names = [
        f"bert.encoder.layer.{i}.attention.self.{n}" for i in (0, 1) for n in ("query", "value")
    ]
    assert json.loads(out)["target_modules"] == names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--base", "path:nowhere", "--targets", "query"), ("does not exist",)),
        (("--base", "BASE"), ("--targets", "query,value")),
        (("--base", "BASE", "--targets", " , "), ("names no module",)),
        (("--base", "BASE", "--targets", "qery"), ("--targets", "query")),
        (("--base", "BASE", "--targets", "query", "--profile", "x"), ("either",)),
        (("--targets", "query"), ("--targets", "--base")),
        (("--as", "onnx"), ("--as", "peft")),
    ],
)
def test_arguments_of_plan_that_do_not_fit_are_told(
    bert: Kept, plan: Command, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    given = [bert.made.uri if argument == "BASE" else argument for argument in arguments]
    assert_refused(plan({"method": "lora"}, *given), *words)


def test_a_choice_that_needs_a_profile_says_so(bert: Kept, plan: Command) -> None:
    base = ("--base", bert.made.uri, "--targets", "query")
    assert_refused(plan({"method": "pilora"}, *base), "needs a profile")
