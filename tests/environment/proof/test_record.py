"""proof.json is written whole, is JSON, and is read again or refused with a reason."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.environment.proof.record import Check, JudgedCase, Proof, Skipped, Stack, read, write
from modelyard.errors import MachineError

PROOF = Proof(
    framework={"name": "torch", "version": "2.13.0", "built_for": "CUDA 13.0"},
    python="3.12.4",
    device="cuda:0",
    device_name="NVIDIA L4",
    cases=(JudgedCase("float32", "strict", (Check("loss", True, 1e-7, 1e-6, "loss"),), 0.5),),
    stack=Stack(True, "transformers 5.23.0: BERT, three steps", (1.1, 1.0, 0.9), 2.0),
    taken="2026-11-23T12:00:00+00:00",
    seconds=4.2,
    seed=3,
    versions={"numpy": "2.4.6"},
    not_offered=(Skipped("bfloat16", "default", "this GPU has no bfloat16"),),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = write(PROOF, tmp_path / "builds" / "proof.json")
    assert read(path) == PROOF
    content = json.loads(path.read_text())
    assert content["format"] == 1
    assert content["passed"] is True
    assert content["cases"][0]["passed"] is True
    assert content["cases"][0]["checks"][0] == {
        "name": "loss",
        "passed": True,
        "worst": 1e-7,
        "bound": 1e-6,
        "where": "loss",
        "detail": "",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"cases": ()},
        {"cases": (JudgedCase("float32", "default", (Check("loss", True),)),)},
        {"cases": (*PROOF.cases, JudgedCase("float16", "default", (Check("finite", False),)))},
        {"cases": (JudgedCase("float32", "strict", ()),)},
        {"stack": Stack(False)},
    ],
)
def test_a_proof_passes_only_whole(changes: dict[str, object], tmp_path: Path) -> None:
    proof = replace(PROOF, **changes)
    assert not proof.passed
    assert json.loads(write(proof, tmp_path / "proof.json").read_text())["passed"] is False


def test_json_has_no_nan(tmp_path: Path) -> None:
    proof = replace(PROOF, stack=Stack(False, losses=(1.0, math.nan, math.inf)))
    path = write(proof, tmp_path / "proof.json")
    assert json.loads(path.read_text())["stack"]["losses"] == [1.0, None, None]
    assert math.isnan(read(path).stack.losses[1])


def test_what_a_newer_modelyard_adds_is_passed_over(tmp_path: Path) -> None:
    path = write(PROOF, tmp_path / "proof.json")
    content = json.loads(path.read_text())
    content["new"] = content["cases"][0]["new"] = content["cases"][0]["checks"][0]["new"] = content["stack"]["new"] = 1
    path.write_text(json.dumps(content))
    assert read(path) == PROOF


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no proof"),
        ("", "cannot be read"),
        ('{"format": 1', "cannot be read"),
        ("\x00\xff", "cannot be read"),
        ("[]", "has the format None, not 1"),
        ('{"format": 7}', "has the format 7, not 1"),
        ('{"format": 1}', "is not whole"),
        ('{"format": 1, "cases": 3, "stack": {}}', "is not whole"),
    ],
)
def test_what_is_no_proof_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "proof.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(MachineError, match=says) as caught:
        read(path)
    assert str(path) in caught.value.problem
    assert "modelyard env verify" in caught.value.hint


def test_reading_a_proof_needs_no_numpy() -> None:
    code = "import sys, modelyard.environment.proof.record; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
