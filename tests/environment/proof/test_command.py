"""The command: runs every case, never dies of a broken framework, and says so in its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelyard.environment.proof.command import NotOffered, Opened, main, processor_name
from modelyard.environment.proof.judge import PLACES, Observed
from modelyard.environment.proof.problem import Case, Problem
from modelyard.environment.proof.record import Stack, read
from modelyard.environment.proof.reference import solve
from modelyard.errors import MachineError


class Perfect:
    """A framework that computes in float64."""

    def __init__(self) -> None:
        self.trained: list[Case] = []

    def open(self, device: str) -> Opened:
        if device != "cpu":
            raise MachineError(f"there is no device {device!r}", hint="--device cpu")
        return Opened("perfect", "1.0", "cpu", "cpu", "a processor", {"numpy": "2"})

    def train(self, problem: Problem, case: Case) -> Observed:
        self.trained.append(case)
        right = solve(problem)
        dtypes = {"parameters": {"float32"}, "gradients": {"float32"}, "outputs": {case.precision}}
        devices = {place: {"cpu"} for place in PLACES}
        return Observed(right.losses, right.first_gradients, right.last_gradients, right.weights, devices, dtypes)

    def stack(self) -> Stack:
        return Stack(True, "a library 1.0", (1.0, 0.5, 0.2), 0.1)


def test_all_cases_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "proof.json"
    assert main(Perfect(), ["--device", "cpu", "--out", str(out), "--seed", "7"]) == 0
    proof = read(out)
    assert proof.passed
    assert proof.seed == 7
    assert [(case.precision, case.mode) for case in proof.cases] == [
        ("float32", "strict"),
        ("float32", "default"),
        ("bfloat16", "default"),
        ("float16", "default"),
    ]
    assert all(check.worst in (None, 0.0) for case in proof.cases for check in case.checks)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "perfect 1.0 (cpu) on cpu: a processor" in printed.err
    assert "FAILED" not in printed.err


def test_float32_is_always_among_the_precisions() -> None:
    side = Perfect()
    assert main(side, ["--precision", "float16"]) == 0
    assert [case.precision for case in side.trained] == ["float32", "float32", "float16"]


def test_a_precision_that_is_not_offered_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Old(Perfect):
        def train(self, problem: Problem, case: Case) -> Observed:
            if case.precision == "bfloat16":
                raise NotOffered("this GPU has no bfloat16")
            return super().train(problem, case)

    out = tmp_path / "proof.json"
    assert main(Old(), ["--out", str(out)]) == 0
    assert json.loads(out.read_text())["not_offered"] == [
        {"precision": "bfloat16", "mode": "default", "why": "this GPU has no bfloat16"}
    ]
    assert "not offered: this GPU has no bfloat16" in capsys.readouterr().err


def test_float32_that_is_not_offered_is_a_failure() -> None:
    class Broken(Perfect):
        def train(self, problem: Problem, case: Case) -> Observed:
            raise NotOffered("nothing works")

    assert main(Broken(), []) == 3


def test_an_error_in_one_case_is_reported_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Perfect):
        def train(self, problem: Problem, case: Case) -> Observed:
            if case.mode == "strict":
                raise RuntimeError("no kernel image is available")
            return super().train(problem, case)

    out = tmp_path / "proof.json"
    assert main(Broken(), ["--out", str(out)]) == 3
    assert [case.passed for case in read(out).cases] == [False, True, True, True]
    printed = capsys.readouterr().err
    assert "ran: RuntimeError: no kernel image is available" in printed
    assert printed.rstrip().splitlines()[-1].startswith("FAILED")


def test_a_wrong_number_is_shown_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    class Wrong(Perfect):
        def train(self, problem: Problem, case: Case) -> Observed:
            observed = super().train(problem, case)
            observed.weights["norm.scale"][4] += 0.001  # type: ignore[index]
            return observed

    assert main(Wrong(), ["--precision", "float32"]) == 3
    assert "norm.scale at [4]:" in capsys.readouterr().err


def test_a_stack_that_fails_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    class Bare(Perfect):
        def stack(self) -> Stack:
            return Stack(False, "transformers", (), 0.0, "ModuleNotFoundError: No module named 'transformers'")

    assert main(Bare(), []) == 3
    assert "No module named 'transformers'" in capsys.readouterr().err


def test_without_the_device_there_is_no_proof_not_even_an_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "proof.json"
    assert main(Perfect(), ["--out", str(out)]) == 0
    assert main(Perfect(), ["--device", "cuda", "--out", str(out)]) == 3
    assert not out.exists()
    assert "there is no device 'cuda'" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(Perfect(), ["--out", str(tmp_path / "file" / "proof.json")]) == 3
    assert "--out FILE" in (shown := capsys.readouterr().err)
    assert str(tmp_path / "file" / "proof.json") in shown


def test_the_processor_has_a_name() -> None:
    assert processor_name().strip()
