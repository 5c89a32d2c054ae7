"""PyTorch passes the proof here, and with each of the planted faults it does not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from modelyard.engines.torch import proof
from modelyard.environment.proof import command
from modelyard.environment.proof.command import NotOffered
from modelyard.environment.proof.problem import CASES, Case, make
from modelyard.environment.proof.record import JudgedCase, read
from modelyard.errors import MachineError

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
STRICT, DEFAULT, BFLOAT16, FLOAT16 = CASES


def _load(name: str) -> ModuleType:
    """A file of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


planting, faults = _load("proof_planting"), _load("proof_faults")


@pytest.fixture
def side() -> proof.TorchSide:
    opened = proof.TorchSide()
    opened.open("cpu")
    return opened


def run(side: proof.TorchSide, case: Case, seed: int = 0, device: str = "cpu") -> JudgedCase:
    return command.run_case(side, case, device, seed)


def complaints(case: JudgedCase) -> list[str]:
    return [f"{check.name} {check.where} {check.detail}" for check in case.checks if not check.passed]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.precision}-{case.mode}")
def test_clean_runs_pass(side: proof.TorchSide, case: Case) -> None:
    for seed in range(8):
        assert complaints(run(side, case, seed)) == []


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_caught(side: proof.TorchSide, fault: object) -> None:
    torch.manual_seed(0)
    with fault.plant():
        case = run(side, STRICT, device=fault.device)
    assert not case.passed
    assert "ran" not in {check.name for check in case.checks}  # it is caught by a number, not by a crash of the fault
    assert complaints(run(side, STRICT)) == []  # and it is gone again


def test_the_bias_of_the_keys_is_the_one_that_may_be_dropped(side: proof.TorchSide) -> None:
    """Adding the same to all scores of a query changes no softmax: without that bias, the model is the same."""
    with planting.bias_dropped("key")():
        assert complaints(run(side, STRICT)) == []


@pytest.mark.parametrize(
    "rounding", [planting.cut_to_ten_bits, planting.to_bfloat16], ids=["TensorFloat-32", "bfloat16 passes"]
)
def test_products_of_other_hardware_pass_at_default_precision_only(side: proof.TorchSide, rounding: object) -> None:
    device = "tpu" if rounding is planting.to_bfloat16 else "cpu"
    for seed in range(5):
        with planting.rounded_inputs(rounding)():
            passed = {check.name: check.passed for check in run(side, DEFAULT, seed, device).checks}
            strict = {check.name: check.passed for check in run(side, STRICT, seed, device).checks}
        for name in ("loss", "gradients", "weights"):
            assert passed[name], (seed, name)
            assert not strict[name], (seed, name)


def test_strict_switches_tensor_float_32_off_and_restores_it(side: proof.TorchSide, switches: None) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    seen: list[tuple[str, str]] = []
    original = proof.forward

    def look(*arguments: object) -> torch.Tensor:
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "forward", look)
        run(side, STRICT)
        run(side, DEFAULT)
    assert seen == [("ieee", "ieee")] * 3 + [("tf32", "none")] * 3
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


@pytest.fixture
def switches() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def test_an_operation_that_is_missing_is_not_offered(side: proof.TorchSide, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> None:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    monkeypatch.setattr(proof, "forward", missing)
    with pytest.raises(NotOffered, match="not implemented for 'Half'"):
        run(side, FLOAT16)
    assert complaints(run(side, STRICT)) == ["ran  RuntimeError: \"addmm_impl_cpu_\" not implemented for 'Half'"]


def test_another_error_in_half_precision_is_a_failure(side: proof.TorchSide, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(proof, "forward", broken)
    assert complaints(run(side, BFLOAT16)) == ["ran  RuntimeError: CUBLAS_STATUS_EXECUTION_FAILED"]


def test_autocast_that_only_warns_is_not_offered(side: proof.TorchSide) -> None:
    with pytest.raises(NotOffered, match="autocast"):
        proof._mixed(Case("float64", "default"), torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "says"), [("gpu", "no device 'gpu'"), ("meta", "no device 'meta'"), ("", "no device ''")]
)
def test_an_unknown_device_is_refused(device: str, says: str) -> None:
    with pytest.raises(MachineError, match=says) as caught:
        proof.TorchSide().open(device)
    assert "cpu, cuda, mps, xpu" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(MachineError, match="cannot use the device 'cuda'") as caught:
        proof.TorchSide().open("cuda")
    assert torch.__version__ in caught.value.problem
    assert "modelyard doctor" in caught.value.hint


def test_the_stack_learns(side: proof.TorchSide) -> None:
    stack = side.stack()
    assert stack.passed, stack.detail
    assert stack.what.startswith("transformers ")
    assert stack.losses[0] > stack.losses[1] > stack.losses[2]


def test_a_stack_that_is_missing_or_does_not_learn_fails(
    side: proof.TorchSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda self: None)
        stack = side.stack()
        assert not stack.passed
        assert stack.detail == "the loss does not fall"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        stack = side.stack()
    assert not stack.passed
    assert "transformers" in stack.detail


def test_a_stack_on_another_device_fails(side: proof.TorchSide) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "_name", lambda device: "cuda:0" if device is side.device else "cpu")
        stack = side.stack()
    assert not stack.passed
    assert stack.detail == "tensors are on cpu"


def test_the_command_proves_this_environment(tmp_path: Path) -> None:
    out = tmp_path / "proof.json"
    command_line = [sys.executable, "-I", "-W", "error", "-m", "modelyard.engines.torch.proof", "--device", "cpu"]
    done = subprocess.run([*command_line, "--out", str(out)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = read(out)
    assert found.passed
    assert found.framework == {"name": "torch", "version": torch.__version__, "built_for": proof._built_for()}
    assert len(found.cases) + len(found.not_offered) == len(CASES)
    assert found.stack.passed
    assert {"numpy", "torch", "transformers"} <= found.versions.keys()
    assert json.loads(out.read_text())["passed"] is True
    assert "float32 strict" in done.stderr


def test_the_problem_has_the_same_weights_after_the_run(side: proof.TorchSide) -> None:
    problem = make(0)
    side.train(problem, STRICT)
    again = make(0)
    assert all((problem.weights[name] == again.weights[name]).all() for name in problem.weights)
