"""The commands presets list, show and write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.cli.main import main
from search.presets.preset import preset, presets

NAME = "pilora-table2-rte-roberta-large"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["presets", *arguments])
    return int(ended.value.code or 0)


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_all_are_listed_with_their_figures(capsys: pytest.CaptureFixture[str]) -> None:
    rows = document(capsys, "list")
    assert [row["name"] for row in rows] == [each.name for each in presets()]
    row = next(row for row in rows if row["name"] == NAME)
    assert (row["paper"], row["table"], row["task"]) == ("PiLoRA", 2, "rte")
    assert row["base"] == "hub:FacebookAI/roberta-large"
    assert (row["metric"], row["unit"]) == ("accuracy", "percent")
    assert row["figures"]["pilora"] == 84.84
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert all(each.name in shown for each in presets())


def test_a_list_takes_a_paper_a_task_and_a_base(capsys: pytest.CaptureFixture[str]) -> None:
    rows = document(capsys, "list", "--paper", "taso", "--task", "rte")
    assert [row["name"] for row in rows] == [
        "taso-table2-rte-deberta-v3-base",
        "taso-table3-rte-deberta-v3-base",
    ]
    rows = document(capsys, "list", "--base", "LLaMA3.1")
    assert {row["task"] for row in rows} == {"magpie-pro", "open-platypus"}
    assert run("list", "--task", "gsm8k", "--base", "roberta") == 1
    assert "no preset is of that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "given", "remedy"),
    [
        ("--paper", "tasso", "did you mean 'taso'?"),
        ("--paper", "bert", "use one of pilora, taso, sensitivity"),
        ("--task", "gsm8", "did you mean 'gsm8k'?"),
        ("--task", "xyz", "`ranksweep presets list` shows them"),
        ("--base", "roberta-lrge", "did you mean 'roberta-large'?"),
    ],
)
def test_what_no_preset_is_of_is_refused(
    capsys: pytest.CaptureFixture[str], option: str, given: str, remedy: str
) -> None:
    assert run("list", option, given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {option}: no preset is of {given!r}; {remedy}"


def test_a_preset_is_shown_as_the_file_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("show", NAME) == 0
    shown = capsys.readouterr().out
    assert run("write", NAME) == 0
    written = (tmp_path / f"{NAME}.yaml").read_text()
    assert written == shown
    assert f"wrote {NAME}.yaml" in capsys.readouterr().out
    told = document(capsys, "show", NAME)
    assert told["sweep"] == yaml.safe_load(written)
    assert told["chosen"]["confirm"] == ["five seeds: the paper does not say how many"]


def test_no_file_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own.yaml"
    assert document(capsys, "write", NAME, "--out", str(out)) == {"name": NAME, "out": str(out)}
    out.write_text("mine")
    assert run("write", NAME, "--out", str(out)) == 2
    assert "is there already; name another file" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run("write", NAME, "--out", str(tmp_path / "nowhere" / "own.yaml")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_unknown_name_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "pilora-table9") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: NAME: there is no preset 'pilora-table9'")
    assert run("show", "nope") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("no preset 'nope'; `ranksweep presets list` shows them")
    assert preset(NAME).name == NAME
