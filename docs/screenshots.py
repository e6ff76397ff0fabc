"""Takes the pictures of README.md and the guides: `make screenshots`, or

    python docs/screenshots.py SWEEP [--folder DIR]

SWEEP was launched in DIR (here, unless one is named) and confirmed with several seeds. Its report
and the table of `compare` are photographed in headless Chromium, which is found by PATH.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--virtual-time-budget=20000",
)  # fmt: skip
LARGEST = 300_000
"""Bytes that a picture may have; a larger one is given fewer pixels."""
COLUMNS = 104
"""Of the terminal: so wide is the table of `compare`."""


@dataclass(frozen=True)
class Shot:
    """A picture of a page: the name of its file, and the window in CSS pixels."""

    name: str
    width: int
    height: int
    dark: bool = False
    scale: int = 1


REPORT = (
    Shot("report", 1400, 1700),
    Shot("report-dark", 1400, 1700, dark=True),
    Shot("report-phone", 390, 1100, scale=2),
)
NARROWEST = 500
"""CSS pixels of Chromium's narrowest window; a page for a phone stands in a frame within it."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the pictures of README.md and the guides.")
    parser.add_argument("sweep")
    parser.add_argument("--folder", type=Path, default=Path())
    asked = parser.parse_args()
    browser = next((found for each in BROWSERS if (found := shutil.which(each))), None)
    if browser is None:
        sys.exit(f"screenshots: none of {', '.join(BROWSERS)} is on the PATH")
    with tempfile.TemporaryDirectory() as place:
        report, terminal = Path(place, "report"), Path(place, "terminal.html")
        ranksweep(asked.folder, ["report", asked.sweep, "--out", str(report)])
        for shot in REPORT:
            save(photographed(browser, report / "index.html", shot), shot.name)
        width, height = write_terminal(terminal, asked.folder, asked.sweep)
        shot = Shot("terminal", width, height)
        save(photographed(browser, terminal, shot), shot.name)


def ranksweep(folder: Path, arguments: Sequence[str], **environment: str) -> str:
    """What the command of this interpreter prints in the folder; ends with its error."""
    command = [str(Path(sys.executable).with_name("ranksweep")), *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"screenshots: {' '.join(command)}\n{done.stderr or done.stdout}")
    return done.stdout


def write_terminal(page: Path, folder: Path, sweep: str) -> tuple[int, int]:
    """A page that shows the terminal of who compares a sweep; returns its width and height."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    arguments = ["compare", sweep]
    console.print(Text(f"$ ranksweep {' '.join(arguments)}", style="bold"))
    shown = ranksweep(folder, arguments, COLUMNS=str(COLUMNS), FORCE_COLOR="1")
    console.print(Text.from_ansi(shown.rstrip("\n")))
    drawn = console.export_svg(title="")
    # Rich would have its font fetched.
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
    drawn = drawn.replace("Fira Code", "DejaVu Sans Mono")
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0]
    page.write_text(f'<meta charset="utf-8"><body style="margin:0">{drawn}', encoding="utf-8")
    return int(float(width)), int(float(height))


def photographed(browser: str, page: Path, shot: Shot) -> Image.Image:
    """The first screen of a page."""
    with tempfile.TemporaryDirectory() as profile:
        file = Path(profile, "shot.png")
        address = page.absolute().as_uri()
        if shot.width < NARROWEST:
            frame = Path(profile, "frame.html")
            frame.write_text(
                f'<body style="margin:0"><iframe src="{address}" style="border:0" '
                f'width="{shot.width}" height="{shot.height}">'
            )
            address = frame.as_uri()
        dark = ["--blink-settings=preferredColorScheme=0"] if shot.dark else []
        command = [
            browser, *OPTIONS, *dark, f"--user-data-dir={profile}", f"--screenshot={file}",
            f"--window-size={max(shot.width, NARROWEST)},{shot.height}",
            f"--force-device-scale-factor={shot.scale}", address,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if not file.exists():
            sys.exit(f"screenshots: {browser} took no picture of {page}\n{done.stderr}")
        with Image.open(file) as picture:
            return picture.convert("RGB").crop(
                (0, 0, shot.width * shot.scale, shot.height * shot.scale)
            )


def save(picture: Image.Image, name: str) -> None:
    """Write a picture of at most LARGEST bytes into docs/images."""
    file = IMAGES / f"{name}.png"
    while True:
        picture.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
        if (size := file.stat().st_size) <= LARGEST:
            print(f"{file.relative_to(IMAGES.parents[1])}: {picture.size}, {size:,} bytes")
            return
        picture = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5))


if __name__ == "__main__":
    main()
