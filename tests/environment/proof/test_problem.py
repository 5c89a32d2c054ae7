"""The problem holds what it says, so that mistakes are seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelyard.environment.proof import problem
from modelyard.environment.proof.problem import make, rounded, to_significant_bits

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("precision", problem.PRECISIONS)
def test_weights_are_exact_in_their_precision(precision: problem.Precision) -> None:
    for name, values in make(3, precision).weights.items():
        stored = torch.tensor(values).to(DTYPES[precision]).double().numpy()
        assert np.array_equal(stored, values), name


@pytest.mark.parametrize("precision", problem.PRECISIONS)
def test_rounding_is_what_hardware_does(precision: problem.Precision) -> None:
    values = np.random.default_rng(0).normal(size=1000)
    expected = torch.tensor(values).to(DTYPES[precision]).double().numpy()
    assert np.array_equal(rounded(values, precision), expected)


def test_rounding_to_bits_goes_to_the_even_neighbour() -> None:
    assert to_significant_bits(np.array([0.0, 1.0, 5.0, 7.0, -5.0, 0.3]), 2).tolist() == [
        0.0,
        1.0,
        4.0,
        8.0,
        -4.0,
        0.25,
    ]


def test_a_seed_gives_one_problem() -> None:
    one, same, other = make(1), make(1), make(2)
    assert all(np.array_equal(one.weights[name], same.weights[name]) for name in one.weights)
    assert np.array_equal(one.ids, same.ids)
    assert not np.array_equal(one.weights["classifier.weight"], other.weights["classifier.weight"])


def test_nothing_that_can_be_dropped_is_neutral() -> None:
    weights = make(0).weights
    for name, values in weights.items():
        if name.endswith(("bias", "shift")):
            assert np.abs(values).min() >= 0.1, name
        if name.endswith("scale"):
            assert np.abs(values - 1).min() >= 0.09, name


def test_the_batch_has_padding_and_repeated_tokens() -> None:
    for seed in range(20):
        batch = make(seed)
        assert batch.mask.sum(axis=1).tolist() == list(problem.LENGTHS)
        assert (batch.ids[~batch.mask] == problem.PADDING_ID).all()
        assert (batch.ids[batch.mask] != problem.PADDING_ID).all()
        assert batch.ids.max() < problem.VOCABULARY
        assert len(set(batch.ids[batch.mask].tolist())) < batch.mask.sum()
