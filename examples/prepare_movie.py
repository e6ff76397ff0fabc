"""Make data/movie: short movie reviews with the sentiment that people gave them.

The 10,605 snippets and their mean ratings (at least 20 raters each, from -4 to 4) are those of
Hutto and Gilbert, "VADER" (ICWSM 2014), which the source distribution of vaderSentiment ships. A
snippet is positive or negative by the sign of its mean; the 533 whose mean lies within 0.5 of zero
are left out, because people did not find them to be either. Which split a snippet belongs to is
decided by its own words alone, so no text is in two splits and the splits never change.

    python examples/prepare_movie.py --out data/movie
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SOURCE = "vaderSentiment==3.3.2"
SOURCE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
NEUTRAL = 0.5
# Share of the snippets below which a text's hash falls, for each split.
SPLITS = {"train": 0.7, "dev": 0.85, "test": 1.0}


def download(folder: Path) -> Path:
    """Fetch the source distribution, and check that it is the one."""
    options = ("--no-binary", ":all:")
    return fetched("prepare_movie", SOURCE, SOURCE_SHA256, folder, "*.tar.gz", options)


def fetched(
    who: str, source: str, sha256: str, folder: Path, pattern: str, options: Sequence[str] = ()
) -> Path:
    """The file of a package, fetched into `folder` with this interpreter's pip, and checked.

    `who` is the script that asks; it ends with one line where the file does not come or is another.
    """
    command = [sys.executable, "-m", "pip", "download", source, "--dest", str(folder)]
    done = subprocess.run(
        [*command, "--no-deps", *options, "--quiet"], capture_output=True, text=True, check=False
    )
    files = list(folder.glob(pattern))
    if done.returncode or len(files) != 1:
        reason = done.stderr.strip() or "no file came"
        raise SystemExit(f"{who}: pip could not download {source}: {reason}")
    if (found := hashlib.sha256(files[0].read_bytes()).hexdigest()) != sha256:
        raise SystemExit(f"{who}: {source} has SHA-256 {found}, not {sha256}")
    return files[0]


def read_snippets(sdist: Path, file: str = SNIPPETS) -> list[tuple[float, str]]:
    """(mean rating, text) of every snippet; the file is UTF-8 with HTML entities in it."""
    inner = _member(sdist.read_bytes(), ARCHIVE)
    lines = _member(inner, file).decode("utf-8").splitlines()
    fields = [line.split("\t") for line in lines if line.strip()]
    return [(float(mean), " ".join(html.unescape(text).split())) for _, mean, text in fields]


def _member(archive: bytes, ending: str) -> bytes:
    """The one file of a tar archive whose path ends so."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = [member for member in tar.getmembers() if member.name.endswith(ending)]
        if len(found) != 1 or (file := tar.extractfile(found[0])) is None:
            raise SystemExit(f"prepare_movie: {SOURCE} has no single {ending}")
        return file.read()


def normalised(text: str) -> str:
    """What makes two texts the same: words alone, in lower case."""
    return " ".join(re.findall(r"\w+", text.lower()))


def label_snippets(snippets: Iterable[tuple[float, str]]) -> list[tuple[str, str]]:
    """(sentence, label) of each snippet with a clear sentiment, sorted, each text once.

    A text that occurs with both labels is left out.
    """
    kept: dict[str, set[tuple[str, str]]] = {}
    for mean, text in snippets:
        if abs(mean) >= NEUTRAL:
            row = (text, "positive" if mean > 0 else "negative")
            kept.setdefault(normalised(text), set()).add(row)
    return sorted(min(rows) for rows in kept.values() if len({label for _, label in rows}) == 1)


def split_of(text: str) -> str:
    """The split of a text: where the hash of its words falls between 0 and 1."""
    return split_of_content(normalised(text).encode())


def split_of_content(content: bytes) -> str:
    """The split of some content: where its hash falls between 0 and 1."""
    place = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    return next(split for split, below in SPLITS.items() if place < below)


def write(rows: Iterable[tuple[str, str]], out: Path) -> None:
    """Write train.parquet, dev.parquet and test.parquet with columns sentence and label."""
    by_split: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for sentence, label in rows:
        by_split[split_of(sentence)].append((sentence, label))
    write_splits(("sentence", "label"), by_split, out)


def write_splits(
    columns: Sequence[str], by_split: Mapping[str, Sequence[tuple[Any, ...]]], out: Path
) -> None:
    """Write the rows of every split, which have these columns, as a parquet file of its name."""
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in by_split.items():
        table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(columns)})
        unfinished = out / f"{split}.parquet.unfinished"
        pq.write_table(table, unfinished)
        unfinished.replace(out / f"{split}.parquet")


def is_there(out: Path) -> bool:
    """Whether every split has its file."""
    return all((out / f"{split}.parquet").is_file() for split in SPLITS)


def report(out: Path) -> None:
    """Print how many rows of which label each split has."""
    for split in SPLITS:
        labels = pq.read_table(out / f"{split}.parquet")["label"].to_pylist()
        counts = Counter(labels)
        shares = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
        print(f"{split:5} {len(labels):5} rows: {shares}")


def main(arguments: list[str] | None = None) -> None:
    """Make the data unless it is already there, and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/movie"), metavar="DIR")
    out: Path = parser.parse_args(arguments).out
    if is_there(out):
        print(f"{out}: already there")
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = label_snippets(read_snippets(download(Path(folder))))
        write(rows, out)
        print(f"{out}: made from {SOURCE}")
    report(out)


if __name__ == "__main__":
    main()
