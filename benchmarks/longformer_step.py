"""One training step of a Longformer, upstream's attention against ours, on the same weights.

    python benchmarks/longformer_step.py                          # CPU, float32, base width, T = 4,096
    python benchmarks/longformer_step.py --layers 2 --dtype bfloat16

Both models take the same step in turn, so that whatever else the machine does falls on both; medians are
compared. On a CPU three settings are measured: attention dropout 0.1 on both sides, 0 on both sides, and
upstream's 0.1 against our 0. With CUDA: bfloat16 autocast, peak memory, and the share of the measured rate of
matrix products (MFU).
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LongformerConfig, LongformerForSequenceClassification
from transformers.utils import logging

from modelyard.engines.torch.attention.longformer import accelerate

RESULTS = Path(__file__).parent / "results"
SETTINGS = {"dropout 0.1, both": (0.1, 0.1), "no dropout, both": (0.0, 0.0), "0.1 against 0": (0.1, 0.0)}


@dataclass(frozen=True)
class Shape:
    layers: int
    batch: int
    length: int
    width: int = 768
    heads: int = 12
    window: int = 512

    def config(self) -> LongformerConfig:
        return LongformerConfig(
            vocab_size=50265,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            max_position_embeddings=self.length + 2,
            attention_window=self.window,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            sep_token_id=2,
            type_vocab_size=1,
            hidden_dropout_prob=0.1,
        )

    @property
    def step_flops(self) -> float:
        """What the mathematics needs: 12 D² products a token and layer, and a window of 2W + 1 keys."""
        token = 2 * self.layers * (12 * self.width**2 + 2 * self.width * (self.window + 1))
        return 3.0 * token * self.length * self.batch


@dataclass(frozen=True)
class Bench:
    """A model, its inputs and how to step it."""

    device: str
    dtype: torch.dtype
    ids: torch.Tensor
    labels: torch.Tensor

    def loss(self, model: Any) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            result: torch.Tensor = model(input_ids=self.ids, labels=self.labels).loss
        return result

    def step(self, model: Any) -> tuple[float, float]:
        """Seconds of one forward and backward: by the clock, and of the CPU."""
        model.zero_grad(set_to_none=True)
        self.wait()
        start, start_cpu = time.perf_counter(), time.process_time()
        self.loss(model).backward()  # type: ignore[no-untyped-call]
        self.wait()
        return time.perf_counter() - start, time.process_time() - start_cpu

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def saved_bytes(self, model: Any) -> int:
        """Bytes of the distinct storages that autograd keeps for backward, parameters left out."""
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            address = tensor.untyped_storage().data_ptr()
            if address not in parameters:
                kept[address] = tensor  # held, so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.loss(model)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def set_attention_dropout(model: Any, dropout: float) -> None:
    for layer in model.longformer.encoder.layer:
        layer.attention.self.dropout = dropout


Step = Callable[[], tuple[float, float]]


def interleave(upstream: Step, ours: Step, repeats: int) -> dict[str, Any]:
    """Seconds of both, taken in turn after one step each that does not count.

    CPU seconds are what counts on a shared machine, with one thread: more of them spin while they wait.
    """
    upstream(), ours()
    pairs = [(upstream(), ours()) for _ in range(repeats)]
    found: dict[str, Any] = {}
    for index, clock in enumerate(("wall", "cpu")):
        theirs, mine = [pair[0][index] for pair in pairs], [pair[1][index] for pair in pairs]
        found[clock] = {
            "upstream_seconds": statistics.median(theirs),
            "ours_seconds": statistics.median(mine),
            "ratio": statistics.median(theirs) / statistics.median(mine),
            "upstream_all_seconds": theirs,
            "ours_all_seconds": mine,
        }
    return found


def measure_cpu(shape: Shape, bench: Bench, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    upstream = LongformerForSequenceClassification(shape.config()).train()
    ours = accelerate(copy.deepcopy(upstream))
    results: dict[str, Any] = {}
    for name, dropouts in SETTINGS.items():
        for model, dropout in zip((upstream, ours), dropouts, strict=True):
            set_attention_dropout(model, dropout)
        row = interleave(lambda: bench.step(upstream), lambda: bench.step(ours), repeats)
        row |= {
            "upstream_saved_bytes": bench.saved_bytes(upstream),
            "ours_saved_bytes": bench.saved_bytes(ours),
        }
        gc.collect()
        results[name] = row
        wall, cpu = row["wall"], row["cpu"]
        print(
            f"{name:<18}{wall['upstream_seconds']:>8.2f} s{wall['ours_seconds']:>8.2f} s{wall['ratio']:>7.2f}×"
            f"{cpu['upstream_seconds']:>9.2f} s{cpu['ours_seconds']:>8.2f} s{cpu['ratio']:>7.2f}×"
            f"{row['upstream_saved_bytes'] / 2**20:>8,.0f} MiB{row['ours_saved_bytes'] / 2**20:>7,.0f} MiB"
            f"{row['ours_saved_bytes'] / row['upstream_saved_bytes']:>7.3f}",
            flush=True,
        )
    return results


def matmul_flops(dtype: torch.dtype) -> float:
    """Products a second of a large square matrix multiplication on CUDA."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def measure_cuda(shape: Shape, bench: Bench, repeats: int) -> dict[str, Any]:
    """Upstream, then ours, each alone in memory."""
    rate = matmul_flops(torch.bfloat16)
    results: dict[str, Any] = {"matmul_flops": rate}
    for name in ("upstream", "ours"):
        torch.manual_seed(0)
        model: Any = LongformerForSequenceClassification(shape.config()).train().to("cuda")
        if name == "ours":
            accelerate(model)
        for _ in range(3):
            bench.step(model)
        torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(bench.step(model)[0] for _ in range(repeats))
        results[name] = {
            "seconds": seconds,
            "tokens_per_second": bench.ids.numel() / seconds,
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "mfu": shape.step_flops / seconds / rate,
        }
        row = results[name]
        print(
            f"{name:<10}{seconds * 1e3:>10.1f} ms{row['tokens_per_second']:>12,.0f} tokens/s"
            f"{row['peak_bytes'] / 2**30:>8.2f} GiB{row['mfu']:>8.1%} of the measured matmul rate",
            flush=True,
        )
        del model
        gc.collect()
        torch.cuda.empty_cache()
    return results


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file; by default benchmarks/results/longformer_step_*.json")
    arguments = parser.parse_args()

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    name = "bfloat16" if device == "cuda" else arguments.dtype
    shape = Shape(arguments.layers, arguments.batch, arguments.length)
    torch.manual_seed(0)
    ids = torch.randint(3, 50265, (shape.batch, shape.length), device=device)
    bench = Bench(device, getattr(torch, name), ids, torch.ones(shape.batch, dtype=torch.long, device=device))
    size = f"{shape.layers} layers, {shape.batch} × {shape.length} tokens, window {shape.window}"
    print(f"{size}, {name}, {device}")
    if device != "cuda":
        print(f"{'attention dropout':<18}{'wall: theirs, ours':>28}{'CPU: theirs, ours':>29}{'kept: theirs, ours':>30}")
    measure = measure_cuda if device == "cuda" else measure_cpu
    results = measure(shape, bench, arguments.repeats)
    suffix = "" if name == "float32" or device == "cuda" else f"_{name}"
    path = arguments.output or RESULTS / f"longformer_step_{device}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(device), "dtype": name, "shape": vars(shape), "results": results}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
