"""Metrics of what is written agree with sacrebleu, rouge-score, scikit-learn and lm-eval."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from pydantic import TypeAdapter, ValidationError
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, f1_score

from spaces.errors import ConfigError, DataError
from trainables.tasks.language.extraction import Extract, ExtractSettings
from trainables.tasks.language.written_metrics import (
    WRITTEN_METRICS,
    References,
    check_extracted,
    check_references,
    written_metric,
)
from trainables.tasks.rows import load_rows
from trainables.tasks.settings import TaskSettings

WORDS = ("the", "cat", "sat", "on", "a", "mat", "Ünïcode", "日本語", "42", "end.")
GSM8K = ExtractSettings(
    pattern=r"#### (\-?[0-9\.\,]+)", ignore=(",", r"\$", r"(?s).*#### ", r"\.$"), ignore_case=True
)
ANSWERS = (
    "She has 3 + 4 = 7.\n#### 7",
    "#### 1,234.\n#### 5",
    "no number at all",
    "",
    "#### $12",
    "It is #### -3.5. Or 9",
    "####8",
    "#### 70",
)
SOLUTIONS = ("so\n#### 7", "#### 1234", "#### 5", "#### 0", "#### 12", "#### -3.5", "8", "#### 7")


def made_up(rows: int, most: int, seed: int = 0) -> tuple[list[str], list[tuple[str, ...]]]:
    """Texts of 0 to 12 words, and 1 to `most` references of each, some near what is written."""
    rng = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(0, 13)))

    written = [text() for _ in range(rows)]
    references = [
        tuple(
            text() if rng.random() < 0.5 else f"{each} {text()}"
            for _ in range(rng.integers(1, most + 1))
        )
        for each in written
    ]
    return written, references


def scored(name: str, written: Sequence[str], references: References) -> float:
    return written_metric(name, references=references)(written, references)


@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_that_of_sacrebleus_corpus(most: int, seed: int) -> None:
    written, references = made_up(20, most, seed)
    streams = [
        [each[i] if i < len(each) else None for each in references]
        for i in range(max(map(len, references)))
    ]
    whole = sacrebleu.corpus_bleu(written, streams).score
    assert scored("bleu", written, references) == pytest.approx(whole, abs=1e-9)


def test_bleu_is_that_of_the_rows_that_were_drawn_however_often() -> None:
    written, references = made_up(12, 1)
    metric = written_metric("bleu")
    rows = metric.rows(written, references)
    draws = np.random.default_rng(1).integers(0, 12, (7, 12))
    values = metric.value(rows[draws].sum(axis=1))
    for value, draw in zip(values, draws, strict=True):
        drawn = [written[i] for i in draw], [[references[i][0] for i in draw]]
        assert value == pytest.approx(sacrebleu.corpus_bleu(*drawn).score, abs=1e-9)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_the_mean_over_rows_of_the_best_reference(name: str) -> None:
    written, references = made_up(30, 3)
    scorer = RougeScorer([name], use_stemmer=False)
    best = [
        max(scorer.score(each, text)[name].fmeasure for each in accepted)
        for text, accepted in zip(written, references, strict=True)
    ]
    assert scored(name, written, references) == pytest.approx(np.mean(best), abs=1e-12)


@pytest.mark.parametrize("pattern", [GSM8K.pattern, r"-?[$0-9.,]{2,}|-?[0-9]+"])
@pytest.mark.parametrize("take", ["first", "last"])
def test_exact_match_is_lm_evals_with_its_filter_of_a_pattern(pattern: str, take: str) -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    extract = GSM8K.model_copy(update={"pattern": pattern, "take": take})
    select = 0 if take == "first" else -1
    regex = extraction.RegexFilter(pattern, group_select=select)
    taken = [row[0] for row in regex.apply([[text] for text in ANSWERS], [{}] * len(ANSWERS))]
    theirs = [
        metrics.exact_match_hf_evaluate(
            predictions=[text],
            references=[solution],
            regexes_to_ignore=list(extract.ignore),
            ignore_case=True,
        )["exact_match"]
        for text, solution in zip(taken, SOLUTIONS, strict=True)
    ]
    metric = written_metric("exact_match", extract=extract)
    rows = metric.rows(ANSWERS, [(solution,) for solution in SOLUTIONS])
    assert rows[:, 0].tolist() == [float(each) for each in theirs]
    assert metric.value(rows.sum(axis=0)) == pytest.approx(np.mean(theirs))
    assert 0 < rows[:, 0].sum() < len(rows)


def test_a_written_text_without_a_match_is_wrong_even_where_its_reference_has_none() -> None:
    metric = written_metric("exact_match", extract=ExtractSettings(pattern="[0-9]+"))
    assert metric.rows(["seven", "it is 7"], [("seven",), ("7 apples",)])[:, 0].tolist() == [0, 1]


def test_any_accepted_answer_is_right_and_white_space_around_it_is_not_a_part() -> None:
    references = [("New York", "NYC"), ("é",), ("Paris",)]
    assert scored("exact_match", [" NYC\n", "é", "paris"], references) == pytest.approx(2 / 3)


CLASSES = {2: ("no", "yes"), 3: ("entailment", "neutral", "contradiction")}
WAYS: tuple[Callable[[str], str], ...] = (
    str,
    str.upper,
    lambda word: f" {word}.\n",
    lambda word: f'"{word}"',
    lambda word: f"{word} it is",  # no class
    lambda word: "",
)


@pytest.mark.parametrize("number", [2, 3])
def test_accuracy_and_f1_are_scikit_learns_of_the_words_written(number: int) -> None:
    rng = np.random.default_rng(0)
    classes = CLASSES[number]
    truth = [*classes, *rng.choice(classes, 40).tolist()]
    words, predicted = [], []
    for _ in truth:
        word, way = str(rng.choice(classes)), int(rng.integers(len(WAYS)))
        words.append(WAYS[way](word))
        predicted.append(word if way < 4 else "no class")
    references = [(word,) for word in truth]
    assert scored("accuracy", words, references) == pytest.approx(accuracy_score(truth, predicted))
    how = {"labels": ["yes"], "average": "macro"} if number == 2 else {"average": "macro"}
    f1 = f1_score(truth, predicted, **({"labels": list(classes)} | how), zero_division=0.0)
    assert scored("f1", words, references) == pytest.approx(f1)


def test_f1_counts_the_class_that_is_named_positive() -> None:
    references = [("no",), ("no",), ("yes",)]
    metric = written_metric("f1", references=references, positive="no")
    assert metric(["no", "yes", "yes"], references) == pytest.approx(2 / 3)


def test_numbers_that_differ_in_sign_and_words_that_differ_in_case_stay_apart() -> None:
    assert scored("accuracy", ["-1", "1", "+1"], [("-1",), ("1",), ("1",)]) == pytest.approx(2 / 3)
    assert scored("accuracy", ["", ".", "?"], [("?",), ("?",), ("?",)]) == pytest.approx(1 / 3)
    references = [("us",), ("US",), ("US",)]
    assert scored("accuracy", ["us", "US", "Us"], references) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", WRITTEN_METRICS)
def test_nothing_written_is_worth_nothing(name: str) -> None:
    assert scored(name, ["", ""], [("yes",), ("no",)]) == 0


@pytest.mark.parametrize("name", WRITTEN_METRICS)
def test_an_empty_reference_is_an_answer_like_another(name: str) -> None:
    value = scored(name, ["yes", ""], [("yes",), ("",)])
    assert 0 <= value <= (100 if name == "bleu" else 1)
    if name in ("exact_match", "accuracy"):
        assert value == 1


@pytest.mark.parametrize("name", WRITTEN_METRICS)
def test_what_is_written_as_its_reference_is_worth_most(name: str) -> None:
    texts = ["the cat sat on a mat", "a dog ran to the door"]
    most = 100 if name == "bleu" else 1
    assert scored(name, texts, [(each,) for each in texts]) == pytest.approx(most)


@pytest.mark.parametrize("name", WRITTEN_METRICS)
def test_a_metric_is_one_of_sums_of_rows(name: str) -> None:
    written, references = made_up(16, 2)
    metric = written_metric(name, references=references)
    rows = metric.rows(written, references)
    assert rows.dtype == np.float64
    assert len(rows) == 16
    halves = metric.rows(written[:8], references[:8]).sum(0) + metric.rows(
        written[8:], references[8:]
    ).sum(0)
    assert metric.value(halves) == pytest.approx(metric(written, references))
    stacked = np.stack([halves, rows[3], rows[:5].sum(0)])
    each = [float(metric.value(sums)) for sums in stacked]
    assert metric.value(stacked.reshape(1, 3, -1)).tolist() == [each]


def test_a_row_without_an_accepted_answer_is_refused() -> None:
    with pytest.raises(DataError, match=r"task\.completion: row 1 has no accepted answer, as 1 of"):
        check_references([("a",), ()])


def test_a_metric_that_does_not_measure_texts_and_a_class_that_is_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.metric: 'rouge' does not .* 'rouge\w'\?"):
        written_metric("rouge")
    with pytest.raises(ConfigError, match=r"task\.positive_class: 'maybe' is not one of two"):
        written_metric("f1", references=[("no",), ("yes",)], positive="maybe")


@pytest.mark.parametrize(
    ("given", "key", "said"),
    [
        ("([0-9]+", "pattern", "is no regular expression (missing )"),
        ("(a)|(b)", "pattern", "has 2 groups; write (?:...)"),
        ({"pattern": "a", "ignore": ["["]}, "ignore", "is no regular expression"),
        ({"pattern": "a", "take": "second"}, "take", "'first' or 'last'"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(given: object, key: str, said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Extract).validate_python(given)
    error = refused.value.errors()[0]
    assert error["loc"][0] == key
    assert said in error["msg"]
    assert "\n" not in error["msg"]


def test_a_pattern_alone_takes_the_first_match() -> None:
    extract = TypeAdapter(Extract).validate_python("[0-9]+")
    assert extract == ExtractSettings(pattern="[0-9]+")
    assert extract.answer("7 or 8") == "7"
    assert extract.answer("seven") is None


def asked(folder: Path, answers: int, talks: bool, **task: Any) -> TaskSettings:
    """A task of so many different answers in dev, whose last word is one of two."""
    rows = [("a question", f"answer {i} {'yes' if i % 2 else 'no'}") for i in range(answers)]
    for split, part in (("train", rows[:3]), ("dev", rows)):
        lines = [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            if talks
            else {"q": f"{q} {i}", "a": [a, "an answer 0 no"] if i == 0 else a}
            for i, (q, a) in enumerate(part)
        ]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    columns = {"messages": "messages"} if talks else {"prompt": "q", "completion": "a"}
    data = {split: str(folder / f"{split}.jsonl") for split in ("train", "dev")}
    section = {"name": "t", "kind": "generation", "data": data, **columns, **task}
    return TaskSettings.model_validate(section)


@pytest.mark.parametrize("metric", ["f1", "accuracy"])
@pytest.mark.parametrize("talks", [False, True])
def test_free_text_is_refused_as_classes_before_anything_starts(
    metric: str, talks: bool, tmp_path: Path
) -> None:
    most = 200 if talks else 199  # one row has a second answer
    load_rows(asked(tmp_path, most, talks, metric=metric))
    with pytest.raises(DataError, match=rf"^task.metric: {metric} is .*, and dev has 201 ") as told:
        load_rows(asked(tmp_path, most + 1, talks, metric=metric))
    assert "\n" not in str(told.value)
    load_rows(asked(tmp_path, most + 1, talks, metric="exact_match"))
    load_rows(asked(tmp_path, most + 1, talks, metric=metric, extract="(yes|no)$"))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("ANSWER: (.*)", "finds nothing in"), ("(z*)", "finds an empty text in")],
)
def test_a_pattern_that_finds_no_answer_at_all_is_refused(pattern: str, said: str) -> None:
    extract = ExtractSettings(pattern=pattern)
    references = [("so #### 8",), ("so #### 9", "9")]
    with pytest.raises(DataError, match=rf"^task.extract: {said} every answer of dev, such as"):
        check_extracted("dev", references, extract)
    check_extracted("dev", references, ExtractSettings(pattern="#### ([0-9]+)"))
