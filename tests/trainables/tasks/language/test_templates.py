"""A template composes a text from columns, and does nothing else."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.errors import ConfigError
from trainables.tasks.language.templates import columns, composed

BOOLQ = "{passage}\nQuestion: {question}?\nAnswer:"


def test_columns_come_once_each_in_their_order() -> None:
    assert columns(BOOLQ) == ("passage", "question")
    assert columns("{b} {a} {b}") == ("b", "a")
    assert columns("{a column} {über-text_2}") == ("a column", "über-text_2")


def test_values_stand_as_they_are() -> None:
    values = {"passage": "A {question} {{x}} {0} %s $x", "question": "is it"}
    made = composed(BOOLQ, values)
    assert made == "A {question} {{x}} {0} %s $x\nQuestion: is it?\nAnswer:"


def test_doubled_braces_are_braces() -> None:
    assert composed('{{"q": "{a}"}}', {"a": "1"}) == '{"q": "1"}'
    assert composed("{{{a}}}", {"a": "1"}) == "{1}"


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["{a}", "{b}"]),
            st.text(alphabet=string.printable).map(
                lambda text: text.replace("{", "{{").replace("}", "}}")
            ),
        )
    ),
    st.text(),
    st.text(),
)
def test_a_template_says_what_format_makes_of_it(parts: list[str], a: str, b: str) -> None:
    template = "".join(["{a}", *parts])
    assert composed(template, {"a": a, "b": b}) == template.format(a=a, b=b)


@pytest.mark.parametrize(
    ("template", "fault", "remedy"),
    [
        ("Say yes", "names no column", "write {column}"),
        ("{{passage}}", "names no column", "write {column}"),
        ("{}", "a field without a name", "write {column}"),
        ("{ }", "a field without a name", "write {column}"),
        ("{0}", "a number for a column", "write {column}"),
        ("{ a }", "white space around the name", "write {a}"),
        ("{a.b}", "an attribute", "such as {a}"),
        ("{a.__class__.__init__}", "an attribute", "such as {a}"),
        ("{a[0]}", "an index", "such as {a}"),
        ("{[0]}", "an index", "such as {column}"),
        ("{a!r}", "a conversion", "write {a}"),
        ("{a:>30}", "a format specification", "write {a}"),
        ("{a:}", "a format specification", "write {a}"),
        ("{a", "no other closes", "{{ and }} for braces"),
        ("a} {b}", "no other closes or opens", "{{ and }} for braces"),
        ("{a}}", "no other closes or opens", "{{ and }} for braces"),
        ("{a{b}}", "no other closes", "{{ and }} for braces"),
    ],
)
def test_what_is_no_column_is_refused_with_a_remedy(template: str, fault: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        columns(template)
    message = str(caught.value)
    assert message.startswith("task.template: ")
    assert fault in message
    assert remedy in message.split("; ", 1)[1]
    assert "\n" not in message
