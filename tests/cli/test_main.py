"""The command line as a person meets it: quick, light, and with errors that say what to type next."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelyard.cli.main import COMMANDS, language, main
from modelyard.cli.messages import MESSAGES

HEAVY = (
    "torch",
    "tensorflow",
    "jax",
    "transformers",
    "numpy",
    "pyarrow",
    "matplotlib",
    "sklearn",
    "scipy",
    "pandas",
)


def _times(commands: list[list[str]], repeats: int) -> list[float]:
    """Median seconds of each command, taken in turns so that a busy machine slows all alike."""
    seconds: list[list[float]] = [[] for _ in commands]
    for _ in range(repeats):
        for index, command in enumerate(commands):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[index].append(time.perf_counter() - started)
    return [statistics.median(values) for values in seconds]


def test_help_takes_at_most_six_times_a_bare_python() -> None:
    bare, ours = _times([[sys.executable, "-c", "pass"], [sys.executable, "-m", "modelyard", "--help"]], 15)
    assert ours <= 6 * bare, f"{ours * 1e3:.0f} ms against {bare * 1e3:.0f} ms"


@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
def test_help_stays_under_forty_megabytes() -> None:
    # the parent of the measured process must be small: a fork begins with its parent's resident size
    code = (
        "import os, resource, sys, subprocess\n"
        "subprocess.run([sys.executable, '-m', 'modelyard', '--help'], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    kibibytes = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert kibibytes / 1024 < 40


@pytest.mark.parametrize(
    "module",
    [
        "modelyard",
        "modelyard.cli.main",
        "modelyard.cli.train",
        "modelyard.cli.show",
        "modelyard.recipe.schema",
    ],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == ""


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\S", text, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_misspelt_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian", "x.yaml"]) == 2
    error = capsys.readouterr().err
    assert "no command `trian`" in error and "hint: modelyard train --help" in error


def test_missing_argument_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    error = capsys.readouterr().err
    assert "RECIPE" in error and "hint: modelyard train --help" in error


def test_missing_recipe_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nowhere.yaml", "--json"]) == 1
    captured = capsys.readouterr()
    assert "nowhere.yaml" in captured.err
    assert "nowhere.yaml" in json.loads(captured.out)["error"]["problem"]


def test_language_follows_the_locale() -> None:
    assert language({"LANG": "zh_CN.UTF-8"}) == "zh"
    assert language({"LANG": "zh_CN.UTF-8", "MODELYARD_LANG": "en"}) == "en"
    assert language({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}) == "en"
    assert language({}) == "en"


def test_chinese_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MODELYARD_LANG", "zh")
    assert main([]) == 0
    assert "命令" in capsys.readouterr().out


def test_messages_have_the_same_places_in_both_languages() -> None:
    for key, (english, chinese) in MESSAGES.items():
        assert chinese, key
        assert set(re.findall(r"{(\w+)", english)) == set(re.findall(r"{(\w+)", chinese)), key


def test_framework_missing_says_which_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A light install has no numpy: hiding it is what such an install looks like to the import system."""
    code = (
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "from modelyard.cli.main import main\n"
        "raise SystemExit(main(['evaluate', 'runs/none']))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 3
    assert "pip install 'modelyard[torch]'" in result.stderr


def test_the_command_to_type_next_is_one_that_the_shell_finds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`make demo` runs in a virtual environment that the person's shell does not know."""
    from modelyard.cli.run import own_command

    program = tmp_path / ".venv" / "bin" / "modelyard"
    program.parent.mkdir(parents=True)
    program.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.setenv("PATH", "")
    assert own_command() == str(Path(".venv/bin/modelyard"))
    monkeypatch.setenv("PATH", str(program.parent))
    program.chmod(0o755)
    assert own_command() == "modelyard"
