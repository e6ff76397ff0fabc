"""The rows of every kind of task are written as files that the task reads again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.launch.rows import write_rows
from trainables.tasks.rows import TaskRows, load_rows
from trainables.tasks.settings import TaskSettings

ODD = "na\u00efve \u2028 {brace} \u201cq\u201d"
ROWS = [
    {
        "q": f"{ODD} {i}",
        "one": "word",
        "a": f"answer {i}\n ",
        "many": [f"answer {i}", "another"] if i % 2 else f"only {i}",
        "choices": [f"no {i}", "yes", *(["perhaps"] if i % 3 else [])],
        "named": {"text": [f"no {i}", "yes"], "label": ["A", "B"]},
        "number": i / 3,
        "right": i % 2,
        "key": "AB"[i % 2],
        "m": [{"role": "user", "content": f"{ODD} {i}?"}, {"role": "assistant", "content": "yes"}],
        "conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": "yes"}],
        "instruction": f"say {i}",
        "input": "" if i % 2 else "this",
        "output": "yes",
    }
    for i in range(20)
]
AGAIN: dict[str, dict[str, Any]] = {
    "prompts": {"prompt": "prompt", "completion": "completion"},
    "chats": {"messages": "messages"},
    "choices": {"prompt": "prompt", "options": "options", "label_form": "index"},
}
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # a task -> what it says of its rows, and what one says that reads what is written
    "regression": (
        {"kind": "regression", "text": ["q"], "label": "number"},
        {"text": ["q"], "label": "number"},
    ),
    "a template of a regression": (
        {"kind": "regression", "template": "{q} ({one})", "label": "number"},
        {"text": ["text"], "label": "number"},
    ),
    "fixed options": (
        {"kind": "multiple_choice", "prompt": "q", "options": ["no", "yes"], "label": "right",
         "label_form": "index"},
        {**AGAIN["choices"], "label": "right"},
    ),
    "options of their own": (
        {"kind": "multiple_choice", "template": "{q} ({one})?", "options": "choices",
         "label": "right", "label_form": "index"},
        {**AGAIN["choices"], "label": "right"},
    ),
    "options with names": (
        {"kind": "multiple_choice", "prompt": "q", "options": "named", "label": "key",
         "label_form": "name"},
        {**AGAIN["choices"], "label": "key"},
    ),
    "running text": ({"kind": "causal", "text": ["q"]}, {"text": ["text"]}),
    "composed running text": ({"kind": "causal", "template": "{q}: {a}"}, {"text": ["text"]}),
    "answers": ({"kind": "causal", "prompt": "q", "completion": "a"}, AGAIN["prompts"]),
    "answers to a template": (
        {"kind": "causal", "template": "{q} ({one})", "completion": "a"},
        {**AGAIN["prompts"], "delimiter": " "},
    ),
    "alpaca": ({"kind": "causal", "map": "alpaca"}, AGAIN["prompts"]),
    "messages": ({"kind": "causal", "messages": "m"}, AGAIN["chats"]),
    "sharegpt": ({"kind": "causal", "map": "sharegpt"}, AGAIN["chats"]),
    "accepted answers": (
        {"kind": "generation", "prompt": "q", "completion": "many"}, AGAIN["prompts"],
    ),
    "written messages": ({"kind": "generation", "messages": "m"}, AGAIN["chats"]),
}  # fmt: skip


def rows_of(section: dict[str, Any]) -> tuple[TaskSettings, TaskRows]:
    settings = TaskSettings.model_validate({"name": "t"} | section)
    return settings, load_rows(settings)


@pytest.mark.parametrize(("section", "again"), TASKS.values(), ids=TASKS)
def test_what_is_written_is_read_as_the_same_rows(
    section: dict[str, Any], again: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "all.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    split = {"data": {"train": str(file)}, "split": {"source": "train"}}
    settings, rows = rows_of(section | split)
    files = write_rows(rows, settings, tmp_path / "out")
    data = {split: str(written) for split, written in files.items()}
    _, found = rows_of(again | {"kind": section["kind"], "data": data})
    for name, part in rows.splits.items():
        assert found[name].hashes == part.hashes
        assert found[name].inputs == part.inputs
        assert found[name].labels == part.labels


def test_an_answer_is_text_and_several_are_a_list(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    settings, rows = rows_of(
        {"kind": "generation", "prompt": "q", "completion": "many", "data": {"train": str(file)},
         "split": {"source": "train"}}
    )  # fmt: skip
    files = write_rows(rows, settings, tmp_path / "out")
    written = [json.loads(line) for line in files["train"].open(encoding="utf-8")]
    wanted = {row["q"]: row["many"] for row in ROWS}
    assert {type(row["completion"]) for row in written} == {str, list}
    assert all(row["completion"] == wanted[row["prompt"]] for row in written)
