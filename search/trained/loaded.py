"""A trained trial as a model in memory: of transformers' class, its update in its weights."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from search.trained.its_task import its_files, task_settings
from search.trained.predict import Asked
from trainables.bases.location import IMAGE_PROCESSOR_FILES, TOKENIZER_FILES
from trainables.bases.parts import quiet
from trainables.tasks.kinds.registry import kind_of
from trainables.tasks.kinds.usage import Tokenizing
from trainables.trained.answering import Answering
from trainables.trained.merged_checkpoint import merge_into_base
from trainables.trained.processor import write_processor
from trainables.trained.restored import load_its_base, restored


@dataclass(frozen=True)
class Loaded:
    """What `export --to merged` would write, in memory.

    `answering` has the model and answers rows of its task; `tokenizer` and `image_processor` are as
    the export has them, None where the base has none.
    """

    run_id: str
    confirms: str | None
    answering: Answering
    tokenizer: Any | None
    image_processor: Any | None


def load_trial(asked: Asked, device: torch.device) -> Loaded:
    """Load a trial with its update merged into its base.

    Raises UsageError where the run has kept no weights or its update cannot be merged, and
    BaseModelError where the base cannot be had or is another.
    """
    run = asked.run
    trained = run.trained(own_code=asked.own_code)
    settings = task_settings(run, own_code=asked.own_code)
    labels = trained.facts.labels
    base = load_its_base(trained.facts, asked.base_uri, device)
    with restored(trained, run.plan(), base) as adaptation:
        merge_into_base(adaptation, base, labels)
        head = {name: base.model.get_submodule(name) for name in trained.facts.head_modules}
    for name, module in head.items():
        base.model.set_submodule(name, module)
    with its_files(run):
        tokenizing = kind_of(settings.kind).tokenizing(settings)
    return Loaded(
        run.run_id,
        asked.confirms,
        Answering(settings, labels, base.model, device, base.uri),
        *_processors(base.uri, tokenizing),
    )


def _processors(base_uri: str, tokenizing: Tokenizing | None) -> tuple[Any | None, Any | None]:
    """The tokenizer and the image processor, as far as the base has them."""
    with tempfile.TemporaryDirectory(prefix="ranksweep-") as place, quiet():
        folder = Path(place)
        write_processor(base_uri, folder, tokenizing)

        def has(names: tuple[str, ...]) -> bool:
            return any((folder / name).is_file() for name in names)

        tokenizer = processor = None
        if has(TOKENIZER_FILES):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        if has(IMAGE_PROCESSOR_FILES):
            processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return tokenizer, processor
