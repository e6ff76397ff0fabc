"""Make data/tweets: tweets with the mean rating of their sentiment, for a regression.

The 4,200 tweets and their mean ratings (at least 20 raters each, -4 to 4) are those of Hutto and
Gilbert, "VADER" (ICWSM 2014), which the source distribution of vaderSentiment ships. A tweet is
kept once, with the mean of its ratings. Which split it belongs to is decided by its own words
alone, so none is in two splits and the splits never change.

    python examples/prepare_tweets.py --out data/tweets
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, pstdev

import pyarrow.parquet as pq
from prepare_movie import (
    SOURCE,
    SOURCE_SHA256,
    SPLITS,
    fetched,
    is_there,
    read_snippets,
    split_of,
    write_splits,
)

TWEETS = "tweets_GroundTruth.txt"


def download(folder: Path) -> Path:
    """Fetch the source distribution, and check that it is the one."""
    options = ("--no-binary", ":all:")
    return fetched("prepare_tweets", SOURCE, SOURCE_SHA256, folder, "*.tar.gz", options)


def rated_once(tweets: Iterable[tuple[float, str]]) -> list[tuple[str, float]]:
    """(text, mean rating) of each tweet, sorted."""
    ratings: dict[str, list[float]] = {}
    for rating, text in tweets:
        ratings.setdefault(text, []).append(rating)
    return sorted((text, fmean(each)) for text, each in ratings.items())


def write(rows: Iterable[tuple[str, float]], out: Path) -> None:
    """Write train.parquet, dev.parquet and test.parquet with columns text and rating."""
    by_split: dict[str, list[tuple[str, float]]] = {split: [] for split in SPLITS}
    for text, rating in rows:
        by_split[split_of(text)].append((text, rating))
    write_splits(("text", "rating"), by_split, out)


def main(arguments: list[str] | None = None) -> None:
    """Make the data unless it is already there, and say what it holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/tweets"), metavar="DIR")
    out: Path = parser.parse_args(arguments).out
    if is_there(out):
        print(f"{out}: already there")
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = rated_once(read_snippets(download(Path(folder)), TWEETS))
        write(rows, out)
        print(f"{out}: made from {SOURCE}")
    for split in SPLITS:
        ratings = pq.read_table(out / f"{split}.parquet")["rating"].to_pylist()
        print(
            f"{split:5} {len(ratings):5} rows: ratings from {min(ratings):.1f} to "
            f"{max(ratings):.1f}, on the mean {fmean(ratings):.2f} with a deviation of "
            f"{pstdev(ratings):.2f}"
        )


if __name__ == "__main__":
    main()
