"""What the benchmarks have found: records in results.jsonl, and README.md's table made of them.

A benchmark makes a `Run` before it measures and gives it what it has found, a record for each row.
The table has the last record of each row's name and command; those it replaced stay in the file.

    python benchmarks/results.py
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
README = HERE / "README.md"
BEGIN, END = "<!-- from results.jsonl, by results.py -->\n", "<!-- to here -->\n"
HEAD = "| what | command | figures | result | taken |\n|---|---|---|---|---|\n"
PACKAGES = ("ray", "deepspeed", "torch", "transformers")

Figures = Mapping[str, Any]
"""Numbers by name: a number, a list of them, or another mapping."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A row: what was measured, how, on what, and what came out."""

    what: str
    command: str
    commit: str | None
    """Of the code that ran, with a plus if it was changed; None where there was no checkout."""
    date: str
    machine: Mapping[str, Any]
    load: float
    """Of the minute before the run."""
    figures: Figures
    text: str
    """The figures as the table shows them."""
    result: str
    note: str | None = None
    """What somebody said of the run, by hand."""


@dataclass(frozen=True)
class Run:
    """What is known of a run before it measures anything."""

    command: str
    commit: str | None
    date: str
    machine: Mapping[str, Any]
    load: float

    @classmethod
    def begin(cls) -> Run:
        """This process's."""
        script, *arguments = sys.argv
        return cls(
            command=shlex.join(["python", f"benchmarks/{Path(script).name}", *arguments]),
            commit=_commit(),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            machine=_machine(),
            load=round(os.getloadavg()[0], 1),
        )

    def record(self, what: str, figures: Figures, text: str, result: str) -> None:
        """Append a row's record to the file, and print the row."""
        record = Record(
            what=what, figures=_rounded(figures), text=text, result=result, **vars(self)
        )
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n")
        print(f"\n{row(record)}", flush=True)

    def __str__(self) -> str:
        return f"{in_words(self.machine)}; {self.date}; load before {self.load}"


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE.parent), *arguments]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()

    ours = [f":!benchmarks/{path.name}" for path in (RESULTS, README)]
    try:
        changed = git("status", "--porcelain", "--", ".", *ours)
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    cpu = re.sub(r"\(R\)|\(TM\)| CPU| Processor", "", model[1] if model else platform.machine())
    return {
        "cores": os.cpu_count(),
        "cpu": cpu,
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _rounded(figures: Any) -> Any:
    """To four digits, which is more than any of them is good for; counts stay as they are."""
    if isinstance(figures, Mapping):
        return {name: _rounded(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [_rounded(value) for value in figures]
    return figures if isinstance(figures, int) else float(f"{figures:.4g}")


# What scripts tell figures with -------------------------------------------------------------------


def measured(values: Sequence[float]) -> dict[str, float]:
    """Some measurements of one thing, as a figure."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and, in brackets, least and most of some measurements."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def in_words(machine: Mapping[str, Any]) -> str:
    """A machine and the versions on it, in a line."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['cores']} cores ({machine['cpu']}, {machine['memory_gib']} GiB), "
        f"Python {machine['python']}, {packages}"
    )


# The table ----------------------------------------------------------------------------------------


def read_records(path: Path) -> list[Record]:
    """All records of the file, oldest first."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Record(**json.loads(line)) for line in lines]


def newest(records: Iterable[Record]) -> list[Record]:
    """The last record of each row's name and command, a script's together."""
    last = {(record.what, record.command): record for record in records}
    return sorted(last.values(), key=lambda record: record.command.split()[1])


def row(record: Record) -> str:
    """A record's row of the table."""
    taken = f"{record.date}, {record.commit or 'no checkout'}, load {record.load}"
    note = f"; {record.note}" if record.note else ""
    cells = (record.what, f"`{record.command}`", record.text, record.result, taken + note)
    return f"| {' | '.join(cells)} |"


def table(records: Iterable[Record]) -> str:
    """A table for each machine, of its records that no later one has replaced."""
    rows: dict[str, list[str]] = {}
    for record in newest(records):
        rows.setdefault(in_words(record.machine), []).append(row(record) + "\n")
    return "\n".join(f"{machine}:\n\n{HEAD}{''.join(its)}" for machine, its in rows.items())


def with_table(page: str, records: Iterable[Record]) -> str:
    """README.md with the table of these records between its two comments."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{README}: the table's place is gone, {BEGIN.strip()} to {END.strip()}")
    return f"{before}{BEGIN}\n{table(records)}\n{END}{after}"


if __name__ == "__main__":
    page = README.read_text(encoding="utf-8")
    README.write_text(with_table(page, read_records(RESULTS)), encoding="utf-8")
