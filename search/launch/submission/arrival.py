"""The first that runs of a submitted sweep, on the cluster: is what it needs there?

It comes before all that ranksweep depends on, so it imports nothing but Python's own packages, and
what Ray brings once Ray is known to be there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

JOB_FOLDER = "ranksweep_job"
"""Folder of the job's working directory that all that travels lies in."""
JOB_FILE = "job.json"
OWN_CODE = "own"
"""Folder of the modules that the sweep names by import path."""
EXIT_LACKING = 2


def main() -> None:
    """Check this node, go to the sweeps' folder and run the sweep there."""
    here = Path.cwd() / JOB_FOLDER
    job = read_job(here)
    for lack in (
        lacking_packages(job["requires"], job["python"]),
        lacking_variables(job["required"], os.environ),
    ):
        if lack:
            _end(lack)
    # Relative to the home, for the working directory is Ray's, which deletes it.
    folder = Path.home() / Path(job["folder"]).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
    except OSError as error:
        _end(
            f"--remote-folder: {folder} cannot be used on {os.uname().nodename} "
            f"({error.strerror}); name a folder that can be written to there"
        )
    # In its own process, so that Ray's signals reach it; -P, for the sweeps' folder is no package.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "ranksweep", "job", str(here)])


def lacking_packages(requires: Sequence[str], wanted_python: str) -> str:
    """What of these requirements of pip this Python has not, in one line; empty where it has all.

    Ray is looked for first: without it there is nothing to read the others with.
    """
    python = f"Python {sys.version.split()[0]} ({sys.executable})"
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet

        version("ray")
    except (ImportError, PackageNotFoundError):
        return (
            f"the job's {python} has no Ray; start the cluster so that `python` on the head "
            "node's PATH is the one that Ray runs in"
        )
    if not SpecifierSet(wanted_python).contains(sys.version.split()[0], prereleases=True):
        return f"the job's {python} is not {wanted_python}, which ranksweep needs; start Ray in one"
    lacking = []
    for each in map(Requirement, requires):
        if each.marker is not None and not each.marker.evaluate():
            continue
        wanted = f"{each.name}{each.specifier}"
        try:
            has = version(each.name)
        except PackageNotFoundError:
            lacking.append(wanted)
            continue
        if not each.specifier.contains(has, prereleases=True):
            lacking.append(f"{wanted} (it has {has})")
    if not lacking:
        return ""
    return (
        f"the job's {python} lacks {', '.join(lacking)}; install there what ranksweep depends on, "
        "on every node"
    )


def lacking_variables(required: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """Which variables the cluster's environment lacks, each with what it is for, in one line."""
    lacking = [f"{name} ({why})" for name, why in required.items() if not environment.get(name)]
    if not lacking:
        return ""
    return (
        f"the cluster's environment lacks {', '.join(lacking)}; set it where `ray start` runs, on "
        "every node: it was taken from the environment where the sweep was submitted, and no "
        "value of that travels"
    )


def absent(wanted: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """Those of these variables that the cluster's environment has not."""
    return (name for name in wanted if not environment.get(name))


def read_job(here: Path) -> dict[str, Any]:
    """What `job.json` says."""
    return dict(json.loads((here / JOB_FILE).read_text()))


def _end(reason: str) -> None:
    print(f"error: {reason}", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_LACKING)


if __name__ == "__main__":
    main()
