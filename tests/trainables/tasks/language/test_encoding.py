"""What a base trains on and is asked with, of a task's rows, and which rows it cannot take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from spaces.errors import DataError
from tests.trainables.tasks.kinds.examples import Row, write_decoder, write_rows
from tests.trainables.tasks.language.decoders import TOKENS
from trainables.bases.loading import load_base
from trainables.bases.parts import load_generation_config, load_tokenizer
from trainables.tasks.kinds.generation import written_of
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import Task, build_task

ROWS: list[Row] = [{"q": "the film", "a": "good"}, {"q": "a plot", "a": "bad film"}]
CHOICES: list[Row] = [{"q": "the film", "o": ["good", "bad"], "label": 0}] * 2
WRITTEN = {"kind": "generation", "template": "{q}\n", "completion": "a"}
CHOSEN = {"kind": "multiple_choice", "prompt": "q", "options": "o"}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return write_decoder("llama", tmp_path / "base")


def task_of(uri: str, rows: list[Row], **section: Any) -> Task:
    folder = Path(uri.removeprefix("path:")).parent
    data = {split: str(folder / f"{split}.jsonl") for split in ("train", "dev")}
    for file in data.values():
        write_rows(Path(file), rows)
    given = {"name": "task", "data": data, "max_length": 64, **section}
    return build_task(TaskSettings.model_validate(given), uri)


@pytest.mark.parametrize(
    ("section", "asked", "written"),
    [
        ({}, "the film\n", "good"),
        ({"template": "{q} ->"}, "the film ->", " good"),
        ({"template": "{q}: "}, "the film: ", "good"),
        ({"template": "{q}", "delimiter": " => "}, "the film =>", " good"),
        ({"template": "{q}", "delimiter": "\n"}, "the film\n", "good"),
        ({"template": None, "prompt": "q"}, "the film", "good"),
    ],
)
def test_what_is_trained_follows_what_the_base_is_asked_with(
    uri: str, section: dict[str, Any], asked: str, written: str
) -> None:
    rows = written_of(task_of(uri, ROWS, **{**WRITTEN, **section}), "dev")
    tokenizer = load_tokenizer(uri)
    prompt = rows.prompts[: rows.prompt_offsets[1]]
    ids, bears = rows.input_ids[: rows.offsets[1]], rows.targets_mask[: rows.offsets[1]]
    assert prompt.tolist() == tokenizer(asked)["input_ids"] == ids[~bears].tolist()
    assert tokenizer.decode(ids[bears]) == f"{written}</s>"


def test_the_end_tokens_of_a_base_are_what_it_is_measured_by_and_not_trained_by(uri: str) -> None:
    before = task_of(uri, ROWS, **WRITTEN)
    config = Path(uri.removeprefix("path:")) / "generation_config.json"
    for said in ({"eos_token_id": [1, 9]}, None):
        if said is None:
            config.unlink()
        else:
            config.write_text(json.dumps(said))
        loaded = load_base(uri, "causal", 1).model.generation_config
        assert load_generation_config(uri).eos_token_id == loaded.eos_token_id
        if said is not None:
            after = task_of(uri, ROWS, **WRITTEN)
            assert after.train_fingerprint == before.train_fingerprint
            assert after.fingerprint != before.fingerprint


def test_a_tokenizer_is_read_once_as_long_as_its_files_stay(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    whole = transformers.AutoTokenizer.from_pretrained

    def counted(*args: Any, **kwargs: Any) -> Any:
        read.append(args)
        return whole(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", counted)
    for _ in range(2):
        task_of(uri, ROWS, **WRITTEN)
        assert len(read) == 1
    more_tokens(uri, "good")
    read.clear()
    with pytest.raises(DataError, match="has token 300"):
        task_of(uri, ROWS, **WRITTEN)
    assert len(read) == 1


# -- what a base does not hold ---------------------------------------------------------------------


def more_tokens(uri: str, *tokens: str, pad: str | None = None) -> None:
    """Add tokens to a tokenizer for which the base has no vectors."""
    tokenizer = load_tokenizer(uri)
    held = [f"held-{i}" for i in range(TOKENS - len(tokenizer))]
    tokenizer.add_tokens([*held, *tokens])
    if pad is not None:
        tokenizer.add_special_tokens({"pad_token": pad})
    assert len(tokenizer) > TOKENS
    tokenizer.save_pretrained(uri.removeprefix("path:"))


@pytest.mark.parametrize("section", [WRITTEN, {**WRITTEN, "kind": "causal"}])
def test_a_padding_token_that_the_base_lacks_is_refused(uri: str, section: dict[str, Any]) -> None:
    more_tokens(uri, pad="<pad>")
    with pytest.raises(DataError, match=r"^base: .* has padding token 300, but its embedding hold"):
        task_of(uri, ROWS, **section)


@pytest.mark.parametrize(
    ("section", "rows"),
    [
        (
            CHOSEN,
            [CHOICES[0], {"q": "a plot", "o": ["good", "a zyx"], "label": 0}],  # the wrong one
        ),
        (
            WRITTEN,
            [ROWS[0], {"q": "zyx " + "the film " * 80, "a": "good"}],  # it is cut in training
        ),
    ],
)
def test_a_token_that_the_base_lacks_is_refused_wherever_it_reads_it(
    uri: str, section: dict[str, Any], rows: list[Row]
) -> None:
    more_tokens(uri, "zyx")
    with pytest.raises(DataError) as caught:
        task_of(uri, rows, **section)
    message = str(caught.value)
    assert "has token 300 ('zyx'), but the embedding of" in message
    assert str(rows[1]["q"])[:12] in message


def test_a_text_of_one_token_has_nothing_to_learn_at_any_length(uri: str) -> None:
    rows = [{"text": "the film"}, {"text": "<s>"}]
    tokenizer = load_tokenizer(uri)
    tokenizer.bos_token, tokenizer.backend_tokenizer.post_processor = None, None
    tokenizer.save_pretrained(uri.removeprefix("path:"))
    rows[1]["text"] = "</s>"
    with pytest.raises(DataError) as caught:
        task_of(uri, rows, kind="causal", text="text")
    assert str(caught.value) == (
        "task.data.train: 1 of 2 rows have nothing to learn, for the one token that would bear "
        "loss is their first, which nothing predicts; drop these rows"
    )
