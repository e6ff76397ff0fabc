"""The section `task.generation`: how a base writes when it is measured on what it writes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from trainables.settings import Names, Seed, Settings


class GenerationSettings(Settings):
    """How long, until where and how a base writes. Nothing that a base's own generation_config.json
    says of it holds, but its end tokens."""

    max_new_tokens: PositiveInt = 64
    """Tokens that are written at most."""
    stop: Names = ()
    """Strings that end what is written, such as a line's end; the text is cut before the first."""
    do_sample: bool = False
    """Whether tokens are drawn; otherwise each is the likeliest (greedy)."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """What the logits are divided by before a token is drawn; goes with `do_sample`."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """The likeliest tokens whose probabilities reach this are drawn from; goes with `do_sample`."""
    seed: Seed = 0
    """Seed of the draws: what is drawn for a prompt depends on it and the prompt alone."""
    batch_tokens: PositiveInt = 4096
    """Tokens of one batch at most: its rows times the longest prompt and `max_new_tokens`. A longer
    row is a batch of its own, and a batch's keys and values take 2 GiB at most. It decides speed
    and memory, and no text."""

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("has an empty string in it, which every text begins with; remove it")
        return stop

    @field_validator("temperature", "top_p")
    @classmethod
    def _goes_with_sampling(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("do_sample") is False and value != 1.0:
            raise ValueError("goes with do_sample: true; set that, or drop it")
        return value
