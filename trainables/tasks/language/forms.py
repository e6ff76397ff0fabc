"""The forms in which people have data for a language model, and the examples that they become.

Three are TRL's and named as TRL names them: `text`; `prompt` and `completion`; `messages`. Two are
read as one of those: Alpaca's (instruction, input, output) is prompt and completion, and ShareGPT's
conversations are messages. A `template` composes the text or the prompt from columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from spaces.errors import ConfigError, nearest
from trainables.tasks.language.messages import (
    MESSAGES,
    SHAREGPT,
    Conversation,
    Shape,
    conversations,
    with_turn,
)
from trainables.tasks.language.templates import columns, composed
from trainables.tasks.records import Records
from trainables.tasks.values import is_missing, strings_of

_COLUMNS = ("text", "prompt", "completion", "messages")
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
"""The prompts that Stanford Alpaca is trained with; its answer follows without a sign between."""
MAPS: Mapping[str, Mapping[str, str]] = {
    "alpaca": {"instruction": "instruction", "input": "input", "output": "output"},
    "sharegpt": {"conversations": "conversations"},
}
"""Format -> its parts, and the column that each is in where nothing else is said."""


_RENDERED = "set task.chat_template for how messages are rendered"
_CLASHES = (
    *((key, "map", "it names the columns itself: drop one") for key in _COLUMNS),
    *((key, "messages", "name one of the two") for key in _COLUMNS if key != "messages"),
    ("template", "messages", _RENDERED),
    *((key, "text", "name one of the two") for key in ("prompt", "completion")),
    ("template", "text", "it composes the text: drop one"),
    ("prompt", "template", "it composes the prompt: drop one"),
)
"""Keys of a task that do not go together, and what to do about it."""


@dataclass(frozen=True)
class Example:
    """A row to be learned.

    Running text has a completion and no prompt. A conversation has `messages` alone: what it
    becomes is its chat template's to say. `accepted` are all the answers that count as right, the
    one that is trained first; empty where the row is a conversation or running text.
    """

    prompt: str | None = None
    completion: str = ""
    messages: Conversation | None = None
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """Which columns make a row's example; as the keys of a task name them."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    template: str | None = None
    format: str | None = None
    parts: Mapping[str, str | None] | None = None
    """Of the format: each of its parts -> the column that it is in."""

    @property
    def is_conversation(self) -> bool:
        """Whether a row is a list of messages."""
        return self.messages is not None or self.format == "sharegpt"

    @property
    def has_prompt(self) -> bool:
        """Whether a row is a prompt and its completion."""
        return self.completion is not None or self.format == "alpaca"

    @property
    def answer(self) -> str | None:
        """The column of what follows a prompt; None where nothing does."""
        return self.completion if self.parts is None else self.parts.get("output")

    def asked(self) -> dict[str, str]:
        """Column -> the key of the section `task` that names it."""
        named: dict[str, str] = {}
        if self.parts is not None:
            keys = [
                part
                for part in self.parts
                if self.template is None or part not in ("instruction", "input")
            ]
            named |= {column: "map" for key in keys if (column := self.parts[key]) is not None}
        if self.template is not None:
            named |= dict.fromkeys(columns(self.template), "template")
        for key in _COLUMNS:
            if (column := getattr(self, key)) is not None:
                named[column] = key
        return named


def form_of(
    *,
    text: str | None = None,
    prompt: str | None = None,
    completion: str | None = None,
    messages: str | None = None,
    template: str | None = None,
    map: str | Mapping[str, Any] | None = None,
) -> Form:
    """The form that the keys of a task name.

    Raises ConfigError where they name none, or two, or a template or a map is wrong.
    """
    composes = () if template is None else columns(template)
    named = {
        "text": text,
        "prompt": prompt,
        "completion": completion,
        "messages": messages,
        "template": template,
        "map": map,
    }
    for key, other, remedy in _CLASHES:
        if named[key] is not None and named[other] is not None:
            raise ConfigError(f"task.{key}: does not go with {other}; {remedy}")
    if map is not None:
        return _mapped(map, template)
    if prompt is not None and completion is None:
        raise ConfigError("task.completion: is required with prompt; name the column of answers")
    if completion is not None and prompt is None and template is None:
        raise ConfigError(
            "task.prompt: is required with completion; name a column, compose it with template, or "
            "name running text in task.text"
        )
    if all(value is None for value in named.values()):
        raise ConfigError(
            "task.text: names no column; name one of running text, or prompt and completion, or "
            "messages, or set map: alpaca or sharegpt"
        )
    if completion in composes:
        raise ConfigError(
            f"task.template: holds the answer, {{{completion}}}; take it out, or drop completion "
            "to train on the whole text"
        )
    if completion is not None and completion == prompt:
        raise ConfigError(f"task.completion: {completion!r} is the prompt too; name two columns")
    return Form(text, prompt, completion, messages, template)


