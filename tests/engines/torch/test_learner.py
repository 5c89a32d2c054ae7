"""The step against plain autograd and torch.optim, exact resume, prediction, disks that are full."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from modelyard.engines.base import Batch, ModelSpec, OptimizerSpec, Plan
from modelyard.engines.torch import learner as learner_module
from modelyard.engines.torch.engine import TorchEngine
from modelyard.engines.torch.learner import TorchLearner
from modelyard.errors import InputError, MachineError

LABELS = ("a", "b", "c")
PLAN = Plan(device="cpu", precision="float32", max_micro_batch_tokens=512, seed=5)
ADAMW = OptimizerSpec("adamw", weight_decay=0.1)
MakeBatch = Callable[..., Batch]
ConfigOf = Callable[..., dict[str, Any]]


def learner_of(
    config: dict[str, Any], optimizer: OptimizerSpec = ADAMW, *, dropout: float = 0.0, plan: Plan = PLAN
) -> TorchLearner:
    spec = ModelSpec(None, config, LABELS, hidden_dropout=dropout, attention_dropout=dropout)
    return TorchEngine().learner(spec, optimizer, plan)


def weights(learner: TorchLearner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner._tensors().items()}


def gradients(learner: TorchLearner) -> dict[str, torch.Tensor]:
    return {name: each.grad.clone() for name, each in learner._learning().items() if each.grad is not None}


def split(make_batch: MakeBatch, rows: Sequence[int], size: int) -> list[Batch]:
    return [make_batch(rows[start : start + size]) for start in range(0, len(rows), size)]


@pytest.mark.parametrize("family", ["bert", "roberta", "longformer"])
def test_the_gradient_does_not_depend_on_the_micro_batches(
    family: str, config_of: ConfigOf, make_batch: MakeBatch
) -> None:
    rows = list(range(16))
    spec = replace(ADAMW, max_gradient_norm=None)
    once, often = (learner_of(config_of(family), spec) for _ in range(2))
    whole = once.step(split(make_batch, rows, 16), 0.0)
    parts = often.step(split(make_batch, rows, 4), 0.0)
    assert parts.loss.item() == pytest.approx(whole.loss.item(), abs=1e-6)
    assert parts.num_tokens == whole.num_tokens and parts.num_examples == 16
    for (name, one), other in zip(gradients(once).items(), gradients(often).values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=0), name


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_step_is_that_of_torch_optim_on_the_weighted_mean(
    name: Any, config_of: ConfigOf, make_batch: MakeBatch
) -> None:
    spec = OptimizerSpec(name, (0.8, 0.95), 1e-6, weight_decay=0.3, max_gradient_norm=0.5, label_smoothing=0.1)
    learner = learner_of(config_of(), spec)
    other = AutoModelForSequenceClassification.from_config(learner._model.config)
    other.load_state_dict(learner._model.state_dict())
    decayed = [each for each in other.parameters() if each.ndim > 1]
    kept = [each for each in other.parameters() if each.ndim == 1]
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    oracle = kind(
        [{"params": decayed, "weight_decay": 0.3}, {"params": kept, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.8, 0.95),
        eps=1e-6,
    )
    for rows in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9]):
        outcome = learner.step(split(make_batch, rows, 2), 0.01)
        batch = make_batch(rows)
        tensors = {key: torch.tensor(batch.arrays[key]) for key in ("input_ids", "attention_mask")}
        losses = F.cross_entropy(
            other(**tensors).logits,
            torch.tensor(batch.arrays["labels"]),
            reduction="none",
            label_smoothing=0.1,
        )
        loss = (losses * torch.tensor(batch.weights)).sum() / float(batch.weights.sum())
        oracle.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        oracle.step()
        assert outcome.loss.item() == pytest.approx(loss.item(), abs=1e-6)
        assert outcome.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    for key, value in other.state_dict().items():
        assert torch.allclose(value, learner._model.state_dict()[key], atol=2e-5), key


def test_multipliers_and_freezing_act_on_their_parts(config_of: ConfigOf, make_batch: MakeBatch) -> None:
    # Adam's first step moves every weight that has a gradient by the learning rate (arXiv 1412.6980, 2.1).
    spec = OptimizerSpec("adam", head_multiplier=8.0, embedding_multiplier=0.5, freeze=("encoder",))
    learner = learner_of(config_of(), spec)
    before = weights(learner)
    learner.step([make_batch(range(12))], 1e-3)
    moved = {name: float((after - before[name]).abs().max()) for name, after in weights(learner).items()}
    assert moved["classifier.weight"] == pytest.approx(8e-3, rel=1e-3)
    assert moved["bert.pooler.dense.weight"] == pytest.approx(8e-3, rel=1e-2)
    assert moved["bert.embeddings.word_embeddings.weight"] == pytest.approx(5e-4, rel=1e-2)
    assert moved["bert.embeddings.position_embeddings.weight"] == pytest.approx(5e-4, rel=1e-2)
    assert all(value == 0 for name, value in moved.items() if ".encoder." in name)
    assert learner.num_trainable_parameters < learner.num_parameters


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_resume_goes_on_to_the_bit(
    optimizer: Any, config_of: ConfigOf, make_batch: MakeBatch, tmp_path: Path
) -> None:
    steps = [split(make_batch, range(start, start + 6), 3) for start in range(0, 48, 6)]
    config, spec = config_of("longformer"), OptimizerSpec(optimizer, weight_decay=0.01)
    undisturbed = learner_of(config, spec, dropout=0.2)
    losses = [undisturbed.step(step, 1e-3).loss.item() for step in steps]

    first = learner_of(config, spec, dropout=0.2)
    assert [first.step(step, 1e-3).loss.item() for step in steps[:4]] == losses[:4]
    first.save(tmp_path)
    resumed = learner_of(config, spec, dropout=0.2, plan=replace(PLAN, seed=5))
    resumed.load(tmp_path)
    torch.manual_seed(99)  # whatever happened to the generators meanwhile
    assert [resumed.step(step, 1e-3).loss.item() for step in steps[4:]] == losses[4:]
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    for name, tensor in undisturbed._moments().items():
        assert torch.equal(tensor, resumed._moments()[name]), name


def test_a_checkpoint_holds_no_pickle(config_of: ConfigOf, make_batch: MakeBatch, tmp_path: Path) -> None:
    learner = learner_of(config_of())
    learner.step([make_batch(range(4))], 1e-3)
    learner.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_dropout_differs_from_step_to_step_and_by_seed(config_of: ConfigOf, make_batch: MakeBatch) -> None:
    batch = make_batch(range(8))

    def losses(seed: int) -> list[float]:
        learner = learner_of(config_of(), dropout=0.5, plan=replace(PLAN, seed=5))
        learner._seed = seed
        return [learner.step([batch], 0.0).loss.item() for _ in range(3)]

    assert len({*losses(5), *losses(6)}) == 6
    assert losses(5) == losses(5)


def test_prediction_leaves_training_alone(config_of: ConfigOf, make_batch: MakeBatch) -> None:
    batch = make_batch(range(8))
    asked, undisturbed = (learner_of(config_of(), dropout=0.3) for _ in range(2))
    for _ in range(3):
        first = asked.predict(batch).logits
        assert np.array_equal(first, asked.predict(batch).logits)  # no dropout in it
        assert first.dtype == np.float32 and first.shape == (8, 3)
        assert asked.step([batch], 1e-3).loss.item() == undisturbed.step([batch], 1e-3).loss.item()


def test_initial_weights_follow_the_seed(config_of: ConfigOf) -> None:
    one, same = learner_of(config_of()), learner_of(config_of())
    other = learner_of(config_of(), plan=replace(PLAN, seed=6))
    name = "classifier.weight"
    assert torch.equal(weights(one)[name], weights(same)[name])
    assert not torch.equal(weights(one)[name], weights(other)[name])


@pytest.mark.parametrize("family", ["bert", "longformer"])
def test_activation_checkpointing_changes_no_gradient(family: str, config_of: ConfigOf, make_batch: MakeBatch) -> None:
    plain = learner_of(config_of(family), dropout=0.2)
    lean = learner_of(config_of(family), dropout=0.2, plan=replace(PLAN, activation_checkpointing=True))
    assert any(getattr(module, "gradient_checkpointing", False) for module in lean._model.modules())
    step = split(make_batch, range(8), 4)
    assert plain.step(step, 0.0).loss.item() == lean.step(step, 0.0).loss.item()
    for (name, one), other in zip(gradients(plain).items(), gradients(lean).values(), strict=True):
        assert torch.allclose(one, other, atol=1e-7), name


@pytest.mark.parametrize("family", ["bert", "longformer"])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(
    family: str, config_of: ConfigOf, make_batch: MakeBatch
) -> None:
    batch = make_batch(range(8))
    exact = learner_of(config_of(family))
    rough = learner_of(config_of(family), plan=replace(PLAN, precision="bfloat16"))
    difference = np.abs(exact.predict(batch).logits - rough.predict(batch).logits).max()
    assert 0 < difference < 0.02  # bfloat16 has 8 bits of mantissa
    losses = [rough.step([batch], 1e-2).loss.item() for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert {parameter.dtype for parameter in rough._model.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in rough._moments().values()} == {torch.float32}


def test_a_step_that_is_no_number_changes_nothing(config_of: ConfigOf, make_batch: MakeBatch) -> None:
    learner = learner_of(config_of())
    learner.step([make_batch(range(4))], 1e-3)
    before, moments = weights(learner), {name: each.clone() for name, each in learner._moments().items()}
    good = make_batch(range(4))
    bad = replace(good, weights=np.asarray([1, 1, np.inf, 1], dtype=np.float32))
    outcome = learner.step([bad], 1e-3)
    assert not np.isfinite(outcome.loss.item())
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())
    assert all(torch.equal(tensor, moments[name]) for name, tensor in learner._moments().items())
    assert np.isfinite(learner.step([good], 1e-3).loss.item())


def test_examples_without_weight_do_not_count(config_of: ConfigOf, make_batch: MakeBatch) -> None:
    batch = make_batch([0, 1, 2, 3])
    filled = replace(batch, weights=np.asarray([1, 1, 0, 0], dtype=np.float32))
    alone = make_batch([0, 1])
    alone = replace(alone, weights=np.ones(2, dtype=np.float32))
    with_fill, without = learner_of(config_of()), learner_of(config_of())
    outcome = with_fill.step([filled], 1e-3)
    assert outcome.loss.item() == pytest.approx(without.step([alone], 1e-3).loss.item(), abs=1e-6)
    assert outcome.num_examples == 2


@pytest.mark.parametrize("family", ["bert", "longformer"])
def test_what_is_written_is_a_hugging_face_model(
    family: str, config_of: ConfigOf, make_batch: MakeBatch, tmp_path: Path
) -> None:
    learner = learner_of(config_of(family))
    batch = make_batch(range(6))
    learner.step([batch], 1e-2)
    logits = learner.predict(batch).logits
    learner.write_model(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.id2label == dict(enumerate(LABELS))
    with torch.inference_mode():
        expected = loaded(
            input_ids=torch.tensor(batch.arrays["input_ids"]),
            attention_mask=torch.tensor(batch.arrays["attention_mask"]),
        ).logits
    assert np.allclose(logits, expected.numpy(), atol=1e-5)
    predictor = TorchEngine().predictor(tmp_path, "cpu")
    assert np.array_equal(predictor.predict(batch).logits, logits)
    rough = TorchEngine().predictor(tmp_path, "cpu", "bfloat16").predict(batch).logits
    assert rough.dtype == np.float32 and np.allclose(rough, logits, atol=0.05)


def test_read_only_arrays_are_taken(config_of: ConfigOf, make_batch: MakeBatch) -> None:
    batch = make_batch(range(4))
    for array in batch.arrays.values():
        array.setflags(write=False)
    learner_of(config_of()).step([batch], 1e-3)


def test_an_unknown_token_is_an_error_with_its_id(config_of: ConfigOf, make_batch: MakeBatch) -> None:
    batch = make_batch(range(4))
    ids = batch.arrays["input_ids"].copy()
    ids[0, 0] = 77
    with pytest.raises(InputError, match="token id 77 has no embedding: the model has 60"):
        learner_of(config_of()).predict(replace(batch, arrays={**batch.arrays, "input_ids": ids}))


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(
    config_of: ConfigOf, make_batch: MakeBatch, tmp_path: Path
) -> None:
    other = learner_of(config_of(num_hidden_layers=1))
    other.step([make_batch(range(4))], 1e-3)
    other.save(tmp_path)
    learner = learner_of(config_of())
    before = weights(learner)
    with pytest.raises(InputError, match=r"does not fit this model: bert\.encoder\.layer\.1.* has shape none there"):
        learner.load(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())


def test_a_checkpoint_of_another_optimizer_is_refused(config_of: ConfigOf, tmp_path: Path) -> None:
    learner_of(config_of(), OptimizerSpec("adam")).save(tmp_path)
    with pytest.raises(InputError, match="optimizer 'adam', here they are 1 and 'adamw'"):
        learner_of(config_of()).load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_an_input_error(
    name: str, config_of: ConfigOf, make_batch: MakeBatch, tmp_path: Path
) -> None:
    learner = learner_of(config_of())
    learner.step([make_batch(range(4))], 1e-3)
    learner.save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:7])
    with pytest.raises(InputError, match="cannot be read"):
        learner.load(tmp_path)


def test_moments_of_an_unknown_parameter_are_refused(
    config_of: ConfigOf, make_batch: MakeBatch, tmp_path: Path
) -> None:
    learner = learner_of(config_of())
    learner.step([make_batch(range(4))], 1e-3)
    learner.save(tmp_path)
    frozen = learner_of(config_of(), replace(ADAMW, freeze=("embeddings",)))
    with pytest.raises(InputError, match=r"does not fit this model: bert\.embeddings"):
        frozen.load(tmp_path)


def test_a_full_disk_is_an_oserror_as_the_system_said_it(
    config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise learner_module.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(learner_module, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        learner_of(config_of()).save(tmp_path)
    assert caught.value.errno == 28


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_too_little_memory_says_what_to_change(error: RuntimeError, config_of: ConfigOf, make_batch: MakeBatch) -> None:
    learner = learner_of(config_of())

    def fail(**_: object) -> None:
        raise error

    learner._predictor.call = fail
    with pytest.raises(MachineError, match="cpu has not enough memory") as caught:
        learner.step([make_batch(range(4))], 1e-3)
    assert "max_micro_batch_tokens" in caught.value.hint
    with pytest.raises(MachineError):
        learner.predict(make_batch(range(4)))
    assert learner._model.training  # an error inside prediction leaves training mode on


def test_other_errors_of_a_step_are_not_disguised(config_of: ConfigOf, make_batch: MakeBatch) -> None:
    learner = learner_of(config_of())

    def fail(**_: object) -> None:
        raise RuntimeError("a bug")

    learner._predictor.call = fail
    with pytest.raises(RuntimeError, match="a bug"):
        learner.step([make_batch(range(4))], 1e-3)


def test_a_failing_compiler_says_how_to_go_on(config_of: ConfigOf, make_batch: MakeBatch) -> None:
    learner = learner_of(config_of())
    failure = type("InvalidCxxCompiler", (RuntimeError,), {"__module__": "torch._inductor.exc"})

    def fail(**_: object) -> None:
        raise failure("No working C++ compiler found")

    learner._predictor.call = fail
    with pytest.raises(MachineError, match=r"torch\.compile failed: No working C") as caught:
        learner.step([make_batch(range(4))], 1e-3)
    assert "training.compile=false" in caught.value.hint


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch, about itself
def test_compile_computes_the_same(config_of: ConfigOf, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    # Generating and compiling C++ takes half a minute; everything before it is the same with this back end.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain = learner_of(config_of(num_hidden_layers=1))
    compiled = learner_of(config_of(num_hidden_layers=1), plan=replace(PLAN, compile=True))
    for rows in (range(4), range(7)):
        step = [make_batch(rows)]
        assert compiled.step(step, 1e-3).loss.item() == pytest.approx(plain.step(step, 1e-3).loss.item(), abs=1e-5)


def test_a_longformer_cannot_be_compiled(config_of: ConfigOf) -> None:
    with pytest.raises(InputError, match="compile is true, but the attention of a longformer"):
        learner_of(config_of("longformer"), plan=replace(PLAN, compile=True))


def test_peak_memory_is_the_systems_high_water_mark(config_of: ConfigOf) -> None:
    resource = pytest.importorskip("resource")
    peak = learner_of(config_of()).peak_memory_bytes()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert 0.8 * psutil.Process().memory_info().rss <= peak <= 1.05 * most


def test_state_says_its_format(config_of: ConfigOf, tmp_path: Path) -> None:
    learner = learner_of(config_of())
    learner.save(tmp_path)
    assert json.loads((tmp_path / "state.json").read_text())["format"] == 1


AVERAGED = replace(ADAMW, average_decay=0.9)


def test_the_average_is_what_predicts_and_is_written(
    config_of: ConfigOf, make_batch: MakeBatch, tmp_path: Path
) -> None:
    """Against the definition, followed by hand on the weights that each step left."""
    learner, batch = learner_of(config_of(), AVERAGED), make_batch(range(6))
    expected = weights(learner)
    for step in range(1, 6):
        learner.step([batch], 1e-2)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * each for name, each in weights(learner).items()}
    raw = weights(learner)
    learner.write_model(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-6)
    ids, mask = (torch.tensor(batch.arrays[name]) for name in ("input_ids", "attention_mask"))
    with torch.inference_mode():
        logits = loaded.train(False)(input_ids=ids, attention_mask=mask).logits.numpy()
    np.testing.assert_allclose(learner.predict(batch).logits, logits, atol=1e-5)
    for name, tensor in weights(learner).items():  # training goes on from its own weights
        assert torch.equal(tensor, raw[name])


def test_the_average_is_kept_in_checkpoints(config_of: ConfigOf, make_batch: MakeBatch, tmp_path: Path) -> None:
    batch = make_batch(range(6))
    first, second = (learner_of(config_of(), AVERAGED) for _ in range(2))
    for _ in range(3):
        first.step([batch], 1e-2)
    first.save(tmp_path)
    second.load(tmp_path)
    for learner in (first, second):
        learner.step([batch], 1e-2)
    np.testing.assert_array_equal(first.predict(batch).logits, second.predict(batch).logits)
