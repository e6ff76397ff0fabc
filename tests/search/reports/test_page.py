"""The page is one whole file, says what runs say as text, and stays small."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.reports.page import MOST_ROWS, Section, packed_plotly, script_json
from search.reports.panel import Panel
from search.reports.sweep.answer import answer_of
from search.reports.sweep.how import how_of
from search.reports.sweep.pareto import pareto_panel
from search.reports.sweep.sections import sections_of
from search.reports.write import WrittenReport, check_out, write_pages, write_report
from spaces.errors import ConfigError
from tests.search.reports.records import long_record, record, sweep_run, trial

HOSTILE = '<script>alert(1)</script> x\' OR 1=1 -- & "q"'


class Page(HTMLParser):
    """What of an HTML file a browser would see: elements, ids, headings, text, places."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.text = ""
        self.places: list[str] = []
        self.open: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tags.append(tag)
        if own.get("id"):
            self.ids.append(str(own["id"]))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.places += [str(own[name]) for name in ("src", "href") if own.get(name)]
        if tag == "script":
            self.scripts.append(own)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenReport:
    """A report of 200 trials."""
    return write_report(long_record(200), tmp_path_factory.mktemp("report"))


def test_a_page_of_200_trials_is_whole_and_below_5_mb(written: WrittenReport) -> None:
    assert written.page.stat().st_size < 5_000_000
    page = Page(written.page.read_text())
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    steps = zip(page.headings, page.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps), "headings are in order"
    # Nothing is loaded: all places are within the page, or files beside it that a click asks for.
    beside = {f"{kind}/{each.key}.{end}" for each in written.figures
              for kind, end in (("figures", "png"), ("data", "csv"))}  # fmt: skip
    others = {p for p in page.places if not p.startswith(("#", "data:"))}
    assert others == beside
    assert all((written.out / place).is_file() for place in beside)
    assert all("src" not in each for each in page.scripts)
    assert 'lang="en"' in written.page.read_text()[:100]


def test_the_files_are_the_figures_and_their_numbers(written: WrittenReport) -> None:
    panels = {panel.key: panel for section in sections_of(long_record(200))
              for panel in section.panels}  # fmt: skip
    assert {each.key for each in written.figures} == panels.keys()
    for each in written.figures:
        panel = panels[each.key]
        assert isinstance(panel, Panel)
        with (written.out / each.csv).open(newline="") as file:
            read = list(csv.reader(file))
        assert len(read) == 1 + len(panel.rows)
        assert read[0] == list(panel.columns)
        with Image.open(written.out / each.png) as picture:
            assert min(picture.size) > 300
            assert picture.info["dpi"][0] == pytest.approx(150, abs=1)


def test_what_runs_say_is_text_and_no_markup(tmp_path: Path) -> None:
    run = sweep_run(sweep="movie", task=HOSTILE, base_uri=HOSTILE, reason=HOSTILE, host=HOSTILE)
    trials = [
        trial(0, "lora", 0.8),
        trial(1, f"lora {HOSTILE}", 0.9, choice={"method": "lora", "note": HOSTILE}),
        trial(2, "taso", None, status="failed", error=HOSTILE),
    ]
    whole = write_report(record(trials, run=run), tmp_path / "out").page.read_text()
    ours = Page(write_report(record([trial(0, "lora", 0.8)]), tmp_path / "plain").page.read_text())
    page = Page(whole)
    ids = [each.get("id") for each in page.scripts]
    assert all(name is None or re.fullmatch(r"plotly|[a-z-]+-(figure|csv)", name) for name in ids)
    assert ids.count(None) == 1 == [each.get("id") for each in ours.scripts].count(None)
    assert "alert(1)</script>" not in whole
    assert HOSTILE in page.text
    for figure in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', whole):
        assert "<" not in figure
        json.loads(figure)
    # Plotly reads tags in its labels: they come to it as entities.
    (pareto,) = re.findall(r'id="pareto-front-figure">(.*?)</script>', whole)
    names = [trace["name"] for trace in json.loads(pareto)["data"]]
    assert any("&lt;script&gt;" in name for name in names)
    assert not any("<script" in name for name in names)


def test_a_long_table_is_cut_and_says_so(tmp_path: Path) -> None:
    sweep = long_record(400)
    panels = sections_of(sweep)[1].panels[:1]
    out = tmp_path / "out"
    check_out(out)
    written = write_pages("t", answer_of(sweep), [Section("s", "S", panels)], how_of(sweep), out)
    page = Page(written.page.read_text())
    assert page.tags.count("tr") == 1 + MOST_ROWS
    assert f"The first {MOST_ROWS} rows; data/choices.csv has all." in page.text


def test_an_address_in_mlflow_is_a_link_and_no_other_text_is(tmp_path: Path) -> None:
    at = "http://server/#/experiments/1/runs/2?workflowType=machine_learning"
    rows = [("javascript:alert(1)", at), ("http://a.name", "javascript:alert(1)")]
    panel = pareto_panel(long_record(9))
    assert isinstance(panel, Panel)
    panel = replace(panel, columns=["sweep", "in MLflow"], rows=rows)
    write_pages(
        "a task", answer_of(long_record(9)), [Section("s", "S", [panel])], [], tmp_path / "out"
    )
    places = Page((tmp_path / "out" / "index.html").read_text()).places
    assert at in places
    assert not [each for each in places if "alert" in each or "a.name" in each]


def test_plotly_is_packed_as_it_is_installed() -> None:
    script = gzip.decompress(base64.b64decode(packed_plotly()))
    assert script.startswith(b"/**\n* plotly.js v")
    assert "</script" not in packed_plotly()


def test_no_number_of_a_figure_is_beyond_json() -> None:
    text = script_json({"a": [float("nan"), float("inf"), 1.5], "b": "</script>\u2028"})
    assert json.loads(text) == {"a": [None, None, 1.5], "b": "</script>\u2028"}
    assert "<" not in text
    assert "\u2028" not in text


def test_an_earlier_report_is_replaced_and_other_files_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_out(out)
    first = write_report(record([trial(n, "lora", 0.8) for n in range(9)]), out)
    (out / "data" / "old.csv").write_text("")
    check_out(out)
    second = write_report(record([], run=sweep_run(metrics={})), out)
    assert len(second.figures) < len(first.figures)
    assert not (out / "data").exists(), "nothing of the earlier one is left"
    assert sorted(each.name for each in out.iterdir()) == ["index.html"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out: .*/out holds notes.txt; name an empty folder"):
        check_out(out)
    other = tmp_path / "site"
    other.mkdir()
    (other / "index.html").write_text("<html>mine</html>")
    with pytest.raises(ConfigError, match=r"holds index\.html; name an empty folder"):
        check_out(other)
    with pytest.raises(ConfigError, match="cannot be written"):
        check_out(other / "index.html")


def test_a_picture_has_few_colours_and_stays_legible(written: WrittenReport) -> None:
    with Image.open(io.BytesIO((written.out / "figures/pareto-front.png").read_bytes())) as picture:
        assert picture.mode == "P"
        darkest = int(np.asarray(picture.convert("L")).min())
    assert darkest < 60, "its text is dark"
