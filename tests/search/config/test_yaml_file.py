"""YAML is read as what everyone takes it for, and what may be read in two ways is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search.config.yaml_file import parse_yaml, read_mapping
from spaces.errors import ConfigError


def refusal(text: str) -> str:
    """The one line that a text is refused with, without its source."""
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "sweep.yaml")
    line = str(caught.value)
    assert line.startswith("sweep.yaml: ")
    assert "\n" not in line
    assert len(line) < 300
    return line.removeprefix("sweep.yaml: ")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5e-5", 5e-5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("1_000", 1000),
        ("0x10", 16),
        ("1e400", float("inf")),
        (".inf", float("inf")),
        ("1,000", "1,000"),
        ("010", "010"),
        ("08", "08"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("2026-11-29", "2026-11-29"),
        ("2026-11-29 10:00:00", "2026-11-29 10:00:00"),
        ("1.2.3", "1.2.3"),
        ("no", False),
        ("~", None),
    ],
)
def test_a_value_is_what_everyone_takes_it_for(written: str, value: Any) -> None:
    read = parse_yaml(f"key: {written}", "sweep.yaml")["key"]
    assert read == value
    assert type(read) is type(value)


# -- merge keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "merged"),
    [
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"x": 1, "y": 3}),
        ("a: &a {x: 1, y: 2}\nb: {y: 3, <<: *a}", {"x": 1, "y": 3}),
        ("a: &a {x: 1}\nc: &c {x: 2, y: 2}\nb: {<<: [*a, *c]}", {"x": 1, "y": 2}),
        ("a: &a {x: 1}\nc: &c {<<: *a, x: 2}\nb: {<<: *c, y: 3}", {"x": 2, "y": 3}),
        ("a: &a {<<: {x: 1}, x: 2}\n<<: *a\nb: {<<: *a}", {"x": 2}),
        ("a: &a {rank: 1}\nc: &c {<<: *a, rank: 2}\nb: {<<: [*c, *a]}", {"rank": 2}),
    ],
)
def test_what_a_mapping_says_itself_wins_over_what_it_merges(
    text: str, merged: dict[str, int]
) -> None:
    assert parse_yaml(text, "sweep.yaml")["b"] == merged


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {x: 1, <<: {x: 2}, x: 3}", "x: is there twice (line 1)"),
        ("a:\n  <<: {x: 1}\n  <<: {y: 1}", "<<: is there twice (line 3)"),
        ("a: {<<: 3}", "<<: merges what is no mapping (line 1)"),
        ("a: &a {x: 1}\nb: {<<: [*a, 3]}", "<<: merges what is no mapping (line 2)"),
        ("a: {<<: *b}", "undefined alias 'b'"),
    ],
)
def test_a_merge_that_says_two_things_is_refused(text: str, words: str) -> None:
    assert words in refusal(text)


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("search: {trials:2}", "trials:2: is one word (line 1); put a space after the colon"),
        ("a: 1\nsearch: {trials: 1,000}", "000: stands behind a comma as a key"),
        ("{dropout: 0,05}", "05: stands behind a comma as a key"),
        ("search: {trials:\u00a02}", "U+00A0 NO-BREAK SPACE"),
        ("\u00a0\u00a0trials: 2", "U+00A0 NO-BREAK SPACE"),
        ("tri\u200bals: 2", "U+200B ZERO WIDTH SPACE"),
        ("tri\u00adals: 2", "U+00AD SOFT HYPHEN"),
        ("a: 1\n\ufefftrials: 2", "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
        ("'trials ': 2", "'trials ': begins or ends with a space (line 1)"),
        ("1: 2", "1: is read as a number, not as a key (line 1); put it in quotes"),
        ("on: 2", "on: is read as true or false, not as a key"),
        ("~: 2", "~: is read as nothing, not as a key"),
        ("[a]: 2", "a list: is no plain key"),
        ("{{a: 1}: 2}", "a mapping: is no plain key"),
        ("'a': 1\na: 2", "a: is there twice (line 2)"),
    ],
)
def test_a_key_that_is_no_plain_name_is_refused(text: str, words: str) -> None:
    assert words in refusal(text)


def test_a_key_may_hold_a_colon() -> None:
    assert parse_yaml("{node:10.0.0.1: 1}", "sweep.yaml") == {"node:10.0.0.1": 1}


# -- documents -------------------------------------------------------------------------------------

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "stands for more than 100,000 values; use fewer aliases"),
        ("a: &a [*a]", "*a: stands for itself"),
        ("a: &a {b: {c: *a}}", "*a: stands for itself"),
        ("[" * 5000, "nested more than 50 deep"),
        ("a: 1\n---\nb: 2", "several YAML documents, the second at line 2; keep one"),
        ("a:\n\tb: 1", "indent with spaces"),
        ("a: 1\nb: \x07", "U+0007 CONTROL CHARACTER in it (line 2)"),
        ("a: 1\ntrials:2\n", "with a space after the colon"),
        ("a: !!set {x, y}", "is no valid YAML at line 1"),
        ("a: !!binary aGk=", "is no valid YAML at line 1"),
        (f"a: {'9' * 6000}", "holds a number that cannot be read"),
        ("a: !!int x", "holds a number that cannot be read"),
    ],
)
def test_a_document_that_is_no_plain_data_is_refused(text: str, words: str) -> None:
    assert words in refusal(text)


def test_an_alias_may_stand_in_many_places() -> None:
    keys = ", ".join(f"k{i}: *a" for i in range(200))
    read = parse_yaml(f"a: &a {{rank: 4}}\nb: {{{keys}}}", "sweep.yaml")
    assert read["b"]["k199"] == {"rank": 4}


@pytest.mark.parametrize("head", [b"\xef\xbb\xbf", b"%YAML 1.2\n---\n", b"# on Windows\r\n"])
def test_a_file_may_begin_as_other_programs_write_it(tmp_path: Path, head: bytes) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_bytes(head + b"a: 1\r\nb: 2\r\n")
    assert read_mapping(file) == {"a": 1, "b": 2}


def test_a_file_in_another_encoding_is_told_how_to_be_saved(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("a: 1\n", encoding="utf-16")
    with pytest.raises(ConfigError, match="saved as UTF-8"):
        read_mapping(file)
