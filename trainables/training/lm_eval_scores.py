"""lm-eval on a model in memory, its requests shared by the workers of a group.

This file needs the package lm-eval; whoever imports it has checked that it is there.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from spaces.errors import one_line
from trainables.engine.divided import together
from trainables.engine.failures import out_of_memory
from trainables.engine.workers import CancelledError, Workers
from trainables.training.lm_eval_settings import LmEvalError
from trainables.training.lm_eval_state import undisturbed
from trainables.training.lm_eval_tasks import LmEvalTasks

BOOTSTRAP_ITERS = 1000
"""Resamples for the standard error of a metric that is no mean; lm-eval's own 100,000 take minutes
in one process."""


def lm_eval_scores(
    model: Any,
    tokenizer: Any,
    asked: LmEvalTasks,
    workers: Workers,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """lm-eval's scores of a causal language model as it is now, adapters in place.

    Named `<task>/<metric>`, such as `piqa/acc_norm`, with the filter behind where it is not `none`,
    and its standard error as `piqa/acc_norm_stderr`. They are those of `lm_eval.simple_evaluate` on
    the same function in one process, up to floating-point order, whatever the number of workers.
    `tokenizer` is lm-eval's from here on. The adapters' dropout must be off. The model is left in
    evaluation mode, its weights and settings and the random states as they were.

    Raises LmEvalError on all workers where it fails on one, CancelledError where rank 0 is to stop.
    """
    agreement = _Agreement(workers)
    try:
        with undisturbed(), _resident(model):
            scores = _scores(model, tokenizer, asked, agreement, should_stop)
        agreement.of(None)
    except (_AgreedError, CancelledError):
        raise
    except Exception as failure:  # of lm-eval, a task's own code, memory
        agreement.of(None, failure)
        raise
    return scores


def _scores(
    model: Any,
    tokenizer: Any,
    asked: LmEvalTasks,
    agreement: _Agreement,
    should_stop: Callable[[], bool],
) -> dict[str, float]:
    settings = asked.settings
    _seed()
    tasks = asked.load()
    _set_shots(tasks, settings.num_fewshot)
    lm = _Shared(model, tokenizer, settings.batch_size, agreement, should_stop)
    agreement.of(None)  # before anybody waits for another's share
    found: Any = evaluate(
        lm=lm,
        task_dict=tasks,
        limit=settings.limit,
        bootstrap_iters=BOOTSTRAP_ITERS,
        log_samples=False,
    )
    return _named(found["results"])


def _seed() -> None:
    """Seed what `simple_evaluate` seeds, as it does."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)


def _set_shots(tasks: Mapping[str, Any], shots: int | None) -> None:
    """As `simple_evaluate` does: a task that says 0 keeps to it, one that says nothing has 0."""
    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (shots is not None and own != 0):
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


@contextmanager
def _resident(model: Any) -> Iterator[None]:
    """Keep a model's settings, and lm-eval from tying weights whose layers have stand-ins."""
    generation = model.generation_config
    model.generation_config = copy.deepcopy(generation)
    vars(model)["tie_weights"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]
        model.generation_config = generation


def _named(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The numbers among lm-eval's results, under names that MLflow takes."""
    scores = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if not comma or isinstance(value, bool | str) or not np.isscalar(value):
                continue  # "N/A", names and counts
            name = f"{task}/{metric}" if kind == "none" else f"{task}/{metric}/{kind}"
            scores[re.sub(r"[^\w\-. :/]", "_", name)] = float(value)  # type: ignore[arg-type]
    return scores


class _AgreedError(LmEvalError):
    """A failure that every worker knows of."""


class _Agreement:
    """What the workers tell each other after each piece of work: what they have, or why not."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def of(self, value: Any, failure: Exception | None = None) -> list[Any]:
        """Every worker's value. Raises on all of them where one has failed."""
        told = None if failure is None else _told(failure)
        every = self.workers.gather_objects((value, isinstance(failure, CancelledError), told))
        if any(cancelled for _, cancelled, _ in every):
            raise CancelledError
        if (problem := next((told for *_, told in every if told), None)) is not None:
            raise _AgreedError(f"lm-eval: {problem}") from failure
        return [value for value, *_ in every]


def _told(failure: Exception) -> str:
    line = one_line(failure)
    if out_of_memory(failure):
        return f"{line}; lower confirm.lm_eval.batch_size"
    return line


class _Shared(HFLM):  # type: ignore[misc]
    """lm-eval's model of transformers: every worker answers its share of the requests.

    Each builds all requests, so that the worked examples that are drawn are those of one process.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int,
        agreement: _Agreement,
        should_stop: Callable[[], bool],
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self._agreement, self._should_stop = agreement, should_stop

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._shared(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._shared(super().loglikelihood_rolling, requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._shared(super().generate_until, requests)

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        self._stop_if_asked()
        return super()._model_call(*args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        self._stop_if_asked()
        return super()._model_generate(*args, **kwargs)

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            raise CancelledError

    def _shared(self, answer: Callable[..., list[Any]], requests: Sequence[Any]) -> list[Any]:
        workers = self._agreement.workers
        places = workers.share(_by_row(requests))
        mine = [place for row in places for place in row]
        found: list[Any] = []
        failure: Exception | None = None
        try:
            with together(self.model):
                found = answer([requests[place] for place in mine]) if mine else []
        except Exception as error:
            failure = error
        answers: dict[int, Any] = {}
        for each in self._agreement.of(list(zip(mine, found, strict=False)), failure):
            answers.update(each)
        return [answers[place] for place in range(len(requests))]


def _by_row(requests: Sequence[Any]) -> list[list[int]]:
    """The requests' places, those of one row of a task together: lm-eval shares their beginning."""
    rows: dict[Any, list[int]] = {}
    for place, request in enumerate(requests):
        rows.setdefault((request.task_name, request.doc_id), []).append(place)
    return list(rows.values())
