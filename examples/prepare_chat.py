"""Make data/chat: what people ask a bot, and what it answers, as messages.

The conversations are the English ones of the ChatterBot corpus 1.3.3, which its contributors wrote
to train a chat bot by: questions of trivia, science, programming and technical support, small talk
and jokes. They are made up, mostly of one question and one answer, and what the bot says is neither
checked nor always true: a set to try a chat task with, none to judge a model by. The turns are
taken by user and assistant in turn; a last word of the user's is left out. A conversation is kept
once. Which split it belongs to is decided by the words of its first turn alone, so no question is
in two splits and the splits never change.

    python examples/prepare_chat.py --out data/chat
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any

import yaml
from prepare_movie import SPLITS, fetched, split_of
from prepare_written import lines_are_there, read_lines, write_lines

SOURCE = "chatterbot-corpus==1.3.3"
SOURCE_SHA256 = "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"
FOLDER = PurePosixPath("chatterbot_corpus/data/english")
ROLES = ("user", "assistant")


def download(folder: Path) -> Path:
    """Fetch the wheel, and check that it is the one."""
    return fetched("prepare_chat", SOURCE, SOURCE_SHA256, folder, "*.whl")


def read_conversations(wheel: Path) -> list[tuple[str, ...]]:
    """The turns of every conversation that ends with an answer, each once, sorted."""
    kept = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if PurePosixPath(name).parent == FOLDER and name.endswith(".yml"):
                for turns in yaml.safe_load(archive.read(name))["conversations"]:
                    kept.add(answered(turns))
    return sorted(conversation for conversation in kept if conversation)


def answered(turns: Iterable[Any]) -> tuple[str, ...]:
    """The turns up to the last answer; nothing where a turn is no text."""
    texts = [each.strip() if isinstance(each, str) else "" for each in turns]
    return tuple(texts[: len(texts) // 2 * 2]) if all(texts) else ()


def write(conversations: Iterable[tuple[str, ...]], out: Path) -> None:
    """Write train.jsonl, dev.jsonl and test.jsonl with the column messages."""
    by_split: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for turns in conversations:
        messages = [{"role": ROLES[place % 2], "content": text} for place, text in enumerate(turns)]
        by_split[split_of(turns[0])].append({"messages": messages})
    write_lines(by_split, out)


def main(arguments: list[str] | None = None) -> None:
    """Make the data unless it is already there, and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/chat"), metavar="DIR")
    out: Path = parser.parse_args(arguments).out
    if lines_are_there(out):
        print(f"{out}: already there")
    else:
        with tempfile.TemporaryDirectory() as folder:
            conversations = read_conversations(download(Path(folder)))
        write(conversations, out)
        print(f"{out}: made from {SOURCE}")
    for split in SPLITS:
        rows = [row["messages"] for row in read_lines(out, split)]
        longer = sum(len(messages) > 2 for messages in rows)
        words = median(sum(len(each["content"].split()) for each in row) for row in rows)
        print(
            f"{split:5} {len(rows):5} rows of {words:.0f} words (median), {longer} of more than "
            "one question"
        )


if __name__ == "__main__":
    main()
