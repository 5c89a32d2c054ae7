"""One epoch of fine-tuning on real documents of mixed length: modelyard beside ``transformers.Trainer``.

Both start from the same extended checkpoint, see the same training examples once, in the same number of optimiser
steps, with the same optimiser, learning rate, schedule and clipping. Three contestants, in turns for each seed:

- ``modelyard``: batches by length under a token budget, our attention, attention dropout off (our default);
- ``trainer``: ``transformers.Trainer`` with its defaults (random batches padded to the longest, its attention);
- ``padded``: the same Trainer with every document padded to the full length, as the well-known tutorial does
  (timed on a few steps only, and scaled by the number of steps). It computes one document at a time and accumulates,
  because eight of them at once do not fit into 24 GB.

    python benchmarks/fine_tuning.py --data articles.jsonl.gz --model FOLDER --seeds 3

With ``--quality`` only accuracies are compared: the Trainer then uses our attention (the same function to 1e-5), which
lets several seeds end in minutes, and ``fine_tuning_quality_cpu.json`` is written.

needs ``pip install accelerate``. The data file has ``text`` and ``label`` a line. Prints a table and writes
``benchmarks/results/fine_tuning_cpu.json``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from modelyard.data.batches import evaluation_batches, training_steps
from modelyard.data.prepare import Prepared, Split, prepare
from modelyard.data.tokenizer import TextTokenizer
from modelyard.engines.base import ModelSpec, OptimizerSpec, Plan
from modelyard.engines.torch.attention.longformer import accelerate
from modelyard.engines.torch.engine import TorchEngine
from modelyard.engines.torch.extend import extend_to
from modelyard.evaluation.statistics import proportion
from modelyard.recipe.schema import DataSection
from modelyard.tasks.text_classification import TASKS
from modelyard.training.schedule import Schedule

BATCH_SIZE = 8
LEARNING_RATE = 5e-5
RESULTS = Path(__file__).parent / "results" / "fine_tuning_cpu.json"


def read_examples(path: Path, num_examples: int) -> list[dict[str, str]]:
    """The documents, labels as text, in an order drawn once."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    return [{"text": row["text"], "label": str(row["label"])} for row in rows[:num_examples]]


def prepare_examples(rows: list[dict[str, str]], folder: Path, tokenizer: TextTokenizer, max_length: int) -> Prepared:
    """A quarter of the documents are the test; modelyard's own preparation serves all contestants."""
    file = folder / "examples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataSection.model_validate({"train": str(file), "split": {"test": 0.25, "validation": 0.0, "seed": 0}})
    return prepare(
        data, TASKS["text-classification"], tokenizer, max_length=max_length, on_too_long="truncate",
        cache_folder=folder / "cache", rejected_path=None,
    )  # fmt: skip


def run_modelyard(prepared: Prepared, model: Path, seed: int, micro_tokens: int) -> tuple[float, float, float]:
    """Seconds of the epoch, test accuracy, share of padding."""
    engine = TorchEngine()
    device = next(device for device in engine.devices() if device.kind == "cpu")
    plan = Plan(device=device.name, precision="float32", max_micro_batch_tokens=micro_tokens, seed=seed)
    spec = ModelSpec(source=model, config={}, labels=prepared.labels, attention_dropout=0.0)
    learner = engine.learner(spec, OptimizerSpec(name="adamw", max_gradient_norm=1.0), plan)
    started = time.perf_counter()
    steps = training_steps(
        prepared.train, batch_size=BATCH_SIZE, max_micro_batch_tokens=micro_tokens, seed=seed, epoch=0,
        pad_token_id=prepared.pad_token_id, padding="batch", max_length=4096, train_window=None, class_weights="none",
    )  # fmt: skip
    schedule = Schedule("linear", LEARNING_RATE, len(steps), 0)
    padded = real = 0
    for index in range(len(steps)):
        batches = steps[index]
        learner.step(batches, schedule.learning_rate(index)).loss.item()
        padded += sum(batch.arrays["input_ids"].size for batch in batches)
        real += sum(batch.num_tokens for batch in batches)
    seconds = time.perf_counter() - started
    test = prepared.test
    assert test is not None
    correct = 0
    for batch in evaluation_batches(test, micro_tokens, prepared.pad_token_id):
        correct += int((learner.predict(batch).logits.argmax(axis=1) == test.labels[batch.rows]).sum())
    return seconds, correct / len(test), 1 - real / padded


class Examples(torch.utils.data.Dataset[dict[str, Any]]):
    """The prepared token ids as the Trainer wants them, padded to `pad_to` if given."""

    def __init__(self, split: Split, pad_token_id: int, pad_to: int | None = None) -> None:
        self.split, self.pad_token_id, self.pad_to = split, pad_token_id, pad_to

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> dict[str, Any]:
        ids = self.split.input_ids(row).tolist()
        mask = [1] * len(ids)
        if self.pad_to is not None:
            missing = self.pad_to - len(ids)
            ids, mask = ids + [self.pad_token_id] * missing, mask + [0] * missing
        return {"input_ids": ids, "attention_mask": mask, "labels": int(self.split.labels[row])}


