"""Environments that modelyard made, really made from small wheels, and what then happens to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.environment.provoked.shells import Shell, only
from tests.environment.workshop import Workshop, make_workshop

from modelyard.environment.store import BuildFolder
from modelyard.environment.verify import verify


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    workshop = make_workshop(tmp_path / "workshop")
    workshop.create("torch")
    return workshop


def build_of(workshop: Workshop) -> BuildFolder:
    build = workshop.store.open("torch").build
    assert build is not None
    return build


def test_what_befalls_an_environment(shell: Shell, workshop: Workshop) -> None:
    """It computes wrong numbers, loses its files, loses its description; a new one is stopped half-way."""
    shell.variables["MODELYARD_ENVIRONMENTS"] = str(workshop.store.folder)
    clean = shell.doctor("--quick")
    assert [each["proved"] for each in clean.snapshot["managed"]] == [True]

    (workshop.control / "proof-fails").touch()
    (build_of(workshop).site_packages / "widget.py").write_text("VERSION = 'changed'\n")
    verification = verify("torch", tools=workshop.tools, folder=workshop.store.folder)
    assert [each.name for each in verification.items if not each.passed] == ["files", "proof"]
    provoked = shell.doctor("--quick")
    found = only("proof-failed", clean, provoked, "modelyard env repair torch")
    assert provoked.code == 3
    assert found["safe"] is True
    assert "float32 strict: gradients" in found["evidence"]

    shutil.rmtree(build_of(workshop).path / ".venv")
    provoked = shell.doctor("--quick")
    only("environment-broken", clean, provoked, "modelyard env repair torch")
    assert provoked.code == 3

    description = workshop.store.folder / "torch" / "environment.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"current": ""}))
    only("environment-unfinished", clean, shell.doctor("--quick"), "modelyard env repair torch")
