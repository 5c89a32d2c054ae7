"""Failures that are set up for real. They need what Linux has: mounts, control groups, shared libraries."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.environment.provoked.shells import Shell

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Without a GPU, even where one is."""
    shell = Shell(tmp_path / "shell")
    if Path("/dev/nvidiactl").exists():
        shell.gpu(error=12)
    return shell
