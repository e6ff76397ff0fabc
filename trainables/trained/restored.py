"""A trained trial, put together again from its base, its plan and its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spaces.errors import BaseModelError, UsageError
from spaces.plan import Plan
from trainables.adaptations.adaptation import Adaptation
from trainables.adaptations.registry import adaptation_for
from trainables.bases.heads import is_within
from trainables.bases.loading import Base, load_base
from trainables.bases.quantization import Quantization
from trainables.tasks.kinds.registry import kind_of
from trainables.trained.weights import Trained, TrainedFacts


def load_its_base(
    facts: TrainedFacts,
    uri: str | None = None,
    device: torch.device | str = "cpu",
    quantization: Quantization | None = None,
) -> Base:
    """Load the base that a trial was trained on, in its dtype, from where it was or from `uri`.

    Its weights are as they are in its files, unless a `quantization` is wanted.
    Raises BaseModelError where there is no such base, or one of other content.
    """
    # transformers imports DeepSpeed to save a model, and that warns of a machine without a GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    place = facts.base_uri if uri is None else uri
    try:
        base = load_base(
            place,
            kind_of(facts.task_kind).head,
            len(facts.labels) or 1,
            getattr(torch, facts.dtype),
            device,
            quantization,
        )
    except BaseModelError as error:
        if uri is not None:
            raise
        raise BaseModelError(f"{error}; or name where the base is now with --base") from error
    if base.fingerprint != facts.base_fingerprint:
        raise BaseModelError(
            f"base: {place} is not the base that was trained (its fingerprint begins with "
            f"{base.fingerprint[:12]}, that of the trial's base with "
            f"{facts.base_fingerprint[:12]}); name a copy of the trial's base with --base"
        )
    return base


@contextmanager
def restored(trained: Trained, plan: Plan, base: Base) -> Iterator[Adaptation]:
    """While open, the base computes what the trial has trained: its update and its head, frozen.

    Raises UsageError where weights, plan and base do not belong together.
    """
    heads = trained.facts.head_modules
    # A base's own head was once kept, wholly or in part, and is as it was in the base.
    kept = base.head.in_key is not None and all(
        is_within(name, base.head_modules) for name in heads
    )
    if set(heads) != set(base.head_modules) and not kept:
        raise UsageError(
            f"weights: hold the head {', '.join(heads) or '(none)'} where the "
            f"base wants {', '.join(base.head_modules) or 'none'}; use the base of the trial"
        )
    head = trained.head_for(base.model)
    with adaptation_for(plan, base.model, seed=trained.facts.seed, head=head) as adaptation:
        adaptation.load(trained.weights)
        base.model.eval()
        adaptation.eval()
        yield adaptation
