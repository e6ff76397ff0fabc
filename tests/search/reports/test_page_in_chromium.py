"""The page in a browser: every figure is drawn, nothing is complained of, nothing is loaded."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from search.reports.write import write_report
from tests.search.reports.records import long_record

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path"),
]


def test_every_figure_is_drawn_without_an_error_or_a_request(tmp_path: Path) -> None:
    written = write_report(long_record(40), tmp_path / "report")
    log = tmp_path / "net.json"
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--enable-unsafe-swiftshader",  # parallel coordinates need WebGL
            f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
            "--enable-logging=stderr", "--window-size=1400,12000", "--virtual-time-budget=30000",
            "--dump-dom", written.page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    complaints = [line for line in complaints if "GPU stall due to ReadPixels" not in line]
    assert complaints == []
    figures = len(re.findall(r"data-figure=", done.stdout))
    assert figures == len(written.figures) == 7
    assert len(re.findall(r'class="[^"]*js-plotly-plot', done.stdout)) == figures
    assert len(re.findall(r'class="plot drawn"', done.stdout)) == figures
    asked = {
        event["params"]["url"]
        for event in json.loads(log.read_text())["events"]
        if isinstance(event.get("params"), dict) and "url" in event["params"]
    }
    assert not [url for url in asked if url.startswith(("http:", "https:", "ws:"))]
