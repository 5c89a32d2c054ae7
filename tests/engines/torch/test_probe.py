"""The fitted head against scikit-learn's logistic regression on what transformers itself computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoConfig, AutoModelForSequenceClassification

from modelyard.engines.base import Batch, ModelSpec, OptimizerSpec, Plan
from modelyard.engines.torch.engine import TorchEngine
from modelyard.engines.torch.learner import TorchLearner
from modelyard.engines.torch.probe import SLOPE
from modelyard.errors import InputError

LABELS = ("a", "b", "c")
MakeBatch = Callable[..., Batch]
ConfigOf = Callable[..., dict[str, Any]]
DISTILBERT = {"model_type": "distilbert", "dim": 16, "n_heads": 2, "hidden_dim": 32, "n_layers": 2, "vocab_size": 60}


def learner_of(
    config: dict[str, Any], *, average_decay: float | None = None, precision: Any = "float32"
) -> TorchLearner:
    plan = Plan(device="cpu", precision=precision, max_micro_batch_tokens=512, seed=5)
    optimizer = OptimizerSpec("adamw", average_decay=average_decay)
    return TorchEngine().learner(ModelSpec(None, config, LABELS, hidden_dropout=0.1), optimizer, plan)


def batches_of(make_batch: MakeBatch) -> list[Batch]:
    return [make_batch(range(start, start + 8)) for start in range(0, 48, 8)]


def features_of(model: Any, batches: list[Batch], layer: Any) -> np.ndarray[Any, Any]:
    """(N, D): what `layer` is given in evaluation mode."""
    taken: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    model.eval()
    with torch.no_grad():
        for batch in batches:
            ids, mask = (torch.tensor(batch.arrays[name]) for name in ("input_ids", "attention_mask"))
            model(input_ids=ids, attention_mask=mask)
    hook.remove()
    return torch.cat(taken).double().numpy()


def assert_same_logits(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], tolerance: float) -> None:
    """Equal up to a number for each example, which a softmax does not see."""
    found, expected = (each - each.mean(1, keepdims=True) for each in (found, expected))
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("family", ["bert", "roberta", "longformer", "distilbert"])
def test_the_head_is_scikit_learns_regression(family: str, config_of: ConfigOf, make_batch: MakeBatch) -> None:
    config = DISTILBERT if family == "distilbert" else config_of(family)
    learner, batches = learner_of(config), batches_of(make_batch)
    other = AutoModelForSequenceClassification.from_config(learner._model.config)
    other.load_state_dict(learner._model.state_dict())
    layer = {"bert": "bert.pooler.dense", "distilbert": "classifier"}.get(family, "classifier.dense")
    features = features_of(other, batches, other.get_submodule(layer))
    labels = np.concatenate([batch.arrays["labels"] for batch in batches])
    weights = np.concatenate([batch.weights for batch in batches])
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    if family != "distilbert":
        features = np.tanh(SLOPE * features) / SLOPE
    oracle = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(features, labels, sample_weight=weights)

    share = learner.fit_head(iter(batches))
    logits = np.concatenate([learner.predict(batch).logits for batch in batches])
    assert_same_logits(logits, oracle.decision_function(features), 1e-3)
    assert share == (logits.argmax(1) == labels).mean() == oracle.score(features, labels)
    assert share > 0.5 and learner._model.training


def test_only_the_head_changes_and_it_is_the_same_every_time(config_of: ConfigOf, make_batch: MakeBatch) -> None:
    one, other = (learner_of(config_of("longformer"), precision="bfloat16") for _ in range(2))
    before = {name: tensor.clone() for name, tensor in one._tensors().items()}
    one.fit_head(batches_of(make_batch))
    torch.rand(3)
    other.fit_head(batches_of(make_batch))
    for name, tensor in one._tensors().items():
        assert torch.equal(tensor, other._tensors()[name]), name
        assert torch.equal(tensor, before[name]) != name.startswith("classifier."), name


def test_the_average_starts_from_the_fitted_head(config_of: ConfigOf, make_batch: MakeBatch) -> None:
    plain, averaged = learner_of(config_of()), learner_of(config_of(), average_decay=0.98)
    batches = batches_of(make_batch)
    for learner in (plain, averaged):
        learner.fit_head(batches)
    assert np.array_equal(averaged.predict(batches[0]).logits, plain.predict(batches[0]).logits)


def test_a_checkpoint_holds_the_fitted_head(config_of: ConfigOf, make_batch: MakeBatch, tmp_path: Path) -> None:
    begun, resumed = (learner_of(config_of("longformer"), average_decay=0.9) for _ in range(2))
    batches = batches_of(make_batch)
    begun.fit_head(batches)
    begun.step(batches[:1], 1e-3)
    begun.save(tmp_path)
    resumed.load(tmp_path)
    for learner in (begun, resumed):
        learner.step(batches[1:2], 1e-3)
    assert np.array_equal(begun.predict(batches[2]).logits, resumed.predict(batches[2]).logits)


def test_a_head_over_all_positions_is_an_error(make_batch: MakeBatch) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=64, pad_token_id=1)
    learner = learner_of(config.to_dict())
    with pytest.raises(InputError, match="head_start is probe, but the head of a gpt2 does not end in") as caught:
        learner.fit_head(batches_of(make_batch))
    assert caught.value.hint == "--set training.head_start=random"
