"""A table is read strictly and alike in every kind of file; what is wrong is said in one line."""

from __future__ import annotations

import contextlib
import csv
import datetime
import decimal
import io
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spaces.errors import DataError
from trainables.tasks.encodings import read_text
from trainables.tasks.rows import TaskRows, load_rows
from trainables.tasks.settings import TaskSettings

Row = dict[str, Any]
SUFFIXES = (".csv", ".tsv", ".tab", ".json", ".jsonl", ".parquet")
GOOD = [{"text": f"film number {i}", "label": "pos" if i % 2 else "neg"} for i in range(12)]
HEADER_LINES = {".csv": 1, ".tsv": 1, ".tab": 1}
WORDS = ["a", "good", "bad", "film", "plot", "the", "of", "is", "and", "12", "I", "never", "seen"]
LINE_BY_LINE = (*HEADER_LINES, ".jsonl")


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., TaskRows]:
    """Reads train from a file of this content; dev is good."""

    def read(content: str | bytes | pa.Table, suffix: str = ".csv", **changes: Any) -> TaskRows:
        train, dev = tmp_path / f"train{suffix}", tmp_path / "dev.jsonl"
        if isinstance(content, pa.Table):
            pq.write_table(content, train)
        else:
            train.write_bytes(content.encode() if isinstance(content, str) else content)
        if not dev.exists():
            dev_rows = ({**row, "text": f"d {row['text']}"} for row in GOOD[:2])
            dev.write_text("".join(json.dumps(row) + "\n" for row in dev_rows))
        task = {"name": "t", "data": {"train": str(train), "dev": str(dev)}, "text": "text"}
        return load_rows(TaskSettings.model_validate(task | changes))

    return read


@pytest.fixture
def refusal(read: Callable[..., TaskRows], tmp_path: Path) -> Callable[..., str]:
    """What is said of a file that is refused, on one line, without the test's own folder."""

    def refusal(content: str | bytes | pa.Table, suffix: str = ".csv", **changes: Any) -> str:
        with pytest.raises(DataError) as caught:
            read(content, suffix, **changes)
        message = str(caught.value)
        assert "\n" not in message
        assert message.isprintable()
        return message.replace(f"{tmp_path}/", "")

    return refusal


def written(rows: Sequence[Mapping[str, Any]], suffix: str) -> str | pa.Table:
    """Rows as a file of this kind, as other programs write it."""
    if suffix == ".parquet":
        return pa.Table.from_pylist([dict(row) for row in rows])
    if suffix in HEADER_LINES:
        file = io.StringIO()
        delimiter = "," if suffix == ".csv" else "\t"
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()
    if suffix == ".json":
        return json.dumps(rows)
    return "\n".join(json.dumps(row) for row in rows)


def changed(index: int, **values: Any) -> list[Row]:
    rows = [dict(row) for row in GOOD]
    rows[index] |= values
    return rows


def table(*lines: str) -> str:
    """A CSV table of good rows with these between them, from line 4 on."""
    good = [f"{row['text']},{row['label']}" for row in GOOD]
    return "\n".join(["text,label", *good[:2], *lines, *good[2:]]) + "\n"


# --- the same verdict in every kind of file -------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_rows_are_the_same_in_every_kind_of_file(
    suffix: str, read: Callable[..., TaskRows]
) -> None:
    odd = [
        *GOOD,
        {"text": 'says "no", twice', "label": "NA"},
        {"text": "two\nlines, one\tand a half", "label": "null"},
        {"text": "nan", "label": "nan"},
        {"text": " kept ", "label": "None"},
        {"text": "word " * 40_000, "label": "pos"},  # longer than csv's own limit
    ]
    before = csv.field_size_limit()
    rows = read(written(odd, suffix), suffix)
    assert csv.field_size_limit() == before
    train = rows["train"]
    found = [(inputs[0], label) for inputs, label in zip(train.inputs, train.labels, strict=True)]
    assert sorted(found) == sorted((row["text"], row["label"]) for row in odd)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("nothing", ["", "  \t", "\u00a0", "\u200b\ufeff", None])
def test_rows_without_a_text_or_a_class_are_refused_all_in_one_line(
    suffix: str, nothing: str | None, refusal: Callable[..., str]
) -> None:
    rows = changed(3, text=nothing)
    rows[8]["text"] = rows[9]["label"] = nothing
    message = refusal(written(rows, suffix), suffix)
    first = HEADER_LINES.get(suffix, 0) + 1
    unit = "line" if suffix in LINE_BY_LINE else "row"
    assert f"has no text in 'text' in 2 of 12 rows ({unit}s {first + 3} and {first + 8})" in message
    assert f"has no class in 'label' in 1 of 12 rows ({unit} {first + 9})" in message


