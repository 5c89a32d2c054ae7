"""TensorFlow and JAX pass the proof, and every seeded mistake makes them fail it, where one of them is installed."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modelyard.engines.keras import numbers
from modelyard.environment.proof import command, record
from modelyard.environment.proof.problem import CASES, Case, Problem, make
from modelyard.environment.proof.record import JudgedCase
from modelyard.environment.proof.reference import adam, solve

STRICT, BFLOAT16, FLOAT16 = CASES[0], CASES[2], CASES[3]
MODULES = {"tensorflow": "proof_tensorflow", "jax": "proof_jax"}
SIDES = {"tensorflow": "TensorFlowSide", "jax": "JaxSide"}


@pytest.fixture(params=list(MODULES))
def proof(request: pytest.FixtureRequest) -> ModuleType:
    """The module of one framework that is installed here."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the frameworks' own imports
        module = importlib.import_module(f"modelyard.engines.keras.{MODULES[request.param]}")
        import keras

    if keras.backend.backend() != request.param:
        pytest.skip(f"Keras runs on {keras.backend.backend()} in this process")
    module.framework = request.param  # type: ignore[attr-defined]
    return module


def opened(proof: ModuleType, device: str = "cpu") -> Any:
    side = getattr(proof, SIDES[proof.framework])()
    side.open(device)
    return side


def judged(proof: ModuleType, case: Case, seed: int = 0) -> JudgedCase:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return command.run_case(opened(proof), case, "cpu", seed)


def failures(judged: JudgedCase) -> list[str]:
    return [f"{check.name} {check.where} {check.worst} {check.detail}" for check in judged.checks if not check.passed]


# Right answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.precision}-{case.mode}")
def test_every_precision_passes(proof: ModuleType, case: Case) -> None:
    assert failures(judged(proof, case, seed=1)) == []


@pytest.mark.parametrize("seed", range(2, 5))
def test_other_seeds_pass(proof: ModuleType, seed: int) -> None:
    assert failures(judged(proof, STRICT, seed)) == []


