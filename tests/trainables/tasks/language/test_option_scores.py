"""Options are scored as if each went through the base behind its prompt, all by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from spaces.errors import DataError
from tests.trainables.tasks.language.decoders import byte_tokenizer, decoder
from trainables.tasks.language import option_scores
from trainables.tasks.language.choice_metrics import hits
from trainables.tasks.language.option_scores import ChoiceRows, choice_rows, option_log_likelihoods

CPU = torch.device("cpu")
PROMPTS = ["the film is", "a film is ", "the plot", "is the film good? answer:", "", "bad " * 30]
OPTIONS = [
    ["good", "bad and the plot is bad", "bad"],
    ["the film", "the film the film", "the plot", " a", "é"],
    [" is bad", " is good"],
    ["yes", "no"],
    ["plot", "film plot film"],
    ["a long answer that is not short at all", "x"],
]


def rows_of(first: str | None = "<s>", max_length: int = 200) -> ChoiceRows:
    return choice_rows(
        byte_tokenizer(first=first), PROMPTS, OPTIONS, [0] * len(PROMPTS), max_length=max_length
    )


def one_by_one(model: Any, rows: ChoiceRows, indices: Sequence[int]) -> NDArray[np.float64]:
    """The brute force: whole sequences, without padding, one at a time."""
    scores = np.full((len(indices), rows.most_options), np.nan)
    for place, index in enumerate(indices):
        prompt, options = rows.row(index)
        for number, option in enumerate(options):
            ids = torch.tensor([[*prompt, *option]])
            with torch.no_grad():
                logs = model(ids).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, ids.shape[1] - 1)
            found = [logs[at, token].item() for at, token in zip(places, option, strict=True)]
            scores[place, number] = sum(found)
    return scores


@pytest.mark.parametrize("first", ["<s>", None])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_scores_are_those_of_whole_sequences(name: str, attention: str, first: str | None) -> None:
    model, rows = decoder(name, attention=attention), rows_of(first)
    indices = [4, 0, 5, 2, 1, 3]
    expected = one_by_one(model, rows, indices)
    for batch_tokens in (1, 90, 4096):
        found = option_log_likelihoods(
            model, rows, np.array(indices), device=CPU, batch_tokens=batch_tokens
        )
        # The eager attention of Llama and Qwen2 takes its softmax in float32 whatever the model's.
        exact = 1e-10 if attention == "sdpa" or name == "gpt2" else 1e-4
        np.testing.assert_allclose(found, expected, rtol=0, atol=exact)


@pytest.mark.parametrize("name", ["bloom", "mamba", "recurrent_gemma", "mistral"])
def test_a_base_of_another_attention_gets_each_option_by_itself(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ALiBi counts distances along the sequence, others have a state or a window that is short."""
    monkeypatch.setattr(option_scores, "visible", lambda *_: pytest.fail("a mask of its own"))
    model, rows = decoder(name), rows_of()
    found = option_log_likelihoods(model, rows, np.arange(len(rows)), device=CPU)
    expected = one_by_one(model, rows, range(len(rows)))
    # Those with a state compute in float32, whatever their weights are in.
    exact = 1e-10 if name in ("bloom", "mistral") else 1e-4
    np.testing.assert_allclose(found, expected, rtol=0, atol=exact)


def test_a_base_that_heeds_no_mask_is_found_out() -> None:
    model, rows = decoder("llama"), rows_of()
    forward = model.forward

    def heedless(position_ids: Any = None, attention_mask: Any = None, **inputs: Any) -> Any:
        mask = attention_mask if attention_mask.ndim == 2 else None
        return forward(position_ids=position_ids, attention_mask=mask, **inputs)

    model.forward = heedless
    found = option_log_likelihoods(model, rows, np.arange(len(rows)), device=CPU)
    model.forward = forward
    expected = one_by_one(model, rows, range(len(rows)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        ["the film the film the film is a good plot", "the film the film the film is bad, bad"],
        ["x", "the film the film the film is a good plot", "the film the film the film is bad, b"],
    ],
)
def test_a_base_that_heeds_no_mask_is_found_out_by_options_that_begin_alike(
    options: list[str],
) -> None:
    model = decoder("llama")
    rows = choice_rows(byte_tokenizer(), ["a film"], [options], [0], max_length=200)
    forward, masks = model.forward, []

    def heedless(position_ids: Any = None, attention_mask: Any = None, **inputs: Any) -> Any:
        masks.append(attention_mask.ndim)
        mask = attention_mask if attention_mask.ndim == 2 else None
        return forward(position_ids=position_ids, attention_mask=mask, **inputs)

    model.forward = heedless
    found = option_log_likelihoods(model, rows, np.array([0]), device=CPU)
    model.forward = forward
    assert masks[0] == 4
    np.testing.assert_allclose(found, one_by_one(model, rows, [0]), rtol=0, atol=1e-10)


def test_options_that_differ_only_in_what_they_lose_are_refused() -> None:
    options = [["a film a film a film good", "a film a film a film bad"], ["good", "bad"]]
    with pytest.raises(DataError) as caught:
        choice_rows(byte_tokenizer(), ["x", "y"], options, [0, 0], max_length=4)
    assert str(caught.value) == (
        "task.max_length: 1 of 2 rows have options that are the same in their first 3 tokens, such "
        "as the row of the prompt 'x'; raise max_length, or drop these rows"
    )