def test_a_number_that_is_none_is_nothing(refusal: Callable[..., str]) -> None:
    said = "no class in 'label' in 1 of 12 rows"
    numbers = [float(i % 2) for i in range(12)]
    numbers[4] = float("nan")
    rows = [{"text": row["text"], "label": n} for row, n in zip(GOOD, numbers, strict=True)]
    assert said in refusal(written(rows, ".jsonl"), ".jsonl")
    assert said in refusal(written(rows, ".parquet"), ".parquet")
    columns = {"text": [row["text"] for row in GOOD], "label": pa.nulls(12)}
    assert "in 12 of 12 rows (rows 1, 2, 3, 4, 5 and 7 more)" in refusal(
        pa.table(columns), ".parquet"
    )
    rows[4] = {"text": "x"}
    assert said in refusal(written(rows, ".jsonl"), ".jsonl")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ((0, 1), ("0", "1")),
        ((0.0, 1.0), ("0.0", "1.0")),
        ((0.5, 4.5), ("0.5", "4.5")),
        ((False, True), ("False", "True")),
    ],
)
def test_a_class_and_a_text_are_what_csv_would_hold(
    suffix: str, values: tuple[Any, Any], classes: tuple[str, str], read: Callable[..., TaskRows],
    tmp_path: Path,
) -> None:  # fmt: skip
    rows = [{"text": i * 0.5, "label": values[i % 2]} for i in range(12)]
    (tmp_path / "dev.jsonl").write_text(json.dumps(rows[0]))
    read_rows = read(written(rows, suffix), suffix)
    assert read_rows.labels == classes
    assert {inputs[0] for inputs in read_rows["train"].inputs} == {str(i * 0.5) for i in range(12)}
    assert any("every text of train is a number" in note for note in read_rows.notes)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nul_is_no_character_in_any_file(suffix: str, refusal: Callable[..., str]) -> None:
    message = refusal(written(changed(1, text="a\0b"), suffix), suffix)
    assert (
        "has what is no character (NUL, or half of a surrogate pair) in 'text' in 1 of" in message
    )


def test_columns_that_are_not_asked_for_are_not_judged(read: Callable[..., TaskRows]) -> None:
    good = read(written(GOOD, ".csv"))["train"]
    wide = [{"": i, **row, "note": ""} for i, row in enumerate(GOOD)]  # pandas' index, an empty one
    assert read(written(wide, ".csv"))["train"] == good
    latin = written(wide, ".csv").replace("0,film", "caf\u00e9,film")
    assert read(latin.encode("latin-1"))["train"] == good
    assert read("x,text,label,x\n" + "".join(
        f"1,{row['text']},{row['label']},2\n" for row in GOOD
    ))["train"] == good  # fmt: skip
    twice = "".join(f'{{"x": 1, "x": 2, {json.dumps(row)[1:]}\n' for row in GOOD)
    assert read(twice, ".jsonl")["train"] == good
    columns = pa.Table.from_pylist(GOOD).append_column("other", not_utf8(12))
    columns = columns.append_column("other", pa.array([{"text": 1}] * 12))
    columns = columns.append_column("text.x", pa.array([1] * 12))
    assert read(columns, ".parquet")["train"] == good


def not_utf8(n: int) -> pa.Array:
    """Strings whose bytes are no UTF-8, as careless programs write them."""
    bytes_ = pa.array([b"caf\xe9"] * n)
    return pa.Array.from_buffers(pa.string(), n, bytes_.buffers())


# --- tables of text -------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "sign"), [(".csv", ","), (".tsv", "\t"), (".tab", "\t")])
def test_rows_with_more_or_fewer_fields_than_the_header_are_refused(
    suffix: str, sign: str, refusal: Callable[..., str]
) -> None:
    rows = [sign.join(("the plot", " the actors", "pos"))] * 2 + ["alone"]
    message = refusal(sign.join(table(*rows).rsplit(",")), suffix)
    assert message.startswith(f"task.data.train (train{suffix}): 2 of 15 rows have more fields")
    assert "the header's 2 (lines 4 and 5)" in message
    assert "1 of 15 rows have fewer fields than the header's 2 (line 6)" in message


