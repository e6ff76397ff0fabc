"""The page in a browser: every figure is drawn, nothing is complained of, nothing is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.reports.write import write_report
from tests.search.reports.chromium import CHROMIUM, Chromium
from tests.search.reports.records import long_record

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path"),
]
DRAWN = 'document.querySelectorAll(".plot.drawn .js-plotly-plot").length'


@pytest.mark.parametrize("width", [390, 1400])
def test_every_figure_is_drawn_without_an_error_or_a_request(tmp_path: Path, width: int) -> None:
    written = write_report(long_record(40), tmp_path / "report")
    with Chromium(tmp_path / "profile", width, 14_000) as browser:
        browser.ask("Page.navigate", url=written.page.as_uri())
        assert browser.wait_for(f"{DRAWN} === {len(written.figures)}", 60), browser.value(DRAWN)
        assert len(written.figures) == 7
        root = "document.documentElement"
        assert browser.value(f"{root}.scrollWidth") == width, "the page itself does not scroll"
        events = browser.events
    told = [event["params"] for event in events if event["method"] == "Runtime.consoleAPICalled"]
    assert [each for each in told if each["type"] in ("error", "warning", "assert")] == []
    assert [event for event in events if event["method"] == "Runtime.exceptionThrown"] == []
    logged = [event["params"]["entry"] for event in events if event["method"] == "Log.entryAdded"]
    # What the software that stands in for a GPU says of its own speed is none of the page's.
    assert [each for each in logged if "GL Driver Message" not in each["text"]] == []
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {
        written.page.as_uri()
    }
