"""The options that a row of multiple choice has, and which of them is right."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from spaces.errors import shown
from trainables.settings import Settings
from trainables.tasks.records import Records
from trainables.tasks.values import strings_of

LabelForm = Literal["auto", "index", "number", "letter", "text", "name"]
FORMS: tuple[LabelForm, ...] = ("text", "name", "letter", "index", "number")
_AN_INTEGER = re.compile(r"\s*([+-]?\d+)(\.0*)?\s*")


class OptionColumns(Settings):
    """Options of which each has a column of its own."""

    columns: tuple[str, ...]
    """The columns, in the order in which the options are counted."""


OptionsFrom = tuple[str, ...] | str | OptionColumns
"""Fixed texts that are the options of every row, a column that holds a list of texts (or lists
{text, label}, as the hub has it), or a column each."""


@dataclass(frozen=True)
class Options:
    """The options of a row: their texts, and their names where the data names them."""

    texts: tuple[str, ...]
    names: tuple[str, ...] | None = None


def option_columns(source: OptionsFrom) -> tuple[str, ...]:
    """The columns that the options are read from."""
    if isinstance(source, str):
        return (source,)
    return source.columns if isinstance(source, OptionColumns) else ()


def options_of(
    records: Records, source: OptionsFrom, place: str
) -> tuple[list[Options], list[str]]:
    """The options of every row, of use where there is no fault, and what is wrong with them.

    Rows may have different numbers of options, each at least two, no two of them alike but for the
    white space around them.
    """
    if isinstance(source, str):
        options, faults = _listed(records, source)
        what = f"in {source!r}"
    elif isinstance(source, OptionColumns):
        options, faults = _each_its_column(records, source.columns)
        what = f"in {', '.join(map(repr, source.columns))}"
    else:
        fault = _fault_of_fixed(source)
        return [Options(source)] * len(records), [fault] if fault else []
    if not faults:
        faults = _faults_of_lists(records, options, what)
    return options, [f"task.options: {place} has {fault}" for fault in faults]


def right_options(
    records: Records, label: str, options: Sequence[Options], form: LabelForm, place: str
) -> tuple[list[int], list[str]]:
    """The index of the right option of every row, and what is wrong with the labels.

    `auto` takes the form in which the whole column can be read. Where several can and they differ,
    that is a fault which asks for the form.
    """
    answers, faults = strings_of(records, label, "answer")
    if faults:
        return [], [f"task.label: {place} has {fault}" for fault in faults]
    forms = FORMS if form == "auto" else (form,)
    if form == "auto" and any(isinstance(value, bool) for value in records.columns[label]):
        forms = tuple(each for each in forms if each not in ("index", "number"))
    read = {each: _read(answers, options, each) for each in forms}
    whole = {each: found for each, found in read.items() if None not in found}
    if not whole:
        return [], [_unread(records, label, options, read, form, place)]
    (chosen, right), *others = whole.items()
    for other, differing in others:
        if differing != right:
            row = next(
                i for i, pair in enumerate(zip(right, differing, strict=True)) if _differ(pair)
            )
            return [], [
                f"task.label: {place} has answers in {label!r} that can be read by {chosen} and by "
                f"{other}: {shown(repr(answers[row]), 40)} in {records.where([row])} is "
                f"{_told(options[row], right[row])} or {_told(options[row], differing[row])}; say "
                f"which with task.label_form: {chosen} or {other}"
            ]
    return [index for index in right if index is not None], []


# -- options ---------------------------------------------------------------------------------------


def _fault_of_fixed(texts: Sequence[str]) -> str | None:
    if any(not text.strip() for text in texts):
        return "task.options: one of them is empty; write a text for each"
    if len(texts) < 2:
        return f"task.options: {len(texts)} option is no choice; give at least two"
    if (twin := _twin(texts)) is not None:
        return f"task.options: {shown(repr(twin))} is there twice; give each option once"
    return None


@dataclass(frozen=True, kw_only=True)
class _Listed(Records):
    """The options of all rows one after the other, told of as what is in their rows."""

    whole: Records
    row_of: Sequence[int]

    def where(self, indices: Sequence[int]) -> str:
        return self.whole.where(sorted({self.row_of[i] for i in indices}))


def _listed(records: Records, column: str) -> tuple[list[Options], list[str]]:
    """The options of a column of lists."""
    texts: list[Sequence[object]] = []
    names: list[Sequence[object] | None] = []
    other: list[int] = []
    uneven: list[int] = []
    for row, value in enumerate(records.columns[column]):
        listed, named = _lists_in(value)
        if listed is None:
            other.append(row)
        elif named is not None and len(named) != len(listed):
            uneven.append(row)
        texts.append(listed or ())
        names.append(named)
    faults = []
    if other:
        example = records.columns[column][other[0]]
        faults.append(
            f"{type(example).__name__} {shown(repr(example), 40)} in {column!r} in "
            f"{records.where(other)}; give a list of texts, or name a column for each option with "
            "options: {columns: [...]}"
        )
    if uneven:
        faults.append(
            f"more or fewer labels than texts in {column!r} in {records.where(uneven)}; give each "
            "option one of both"
        )
    strings, wrong = _strings(records, column, texts, "option")
    labels, misnamed = _strings(records, column, [each or () for each in names], "option's label")
    faults += [*wrong, *misnamed]
    if faults:
        return [], faults
    return [
        Options(of_row, None if named is None else label)
        for of_row, label, named in zip(strings, labels, names, strict=True)
    ], []


def _lists_in(value: object) -> tuple[Sequence[object] | None, Sequence[object] | None]:
    """The texts of a value and their names, None where it has none."""
    if isinstance(value, Mapping):
        texts, names = value.get("text"), value.get("label")
        return (
            texts if isinstance(texts, list | tuple) else None,
            names if isinstance(names, list | tuple) else None,
        )
    if not isinstance(value, list | tuple):
        return None, None
    if value and all(isinstance(each, Mapping) and "text" in each for each in value):
        named = all("label" in each for each in value)
        return [each["text"] for each in value], [e["label"] for e in value] if named else None
    return value, None


def _strings(
    records: Records, column: str, lists: Sequence[Sequence[object]], what: str
) -> tuple[list[tuple[str, ...]], list[str]]:
    """The lists of a column as strings, and what is wrong with what is in them."""
    flat = _Listed(
        columns={column: [each for of_row in lists for each in of_row]},
        numbers=records.numbers,
        unit=records.unit,
        undecoded=records.undecoded,
        whole=records,
        row_of=[row for row, of_row in enumerate(lists) for _ in of_row],
    )
    strings, faults = strings_of(flat, column, what)
    if faults:
        return [], faults
    rest = iter(strings)
    return [tuple(next(rest) for _ in of_row) for of_row in lists], []


def _each_its_column(records: Records, columns: Sequence[str]) -> tuple[list[Options], list[str]]:
    """The options of several columns, as many in every row."""
    lists: list[list[str]] = [[] for _ in range(len(records))]
    faults: list[str] = []
    for column in columns:
        strings, wrong = strings_of(records, column, "option")
        faults += wrong
        for of_row, text in zip(lists, strings, strict=not wrong):
            of_row.append(text)
    return [Options(tuple(texts)) for texts in lists], faults


def _faults_of_lists(records: Records, options: Sequence[Options], what: str) -> list[str]:
    """What is wrong with how many options rows have, and with options that are alike."""
    few = [row for row, each in enumerate(options) if len(each.texts) < 2]
    alike = [row for row, each in enumerate(options) if _twin(each.texts) is not None]
    named_alike = [row for row, each in enumerate(options) if _twin(each.names or ()) is not None]
    faults = []
    if few:
        faults.append(
            f"fewer than two options {what} in {records.where(few)}; give each row at least two, "
            "or drop these rows"
        )
    if alike:
        twin = shown(repr(_twin(options[alike[0]].texts)), 40)
        faults.append(
            f"two equal options {what}, such as {twin}, in {records.where(alike)}; correct or drop "
            "these rows"
        )
    if named_alike:
        twin = shown(repr(_twin(options[named_alike[0]].names or ())), 40)
        faults.append(
            f"two options of one label {what}, such as {twin}, in {records.where(named_alike)}; "
            "give each option a label of its own"
        )
    return faults


def _twin(texts: Sequence[str]) -> str | None:
    """A text that is there before, but for white space around it."""
    seen: set[str] = set()
    for text in texts:
        if text.strip() in seen:
            return text
        seen.add(text.strip())
    return None


# -- answers ---------------------------------------------------------------------------------------


def _by_text(answer: str, options: Options) -> int | None:
    texts = [text.strip() for text in options.texts]
    return texts.index(answer.strip()) if answer.strip() in texts else None


def _by_name(answer: str, options: Options) -> int | None:
    names = [name.strip() for name in options.names or ()]
    return names.index(answer.strip()) if answer.strip() in names else None


def _by_letter(answer: str, options: Options) -> int | None:
    letter = answer.strip().upper()
    if len(letter) != 1 or not "A" <= letter <= "Z":
        return None
    return _within(ord(letter) - ord("A"), options)


def _by_index(answer: str, options: Options) -> int | None:
    return None if (number := _integer(answer)) is None else _within(number, options)


def _by_number(answer: str, options: Options) -> int | None:
    return None if (number := _integer(answer)) is None else _within(number - 1, options)


def _integer(answer: str) -> int | None:
    """An integer, also as a table of floats writes one; false is 0 and true 1."""
    found = _AN_INTEGER.fullmatch({"False": "0", "True": "1"}.get(answer, answer))
    return int(found[1]) if found else None


def _within(index: int, options: Options) -> int | None:
    return index if 0 <= index < len(options.texts) else None


_READERS: Mapping[str, Callable[[str, Options], int | None]] = {
    "text": _by_text,
    "name": _by_name,
    "letter": _by_letter,
    "index": _by_index,
    "number": _by_number,
}
_TOLD = {
    "text": "the text of one of its row's options",
    "name": "the label of one of its row's options",
    "letter": "the letter of an option, from A",
    "index": "the place of an option, from 0",
    "number": "the place of an option, from 1",
}


def _read(answers: Sequence[str], options: Sequence[Options], form: str) -> list[int | None]:
    by_form = _READERS[form]
    return [by_form(answer, of_row) for answer, of_row in zip(answers, options, strict=True)]


def _unread(
    records: Records,
    label: str,
    options: Sequence[Options],
    read: Mapping[LabelForm, Sequence[int | None]],
    form: LabelForm,
    place: str,
) -> str:
    """What to say of answers that are no option, by the form that reads most of them."""
    nearest = min(read, key=lambda each: read[each].count(None))
    lost = [row for row, index in enumerate(read[nearest]) if index is None]
    values = records.columns[label]
    row = lost[0]
    listed = shown(", ".join(map(repr, options[row].texts)))
    said = (
        f"task.label: {place} has an answer in {label!r} that is no option in "
        f"{records.where(lost)}, such as {shown(repr(values[row]), 40)} of {listed}"
    )
    if str(values[row]).strip() == "-1":
        return f"{said}; -1 marks rows whose answer is kept back: name another split"
    if isinstance(values[row], bool) and form == "auto":
        return f"{said}; where false is the first option and true the second, say label_form: index"
    if len(lost) == len(values) and form == "auto":
        return (
            f"{said}; an answer is an option's text, label, letter, or place from 0 or from 1: "
            "name the column that holds it, or correct task.options"
        )
    return f"{said}; an answer is here {_TOLD[nearest]} (label_form: {nearest}); correct these rows"


def _differ(pair: tuple[int | None, int | None]) -> bool:
    return pair[0] != pair[1]


def _told(options: Options, index: int | None) -> str:
    return shown(repr(options.texts[index or 0]), 40)
