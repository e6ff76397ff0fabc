"""The examples of language tasks are sweeps whose tasks read the data that their scripts make."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.config.reading import load_sweep
from tests.conftest import EXAMPLES

FOLDER = EXAMPLES / "language"
NAMES = (
    "boolq", "chat", "commonsenseqa", "openbookqa", "piqa", "siqa", "tweets-regression", "written",
)  # fmt: skip
COLUMNS = {
    "data/choices/boolq": {"passage", "question", "options", "answer"},
    "data/choices/siqa": {"passage", "question", "options", "answer"},
    "data/choices/commonsenseqa": {"question", "options", "answer"},
    "data/choices/openbookqa": {"question", "options", "answer"},
    "data/choices/piqa": {"question", "options", "answer"},
    "data/written": {"passage", "question", "completion"},
    "data/chat": {"messages"},
    "data/tweets": {"text", "rating"},
}
"""Folder of the data -> the columns that its script writes."""


def test_every_task_has_its_example() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_reads_columns_that_its_data_have(name: str) -> None:
    from trainables.tasks.kinds.registry import kind_of

    config = load_sweep(FOLDER / f"{name}.yaml")
    assert config.name == name
    task = config.task
    files = {split: Path(str(getattr(task.data, split))) for split in ("train", "dev", "test")}
    (folder,) = {file.parent.as_posix() for file in files.values()}
    assert set(kind_of(task.kind).columns(task)) <= COLUMNS[folder]
    assert {split: file.stem for split, file in files.items()} == {s: s for s in files}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_how_its_data_are_made_and_how_it_is_launched(name: str) -> None:
    file = FOLDER / f"{name}.yaml"
    config = load_sweep(file)
    commands = [
        line.removeprefix("#   ").split()
        for line in file.read_text().splitlines()
        if line.startswith("#   ")
    ]
    made, launch = commands
    assert launch == ["ranksweep", "launch", f"examples/language/{name}.yaml"]
    assert made[0] == "python"
    assert (EXAMPLES.parent / made[1]).is_file()
    assert str(config.task.data.train).startswith(f"{made[-1]}/")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tweets-regression"])
def test_a_decoder_is_adapted_where_pilora_adapts_one(name: str) -> None:
    config = load_sweep(FOLDER / f"{name}.yaml")
    assert config.profile.target_modules == ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
    assert config.confirm is not None
