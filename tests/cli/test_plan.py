"""What `modelyard plan` prints: widths, both languages, JSON, errors."""

from __future__ import annotations

import ast
import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from modelyard.cli import plan as plan_command
from modelyard.cli.main import main
from modelyard.cli.page import Page, cells
from modelyard.cli.plan_messages import MESSAGES
from modelyard.workflow.stages import load_recipe, plan

BIG = "design.architecture={family: bert, preset: tiny, hidden_size: 64, num_layers: 4, vocab_size: 400}"


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def value(recipe_file: Path) -> dict[str, Any]:
    settings = [BIG, "design.attention_window=null", "training.batch_size=64", "training.max_micro_batch_tokens=3072"]
    return plan(load_recipe(recipe_file, settings), device="580MB")


def shown(value: dict[str, Any], width: int | None, language: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width or 80))
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = StringIO() if width is None else Terminal()
    plan_command.show(Page(stream), value, language)
    return re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())


def test_messages_are_complete_in_both_languages() -> None:
    for key, (english, chinese) in MESSAGES.items():
        assert english and chinese and english != chinese, key
        assert sorted(re.findall(r"{(\w+)", english)) == sorted(re.findall(r"{(\w+)", chinese)), key


def test_every_message_is_used() -> None:
    tree = ast.parse(Path(plan_command.__file__).read_text(encoding="utf-8"))
    literals = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    prefixes = {
        str(node.values[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) and len(node.values) == 2 and isinstance(node.values[0], ast.Constant)
    }
    unused = [key for key in MESSAGES if key not in literals and key.split(".")[0] + "." not in prefixes]
    assert unused == []


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [40, 80, 120])
def test_nothing_but_commands_and_addresses_is_wider_than_the_terminal(
    width: int, language: str, value: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(value, width, language, monkeypatch)
    for line in text.splitlines():
        assert cells(line) <= width or "--set" in line or "https://" in line, line
    assert "None" not in text


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [40, 80])
def test_the_numbers_of_the_table_stand_below_each_other(width: int, language: str, value: dict[str, Any]) -> None:
    lines = plan_command.table(value["memory"], "cuda", language, width)
    assert len({cells(line) for line in lines}) == 1
    assert all(cells(line) <= width for line in lines)
    assert sum(line.count("█") for line in lines) > 0


def test_the_verdict_is_first_and_ways_out_can_be_typed(value: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(value, 80, "en", monkeypatch).splitlines()
    assert lines[0].startswith("Does not fit: ")
    assert any(line.strip().startswith("--set training.max_micro_batch_tokens=") for line in lines)
    assert any(line.strip() == "--device t4" for line in lines)
    assert any("modelled" in line for line in lines)


def test_what_cannot_be_traced_is_said(value: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**value, "memory": {"problem": "x", "operation": "aten.item"}, "alternatives": []}
    text = shown(broken, 80, "en", monkeypatch)
    assert text.startswith("The memory is not known") and "aten.item" in text and "FLOPs" in text


def test_json_is_one_object(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe_file), "--device", "l4", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["memory"]["fits"] and value["time"]["basis"] == "catalogue" and value["alternatives"] is not None


def test_the_command_speaks(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe_file), "--device", "t4", "--lang", "zh"]) == 0
    text = capsys.readouterr().out
    assert "放得下" in text and "分配器" in text and "modal.com" in text


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["--device", "rtx-409"], 1, "rtx-4090"),
        (["--device", "0GB"], 1, "more than nothing"),
        (["--device", "cuda:7"], 3, "cuda:7"),
        (["--set", "training.batch_size=0"], 1, "batch_size"),
    ],
)
def test_bad_input(
    given: list[str], code: int, said: str, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe_file), *given]) == code
    error = capsys.readouterr().err
    assert said in error and "hint: " in error


def test_durations_have_the_unit_that_is_read_best() -> None:
    assert [plan_command.duration(each, "en") for each in (0.123, 45.2, 130, 9000, 200_000)] == [
        "0.12 s",
        "45 s",
        "2.17 min",
        "2.5 h",
        "2.31 days",
    ]
    assert [plan_command.scaled(each) for each in (514e6, 25.9e12, 12)] == ["514 M", "25.9 T", "12"]
