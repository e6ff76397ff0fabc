"""Every table of the papers stands as sweeps that a launch takes, with what is printed there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import yaml

from search.config.reading import parse_sweep
from search.config.yaml_file import parse_yaml
from search.presets.preset import Preset, preset, presets
from search.presets.tables import Cell, OfBase, PaperTable, data_sets, papers
from search.presets.text import sweep_file
from spaces.errors import UsageError
from spaces.search_space import SearchSpace

BY_NAME = pytest.mark.parametrize("found", presets(), ids=lambda each: each.name)
NOT_OURS = {"PAdapter"}
"""Rows of methods that ranksweep has not."""
WRONG_IN_PRINT = {
    ("pilora", 2, "roberta-large", "pilora"),
    ("taso", 1, "qwen2.5-3b", "adalora"),
    ("taso", 1, "llama3.2-3b", "adalora"),
    ("taso", 1, "llama3.2-3b", "lora_xs"),
    ("taso", 1, "llama3.2-3b", "taso"),
    ("taso", 2, "deberta-v3-base", "bottleneck"),
}
"""Rows whose printed average is not that of their printed figures."""


def rows() -> Iterator[tuple[str, PaperTable, str, OfBase, str, tuple[Cell, ...]]]:
    for key, paper in papers().items():
        for table in paper.tables:
            for base, of_base in table.bases.items():
                for row, cells in of_base.figures.items():
                    yield key, table, base, of_base, row, cells


# -- the tables ------------------------------------------------------------------------------------


def test_every_table_is_there_task_by_base() -> None:
    counts = Counter((each.paper_key, each.table.table) for each in presets())
    assert counts == {
        ("pilora", 1): 2,
        ("pilora", 2): 7,
        ("pilora", 3): 7,
        ("taso", 1): 5 * 2,
        ("taso", 2): 8,
        ("taso", 3): 3 * 2 + 4,
        ("sensitivity", 1): 8,
        ("sensitivity", 2): 2 * 2,
        ("sensitivity", 3): 8,
    }


def test_names_are_regular_and_each_is_used_once() -> None:
    names = [each.name for each in presets()]
    assert len(names) == len(set(names))
    shape = (
        r"(pilora|taso|sensitivity)-table[123]-[a-z0-9]+(-[a-z]+)?-[a-z][a-z0-9.]*(-[a-z0-9.]+)*"
    )
    assert all(re.fullmatch(shape, name) for name in names)


def test_every_data_set_is_used() -> None:
    assert {each.task_key for each in presets()} == set(data_sets())


def test_every_row_has_a_figure_for_every_column() -> None:
    for key, table, base, _, row, cells in rows():
        assert len(cells) == len(table.tasks), (key, table.table, base, row)
        for task, cell in zip(table.tasks, cells, strict=True):
            several = len(cell) if isinstance(cell, tuple) else 1
            parts = table.parts.get(task)
            assert several == (1 if parts is None else len(parts.names)), (key, base, row, task)


def test_the_figures_of_a_row_have_the_average_that_is_printed() -> None:
    checked = 0
    for key, table, base, of_base, row, cells in rows():
        if row not in of_base.average:
            continue
        printed = of_base.average[row]
        mean = float(np.mean([np.mean(cell) for cell in cells]))
        digits = 1 if (key, table.table) == ("pilora", 1) else 2
        # Some rows are rounded, others cut.
        is_printed = abs(mean - printed) < 1.01 * 10**-digits
        assert is_printed != ((key, table.table, base, row) in WRONG_IN_PRINT), (row, mean, printed)
        checked += 1
    assert checked == 5 + 6 + 6 + 6 + 2 * 10 + 8 + 6 + 2 * 6 + 4


def test_every_row_of_a_table_that_prints_averages_has_its_own() -> None:
    for _, _, _, of_base, row, _ in rows():
        assert not of_base.average or row in of_base.average


def test_the_ablations_have_the_figures_of_the_main_tables() -> None:
    """Tables 3 print the whole method, and LoRA, once more."""
    again = {
        "taso importance=sensitivity lr_scaling=true": ("taso", "taso rounds=1"),
        "sensitivity signal=combined": ("sensitivity",),
        "lora": ("lora",),
    }
    compared = 0
    for key in ("taso", "sensitivity"):
        tables = papers()[key].tables
        for table, other in product(tables, tables):
            if table.table != 3 or other.table == 3:
                continue
            for base in set(table.bases) & set(other.bases):
                main = other.bases[base].figures
                for row, cells in table.bases[base].figures.items():
                    for name in {*again.get(row, ())} & set(main):
                        for task, cell in zip(table.tasks, cells, strict=True):
                            assert main[name][other.tasks.index(task)] == cell, (row, task)
                            compared += 1
    assert compared == 3 * 2 + 4 + 8 * 2


@pytest.mark.parametrize(
    ("task", "rows_of_split"), [("boolq", 3270), ("arc-e", 2376), ("arc-c", 1172)]
)
def test_taso_s_figures_are_shares_of_four_fifths_of_the_split_that_is_divided(
    task: str, rows_of_split: int
) -> None:
    table = papers()["taso"].tables[0]
    figures = [
        cells[table.tasks.index(task)]
        for of_base in table.bases.values()
        for cells in of_base.figures.values()
    ]

    def misses(rows: int) -> int:
        """How many are no share of so many rows, rounded or cut."""
        shares = 100 * np.arange(rows + 1) / rows
        off = [shares - float(figure) for figure in figures if not isinstance(figure, tuple)]
        return sum(not np.any((each > -0.0051) & (each < 0.0101)) for each in off)

    assert misses(round(0.8 * rows_of_split)) == 0
    assert misses(rows_of_split) >= 5


# -- the sweeps ------------------------------------------------------------------------------------


@BY_NAME
def test_the_file_says_what_the_preset_does(found: Preset) -> None:
    text = sweep_file(found)
    written = parse_yaml(text, "a preset")
    assert written == yaml.safe_load(yaml.safe_dump(plain(found.sweep())))
    assert written["name"] == found.name
    assert max(len(line) for line in text.splitlines() if line.startswith("#")) <= 100


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


@BY_NAME
def test_what_the_paper_gives_and_what_was_chosen_stands_above_the_section(found: Preset) -> None:
    text = sweep_file(found)
    sections = dict(re.findall(r"((?:^#.*\n)*)^(\w+):", text, flags=re.MULTILINE))
    above = {key: " ".join(comment.replace("#", " ").split()) for comment, key in sections.items()}
    document = found.document()
    for word in ("given", "chosen"):
        for section, remarks in document[word].items():
            for remark in remarks:
                assert f"{word}: {' '.join(remark.split())}" in above[section].replace("# ", "")
    assert document["given"]
    assert {"task", "search", "confirm"} <= set(document["chosen"])


@BY_NAME
def test_the_sweep_is_one_that_a_launch_takes(found: Preset) -> None:
    config = parse_sweep(parse_yaml(sweep_file(found), "a preset"))
    assert config.confirm is not None
    arms = {arm.name for arm in config.search_space.arms(config.search.arms)}
    assert set(found.figures) - arms <= NOT_OURS
    assert config.search.sampler == "grid"
    assert config.search.trials == len(arms)
    assert config.search.scheduler.name == "none"
    assert config.published is not None
    assert config.published.figures == found.figures


def test_no_other_alpha_is_searched_than_what_the_tables_say_or_the_methods_default() -> None:
    for found in presets():
        space = found.sweep()["space"]
        for choice in SearchSpace.parse(space).grid():
            values = choice.as_dict()
            if "alpha" in values:
                written = (space["methods"].get(choice.method) or {}).get("alpha", 16)
                assert values["alpha"] == written, found.name


def test_what_is_printed_of_a_suite_s_members_stands_under_their_names() -> None:
    checked = 0
    for each in presets():
        if members := {str(member["name"]) for member in each.data_set.task.get("suite", ())}:
            assert set(each.columns) == members
            checked += 1
    assert checked == 2 + 1


def test_the_papers_own_values_are_in_the_sweeps() -> None:
    llama = preset("pilora-table1-commonsense-llama3-8b").sweep()
    assert llama["space"]["learning_rate"] == 1e-4
    assert llama["space"]["methods"]["pilora"]["supplementary_rank"] == 2
    assert llama["profile"]["target_modules"] == [
        "q_proj",
        "k_proj",
        "v_proj",
        "up_proj",
        "down_proj",
    ]
    assert (llama["train"]["warmup_steps"], llama["train"]["dropout"]) == (100, 0.05)
    rte = preset("pilora-table2-rte-roberta-large").sweep()
    assert (rte["train"]["epochs"], rte["space"]["learning_rate"]) == (50, 2e-4)
    assert rte["task"]["metric"] == "accuracy"
    rates = {
        each.task: each.sweep()["space"]["learning_rate"]
        for each in presets()
        if (each.paper_key, each.table.table) == ("pilora", 2)
    }
    assert rates == {"cola": 2e-4, "sst2": 1e-4, "mrpc": 1e-4, "qqp": 2e-4, "mnli": 1e-4,
                     "qnli": 1e-4, "rte": 2e-4}  # fmt: skip
    epochs = {
        each.task: each.sweep()["train"]["epochs"]
        for each in presets()
        if (each.paper_key, each.table.table) == ("pilora", 3)
    }
    assert epochs == {"cars": 35, "dtd": 76, "eurosat": 12, "gtsrb": 11, "resisc45": 15,
                      "sun397": 14, "svhn": 4}  # fmt: skip
    gsm8k = preset("taso-table1-gsm8k-qwen2.5-3b").sweep()["space"]
    rates = {name: method.get("learning_rate", 5e-5) for name, method in gsm8k["methods"].items()}
    assert rates == {"full": 5e-6, "ia3": 3e-3, "bottleneck": 5e-5, "lora": 5e-5, "dora": 5e-5,
                     "adalora": 5e-5, "vera": 1e-2, "lora_xs": 1e-4, "taso": 5e-5}  # fmt: skip
    cola = preset("sensitivity-table1-cola-roberta-base").sweep()
    assert (cola["train"]["epochs"], cola["train"]["batch_size"]) == (10, 32)
    assert cola["space"]["methods"]["sensitivity"]["mean_rank"] == 4
    assert cola["task"]["metric"] == "matthews"


LAYERS = {
    "llama2-7b": (32, [(4096, 4096)] * 3 + [(4096, 11008)] * 2),
    "qwen2.5-3b": (36, [(2048, 2048)] * 2 + [(2048, 256)] * 2 + [(2048, 11008)] * 3),
    "llama3.2-3b": (28, [(3072, 3072)] * 2 + [(3072, 1024)] * 2 + [(3072, 8192)] * 3),
    "deberta-v3-base": (12, [(768, 768)] * 4 + [(768, 3072)] * 2),
    "clip-vit-b32": (12, [(768, 768)] * 4 + [(768, 3072)] * 2),
}  # fmt: skip
"""Base -> its layers, and the two sides of the matrices that its presets name in each."""


@pytest.mark.parametrize(
    ("name", "rank", "printed"),
    [
        ("pilora-table1-commonsense-llama2-7b", 32, 0.0083 * 6738.4e6),
        ("pilora-table3-dtd-clip-vit-b32", 8, 0.0149 * 87.8e6),
        ("taso-table1-wic-qwen2.5-3b", 8, 14.97e6),
        ("taso-table1-wic-llama3.2-3b", 32, 48.63e6),
        ("taso-table2-cola-deberta-v3-base", 8, 1.33e6),
    ],
)
def test_the_modules_have_the_parameters_that_the_table_counts_for_lora(
    name: str, rank: int, printed: float
) -> None:
    found = preset(name)
    layers, shapes = LAYERS[found.base_key]
    assert len(shapes) == len(found.sweep()["profile"]["target_modules"])
    count = layers * rank * sum(rows + columns for rows, columns in shapes)
    assert count == pytest.approx(printed, rel=0.02)


def test_a_name_that_is_none_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"^NAME: .*'taso-table2-rte-deberta-v3-base'"):
        preset("taso-table2-rte-deberta-v3-bas")
