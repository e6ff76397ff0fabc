"""How well what is written fits its references: a row's statistics, and the metric of their sums.

A metric of a split is a function of the sum of its rows' statistics, so that two models can be
compared by drawing rows anew. The metrics are those of sacrebleu and rouge-score, which are
imported where they compute; exact match is lm-eval's.
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from spaces.errors import ConfigError, DataError, nearest, shown
from trainables.tasks.language.extraction import ExtractSettings
from trainables.tasks.row_metrics import ROW_METRICS, measured_on, weighted

Sums = NDArray[np.float64]
References = Sequence[tuple[str, ...]]
"""The accepted answers of each row, one at least."""
WRITTEN_METRICS = ("exact_match", "accuracy", "f1", "bleu", "rouge1", "rouge2", "rougeL")
CLASS_METRICS = ("accuracy", "f1")
MOST_CLASSES = 200  # more are no classes, and f1 counts three numbers of each for every row
BLEU_ORDER = 4  # the longest n-gram that BLEU counts
_AROUND = " \t\r\n.,;:!?\"'`*()[]{}"  # what may stand around a word without being a part of it


class WrittenMetric(ABC):
    """A metric of texts; a larger one is better. `name` is that among ROW_METRICS."""

    name: str

    @abstractmethod
    def rows(self, written: Sequence[str], references: References) -> Sums:
        """Statistics float64 [n, k] of each row, k the same for all rows of a split."""

    def value(self, sums: Sums) -> NDArray[np.float64]:
        """The metric [...] of rows whose statistics sum up to `sums` [..., k]."""
        of_sums = ROW_METRICS[self.name].of_sums
        assert of_sums is not None, "those of texts are all of sums"
        return of_sums(sums)

    def __call__(self, written: Sequence[str], references: References) -> float:
        """The metric of a split. Raises DataError where a row has no reference."""
        check_references(references)
        return measured_on(self.name, self.rows(written, references))


def written_metric(
    name: str,
    *,
    extract: ExtractSettings | None = None,
    references: References = (),
    positive: str | None = None,
) -> WrittenMetric:
    """The metric called `name`, of what `extract` takes of a text; None takes it whole.

    `references` are those of the split that is measured: the classes of `accuracy` and `f1` are the
    answers that occur in it. `positive` is the one of two that f1 counts as positive; None is the
    second of them, in numeric order or else by code point.

    Raises ConfigError where there is no such metric, or `positive` is none of the two classes.
    """
    if name in CLASS_METRICS:
        classes = classes_written(references, extract)
        if name == "accuracy":
            return ClassAccuracy(extract, classes)
        return ClassF1(extract, classes, _positive(classes, positive))
    if name == "exact_match":
        return ExactMatch(extract)
    if name == "bleu":
        return Bleu(extract)
    if name in WRITTEN_METRICS:
        return Rouge(extract, name)
    raise ConfigError(
        f"task.metric: {name!r} does not measure what is written; {nearest(name, WRITTEN_METRICS)}"
    )


def check_references(references: References) -> None:
    """Raise DataError where a row has no accepted answer."""
    lacking = [row for row, accepted in enumerate(references) if not accepted]
    if lacking:
        raise DataError(
            f"task.completion: row {lacking[0]} has no accepted answer, as {len(lacking):,} of "
            f"{len(references):,}; give each one at least, or leave those rows out"
        )


def classes_written(
    references: References, extract: ExtractSettings | None = None
) -> tuple[str, ...]:
    """The answers that occur, in order: numerically where all are integers, else by code point."""
    from trainables.tasks.classes import label_names  # which comes to ask the kinds for metrics

    answers = (_reference(extract, each) for accepted in references for each in accepted)
    return label_names(answers)


def check_extracted(split: str, references: References, extract: ExtractSettings) -> None:
    """Raise DataError where a pattern finds no answer in all references of a split."""
    answers = [extract.answer(each) for accepted in references for each in accepted]
    if any(answers):
        return
    found = "nothing" if all(each is None for each in answers) else "an empty text"
    raise DataError(
        f"task.extract: finds {found} in every answer of {split}, such as "
        f"{shown(repr(references[0][0]), 60)}; correct the pattern, or drop it"
    )


def check_classes_written(
    metric: str, split: str, references: References, extract: ExtractSettings | None
) -> None:
    """Raise DataError where a split has so many different answers that they are no classes."""
    different = len(classes_written(references, extract))
    if different > MOST_CLASSES:
        raise DataError(
            f"task.metric: {metric} is of the word written, and {split} has {different:,} "
            "different answers; use exact_match, rougeL or bleu, or task.extract"
        )


def commonest_answer(references: References, extract: ExtractSettings | None) -> tuple[str, str]:
    """The answer that most rows accept, as it is compared, and a text that gives it.

    Where the pattern finds no answer in any reference, the reference that most rows have.
    """
    counts: Counter[str] = Counter()
    text_of: dict[str, str] = {}
    for accepted in references:
        counts.update({_reference(extract, each) for each in accepted})
        for each in accepted:
            if (answer := _answer(extract, each)) is not None:
                text_of.setdefault(answer, each)
    answer = max(text_of or counts, key=lambda each: (counts[each], each))
    return answer, text_of.get(answer, answer)


def _positive(classes: Sequence[str], positive: str | None) -> int | None:
    """The place of the class that f1 counts; None where it is the mean over the classes."""
    if positive is None:
        return 1 if len(classes) == 2 else None
    if len(classes) != 2 or positive not in classes:
        raise ConfigError(
            f"task.positive_class: {shown(repr(positive))} is not one of two answers of the split "
            f"({', '.join(shown(repr(each), 40) for each in classes[:10])}); drop it, or name one "
            "of two"
        )
    return list(classes).index(positive)


def _answer(extract: ExtractSettings | None, text: str) -> str | None:
    return text.strip() if extract is None else extract.answer(text)


def _reference(extract: ExtractSettings | None, text: str) -> str:
    """A reference's answer; one that the pattern does not match is its own answer."""
    answer = _answer(extract, text)
    if answer is None and extract is not None:
        return extract.normalised(text)
    return answer or ""


