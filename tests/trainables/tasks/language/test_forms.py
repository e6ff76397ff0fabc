"""The forms in which people have their data become the same examples, whatever file they are in."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spaces.errors import ConfigError
from trainables.tasks.files import file_records
from trainables.tasks.language.forms import Example, Form, examples, form_of
from trainables.tasks.language.messages import Message, from_json, to_json
from trainables.tasks.records import Records

USER, ANSWER = Message("user", "how are you"), Message("assistant", "fine")
CHAT = [[USER, ANSWER], [Message("system", "be ünkind"), USER, ANSWER, USER, ANSWER]]
SHAREGPT = [
    [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],
    [{"from": "system", "value": "s"}, {"from": "user", "value": "q"}]
    + [{"from": name, "value": name} for name in ("assistant", "chatgpt", "bard")],
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file, or a folder, of these rows, of the kind that its suffix says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(
                {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
                for row in rows
            )
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


KINDS = [".parquet", ".jsonl", ".json", ".csv", ""]


@pytest.fixture(params=KINDS, ids=[kind or "saved" for kind in KINDS])
def read(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., list[Example]]:
    """The examples of rows that went through a file."""

    def read(rows: list[dict[str, Any]], form: Form, **kwargs: Any) -> list[Example]:
        path = written(tmp_path / f"train{request.param}", rows)
        made, faults = examples(
            form, file_records(str(path), "train", form.asked()), "train", **kwargs
        )
        assert not faults
        return made

    return read


def faults_of(form: Form, **columns: list[Any]) -> list[str]:
    """What is wrong with the columns of a file whose rows begin in lines 2, 3, and so on."""
    count = len(next(iter(columns.values())))
    records = Records(columns, range(2, count + 2), "line")
    return examples(form, records, "train")[1]


def test_running_text_is_a_completion_without_a_prompt(read: Callable[..., list[Example]]) -> None:
    rows = [{"body": "a text,\nof two lines"}, {"body": "another"}]
    made = read(rows, form_of(text="body"))
    assert made == [Example(completion=row["body"]) for row in rows]


def test_prompt_and_completion_are_columns(read: Callable[..., list[Example]]) -> None:
    rows = [{"q": "2 + 2 = ", "a": "4"}, {"q": "3 + 3 = ", "a": "6\n"}]
    made = read(rows, form_of(prompt="q", completion="a"))
    assert made == [Example(r["q"], r["a"], accepted=(r["a"],)) for r in rows]


def test_a_template_composes_the_prompt_or_the_whole_text(
    read: Callable[..., list[Example]],
) -> None:
    rows = [{"p": "It rains.", "q": "is it wet", "a": "yes"}] * 2
    template = "{p}\nQuestion: {q}?\nAnswer:"
    prompt = "It rains.\nQuestion: is it wet?\nAnswer:"
    made = read(rows, form_of(template=template, completion="a"))
    assert made == [Example(prompt, "yes", accepted=("yes",))] * 2
    whole = read(rows, form_of(template=template + " {a}"))
    assert whole == [Example(completion=prompt + " yes")] * 2


def test_messages_are_lists_of_role_and_content(read: Callable[..., list[Example]]) -> None:
    rows = [{"messages": [each.as_dict() for each in chat]} for chat in CHAT]
    made = read(rows, form_of(messages="messages"))
    assert made == [Example(messages=tuple(chat)) for chat in CHAT]


def test_a_sequence_of_datasets_is_a_list_of_messages() -> None:
    by_key = [
        {key: [m.as_dict()[key] for m in chat] for key in ("role", "content")} for chat in CHAT
    ]
    records = Records({"messages": by_key}, range(1, 3))
    made, faults = examples(form_of(messages="messages"), records, "train")
    assert made == [Example(messages=tuple(chat)) for chat in CHAT]
    assert not faults


def test_sharegpt_becomes_messages_as_trl_names_them_with_the_roles_made_known(
    read: Callable[..., list[Example]],
) -> None:
    from trl.data_utils import maybe_convert_to_chatml

    made = read([{"conversations": each} for each in SHAREGPT], form_of(map="sharegpt"))
    roles = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant"}
    for example, conversation in zip(made, SHAREGPT, strict=True):
        converted = maybe_convert_to_chatml({"conversations": copy.deepcopy(conversation)})
        expected = [
            Message(roles.get(each["role"], each["role"]), each["content"])
            for each in converted["messages"]
        ]
        assert example == Example(messages=tuple(expected))


def test_alpaca_is_worded_by_whether_there_is_an_input(read: Callable[..., list[Example]]) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 {x} 2", "output": "3"},
        {"instruction": "Sing {well}.", "input": "", "output": "la"},
    ]
    made = read(rows, form_of(map="alpaca"))
    with_input, without = made[0].prompt, made[1].prompt
    assert with_input is not None
    assert without is not None
    assert "paired with an input" in with_input
    assert with_input.endswith("\n\n### Instruction:\nAdd.\n\n### Input:\n1 {x} 2\n\n### Response:")
    assert "input" not in without.lower()
    assert without.endswith("\n\n### Instruction:\nSing {well}.\n\n### Response:")
    assert [each.completion for each in made] == ["3", "la"]


def test_alpaca_may_have_other_columns_no_input_and_a_template_of_its_own(
    read: Callable[..., list[Example]],
) -> None:
    rows = [{"task": "Sing.", "more": "", "answer": "la", "output": "x"}] * 2
    named = {"format": "alpaca", "instruction": "task", "output": "answer"}
    without = read(rows, form_of(map={**named, "input": None}))
    assert without == read(rows, form_of(map={**named, "input": "more"}))
    assert without[0].completion == "la"
    own = read(rows, form_of(map={**named, "input": "more"}, template="{task}|{more}|"))
    assert own[0].prompt == "Sing.||"


def test_many_answers_are_accepted_and_the_first_is_trained() -> None:
    records = Records({"q": ["a", "b"], "a": [["1", "one"], ["2"]]}, range(1, 3))
    made, faults = examples(
        form_of(prompt="q", completion="a"), records, "train", many_answers=True
    )
    assert not faults
    assert [each.completion for each in made] == ["1", "2"]
    assert [each.accepted for each in made] == [("1", "one"), ("2",)]


def test_the_json_of_a_conversation_gives_it_back_and_is_one_whatever_made_it() -> None:
    for chat in CHAT:
        assert from_json(to_json(chat)) == tuple(chat)
    assert to_json([USER]) == '[{"content":"how are you","role":"user"}]'


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "task.text: names no column; "),
        ({"prompt": "p"}, "task.completion: is required with prompt; "),
        ({"completion": "c"}, "task.prompt: is required with completion; "),
        ({"text": "t", "messages": "m"}, "task.text: does not go with messages; "),
        ({"text": "t", "completion": "c"}, "task.completion: does not go with text; "),
        ({"text": "t", "template": "{a}"}, "task.template: does not go with text; "),
        ({"messages": "m", "template": "{a}"}, "task.template: does not go with messages; "),
        (
            {"prompt": "p", "completion": "c", "template": "{a}"},
            "task.prompt: does not go with template; ",
        ),
        ({"template": "{a}{c}", "completion": "c"}, "task.template: holds the answer, {c}; "),
        ({"prompt": "c", "completion": "c"}, "task.completion: 'c' is the prompt too; "),
        ({"template": "{a!r}", "completion": "c"}, "task.template: has a conversion in {a!r}; "),
        ({"map": "alpacca"}, "task.map: 'alpacca' is not a format; did you mean 'alpaca'?"),
        ({"map": {}}, "task.map: names no format; "),
        ({"map": {"format": ["alpaca"]}}, "task.map: ['alpaca'] is not a format; "),
        ({"map": "alpaca", "prompt": "p"}, "task.prompt: does not go with map; "),
        ({"map": "sharegpt", "messages": "m"}, "task.messages: does not go with map; "),
        ({"map": "sharegpt", "template": "{a}"}, "task.template: does not go with map: sharegpt; "),
        ({"map": {"format": "alpaca", "inputs": "i"}}, "task.map: alpaca has no part 'inputs'; "),
        ({"map": {"format": "alpaca", "output": None}}, "task.map: output of alpaca is required; "),
        ({"map": {"format": "alpaca", "output": 3}}, "task.map: output is 3; "),
        ({"map": {"format": "alpaca", "output": "input"}}, "task.map: names 'input' twice; "),
        ({"map": "alpaca", "template": "{output}"}, "task.template: holds the answer, {output}; "),
    ],
)
def test_keys_that_clash_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        form_of(**keys)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def said(*turns: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


GOOD = said(("user", "q"), ("assistant", "a"))


@pytest.mark.parametrize(
    ("bad", "fault", "remedy"),
    [
        (None, "no conversation in 'm'", "fill it in"),
        ("", "no conversation in 'm'", "fill it in"),
        ("hello", "str 'hello' in 'm'", "give a list of {role, content}"),
        (3.5, "float 3.5 in 'm'", "give a list of {role, content}"),
        ([], "an empty conversation in 'm'", "drop these rows"),
        (["hi"], "a message that is not {role, content} in 'm'", "map: sharegpt"),
        (SHAREGPT[0], "a message that is not {role, content} in 'm'", "map: sharegpt"),
        (
            said(("human", "q"), ("assistant", "a")),
            "a role that is not known, 'human', in 'm'",
            "name one of system, user, assistant, tool, or drop these rows",
        ),
        (said((None, "q")), "a role that is not known, 'None', in 'm'", "name one of"),
        (said(("user", "q")), "no turn of the assistant", "add the answer"),
        (said(("user", "q"), ("assistant", " \n")), "a message that says nothing", "fill it in"),
        (said(("user", "q"), ("assistant", None)), "a message that says nothing", "fill it in"),
        (said(("user", ["q"]), ("assistant", "a")), "whose content is no string", "give a string"),
        (said(("user", "\0q"), ("assistant", "a")), "what is no character", "correct or drop"),
        (said(("user", "\ud800"), ("assistant", "a")), "what is no character", "correct or drop"),
        (
            [GOOD[0], {**GOOD[1], "tool_calls": [{"name": "f"}]}],
            "with tool_calls, function_call, reasoning_content, reasoning or thinking",
            "write it into its content",
        ),
    ],
)
def test_a_conversation_that_is_wrong_is_placed(bad: Any, fault: str, remedy: str) -> None:
    faults = faults_of(form_of(messages="m"), m=[GOOD, bad, GOOD, bad])
    assert len(faults) == 1
    what, to_do = faults[0].split("; ", 1)
    assert what.startswith("task.messages: train has ")
    assert fault in what
    assert "in 2 of 4 rows (lines 3 and 5)" in what
    assert remedy in to_do
    assert "\n" not in faults[0]


def test_every_fault_of_a_file_is_said_at_once() -> None:
    chats = [[], said(("bot", "x"), ("User", "y")), None, said(("user", "q")), GOOD]
    faults = faults_of(form_of(messages="m"), m=chats)
    assert [
        fault.split(" in 'm'")[0].removeprefix("task.messages: train has ") for fault in faults
    ] == [
        "an empty conversation",
        "roles that are not known, 'bot', 'User',",
        "no conversation",
        "no turn of the assistant, which alone is trained,",
    ]


def test_what_a_tool_says_may_be_nothing_and_keys_that_say_nothing_are_ignored() -> None:
    chat = [*said(("user", "q"), ("tool", "")), {**GOOD[1], "tool_calls": None, "weight": 1}]
    assert not faults_of(form_of(messages="m"), m=[chat])


def test_a_speaker_whom_sharegpt_does_not_know_is_named() -> None:
    chat = [{"from": "human", "value": "q"}, {"from": "claude-7", "value": "a"}]
    (fault,) = faults_of(form_of(map="sharegpt"), conversations=[chat, SHAREGPT[0]])
    assert fault == (
        "task.map: train has a role that is not known, 'claude-7', in 'conversations' in 1 of 2 "
        "rows (line 2); name one of human, user, gpt, assistant, "
        "chatgpt, bard, system, tool, or drop these rows"
    )


def test_faults_of_texts_name_the_key_that_names_the_column() -> None:
    form = form_of(template="{p} {q}", completion="a")
    faults = faults_of(form, p=["x", None], q=["x", ["y"]], a=["", "1"])
    assert [fault.split(" in ")[0] for fault in faults] == [
        "task.template: train has no text",
        "task.template: train has list ['y']",
        "task.completion: train has no completion",
    ]
    faults = faults_of(form_of(map="alpaca"), instruction=[""], input=[[1]], output=[None])
    assert [fault.split(" in ")[0] for fault in faults] == [
        "task.map: train has no text",
        "task.map: train has list [1]",
        "task.map: train has no completion",
    ]


def test_an_accepted_answer_that_is_nothing_is_placed() -> None:
    records = Records({"q": ["a"] * 3, "a": [["1"], [], ["1", None]]}, range(2, 5), "line")
    _, faults = examples(form_of(prompt="q", completion="a"), records, "train", many_answers=True)
    assert "no completion in 'a' in 1 of 3 rows (line 3)" in faults[0]
    assert (
        "an accepted answer that is nothing, or no text, in 'a' in 1 of 3 rows (line 4)"
        in faults[1]
    )
