"""The code of an exported folder's README gives what the trial gives in memory, of every kind.

The first row of the task's data is the one that the README takes for its example.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.trained.export import export
from spaces.errors import ConfigError
from tests.search.trained.readmes import run_by_readme
from tests.search.trial_runs import TrialRuns
from tests.trainables.families import Made
from tests.trainables.trained_examples import CHOICES, Example
from tests.trainables.trained_writers import (
    MARKED_CHAT,
    WRITERS,
    task_on,
    trained_writer,
    write_base,
)
from trainables.engine.workers import join
from trainables.tasks.kinds.multiple_choice import choices_of
from trainables.tasks.rows import load_rows
from trainables.trained.restored import restored

pytestmark = pytest.mark.command  # each trains, exports and runs what the README says
CHOICE = CHOICES["pilora"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrialRuns:
    return TrialRuns(tmp_path_factory.mktemp("tracking"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_base("tied llama", tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def closing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base whose tokenizer puts its end token behind a text."""
    return write_base("qwen2", tmp_path_factory.mktemp("qwen2") / "base", last="</s>")


Exported = Callable[..., tuple[dict[str, Any], Any, tuple[Made, int]]]


@pytest.fixture(params=["peft", "merged"])
def exported(request: pytest.FixtureRequest, runs: TrialRuns, tmp_path: Path) -> Exported:
    """Export a trial of a task; returns what the README's code leaves, what the trial's kind reads
    of the example's row in memory, and the task with that row's place in dev."""

    def run(uri: str, kind: str, row: tuple[str, ...], **section: Any) -> Any:
        made = task_on(uri, tmp_path / "data", kind, WRITERS["llama"].suffixes, **section)
        example = trained_writer(made, CHOICE)
        run_id = runs.trial(made, CHOICE, example.plan, example.trained)
        export(runs.uri, run_id, request.param, tmp_path / "out")
        names = run_by_readme(tmp_path / "out")
        place = load_rows(made.settings)["dev"].inputs.index(row)
        return names, read_in_memory(made, example, place), (made, place)

    return run


def read_in_memory(made: Made, example: Example, row: int) -> Any:
    """What the kind reads of a row of dev; of what is written, the text."""
    kind = made.task.its_kind
    with restored(example.trained, example.plan, example.base):
        read = kind.readings(example.base.model, made.task, "dev", join())
    if hasattr(read, "written"):
        return read.written[row]
    targets = made.task.splits["dev"].targets[row]
    return np.asarray(read[row]), int(targets)


@pytest.mark.parametrize("base", ["llama", "closing"])
@pytest.mark.parametrize(
    ("section", "prompt"),
    [
        ({"prompt": "q"}, "a q"),
        ({"prompt": "q", "metric": "accuracy_per_byte", "delimiter": ": "}, "a q"),
        ({"template": "Q: {q}\n", "metric": "accuracy_per_token"}, "Q: a q\n"),
        ({"template": "<s>{q}? {{no}}"}, "<s>a q? {no}"),
    ],
)
def test_options_are_scored(
    base: str,
    section: dict[str, Any],
    prompt: str,
    exported: Exported,
    request: pytest.FixtureRequest,
) -> None:
    options = ["bad", "ve\u0301ry good"]
    names, (scores, _), (made, place) = exported(
        request.getfixturevalue(base), "multiple_choice", (prompt, *options), options=options,
        label="right", label_form="index", **section,
    )  # fmt: skip
    assert names["options"] == options
    divided = scores
    if section.get("metric") == "accuracy_per_byte":
        divided = scores / [len(option.encode()) for option in options]
    if section.get("metric") == "accuracy_per_token":
        tokens = choices_of(made.task, "dev").choices.token_counts[place]
        divided = scores / tokens
    assert names["scores"] == pytest.approx(divided.tolist(), rel=1e-4)
    assert names["prediction"] == options[int(divided.argmax())]


