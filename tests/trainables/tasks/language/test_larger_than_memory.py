"""A set that is read a part at a time is the same task as one that is read whole."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from spaces.errors import DataError, JobError
from tests.trainables.tasks.kinds.examples import CHAT, make_kind, write_decoder
from trainables.tasks import files, mapped, paced, rows
from trainables.tasks.language import sequences, token_files
from trainables.tasks.language.sequences import Sequences
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import Task, build_task

Row = dict[str, Any]
WORDS = ("good", "plot", "dull", "film", "zoë", "und", "so\nweiter", "🙂")
NUMBER = 53


def text(i: int) -> str:
    generator = np.random.default_rng(i % (NUMBER - 7))  # seven rows are there twice
    return " ".join(generator.choice(WORDS, generator.integers(2, 9)))


def asked(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": text(i)}, {"role": "assistant", "content": str(i % 9)}]


FORMS: dict[str, tuple[Row, Callable[[int], Row]]] = {
    "text": ({"kind": "causal", "text": "t"}, lambda i: {"t": text(i)}),
    "prompt": (
        {"kind": "causal", "prompt": "p", "completion": "c"},
        lambda i: {"p": text(i), "c": f" {i % 9}"},
    ),
    "template": (
        {"kind": "causal", "template": "Q: {p}\nA:", "completion": "c", "delimiter": " "},
        lambda i: {"p": text(i), "c": str(i % 9)},
    ),
    "conversation": (
        {"kind": "causal", "messages": "m", "chat_template": CHAT, "max_length": 120},
        lambda i: {"m": asked(i)},
    ),
    "alpaca": (
        {"kind": "causal", "map": "alpaca", "max_length": 250},
        lambda i: {"instruction": text(i), "input": "" if i % 2 else text(i + 1), "output": "x"},
    ),
    "written": (
        {"kind": "generation", "template": "Q: {p}\nA:", "completion": "c"},
        lambda i: {"p": text(i), "c": str(i % 9)},
    ),
}


def write_lines(path: Path, made: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n\n" for row in made), encoding="utf-8")
    return path


def write_utf16(path: Path, made: list[Row]) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in made)
    path.write_text(lines, encoding="utf-16", newline="")
    return path


def write_array(path: Path, made: list[Row]) -> Path:
    path.write_text(json.dumps(made), encoding="utf-8")
    return path


def write_parquet(path: Path, made: list[Row]) -> Path:
    place = path.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), place, row_group_size=11)
    return place


def write_saved(path: Path, made: list[Row]) -> Path:
    place = path.with_suffix("")
    datasets.Dataset.from_list(made).save_to_disk(str(place))
    return place


FORMATS = {
    "lines": write_lines, "utf-16": write_utf16, "array": write_array, "parquet": write_parquet,
    "saved": write_saved,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_decoder("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Makes every set larger than memory; the cache is a folder of the test's own."""
    monkeypatch.setenv("RANKSWEEP_CACHE", str(tmp_path / "cache"))

    def apply() -> None:
        monkeypatch.setattr(files, "STREAMED_BYTES", 0)
        monkeypatch.setattr(files, "PART", 200)
        monkeypatch.setattr(rows, "BLOCK", 90)
        monkeypatch.setattr(token_files, "AT_ONCE", 64)

    return apply


def settings_of(folder: Path, form: str, write: Callable[[Path, list[Row]], Path]) -> TaskSettings:
    section, row = FORMS[form]
    places = {}
    for split, numbers in (("train", range(NUMBER)), ("dev", range(40, 62))):
        places[split] = str(write(folder / f"{split}.json", [row(i) for i in numbers]))
    return TaskSettings.model_validate({"name": "t", "data": places, "max_length": 40, **section})


def arrays_of(task: Task) -> Iterator[tuple[str, Any]]:
    for split, part in task.splits.items():
        assert isinstance(part, Sequences)
        for name in ("input_ids", "targets_mask", "offsets"):
            yield f"{split}/{name}", getattr(part, name)


