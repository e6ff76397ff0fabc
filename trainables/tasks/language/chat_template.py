"""The chat template that a task gives: Jinja text, or a file of it."""

from __future__ import annotations

import os
from pathlib import Path

from spaces.errors import ConfigError, shown

TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")


def is_template_file(value: str) -> bool:
    """Whether a `task.chat_template` is the path of a file, and no template itself."""
    return value.lower().endswith(TEMPLATE_SUFFIXES) and "{" not in value and "\n" not in value


def read_chat_template(value: str | None) -> str | None:
    """The template that `task.chat_template` gives: Jinja text, or a path to a file of it.

    Raises ConfigError where the file cannot be read, or the text is no template.
    """
    if value is None:
        return None
    text = value
    if is_template_file(value):
        try:
            text = Path(os.path.expanduser(value)).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
            raise ConfigError(
                f"task.chat_template: {shown(value)} cannot be read ({reason}); check the path"
            ) from error
    if "{{" not in text and "{%" not in text:
        raise ConfigError(
            f"task.chat_template: {shown(text, 40)!r} is no template; give Jinja text, or a path "
            f"that ends in {', '.join(TEMPLATE_SUFFIXES)}"
        )
    return text
