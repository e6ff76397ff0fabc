"""The papers' figures show what brute force finds in a profile, and every trial once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from search.objective import Objective
from search.queries.sweep_record import SweepRecord
from search.queries.sweep_state import best_of_arms
from search.reports.drawing import as_png
from search.reports.panel import Absent, Panel
from search.reports.papers.others import OtherProfile, other_profiles
from search.reports.papers.overlap import overlaps
from search.reports.papers.panels import paper_panels
from search.store.profiles import ProfileStore
from search.tracking.facts import RunFacts
from spaces.methods.registry import make_plan, parse_choice
from spaces.methods.taso import TasoChoice, core
from spaces.profile import FIELDS, Profile
from spaces.target import TargetModule
from tests.spaces.example_profiles import drawn_profile, qwen_2_5_3b

TARGETS = tuple(
    TargetModule(f"bert.encoder.layer.{layer}.{kind}", shape)
    for layer in range(2)
    for kind, shape in (("query", (16, 16)), ("output.dense", (16, 32)))
)
KEYS = [
    "row-importance",
    "dominant-pattern",
    "supplementary-rank",
    "dominant-rank",
    "threshold",
    "dominant-share",
    "dominant-overlap",
    "core-rows-and-columns",
    "retention",
    "ranks-by-signal",
]


def trial(number: int, value: float, choice: Mapping[str, Any], **told: Any) -> RunFacts:
    return RunFacts(
        run_id=f"{number:032x}",
        experiment_id="1",
        parent="s",
        is_open=False,
        started_ms=number,
        metrics={"accuracy": value, "trainable_params": 1000.0 + number},
        kind="trial",
        number=number,
        method=choice["method"],
        choice=choice,
        **{"status": "complete", **told},
    )


def pilora(supplementary: int, rule: str, threshold: float) -> dict[str, Any]:
    return {
        "method": "pilora",
        "rank": 4,
        "supplementary_rank": supplementary,
        "partition": {"rule": rule, "threshold": threshold},
        "learning_rate": 1e-3,
    }


TRIALS = (
    trial(0, 0.70, {"method": "lora", "rank": 4, "learning_rate": 1e-3}),
    trial(1, 0.60, pilora(0, "hits", 0.5), features={"dominant_rows": 0.4}),
    trial(2, 0.72, pilora(1, "hits", 0.5), features={"dominant_rows": 0.5}),
    trial(3, 0.74, pilora(1, "cumulative", 0.7), features={"dominant_rows": 0.6}),
    trial(4, 0.10, pilora(2, "cumulative", 0.8), collapsed=True),
    trial(5, 0.99, pilora(2, "hits", 0.5), status="pruned"),
    trial(6, 0.71, {"method": "taso", "retention": 0.05, "top_percent": 2.0}),
    trial(7, 0.73, {"method": "taso", "retention": 0.25, "top_percent": 10.0}),
    trial(8, 0.69, {"method": "sensitivity", "mean_rank": 3, "energy": 0.7}),
)


def record(trials: tuple[RunFacts, ...] = TRIALS) -> SweepRecord:
    objective = Objective("accuracy", "max")
    run = replace(trials[0], run_id="s", kind="sweep", parent=None, profile_key="k")
    return SweepRecord(
        run, objective, {}, {}, trials, (), tuple(best_of_arms(trials, objective)), None, {}, None,
        None,
    )  # fmt: skip


def panels(*given: Any) -> dict[str, Panel | Absent]:
    return {each.key: each for each in paper_panels(*given)}


def panel(found: Mapping[str, Panel | Absent], key: str) -> Panel:
    each = found[key]
    assert isinstance(each, Panel), each
    return each


def test_every_figure_is_drawn_printed_and_small_or_says_why_not() -> None:
    profile = drawn_profile(TARGETS)
    others = [OtherProfile("<script> $x$", drawn_profile(TARGETS, seed=1))]
    found = panels(record(), profile, others)
    assert list(found) == KEYS
    assert found["dominant-rank"] == Absent(
        "dominant-rank",
        "Metric over the dominant rank (PiLoRA, Fig. 5)",
        "all 3 trials of pilora have the same, 4",
    )
    for key in KEYS:
        if key == "dominant-rank":
            continue
        each = panel(found, key)
        assert as_png(each.printed()).startswith(b"\x89PNG")
        assert each.brushed is not None
        brushed = json.dumps(each.brushed(), allow_nan=False)
        assert "<script>" not in brushed
        assert len(each.as_csv().splitlines()) == 1 + len(each.rows)
        assert {len(row) for row in each.rows} == {len(each.columns)}


def test_without_a_profile_the_trials_are_shown_all_the_same() -> None:
    found = panels(record(), None)
    assert list(found) == KEYS
    assert isinstance(found["row-importance"], Absent)
    assert "--store" in found["row-importance"].why
    assert len(panel(found, "supplementary-rank").rows) == 3


@pytest.mark.parametrize(
    ("tensor", "keys"),
    [
        ("row_importance", ["row-importance"]),
        ("hits", ["dominant-pattern", "dominant-overlap"]),
        ("sensitivity_row_count", ["core-rows-and-columns"]),
        ("hessian_diag", ["ranks-by-signal"]),
    ],
)
def test_a_tensor_that_is_left_out_takes_its_figures_alone(tensor: str, keys: list[str]) -> None:
    profile = drawn_profile(TARGETS)
    modules = {name: replace(module, **{tensor: None}) for name, module in profile.modules.items()}
    whole = panels(record(), profile, [OtherProfile("other", profile)])
    found = panels(record(), replace(profile, modules=modules), [OtherProfile("other", profile)])
    lost = [
        key
        for key, each in found.items()
        if isinstance(each, Absent) and isinstance(whole[key], Panel)
    ]
    assert lost == keys


# -- from the profile ------------------------------------------------------------------------------


def test_the_dominant_pattern_counts_the_rows_that_were_hit_on_more_than_half_the_steps() -> None:
    profile = drawn_profile(TARGETS, steps=9)
    found = panel(panels(record(), profile), "dominant-pattern")
    shown = {(layer, kind, rows): share for layer, kind, rows, share in found.rows}
    dominant = 0
    for target, (layer, kind) in zip(
        TARGETS, [("0", "query"), ("0", "dense"), ("1", "query"), ("1", "dense")], strict=True
    ):
        hits = profile.require(target.name, "hits")
        for row in range(16):  # as many rows as bins
            is_dominant = 2 * int(hits[row]) > 9
            dominant += is_dominant
            assert shown[layer, kind, f"{row + 1}/16"] == 100.0 * is_dominant
    assert found.says.startswith(f"{dominant} of 64 rows")


def test_the_core_is_that_of_the_best_taso_choice() -> None:
    profile = drawn_profile(TARGETS)
    found = panel(panels(record(), profile), "core-rows-and-columns")
    cores = core(TasoChoice(retention=0.25, top_percent=10.0), TARGETS, profile)
    rows, cols = (sum(len(each[side]) for each in cores) for side in (0, 1))
    assert "retention 25% and top 10%" in found.says
    assert "the best TASO choice, trial 7" in found.says
    assert f"{rows} of 64" in found.says
    assert f"{cols} of 96" in found.says
    shown = [row for row in found.rows if row[:2] == ["1", "query, columns"] and row[3] == 100.0]
    assert [int(str(row[2]).partition("/")[0]) - 1 for row in shown] == cores[2][1].tolist()
    line = profile.grid_line(10.0)
    counts = [profile.require(t.name, "sensitivity_row_count")[line] for t in TARGETS]
    held = sum(int(c[r].sum()) for c, (r, _) in zip(counts, cores, strict=True))
    whole = sum(int(c.sum()) for c in counts)
    assert f"its rows {100 * round(held / whole, 3):.4g}%" in found.says


def test_the_ranks_of_a_layer_are_those_of_the_plans_of_each_signal() -> None:
    profile = drawn_profile(TARGETS)
    found = panel(panels(record(), profile), "ranks-by-signal")
    shown = {(layer, signal): ranks for layer, signal, ranks in found.rows}
    for signal in ("combined", "global", "local"):
        choice = {"method": "sensitivity", "mean_rank": 3, "energy": 0.7, "signal": signal}
        plan = make_plan(parse_choice(choice), TARGETS, profile)
        for layer in ("0", "1"):
            blocks = [plan.stages[0][t.name] for t in TARGETS if f"layer.{layer}." in t.name]
            assert shown[layer, signal] == sum(each.rank for of in blocks for each in of)
    assert [shown[layer, "uniform"] for layer in ("0", "1")] == [6, 6]


def test_an_overlap_is_the_share_of_either_that_is_both_beside_what_chance_gives() -> None:
    one = {"a": np.array([1, 1, 0, 0], bool), "b": np.array([1, 0], bool)}
    other = {
        "a": np.array([1, 0, 1, 0], bool),
        "b": np.array([1, 1], bool),
        "c": np.array([1], bool),
    }
    found = overlaps(one, other, {"a": "0", "b": "1"})
    assert (found["0"].jaccard, found["0"].chance) == (1 / 3, 1 / 3)  # 2 * 2 / 4 = 1 of 3
    assert (found["1"].jaccard, found["1"].chance) == (1 / 2, 1 / 2)
    assert (found["all"].jaccard, found["all"].chance) == (2 / 5, 2 / 5)


def test_rows_drawn_at_random_overlap_as_chance_says() -> None:
    rng = np.random.default_rng(0)
    one, other = ({"a": rng.random(20_000) < share} for share in (0.3, 0.5))
    found = overlaps(one, other, {"a": "0"})["all"]
    assert found.jaccard == pytest.approx(found.chance, abs=0.01)


def test_the_overlap_is_with_profiles_of_other_rows_on_the_same_base(tmp_path: Any) -> None:
    store = ProfileStore(tmp_path.as_uri())
    data = drawn_profile(TARGETS).to_bytes()
    for key, base, rows, task in (
        ("a", "b1", "r1", "own"),
        ("b", "b1", "r2", "other"),
        ("c", "b2", "r3", "of another base"),
        ("d", "b1", "r1", "the same rows"),
    ):
        manifest = {"base_fingerprint": base, "train_fingerprint": rows, "task": task}
        store.put(key * 64, data, manifest)
    assert [each.task for each in other_profiles(store, "a" * 64)] == ["other"]
    assert other_profiles(store, "a" * 64, most=0) == []
    assert other_profiles(store, "f" * 64) == []


# -- from the trials -------------------------------------------------------------------------------


def test_a_key_has_every_whole_trial_that_stands_and_means_where_several_share_a_value() -> None:
    found = panel(panels(record(), None), "supplementary-rank")
    assert found.rows == [
        ["pilora", 1, 0.0, 0.60],
        ["pilora", 2, 1.0, 0.72],
        ["pilora", 3, 1.0, 0.74],
    ]
    assert "The best, 0.7400 (pilora, trial 3), is at 1" in found.says
    assert "tuned LoRA reaches 0.7000" in found.says
    assert "0.7300 at 1 (pilora, 2 trials)" in found.says
    assert "Left out: 1 trial that came to one class alone" in found.says
    assert found.brushed is not None
    (mean,) = [t for t in found.brushed()["data"] if "mean" in t["name"]]
    assert mean["y"] == [0.73]
    assert mean["error_y"]["array"] == [pytest.approx(np.std([0.72, 0.74], ddof=1), abs=1e-6)]


def test_thresholds_stand_by_their_rule_and_retention_by_its_logarithm() -> None:
    found = panels(record(), None)
    threshold = panel(found, "threshold")
    assert [row[2:4] for row in threshold.rows] == [
        ["cumulative", 0.7],
        ["hits", 0.5],
        ["hits", 0.5],
    ]
    assert [row[2] for row in panel(found, "dominant-share").rows] == [0.4, 0.5, 0.6]
    retention = panel(found, "retention")
    assert retention.brushed is not None
    axis = retention.brushed()["layout"]["xaxis"]
    assert axis["type"] == "log"
    low, high = axis["range"]
    assert 10**low < 0.05
    assert 10**high > 0.25


def test_a_sweep_without_such_trials_says_so() -> None:
    found = panels(record(TRIALS[:1]), None)
    each = found["retention"]
    assert isinstance(each, Absent)
    assert each.why == "no trial of taso or joint ran to its end and has a retention p"


# -- of large bases --------------------------------------------------------------------------------


def test_a_base_of_36_layers_makes_a_page_no_larger_than_it_can_be_read() -> None:
    sizes = {"self_attn.q_proj": (64, 32), "mlp.down_proj": (32, 96)}
    targets = tuple(
        TargetModule(target.name, sizes.get(target.name.partition("layers.")[2].partition(".")[2],
                                            (48, 32)))
        for target in qwen_2_5_3b()
    )  # fmt: skip
    found = paper_panels(record(), drawn_profile(targets))
    brushed = [each.brushed() for each in found if isinstance(each, Panel) and each.brushed]
    assert len(json.dumps(brushed, separators=(",", ":"))) < 300_000


def test_a_profile_without_tensors_or_modules_is_no_failure() -> None:
    bare = Profile((), 0, (), {}, {})
    empty = replace(
        drawn_profile(TARGETS),
        modules={
            name: replace(module, **dict.fromkeys(FIELDS))
            for name, module in drawn_profile(TARGETS).modules.items()
        },
    )
    for profile in (bare, empty):
        found = panels(record(TRIALS[:1]), profile, [OtherProfile("other", profile)])
        assert all(isinstance(each, Absent) for each in found.values())
