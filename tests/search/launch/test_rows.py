"""The rows that a sweep uses, as files that make the same task."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from search.launch.rows import write_rows
from spaces.errors import ConfigError
from trainables.tasks.rows import load_rows
from trainables.tasks.settings import TaskSettings


def written(task: dict[str, Any], folder: Path) -> dict[str, Path]:
    settings = TaskSettings.model_validate({"name": "t"} | task)
    return write_rows(load_rows(settings), settings, folder)


def hashes(task: dict[str, Any]) -> dict[str, list[str]]:
    rows = load_rows(TaskSettings.model_validate({"name": "t"} | task))
    return {split: list(part.hashes) for split, part in rows.splits.items()}


def test_a_task_of_the_rows_that_are_written_is_the_same_task(tmp_path: Path) -> None:
    rows = [
        {"a": f"na\u00efve \u2028 {i}\n\t", "b": f'"{i}"', "y": 1.0 if i % 3 else True}
        for i in range(60)
    ]
    for name, part in (("train", rows[:30]), ("test", rows[30:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    data = {"train": str(tmp_path / "train.json"), "test": str(tmp_path / "test.json")}
    task = {"data": data, "text": ["a", "b"], "label": "y", "rows": {"train": 12, "test": 7}}
    files = written(task, tmp_path / "new" / "folder")
    assert list(files) == ["train", "dev", "test"]
    again = {"text": ["a", "b"], "label": "y", "data": {s: str(f) for s, f in files.items()}}
    assert hashes(again) == hashes(task)
    assert {json.loads(line)["y"] for line in files["train"].open()} == {"1.0", "True"}


def test_pictures_are_written_as_their_paths_and_what_they_hold(tmp_path: Path) -> None:
    lines = []
    for i in range(6):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), 40 * i, np.uint8)).save(buffer, format="PNG")
        (tmp_path / f"{i}.png").write_bytes(buffer.getvalue())
        lines.append(json.dumps({"image": f"{i}.png", "label": i % 2}))
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    task = {"kind": "image_classification", "image": "image", "split": {"source": "train"}}
    task["data"] = {"train": str(tmp_path / "all.jsonl")}
    files = written(task, tmp_path / "out")
    row = json.loads(files["dev"].read_text().splitlines()[0])
    assert Path(row["image"]).parent == tmp_path
    assert len(row["sha256"]) == 64
    again = task | {"data": {split: str(file) for split, file in files.items()}}
    assert hashes(again) == hashes(task)


def test_no_file_that_is_there_is_written_over(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"{i} film", "label": i % 2}) for i in range(9)))
    task = {"data": {"train": str(file)}, "text": "text", "split": {"source": "train"}}
    out = tmp_path / "out"
    out.mkdir()
    (out / "test.jsonl").write_text("kept")  # of another sweep: it would pass for this one's
    with pytest.raises(ConfigError, match=r"^--out: .*test\.jsonl is there already"):
        written(task, out)
    assert [each.name for each in out.iterdir()] == ["test.jsonl"]
    with pytest.raises(ConfigError, match=r"^--out: .* cannot be made"):
        written(task, file / "out")
