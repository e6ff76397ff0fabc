"""ranksweep as a wheel: whole, the same for the same files, and without a wish for packages."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from packaging.utils import parse_wheel_filename

from search.launch.submission.wheel import this_distribution, write_wheel

ROOT = Path(__file__).parents[4]


def test_it_holds_every_file_of_the_floors_and_its_record_names_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_wheel(tmp_path)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    expected = {
        file.relative_to(ROOT).as_posix()
        for floor in ("ranksweep", "search", "trainables", "spaces")
        for pattern in ("*.py", "*.yaml", "page.*[!py]", "py.typed")
        for file in (ROOT / floor).rglob(pattern)
    }
    assert {name for name in content if ".dist-info/" not in name} == expected
    (record,) = (name for name in content if name.endswith("/RECORD"))
    rows = {name: digest for name, digest, _ in csv.reader(io.StringIO(content[record].decode()))}
    assert rows.keys() == content.keys()
    for name, digest in rows.items():
        if name != record:
            made = base64.urlsafe_b64encode(hashlib.sha256(content[name]).digest()).decode()
            assert digest == f"sha256={made.rstrip('=')}"


def test_its_name_tells_its_content_apart_and_it_asks_pip_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first, second = write_wheel(tmp_path), write_wheel(tmp_path / "again")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    name, version, build, tags = parse_wheel_filename(first.name)
    assert (name, str(version)) == ("ranksweep", this_distribution().version)
    assert build
    assert {str(tag) for tag in tags} == {"py3-none-any"}
    with zipfile.ZipFile(first) as archive:
        (metadata,) = (each for each in archive.namelist() if each.endswith("/METADATA"))
        assert b"Requires-Dist" not in archive.read(metadata)


def test_what_ranksweep_needs_is_what_its_project_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert this_distribution().requires == tuple(project["dependencies"])


def test_unpacked_it_is_a_package_with_a_version_where_no_other_is(tmp_path: Path) -> None:
    place = tmp_path / "unpacked"
    with zipfile.ZipFile(write_wheel(tmp_path)) as archive:
        archive.extractall(place)
    code = (
        "import importlib.metadata, search.launch.submission.arrival as a; "
        "print(importlib.metadata.version('ranksweep'), a.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": str(place)},
    )  # fmt: skip
    version, file = done.stdout.split()
    assert version == this_distribution().version
    assert Path(file).is_relative_to(place)
