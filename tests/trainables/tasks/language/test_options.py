"""Options are read from wherever they stand, and an answer is read as the whole column says."""

from __future__ import annotations

from typing import Any

import pytest

from trainables.tasks.language.options import (
    LabelForm,
    OptionColumns,
    Options,
    OptionsFrom,
    option_columns,
    options_of,
    right_options,
)
from trainables.tasks.records import Records

PLACE = "task.data.train (t.jsonl)"


def records(**columns: list[Any]) -> Records:
    count = len(next(iter(columns.values())))
    return Records(columns, range(1, count + 1), "line")


def read_options(source: OptionsFrom, **columns: list[Any]) -> list[Options]:
    options, faults = options_of(records(**columns), source, PLACE)
    assert faults == []
    return options


def fault_of(source: OptionsFrom, **columns: list[Any]) -> str:
    (fault,) = options_of(records(**columns), source, PLACE)[1]
    assert "\n" not in fault
    return fault


def read_right(
    answers: list[Any], options: list[Options], form: LabelForm = "auto"
) -> list[int] | str:
    right, faults = right_options(records(label=answers), "label", options, form, PLACE)
    if faults:
        assert right == []
        (fault,) = faults
        assert "\n" not in fault
        return fault
    return right


def of(*rows: str) -> list[Options]:
    """Options of rows, such as "bank|mall"."""
    return [Options(tuple(row.split("|"))) for row in rows]


def test_options_are_fixed_or_a_list_or_a_column_each() -> None:
    assert read_options(("no", "yes"), q=["a", "b"]) == of("no|yes", "no|yes")
    assert read_options("c", c=[["x", "y", 3], ("u", "v")]) == of("x|y|3", "u|v")
    both = OptionColumns(columns=("sol1", "sol2"))
    assert read_options(both, sol1=["x", "u"], sol2=["y", 2]) == of("x|y", "u|2")
    assert option_columns(both) == ("sol1", "sol2")
    assert option_columns("c") == ("c",)
    assert option_columns(("no", "yes")) == ()


def test_lists_of_texts_and_labels_are_read_both_ways_round() -> None:
    expected = [Options(("bank", "mall"), ("A", "B")), Options(("x", "y", "z"), ("1", "2", "3"))]
    of_lists = [
        {"text": ["bank", "mall"], "label": ["A", "B"]},
        {"label": ["1", "2", "3"], "text": ["x", "y", "z"]},
    ]
    turned = [
        [{"text": "bank", "label": "A"}, {"text": "mall", "label": "B"}],
        [{"text": t, "label": n} for t, n in zip("xyz", "123", strict=True)],
    ]
    assert read_options("choices", choices=of_lists) == expected
    assert read_options("choices", choices=turned) == expected
    assert read_options("choices", choices=[{"text": ["a", "b"]}]) == of("a|b")


@pytest.mark.parametrize(
    ("source", "columns", "said"),
    [
        (("yes",), {"q": ["a"]}, "task.options: 1 option is no choice; give at least two"),
        (("yes", " "), {"q": ["a"]}, "task.options: one of them is empty; write a text for each"),
        (
            ("yes", "no", "yes "),
            {"q": ["a"]},
            "task.options: 'yes ' is there twice; give each option once",
        ),
        (
            "c",
            {"c": [["x"], ["x", "y"], []]},
            f"task.options: {PLACE} has fewer than two options in 'c' in 2 of 3 rows (lines 1 and "
            "3); give each row at least two, or drop these rows",
        ),
        (
            "c",
            {"c": [["x", "y"], ["u", "v", " u"]]},
            f"task.options: {PLACE} has two equal options in 'c', such as ' u', in 1 of 2 rows "
            "(line 2); correct or drop these rows",
        ),
        (
            "c",
            {"c": [["x", "y"], ["u", None], [" ", ""]]},
            f"task.options: {PLACE} has no option in 'c' in 2 of 3 rows (lines 2 and 3); fill it "
            "in, or drop these rows",
        ),
        (
            "c",
            {"c": [["x", "y"], "A. x B. y"]},
            f"task.options: {PLACE} has str 'A. x B. y' in 'c' in 1 of 2 rows (line 2); give a "
            "list of texts, or name a column for each option with options: {columns: [...]}",
        ),
        (
            "c",
            {"c": [{"text": ["x", "y"], "label": ["A"]}]},
            f"task.options: {PLACE} has more or fewer labels than texts in 'c' in 1 of 1 rows "
            "(line 1); give each option one of both",
        ),
        (
            "c",
            {"c": [{"text": ["x", "y"], "label": ["A", "A"]}]},
            f"task.options: {PLACE} has two options of one label in 'c', such as 'A', in 1 of 1 "
            "rows (line 1); give each option a label of its own",
        ),
        (
            OptionColumns(columns=("a", "b")),
            {"a": ["x", "y"], "b": ["u", None]},
            f"task.options: {PLACE} has no option in 'b' in 1 of 2 rows (line 2); fill it in, or "
            "drop these rows",
        ),
        (
            OptionColumns(columns=("a",)),
            {"a": ["x", "y"]},
            f"task.options: {PLACE} has fewer than two options in 'a' in 2 of 2 rows (lines 1 and "
            "2); give each row at least two, or drop these rows",
        ),
    ],
)
def test_bad_options_are_told_in_a_line(
    source: OptionsFrom, columns: dict[str, list[Any]], said: str
) -> None:
    assert fault_of(source, **columns) == said


