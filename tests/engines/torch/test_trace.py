"""The traced memory against a real run under the same tracker, and against what PyTorch's allocator reports."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoConfig, BertForSequenceClassification

from modelyard.engines.base import Batch, MemoryTrace, ModelSpec, OptimizerSpec, Plan
from modelyard.engines.torch import models, trace_known, trace_pretend
from modelyard.engines.torch.engine import TorchEngine
from modelyard.engines.torch.trace import measure, trace
from modelyard.engines.torch.trace_known import Lazy, value_of_result
from modelyard.engines.torch.trace_pretend import UntraceableError
from modelyard.errors import InputError

LABELS = ("a", "b", "c")
PLAN = Plan(device="cpu", precision="float32", max_micro_batch_tokens=512, seed=5)
ADAMW = OptimizerSpec("adamw", weight_decay=0.1)
OTHERS: dict[str, dict[str, Any]] = {
    "distilbert": {
        "dim": 16,
        "n_heads": 2,
        "hidden_dim": 32,
        "n_layers": 2,
        "vocab_size": 60,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 64, "pad_token_id": 1},
    "llama": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "vocab_size": 60,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
    },
}
MakeBatch = Callable[..., Batch]
ConfigOf = Callable[..., dict[str, Any]]
Checkpoint = Callable[..., tuple[Path, Any]]


@pytest.fixture
def spec_of(config_of: ConfigOf) -> Callable[..., ModelSpec]:
    def make(family: str, **changes: Any) -> ModelSpec:
        keys = {"model_type": family, **OTHERS[family]} if family in OTHERS else config_of(family)
        return ModelSpec(None, keys, LABELS, **changes)

    return make


def both(
    spec: ModelSpec, optimizer: OptimizerSpec, plan: Plan, training: Sequence[Batch], evaluation: Batch
) -> tuple[MemoryTrace, MemoryTrace]:
    return (
        trace(spec, optimizer, plan, training=training, evaluation=evaluation),
        measure(spec, optimizer, plan, training=training, evaluation=evaluation),
    )


def same_peaks(traced: MemoryTrace, real: MemoryTrace) -> bool:
    return (traced.step_peak, traced.evaluation_peak) == (real.step_peak, real.evaluation_peak)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["bert", "roberta", "longformer", "distilbert", "gpt2", "llama"])
def test_the_traced_peak_is_the_real_one(
    family: str, checkpointing: bool, precision: Any, spec_of: Callable[..., ModelSpec], make_batch: MakeBatch
) -> None:
    plan = replace(PLAN, precision=precision, activation_checkpointing=checkpointing)
    for optimizer, rows in (
        (ADAMW, [range(3)]),
        (OptimizerSpec("adam", freeze=("embeddings",), average_decay=0.9), [range(2), range(2, 5)]),
        (OptimizerSpec("adamw", freeze=("embeddings", "encoder"), max_gradient_norm=None), [range(3)]),
    ):
        training = [make_batch(list(each), longest=40) for each in rows]
        traced, real = both(spec_of(family), optimizer, plan, training, make_batch(list(range(9, 13)), longest=60))
        assert same_peaks(traced, real), (optimizer, traced.step_peak, real.step_peak)
        assert traced.num_parameters == real.num_parameters
        assert traced.num_trainable_parameters == real.num_trainable_parameters


@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])
def test_texts_without_padding_and_without_dropout(
    attention_dropout: float, spec_of: Callable[..., ModelSpec], make_batch: MakeBatch
) -> None:
    batch = make_batch([0])
    for family in ("bert", "longformer"):
        spec = spec_of(family, attention_dropout=attention_dropout, hidden_dropout=0.0)
        assert same_peaks(*both(spec, ADAMW, PLAN, [batch], batch))


@pytest.mark.parametrize("largest", [2**22, 64])
def test_upstreams_longformer_and_masks_too_large_to_compute(
    largest: int, spec_of: Callable[..., ModelSpec], make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (trace_known, trace_pretend):
        monkeypatch.setattr(module, "LARGEST_KNOWN", largest)
    training, evaluation = [make_batch([1, 2], longest=30)], make_batch([3, 4, 5], longest=60)
    if largest == 64:  # each row of the mask is still known
        training, evaluation = [make_batch([1, 2], longest=20)], make_batch([3, 4], longest=20)
    assert same_peaks(*both(spec_of("longformer"), ADAMW, PLAN, training, evaluation))
    monkeypatch.setattr(models, "_accelerated", lambda model: model)
    assert same_peaks(*both(spec_of("longformer"), ADAMW, PLAN, training, evaluation))


@pytest.mark.parametrize("family", ["bert", "longformer"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_traced_peak_is_what_the_allocator_gave(
    family: str, precision: Any, spec_of: Callable[..., ModelSpec], make_batch: MakeBatch, tmp_path: Path
) -> None:
    """Without any tracker; what operations take and give back inside is in the allocator's figure only."""
    plan, spec = replace(PLAN, precision=precision), spec_of(family)
    training, evaluation = [make_batch(list(range(16)), longest=60)], make_batch(list(range(8)), longest=60)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        learner = TorchEngine().learner(spec, ADAMW, plan)
        learner.step(training, 0.0)
        gc.collect()
        with record_function("STEP"):
            learner.step(training, 0.0)
        with record_function("EVALUATION"):
            learner.predict(evaluation)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    traced = trace(spec, ADAMW, plan, training=training, evaluation=evaluation)
    assert traced.evaluation_peak is not None
    for name, use in (("STEP", traced.step_peak), ("EVALUATION", traced.evaluation_peak)):
        assert use.total == pytest.approx(_allocated(events, name), rel=0.02)


