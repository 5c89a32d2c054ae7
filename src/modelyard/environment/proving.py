"""Running the proof in a build, in a process of its own, and reading what it says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelyard.environment.store import BuildFolder
from modelyard.errors import MachineError
from modelyard.runs.files import temporary_path, write_json

MODULES = {
    "torch": "modelyard.engines.torch.proof",
    "tensorflow": "modelyard.engines.keras.proof_tensorflow",
    "jax": "modelyard.engines.keras.proof_jax",
}
SECONDS = 1800  # a guess, far above the minute that a slow machine takes: only for a driver that hangs
ProofCommand = Callable[[Path, str, str, Path], Sequence[str]]


def proof_command(python: Path, framework: str, device: str, out: Path) -> Sequence[str]:
    """Isolated (-I), so that the person's PYTHONPATH and working folder cannot bring other modules in."""
    return [str(python), "-I", "-m", MODULES[framework], "--device", device, "--out", str(out)]


def prove(
    build: BuildFolder, framework: str, device: str, command: ProofCommand = proof_command, seconds: float = SECONDS
) -> dict[str, Any]:
    """Prove a build and write its proof.json, passed or not; the content of that file.

    A proof that ends without a record (a crash at import, a missing device) gets one that says so in ``error``.
    """
    out = temporary_path(build.proof)
    environ = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONHOME")}
    try:
        said, code = _run(command(build.python, framework, device, out), environ | build.variables, seconds, build.path)
        if out.is_file():
            out.replace(build.proof)
        else:
            write_json(build.proof, _without_record(framework, device, said, code))
    finally:
        out.unlink(missing_ok=True)
    return build.read_proof()


def require(proof: dict[str, Any], build: BuildFolder) -> None:
    """Raises MachineError, with the check that failed and where the record is, unless the proof passed."""
    if proof.get("passed") is not True:
        raise MachineError(
            f"the environment is installed, but it does not compute what it should: {'; '.join(failures(proof)[:3])}",
            hint=f"the whole record is {build.proof}; `modelyard doctor` says what on this machine may explain it, "
            f"then `modelyard env repair {build.path.parent.parent.name}` builds it again",
        )


def failures(proof: dict[str, Any]) -> list[str]:
    """What failed, worst first as the proof lists it: one short line each; empty if all passed."""
    if proof.get("passed") is True:
        return []
    found = [str(proof["error"])] if proof.get("error") else []
    for case in _objects(proof.get("cases")):
        for check in _objects(case.get("checks")):
            if check.get("passed") is not True:
                found.append(f"{case.get('precision')} {case.get('mode')}, {_check(check)}")
    stack = proof.get("stack")
    if isinstance(stack, dict) and stack.get("passed") is not True:
        found.append(f"{stack.get('what') or 'the stack'}: {stack.get('detail') or 'failed'}")
    return found or ["the proof did not pass and does not say why"]


def _check(check: dict[str, Any]) -> str:
    parts = [str(check.get("name"))]
    if check.get("worst") is not None and check.get("bound") is not None:
        parts.append(f"{check['worst']:.1e} instead of at most {check['bound']:.1e}")
    parts += [str(check[key]) for key in ("where", "detail") if check.get(key)]
    return ": ".join(parts)


def _objects(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _run(command: Sequence[str], environ: dict[str, str], seconds: float, folder: Path) -> tuple[str, int | None]:
    """(what it said, exit code), the code None after the time limit."""
    try:
        process = subprocess.Popen(
            list(command), cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except OSError as error:  # the Python that the environment was made with is gone
        return f"{command[0]} cannot be started: {error.strerror or error}", 127
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        return said, None
    except BaseException:
        process.kill()
        process.wait()
        raise
    return said, process.returncode


def _without_record(framework: str, device: str, said: str, code: int | None) -> dict[str, Any]:
    how = (
        "did not end in time"
        if code is None
        else f"ended with code {code}"
        if code >= 0
        else f"crashed (signal {-code})"
    )
    last = [line.strip() for line in said.splitlines() if line.strip()][-4:]
    return {
        "format": 1,
        "passed": False,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "framework": {"name": framework, "version": "", "built_for": ""},
        "device": device,
        "cases": [],
        "error": f"the proof {how}: {' / '.join(last) or 'it said nothing'}",
        "output": said[-8000:],
    }
