"""What a base writes is what it would write one row at a time, token after token."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from spaces.errors import BaseModelError, ConfigError, DataError
from spaces.target import TargetModule
from tests.trainables.tasks.language.writers import CONFIGS, POSITIONS, byte_tokenizer, decoder
from trainables.adaptations.blocks import BlockAdaptation, plain_lora
from trainables.tasks.language import writing
from trainables.tasks.language.generation_settings import GenerationSettings
from trainables.tasks.language.writing import batches_by_tokens, cut_at, written

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    return decoder(request.param)


def prompts_of(number: int, longest: int = 30, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 300, rng.integers(1, longest + 1)).tolist() for _ in range(number)]


def settings_of(**keys: Any) -> GenerationSettings:
    return GenerationSettings.model_validate({"max_new_tokens": 20, **keys})


def write(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], **keys: Any) -> list[str]:
    return written(model, tokenizer, prompts, settings_of(**keys), device=CPU)


@torch.no_grad()
def likeliest(
    model: Any, tokenizer: Any, prompt: Sequence[int], number: int, ends: Sequence[int] = (0,)
) -> list[int]:
    """Greedy by definition: the whole text through the model for each token."""
    ids = list(prompt)
    for _ in range(number):
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_every_row_is_written_greedily_whatever_goes_through_the_model_with_it(
    model: Any, tokenizer: Any
) -> None:
    prompts = prompts_of(9)
    one_by_one = [
        tokenizer.decode(likeliest(model, tokenizer, prompt, 20), skip_special_tokens=True)
        for prompt in prompts
    ]
    for tokens in (1, 120, 4096):
        assert write(model, tokenizer, prompts, batch_tokens=tokens) == one_by_one


def test_rows_that_end_early_leave_the_others_as_they_are(model: Any, tokenizer: Any) -> None:
    prompts = prompts_of(12)
    tokens = [likeliest(model, tokenizer, prompt, 20, ends=()) for prompt in prompts]
    ends = {row[place] for place, row in enumerate(tokens)}  # each row ends at another length
    own = model.generation_config
    model.generation_config = type(own)(eos_token_id=sorted(ends))
    try:
        texts = write(model, tokenizer, prompts)
    finally:
        model.generation_config = own
    ended = [likeliest(model, tokenizer, prompt, 20, ends=(0, *ends)) for prompt in prompts]
    assert texts == [tokenizer.decode(row, skip_special_tokens=True) for row in ended]
    assert len({len(row) for row in ended}) > 3


def test_a_text_ends_before_the_first_stop_string_even_one_of_several_tokens(
    model: Any, tokenizer: Any
) -> None:
    prompts = prompts_of(10)
    whole = write(model, tokenizer, prompts)
    stops = [text[k : k + 3] for k, text in enumerate(whole[:8], 2) if "�" not in text[k : k + 3]]
    stops = [stop for stop in stops if stop]
    assert any(len(tokenizer.encode(stop)) > 1 for stop in stops)
    assert write(model, tokenizer, prompts, stop=stops) == [cut_at(text, stops) for text in whole]


def test_white_space_before_an_answer_is_no_stop(model: Any, tokenizer: Any) -> None:
    for text, stop, kept in [
        ("\n good\nbad", ["\n"], "\n good"),
        (" \n\n", ["\n", " "], " \n\n"),
        ("\n\nQ: a", ["\n\n", "\nQ"], "\n"),
        ("good\n\nbad", ["\n\n", "d\n"], "goo"),
    ]:
        assert cut_at(text, stop) == kept
    blank, word = tokenizer("\n")["input_ids"][0], tokenizer("a")["input_ids"][0]
    written_so_far: list[int] = []

    class Scripted(transformers.LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            script = [*[blank] * 8, word, word, blank, word]
            place = input_ids.shape[1] - 2
            written_so_far.append(place)
            scores[:] = -torch.inf
            scores[:, script[min(place, 11)]] = 0.0
            return scores

    own = model._get_logits_processor
    model._get_logits_processor = lambda *a, **k: transformers.LogitsProcessorList([Scripted()])
    try:
        (text,) = write(model, tokenizer, [[5, 6]], stop=["\n"])
    finally:
        model._get_logits_processor = own
    assert text == "\n" * 8 + "aa"
    assert max(written_so_far) == 10  # it ends with the line


def test_a_batch_goes_on_no_longer_than_its_last_row(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = decoder("llama"), prompts_of(1)[0]
    stop = write(model, tokenizer, [prompt])[0][3:5]
    passes: list[int] = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    write(model, tokenizer, [prompt, prompt[1:]], stop=[stop], max_new_tokens=60)
    whole = len(passes)
    passes.clear()
    write(model, tokenizer, [prompt], stop=[stop], max_new_tokens=60)
    handle.remove()
    assert len(passes) < 12
    assert whole <= 60


def test_what_the_base_would_have_its_generation_be_does_not_leak(tokenizer: Any) -> None:
    model, prompts = decoder("llama"), prompts_of(6)
    plain = write(model, tokenizer, prompts)
    own = type(model.generation_config)(
        do_sample=True, temperature=0.1, top_k=3, repetition_penalty=5.0, no_repeat_ngram_size=1,
        min_length=90, num_beams=3, max_length=7, suppress_tokens=list(range(1, 200)),
        eos_token_id=0,
    )  # fmt: skip
    model.generation_config = own
    assert write(model, tokenizer, prompts) == plain
    assert model.generation_config is own


def test_a_cache_is_used_even_where_training_has_switched_it_off(tokenizer: Any) -> None:
    model, prompts = decoder("llama"), prompts_of(3)
    plain = write(model, tokenizer, prompts)
    model.config.use_cache = False
    columns: list[int] = []
    handle = model.model.layers[0].register_forward_pre_hook(
        lambda _, inputs: columns.append(inputs[0].shape[1])
    )
    assert write(model, tokenizer, prompts) == plain
    handle.remove()
    assert set(columns[1:]) == {1}


def test_a_cache_that_cannot_be_divided_is_computed_again(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(8)
    whole = write(model, tokenizer, prompts)
    stops = [text[i + 1] for i, text in enumerate(whole) if len(text) > i + 1]
    cut = write(model, tokenizer, prompts, stop=stops)
    monkeypatch.setattr(writing, "selected", lambda cache, rows: None)
    assert write(model, tokenizer, prompts, stop=stops) == cut


def test_an_attached_adaptation_writes(tokenizer: Any) -> None:
    model, prompts = decoder("llama"), prompts_of(5)
    base = write(model, tokenizer, prompts)
    names = [f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "o_proj")]
    targets = [TargetModule(name, tuple(model.get_submodule(name).weight.shape)) for name in names]
    adaptation = BlockAdaptation(model, plain_lora(targets, 2, 8.0), seed=0)
    parameters = adaptation.begin_stage(0, 1)
    with torch.no_grad():
        for parameter in parameters.parameters():
            parameter.normal_(0, 0.5)
    adaptation.eval()
    adapted = write(model, tokenizer, prompts)
    assert adapted == [
        tokenizer.decode(likeliest(model, tokenizer, prompt, 20), skip_special_tokens=True)
        for prompt in prompts
    ]
    adaptation.end_stage()
    merged = adaptation.merged()
    adaptation.detach()
    assert adapted != base
    assert write(model, tokenizer, prompts) == base
    model.load_state_dict(merged, strict=False)
    assert write(model, tokenizer, prompts) == adapted


def test_a_prompt_longer_than_the_base_has_positions_for_loses_its_beginning(
    model: Any, tokenizer: Any
) -> None:
    prompts = [*prompts_of(2, 10), prompts_of(1, 1)[0] * 200]
    settings = settings_of()
    texts = written(model, tokenizer, prompts, settings, device=CPU, most_tokens=POSITIONS)
    cut = [prompt[-(POSITIONS - 20) :] for prompt in prompts]
    assert texts == write(model, tokenizer, cut)


def test_what_all_prompts_begin_with_goes_through_the_model_once(
    model: Any, tokenizer: Any
) -> None:
    begin = prompts_of(1, seed=3)[0][:1] * 4 + list(range(40, 60))
    prompts = [begin + prompt for prompt in prompts_of(9, 20)] + [[*begin, 5]]
    columns: list[int] = []
    handle = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: columns.append(inputs[0].shape[1])
    )
    texts = write(model, tokenizer, prompts, batch_tokens=300)
    handle.remove()
    assert columns.count(len(begin)) == 1
    assert max(columns[1:]) <= 20
    assert texts == [
        tokenizer.decode(likeliest(model, tokenizer, prompt, 20), skip_special_tokens=True)
        for prompt in prompts
    ]
    drawn = write(model, tokenizer, prompts, do_sample=True)
    assert drawn[:1] == write(model, tokenizer, prompts[:1], do_sample=True)
    assert write(model, tokenizer, [begin, begin]) == write(model, tokenizer, [begin]) * 2


def test_a_window_that_slides_counts_no_padding(tokenizer: Any) -> None:
    config = transformers.MistralConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, sliding_window=6, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    prompts = [list(range(40, 60)) + prompt for prompt in prompts_of(8, 20)]
    ends = (0, model.generation_config.eos_token_id)
    assert write(model, tokenizer, prompts) == [
        tokenizer.decode(likeliest(model, tokenizer, prompt, 20, ends), skip_special_tokens=True)
        for prompt in prompts
    ]


def test_what_is_drawn_for_a_prompt_depends_on_the_seed_and_the_prompt_alone(
    model: Any, tokenizer: Any
) -> None:
    prompts = prompts_of(8)
    drawn = write(model, tokenizer, prompts, do_sample=True)
    assert write(model, tokenizer, prompts[::-1], do_sample=True, batch_tokens=90)[::-1] == drawn
    assert write(model, tokenizer, prompts, do_sample=True, seed=1) != drawn
    assert write(model, tokenizer, prompts) != drawn
    likely = write(model, tokenizer, prompts, do_sample=True, top_p=1e-6)
    assert likely == write(model, tokenizer, prompts)
    assert write(model, tokenizer, prompts, do_sample=True, temperature=1e-4) == likely


def test_tokens_are_drawn_as_often_as_they_are_likely(tokenizer: Any) -> None:
    model, prompt = decoder("llama"), prompts_of(1)[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    expected = torch.softmax(logits / 2.0, dim=-1)
    scores = logits.float()[None] / 2.0
    drawn = [
        int(writing.Drawn([writing.draws_of(seed, prompt)])(None, scores).argmax())  # type: ignore[arg-type]
        for seed in range(4000)
    ]
    found = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / len(drawn)
    deviation = (expected * (1 - expected) / len(drawn)).sqrt()
    assert ((found - expected).abs() <= 5 * deviation + 1e-3).all()


def test_an_empty_prompt_is_the_beginning_of_a_text(model: Any, tokenizer: Any) -> None:
    assert write(model, tokenizer, [[], [5, 6]]) == write(model, tokenizer, [[0], [5, 6]])
    assert write(model, tokenizer, []) == []


def test_a_tokenizer_without_any_special_token_writes_to_the_last_token(model: Any) -> None:
    bare = byte_tokenizer()
    bare.eos_token = bare.bos_token = None
    own = model.generation_config
    model.generation_config = type(own)()
    prompts = prompts_of(4)
    try:
        texts = write(model, bare, prompts)
        with pytest.raises(DataError, match=r"task\.prompt: row 1 is empty, and the base's"):
            write(model, bare, [[5], []])
    finally:
        model.generation_config = own
    tokens = [likeliest(model, bare, prompt, 20, ends=()) for prompt in prompts]
    assert texts == [bare.decode(row, skip_special_tokens=True) for row in tokens]


def test_nothing_is_said_while_it_writes(
    model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        write(model, tokenizer, prompts_of(5), stop=["a"])
        write(model, tokenizer, prompts_of(5), do_sample=True, temperature=0.7, top_p=0.9)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_batch_holds_no_more_than_its_tokens_and_rows_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 50).tolist()
    settings = settings_of(batch_tokens=500)
    batches = list(batches_by_tokens(lengths, settings))
    assert sorted(row for batch in batches for row in batch) == list(range(50))
    for batch in batches:
        assert len(batch) * (max(lengths[row] for row in batch) + 20) <= 500
    shortest = [min(lengths[row] for row in batch) for batch in batches]
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert all(low >= high for low, high in zip(shortest, longest[1:], strict=False))
    assert list(batches_by_tokens([1000], settings)) == [[0]]


@pytest.mark.command
@pytest.mark.parametrize("size", [1, 4])
def test_the_texts_are_lm_evals(model: Any, tokenizer: Any, size: int) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    texts = [tokenizer.decode(prompt) for prompt in prompts_of(8)]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    stop = [text[i + 1 : i + 3] for i, text in enumerate(write(model, tokenizer, prompts)[:4])]
    stop = [each for each in stop if each]
    theirs = byte_tokenizer()
    evaluated = huggingface.HFLM(pretrained=model, tokenizer=theirs, batch_size=size)
    asked = {"until": stop, "max_gen_toks": 20, "do_sample": False}
    requests = [instance("generate_until", {}, (text, asked), i) for i, text in enumerate(texts)]
    said = evaluated.generate_until(requests, disable_tqdm=True)
    assert write(model, tokenizer, prompts, stop=stop) == said


def test_a_base_that_cannot_write_and_too_many_new_tokens_are_refused(tokenizer: Any) -> None:
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    encoder = BertModel(BertConfig(**small, intermediate_size=8))
    with pytest.raises(BaseModelError, match=r"base: BertModel cannot write; use a decoder"):
        write(encoder, tokenizer, [[1]])
    settings = settings_of(max_new_tokens=POSITIONS)
    with pytest.raises(ConfigError, match=r"task\.generation\.max_new_tokens: 96 leave no room"):
        written(decoder("llama"), tokenizer, [[1]], settings, device=CPU, most_tokens=POSITIONS)


@pytest.mark.parametrize(
    ("keys", "key", "said"),
    [
        ({"temperature": 0.5}, "temperature", "goes with do_sample: true; set that, or drop it"),
        ({"top_p": 0.5}, "top_p", "goes with do_sample: true"),
        ({"do_sample": True, "temperature": 0.0}, "temperature", "greater than 0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"stop": ["a", ""]}, "stop", "has an empty string in it"),
        ({"max_new_tokens": 0}, "max_new_tokens", "greater than 0"),
        ({"top_k": 5}, "top_k", "Extra inputs"),
    ],
)
def test_settings_that_cannot_be_are_refused(keys: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        GenerationSettings.model_validate(keys)
    error = refused.value.errors()[0]
    assert error["loc"][0] == key
    assert said in error["msg"]


def test_one_stop_string_is_a_list_of_one_and_defaults_are_greedy() -> None:
    assert GenerationSettings.model_validate({"stop": "\n"}).stop == ("\n",)
    assert GenerationSettings().model_dump() == {
        "max_new_tokens": 64, "stop": (), "do_sample": False, "temperature": 1.0, "top_p": 1.0,
        "seed": 0, "batch_tokens": 4096,
    }  # fmt: skip
