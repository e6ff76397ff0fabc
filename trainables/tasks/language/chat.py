"""Conversations as tokens, by a chat template, and which of these bear loss: the assistant's turns.

A template marks them itself where it has `{% generation %}`, as transformers reads it. Where it has
none, an assistant's turn is what the template adds to the prompt that it makes of the turns before:
the content and whatever closes it, so that the end of a turn is learned too. That prompt must then
begin the whole conversation, character by character. Both say which characters bear loss; a token
does where any of its characters does.

Templates run where transformers runs every template: in Jinja's immutable sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import jinja2

from spaces.errors import DataError, reason_of, shown
from trainables.tasks.language.messages import Conversation, Message, asked_and_answer

AT_ONCE = 200
"""Conversations that are tokenised together: enough for the tokenizer's threads, and few MB."""
_AHEAD = 256
"""Characters behind what may be shared, so that a cut changes no token that is compared."""
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
_STAND_IN = "\ue000ranksweep\ue001"  # private characters, so that no text has it
TODAY = datetime(2024, 7, 26)
DATE = "26 Jul 2024"
"""What Llama's templates say is today where they are not told: a row's tokens are not to depend on
the day on which they are made."""
_DATE_CODES = ("%-d", "%-m", *(f"%{code}" for code in "aAbBcdHIjmMpSuUwWxXyY"))
_FAILURES = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
)
"""What rendering raises where a template refuses a conversation, the sandbox a template, or a
template does what Python cannot."""

Encoded = tuple[list[int], list[bool]]
"""The tokens of a row, and which of them bear loss."""


@dataclass(frozen=True)
class Chat:
    """A tokenizer with the chat template that renders conversations for it."""

    tokenizer: Any
    template: str

    @property
    def marked(self) -> bool:
        """Whether the template says itself what the assistant writes."""
        return _MARKED.search(self.template) is not None

    def encoded(self, conversations: Iterable[Conversation]) -> Iterator[Encoded]:
        """The tokens of each conversation, and which bear loss; a batch of them at a time.

        Raises DataError where the template refuses one, or cannot be aligned with it.
        """
        waiting = iter(conversations)
        while batch := list(islice(waiting, AT_ONCE)):
            encoded = self._by_marks(batch) if self.marked else self._by_turns(batch)
            for messages, (ids, targets) in zip(batch, encoded, strict=True):
                if not any(targets):
                    raise DataError(
                        "task.chat_template: has no token of the assistant that bears loss in the "
                        f"conversation {_shown(messages)}; put what it writes between "
                        "{% generation %} and {% endgeneration %}"
                    )
                yield ids, targets

    def prompt_of(self, messages: Conversation) -> tuple[str, str]:
        """What the base is given to write the last turn of the assistant, and what that turn is.

        The prompt holds its special tokens as text: encode it with `add_special_tokens=False`.
        Raises DataError where the template refuses the turns before, or there are none.
        """
        check_asked(messages)
        asked, answer = asked_and_answer(messages)
        return self._rendered(asked, prompt=True), answer

    def _by_marks(self, batch: Sequence[Conversation]) -> Iterator[Encoded]:
        try:
            out = self.tokenizer.apply_chat_template(
                [_as_dicts(messages) for messages in batch],
                chat_template=_clock_of(self.template) + self.template,
                return_dict=True,
                return_assistant_tokens_mask=True,
                date_string=DATE,
            )
        except _FAILURES as error:
            for messages in batch:  # the one that fails says so
                self._rendered(messages)
            raise DataError(
                "task.chat_template: its {% generation %} marks cannot be read "
                f"({reason_of(error)}); correct them, or give a template without any"
            ) from error
        for ids, mask in zip(out["input_ids"], out["assistant_masks"], strict=True):
            yield ids, [bool(each) for each in mask]

    def _by_turns(self, batch: Sequence[Conversation]) -> Iterator[Encoded]:
        texts = [self._rendered(messages) for messages in batch]
        out = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        for messages, text, ids, offsets in zip(
            batch, texts, out["input_ids"], out["offset_mapping"], strict=True
        ):
            turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
            yield ids, _overlapping(offsets, [self._turn(messages, i, text) for i in turns])

    def _turn(self, messages: Conversation, i: int, text: str) -> tuple[int, int]:
        """Where the turn `i`, of the assistant, begins and ends in the whole conversation."""
        start = self._start(messages, i, text)
        if i == len(messages) - 1:
            return start, len(text)
        turn = Message("assistant", _STAND_IN)
        before = messages[:i] or (Message("user", "?"),)  # templates want somebody to answer
        closing = self._around((*before, turn), messages)[1]
        rest = self._around((*messages[:i], turn, *messages[i + 1 :]), messages)[1]
        end = len(text) - len(rest)
        if end < start or not text.endswith(rest):
            raise _unaligned(messages, "what follows a turn depends on what the turn says")
        return start, end + self._shared(closing, rest)

    def _start(self, messages: Conversation, i: int, text: str) -> int:
        if i > 0:
            prompt = self._rendered(messages[:i], prompt=True)
            if not text.startswith(prompt):
                raise _unaligned(
                    messages, "the prompt of a turn does not begin the whole conversation"
                )
            return len(prompt)
        # There is no conversation of no turn to render: find what opens a turn of the assistant.
        asked = (Message("user", _STAND_IN),)
        closed = self._around(asked, messages)[1]
        prompt = self._around(asked, messages, prompt=True)[1]
        opening = prompt[self._shared(closed, prompt) :]
        before = self._around((Message("assistant", _STAND_IN), *messages[1:]), messages)[0]
        start = before.find(opening) + len(opening)
        if not opening or start < len(opening) or not text.startswith(before[:start]):
            raise _unaligned(messages, "its first turn is not opened as a turn of the assistant's")
        return start

    def _around(
        self, messages: Conversation, of: Conversation, *, prompt: bool = False
    ) -> tuple[str, str]:
        """What the template puts before and after the one stand-in for a content.

        An error names the conversation `of`.
        """
        rendered = self._rendered(messages, prompt=prompt, of=of)
        before, found, after = rendered.partition(_STAND_IN)
        if not found or _STAND_IN in after:
            raise _unaligned(of, "it does not hold each content once, as it is")
        return before, after

    def _shared(self, closing: str, rest: str) -> int:
        """How much of what closes a turn is there where other turns follow, in characters.

        Some templates end a whole conversation with a token more. It is by tokens that the two are
        compared then, for the names of two special tokens may begin alike.
        """
        if rest.startswith(closing):
            return len(closing)
        ids = self.tokenizer(closing, add_special_tokens=False)["input_ids"]
        near = rest[: len(closing) + _AHEAD]
        out = self.tokenizer(near, add_special_tokens=False, return_offsets_mapping=True)
        shared = 0
        for token, other, (_, end) in zip(
            ids, out["input_ids"], out["offset_mapping"], strict=False
        ):
            if token != other:
                break
            shared = end
        return shared

    def _rendered(
        self, messages: Conversation, *, prompt: bool = False, of: Conversation | None = None
    ) -> str:
        with _refusals(of or messages):
            rendered: str = self.tokenizer.apply_chat_template(
                _as_dicts(messages),
                chat_template=_clock_of(self.template) + self.template,
                add_generation_prompt=prompt,
                tokenize=False,
                date_string=DATE,
            )
        return rendered