def test_a_prompt_goes_through_the_base_once_and_so_does_what_options_share() -> None:
    model = decoder("llama")
    rows = choice_rows(byte_tokenizer(), ["xyzw"], [["abcd", "abef"]], [0], max_length=50)
    prompt, options = rows.row(0)
    through: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, inputs: through.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    option_log_likelihoods(model, rows, np.array([0]), device=CPU)
    handle.remove()
    alike = next(i for i, pair in enumerate(zip(*options, strict=False)) if len({*pair}) > 1)
    assert alike >= 2
    fed = sum(len(option) - 1 for option in options)
    assert through[-1] == len(prompt) + fed - alike


def test_all_options_of_a_row_follow_the_same_cut_prompt() -> None:
    rows = rows_of(max_length=20)
    whole = rows_of()
    assert rows.prompts_cut == 1
    assert rows.options_cut == 1
    for index in range(len(rows)):
        (prompt, options), (before, _) = rows.row(index), whole.row(index)
        assert len(prompt) + max(map(len, options)) <= 20
        assert prompt == before[len(before) - len(prompt) :]
        assert prompt
    model = decoder("qwen2")
    found = option_log_likelihoods(model, rows, np.arange(len(rows)), device=CPU)
    expected = one_by_one(model, rows, range(len(rows)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_half_precision_is_summed_in_float32_or_more() -> None:
    rows = rows_of()
    found = option_log_likelihoods(
        decoder("llama", torch.bfloat16), rows, np.arange(len(rows)), device=CPU
    )
    logs = found[~np.isnan(found)]
    assert (logs != torch.from_numpy(logs).bfloat16().double().numpy()).any()


@pytest.mark.command
@pytest.mark.parametrize("first", ["<s>", None])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_scores_and_accuracies_are_those_of_lm_eval(name: str, first: str | None) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = decoder(name, torch.float32), byte_tokenizer(first=first)
    rows = rows_of(first)
    peer = HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=4, max_length=200
    )
    requests = [
        Instance("loglikelihood", {}, (prompt, option if delimited else f" {option}"), 0)
        for prompt, options in zip(PROMPTS, OPTIONS, strict=True)
        for option in options
        for delimited in [prompt.endswith(" ") or option.startswith(" ")]
    ]
    told = np.array([score for score, _ in peer.loglikelihood(requests, disable_tqdm=True)])
    found = option_log_likelihoods(model, rows, np.arange(len(rows)), device=CPU)
    np.testing.assert_allclose(found[~np.isnan(found)], told, rtol=0, atol=1e-4)


def test_accuracies_divide_by_tokens_and_by_bytes_and_take_the_first_of_equals() -> None:
    scores = np.array([[-4.0, -6.0, np.nan], [-3.0, -3.0, -9.0], [-8.0, -7.0, -9.0]])
    tokens = np.array([[1, 2, 0], [1, 1, 2], [4, 2, 3]])
    bytes_ = np.array([[2, 4, 0], [6, 3, 10], [4, 4, 9]])
    right = np.array([1, 0, 2])
    assert hits(scores, right).tolist() == [0, 1, 0]
    assert hits(scores, right, tokens).tolist() == [1, 1, 0]
    assert hits(scores, right, bytes_).tolist() == [1, 1, 1]


@pytest.mark.command
def test_accuracies_are_those_of_lm_eval_s_tasks() -> None:
    """Its own judgement of a row, `process_results`, on random scores with ties among them."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask, TaskConfig

    rng = np.random.default_rng(0)
    texts = [["a" * n for n in rng.choice(9, 3, replace=False) + 1] for _ in range(60)]
    scores = -rng.integers(1, 6, (60, 3)).astype(float)
    right = rng.integers(0, 3, 60)

    class Judged(ConfigurableTask):
        def __init__(self) -> None:
            self._config, self.OUTPUT_TYPE = TaskConfig(), "multiple_choice"
            self._metric_fn_list = dict.fromkeys(("acc", "acc_norm", "acc_bytes"))
            self.multiple_input = self.multiple_target = 0

        def doc_to_choice(self, doc: Any, doc_to_choice: Any = None) -> Any:
            return texts[doc]

        def doc_to_target(self, doc: Any, doc_to_target: Any = None) -> Any:
            return int(right[doc])

    task = Judged()
    told = [task.process_results(row, [(s, False) for s in scores[row]]) for row in range(60)]
    bytes_ = np.array([[len(text) for text in row] for row in texts])
    mean = {name: np.mean([each[name] for each in told]) for name in told[0]}
    assert hits(scores, right).mean() == pytest.approx(mean["acc"])
    assert hits(scores, right, bytes_).mean() == pytest.approx(mean["acc_bytes"])
    assert hits(scores, right, bytes_).mean() == pytest.approx(mean["acc_norm"])


def test_counts_are_of_options_without_what_is_put_before_them() -> None:
    rows = rows_of()
    assert rows.byte_counts.tolist()[:2] == [[4, 23, 3, 0, 0], [8, 17, 8, 2, 2]]
    tables = zip(rows.token_counts, rows.byte_counts, OPTIONS, strict=True)
    for index, (tokens, bytes_, options) in enumerate(tables):
        _, encoded = rows.row(index)
        assert tokens[: len(options)].tolist() == [len(ids) for ids in encoded]
        assert (tokens[len(options) :] == 0).all()
        assert bytes_[: len(options)].tolist() == [len(text.encode()) for text in options]