def _allocated(events: list[dict[str, Any]], during: str) -> int:
    (span,) = (each for each in events if each.get("name") == during and each.get("cat") == "user_annotation")
    live = most = 0
    for event in sorted(
        (each for each in events if each.get("name") == "[memory]"), key=lambda each: each["args"]["Ev Idx"]
    ):
        live += event["args"]["Bytes"]
        if span["ts"] <= event["ts"] <= span["ts"] + span["dur"]:
            most = max(most, live)
    return most


def test_of_a_source_only_the_configuration_is_read(
    checkpoint: Checkpoint, make_batch: MakeBatch, tmp_path: Path
) -> None:
    folder, _ = checkpoint("bert")
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    training, evaluation = [make_batch([1, 2])], make_batch([3, 4, 5])
    for changes in ({}, {"num_layers": 1}, {"extend_to": 100, "attention_window": 8}):
        spec = ModelSpec(folder, {}, LABELS, **changes)  # type: ignore[arg-type]
        bare = replace(spec, source=tmp_path / "bare")
        traced = trace(bare, ADAMW, PLAN, training=training, evaluation=evaluation)
        real = measure(spec, ADAMW, PLAN, training=training, evaluation=evaluation)
        assert traced.num_parameters == real.num_parameters, changes
        assert same_peaks(traced, real), (changes, traced.step_peak, real.step_peak)
    with pytest.raises(InputError, match=r"no config\.json"):
        trace(ModelSpec(tmp_path, {}, LABELS), ADAMW, PLAN, training=training)


def test_the_events_replay_to_the_peak(spec_of: Callable[..., ModelSpec], make_batch: MakeBatch) -> None:
    traced = trace(spec_of("longformer"), ADAMW, PLAN, training=[make_batch([1, 2])], evaluation=make_batch([3]))
    live: dict[int, int] = {}
    most = []
    for part in (traced.held, traced.step, traced.evaluation):
        most.append(0)
        for event in part:
            live[event.storage] = live.get(event.storage, 0) + event.num_bytes
            assert live[event.storage] >= 0
            most[-1] = max(most[-1], sum(live.values()))
    assert traced.evaluation_peak is not None
    assert most[1:] == [traced.step_peak.total, traced.evaluation_peak.total]
    assert traced.peak_bytes == max(most[1:])
    weights = 4 * traced.num_trainable_parameters
    use = traced.step_peak
    # Adam keeps two tensors a weight, and the number of the step for each.
    assert 2 * weights < use.optimizer < 2.1 * weights
    assert use.weights >= weights
    assert use.activations > 0


