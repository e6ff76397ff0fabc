"""A report as files: the page, its figures as PNG and their numbers as CSV."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from errno import ENOTDIR
from pathlib import Path

from PIL import Image

from search.config.reading import resolve_store
from search.paths import nearest_there
from search.queries.sweep_record import SweepRecord, read_sweep
from search.redaction import redacted
from search.reports.drawing import as_png
from search.reports.page import Answer, How, Section, page
from search.reports.panel import Absent, Panel
from search.reports.papers.others import OtherProfile, other_profiles
from search.reports.papers.panels import paper_panels
from search.reports.sweep.answer import answer_of
from search.reports.sweep.how import how_of
from search.reports.sweep.sections import sections_of
from search.store.profiles import ProfileStore
from search.tracking.runs import RecordedRuns
from spaces.errors import ConfigError, RanksweepError
from spaces.profile import Profile

PAGE, FIGURES, DATA = "index.html", "figures", "data"
_MADE_BY = b'name="generator" content="ranksweep'
_COLOURS = 255


@dataclass(frozen=True)
class WrittenFigure:
    """A figure of a report: its files, relative to the page, and what it says."""

    key: str
    title: str
    says: str
    png: str
    csv: str


@dataclass(frozen=True)
class WrittenReport:
    """What was written below the folder `out`, and what was not and why.

    `notes` say what could not be had for it.
    """

    out: Path
    page: Path
    answer: Answer
    figures: list[WrittenFigure]
    absent: list[Absent]
    notes: list[str]


def check_out(out: Path) -> None:
    """Raise ConfigError where a report may not be written: a file is there, or a folder with other
    things than an earlier report, or it cannot be written to."""
    above = nearest_there(out)
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"--out: {out} cannot be written (no permission); name another")
    try:
        held = sorted(each.name for each in out.iterdir()) if out.exists() else []
        if not above.is_dir():
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
    except OSError as error:
        raise _unwritable(out, error) from None
    first = out / PAGE
    is_report = first.is_file() and _MADE_BY in first.read_bytes()[:4096]
    others = [name for name in held if not is_report or name not in (PAGE, FIGURES, DATA)]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ConfigError(
            f"--out: {out} holds {', '.join(others[:3])}{more}; name an empty folder, one that is "
            "not there, or one with an earlier report, which is replaced"
        )


def report_sweep(
    recorded: RecordedRuns,
    sweep: str,
    out: Path,
    *,
    store: str | None = None,
) -> WrittenReport:
    """Write the report of a sweep, as MLflow has it; an earlier one in the folder is replaced.

    `store` has its profile, by default the store that the sweep names. Raises ConfigError where
    there is no such sweep or `out` may not be written to, TrackingError where MLflow cannot be
    read.
    """
    check_out(out)
    record = read_sweep(recorded, sweep)
    profile, others, note = profiles_of(record, store)
    notes = [] if note is None else [note]
    return write_report(record, out, papers=paper_panels(record, profile, others), notes=notes)


def write_report(
    record: SweepRecord,
    out: Path,
    *,
    papers: Sequence[Panel | Absent] = (),
    notes: Sequence[str] = (),
) -> WrittenReport:
    """Write the report of a sweep that was read, with the papers' figures of it."""
    return write_pages(
        f"{record.run.sweep}",
        answer_of(record),
        sections_of(record, papers),
        how_of(record),
        out,
        kicker=f"ranksweep · {record.run.task}",
        notes=notes,
    )


def write_pages(
    title: str,
    answer: Answer,
    sections: Sequence[Section],
    how: Sequence[How],
    out: Path,
    *,
    kicker: str = "ranksweep report",
    notes: Sequence[str] = (),
) -> WrittenReport:
    """Write the page `index.html`, `figures/KEY.png` and `data/KEY.csv` into a folder that
    `check_out` lets pass. Raises ConfigError where it cannot be written."""
    every = [panel for section in sections for panel in section.panels]
    panels = [panel for panel in every if isinstance(panel, Panel)]
    images = {panel.key: _small(as_png(panel.printed())) for panel in panels}
    text = page(title, answer, sections, how, images=images, kicker=kicker)
    files = {PAGE: text.encode()}
    for panel in panels:
        files[f"{FIGURES}/{panel.key}.png"] = images[panel.key]
        files[f"{DATA}/{panel.key}.csv"] = panel.as_csv().encode()
    try:
        _put_in_place(out, files)
    except OSError as error:
        raise _unwritable(out, error) from None
    return WrittenReport(
        out,
        out / PAGE,
        answer,
        [
            WrittenFigure(
                panel.key,
                panel.title,
                panel.says,
                f"{FIGURES}/{panel.key}.png",
                f"{DATA}/{panel.key}.csv",
            )
            for panel in panels
        ],
        [panel for panel in every if isinstance(panel, Absent)],
        list(notes),
    )


def profiles_of(
    record: SweepRecord, store: str | None = None
) -> tuple[Profile | None, list[OtherProfile], str | None]:
    """The profile of a sweep and those of other tasks on its base, from the store; and why they
    cannot be had where they cannot."""
    key = record.run.profile_key
    if key is None:
        return None, [], "the sweep has no profile yet"
    named = record.config.get("store")
    try:
        uri = resolve_store(store, named if isinstance(named, str) else None)
        profiles = ProfileStore(uri)
        found = profiles.get(key)
        if found is None:
            there = f"is not in {redacted(uri)}; --store names another"
            return None, [], f"its profile {key[:12]} {there}"
        return found, other_profiles(profiles, key), None
    except (RanksweepError, OSError) as error:
        return None, [], f"its profile cannot be had: {str(error).removeprefix('store: ')}"


def _put_in_place(out: Path, files: dict[str, bytes]) -> None:
    """Write all files beside what is there, and put them in its place."""
    fresh = out / ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    for name, content in files.items():
        file = fresh / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for name in (FIGURES, DATA):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (FIGURES, DATA, PAGE):
        if (fresh / name).exists():
            (fresh / name).replace(out / name)
    fresh.rmdir()


def _small(png: bytes) -> bytes:
    """The same picture in so few colours that a page with many stays small."""
    held = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(_COLOURS)
        few.save(held, format="png", optimize=True, dpi=picture.info.get("dpi", (150, 150)))
    return held.getvalue()


def _unwritable(out: Path, error: OSError) -> ConfigError:
    reason = error.strerror or type(error).__name__
    return ConfigError(f"--out: {out} cannot be written ({reason}); name another")
