"""A folder that `datasets` saved is a source of rows, each as a Parquet file would have it."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spaces.errors import DataError
from trainables.tasks.files import file_records
from trainables.tasks.saved_datasets import is_saved_dataset
from trainables.tasks.settings import DataSettings

ROWS = {
    "text": ["one", "two", None],
    "number": [0.1, 2.5, None],
    "label": ["a", "b", "a"],
    "chat": [[{"role": "user", "content": "q"}], [], [{"role": "user", "content": "r"}]],
}
ASKED = {"text": "text", "number": "text", "label": "label", "chat": "messages"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    features = datasets.Dataset.from_dict(ROWS).features
    features["number"] = datasets.Value("float32")
    datasets.Dataset.from_dict(ROWS, features=features).save_to_disk(str(tmp_path / "train"))
    return tmp_path / "train"


def test_it_holds_what_a_parquet_file_of_its_rows_holds(saved: Path, tmp_path: Path) -> None:
    table = datasets.load_from_disk(str(saved)).with_format("arrow")[:]
    pq.write_table(table, tmp_path / "train.parquet")
    made = file_records(str(saved), "train", ASKED)
    parquet = file_records(str(tmp_path / "train.parquet"), "train", ASKED)
    assert made.columns == parquet.columns
    assert made.columns["number"] == [0.1, 2.5, None]
    assert made.columns["chat"] == ROWS["chat"]
    assert list(made.numbers) == [1, 2, 3]


def test_a_chosen_part_is_what_was_saved(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"text": list("abcd"), "label": list("xyxy")}).select([3, 1])
    part.save_to_disk(str(tmp_path / "part"))
    records = file_records(str(tmp_path / "part"), "train", {"text": "text", "label": "label"})
    assert records.columns == {"text": ["d", "b"], "label": ["y", "y"]}


def test_pictures_stay_encoded(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, "PNG")
    rows = datasets.Dataset.from_dict({"image": [{"bytes": png.getvalue(), "path": None}]})
    rows.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "train"))
    records = file_records(str(tmp_path / "train"), "train", {"image": "image"})
    assert records.columns["image"] == [{"bytes": png.getvalue(), "path": None}]


def test_only_the_folder_of_one_split_is_a_source(saved: Path, tmp_path: Path) -> None:
    assert is_saved_dataset(saved)
    assert is_saved_dataset(str(saved))
    assert not is_saved_dataset(tmp_path)
    assert not is_saved_dataset(tmp_path / "absent")
    assert not is_saved_dataset("a\0b")
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict(ROWS)})
    splits.save_to_disk(str(tmp_path / "all"))
    assert not is_saved_dataset(tmp_path / "all")
    assert is_saved_dataset(tmp_path / "all" / "train")
    with pytest.raises(DataError) as caught:
        file_records(str(tmp_path / "all"), "task.data.train", ASKED)
    assert "holds several splits; name the folder of one" in str(caught.value)
    assert str(tmp_path / "all" / "train") in str(caught.value)


def test_what_is_no_source_is_told_where_rows_are_read(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").touch()
    settings = DataSettings(train=str(tmp_path / "gone"), dev=str(tmp_path / "a.xlsx"))
    assert settings.train is not None
    assert settings.dev is not None
    with pytest.raises(
        DataError, match=r"^task\.data\.train: there is no such file; check the path"
    ):
        file_records(settings.train, "task.data.train", ASKED)
    with pytest.raises(DataError, match=r"^task\.data\.dev: is not a data file; use one that ends"):
        file_records(settings.dev, "task.data.dev", ASKED)
    saved.rename(tmp_path / "of.v2")  # a dot in a folder's name is no suffix
    assert file_records(str(tmp_path / "of.v2"), "train", ASKED).columns["label"] == ROWS["label"]


def test_a_folder_that_is_none_and_a_damaged_one_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none that save_to_disk wrote; name a file"):
        file_records(str(tmp_path), "task.data.train", ASKED)
    with pytest.raises(DataError, match="has no column 'answer'"):
        file_records(str(saved), "task.data.train", {"answer": "completion"})
    for arrow in saved.glob("*.arrow"):
        arrow.write_bytes(arrow.read_bytes()[:50])
    with pytest.raises(DataError, match="is not readable as a saved data set"):
        file_records(str(saved), "task.data.train", ASKED)