def _mapped(map_: str | Mapping[str, Any], template: str | None) -> Form:
    """The form of a known format. Raises ConfigError where it is none, or its columns are wrong."""
    given = {"format": map_} if isinstance(map_, str) else dict(map_)
    name = given.pop("format", None)
    if name is None:
        raise ConfigError(f"task.map: names no format; give one of {', '.join(MAPS)}")
    if not isinstance(name, str) or name not in MAPS:
        raise ConfigError(f"task.map: {name!r} is not a format; {nearest(str(name), MAPS)}")
    if name == "sharegpt" and template is not None:
        raise ConfigError(f"task.template: does not go with map: sharegpt; {_RENDERED}")
    parts: dict[str, str | None] = dict(MAPS[name])
    for part, column in given.items():
        if part not in parts:
            raise ConfigError(f"task.map: {name} has no part {part!r}; {nearest(part, parts)}")
        if column is None and part != "input":
            raise ConfigError(f"task.map: {part} of {name} is required; name its column")
        if column is not None and (not isinstance(column, str) or not column):
            raise ConfigError(f"task.map: {part} is {column!r}; name a column")
        parts[part] = column
    named = [column for column in parts.values() if column is not None]
    twice = next((column for column in named if named.count(column) > 1), None)
    if twice is not None:
        raise ConfigError(f"task.map: names {twice!r} twice; name a column for each part")
    if template is not None and parts["output"] in columns(template):
        raise ConfigError(
            f"task.template: holds the answer, {{{parts['output']}}}; take it out, for it follows "
            "the prompt"
        )
    return Form(template=template, format=name, parts=parts)


def examples(
    form: Form, records: Records, place: str, *, many_answers: bool = False
) -> tuple[list[Example], list[str]]:
    """The examples of the records, in their order, and what is wrong with them, a fault in a line.

    `many_answers` lets the completion be a list of accepted answers, of which the first is trained.
    A fault begins with the key of the section `task` that is to blame, and `place` names the file.
    The examples are of use where no fault is.
    """
    if form.messages is not None or form.format == "sharegpt":
        return _of_messages(form, records, place)
    if form.text is not None:
        texts, faults = _strings(records, form.text, "text", "text", place)
        return [Example(completion=text) for text in texts], faults
    if form.template is not None:
        prompts, faults = template_texts(form.template, records, place, may_lack=_input_of(form))
    elif form.format == "alpaca":
        prompts, faults = _alpaca_prompts(form, records, place)
    else:
        assert form.prompt is not None
        prompts, faults = _strings(records, form.prompt, "text", "prompt", place)
    key = "map" if form.parts is not None else "completion"
    if form.answer is None:
        return [Example(completion=text) for text in prompts], faults
    answers, wrong = _answers(records, form.answer, key, place, many_answers)
    faults += wrong
    if faults:
        return [], faults
    return [
        Example(prompt, accepted[0], accepted=accepted)
        for prompt, accepted in zip(prompts, answers, strict=True)
    ], []


def with_answers(records: Records, form: Form, answer: str) -> Records:
    """The records with one answer for all rows, of a form that has answers: after each prompt, or
    as the last turn of each conversation that lacks one."""
    if form.is_conversation:
        column, shape = _conversations_of(form)
        return with_turn(records, column, shape, answer)
    assert form.answer is not None, "a form of prompts has answers"
    return replace(records, columns={**records.columns, form.answer: [answer] * len(records)})


