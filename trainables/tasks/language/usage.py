"""The Python of a README that scores options, finds a text's loss, or writes, with transformers
alone and as the trial did it."""

from __future__ import annotations

from pprint import pformat
from textwrap import indent
from typing import Any

from trainables.bases.loading import Base
from trainables.bases.parts import load_tokenizer
from trainables.tasks.kinds.usage import Usage, example_row
from trainables.tasks.language.chat import DATE, Chat
from trainables.tasks.language.chat_template import read_chat_template
from trainables.tasks.language.continuations import first_text, joined, tokens_behind
from trainables.tasks.language.encoding import delimiter_of, given_with_prompts
from trainables.tasks.language.forms import ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT, Form
from trainables.tasks.language.writing import end_tokens
from trainables.tasks.settings import TaskSettings

_COMPOSED = " composed as in training"
_WIDTH = 88  # of a line of code


def likeliest_option(settings: TaskSettings, folder: str, base: Base) -> Usage:
    """Each option's log-likelihood behind a prompt, and the likeliest one."""
    usage = _Prompted(settings, Form(prompt=settings.prompt, template=settings.template), base)
    fixed = isinstance(settings.options, tuple)
    options = list(settings.options or ()) if fixed else ["an option", "another option"]
    divided = {
        "accuracy_per_token": " / (ids.shape[1] - start)",
        "accuracy_per_byte": " / len(option.encode())",
    }.get(settings.metric, "")
    code = (
        f"{_tokenizer(folder)}{usage.prompt()}"
        f"options = {options!r}\n"
        f"start = len({usage.tokens('prompt.rstrip()')})\n"
        "scores = []\n"
        "for option in options:\n"
        f"    ids = torch.tensor([{usage.tokens(usage.followed_by('option', settings.delimiter))}])"
        "\n"
        "    with torch.no_grad():\n"
        "        logits = model.eval()(ids).logits[0, start - 1 : -1]\n"
        "    of_tokens = logits.log_softmax(-1).gather(-1, ids[0, start:, None])\n"
        f"    scores.append(of_tokens.sum().item(){divided})\n"
        "prediction = options[scores.index(max(scores))]\n"
        "print(prediction, scores)"
    )
    of_what = {
        "accuracy_per_token": "log-likelihood per token",
        "accuracy_per_byte": "log-likelihood per byte of its text",
    }.get(settings.metric, "log-likelihood")
    return Usage(
        code,
        f"It reads a prompt{usage.composed}, and its prediction is the option with the greatest "
        f"{of_what} behind it; {_length_note(settings, 'a longer prompt lost its beginning')}",
    )


def loss_of_a_text(settings: TaskSettings, form: Form, folder: str, base: Base) -> Usage:
    """The mean loss of an answer's tokens, of a running text's, or of what an assistant says."""
    usage = _Prompted(settings, form, base)
    if form.is_conversation:
        code, what = usage.marked_conversation(), "a conversation, of which the assistant's turns"
    elif form.has_prompt:
        answer = usage.followed_by("answer", delimiter_of(settings))
        code = (
            f'{usage.prompt()}answer = "an answer"\n'
            f"before, ids = {usage.tokens('prompt')}, {usage.tokens(answer)}\n"
            "start = len(before)\n"
            "while before[:start] != ids[:start]:  # they melt into one token\n    start -= 1\n"
            "ids = torch.tensor([ids + [tokenizer.eos_token_id]])\n"
            "labels = ids.clone()\nlabels[:, :start] = -100  # no loss of the prompt\n"
        )
        what = f"a prompt{usage.composed}, whose answer and the end token behind it"
    else:
        code = (
            f"{usage.prompt(into='text')}"
            f'ids = torch.tensor([tokenizer(text)["input_ids"]{usage.end}])\n'
            "labels = ids.clone()\n"
        )
        what = "running text, whose tokens and an end token"
    code += (
        "with torch.no_grad():\n    loss = model.eval()(ids, labels=labels).loss.item()\n"
        "print(loss)"
    )
    cut = "a longer prompt lost its beginning" if form.has_prompt else "longer ones were cut"
    return Usage(
        f"{_tokenizer(folder)}{code}",
        f"It reads {what} bear loss; {_length_note(settings, cut)}{usage.dated}",
    )