@pytest.mark.parametrize(
    ("answers", "options", "right"),
    [
        (["mall", " bank"], of("bank|mall", "bank|x"), [1, 0]),
        (["B", "a", "C "], of("x|y", "x|y", "x|y|z"), [1, 0, 2]),
        ([0, 1, 1], of("x|y", "x|y", "x|y"), [0, 1, 1]),
        (["1", "2", "1"], of("x|y", "x|y", "x|y"), [0, 1, 0]),
        ([1.0, 0.0], of("x|y", "x|y"), [1, 0]),
        (["1", "0"], of("0|1", "0|1"), [1, 0]),  # by text and by index alike
        (["2", "C"], [Options(("x", "y"), ("1", "2")), Options(("x", "y"), ("C", "D"))], [1, 0]),
    ],
)
def test_auto_reads_the_whole_column_in_one_form(
    answers: list[Any], options: list[Options], right: list[int]
) -> None:
    assert read_right(answers, options) == right


def test_a_form_that_is_given_is_taken() -> None:
    assert read_right([1, 1], of("x|y|z", "x|y|z"), "index") == [1, 1]
    assert read_right([1, 1], of("x|y|z", "x|y|z"), "number") == [0, 0]
    assert read_right([True, False], of("no|yes", "no|yes"), "index") == [1, 0]
    assert read_right(["B", "A"], of("B|A", "B|A"), "letter") == [1, 0]
    assert read_right(["B", "A"], of("B|A", "B|A"), "text") == [0, 1]


def test_answers_that_can_be_read_in_two_ways_ask_for_the_form() -> None:
    assert read_right([1, 2], of("x|y|z|w", "x|y|z|w")) == (
        f"task.label: {PLACE} has answers in 'label' that can be read by index and by number: '1' "
        "in 1 of 2 rows (line 1) is 'y' or 'x'; say which with task.label_form: index or number"
    )
    said = read_right(["A", "B"], of("A|B", "A|B|C")[:1] + of("B|A"))
    assert isinstance(said, str)
    assert "by text and by letter: 'B' in 1 of 2 rows (line 2) is 'B' or 'A'" in said


@pytest.mark.parametrize(
    ("answers", "options", "form", "said"),
    [
        (
            [0, 1, 2],
            of("x|y", "x|y", "x|y"),
            "auto",
            "has an answer in 'label' that is no option in 1 of 3 rows (line 3), such as 2 of 'x', "
            "'y'; an answer is here the place of an option, from 0 (label_form: index); correct "
            "these rows",
        ),
        (
            ["x", "y", "q"],
            of("x|y", "x|y", "x|y"),
            "auto",
            "has an answer in 'label' that is no option in 1 of 3 rows (line 3), such as 'q' of "
            "'x', 'y'; an answer is here the text of one of its row's options (label_form: text); "
            "correct these rows",
        ),
        (
            ["q"],
            of("x|y"),
            "auto",
            "has an answer in 'label' that is no option in 1 of 1 rows (line 1), such as 'q' of "
            "'x', 'y'; an answer is an option's text, label, letter, or place from 0 or from 1: "
            "name the column that holds it, or correct task.options",
        ),
        (
            ["E"],
            of("x|y"),
            "letter",
            "has an answer in 'label' that is no option in 1 of 1 rows (line 1), such as 'E' of "
            "'x', 'y'; an answer is here the letter of an option, from A (label_form: letter); "
            "correct these rows",
        ),
        (
            [True],
            of("yes|no"),
            "auto",
            "has an answer in 'label' that is no option in 1 of 1 rows (line 1), such as True of "
            "'yes', 'no'; where false is the first option and true the second, say label_form: "
            "index",
        ),
        (
            [0, -1],
            of("x|y", "x|y"),
            "auto",
            "has an answer in 'label' that is no option in 1 of 2 rows (line 2), such as -1 of "
            "'x', 'y'; -1 marks rows whose answer is kept back: name another split",
        ),
        (
            ["x", None],
            of("x|y", "x|y"),
            "auto",
            "has no answer in 'label' in 1 of 2 rows (line 2); fill it in, or drop these rows",
        ),
    ],
)
def test_an_answer_that_is_no_option_is_told_in_a_line(
    answers: list[Any], options: list[Options], form: LabelForm, said: str
) -> None:
    assert read_right(answers, options, form) == f"task.label: {PLACE} {said}"
