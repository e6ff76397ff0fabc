"""What record_surface.py records on beside the examples' data: classes of tweets, and a choice set
with a small Llama to answer it.

    python examples/prepare_movie.py --out data/movie
    python examples/prepare_tweets.py --out data/tweets
    python benchmarks/surface_tasks.py

data/tweet-classes has the tweets of data/tweets, negative, neutral or positive by their mean
rating. data/choices-of-reviews has the reviews of data/movie, each with a good and a bad word to
end it with. Its base, llama-self-trained in the same folder, has read reviews and tweets of the
training splits as a language model for some minutes, the tweets with such a word at their end; it
has seen no rating of a review.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(__file__).resolve().parent.parent / "data"
TWEETS, CHOICES = DATA / "tweet-classes", DATA / "choices-of-reviews"
BASE = CHOICES / "llama-self-trained"
NEUTRAL = 0.75
"""A tweet rated nearer to zero is neutral."""
WORDS = (("bad", "good"), ("awful", "great"), ("poor", "fine"), ("dull", "fun"))
ENDED = "{}\nThis is {}"
SPLITS = ("train", "dev", "test")
VOCABULARY, LENGTH, STEPS, BATCH, PEAK_RATE = 3000, 64, 900, 32, 3e-3


def make_tweets(source: Path = DATA / "tweets", out: Path = TWEETS) -> None:
    """Write the tweets once more, with a class in place of their rating."""
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        table = pq.read_table(source / f"{split}.parquet")
        labels = [
            "neutral" if abs(rating) <= NEUTRAL else "positive" if rating > 0 else "negative"
            for rating in table["rating"].to_pylist()
        ]
        pq.write_table(pa.table({"text": table["text"], "label": labels}), out / f"{split}.parquet")


def make_choices(source: Path = DATA / "movie", out: Path = CHOICES) -> None:
    """Write the reviews as questions of two options; which words, in which order, is drawn."""
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        rng = random.Random(f"choices {split}")
        with (out / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for row in pq.read_table(source / f"{split}.parquet").to_pylist():
                options = list(rng.choice(WORDS))
                right = options[int(row["label"] == "positive")]
                rng.shuffle(options)
                question = {"sentence": row["sentence"], "options": options}
                file.write(json.dumps({**question, "answer": options.index(right)}) + "\n")


def make_llama(out: Path = BASE) -> float:
    """Train the small Llama and write it with its tokenizer; the mean loss of its last steps."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    torch.manual_seed(0)
    reviews = pq.read_table(DATA / "movie" / "train.parquet")["sentence"].to_pylist()
    rng = random.Random("tweets")
    tweets = [
        ENDED.format(row["text"], rng.choice(WORDS)[int(row["rating"] > 0)])
        for row in pq.read_table(DATA / "tweets" / "train.parquet").to_pylist()
    ]
    texts = [*reviews, *tweets, *tweets, *tweets]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts, vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=256, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS)
    losses = [_step(model, optimizer, schedule, _batch(tokenizer, texts)) for _ in range(STEPS)]
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.replace(out)
    return sum(losses[-50:]) / 50


def _batch(tokenizer: Any, texts: Sequence[str]) -> dict[str, Any]:
    import torch

    some = [f"<s>{texts[int(i)]}</s>" for i in torch.randint(len(texts), (BATCH,))]
    return dict(
        tokenizer(some, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    )


def _step(model: Any, optimizer: Any, schedule: Any, batch: dict[str, Any]) -> float:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    return float(loss.detach())


def main() -> None:
    """Make what is not there yet."""
    for source in ("movie", "tweets"):
        if not (DATA / source / "train.parquet").is_file():
            sys.exit(f"no data/{source}; make it with python examples/prepare_{source}.py")
    make_tweets()
    make_choices()
    if not BASE.is_dir():
        print(f"{BASE}: {make_llama():.2f} nats a token in training")


if __name__ == "__main__":
    main()