def what_is_written(settings: TaskSettings, form: Form, folder: str, base: Base) -> Usage:
    """What the model writes behind a prompt or a conversation, and the answer in it."""
    usage, asked = _Prompted(settings, form, base), settings.generation
    config: dict[str, Any] = {"max_new_tokens": asked.max_new_tokens, "do_sample": asked.do_sample}
    if asked.do_sample:
        config |= {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": 0}
    config["eos_token_id"] = end_tokens(base.model.generation_config, usage.tokenizer)
    config["pad_token_id"] = usage.tokenizer.pad_token_id
    keys = "".join(f"    {key}={value!r},\n" for key, value in config.items())
    # White space may stand between prompt and answer, so that it ends a text later alone.
    ending = [each for each in asked.stop if not each.isspace()]
    stop = f", stop_strings={ending!r}, tokenizer=tokenizer" if ending else ""
    if form.is_conversation:
        asking = (
            f"{_MESSAGES}batch = tokenizer.apply_chat_template(\n    messages, "
            f'add_generation_prompt=True, return_dict=True, return_tensors="pt"{usage.date},\n)\n'
        )
    else:
        given = given_with_prompts(settings)
        ids = usage.tokens(f"prompt + {given!r}" if given else "prompt")
        asking = (
            f"{usage.prompt()}ids = torch.tensor([{ids}])\n"
            'batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}\n'
        )
    code = (
        f"{_tokenizer(folder)}{asking}"
        f"model.generation_config = GenerationConfig(\n{keys})\n"
        f"written = model.eval().generate(**batch{stop})\n"
        'text = tokenizer.decode(written[0, batch["input_ids"].shape[1] :], '
        "skip_special_tokens=True)\n"
    )
    if ending:
        code += f"for stop in {ending!r}:\n    text = text.partition(stop)[0]\n"
    if later := [each for each in asked.stop if each.isspace()]:
        code += f"for stop in {later!r}:\n    text = text.lstrip().partition(stop)[0]\n"
    imports = []
    if (extract := settings.extract) is not None:
        imports.append("import re")
        place = 0 if extract.take == "first" else -1
        code += (
            f"found = re.findall({extract.pattern!r}, text)\n"
            f"answer = found[{place}].strip() if found else None\n"
        )
        if extract.ignore:
            code += f"for pattern in {list(extract.ignore)!r}:\n"
            code += '    answer = answer and re.sub(pattern, "", answer)\n'
        code += "print(answer)"
    else:
        code += "print(text.strip())"
    what = "a conversation" if form.is_conversation else f"a prompt{usage.composed}"
    how = "as drawn" if asked.do_sample else "greedily"
    return Usage(
        code,
        f"It reads {what} and writes the answer {how}, {asked.max_new_tokens} tokens at most; "
        + _length_note(settings, "rows with their answers")
        + usage.dated,
        names=("AutoTokenizer", "GenerationConfig"),
        imports=tuple(imports),
    )


_MESSAGES = 'messages = [{"role": "user", "content": "a question"}]\n'


def _tokenizer(folder: str) -> str:
    return f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"


def _length_note(settings: TaskSettings, cut: str) -> str:
    return f"it was trained on at most {settings.max_length} tokens ({cut})."


class _Prompted:
    """Pieces of code for a task whose rows are of a form, on a base."""

    def __init__(self, settings: TaskSettings, form: Form, base: Base) -> None:
        self._form = form
        self.tokenizer: Any = load_tokenizer(base.uri)
        self._template = read_chat_template(settings.chat_template)
        self._behind = tokens_behind(self.tokenizer)

    @property
    def composed(self) -> str:
        """That a prompt is composed of columns; nothing where it is a column."""
        return _COMPOSED if self._form.template or self._form.format == "alpaca" else ""

    def prompt(self, into: str = "prompt") -> str:
        """Lines that put a prompt, or a text, into a variable."""
        form, otherwise = self._form, ""
        if form.template is not None:
            row, template = example_row(form.template), form.template
        elif form.format == "alpaca":
            assert form.parts is not None
            named = ["instruction", *(["input"] if form.parts["input"] else [])]
            row, template = repr({part: f"an {part}" for part in named}), ALPACA_WITHOUT_INPUT
            if "input" in named:
                template = ALPACA_WITH_INPUT
                without = indent(f"template = {_literal(ALPACA_WITHOUT_INPUT)}", "    ")
                otherwise = f'if not row["input"]:\n{without}\n'
        else:
            return f'{into} = "a {form.prompt or form.text}"\n'
        composed = f"row = {row}\ntemplate = {_literal(template)}\n{otherwise}"
        return f"{composed}{into} = template.format(**row)\n"

    def tokens(self, text: str) -> str:
        """The expression of the token ids of a text, special tokens in front of it alone."""
        special = ", add_special_tokens=False" if self._has_specials else ""
        ids = f'tokenizer({text}{special})["input_ids"]'
        return f"{ids}[:-{self._behind}]" if self._behind and not special else ids

    @property
    def end(self) -> str:
        """What puts an end token behind a running text; nothing where the tokenizer does."""
        last, of_text = self.tokenizer.eos_token_id, self.tokenizer("a")["input_ids"]
        return "" if of_text[-1:] == [last] else " + [tokenizer.eos_token_id]"

    @property
    def _has_specials(self) -> bool:
        """Whether a prompt is composed with the tokenizer's first token as text."""
        first = first_text(self.tokenizer)
        return first is not None and (self._form.template or "").startswith(first)

    def followed_by(self, answer: str, delimiter: str | None) -> str:
        """The expression of the prompt with what is in the variable `answer` behind it."""
        if delimiter is None:
            # Values are taken to neither begin nor end with white space.
            delimiter = joined(self._form.template or "", "", None)
        return f"prompt + {delimiter!r} + {answer}" if delimiter else f"prompt + {answer}"

    @property
    def date(self) -> str:
        """The argument by which a chat template that knows the date has that of the training."""
        template = self._template or self.tokenizer.get_chat_template()
        return f", date_string={DATE!r}" if "date_string" in template else ""

    @property
    def dated(self) -> str:
        """That the chat template says another day than in training; nothing where it does not."""
        if not self._form.is_conversation or self.date:
            return ""
        template = self._template or self.tokenizer.get_chat_template()
        said = f" Its chat template says which day it is: in training it was {DATE}."
        return said if "strftime_now" in template else ""

    def marked_conversation(self) -> str:
        """Lines that make `ids` and `labels` of a conversation that ends with an answer."""
        template = self._template or self.tokenizer.get_chat_template()
        messages = (
            'messages = [\n    {"role": "user", "content": "a question"},\n'
            '    {"role": "assistant", "content": "an answer"},\n]\n'
        )
        marked = Chat(self.tokenizer, template).marked
        return messages + (_by_marks(self.date) if marked else _by_turn(self.date))


def _by_marks(date: str) -> str:
    return (
        "row = tokenizer.apply_chat_template(\n    messages, return_dict=True, "
        f"return_assistant_tokens_mask=True{date},\n)\n"
        'ids = torch.tensor([row["input_ids"]])\n'
        'said = torch.tensor([row["assistant_masks"]]) == 1\n'
        "labels = ids.where(said, -100)  # no loss but of the assistant\n"
    )


def _by_turn(date: str) -> str:
    return (
        "prompt = tokenizer.apply_chat_template(\n    messages[:-1], add_generation_prompt=True, "
        f"return_dict=True{date},\n)\n"
        f"row = tokenizer.apply_chat_template(messages, return_dict=True{date})\n"
        'ids = torch.tensor([row["input_ids"]])\n'
        "labels = ids.clone()\n"
        'labels[:, : len(prompt["input_ids"])] = -100  # no loss but of the last turn\n'
    )


def _literal(text: str) -> str:
    """A text as Python, in lines where it is long."""
    if len(text) <= _WIDTH:
        return repr(text)
    lines = [f"    {line.strip()}" for line in pformat(text, width=_WIDTH).strip("()").splitlines()]
    return "\n".join(["(", *lines, ")"])
