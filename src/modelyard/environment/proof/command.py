"""The command line of the proof, the same for every framework: run all cases, judge, write ``proof.json``, print."""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from modelyard.environment.proof import judge as judging
from modelyard.environment.proof import record
from modelyard.environment.proof.problem import CASES, PRECISIONS, Case, Problem, make
from modelyard.environment.proof.reference import solve
from modelyard.errors import MachineError, ModelyardError


class NotOffered(Exception):
    """Raised by `Side.train`: the device lacks an operation in this precision. The text says which."""


@dataclass(frozen=True)
class Opened:
    """A framework and the device that it will compute on."""

    framework: str  # "torch"
    version: str
    built_for: str  # "CUDA 13.0", "ROCm 7.2", "cpu"
    device: str  # in full where it has an index: "cuda:0"
    device_name: str
    versions: Mapping[str, str] = field(default_factory=dict)  # of what lies under it: numpy, cuDNN, the driver


class Side(Protocol):
    """What a framework's file brings."""

    def open(self, device: str) -> Opened:
        """Find the device that was asked for (``cpu``, ``cuda``, ``cuda:1``). Raises MachineError where it is not."""
        ...

    def train(self, problem: Problem, case: Case) -> judging.Observed:
        """Train the problem on that device. Raises NotOffered where the precision is not there."""
        ...

    def stack(self) -> record.Stack:
        """Train a small model with the library that people use; never raises."""
        ...


def main(side: Side, arguments: Sequence[str] | None = None) -> int:
    """Prove the environment. Exit code 0: it works; 3: it does not."""
    parser = argparse.ArgumentParser(description="Prove that this environment computes what the formulas say.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, xpu, tpu (default: cpu)")
    parser.add_argument("--out", type=Path, help="where to write proof.json")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batch (default: 0)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        action="append",
        help="float32 and only these; may be repeated (default: all)",
    )
    options = parser.parse_args(arguments)
    try:
        if options.out:
            _remove(options.out)
        proof = prove(side, options.device, seed=options.seed, precisions=options.precision or PRECISIONS)
        if options.out:
            record.write(proof, options.out)
    except ModelyardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(proof), file=sys.stderr)
    return 0 if proof.passed else 3


def _remove(path: Path) -> None:
    """An older proof must not stand for one that could not be made."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        hint = "choose another place with --out FILE"
        raise MachineError(f"cannot write {path}: {error.strerror}", hint=hint) from error


def prove(side: Side, device: str, *, seed: int = 0, precisions: Sequence[str] = PRECISIONS) -> record.Proof:
    """Run and judge the cases of float32 and these precisions, then the stack.

    Raises MachineError where the device is not there.
    """
    started = time.monotonic()
    opened = side.open(device)
    cases: list[record.JudgedCase] = []
    not_offered: list[record.Skipped] = []
    for case in CASES:
        if case.precision not in precisions and case.precision != "float32":
            continue
        try:
            cases.append(run_case(side, case, device, seed))
        except NotOffered as missing:
            not_offered.append(record.Skipped(case.precision, case.mode, str(missing)))
    return record.Proof(
        framework={"name": opened.framework, "version": opened.version, "built_for": opened.built_for},
        python=platform.python_version(),
        device=opened.device,
        device_name=opened.device_name,
        cases=tuple(cases),
        stack=side.stack(),
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 3),
        seed=seed,
        versions=opened.versions,
        not_offered=tuple(not_offered),
    )


def run_case(side: Side, case: Case, device: str, seed: int = 0) -> record.JudgedCase:
    """Train and judge one case. A training that raises is a case that failed; only `NotOffered` goes through."""
    problem = make(seed, case.precision)
    started = time.monotonic()
    try:
        observed = side.train(problem, case)
    except NotOffered:
        raise
    except Exception as error:
        # What a broken build raises is not foreseeable, and it is just what is to be reported.
        return judging.failed(case, error, round(time.monotonic() - started, 3))
    seconds = round(time.monotonic() - started, 3)
    return judging.judge(problem, solve(problem), observed, case, device, seconds)


def processor_name() -> str:
    """The CPU as its maker calls it, where Linux says so; else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(proof: record.Proof) -> str:
    """The proof for people."""
    framework = proof.framework
    lines = [
        f"{framework['name']} {framework['version']} ({framework['built_for']}) on {proof.device}: {proof.device_name}",
        f"{'':>22}  {'loss':>9}  {'gradients':>9}  {'weights':>9}    relative errors against NumPy float64",
    ]
    for case in proof.cases:
        errors = {check.name: check.worst for check in case.checks}
        shown = "  ".join(_number(errors.get(name)) for name in ("loss", "gradients", "weights"))
        lines.append(f"{case.precision + ' ' + case.mode:>22}  {shown}    {_word(case.passed)}, {case.seconds:.1f} s")
        lines += [f"{'':>24}{problem}" for problem in map(_problem, case.checks) if problem]
    lines += [f"{each.precision + ' ' + each.mode:>22}  not offered: {each.why}" for each in proof.not_offered]
    losses = " ".join(f"{loss:.4f}" for loss in proof.stack.losses)
    stack = f"{proof.stack.what or 'the stack'}: loss {losses or 'none'}"
    lines.append(f"{'stack':>22}  {stack}    {_word(proof.stack.passed)}, {proof.stack.seconds:.1f} s")
    if proof.stack.detail and not proof.stack.passed:
        lines.append(f"{'':>24}{proof.stack.detail}")
    lines.append(f"{_word(proof.passed)} in {proof.seconds:.1f} s")
    return "\n".join(lines)


def _problem(check: record.Check) -> str:
    if check.passed:
        return ""
    error = "" if check.bound is None else f" {_number(check.worst).strip()} > {check.bound:.1e}"
    return " ".join(part for part in (f"{check.name}{error}:", check.where, check.detail) if part)


def _number(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.1e}"


def _word(passed: bool) -> str:
    return "passed" if passed else "FAILED"