@pytest.mark.parametrize(
    "lines",
    [
        ['"a great film,pos', *["some film,neg"] * 3, 'a screen of 12",pos'],
        ['"a great film,pos', 'a screen of 12",pos'],
        ['"a great film,pos', "some film,neg", "", 'the ""best"" film,neg', 'he said "",neg",pos'],
        ['"a great film,pos', "odd, odd, odd", "a film,neg", "a film,pos", 'it was 12",pos'],
    ],
)
def test_a_stray_quote_that_makes_one_text_of_several_rows_is_refused(
    lines: list[str], refusal: Callable[..., str]
) -> None:
    message = refusal(table(*lines))
    assert f"a quote mark makes one field of several rows (lines 4 to {3 + len(lines)})" in message


def test_a_stray_quote_in_a_class_is_refused_too(refusal: Callable[..., str]) -> None:
    rows = [f"{row['label']},{row['text']}" for row in GOOD]
    rows[3:3] = ['"pos,a great film', "neg,some film", 'pos,a screen of 12"']
    content = "\n".join(["label,text", *rows])
    assert "fewer fields than the header's 2 (line 5)" in refusal(content)
    rows[5] += ",x"
    content = "\n".join(["label,text", *rows])
    assert "makes one field of several rows (lines 5 to 7)" in refusal(content)


def test_no_two_stray_quotes_take_rows_away_in_silence(read: Callable[..., TaskRows]) -> None:
    draw = random.Random(0)
    for _ in range(150):
        header = draw.choice([["text", "label"], ["label", "text"], ["id", "text", "label", "x"]])
        rows = [
            {"text": " ".join(draw.choices(WORDS, k=draw.randint(1, 9))), "id": i, "x": "-"}
            | {"label": ("neg", "pos")[i % 2]}
            for i in range(draw.randint(6, 30))
        ]
        fields = [[str(row[name]) for name in header] for row in rows]
        first, last = draw.choice(fields), draw.choice(fields)
        column = draw.randrange(len(header))
        first[column] = f'"{first[column]}'
        last[-1 if draw.random() < 0.5 else draw.randrange(len(header))] += '"'
        content = "\n".join(map(",".join, [header, *fields]))
        with contextlib.suppress(DataError):
            assert len(read(content)["train"]) == len(rows), content


def test_honest_texts_of_many_lines_are_never_taken_for_rows(read: Callable[..., TaskRows]) -> None:
    draw = random.Random(1)
    pieces = [*WORDS, ",", ", ", "\n", '"', ". ", "\n\n", "\t"]
    for _ in range(100):
        rows = [
            {"text": f"{i}" + "".join(draw.choices(pieces, k=9)), "label": ("neg", "pos")[i % 2]}
            for i in range(20)
        ]
        if draw.random() < 0.5:  # the label stands on the first line of its row, or on the last
            rows = [{"label": row["label"], "text": row["text"]} for row in rows]
        for suffix in (".csv", ".tsv"):
            found = read(written(rows, suffix), suffix)["train"]
            assert {inputs[0] for inputs in found.inputs} == {row["text"] for row in rows}


def test_a_label_may_stand_between_texts_of_many_lines(read: Callable[..., TaskRows]) -> None:
    rows = ['"one\ntwo",pos,"three\nfour"', '"five\nsix",neg,seven', 'eight,neg,"nine\nten"']
    found = read("\n".join(["title,label,text", *rows]))["train"]
    assert sorted(found.inputs) == [("nine\nten",), ("seven",), ("three\nfour",)]


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        (['"a great film,pos', '"a good, good film",neg'], "lines 4 to 5"),
        (['"a great film,pos'], "lines 4 to 14"),  # to the end
        ([r'"he said \"hi\"",pos'], "line 4"),
    ],
)
def test_a_quote_that_does_not_close_is_refused(
    lines: list[str], where: str, refusal: Callable[..., str]
) -> None:
    message = refusal(table(*lines))
    assert "a quote does not close, or has more behind it" in message
    assert f"({where})" in message


def test_texts_of_many_lines_are_read(read: Callable[..., TaskRows]) -> None:
    texts = [
        "I loved it, really\nwell, most of it\n\nbye",
        "Great acting, poor plot\nWould not see it again",
        "one line\n",
        "a list:\n- a, b\n- c, d\n",
    ]
    rows = [{"text": f"{text} {i}", "label": ("neg", "pos")[i % 2]} for i, text in enumerate(texts)]
    for suffix in (".csv", ".tsv"):
        found = read(written([*GOOD, *rows], suffix), suffix)
        assert {row["text"] for row in rows} <= {inputs[0] for inputs in found["train"].inputs}
        assert found.notes == ()