def test_the_command_proves_and_writes(proof: ModuleType, tmp_path: Path) -> None:
    """As an environment is proved: isolated, in a process of its own."""
    out = tmp_path / "proof.json"
    ended = start(proof, "--device", "cpu", "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    written = record.read(out)
    assert written.passed and written.device == "cpu"
    assert written.framework["name"] == proof.framework
    assert [case.precision for case in written.cases] == ["float32", "float32", "bfloat16", "float16"]
    assert proof.framework in written.stack.what and written.stack.losses[0] > written.stack.losses[-1]
    assert "keras" in written.versions


def test_a_device_that_is_not_there_is_an_error_of_the_machine(proof: ModuleType) -> None:
    ended = start(proof, "--device", "gpu:7")
    assert ended.returncode == 3
    assert "gpu:7" in ended.stderr and "modelyard doctor" in ended.stderr
    ended = start(proof, "--device", "abacus")
    assert ended.returncode == 3
    assert "'abacus'" in ended.stderr


def test_jax_platforms_is_respected(proof: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    if proof.framework != "jax":
        pytest.skip("a variable of JAX")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    ended = start(proof, "--device", "cpu")
    assert ended.returncode == 3
    assert "JAX_PLATFORMS is 'cuda'" in ended.stderr


def start(proof: ModuleType, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-m", proof.__name__, *arguments], capture_output=True, text=True, timeout=300
    )


# Sabotage -------------------------------------------------------------------------------------------------------------


def _wrong_softmax_scale(proof: ModuleType, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(proof, "math", SimpleNamespace(sqrt=lambda value: 1.02 * value**0.5))


def _dropped_bias(proof: ModuleType, patch: pytest.MonkeyPatch) -> None:
    right = proof.linear

    def linear(weights: Any, name: str, *rest: Any) -> Any:
        if name == "layer_1.attention.value":
            weights = {**weights, f"{name}.bias": weights[f"{name}.bias"] * 0}
        return right(weights, name, *rest)

    patch.setattr(proof, "linear", linear)


def _approximate_gelu(proof: ModuleType, patch: pytest.MonkeyPatch) -> None:
    place = proof.tf.nn if proof.framework == "tensorflow" else proof.jax.nn
    right = place.gelu
    patch.setattr(place, "gelu", lambda x, approximate: right(x, approximate=True))


def _padding_is_a_key(proof: ModuleType, patch: pytest.MonkeyPatch) -> None:
    right = proof.attention
    patch.setattr(
        proof, "attention", lambda problem, weights, name, x, mask, dtype: right(
            problem, weights, name, x, mask | True, dtype
        ),
    )  # fmt: skip


def _other_norm_epsilon(proof: ModuleType, patch: pytest.MonkeyPatch) -> None:
    right = proof.norm
    patch.setattr(
        proof, "norm", lambda problem, *rest: right(SimpleNamespace(norm_epsilon=problem.norm_epsilon / 10), *rest)
    )


def _unweighted_examples(proof: ModuleType, patch: pytest.MonkeyPatch) -> None:
    right = proof.loss_of

    def loss_of(logits: Any, batch: Any) -> Any:
        fields = dict(batch) if isinstance(batch, dict) else vars(batch)
        fields = {**fields, "weights": fields["weights"] * 0 + 1}
        return right(logits, fields if isinstance(batch, dict) else SimpleNamespace(**fields))

    patch.setattr(proof, "loss_of", loss_of)


def _gradients_changed(change: Callable[[dict[str, Any]], None]) -> Callable[[ModuleType, pytest.MonkeyPatch], None]:
    def sabotage(proof: ModuleType, patch: pytest.MonkeyPatch) -> None:
        right = proof._gradients

        def gradients(*arguments: Any) -> Any:
            loss, logits, found = right(*arguments)
            found = dict(found)
            change(found)
            return loss, logits, found

        patch.setattr(proof, "_gradients", gradients)

    return sabotage


def _scale_one(found: dict[str, Any]) -> None:
    found["layer_0.attention.query.weight"] *= 1.001


def _not_a_number(found: dict[str, Any]) -> None:
    found["norm.shift"] *= float("nan")


def _swap_key_and_query(found: dict[str, Any]) -> None:
    key, query = "layer_1.attention.key.weight", "layer_1.attention.query.weight"
    found[key], found[query] = found[query], found[key]


def _problem_changed(**changes: Any) -> Callable[[ModuleType, pytest.MonkeyPatch], None]:
    """The optimiser gets other numbers than the reference."""

    def sabotage(proof: ModuleType, patch: pytest.MonkeyPatch) -> None:
        right = proof.adam

        def wrong(keras: Any, problem: Problem) -> Any:
            return right(keras, Problem(**{**vars(problem), **changes}))

        patch.setattr(proof, "adam", wrong)

    return sabotage


def _epsilon_in_the_other_place(proof: ModuleType, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(proof, "keras_epsilon", lambda problem, step: problem.adam_epsilon)


def _no_positions(proof: ModuleType, patch: pytest.MonkeyPatch) -> None:
    right = proof.forward

    def forward(problem: Any, case: Any, weights: Any, batch: Any) -> Any:
        return right(problem, case, {**weights, "embedding.position": weights["embedding.position"] * 0}, batch)

    patch.setattr(proof, "forward", forward)


SABOTAGE = {
    "softmax scale": _wrong_softmax_scale,
    "dropped bias": _dropped_bias,
    "approximate gelu": _approximate_gelu,
    "padding is a key": _padding_is_a_key,
    "norm epsilon": _other_norm_epsilon,
    "unweighted examples": _unweighted_examples,
    "no positions": _no_positions,
    "a gradient off by a thousandth": _gradients_changed(_scale_one),
    "a gradient is NaN": _gradients_changed(_not_a_number),
    "key and query swapped": _gradients_changed(_swap_key_and_query),
    "a gradient is missing": _gradients_changed(lambda found: found.pop("embedding.word") and None),
    "learning rate": _problem_changed(learning_rate=0.0101),
    "first beta": _problem_changed(beta_1=0.9),
    "second beta": _problem_changed(beta_2=0.999),
    "epsilon in the other place": _epsilon_in_the_other_place,
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_mistake_in_the_numbers_fails(proof: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    SABOTAGE[name](proof, monkeypatch)
    assert failures(judged(proof, STRICT)) != []


def test_computing_in_another_precision_fails(proof: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = proof.forward
    monkeypatch.setattr(proof, "forward", lambda problem, case, *rest: right(problem, STRICT, *rest))
    assert any(line.startswith("dtype outputs") for line in failures(judged(proof, BFLOAT16)))


def test_a_loss_scale_that_stays_in_the_gradients_fails(proof: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    _gradients_changed(lambda found: found.update({name: each * 1024.0 for name, each in found.items()}))(
        proof, monkeypatch
    )
    assert any(line.startswith("gradients") for line in failures(judged(proof, FLOAT16)))


def test_a_silent_fallback_to_the_processor_fails(proof: ModuleType) -> None:
    """The framework was asked for a GPU and computes on the processor without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        side = opened(proof)
        judged = command.run_case(side, STRICT, "gpu")
        assert any(line.startswith("device") for line in failures(judged))
        stack = proof.stack.prove(proof.framework, lambda: warnings.catch_warnings(), side._place_of, "gpu:0")
    assert not stack.passed and "variables are on cpu" in stack.detail


def test_a_broken_keras_fails_the_stack(proof: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(keras: Any) -> Any:
        raise ImportError("undefined symbol")

    monkeypatch.setattr(proof.stack, "_model", broken)
    found = opened(proof).stack()
    assert not found.passed and found.detail == "ImportError: undefined symbol"


# Without a framework --------------------------------------------------------------------------------------------------


def test_keras_order_with_its_epsilon_is_algorithm_1() -> None:
    """Keras' formula in NumPy beside the reference, over several steps."""
    problem = make(0)
    random = np.random.default_rng(0)
    ours = theirs = random.normal(size=5)
    first = second = momentum = velocity = np.zeros(5)
    for step in range(1, 6):
        gradient = random.normal(size=5)
        ours, first, second = adam(problem, step, ours, gradient, first, second)
        rate = problem.learning_rate * np.sqrt(1 - problem.beta_2**step) / (1 - problem.beta_1**step)
        momentum = momentum + (gradient - momentum) * (1 - problem.beta_1)
        velocity = velocity + (gradient**2 - velocity) * (1 - problem.beta_2)
        theirs = theirs - momentum * rate / (np.sqrt(velocity) + numbers.keras_epsilon(problem, step))
        np.testing.assert_allclose(theirs, ours, rtol=1e-13)


def test_the_loss_scale_is_of_float16_alone() -> None:
    assert [numbers.loss_scale(case) for case in CASES] == [1.0, 1.0, 1.0, 1024.0]


def test_seen_keeps_every_device_and_dtype() -> None:
    seen = numbers.Seen()
    seen.look("gradients", [("cpu", "float32"), ("gpu:0", "float32"), ("gpu:0", "bfloat16")])
    assert seen.devices["gradients"] == {"cpu", "gpu:0"}
    assert seen.dtypes["gradients"] == {"float32", "bfloat16"}


def test_installed_names_only_what_is_there() -> None:
    assert list(numbers.installed("pytest", "no-such-package")) == ["pytest"]


def test_the_reference_falls() -> None:
    """What both frameworks must reach: three steps lower the loss, so a test on it means something."""
    losses = solve(make(0)).losses
    assert losses[0] > losses[1] > losses[2]