def assert_same(one: Task, other: Task) -> None:
    for (name, array), (_, wanted) in zip(arrays_of(one), arrays_of(other), strict=True):
        np.testing.assert_array_equal(array, wanted, err_msg=name)
    for field in ("fingerprint", "train_fingerprint", "rows", "longest", "example"):
        assert getattr(one, field) == getattr(other, field)
    said, wanted = (
        [note for note in task.notes if "too many for memory" not in note] for task in (one, other)
    )
    assert said == wanted


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind_of_file", FORMATS)
def test_it_is_the_task_that_it_is_when_read_whole(
    base: str, tmp_path: Path, small_memory: Callable[[], None], form: str, kind_of_file: str
) -> None:
    settings = settings_of(tmp_path, form, FORMATS[kind_of_file])
    whole = build_task(settings, base)
    assert not whole.files
    small_memory()
    made = build_task(settings, base)
    assert_same(made, whole)
    if kind_of_file == "array":  # which has no parts
        assert not made.files
        return
    assert len(made.files) == 6, "three arrays of each of two splits"
    assert sum("too many for memory" in note for note in made.notes) == 2


def test_a_choice_of_its_rows_and_a_part_divided_off_are_the_same(
    base: str, tmp_path: Path, small_memory: Callable[[], None]
) -> None:
    settings = settings_of(tmp_path, "prompt", write_lines)
    section = settings.model_dump(exclude_unset=True)
    section["data"] = {"train": section["data"]["train"]}
    section |= {"split": {"source": "train", "dev_fraction": 0.3}, "rows": {"train": 20}}
    settings = TaskSettings.model_validate(section)
    whole = build_task(settings, base)
    small_memory()
    assert_same(build_task(settings, base), whole)


def test_its_tokens_are_made_once_and_anew_where_they_would_be_others(
    base: str,
    tmp_path: Path,
    small_memory: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(tmp_path, "text", write_lines)
    small_memory()
    first, written, write = build_task(settings, base), [], token_files.write

    def counted(key: str, *arguments: Any) -> None:
        written.append(key)
        write(key, *arguments)

    monkeypatch.setattr(token_files, "write", counted)
    again = build_task(settings, base)
    assert written == []
    assert again.notes == first.notes
    assert_same(again, first)
    shorter = settings.model_copy(update={"max_length": 12})
    assert build_task(shorter, base).splits["train"].lengths.max() == 12
    assert len(written) == 2, "of train and of dev"


def test_it_goes_to_another_process_by_name_and_part_by_part(
    base: str, tmp_path: Path, small_memory: Callable[[], None]
) -> None:
    settings = settings_of(tmp_path, "text", write_lines)
    small_memory()
    task = build_task(settings, base)
    for made in (task, task.first("train", 9)):
        sent = pickle.dumps(made, protocol=5)
        assert_same(pickle.loads(sent), made)
        assert task.splits["train"].input_ids[:50].tobytes() not in sent  # type: ignore[attr-defined]
    other = pickle.loads(pickle.dumps(task.splits["train"].input_ids[4:9]))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(other, task.splits["train"].input_ids[4:9])  # type: ignore[attr-defined]
    taken = task.splits["train"].input_ids[[3, 1]]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(taken)), taken)


@pytest.mark.parametrize("lacks", ["offsets", "facts.json", "input_ids"])
@pytest.mark.parametrize("how", ["gone", "empty"])
def test_tokens_that_are_not_whole_are_made_anew(
    base: str,
    tmp_path: Path,
    small_memory: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    lacks: str,
    how: str,
) -> None:
    settings = settings_of(tmp_path, "prompt", write_lines)
    small_memory()
    first = build_task(settings, base)
    wanted = dict(arrays_of(first))
    for file in {Path(file).parent / lacks for file in first.files}:
        file.unlink()
        if how == "empty":
            file.touch()
    again = build_task(settings, base)
    assert again.notes == first.notes
    assert caplog.text.count("were not whole; they are made anew") == 2, "of train and of dev"
    for name, array in arrays_of(again):
        np.testing.assert_array_equal(array, wanted[name])
    assert not [each for each in (tmp_path / "cache/tokens").iterdir() if each.name[0] == "."]