def test_a_header_in_the_midst_is_no_row(refusal: Callable[..., str]) -> None:
    for header in ("text,label", '"text","label"', "\ufefftext,label"):
        message = refusal(table(header, "a film,pos", header))
        assert "has its header again in lines 4 and 6, as files put together do" in message


def test_characters_that_a_conversion_has_lost_are_said(read: Callable[..., TaskRows]) -> None:
    (note,) = read(written(changed(3, text="caf\ufffd"), ".csv")).notes
    assert note.startswith("task.text: 1 texts of train hold U+FFFD")


def test_quotes_within_an_unquoted_field_are_characters(read: Callable[..., TaskRows]) -> None:
    rows = read(table('a 12" screen,pos', 'he said "hi" twice,neg'))["train"]
    assert {'a 12" screen', 'he said "hi" twice'} <= {inputs[0] for inputs in rows.inputs}


def test_tabs_with_quotes_that_do_not_quote_are_read_as_they_stand(
    read: Callable[..., TaskRows], refusal: Callable[..., str]
) -> None:
    rows = ['"Great," she said\tpos', 'it was "great"\tneg', '"\tpos']
    content = table(*rows).replace(",pos", "\tpos").replace(",neg", "\tneg")
    content = content.replace("text,label", "text\tlabel")
    found = read(content, ".tsv")
    assert {'"Great," she said', 'it was "great"', '"'} <= {i[0] for i in found["train"].inputs}
    assert any("its quote marks do not quote fields" in note for note in found.notes)
    excel = 'text\tlabel\n"says ""no"", twice"\tpos\n"a\ttab"\tneg\n'
    assert {i[0] for i in read(excel, ".tsv")["train"].inputs} == {'says "no", twice', "a\ttab"}
    assert "a quote does not close" in refusal(content.replace("it was", "it\twas"), ".tsv")


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_line_ends_and_marked_encodings_make_no_difference(
    ends: str, encoding: str, suffix: str, read: Callable[..., TaskRows]
) -> None:
    rows = changed(2, text="na\u00efve \u2013 \U0001f600")
    content = written(rows, suffix)
    assert isinstance(content, str)
    found = read(content.replace("\n", ends).encode(encoding), suffix)["train"]
    assert found == read(written(rows, ".parquet"), ".parquet")["train"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_bytes_of_windows_are_named_with_the_way_to_convert_them(
    suffix: str, refusal: Callable[..., str]
) -> None:
    content = written(changed(2, text="cafe\u0301"), suffix)
    assert isinstance(content, str)
    content = content.replace("cafe\u0301", "caf\u00e9").replace("cafe\\u0301", "caf\u00e9")
    message = refusal(content.encode("cp1252"), suffix)
    line = 3 + HEADER_LINES.get(suffix, 0)
    assert f"has bytes that are no UTF-8 in 'text' in 1 of 12 rows (line {line})" in message
    assert f"`iconv -f WINDOWS-1252 -t UTF-8 train{suffix} > utf8-train{suffix}`" in message
    message = refusal(content.encode("utf-16-le"), suffix)
    assert "looks like UTF-16LE without a mark; convert it with `iconv -f UTF-16LE" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty; name a file that has rows"),
        ("\n\n", "has no rows"),
        ("text,label\n", "has no rows"),
        (table().replace("text,label", "text,label,label").replace("\nf", "\n1,f"),
         "has 2 columns named 'label'"),
        (table().replace("text,", "Text,"), "did you mean 'Text'?"),
        (table().replace("text,", "text ,"),
         "did you mean 'text '? its columns are 'text ', label"),
        (table().replace("text,", "words,"), "no column 'text'; its columns are words, label"),
        (table().replace(",", ";"), "it is separated by semicolons: save it with commas"),
        (table().replace("text,label", '"text","label"').replace(",", ";"),
         "it is separated by semicolons: save it with commas"),
        (table().replace("text,label", "text,label,a,b").replace(",", ";").replace("a;b", "a,b"),
         "it is separated by semicolons: save it with commas"),
        ('"text" ,"label"\n', "(its first line: ',' expected after '\"'); correct its quotes"),
        (table().replace(",", "\t"), "it is separated by tabs: name it .tsv"),
        ("sep=;\n" + table().replace(",", ";"), "its first line is a note to Excel: delete it"),
        (table().split("\n", 1)[1], "its columns are film number 0, neg (as its first line"),
    ],
)  # fmt: skip
def test_a_header_that_is_none_is_told_with_what_may_be_wrong(
    content: str, said: str, refusal: Callable[..., str]
) -> None:
    assert said in refusal(content)


