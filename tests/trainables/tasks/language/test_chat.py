"""Of a conversation the assistant's turns alone bear loss, however a template says which."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from spaces.errors import ConfigError, DataError
from trainables.tasks.language.chat import Chat, Encoded, chat_of
from trainables.tasks.language.chat_template import read_chat_template
from trainables.tasks.language.messages import Conversation, Message

TRL = Path(trl.__file__).parent / "chat_templates"
SPECIAL = re.compile(r"<\|[a-z_]+\|>|<[a-z]+_of_turn>|<\|[A-Z_]+\|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}"
    "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(*contents: str, first: str = "user") -> Conversation:
    """Turns by turns of user and assistant."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return tuple(Message(roles[i % 2], content) for i, content in enumerate(contents))


QUESTION = chat("hi there", "hello you")
CONVERSATIONS = {
    "one": QUESTION,
    "three": chat("hi there", "hello you", "how are you", " fine \n", "the end?", "the end"),
    "alike": chat("a", "a", "a", "a"),
    "open": chat("hi there", "hello you", "how are you"),
    "characters": chat("ünïcode 😀", "😀 ja ß", "x", "日本"),
    "blank lines": chat("x", "\n\none\n\n", "y", "two\n"),
    "system": (Message("system", "be kind"), *chat("hi", "hello", "how", "fine")),
    "first": chat("welcome", "hi", "hello you", first="assistant"),
    "twice": (*chat("x", "one"), Message("assistant", "two")),
}
"""Gemma and Cohere refuse those that do not begin with the user and alternate."""
TALKED = ("one", "three", "alike", "open", "characters", "blank lines")
PAIRS = {
    "llama3": tuple(CONVERSATIONS),
    "phi3": tuple(CONVERSATIONS),
    "phi3_5": tuple(CONVERSATIONS),
    "lfm2": tuple(CONVERSATIONS),
    "lfm2_v2": tuple(CONVERSATIONS),
    "qwen2_5_vl": tuple(CONVERSATIONS),
    "qwen3_instruct_2507": tuple(CONVERSATIONS),
    "qwen3_vl": tuple(CONVERSATIONS),
    "gemma": TALKED,
    "gemma3": (*TALKED, "system"),
    "cohere": (*TALKED, "system"),
    "cohere2": (*TALKED, "system"),
    "qwen3": ("one",),  # the marked one keeps the thoughts of earlier turns
}
"""Templates of which trl has one with marks -> the conversations that both render alike."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes, some merged, and the special tokens of all the templates."""
    names = sorted(
        {each for path in TRL.glob("*.jinja") for each in SPECIAL.findall(path.read_text())}
    )
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<bos>", "<eos>", *names],
        show_progress=False,
    )
    made.train_from_iterator(["hello there, how are you: fine\n\n the end"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", eos_token="<eos>")


def encoded(tokenizer: Any, template: str, conversation: Conversation) -> Encoded:
    return next(Chat(tokenizer, template).encoded([conversation]))


def trained(tokenizer: Any, template: str, conversation: Conversation) -> list[str]:
    """The stretches of tokens that bear loss, as text."""
    ids, targets = encoded(tokenizer, template, conversation)
    stretches: list[list[int]] = []
    before = False
    for token, target in zip(ids, targets, strict=True):
        if target and not before:
            stretches.append([])
        if target:
            stretches[-1].append(token)
        before = target
    return [tokenizer.decode(each) for each in stretches]


@pytest.mark.parametrize(
    ("name", "conversation"), [(name, each) for name, known in PAIRS.items() for each in known]
)
def test_turn_by_turn_and_by_marks_the_same_tokens_bear_loss(
    tokenizer: Any, name: str, conversation: str
) -> None:
    plain, marked = [
        Chat(tokenizer, (TRL / f"{name}{kind}.jinja").read_text()) for kind in ("", "_training")
    ]
    assert marked.marked
    assert not plain.marked
    messages = CONVERSATIONS[conversation]
    ids, targets = next(plain.encoded([messages]))
    assert (ids, targets) == next(marked.encoded([messages]))
    assert 0 < sum(targets) < len(targets)


def test_the_marks_are_read_as_transformers_reads_them(tokenizer: Any) -> None:
    ids, targets = encoded(tokenizer, MARKED, CONVERSATIONS["three"])
    out = tokenizer.apply_chat_template(
        [each.as_dict() for each in CONVERSATIONS["three"]],
        chat_template=MARKED,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert (ids, targets) == (out["input_ids"], [each == 1 for each in out["assistant_masks"]])


def test_a_turn_is_its_content_and_what_closes_it(tokenizer: Any) -> None:
    three = CONVERSATIONS["three"]
    assert trained(tokenizer, CHATML, three) == [
        "hello you<|im_end|>\n",
        " fine \n<|im_end|>\n",
        "the end<|im_end|>\n",
    ]
    # The marks are the template's own word: this one leaves the line's end out.
    assert trained(tokenizer, MARKED, three) == [
        "hello you<|im_end|>",
        " fine \n<|im_end|>",
        "the end<|im_end|>",
    ]


def test_a_token_that_ends_a_whole_conversation_closes_its_last_turn_alone(tokenizer: Any) -> None:
    template = (TRL / "phi3.jinja").read_text()
    assert trained(tokenizer, template, chat("a", "b", "c", "d")) == [
        "b<|end|>\n",
        "d<|end|>\n<eos>",
    ]


def test_many_conversations_are_as_each_by_itself(tokenizer: Any) -> None:
    for template in (CHATML, MARKED):
        together = list(Chat(tokenizer, template).encoded(CONVERSATIONS.values()))
        assert together == [encoded(tokenizer, template, each) for each in CONVERSATIONS.values()]


def test_earlier_thoughts_may_be_left_out_by_the_template(tokenizer: Any) -> None:
    template = (TRL / "qwen3.jinja").read_text()
    thought = "<think>\nhm\n</think>\n\n"
    turns = trained(tokenizer, template, chat("x", f"{thought}one", "y", f"{thought}two"))
    assert turns == ["one<|im_end|>\n", f"{thought}two<|im_end|>\n"]


@pytest.mark.parametrize("name", ["llama3", "phi3", "qwen2_5", "gemma"])
def test_the_prompt_of_the_last_turn_is_what_trl_makes_of_it(tokenizer: Any, name: str) -> None:
    from trl.data_utils import apply_chat_template

    template = (TRL / f"{name}.jinja").read_text()
    messages = CONVERSATIONS["alike"]
    prompt, answer = Chat(tokenizer, template).prompt_of(messages)
    rows = [message.as_dict() for message in messages]
    made = apply_chat_template(
        {"prompt": rows[:-1], "completion": rows[-1:]}, tokenizer, chat_template=template
    )
    assert (prompt, answer) == (made["prompt"], messages[-1].content)
    assert Chat(tokenizer, template).prompt_of(messages[:3]) == (
        Chat(tokenizer, template).prompt_of(messages[:2])
    )


def test_the_tokens_of_a_row_are_the_same_on_any_day(tokenizer: Any) -> None:
    template = (TRL / "llama3_2.jinja").read_text()
    prompt, _ = Chat(tokenizer, template).prompt_of(QUESTION)
    assert "Today Date: 26 Jul 2024" in prompt


def test_a_template_that_asks_the_clock_is_told_the_same_day(tokenizer: Any) -> None:
    for marks in ("", "{% generation %}a{% endgeneration %}"):
        template = "\n{{ strftime_now('%Y-%m-%d, %B') }}" + CHATML + marks
        ids, _ = encoded(tokenizer, template, QUESTION)
        assert tokenizer.decode(ids).startswith("\n2024-07-26, July<|im_start|>user\nhi there")


# -- whose template --------------------------------------------------------------------------------


def test_a_given_template_wins_over_the_tokenizers_own(tokenizer: Any) -> None:
    tokenizer.chat_template = MARKED
    try:
        assert chat_of(tokenizer, None, "base").template == MARKED
        assert chat_of(tokenizer, CHATML, "base").template == CHATML
        tokenizer.chat_template = {"default": CHATML, "rag": MARKED}
        assert chat_of(tokenizer, None, "base").template == CHATML
        tokenizer.chat_template = {"rag": MARKED}
        with pytest.raises(DataError, match="chat templates rag and none is its default"):
            chat_of(tokenizer, None, "base")
    finally:
        tokenizer.chat_template = None


def test_a_base_without_a_chat_template_needs_one(tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        chat_of(tokenizer, None, "file://base")
    assert str(caught.value) == (
        "task.messages: file://base has no chat template; give task.chat_template"
    )


@pytest.mark.parametrize("suffix", [".jinja", ".j2", ".jinja2"])
def test_a_template_is_text_or_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"chat{suffix}"
    path.write_text(CHATML)
    assert read_chat_template(str(path)) == read_chat_template(CHATML) == CHATML
    assert read_chat_template(None) is None


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("absent.jinja", r"absent\.jinja cannot be read \(No such file or directory\)"),
        ("chatml", r"'chatml' is no template; give Jinja text, or a path that ends in \.jinja"),
        ("", "'' is no template"),
    ],
)
def test_what_is_no_template_is_refused(value: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=rf"^task\.chat_template: {fault}"):
        read_chat_template(value)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append({}) }}", "unsafe|not safely callable"),
        ("{{ namespace.__init__.__globals__ }}", "unsafe"),
        ("{% include '/etc/hostname' %}", "no loader"),
        ("{{ messages[0].text + 'x' }}", "has no attribute 'text'"),
        ("{{ raise_exception('only once') }}", "only once"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
    ],
)
def test_a_template_runs_in_the_sandbox_and_what_it_may_not_is_said(
    tokenizer: Any, template: str, fault: str
) -> None:
    for marks in ("", "{% generation %}a{% endgeneration %}"):
        with pytest.raises(DataError) as caught:
            encoded(tokenizer, template + marks, QUESTION)
        message = str(caught.value)
        assert message.startswith(
            "task.chat_template: refuses the conversation (user, assistant) 'hi there' ("
        )
        assert re.search(fault, message)
        assert "\n" not in message