def check_asked(messages: Conversation) -> None:
    """Raise DataError where nothing stands before the last turn of the assistant."""
    if not asked_and_answer(messages)[0]:
        raise DataError(
            f"task.messages: the conversation {_shown(messages)} begins with its only turn of "
            "the assistant, so that there is nothing to answer; add the question, or drop the row"
        )


def chat_of(tokenizer: Any, chat_template: str | None, base_uri: str) -> Chat:
    """The tokenizer of a base with the template given, as text, or else its own.

    Raises DataError where there is none, or the tokenizer does not say which characters a token is
    of.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"task.messages: the tokenizer of {base_uri} does not say where its tokens are in a "
            "text; use one with a tokenizer.json"
        )
    if chat_template is None:
        if not tokenizer.chat_template:
            raise DataError(
                f"task.messages: {base_uri} has no chat template; give task.chat_template"
            )
        try:
            chat_template = tokenizer.get_chat_template()
        except ValueError as error:  # several, and none is the default
            names = ", ".join(tokenizer.chat_template)
            raise DataError(
                f"task.messages: {base_uri} has chat templates {names} and none is its default; "
                "give task.chat_template"
            ) from error
    return Chat(tokenizer, chat_template)


def _clock_of(template: str) -> str:
    """Jinja that puts that day in the place of the clock which transformers gives a template.

    transformers makes a string of a function that it is to give to one.
    """
    if "strftime_now" not in template:
        return ""
    said = "".join(f"|replace({code!r}, {TODAY.strftime(code)!r})" for code in _DATE_CODES)
    # What is said last is no block, for the line's end behind one would be lost.
    return "{% macro strftime_now(format) %}{{ format" + said + " }}{% endmacro %}{{ '' }}"


def _as_dicts(messages: Conversation) -> list[dict[str, str]]:
    return [message.as_dict() for message in messages]


def _overlapping(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[bool]:
    """Which tokens have a character of a span; both come in order."""
    targets = []
    ahead = list(reversed(spans))
    for start, end in offsets:
        while ahead and start >= ahead[-1][1]:
            ahead.pop()
        targets.append(bool(ahead) and end > ahead[-1][0])
    return targets


@contextmanager
def _refusals(messages: Conversation) -> Iterator[None]:
    """What rendering raises, as DataError that says what to do."""
    try:
        yield
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"task.chat_template: is no Jinja template (line {error.lineno}: "
            f"{reason_of(error)}); correct it"
        ) from error
    except _FAILURES as error:
        raise DataError(
            f"task.chat_template: refuses the conversation {_shown(messages)} "
            f"({reason_of(error)}); drop or change such rows, or give another template"
        ) from error


def _unaligned(messages: Conversation, reason: str) -> DataError:
    return DataError(
        f"task.chat_template: cannot be aligned with the conversation {_shown(messages)}, for "
        f"{reason}; give a template with {{% generation %}} marks, such as trl has"
    )


def _shown(messages: Conversation) -> str:
    roles = ", ".join(message.role for message in messages[:6])
    more = ", ..." if len(messages) > 6 else ""
    return f"({roles}{more}) {shown(messages[0].content, 40)!r}"