def test_a_large_model_takes_no_memory_and_moves_no_random_number(make_batch: MakeBatch) -> None:
    config = {"model_type": "bert", "vocab_size": 60, "max_position_embeddings": 512}
    rows = 8 * [0]
    batch = make_batch(rows)
    long = {name: np.ones((8, 512), np.int64) for name in ("input_ids", "attention_mask")}
    batch = replace(batch, arrays={**batch.arrays, **long})
    state, before = torch.get_rng_state(), psutil.Process().memory_info().rss
    traced = trace(ModelSpec(None, config, LABELS), ADAMW, PLAN, training=[batch], evaluation=batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert traced.peak_bytes > 5e9
    assert psutil.Process().memory_info().rss - before < 300e6


def test_code_that_asks_for_values_is_named(
    spec_of: Callable[..., ModelSpec], make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = BertForSequenceClassification.forward

    def forward(self: Any, **inputs: Any) -> Any:
        outputs = upstream(self, **inputs)
        if outputs.logits.sum().item() > 0:  # asks
            outputs.logits = outputs.logits * 2
        return outputs

    monkeypatch.setattr(BertForSequenceClassification, "forward", forward)
    batch = make_batch([1, 2])
    with pytest.raises(UntraceableError, match=r"aten\._local_scalar_dense.* in test_trace\.py:\d+") as caught:
        trace(spec_of("bert"), ADAMW, PLAN, training=[batch])
    assert caught.value.operation == "aten._local_scalar_dense.default"
    assert caught.value.exit_code == 3
    assert "measure" in caught.value.hint
    measured = measure(spec_of("bert"), ADAMW, PLAN, training=[batch])
    assert measured.evaluation_peak is None
    assert measured.evaluation == ()


def test_a_lazy_mask_says_what_the_mask_would() -> None:
    aten = torch.ops.aten
    rows, columns = torch.rand(2, 1, 5, 1) > 0.5, torch.rand(2, 1, 1, 7) > 0.5
    whole = (rows & columns).expand(2, 3, 5, 7)
    lazy = Lazy(aten.bitwise_and.Tensor, (rows, columns), {}, (2, 1, 5, 7), (0, 1, 2, 3))
    wide = Lazy(aten.expand.default, (lazy, [2, 3, 5, 7]), {}, (2, 3, 5, 7), (0, 1, 2, 3))
    floats = Lazy(aten.where.ScalarOther, (wide, torch.tensor(2.0), 0.5), {}, (2, 3, 5, 7), (0, 1, 2, 3))
    assert torch.equal(floats.compute(), torch.where(whole, torch.tensor(2.0), 0.5))
    assert torch.equal(wide.select(1, -1).select(1, 4).compute(), whole[:, -1, 4])
    assert torch.equal(floats.select(3, 2).select(0, 1).compute(), torch.where(whole, 2.0, 0.5)[1, ..., 2])
    again = value_of_result(aten.select.int, (wide, 0, 1), {}, (3, 5, 7))
    assert isinstance(again, torch.Tensor)
    assert torch.equal(again, whole[1])
    assert value_of_result(aten.any.default, (wide,), {}, ()) is None


def test_a_configuration_of_no_use_is_refused(tmp_path: Path, make_batch: MakeBatch) -> None:
    AutoConfig.for_model("bert").save_pretrained(tmp_path)
    spec = ModelSpec(tmp_path, {}, LABELS, num_layers=50)
    with pytest.raises(InputError, match="num_layers is 50"):
        trace(spec, ADAMW, PLAN, training=[make_batch([1])])
