"""Peak memory of a training step and of an evaluation on the CPU: traced without weights, against real runs.

    python benchmarks/memory_cpu.py                # all combinations, then resident memory; some minutes
    python benchmarks/memory_cpu.py --no-resident

For each combination three figures of the same step: **traced** (nothing is computed), **tracked** (the same tracker on
a real run; must be equal), and **allocated** (what PyTorch's CPU allocator told its profiler in a run without tracker,
which also sees what operations take and give back inside). Then, in fresh processes and with larger models, the growth
of resident memory (VmHWM) against the traced peak. The table goes to benchmarks/results/memory_cpu.json.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.profiler import ProfilerActivity, profile, record_function

from modelyard.engines.base import Batch, ModelSpec, OptimizerSpec, Plan
from modelyard.engines.torch import models
from modelyard.engines.torch.engine import TorchEngine
from modelyard.engines.torch.trace import measure, trace

RESULTS = Path(__file__).parent / "results" / "memory_cpu.json"
VOCABULARY = 2000
ROBERTA = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 1026}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": 1024},
    "roberta": ROBERTA,
    "distilbert": {"max_position_embeddings": 1024},
    "longformer (ours)": {**ROBERTA, "sep_token_id": 2, "attention_window": 64},
    "longformer (upstream)": {**ROBERTA, "sep_token_id": 2, "attention_window": 64},
    "modernbert": {"max_position_embeddings": 1024, "pad_token_id": 1, "local_attention": 64},
    "gpt2": {"n_positions": 1024, "pad_token_id": 1},
    "llama": {"max_position_embeddings": 1024, "pad_token_id": 1, "num_key_value_heads": 2},
}


@dataclass(frozen=True)
class Setting:
    batch: int
    length: int
    precision: Any = "float32"
    checkpointing: bool = False
    optimizer: Any = "adamw"
    freeze: tuple[Any, ...] = ()
    micro_batches: int = 1


SETTINGS = [
    Setting(4, 128),
    Setting(1, 512),
    Setting(4, 128, "bfloat16"),
    Setting(2, 256, "float32", True),
    Setting(2, 256, "bfloat16", True, "adam"),
    Setting(4, 128, "float32", False, "adam", ("embeddings",)),
    Setting(2, 256, "float32", False, "adamw", ("embeddings", "encoder")),
    Setting(1, 256, "bfloat16", False, "adam", (), 2),
    Setting(6, 64, "float32", True, "adam", ("embeddings",), 2),
]
# (family, setting, width, layers) for resident memory, where the weights of the library itself must not matter.
RESIDENT = [
    ("bert", Setting(8, 256), 512, 6),
    ("bert", Setting(8, 256, "float32", True), 512, 6),
    ("longformer (ours)", Setting(1, 1024), 512, 6),
    ("llama", Setting(4, 256), 512, 6),
]


def config_of(family: str, width: int, layers: int) -> dict[str, Any]:
    kind = family.split()[0]
    if kind == "distilbert":
        shape = {"dim": width, "n_layers": layers, "n_heads": 4, "hidden_dim": 4 * width}
    elif kind == "gpt2":
        shape = {"n_embd": width, "n_layer": layers, "n_head": 4}
    else:
        shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4}
        shape["intermediate_size"] = 4 * width
    return {"model_type": kind, "vocab_size": VOCABULARY, **shape, **FAMILIES[family]}


def batch_of(examples: int, length: int, seed: int, pad: int) -> Batch:
    """Texts of half the length to the whole, the first one the longest."""
    random = np.random.default_rng(seed)
    ids = random.integers(4, VOCABULARY, size=(examples, length))
    mask = np.ones_like(ids)
    for row in range(1, examples):
        end = int(random.integers(length // 2, length + 1))
        ids[row, end:], mask[row, end:] = pad, 0
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": random.integers(0, 3, size=examples)}
    return Batch(arrays, np.ones(examples, np.float32), np.arange(examples))


def job_of(family: str, setting: Setting, width: int, layers: int) -> dict[str, Any]:
    pad = int(FAMILIES[family].get("pad_token_id", 0))
    return {
        "model": ModelSpec(None, config_of(family, width, layers), ("a", "b", "c")),
        "optimizer": OptimizerSpec(setting.optimizer, freeze=setting.freeze),
        "plan": Plan("cpu", setting.precision, 1 << 20, activation_checkpointing=setting.checkpointing),
        "training": [batch_of(setting.batch, setting.length, seed, pad) for seed in range(setting.micro_batches)],
        "evaluation": batch_of(setting.batch + 2, setting.length, 99, pad),
    }


def allocated(job: dict[str, Any]) -> tuple[int, int]:
    """Most bytes that the CPU allocator had given out during the second step, and during the evaluation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        learner = TorchEngine().learner(job["model"], job["optimizer"], job["plan"])
        learner.step(job["training"], 0.0)
        gc.collect()
        with record_function("STEP"):
            learner.step(job["training"], 0.0)
        with record_function("EVALUATION"):
            learner.predict(job["evaluation"])
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(f"{folder}/trace.json").read_text())["traceEvents"]
    spans = {each["name"]: each for each in events if each.get("cat") == "user_annotation"}
    most, live = {"STEP": 0, "EVALUATION": 0}, 0
    changes = sorted(
        (each for each in events if each.get("name") == "[memory]"), key=lambda each: each["args"]["Ev Idx"]
    )
    for event in changes:
        live += event["args"]["Bytes"]
        for name in most:
            if spans[name]["ts"] <= event["ts"] <= spans[name]["ts"] + spans[name]["dur"]:
                most[name] = max(most[name], live)
    return most["STEP"], most["EVALUATION"]


