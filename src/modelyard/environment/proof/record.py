"""What a proof says, as ``proof.json`` holds it. Written in the environment that is proved, read outside: no numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modelyard.errors import MachineError
from modelyard.runs.files import write_json

FORMAT = 1
AGAIN = "prove it again with `modelyard env verify NAME`"


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `worst` and `bound` are relative errors, None where nothing was measured."""

    name: str  # finite | device | dtype | loss | gradients | weights; ran: training raised an error
    passed: bool
    worst: float | None = None
    bound: float | None = None
    where: str = ""  # the tensor with the worst error, and the step
    detail: str = ""


@dataclass(frozen=True)
class JudgedCase:
    """The training of the problem in one precision."""

    precision: str
    mode: str
    checks: tuple[Check, ...]
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Skipped:
    """A precision that the device does not have. That is a fact, not a failure; float32 is always asked for."""

    precision: str
    mode: str
    why: str


@dataclass(frozen=True)
class Stack:
    """The second proof: the library that people train with builds a small model, and its loss falls."""

    passed: bool
    what: str = ""  # "transformers 5.23.0: BERT, three steps"
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class Proof:
    """The whole of it."""

    framework: Mapping[str, str]  # name, version, built_for
    python: str
    device: str  # cpu | cuda:0 | …
    device_name: str
    cases: tuple[JudgedCase, ...]
    stack: Stack
    taken: str  # ISO 8601, UTC
    seconds: float
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    not_offered: tuple[Skipped, ...] = ()

    @property
    def passed(self) -> bool:
        """Every case and the stack passed, and float32 was judged strictly."""
        strict = any(case.precision == "float32" and case.mode == "strict" for case in self.cases)
        return strict and self.stack.passed and all(case.passed for case in self.cases)


def write(proof: Proof, path: Path) -> Path:
    """Write ``proof.json`` at once or not at all. Raises MachineError where it cannot be written."""
    content = asdict(proof)
    for case, judged in zip(content["cases"], proof.cases, strict=True):
        case["passed"] = judged.passed
    return write_json(path, _without_infinities({"format": FORMAT, "passed": proof.passed, **content}))


def read(path: Path) -> Proof:
    """Read ``proof.json``. Raises MachineError where there is none, or one that this version does not understand."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MachineError(f"there is no proof at {path}", hint=AGAIN) from error
    except (OSError, ValueError) as error:
        raise MachineError(f"the proof {path} cannot be read: {error}", hint=AGAIN) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise MachineError(f"the proof {path} has the format {found!r}, not {FORMAT}", hint=AGAIN)
    try:
        return _proof(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MachineError(f"the proof {path} is not whole ({type(error).__name__}: {error})", hint=AGAIN) from error


def _proof(content: dict[str, Any]) -> Proof:
    values = _fields(Proof, content)
    values["cases"] = tuple(
        JudgedCase(**{**_fields(JudgedCase, case), "checks": tuple(Check(**_fields(Check, c)) for c in case["checks"])})
        for case in content["cases"]
    )
    losses = tuple(math.nan if loss is None else loss for loss in content["stack"].get("losses", ()))
    values["stack"] = Stack(**{**_fields(Stack, content["stack"]), "losses": losses})
    values["not_offered"] = tuple(Skipped(**_fields(Skipped, each)) for each in content.get("not_offered", ()))
    return Proof(**values)


def _fields(kind: type[Any], content: dict[str, Any]) -> dict[str, Any]:
    """Those of `content` that `kind` has: what a newer modelyard added is passed over."""
    return {name: content[name] for name in kind.__dataclass_fields__ if name in content}


def _without_infinities(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _without_infinities(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
