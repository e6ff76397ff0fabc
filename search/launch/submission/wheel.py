"""ranksweep itself as a wheel, for nodes that have what it depends on and not the package.

It is made of the files that run here, installed or a checkout, and without a network. What it
depends on is not among its metadata: a node's pip would try to install all of it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from spaces.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("ranksweep", "search", "trainables", "spaces")
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest time that a zip file knows: a wheel of the same files is the same file."""


@dataclass(frozen=True)
class Distribution:
    """What ranksweep calls itself here, and what it needs, as requirements of pip."""

    version: str
    python: str
    requires: tuple[str, ...]


def this_distribution() -> Distribution:
    """Of the checkout that runs, else of the package that is installed.

    Raises ConfigError where neither says what ranksweep needs.
    """
    project = ROOT / "pyproject.toml"
    if project.is_file():
        said = tomllib.loads(project.read_text())["project"]
        return Distribution(said["version"], said["requires-python"], tuple(said["dependencies"]))
    try:
        installed = distribution("ranksweep")
    except PackageNotFoundError:
        raise ConfigError(
            "--submit: this ranksweep is neither installed nor a checkout, so that nothing says "
            "what it needs; install it"
        ) from None
    requires = [each for each in installed.requires or () if Requirement(each).marker is None]
    python = installed.metadata["Requires-Python"] or ">=3.11"
    return Distribution(installed.version, python, tuple(requires))


def write_wheel(folder: Path) -> Path:
    """Write the wheel into a folder; its name carries a digest of its files.

    Ray knows a wheel by its name alone, and a checkout changes without its version.
    """
    about = this_distribution()
    files = dict(_files())
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    build = f"0{digest.hexdigest()[:16]}"
    wheel = folder / f"ranksweep-{about.version}-{build}-py3-none-any.whl"
    info = f"ranksweep-{about.version}.dist-info"
    files |= {
        f"{info}/METADATA": _lines(
            "Metadata-Version: 2.1",
            "Name: ranksweep",
            f"Version: {about.version}",
            f"Requires-Python: {about.python}",
        ),
        f"{info}/WHEEL": _lines(
            "Wheel-Version: 1.0",
            "Generator: ranksweep",
            "Root-Is-Purelib: true",
            "Tag: py3-none-any",
            f"Build: {build}",
        ),
        f"{info}/entry_points.txt": _lines(
            "[console_scripts]", "ranksweep = ranksweep.command:main"
        ),
    }
    record = f"{info}/RECORD"
    files[record] = _record(files, record)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return wheel


def _files() -> Iterator[tuple[str, bytes]]:
    """Name in the wheel -> content, in order of the names."""
    found: list[Path] = []
    for package in PACKAGES:
        found += [file for file in (ROOT / package).rglob("*") if file.is_file()]
    for file in sorted(found):
        if "__pycache__" not in file.parts:
            yield file.relative_to(ROOT).as_posix(), file.read_bytes()


def _lines(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _record(files: dict[str, bytes], record: str) -> bytes:
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(content)))
    rows.writerow((record, "", ""))
    return table.getvalue().encode()