def test_what_nothing_has_used_for_a_month_is_removed(
    base: str, tmp_path: Path, small_memory: Callable[[], None]
) -> None:
    settings = settings_of(tmp_path, "text", write_lines)
    small_memory()
    old = {Path(file).parent for file in build_task(settings, base).files}
    for folder in old:
        os.utime(folder, (0, 0))
    build_task(settings, base)  # which uses them
    used = old.pop()
    for folder in old:
        os.utime(folder, (0, 0))
    build_task(settings.model_copy(update={"max_length": 12}), base)
    assert used.is_dir()
    assert not any(folder.exists() for folder in old)


def test_the_tokens_of_a_base_do_not_depend_on_what_its_tokenizer_did_before(
    base: str, tmp_path: Path, small_memory: Callable[[], None]
) -> None:
    own = tmp_path / "base"
    shutil.copytree(base.removeprefix("path:"), own)
    state = json.loads((own / "tokenizer.json").read_text())
    state["truncation"] = {
        "direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    (own / "tokenizer.json").write_text(json.dumps(state))
    settings = settings_of(tmp_path, "text", write_lines)
    small_memory()
    for _ in range(2):
        build_task(settings, f"path:{own}")
        assert len(list((tmp_path / "cache/tokens").iterdir())) == 2
    config = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps({**config, "split_special_tokens": True}))
    build_task(settings, f"path:{own}")
    assert len(list((tmp_path / "cache/tokens").iterdir())) == 4


def test_a_file_that_is_two_splits_is_said_to_be_cut_in_each(
    base: str, tmp_path: Path, small_memory: Callable[[], None]
) -> None:
    settings = settings_of(tmp_path, "text", write_lines)
    same = {"train": settings.data.dev, "dev": settings.data.dev}
    settings = TaskSettings.model_validate(
        {**settings.model_dump(exclude_unset=True), "data": same}
    )
    whole = build_task(settings, base)
    small_memory()
    assert_same(build_task(settings, base), whole)
    assert sum("are cut at 40 tokens" in note for note in whole.notes) == 2


def test_a_key_that_only_some_rows_have_is_a_column(
    base: str, tmp_path: Path, small_memory: Callable[[], None]
) -> None:
    settings = settings_of(tmp_path, "alpaca", write_lines)
    for split in ("train", "dev"):
        path = tmp_path / f"{split}.json"
        made = [json.loads(line) for line in path.read_text().split("\n") if line]
        for row in made[:20]:
            del row["input"]
        write_lines(path, made)
    whole = build_task(settings, base)
    small_memory()
    assert_same(build_task(settings, base), whole)
    write_lines(
        tmp_path / "train.json", [{"instruction": text(i), "output": "x"} for i in range(9)]
    )
    with pytest.raises(DataError, match="has no column 'input'"):
        build_task(settings, base)


def test_a_set_of_the_hub_is_read_in_parts(
    base: str, tmp_path: Path, small_memory: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        split: datasets.Dataset.from_list([{"t": text(i)} for i in numbers])
        for split, numbers in (("train", range(NUMBER)), ("validation", range(40, 62)))
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, split, **__: made[split])
    settings = TaskSettings.model_validate(
        {"name": "t", "kind": "causal", "text": "t", "data": {"hub": "a/b", "dev": "validation"}}
    )
    whole = build_task(settings, base)
    small_memory()
    task = build_task(settings, base)
    assert_same(task, whole)
    assert len(task.files) == 6


def test_a_kind_that_holds_its_tokens_in_memory_is_read_whole(
    tmp_path: Path, small_memory: Callable[[], None]
) -> None:
    made = make_kind("multiple_choice on llama", tmp_path)
    small_memory()
    task = made.with_()
    assert not task.files
    assert (task.fingerprint, task.notes) == (made.task.fingerprint, made.task.notes)


def test_targets_are_counted_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows = [generator.random(generator.integers(2, 40)) < 0.4 for _ in range(60)]
    split = Sequences.of([([5] * len(row), row.tolist()) for row in rows], 0)
    monkeypatch.setattr(sequences, "TOKENS_AT_ONCE", 30)  # less than some rows have
    np.testing.assert_array_equal(split.targets, [row[1:].sum() for row in rows])


