"""The judge passes what is right and says what is wrong, and where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modelyard.environment.proof.bounds import BFLOAT16, BFLOAT16_PASS, FLOAT16, FLOAT32, TENSOR_FLOAT_32, bounds_for
from modelyard.environment.proof.judge import PLACES, Observed, failed, judge, same_device
from modelyard.environment.proof.problem import CASES, Case, make
from modelyard.environment.proof.record import Check, JudgedCase
from modelyard.environment.proof.reference import solve

STRICT, DEFAULT, MIXED_BFLOAT16, MIXED_FLOAT16 = CASES
PROBLEM = make(0)
REFERENCE = solve(PROBLEM)
NAME = "layer_1.attention.query.weight"


@pytest.fixture
def right() -> Observed:
    """What a framework would give that rounds only the results."""

    def copies(tensors):
        return {name: value.astype(np.float32).astype(np.float64) for name, value in tensors.items()}

    return Observed(
        losses=list(REFERENCE.losses),
        first_gradients=copies(REFERENCE.first_gradients),
        last_gradients=copies(REFERENCE.last_gradients),
        weights=copies(REFERENCE.weights),
        devices={place: {"cpu"} for place in PLACES},
        dtypes={place: {"float32"} for place in PLACES},
    )


def judged(observed: Observed, case: Case = STRICT, device: str = "cpu") -> JudgedCase:
    return judge(PROBLEM, REFERENCE, observed, case, device)


def failures(case: JudgedCase) -> dict[str, Check]:
    return {check.name: check for check in case.checks if not check.passed}


def test_the_right_answer_passes(right: Observed) -> None:
    case = judged(right)
    assert case.passed
    assert [check.name for check in case.checks] == ["finite", "device", "dtype", "loss", "gradients", "weights"]
    assert all(check.worst < check.bound for check in case.checks[3:])


@pytest.mark.parametrize("tensors", ["first_gradients", "last_gradients", "weights"])
def test_one_wrong_element_is_found(right: Observed, tensors: str) -> None:
    values = getattr(right, tensors)
    values[NAME][3, 5] += 1e-2 * np.abs(values[NAME]).max()
    found = failures(judged(right))
    assert list(found) == ["weights" if tensors == "weights" else "gradients"]
    check = next(iter(found.values()))
    assert check.where.startswith(NAME)
    assert "[3, 5]" in check.detail
    assert check.worst > check.bound


def test_a_wrong_loss_is_found(right: Observed) -> None:
    found = failures(judged(replace(right, losses=[*REFERENCE.losses[:2], REFERENCE.losses[2] * 1.0001])))
    assert list(found) == ["loss"]
    assert "[2]" in found["loss"].detail


def test_a_loss_too_few_is_found(right: Observed) -> None:
    found = failures(judged(replace(right, losses=REFERENCE.losses[:2])))
    assert found["loss"].detail == "shape (2,), expected (3,)"


@pytest.mark.parametrize("tensors", ["first_gradients", "last_gradients", "weights"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_found(right: Observed, tensors: str, value: float) -> None:
    getattr(right, tensors)[NAME][0, 1] = value
    found = failures(judged(right))
    assert found["finite"].where.startswith(NAME)
    assert found["finite"].detail == "1 of 1024 are NaN or infinite"
    other = found["weights" if tensors == "weights" else "gradients"]
    assert other.worst is None
    assert "[0, 1]" in other.detail


def test_a_missing_tensor_and_a_wrong_shape_are_found(right: Observed) -> None:
    del right.first_gradients[NAME]
    right.weights[NAME] = right.weights[NAME][:5]
    found = failures(judged(right))
    assert found["gradients"].where == f"{NAME}, first step"
    assert found["gradients"].detail == "the framework gave none"
    assert found["weights"].detail == "shape (5, 32), expected (32, 32)"


def test_weights_are_judged_by_how_far_they_moved(right: Observed) -> None:
    """A step of Adam that is 1% too long changes a weight by much less than that."""
    moved = {name: start + 1.01 * (REFERENCE.weights[name] - start) for name, start in PROBLEM.weights.items()}
    found = failures(judged(replace(right, weights=moved)))
    assert found["weights"].worst == pytest.approx(0.01, rel=1e-3)


def test_the_bias_of_the_keys_is_judged_by_its_weight(right: Observed) -> None:
    bias = "layer_0.attention.key.bias"
    largest = np.abs(REFERENCE.first_gradients["layer_0.attention.key.weight"]).max()
    right.first_gradients[bias] = np.full(32, 1e-6 * largest)
    assert judged(right).passed
    right.first_gradients[bias] = np.full(32, 1e-4 * largest)
    assert failures(judged(right))["gradients"].where == f"{bias}, first step"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("found", [set(), {"cpu"}, {"cuda:0", "cpu"}, {"meta"}])
def test_a_silent_fall_back_is_found(right: Observed, place: str, found: set[str]) -> None:
    on_gpu = replace(right, devices={**{each: {"cuda:0"} for each in PLACES}})
    assert judged(on_gpu, device="cuda").passed
    check = failures(judged(replace(on_gpu, devices={**on_gpu.devices, place: found}), device="cuda"))["device"]
    assert check.where == place
    assert "asked for cuda" in check.detail


@pytest.mark.parametrize(
    ("asked", "found", "same"),
    [
        ("cpu", "cpu", True),
        ("cpu", "cpu:0", True),
        ("cpu:0", "cpu", True),
        ("cuda", "cuda:1", True),
        ("cuda:1", "cuda:1", True),
        ("cuda:1", "cuda:0", False),
        ("cuda:1", "cuda", False),
        ("cuda", "cpu", False),
        ("mps", "mps:0", True),
    ],
)
def test_devices_are_compared_by_kind_and_index(asked: str, found: str, same: bool) -> None:
    assert same_device(asked, found) is same


@pytest.mark.parametrize("place", PLACES)
def test_another_precision_is_found(right: Observed, place: str) -> None:
    check = failures(judged(replace(right, dtypes={**right.dtypes, place: {"bfloat16"}})))["dtype"]
    assert (check.where, check.detail) == (place, "bfloat16, expected float32")


def test_mixed_precision_has_outputs_of_that_precision(right: Observed) -> None:
    assert failures(judged(right, MIXED_BFLOAT16)).keys() == {"dtype"}
    assert judged(replace(right, dtypes={**right.dtypes, "outputs": {"bfloat16"}}), MIXED_BFLOAT16).passed


def test_each_case_has_its_bounds() -> None:
    assert bounds_for(STRICT, "cuda:0") == bounds_for(STRICT, "tpu:0") == FLOAT32
    assert bounds_for(DEFAULT, "cuda:0") == TENSOR_FLOAT_32
    assert bounds_for(DEFAULT, "tpu:0") == BFLOAT16_PASS
    assert bounds_for(MIXED_BFLOAT16, "cpu") == BFLOAT16
    assert bounds_for(MIXED_FLOAT16, "cpu") == FLOAT16


def test_an_error_is_a_failed_case() -> None:
    case = failed(STRICT, RuntimeError("no kernel image"), 0.5)
    assert not case.passed
    assert case.checks == (Check("ran", False, detail="RuntimeError: no kernel image"),)