# --- JSON and Parquet -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": {"a": 1}, "label": "pos"}', "has dict {'a': 1} in 'text' in 1 of 13 rows"),
        ('{"text": ["a"], "label": "pos"}', "has list ['a'] in 'text' in 1 of 13 rows (line 13)"),
        ('{"text": "a", "label": Infinity}', "has float inf in 'label'"),
        ('{"text": "a \\ud800", "label": "pos"}', "has what is no character"),
        ('{"text": "a", "text": "b", "label": "pos"}', "has 'text' twice in 1 of 13 rows"),
        ('{"text": "a", ', "is not readable as JSON (1 of 13 rows, line 13: "),
        ('"text"', "something else than objects in 1 of 13 rows (line 13)"),
        ("[" * 100_000, "is not readable as JSON"),
    ],
)
def test_a_line_of_json_that_is_no_row_is_named(
    line: str, said: str, refusal: Callable[..., str]
) -> None:
    assert said in refusal(f"{written(GOOD, '.jsonl')}\n{line}", ".jsonl")


def test_json_that_is_one_object_is_refused_with_the_way_to_write_it(
    refusal: Callable[..., str],
) -> None:
    columns = {"text": {"0": "a"}, "label": {"0": "pos"}}
    assert "orient='records', lines=True" in refusal(json.dumps(columns, indent=1), ".json")


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_strings_of_parquet_are_strings_however_they_are_kept(
    kind: pa.DataType, read: Callable[..., TaskRows]
) -> None:
    plain = pa.Table.from_pylist(GOOD)
    columns = pa.table({name: plain.column(name).cast(kind) for name in plain.column_names})
    assert read(columns, ".parquet")["train"] == read(plain, ".parquet")["train"]


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (pa.array([0.1, 1.0] * 6, pa.float32()), ("0.1", "1.0")),
        (pa.array([decimal.Decimal("0.5"), decimal.Decimal("1.5")] * 6), ("0.5", "1.5")),
        (pa.array([3, 200] * 6, pa.uint8()), ("3", "200")),
    ],
)
def test_numbers_of_parquet_are_classes_as_they_are_written(
    values: pa.Array, classes: tuple[str, str], read: Callable[..., TaskRows], tmp_path: Path
) -> None:
    (tmp_path / "dev.jsonl").write_text(json.dumps({"text": "d", "label": classes[0]}))
    columns = pa.table({"text": [row["text"] for row in GOOD], "label": values})
    assert read(columns, ".parquet").labels == classes


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            pa.array([datetime.date(2020, 1, 1)] * 12),
            "has date datetime.date(2020, 1, 1) in 'text'",
        ),
        (pa.array([b"a"] * 12), "has bytes b'a' in 'text' in 12 of 12 rows"),
        (pa.array([["a"]] * 12), "has list ['a'] in 'text'"),
        (not_utf8(12), "has bytes that are no UTF-8 in 'text' in 12 of 12 rows"),
    ],
)
def test_a_column_of_parquet_that_holds_no_texts_is_refused(
    column: pa.Array, said: str, refusal: Callable[..., str]
) -> None:
    columns = pa.table({"text": column, "label": [row["label"] for row in GOOD]})
    assert said in refusal(columns, ".parquet")


def test_a_column_that_is_there_twice_is_refused_where_it_is_asked_for(
    refusal: Callable[..., str],
) -> None:
    columns = pa.Table.from_pylist(GOOD)
    assert "has 2 columns named 'label'" in refusal(
        columns.append_column("label", columns.column("label")), ".parquet"
    )


def test_a_folders_name_is_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "label=7"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(GOOD), folder / "a.parquet")
    file = str(folder / "a.parquet")
    data = {"train": file, "dev": file}
    task = TaskSettings.model_validate({"name": "t", "data": data, "text": "text"})
    assert load_rows(task).labels == ("neg", "pos")


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"PAR1\x15\x04", "is a Parquet file; name it .parquet"),
        (b"PK\x03\x04\x14\x00", "is an archive, as workbooks of Excel are; save it as CSV"),
        (b"\x1f\x8b\x08", "is compressed; unpack it with gunzip"),
    ],
)
def test_a_file_of_another_kind_is_told_as_what_it_is(
    start: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "other.csv").write_bytes(start + bytes(range(200)))
    with pytest.raises(DataError, match=re.escape(said)):
        read_text(tmp_path / "other.csv", "task.data.train (other.csv)")