def test_tokens_that_are_gone_are_named(
    base: str, tmp_path: Path, small_memory: Callable[[], None]
) -> None:
    settings = settings_of(tmp_path, "text", write_lines)
    small_memory()
    task = build_task(settings, base)
    sent = pickle.dumps(task)
    for file in task.files:
        Path(file).write_bytes(b"1234")
    with pytest.raises(JobError, match="cut off; remove their folder"):
        pickle.loads(sent)
    for file in task.files:
        Path(file).unlink()
    with pytest.raises(JobError, match=r"cannot be read .*launch again"):
        pickle.loads(sent)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", r"not readable as JSON \(1 of the first \d+ rows, line 61: .*one object a"),
        ("[1]", r"something else than objects in 1 of the first \d+ rows \(line 61\)"),
        ('{"t": "  "}', r"no text in 't' in 1 of the first \d+ rows \(line 61\)"),
        ('{"t": 7, "t": 8}', r"1 of the first \d+ rows \(line 61\)"),
    ],
)
def test_a_fault_in_a_later_part_is_named_by_its_line(
    base: str, tmp_path: Path, small_memory: Callable[[], None], line: str, said: str
) -> None:
    settings = settings_of(tmp_path, "text", write_lines)
    path = tmp_path / "train.json"
    lines = path.read_text().split("\n")
    lines[60] = line
    path.write_text("\n".join(lines))
    small_memory()
    with pytest.raises(DataError, match=said):
        build_task(settings, base)


def test_a_large_table_that_is_read_whole_is_told_of(
    base: str, tmp_path: Path, small_memory: Callable[[], None]
) -> None:
    settings = settings_of(tmp_path, "text", write_lines)
    places = {}
    for split in ("train", "dev"):
        places[split] = str(tmp_path / f"{split}.csv")
        Path(places[split]).write_text("t\n" + "".join(f"a film {split} {i}\n" for i in range(9)))
    settings = TaskSettings.model_validate(
        {**settings.model_dump(exclude_unset=True), "data": places}
    )
    assert not any("read whole" in note for note in build_task(settings, base).notes)
    small_memory()
    said = "so large a .csv file is read whole; JSON lines and Parquet are not"
    assert sum(note.endswith(said) for note in build_task(settings, base).notes) == 2


def test_long_work_is_told_of_now_and_then(
    base: str,
    tmp_path: Path,
    small_memory: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = settings_of(tmp_path, "text", write_lines)
    small_memory()
    monkeypatch.setattr(paced, "EVERY_S", 0.0)
    build_task(settings, base)
    assert "rows have been read" in caplog.text
    assert "rows have become tokens" in caplog.text


def test_a_cache_that_cannot_be_written_is_named(
    base: str,
    tmp_path: Path,
    small_memory: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(tmp_path, "text", write_lines)
    small_memory()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RANKSWEEP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"its rows cannot be written .* RANKSWEEP_CACHE"):
        build_task(settings, base)


@pytest.mark.parametrize("what", ["rows", "tokens"])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(
    base: str,
    tmp_path: Path,
    small_memory: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    settings = settings_of(tmp_path, "text", write_lines)
    small_memory()
    full = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115
    made = tmp_path / "made"

    def folder_on_it(**_: Any) -> str:
        made.mkdir()
        (made / "input_ids").symlink_to("/dev/full")
        return str(made)

    if what == "rows":
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    else:
        monkeypatch.setattr(tempfile, "mkdtemp", folder_on_it)
    with pytest.raises(DataError, match=rf"its {what} cannot be written .*No space left"):
        build_task(settings, base)
    assert not made.exists()
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_a_file_of_another_node_is_read_where_it_has_been_brought(tmp_path: Path) -> None:
    numbers = np.arange(9, dtype=np.int32)
    numbers.tofile(tmp_path / "here")
    mapped.lies_elsewhere("/there/numbers", str(tmp_path / "here"))
    np.testing.assert_array_equal(mapped.opened("/there/numbers", "<i4", 2, 5), numbers[2:7])
    assert len(mapped.opened("/there/none", "<i4", 0, 0)) == 0