def _conversations_of(form: Form) -> tuple[str, Shape]:
    """The column of conversations, and how they are written."""
    shape = MESSAGES if form.messages is not None else SHAREGPT
    column = form.messages if form.parts is None else form.parts["conversations"]
    assert column is not None
    return column, shape


def template_texts(
    template: str, records: Records, place: str, *, may_lack: str | None = None
) -> tuple[list[str], list[str]]:
    """The text that a template composes of each record, and what is wrong with its columns.

    Where nothing is in the column `may_lack`, nothing stands in its place.
    """
    values: dict[str, list[str]] = {}
    faults: list[str] = []
    for column in columns(template):
        read = _or_nothing if column == may_lack else strings_of
        values[column], wrong = read(records, column, "text")
        faults += [f"task.template: {place} has {fault}" for fault in wrong]
    if faults:
        return [], faults
    rows = zip(*values.values(), strict=True)
    return [composed(template, dict(zip(values, row, strict=True))) for row in rows], []


def _input_of(form: Form) -> str | None:
    return None if form.parts is None else form.parts["input"]


def _strings(
    records: Records, column: str, what: str, key: str, place: str
) -> tuple[list[str], list[str]]:
    strings, faults = strings_of(records, column, what)
    return strings, [f"task.{key}: {place} has {fault}" for fault in faults]


def _or_nothing(records: Records, column: str, what: str) -> tuple[list[str], list[str]]:
    """As `strings_of`, but a value may be missing: "" stands there."""
    missing = [is_missing(value) for value in records.columns[column]]
    filled = [
        "-" if lacks else value
        for lacks, value in zip(missing, records.columns[column], strict=True)
    ]
    strings, faults = strings_of(replace(records, columns={column: filled}), column, what)
    if faults:
        return [], faults
    return ["" if lacks else each for lacks, each in zip(missing, strings, strict=True)], []


def _alpaca_prompts(form: Form, records: Records, place: str) -> tuple[list[str], list[str]]:
    """Stanford's prompts: of two wordings, that with an input where the row has one."""
    assert form.parts is not None
    instruction, given = form.parts["instruction"], form.parts["input"]
    assert instruction is not None
    instructions, faults = _strings(records, instruction, "text", "map", place)
    inputs = [""] * len(records)
    if given is not None:
        inputs, wrong = _or_nothing(records, given, "text")
        faults += [f"task.map: {place} has {fault}" for fault in wrong]
    if faults:
        return [], faults
    return [
        composed(
            ALPACA_WITH_INPUT if each else ALPACA_WITHOUT_INPUT,
            {"instruction": told, "input": each},
        )
        for told, each in zip(instructions, inputs, strict=True)
    ], []


def _answers(
    records: Records, column: str, key: str, place: str, many: bool
) -> tuple[list[tuple[str, ...]], list[str]]:
    """The accepted answers of each record, one of each where not `many`."""
    values = records.columns[column]
    if not many or all(isinstance(value, str) or is_missing(value) for value in values):
        strings, faults = _strings(records, column, "completion", key, place)
        return [(string,) for string in strings], faults
    made: list[tuple[str, ...]] = []
    empty: list[int] = []
    wrong: list[int] = []
    for index, value in enumerate(values):
        accepted = value if isinstance(value, list | tuple) else [value]
        if not accepted or all(is_missing(each) for each in accepted):
            empty.append(index)
            continue
        row = Records({column: accepted}, [records.numbers[index]] * len(accepted))
        strings, faults = strings_of(row, column, "completion")
        made.append(tuple(strings))
        if faults:
            wrong.append(index)
    said = []
    if empty:
        said.append(
            f"no completion in {column!r} in {records.where(empty)}; fill it in, or drop these rows"
        )
    if wrong:
        said.append(
            f"an accepted answer that is nothing, or no text, in {column!r} in "
            f"{records.where(wrong)}; give a list of strings"
        )
    return made, [f"task.{key}: {place} has {fault}" for fault in said]


def _of_messages(form: Form, records: Records, place: str) -> tuple[list[Example], list[str]]:
    column, shape = _conversations_of(form)
    made, faults = conversations(records, column, shape)
    return (
        [Example(messages=each) for each in made],
        [f"task.{shape.key}: {place} has {fault}" for fault in faults],
    )
