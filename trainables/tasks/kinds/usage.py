"""How a trained model of a kind is used with transformers alone: what beside it makes its inputs,
and the Python that its README shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trainables.tasks.settings import TaskSettings


@dataclass(frozen=True)
class Tokenizing:
    """What the tokenizer beside a trained model does where it is not told otherwise.

    None for `max_length` and `chat_template`: what the base's own does.
    """

    padding_side: Literal["left", "right"] = "right"
    max_length: int | None = None
    chat_template: str | None = None


@dataclass(frozen=True)
class Usage:
    """Lines of Python that predict with `model`, which the lines before them have loaded.

    `names` are what they take from transformers, `imports` their other imports; `note` says what
    the model reads and gives.
    """

    code: str
    note: str
    names: tuple[str, ...] = ("AutoTokenizer",)
    imports: tuple[str, ...] = ()


LOGITS = "with torch.no_grad():\n    logits = model.eval()(**batch).logits\n"


def classes_of_texts(settings: TaskSettings, labels: Sequence[str], folder: str) -> Usage:
    """The class of each of some texts."""
    return Usage(
        f"{_labels(labels)}{_batch_of_texts(settings, folder)}{_CLASSES}", _texts_note(settings)
    )


def numbers_of_texts(settings: TaskSettings, folder: str) -> Usage:
    """The number of each of some texts."""
    code = f"{_batch_of_texts(settings, folder)}{LOGITS}"
    code += "predictions = logits[:, 0].tolist()\nprint(predictions)"
    return Usage(code, f"{_texts_note(settings)} Its one output is the number.")


def classes_of_pictures(labels: Sequence[str], folder: str) -> Usage:
    """The class of each of some pictures."""
    batch = (
        f'processor = AutoImageProcessor.from_pretrained({folder!r}, backend="pil")\n'
        'pictures = [Image.new("RGB", (64, 64))]  # yours: Image.open("a.png").convert("RGB")\n'
        'batch = processor(pictures, return_tensors="pt")\n'
    )
    return Usage(
        f"{_labels(labels)}{batch}{_CLASSES}",
        "It reads pictures, which the image processor beside it makes alike.",
        names=("AutoImageProcessor",),
        imports=("from PIL import Image",),
    )


_CLASSES = f"{LOGITS}predictions = [labels[i] for i in logits.argmax(-1)]\nprint(predictions)"


def _labels(labels: Sequence[str]) -> str:
    return f"labels = {list(labels)!r}\n\n"


def _batch_of_texts(settings: TaskSettings, folder: str) -> str:
    before = f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"
    if settings.template is not None:
        before += f"rows = [{example_row(settings.template)}]\ntemplate = {settings.template!r}\n"
        texts = "[template.format(**row) for row in rows]"
    else:
        texts = ", ".join(f'["a {column}", "another {column}"]' for column in settings.text)
    return (
        f"{before}batch = tokenizer(\n    {texts},\n"
        '    truncation=True, padding=True, return_tensors="pt",\n)\n'
    )


def example_row(template: str) -> str:
    """The Python of a row with the columns that a template names."""
    from trainables.tasks.language.templates import columns

    return repr({column: f"a {column}" for column in columns(template)})


def _texts_note(settings: TaskSettings) -> str:
    columns = [f"`{column}`" for column in settings.text]
    what = columns[0] if len(columns) == 1 else f"{' and '.join(columns)} as a pair"
    if settings.template is not None:
        what = "a text that the template composes of a row"
    return (
        f"It reads {what}, cut at max_length = {settings.max_length} tokens, special tokens "
        "included: the tokenizer beside it does so with truncation=True."
    )