@pytest.mark.parametrize("base", ["llama", "closing"])
@pytest.mark.parametrize(
    ("section", "row"),
    [
        ({"prompt": "q", "completion": "a"}, "a q"),
        ({"template": "Q: {q} A:", "completion": "a"}, "Q: a q A:"),
        ({"text": ["q"]}, "a q"),
        ({"template": "{{{q}}}."}, "{a q}."),
        ({"messages": "m"}, None),
        ({"messages": "m", "chat_template": MARKED_CHAT}, None),
        ({"map": {"format": "alpaca", "output": "a"}}, ""),
        ({"map": {"format": "alpaca", "output": "a", "input": None}}, ""),
    ],
)
def test_the_loss_is_that_of_the_trial(
    base: str,
    section: dict[str, Any],
    row: str | None,
    exported: Exported,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    uri = request.getfixturevalue(base)
    whole = {"max_length": 256} if "map" in section else {}
    if row is None:
        content = [("user", "a question"), ("assistant", "an answer")]
        turns = [{"content": said, "role": role} for role, said in content]
        row = json.dumps(turns, separators=(",", ":"))
    elif not row:
        made = task_on(uri, tmp_path / "same", "causal", (), **section, **whole)
        own = "### Instruction:\nan instruction\n"
        (row,) = (str(r[0]) for r in load_rows(made.settings)["dev"].inputs if own in str(r[0]))
    names, (loss, targets), _ = exported(uri, "causal", (row,), **section, **whole)
    assert names["loss"] == pytest.approx(float(loss) / targets, rel=1e-4)


@pytest.mark.parametrize("base", ["llama", "closing"])
@pytest.mark.parametrize(
    "section",
    [
        {"prompt": "q", "completion": "a", "generation": {"max_new_tokens": 12}},
        {"template": "Q: {q}\nA: ", "completion": "a", "generation": {"max_new_tokens": 12}},
        {"messages": "m", "generation": {"max_new_tokens": 12}},
        {"messages": "m", "chat_template": MARKED_CHAT, "generation": {"max_new_tokens": 7}},
    ],
)
def test_the_same_text_is_written(
    base: str, section: dict[str, Any], exported: Exported, request: pytest.FixtureRequest
) -> None:
    """Whatever the base's own generation_config.json says of sampling and penalties."""
    uri = request.getfixturevalue(base)
    row = {"q": "a q", "Q": "Q: a q\nA: "}.get(
        str(section.get("prompt") or section.get("template") or "m")[0],
        '[{"content":"a question","role":"user"},{"content":"an answer","role":"assistant"}]',
    )
    names, text, _ = exported(uri, "generation", (row,), **section)
    assert text
    assert names["text"] == text


def test_what_is_written_ends_at_a_stop_and_its_answer_is_found(
    llama: str, exported: Exported
) -> None:
    section = {
        "prompt": "q",
        "completion": "a",
        "extract": {"pattern": r"(.)", "take": "last", "ignore": ["q"]},
    }
    long, whole, _ = exported(
        llama, "generation", ("a q",), generation={"max_new_tokens": 12}, **section
    )
    assert long["text"] == whole
    assert long["answer"] == re.findall("(.)", whole)[-1].strip().replace("q", "")


def test_a_stop_ends_what_is_written(llama: str, runs: TrialRuns, tmp_path: Path) -> None:
    made = task_on(
        llama, tmp_path / "data", "generation", WRITERS["llama"].suffixes, prompt="q",
        completion="a", generation={"max_new_tokens": 12},
    )  # fmt: skip
    example = trained_writer(made, CHOICE)
    place = load_rows(made.settings)["dev"].inputs.index(("a q",))
    whole = read_in_memory(made, example, place)
    stop = [whole[4:6], "nowhere in it"]
    made = task_on(
        llama, tmp_path / "data", "generation", WRITERS["llama"].suffixes, prompt="q",
        completion="a", generation={"max_new_tokens": 12, "stop": stop},
    )  # fmt: skip
    run_id = runs.trial(made, CHOICE, example.plan, example.trained)
    export(runs.uri, run_id, "peft", tmp_path / "out")
    assert run_by_readme(tmp_path / "out")["text"] == whole[: whole.index(stop[0])]


@pytest.mark.parametrize(
    ("section", "row"), [({"text": ["q"]}, "a q"), ({"template": "Q: {q}"}, "Q: a q")]
)
def test_the_number_of_a_text(
    section: dict[str, Any], row: str, llama: str, exported: Exported
) -> None:
    names, (number, _), _ = exported(llama, "regression", (row,), label="number", **section)
    assert names["predictions"][0] == pytest.approx(float(number[0]), rel=1e-4)
    assert names["model"].config.num_labels == 1
    assert names["tokenizer"].padding_side == "right"


def test_the_class_of_a_text_that_a_template_composes(llama: str, exported: Exported) -> None:
    names, (logits, _), _ = exported(
        llama, "classification", ("Q: a q",), label="right", template="Q: {q}"
    )
    assert names["logits"][0].tolist() == pytest.approx(logits.tolist(), rel=1e-4)
    assert names["predictions"] == [["0", "1"][int(logits.argmax())]]


def test_a_chat_template_that_is_gone_is_told_with_the_way_to_it(
    llama: str, runs: TrialRuns, tmp_path: Path
) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(MARKED_CHAT)
    made = task_on(
        llama, tmp_path / "data", "causal", WRITERS["llama"].suffixes, messages="m",
        chat_template=str(file),
    )  # fmt: skip
    example = trained_writer(made, CHOICE)
    run_id = runs.trial(made, CHOICE, example.plan, example.trained)
    export(runs.uri, run_id, "peft", tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == MARKED_CHAT
    file.unlink()
    with pytest.raises(ConfigError, match=rf"^{run_id}: task.chat_template: .* run this there$"):
        export(runs.uri, run_id, "peft", tmp_path / "other")
    assert not (tmp_path / "other").exists()
