"""What is odd about rows is said before a launch, and how long they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spaces.errors import DataError
from tests.trainables.tasks.kinds.examples import write_decoder
from tests.trainables.tasks.language.decoders import byte_tokenizer
from trainables.tasks.care import quantiles
from trainables.tasks.rows import load_rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import Task, build_task

Row = Mapping[str, Any]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def chat(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny decoder, whose tokenizer has no padding token."""
    return write_decoder("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., TaskSettings]:
    """A task whose train has these rows; dev is another row, or those that are given."""

    def made(train: Sequence[Row], dev: Sequence[Row] = (), **keys: Any) -> TaskSettings:
        files = {}
        for split, rows in (("train", train), ("dev", dev or [{**train[0], **OTHER}])):
            files[split] = str(tmp_path / f"{split}.jsonl")
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return TaskSettings.model_validate({"name": "t", "data": files, **keys})

    return made


OTHER = {"q": "unlike the others", "m": chat("unlike the others", "no")}
FORMS: dict[str, dict[str, Any]] = {
    "text": {"kind": "classification", "text": "q", "label": "a"},
    "number": {"kind": "regression", "text": "q", "label": "n", "metric": "mse"},
    "prompt": {"kind": "causal", "prompt": "q", "completion": "a"},
    "conversation": {"kind": "causal", "messages": "m", "chat_template": TEMPLATE},
    "written": {"kind": "generation", "template": "{q}:", "completion": "a"},
    "options": {
        "kind": "multiple_choice", "prompt": "q", "options": "o", "label": "a",
        "label_form": "text",
    },
}  # fmt: skip
WORDS = {
    "text": "text", "number": "text", "prompt": "prompt", "conversation": "conversation",
    "written": "prompt", "options": "prompt and options",
}  # fmt: skip


def row(asked: str, answer: str) -> dict[str, Any]:
    """A row of every form."""
    return {
        "q": asked, "a": answer, "n": {"yes": 1.5, "no": 2.0}[answer], "m": chat(asked, answer),
        "o": ["yes", "no"],
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_repeat_or_contradict_another_one_are_counted(
    settings: Callable[..., TaskSettings], form: str
) -> None:
    train = [row(f"is it {i}", ("yes", "no")[i % 2]) for i in range(8)]
    assert odd(settings(train, **FORMS[form])) == []
    twice = [*train, train[3], train[3], row("is it 2", "no")]
    repeated, contradicting = odd(settings(twice, **FORMS[form]))
    assert repeated.startswith("task.data: 2 of 11 rows of train (18.2%) repeat another one")
    what = WORDS[form]
    assert contradicting.startswith(
        f"task.data: 2 rows of train have the {what} of another one and another answer: "
    )
    assert "is it 2" in contradicting
    answers = ("1.5", "2.0") if form == "number" else ("yes", "no")
    assert all(repr(answer) in contradicting for answer in answers)
    assert "\n" not in repeated + contradicting


def odd(task: TaskSettings) -> list[str]:
    """Notes of rows, without those of the balance of answers."""
    return [note for note in load_rows(task).notes if note.startswith("task.data")]


def test_options_in_another_order_are_the_same_question(
    settings: Callable[..., TaskSettings],
) -> None:
    train = [row("is it", "yes"), {**row("is it", "yes"), "o": ["no", "yes"]}, row("is not", "no")]
    assert odd(settings(train, **FORMS["options"])) == []
    (note,) = odd(
        settings([*train, {**row("is it", "no"), "o": ["no", "yes"]}], **FORMS["options"])
    )
    assert "3 rows of train have the prompt and options of another one" in note


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_dev_shares_with_train_are_named_as_what_they_are(
    settings: Callable[..., TaskSettings], form: str
) -> None:
    train = [row(f"is it {i}", ("yes", "no")[i % 2]) for i in range(8)]
    (note,) = odd(settings(train, [train[2], train[5], row("another", "yes")], **FORMS[form]))
    assert note == (
        f"task.data.dev: 2 of 3 rows have the {WORDS[form]} of a training row; its measure is too "
        f"good for an unseen {WORDS[form]}"
    )


def test_lost_characters_are_said_of_the_key_that_names_the_column(
    settings: Callable[..., TaskSettings],
) -> None:
    keys = {"text": "text", "prompt": "prompt", "written": "template", "conversation": "messages"}
    for form, key in keys.items():
        train = [row("is it", "yes"), row("is it\ufffd", "no")]
        (note,) = [n for n in load_rows(settings(train, **FORMS[form])).notes if "U+FFFD" in n]
        assert note.startswith(f"task.{key}: 1 texts of train hold U+FFFD")


def test_rows_with_unlike_numbers_of_options_are_read(
    settings: Callable[..., TaskSettings],
) -> None:
    train = [row("is it", "yes"), {**row("is not", "no"), "o": ["yes", "no", "perhaps"]}]
    rows = load_rows(settings(train, **FORMS["options"]))
    assert sorted(map(len, rows["train"].inputs)) == [3, 4]


def test_the_balance_of_options_is_one_line(settings: Callable[..., TaskSettings]) -> None:
    train = [row(f"is it {i}", "yes" if i < 3 else "no") for i in range(12)]
    (note,) = load_rows(settings(train, **FORMS["options"])).notes
    assert note == "task.options: the right one is in turn 25%, 75% of train; 100%, 0% of dev"


# -- lengths ---------------------------------------------------------------------------------------


def test_half_and_95_percent_of_the_rows_are_no_longer() -> None:
    draw = np.random.default_rng(0)
    for n in (1, 2, 19, 20, 21, 200):
        lengths = draw.integers(1, 90, n)
        for share, found in zip((0.5, 0.95), quantiles(lengths), strict=True):
            assert found in lengths
            assert (lengths <= found).mean() >= share
            assert (lengths < found).mean() < share


def test_the_three_longest_rows_of_all_splits_are_named(
    settings: Callable[..., TaskSettings], base: str
) -> None:
    train = [row("x" * n, ("yes", "no")[n % 2]) for n in (3, 40, 5, 9, 30)]
    task = build_task(settings(train, [row("y" * 35, "no")], **FORMS["prompt"]), base)
    assert [(each.split, each.begins) for each in task.longest] == [
        ("train", "x" * 40), ("dev", "y" * 35), ("train", "x" * 30),
    ]  # fmt: skip
    most = sorted((int(n) for split in task.splits.values() for n in split.lengths), reverse=True)
    assert [each.tokens for each in task.longest] == most[:3]


@pytest.mark.parametrize("form", ["text", "prompt", "conversation", "options"])
def test_rows_that_are_cut_are_counted(
    settings: Callable[..., TaskSettings], base: str, form: str
) -> None:
    train = [row(f"{'x' * 10}{i}", ("yes", "no")[i % 2]) for i in range(7)]
    long = [row(f"{'x' * 200}{i}", "yes") for i in range(3)]
    keys = {**FORMS[form], "max_length": 120}
    if form == "conversation":  # what comes late in it is lost
        long = [{"m": [*chat("a", "b"), *chat("x" * 200, "yes")]} for _ in range(3)]
    assert cut(build_task(settings(train, **keys), base)) == []
    (note,) = cut(build_task(settings([*train, *long], **keys), base))
    assert note.startswith("task.max_length: 3 of 10 rows of train (30.0%) are cut at 120 tokens")
    assert ("3 answers lose their end" in note) == (form == "conversation")


def cut(task: Task) -> list[str]:
    return [note for note in task.notes if note.startswith("task.max_length")]


def test_an_answer_that_would_be_cut_away_whole_is_an_error(
    settings: Callable[..., TaskSettings], base: str
) -> None:
    train = [row("x" * 200, "yes"), row("a", "no")]
    with pytest.raises(DataError, match=r"^task.max_length: 1 of 2 rows .* nothing to learn"):
        build_task(settings(train, **FORMS["conversation"], max_length=60), base)
    byte_tokenizer().save_pretrained(base.removeprefix("path:"))  # puts no token before a text
    for form in ("prompt", "options", "written"):
        with pytest.raises(DataError, match=r"^task.max_length: 1 leaves no room for an answer"):
            build_task(settings(train, **FORMS[form], max_length=1), base)


def test_a_tokenizer_without_a_padding_token_is_said(
    settings: Callable[..., TaskSettings], base: str
) -> None:
    train = [row("is it", "yes"), row("is not", "no")]
    task = build_task(settings(train, **FORMS["prompt"]), base)
    assert any("has no padding token; its end token stands for it" in note for note in task.notes)
