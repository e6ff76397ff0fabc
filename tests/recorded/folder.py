"""The recorded folder of a user, `sweeps.tar.gz`: packed, unpacked elsewhere, and commands in it.

It holds a sweep `finished`, a sweep `cut` whose driver was killed, their sweep files, base and
data, and what the commands said at the time (`finished.json`, `best.json`, ...).
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path

COMMAND = (sys.executable, "-m", "search.cli.main")
ARCHIVE = Path(__file__).with_name("sweeps.tar.gz")
RECORDED_AT = "file:///recorded"
"""Where the archive's MLflow database says that the folder lies: MLflow knows its artifacts by
absolute URIs alone."""

STATE = Path(".ranksweep")


def ranksweep(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command as a user of the folder gives it."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=folder, env=environment(folder),
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """In it Python finds this checkout, and the base: a package that lies in the folder."""
    roots = (Path(__file__).parents[2], folder)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots)), "PYTHONUNBUFFERED": "1"}


def pack(folder: Path) -> None:
    """Make the archive of the folder."""
    move_artifacts(folder, folder.as_uri(), RECORDED_AT)
    for file in (folder / STATE).rglob("*.db"):
        with closing(sqlite3.connect(file)) as database:
            database.execute("VACUUM")
    with tarfile.open(ARCHIVE, "w:gz") as archive:
        archive.add(folder, arcname=".", filter=_of_nobody)


def unpack(folder: Path) -> None:
    """Put the archive's content into an empty folder and tell MLflow where it lies now."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    move_artifacts(folder, RECORDED_AT, folder.as_uri())


def move_artifacts(folder: Path, before: str, after: str) -> None:
    """What somebody must do who moves a folder with an MLflow database and its artifacts."""
    with closing(sqlite3.connect(folder / STATE / "mlflow.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (before, after)
            )


def _of_nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
