"""The example's data is what its page says: clear labels, right letters, no text in two splits."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from tests.conftest import load_example, tarred

SNIPPETS = [
    (2.5, "Amélie &amp; friends – a   joy."),
    (-1.2, "Dull."),
    (0.4, "Neither here nor there."),
    (-0.49, "Hardly bad."),
    (0.5, "Just good enough."),
    (1.5, "A gem!"),
    (2.0, "a GEM"),  # the same words
    (1.0, "So bad it's good"),
    (-1.0, "So bad, it's good"),  # the same words with the other label
    *((1.0 if i % 2 else -1.0, f"Film number {i} of many.") for i in range(400)),
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_example("prepare_movie")


def write_sdist(path: Path, snippets: list[tuple[float, str]]) -> Path:
    """A source distribution laid out as the real one: lines end in CR LF, the last in nothing."""
    text = "\r\n".join(f"{i}\t{mean}\t{words}" for i, (mean, words) in enumerate(snippets, 1))
    inner = tarred(
        {
            "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt": b"1\t1.0\tnot this\r\n",
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": text.encode(),
        }
    )
    path.write_bytes(tarred({"v-1/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    return path


@pytest.fixture
def made(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(script, "download", lambda folder: write_sdist(folder / "v.tgz", SNIPPETS))
    script.main(["--out", str(tmp_path / "movie")])
    return tmp_path / "movie"


def rows_of(folder: Path) -> dict[str, list[tuple[str, str]]]:
    return {
        split: [
            (row["sentence"], row["label"])
            for row in pq.read_table(folder / f"{split}.parquet").to_pylist()
        ]
        for split in ("train", "dev", "test")
    }


def test_clear_snippets_are_kept_once_with_the_sign_of_their_mean(made: Path) -> None:
    rows = dict(row for part in rows_of(made).values() for row in part)
    numbered = {f"Film number {i} of many." for i in range(400)}
    assert {text: label for text, label in rows.items() if text not in numbered} == {
        "Amélie & friends – a joy.": "positive",
        "Dull.": "negative",
        "Just good enough.": "positive",
        "A gem!": "positive",
    }
    assert numbered <= rows.keys()
    assert all(rows[f"Film number {i} of many."] == "positive" for i in range(1, 400, 2))


def test_no_text_is_in_two_splits_and_their_sizes_are_near_their_shares(
    made: Path, script: ModuleType
) -> None:
    splits = rows_of(made)
    texts = [{script.normalised(text) for text, _ in part} for part in splits.values()]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 404
    shares = {split: len(part) / 404 for split, part in splits.items()}
    assert shares == pytest.approx({"train": 0.7, "dev": 0.15, "test": 0.15}, abs=0.06)


def test_a_split_does_not_depend_on_the_other_snippets(
    made: Path, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = SNIPPETS[:200][::-1]
    monkeypatch.setattr(script, "download", lambda folder: write_sdist(folder / "v.tgz", some))
    script.main(["--out", str(tmp_path / "part")])
    part, whole = rows_of(tmp_path / "part"), rows_of(made)
    assert sum(map(len, part.values())) > 150
    for split, rows in part.items():
        assert set(rows) <= set(whole[split])


def test_what_is_there_is_left_as_it_is(
    made: Path,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (made / "train.parquet").stat().st_mtime_ns
    monkeypatch.setattr(script, "download", lambda folder: pytest.fail("downloaded again"))
    script.main(["--out", str(made)])
    assert (made / "train.parquet").stat().st_mtime_ns == before
    printed = capsys.readouterr().out
    assert f"{made}: already there" in printed
    assert f"train {len(rows_of(made)['train']):5} rows: " in printed


def test_another_file_than_the_pinned_one_is_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Done:
        returncode = 0
        stderr = ""

    def run(command: list[str], **_: object) -> Done:
        (Path(command[command.index("--dest") + 1]) / "other.tar.gz").write_bytes(b"other")
        return Done()

    monkeypatch.setattr(script.subprocess, "run", run)
    with pytest.raises(SystemExit, match="has SHA-256 d9298a10d1b0735837dc4bd85dac641b0f3cef27"):
        script.download(tmp_path)