def test_marks_that_cannot_be_read_are_refused_though_the_text_can(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenizer.apply_chat_template

    def failing(*args: Any, return_assistant_tokens_mask: bool = False, **kwargs: Any) -> Any:
        if return_assistant_tokens_mask:
            raise ValueError("no\nmarks")
        return whole(*args, **kwargs)

    monkeypatch.setattr(tokenizer, "apply_chat_template", failing)
    with pytest.raises(DataError) as caught:
        encoded(tokenizer, MARKED, QUESTION)
    message = str(caught.value)
    assert message.startswith("task.chat_template: its {% generation %} marks cannot be read (no")
    assert "\n" not in message


def test_a_template_that_is_no_jinja_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"task\.chat_template: is no Jinja template \(line 2: "):
        encoded(tokenizer, "{% if true %}\n{% fi %}", QUESTION)


ASKED_OTHERWISE = CHATML.replace("<|im_start|>assistant\n{% endif", "<think>{% endif")
NO_PROMPT = CHATML.partition("{% if add")[0]
LAST_ALONE = "{{ messages[-1].content }}"
TWICE = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}")


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (ASKED_OTHERWISE, "one"),
        (LAST_ALONE, "three"),
        (TWICE, "three"),
        (ASKED_OTHERWISE, "first"),
        (NO_PROMPT, "first"),
        ((TRL / "deepseekv3.jinja").read_text(), "three"),
    ],
)
def test_a_template_that_cannot_be_aligned_needs_marks(
    tokenizer: Any, template: str, messages: str
) -> None:
    with pytest.raises(DataError) as caught:
        encoded(tokenizer, template, CONVERSATIONS[messages])
    what, remedy = str(caught.value).split("; ")
    assert what.startswith("task.chat_template: cannot be aligned with the conversation (")
    assert remedy.startswith("give a template with {% generation %} marks")


def test_marks_around_nothing_are_refused(tokenizer: Any) -> None:
    template = CHATML + "{% generation %}{% endgeneration %}"
    with pytest.raises(DataError, match=r"has no token of the assistant that bears loss"):
        encoded(tokenizer, template, QUESTION)


def test_a_conversation_that_asks_nothing_has_no_prompt(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="begins with its only turn of the assistant"):
        Chat(tokenizer, CHATML).prompt_of(chat("welcome", "hi", first="assistant"))