def compare(family: str, setting: Setting) -> dict[str, Any]:
    job = job_of(family, setting, width=128, layers=2)
    accelerated = models._accelerated
    if family.endswith("(upstream)"):
        models._accelerated = lambda model: model
    try:
        begin = time.perf_counter()
        traced = trace(**job)
        seconds = time.perf_counter() - begin
        tracked, (step, evaluation) = measure(**job), allocated(job)
    finally:
        models._accelerated = accelerated
    assert traced.evaluation_peak is not None
    assert tracked.evaluation_peak is not None
    return {
        "family": family,
        **asdict(setting),
        "traced_bytes": traced.step_peak.total,
        "tracked_bytes": tracked.step_peak.total,
        "allocated_bytes": step,
        "traced_evaluation_bytes": traced.evaluation_peak.total,
        "tracked_evaluation_bytes": tracked.evaluation_peak.total,
        "allocated_evaluation_bytes": evaluation,
        "by_cause": asdict(traced.step_peak),
        "same_by_cause": (traced.step_peak, traced.evaluation_peak) == (tracked.step_peak, tracked.evaluation_peak),
        "trace_seconds": round(seconds, 2),
    }


def memory_of_this_process(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def resident_here(number: int) -> None:
    """In a fresh process: print how far resident memory rose above what the imports took."""
    family, setting, width, layers = RESIDENT[number]
    job = job_of(family, setting, width, layers)
    before = memory_of_this_process("VmRSS")
    learner = TorchEngine().learner(job["model"], job["optimizer"], job["plan"])
    for _ in range(2):
        learner.step(job["training"], 0.0)
    print(json.dumps({"rose_bytes": memory_of_this_process("VmHWM") - before, "imports_bytes": before}))


def resident(number: int) -> dict[str, Any]:
    family, setting, width, layers = RESIDENT[number]
    traced = trace(**job_of(family, setting, width, layers)).step_peak.total
    command = [sys.executable, __file__, "--resident-here", str(number)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    found = json.loads(answer)
    return {
        "family": family,
        **asdict(setting),
        "width": width,
        "layers": layers,
        "traced_bytes": traced,
        **found,
        "error": traced / found["rose_bytes"] - 1,
    }


def summary(rows: list[dict[str, Any]], traced: str, real: str) -> dict[str, float]:
    errors = [row[traced] / row[real] - 1 for row in rows]
    sizes = sorted(abs(error) for error in errors)
    return {
        "median": round(statistics.median(sizes), 5),
        "95th percentile": round(sizes[int(0.95 * (len(sizes) - 1) + 0.5)], 5),
        "too low at most": round(max(0.0, -min(errors)), 5),
        "too high at most": round(max(0.0, *errors), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-resident", action="store_true", help="only the combinations")
    parser.add_argument("--resident-here", type=int, metavar="NUMBER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # memory is the same, and cores that others use do not matter
    logging.disable(logging.WARNING)
    if options.resident_here is not None:
        resident_here(options.resident_here)
        return
    begin, rows = time.perf_counter(), []
    for family, setting in itertools.product(FAMILIES, SETTINGS):
        row = compare(family, setting)
        rows.append(row)
        real, there = row["tracked_bytes"], row["allocated_bytes"]
        print(
            f"{family:22} {setting.batch:3} x {setting.length:4} {setting.precision:8} "
            f"{'checkpointing' if setting.checkpointing else '':13} {setting.optimizer:5} "
            f"traced {row['traced_bytes'] / 2**20:7.1f} MiB  tracked {row['traced_bytes'] / real - 1:+.3%}  "
            f"allocated {row['traced_bytes'] / there - 1:+.3%}  {row['trace_seconds']:.1f} s",
            flush=True,
        )
    result = {
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "combinations": len(rows),
        "equal to the tracked run, by cause": sum(row["same_by_cause"] for row in rows),
        "error against the allocator, step": summary(rows, "traced_bytes", "allocated_bytes"),
        "error against the allocator, evaluation": summary(
            rows, "traced_evaluation_bytes", "allocated_evaluation_bytes"
        ),
        "resident": [] if options.no_resident else [resident(number) for number in range(len(RESIDENT))],
        "seconds": round(time.perf_counter() - begin),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in result.items() if name != "rows"}, indent=1))


if __name__ == "__main__":
    main()
