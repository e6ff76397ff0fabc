"""The page of the tasks shows rows as a base reads them, and the examples as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from search.config.yaml_file import parse_yaml
from tests.conftest import EXAMPLES
from tests.trainables.tasks.language.decoders import byte_tokenizer, decoder
from trainables.tasks.kinds.registry import KINDS
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import build_task

PAGE = (EXAMPLES.parent / "docs/tasks.md").read_text(encoding="utf-8")
SHOWN = re.findall(
    r"<!-- sweep -->\n```yaml\n([^`]*)```\n\n```json\n([^`]*)```\n\n```text\n([^`]*)```", PAGE
)


def test_the_page_has_a_section_and_the_metrics_of_every_kind() -> None:
    for name in KINDS:
        assert f"\n## {name}\n" in PAGE
    for name in ("classification", "regression", "multiple_choice", "causal", "generation"):
        (line,) = [row for row in PAGE.splitlines() if row.startswith(f"| [`{name}`]")]
        assert re.findall(r"`(\w+)`", line.split("|")[4]) == list(KINDS[name].metrics)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a tiny Llama, whose end token is </s>."""
    folder = tmp_path_factory.mktemp("llama")
    model = decoder("llama", torch.float32)
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return f"path:{folder}"


@pytest.mark.parametrize(("sweep", "row", "read"), SHOWN)
def test_a_row_is_read_as_the_page_shows_it(
    base: str, tmp_path: Path, sweep: str, row: str, read: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(json.loads(row)) + "\n")
    data = dict.fromkeys(("train", "dev"), str(tmp_path / "rows.jsonl"))
    task = {**parse_yaml(sweep, "the page")["task"], "data": data}
    example = build_task(TaskSettings.model_validate(task), base).example
    shown = "".join(f"⟦{text}⟧" if bears_loss else text for text, bears_loss in example)
    assert shown == read.removesuffix("\n")


def test_five_rows_are_shown() -> None:
    assert len(SHOWN) == 5


def test_the_page_shows_the_examples_as_they_are() -> None:
    shown = re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in shown] == ["examples/own_metric.py", "examples/own_kind.py"]
    for name, text in shown:
        assert text == (EXAMPLES.parent / name).read_text(encoding="utf-8")
