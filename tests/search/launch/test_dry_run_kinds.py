"""A dry run tells of every kind of task what is trained, and what goes wrong before it is."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from rich.console import Console

from search.cli.dry_run_view import drawn_dry_run
from search.cli.main import main
from search.config.reading import parse_sweep
from search.launch.cost import HIGH, LOW, Cost
from search.launch.dry_run import DryRun, dry_run
from tests.trainables.tasks.language.decoders import byte_tokenizer, decoder

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
ROWS = {"train": 24, "dev": 8, "test": 8}
KINDS: dict[str, dict[str, Any]] = {
    "classification": {"text": "q", "label": "a"},
    "regression": {"text": "q", "label": "n"},
    "multiple_choice": {"prompt": "q", "options": "o", "label": "n", "label_form": "index"},
    "causal": {"prompt": "q", "completion": "a", "delimiter": " "},
    "generation": {
        "messages": "m", "chat_template": TEMPLATE, "generation": {"max_new_tokens": 12},
    },
}  # fmt: skip
RIGHT = {"causal": " {}</s>", "multiple_choice": " {}", "generation": "{}</s>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of every kind, a tiny decoder, and an encoder."""
    folder = tmp_path_factory.mktemp("kinds")
    decoder("llama", torch.float32).save_pretrained(folder / "llama")
    bert = transformers.BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=256,
    )  # fmt: skip
    transformers.BertModel(bert).save_pretrained(folder / "bert")
    for name in ("llama", "bert"):
        byte_tokenizer(first="<s>").save_pretrained(folder / name)
    begin = 0
    for split, number in ROWS.items():
        rows = [made(i) for i in range(begin, begin + number)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        begin += number
    return folder


def made(number: int) -> dict[str, Any]:
    asked, answer = f"is the film {number} good", ("bad", "good")[number % 2]
    return {
        "q": asked, "a": answer, "n": number % 2, "o": ["bad", "good"], "one": ["good"],
        "wrong": 7,
        "m": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
        "odd": [{"role": "narrator", "content": asked}, {"role": "assistant", "content": answer}],
    }  # fmt: skip


def section(folder: Path, kind: str, base: str = "llama", **keys: Any) -> dict[str, Any]:
    data = {split: str(folder / f"{split}.jsonl") for split in ROWS}
    return {
        "base": f"path:{folder / base}",
        "task": {"name": "films", "kind": kind, "data": data, "max_length": 100, **keys},
        "profile": {"target_modules": "all-linear", "batch_size": 8},
        "space": {"learning_rate": 1e-3, "methods": {"lora": {"rank": 2}}},
        "search": {"trials": 2},
        "train": {"epochs": 1, "batch_size": 8},
        "confirm": None,
    }


def result_of(folder: Path, kind: str, **keys: Any) -> DryRun:
    return dry_run(parse_sweep(section(folder, kind, **KINDS[kind], **keys)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_told_of(
    folder: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = result_of(folder, kind)
    told = result.task
    assert told["rows"] == ROWS
    for split in ROWS:
        lengths = (told[k][split] for k in ("median_tokens", "tokens_95_percent", "most_tokens"))
        assert sorted(lengths) == [told[k][split] for k in KEYS]
    assert [row["tokens"] for row in told["longest"]] == sorted(
        (row["tokens"] for row in told["longest"]), reverse=True
    )
    assert "film" in told["longest"][0]["begins"]
    example = "".join(each["text"] for each in told["example"])
    learned = "".join(each["text"] for each in told["example"] if each["loss"])
    if kind in RIGHT:
        number = int(example.partition("film ")[2].split()[0])
        assert learned == RIGHT[kind].format(made(number)["a"])
    else:
        assert not example
    assert json.loads(json.dumps(asdict(result)))["task"]["example"] == told["example"]
    console = Console(file=io.StringIO(), width=160)
    console.print(drawn_dry_run(result))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert (f"\u27e6{learned}\u27e7" in shown) == bool(learned)
    assert "median / 95 % / most" in shown


KEYS = ("median_tokens", "tokens_95_percent", "most_tokens")


def test_a_head_is_counted_at_targets_alone_and_writing_by_the_token(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    free = Cost(step=0.0, forward=0.0, flops=1e12, attention=0.0, device="cpu")
    found = {}
    for name, given in {
        "head": {"head_step": 1.0},
        "head_when_measured": {"head": 1.0},
        "reading": {"read": 1.0},
    }.items():
        known = Cost(**{**asdict(free), **given})
        monkeypatch.setattr(Cost, "measured", lambda *_, known=known: known)
        for kind in ("classification", "causal", "generation"):
            result = result_of(folder, kind)
            found[kind, name] = (
                result.seconds_low["trial"],
                result.seconds["trial"],
                result.seconds_high["trial"],
            )
    assert found["classification", "head"] == (0.0, 0.0, 0.0)
    # " good</s>" is what 24 rows learn: as many places as these have tokens, and what is padded.
    # Measuring computes as many anew, without a backward pass.
    places = found["causal", "head"][1]
    assert 0 < found["causal", "head_when_measured"][1] < places
    tokens = byte_tokenizer()
    learned = [len(tokens(" " + made(i)["a"])["input_ids"]) + 1 for i in range(24)]
    assert sum(learned) <= places <= 24 * max(learned) * 2
    assert found["causal", "reading"] == (0.0, 0.0, 0.0)
    # One batch of 8 rows, whose texts have 12 tokens, or as many as the longest answer.
    low, about, high = found["generation", "reading"]
    longest = max(len(tokens(made(i)["a"])["input_ids"]) + 1 for i in range(24, 32))
    assert low == pytest.approx(LOW * longest, abs=0.06)
    assert high == pytest.approx(HIGH * 12, abs=0.06)
    assert about == pytest.approx((longest + 12) / 2, abs=0.06)


# -- what is wrong ---------------------------------------------------------------------------------

CHAT = {"messages": "m"}
CHOICE = {"prompt": "q", "options": "o", "label": "n", "label_form": "index"}
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("causal", CHAT, "task.messages: ", "has no chat template"),
    ("causal", {"messages": "odd", "chat_template": TEMPLATE}, "task.messages: ", "'narrator'"),
    (
        "causal",
        {
            "messages": "m",
            "chat_template": "{{ messages | map(attribute='content') | join }}"
            "{{ messages | length }}",
        },
        "task.chat_template: ",
        "generation",
    ),
    (
        "multiple_choice",
        {**CHOICE, "options": "one"},
        "task.options: ",
        "fewer than two options in 'one'",
    ),
    ("multiple_choice", {**CHOICE, "options": ["good"]}, "task.options: ", "two"),
    ("multiple_choice", {**CHOICE, "label": "wrong"}, "task.label: ", "7"),
    ("multiple_choice", {**CHOICE, "base": "bert"}, "base: ", "reads both ways"),
    ("causal", {"prompt": "q", "completion": "a", "base": "bert"}, "base: ", "reads both ways"),
    ("generation", {"prompt": "q", "completion": "a", "base": "bert"}, "base: ", "both ways"),
    ("causal", {**CHAT, "base": "bert"}, "base: ", "reads both ways"),  # not its chat template
    ("causal", {**CHAT, "metric": "accuracy"}, "task.metric: ", "'accuracy' does not measure"),
    ("generation", {**CHAT, "metric": "pearson"}, "task.metric: ", "does not measure generation"),
    ("multiple_choice", {**CHOICE, "metric": "f1"}, "task.metric: ", "does not measure multiple"),
    ("regression", {"text": "q", "label": "n", "metric": "f1"}, "task.metric: ", "regression"),
    ("classification", {"text": "q", "label": "a", "metric": "bleu"}, "task.metric: ", "classif"),
    ("causal", {"prompt": "q", "completion": "a", "options": "o"}, "task.options: ", "causal"),
    ("generation", {**CHAT, "text": "q"}, "task.text: ", "does not go with generation"),
    ("multiple_choice", {**CHOICE, "completion": "a"}, "task.completion: ", "multiple_choice"),
    ("regression", {"text": "q", "label": "n", "messages": "m"}, "task.messages: ", "regression"),
    ("classification", {"text": "q", "label": "a", "prompt": "q"}, "task.prompt: ", "classif"),
    ("causal", {**CHAT, "promt": "q"}, "task.promt: ", "prompt"),
]


@pytest.mark.parametrize(("kind", "keys", "begin", "words"), WRONG)
def test_what_is_wrong_is_said_in_a_line_before_anything_starts(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    keys: dict[str, Any],
    begin: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(yaml.safe_dump(section(folder, kind, **keys)))
    with pytest.raises(SystemExit) as ended:
        main(["launch", "sweep.yaml", "--dry-run"])
    assert ended.value.code == 2
    told = capfd.readouterr()
    assert told.out == ""
    (line,) = [each for each in told.err.splitlines() if each.startswith("error: ")]
    line = line.removeprefix("error: ").removeprefix("sweep.yaml: ")
    assert line.startswith(begin), line
    assert words in line
    assert ";" in line  # and what to do
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.yaml"]
