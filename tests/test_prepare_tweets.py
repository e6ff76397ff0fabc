"""The rated tweets are what their page says: each once, with its mean rating, in one split."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from tests.conftest import load_example, tarred

TWEETS = [
    (2.5, "Yay &amp;   again"),
    (1.0, "Rated twice"),
    (-0.5, "Rated twice"),
    (3.0, "ok :)"),
    (-3.0, "ok :("),  # the same words
    *((i % 9 - 4.0, f"Tweet number {i}") for i in range(400)),
]


@pytest.fixture
def script() -> ModuleType:
    return load_example("prepare_tweets")


def write_sdist(path: Path) -> Path:
    text = "\n".join(f"{i}\t{mean}\t{words}" for i, (mean, words) in enumerate(TWEETS, 1))
    inner = tarred(
        {
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": b"1\t1.0\tnot this\n",
            "hutto_ICWSM_2014/tweets_GroundTruth.txt": text.encode(),
        }
    )
    path.write_bytes(tarred({"v-1/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    return path


@pytest.fixture
def splits(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, float]]:
    """Split -> text -> rating, as the script writes them."""
    monkeypatch.setattr(script, "download", lambda folder: write_sdist(folder / "v.tgz"))
    script.main(["--out", str(tmp_path)])
    found = {}
    for split in ("train", "dev", "test"):
        rows = pq.read_table(tmp_path / f"{split}.parquet").to_pylist()
        found[split] = {row["text"]: row["rating"] for row in rows}
        assert len(found[split]) == len(rows)
    return found


def test_a_tweet_is_kept_once_with_the_mean_of_its_ratings(
    splits: dict[str, dict[str, float]],
) -> None:
    rated = {text: rating for part in splits.values() for text, rating in part.items()}
    assert len(rated) == sum(map(len, splits.values())) == 404
    assert rated["Yay & again"] == 2.5
    assert rated["Rated twice"] == 0.25
    assert rated["Tweet number 17"] == 4.0


def test_tweets_of_the_same_words_are_in_one_split(splits: dict[str, dict[str, float]]) -> None:
    (part,) = [part for part in splits.values() if "ok :)" in part]
    assert (part["ok :)"], part["ok :("]) == (3.0, -3.0)
    shares = {split: len(rows) / 404 for split, rows in splits.items()}
    assert shares == pytest.approx({"train": 0.7, "dev": 0.15, "test": 0.15}, abs=0.06)
