"""The plan against the traces of what it speaks of, and what it says where things are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.data.batches import training_steps
from modelyard.design.planner import rescale
from modelyard.engines.base import Batch, MemoryTrace, ModelSpec, OptimizerSpec, Plan
from modelyard.engines.torch.engine import TorchEngine
from modelyard.engines.torch.trace_pretend import UntraceableError
from modelyard.errors import InputError, MachineError
from modelyard.recipe.schema import Recipe
from modelyard.workflow.forecasting import largest_batch
from modelyard.workflow.learning import prepare
from modelyard.workflow.stages import load_recipe, plan

CAUSES = ("weights", "gradients", "optimizer", "activations", "temporaries", "inputs")


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file)


@pytest.fixture
def wide(recipe_file: Path) -> Recipe:
    """One for which activations are most of the memory."""
    return load_recipe(
        recipe_file,
        [
            "design.architecture={family: bert, preset: tiny, hidden_size: 64, num_layers: 4, vocab_size: 400}",
            "design.attention_window=null",
            "training.batch_size=64",
            "training.max_micro_batch_tokens=3072",
        ],
    )


def batch(examples: int, tokens: int) -> Batch:
    arrays = {
        "input_ids": np.full((examples, tokens), 7, np.int64),
        "attention_mask": np.ones((examples, tokens), np.int64),
        "labels": np.zeros(examples, np.int64),
    }
    return Batch(arrays, np.ones(examples, np.float32), np.arange(examples))


def config(family: str) -> dict[str, Any]:
    keys = {
        "model_type": family,
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "vocab_size": 300,
        "max_position_embeddings": 140,
        "pad_token_id": 1,
    }
    return keys | ({"attention_window": [16] * 3, "sep_token_id": 2} if family == "longformer" else {})


@pytest.mark.parametrize("family", ["bert", "longformer"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_scaled_trace_is_the_trace_of_the_larger_batch(family: str, precision: Any, checkpointing: bool) -> None:
    """Never too low, and little too high: what grows a little slower than the batch is counted in full.

    The layers here are so small that their weights in bfloat16 look like activations, which is taken for the worst.
    """
    most = 1.05 if precision == "float32" else 1.2
    chosen = Plan("cpu", precision, 1024, activation_checkpointing=checkpointing)

    def traced(*training: Batch) -> MemoryTrace:
        spec = ModelSpec(None, config(family), ("a", "b"))
        return TorchEngine().trace(
            spec, OptimizerSpec("adamw"), chosen, training=training, evaluation=batch(training[0].num_examples, 112)
        )

    one, many = traced(batch(1, 112)), traced(batch(8, 112))
    twice = traced(batch(8, 112), batch(8, 112))
    for scaled, real in ((rescale(one, 8), many), (rescale(one, 8, accumulates=True), twice)):
        assert 0.99 * real.step_peak.total <= scaled.step_peak.total <= most * real.step_peak.total
        assert scaled.evaluation_peak and real.evaluation_peak
        assert scaled.evaluation_peak.total >= 0.99 * real.evaluation_peak.total
        assert scaled.evaluation_peak.total <= most * real.evaluation_peak.total


def test_the_micro_batch_that_is_traced_is_the_largest_of_all(recipe: Recipe) -> None:
    split = prepare(recipe).prepared.train
    for tokens in (48, 150, 400):
        found = largest_batch(split.lengths, tokens, 16)
        assert found.examples == 1 or found.examples * found.tokens <= tokens
        steps = training_steps(
            split, batch_size=16, max_micro_batch_tokens=tokens, seed=1, epoch=0, pad_token_id=0, padding="batch",
            max_length=48, train_window=None, class_weights="none",
        )  # fmt: skip
        real = max(each.arrays["input_ids"].size for step in steps for each in step)
        assert 0.9 * real <= found.examples * found.tokens


def test_the_plan_says_what_it_takes_here(recipe: Recipe) -> None:
    value = plan(recipe, device="cpu")
    assert {"model", "device", "precision", "max_micro_batch_tokens", "steps_per_epoch", "reasons"} <= set(value)
    memory = value["memory"]
    assert set(memory["training"]) == {*CAUSES, "runtime"}
    assert memory["needed_bytes"] == max(sum(memory["training"].values()), sum(memory["evaluation"].values()))
    assert memory["fits"] and memory["num_parameters"] == value["model"]["num_parameters"]
    assert value["time"]["step_seconds"] is None and value["time"]["flops_per_step"] > 0


def test_a_gpu_that_is_not_here(wide: Recipe) -> None:
    value = plan(wide, device="h100")
    memory, time = value["memory"], value["time"]
    assert set(memory["training"]) == {*CAUSES, "allocator", "workspace", "runtime"}
    assert not value["device"]["here"] and value["device"]["known_as"] == "h100"
    step = time["step_seconds"]
    assert step["low"] == pytest.approx(0.6 * step["expected"]) and step["high"] == pytest.approx(
        1.4 * step["expected"]
    )
    assert time["run_seconds"]["expected"] == pytest.approx(step["expected"] * time["num_steps"])
    assert time["costs"] and all(each["source"] and each["date"] for each in time["costs"])
    assert "auto" not in value["reasons"].get("environment.device", "")


def test_what_does_not_fit_gets_ways_that_do(wide: Recipe) -> None:
    """Each setting, typed as it is proposed, makes a plan that takes what was said."""
    before = plan(wide, device="24GB")["memory"]
    outside = before["training"]["runtime"] + before["training"]["workspace"]
    tight = outside + (before["needed_bytes"] - outside) * 6 // 10
    found = plan(wide, device=f"{tight / 1e6:.3f}MB")
    assert not found["memory"]["fits"]
    ways = {each["kind"]: each for each in found["alternatives"]}
    assert {"micro_batch", "checkpointing", "precision", "shorter", "layers", "device"} == set(ways)
    assert found["alternatives"][0]["fits"] and found["alternatives"][0]["effect"] == "nothing"
    assert 0 < ways["shorter"]["values"]["share_lost"] < 1
    for kind in ("micro_batch", "checkpointing", "precision"):
        way = ways[kind]
        changed = load_recipe_with(wide, way["settings"])
        again = plan(changed, device=f"{tight / 1e6:.3f}MB")["memory"]
        assert again["needed_bytes"] == pytest.approx(way["needed_bytes"], rel=0.1), kind
        assert again["fits"] == way["fits"], kind


def load_recipe_with(recipe: Recipe, settings: list[str]) -> Recipe:
    import yaml

    from modelyard.recipe.write import set_values

    return set_values(recipe, {key: yaml.safe_load(value) for key, value in (each.split("=") for each in settings)})


def test_a_device_that_nobody_knows_gets_the_nearest_names(recipe: Recipe) -> None:
    with pytest.raises(InputError, match="a100"):
        plan(recipe, device="a1000")
    with pytest.raises(InputError, match="does not train"):
        plan(recipe, device="tpu-v5e")


def test_code_that_cannot_be_traced_leaves_the_rest(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> MemoryTrace:
        raise UntraceableError("aten.item", "model.py:1", "needs the values of a computed tensor")

    monkeypatch.setattr(TorchEngine, "trace", refuse)
    value = plan(recipe, device="t4")
    assert value["memory"]["operation"] == "aten.item" and value["alternatives"] == []
    assert value["time"]["flops_per_step"] > 0


def test_any_other_fault_of_the_machine_is_not_hidden(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> MemoryTrace:
        raise MachineError("no", hint="none")

    monkeypatch.setattr(TorchEngine, "trace", fail)
    with pytest.raises(MachineError, match="no"):
        plan(recipe, device="t4")


def test_a_model_is_traced_a_handful_of_times(wide: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Plan] = []
    real = TorchEngine.trace

    def counted(self: TorchEngine, model: ModelSpec, optimizer: OptimizerSpec, chosen: Plan, **batches: Any) -> Any:
        calls.append(chosen)
        return real(self, model, optimizer, chosen, **batches)

    monkeypatch.setattr(TorchEngine, "trace", counted)
    plan(wide, device="24GB")
    assert len(calls) == 1
    calls.clear()
    plan(wide, device="600MB")
    assert len(calls) <= 5