class _Of(WrittenMetric):
    """A metric of what is extracted."""

    def __init__(self, extract: ExtractSettings | None) -> None:
        self._extract = extract

    def _pairs(
        self, written: Sequence[str], references: References
    ) -> list[tuple[str | None, list[str]]]:
        return [
            (_answer(self._extract, text), [_reference(self._extract, each) for each in accepted])
            for text, accepted in zip(written, references, strict=True)
        ]


class _Mean(_Of):
    """The mean of a score of each row: statistics are the score and 1."""

    def rows(self, written: Sequence[str], references: References) -> Sums:
        scores = [self._score(*pair) for pair in self._pairs(written, references)]
        return weighted(np.array(scores), np.ones(len(scores)))

    @abstractmethod
    def _score(self, answer: str | None, accepted: list[str]) -> float:
        """Of an answer, None where nothing was extracted, against what is accepted."""


class ExactMatch(_Mean):
    """Share of rows whose answer is one of the accepted ones, sign for sign."""

    name = "exact_match"

    def _score(self, answer: str | None, accepted: list[str]) -> float:
        return float(answer is not None and answer in accepted)


class Rouge(_Mean):
    """Mean of rouge-score's F-measure, 0 to 1, the best over a row's references.

    Words are not stemmed, as in Hugging Face's `evaluate`. rouge-score knows the letters a to z and
    digits alone: texts in other scripts score 0.
    """

    def __init__(self, extract: ExtractSettings | None, name: str) -> None:
        super().__init__(extract)
        from rouge_score.rouge_scorer import RougeScorer

        self.name, self._scorer = name, RougeScorer([name], use_stemmer=False)

    def _score(self, answer: str | None, accepted: list[str]) -> float:
        return float(self._scorer.score_multi(accepted, answer or "")[self.name].fmeasure)


class Bleu(_Of):
    """sacrebleu's corpus BLEU, 0 to 100, over all references of a row.

    Statistics are the lengths of what is written and of the reference nearest in length, and of
    each order up to 4 the n-grams that are right and all of them.
    """

    name = "bleu"

    def rows(self, written: Sequence[str], references: References) -> Sums:
        from sacrebleu.metrics import BLEU

        # The order of a sentence's own score has no part in its counts; it only silences a warning.
        sentence = BLEU(effective_order=True)
        scores = [
            sentence.sentence_score(answer or "", accepted)
            for answer, accepted in self._pairs(written, references)
        ]
        statistics = [[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores]
        return np.array(statistics, dtype=np.float64).reshape(len(scores), 2 + 2 * BLEU_ORDER)


class _OfClasses(_Of):
    """What is written, as one of the classes of the split.

    A class is written where the answer is it, or the only class that is alike but for case, Unicode
    forms, spaces and the signs around it; anything else is no class, and wrong.
    """

    def __init__(self, extract: ExtractSettings | None, classes: Sequence[str]) -> None:
        super().__init__(extract)
        self._number = len(classes)
        self._exactly = {name: place for place, name in enumerate(classes)}
        self._nearly: dict[str, int | None] = {}
        for place, name in enumerate(classes):
            if word := _word(name):
                self._nearly[word] = None if word in self._nearly else place

    def _class(self, answer: str | None) -> int | None:
        if answer is None:
            return None
        exact = self._exactly.get(answer)
        return self._nearly.get(_word(answer)) if exact is None else exact

    def _places(
        self, written: Sequence[str], references: References
    ) -> Iterable[tuple[int | None, int]]:
        """What each row is predicted to be and what it is: of several accepted, the predicted."""
        for answer, accepted in self._pairs(written, references):
            true = [self._exactly[each] for each in accepted]
            predicted = self._class(answer)
            yield predicted, (predicted if predicted in true else true[0])


def _word(text: str) -> str:
    """What two ways to write one word have in common."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", plain).strip(_AROUND)


class ClassAccuracy(_OfClasses):
    """Share of rows of which the class is written."""

    name = "accuracy"

    def rows(self, written: Sequence[str], references: References) -> Sums:
        right = [float(a == b) for a, b in self._places(written, references)]
        return weighted(np.array(right), np.ones(len(right)))


class ClassF1(_OfClasses):
    """F1 of the positive class of two, or the mean over the classes that are there or are written.

    Statistics are of each class, or of the positive one alone: how often it is rightly written,
    written, and there.
    """

    name = "f1"

    def __init__(
        self, extract: ExtractSettings | None, classes: Sequence[str], positive: int | None
    ) -> None:
        super().__init__(extract, classes)
        self._positive = positive

    def rows(self, written: Sequence[str], references: References) -> Sums:
        counts = np.zeros((len(written), 3, self._number))
        for row, (predicted, true) in enumerate(self._places(written, references)):
            counts[row, 2, true] = 1
            if predicted is not None:
                counts[row, 1, predicted] = 1
                counts[row, 0, predicted] = float(predicted == true)
        if self._positive is not None:
            counts = counts[:, :, [self._positive]]
        return counts.reshape(len(written), -1)