def run_trainer(
    prepared: Prepared, model: Path, seed: int, pad_to: int | None, max_steps: int, own_attention: bool = False
) -> tuple[float, float]:
    """Seconds of training and test accuracy (NaN when only a few steps are timed)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    transformers.set_seed(seed)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(prepared.labels))
    if own_attention:
        network = accelerate(network)
    with tempfile.TemporaryDirectory() as output:
        arguments = transformers.TrainingArguments(
            output_dir=output, num_train_epochs=1, max_steps=max_steps,
            per_device_train_batch_size=BATCH_SIZE if pad_to is None else 1,
            gradient_accumulation_steps=1 if pad_to is None else BATCH_SIZE,
            learning_rate=LEARNING_RATE, seed=seed, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
            logging_strategy="no",
        )  # fmt: skip
        trainer = transformers.Trainer(
            model=network,
            args=arguments,
            train_dataset=Examples(prepared.train, prepared.pad_token_id, pad_to),
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        if max_steps > 0:
            return seconds, math.nan
        assert prepared.test is not None
        logits = trainer.predict(Examples(prepared.test, prepared.pad_token_id)).predictions
    return seconds, float((np.asarray(logits).argmax(axis=1) == prepared.test.labels).mean())


def main() -> None:
    """Run the contestants in turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--model", type=Path, required=True, help="BERT- or RoBERTa-like folder, extended to 4,096 here"
    )
    parser.add_argument("--examples", type=int, default=643)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--padded-steps", type=int, default=2)
    parser.add_argument("--quality", action="store_true", help="compare accuracies only")
    parser.add_argument(
        "--keep-trainer", action="store_true", help="with --quality: the Trainer's accuracies of the last run, by seed"
    )
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        extend_to(options.model, folder / "model", 4096, attention_window=options.window)
        tokenizer = TextTokenizer.load(folder / "model")
        prepared = prepare_examples(read_examples(options.data, options.examples), folder, tokenizer, 4096)
        num_steps = math.ceil(len(prepared.train) / BATCH_SIZE)
        rows: list[dict[str, float]] = []
        kept = kept_accuracies(len(prepared.train)) if options.keep_trainer else {}
        for seed in range(options.seeds):
            ours, our_accuracy, padding = run_modelyard(prepared, folder / "model", seed, options.micro_tokens)
            print(f"seed {seed}: modelyard {ours:.1f} s for {num_steps} steps", flush=True)
            if seed in kept:
                trainer, trainer_accuracy = math.nan, kept[seed]
            else:
                trainer, trainer_accuracy = run_trainer(prepared, folder / "model", seed, None, -1, options.quality)
            padded = math.nan
            if not options.quality:
                few, _ = run_trainer(prepared, folder / "model", seed, 4096, options.padded_steps)
                padded = few / options.padded_steps * num_steps
            rows.append(
                {
                    "seed": seed, "modelyard_seconds": ours, "trainer_seconds": trainer, "padded_seconds": padded,
                    "modelyard_accuracy": our_accuracy, "trainer_accuracy": trainer_accuracy, "padding": padding,
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
            write_results(rows, options, prepared, num_steps)  # after each seed: the library's side takes long


def kept_accuracies(num_examples: int) -> dict[int, float]:
    """The Trainer's accuracy by seed in the results of a run with --quality on as many examples."""
    kept = json.loads(RESULTS.with_name("fine_tuning_quality_cpu.json").read_text(encoding="utf-8"))
    assert kept["train_examples"] == num_examples, "the last run had other examples"
    return {int(row["seed"]): float(row["trainer_accuracy"]) for row in kept["runs"]}


def write_results(
    rows: list[dict[str, float]], options: argparse.Namespace, prepared: Prepared, num_steps: int
) -> None:
    """Medians, ratios and pooled Wilson intervals of the accuracies."""
    assert prepared.test is not None
    n = len(prepared.test) * len(rows)
    summary: dict[str, Any] = {}
    if options.quality:
        rows = [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]
    else:
        for name in ("trainer", "padded"):
            ratios = [row[f"{name}_seconds"] / row["modelyard_seconds"] for row in rows]
            summary[f"{name}_over_modelyard"] = statistics.median(ratios)
    for name in ("modelyard", "trainer"):
        mean = statistics.mean(row[f"{name}_accuracy"] for row in rows)
        estimate = proportion(round(mean * n), n)
        summary[f"{name}_accuracy"] = [mean, estimate.low, estimate.high]
    result = {
        "what": "one epoch, batch 8, AdamW 5e-5 linear, float32, MiniLM (6 x 384) extended to 4,096 positions",
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version},
        "train_examples": len(prepared.train),
        "test_examples": len(prepared.test),
        "optimizer_steps": num_steps,
        "mean_tokens": float(prepared.train.lengths.mean()),
        "attention_window": options.window,
        "runs": rows,
        "summary": summary,
    }  # fmt: skip
    target = RESULTS.with_name("fine_tuning_quality_cpu.json") if options.quality else RESULTS
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=2))
    print(f"written: {target}")


if __name__ == "__main__":
    main()
