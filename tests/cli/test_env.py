"""`modelyard env` as a person meets it. How environments are made is tested beside environment/; here they are folders
as `create` leaves them, and a `create` that tells its steps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from modelyard.cli import env
from modelyard.cli.env_progress import Progress
from modelyard.cli.main import main
from modelyard.cli.page import Page, cells
from modelyard.environment import create as creating
from modelyard.environment import export as exporting
from modelyard.environment import repair as repairing
from modelyard.environment import verify as verifying
from modelyard.environment.building import STAGES, Tools, stage
from modelyard.environment.choose import FRAMEWORKS
from modelyard.environment.store import Store
from modelyard.environment.verify import Item, Verification

PROOF = {
    "format": 1,
    "passed": True,
    "framework": {"name": "torch", "version": "2.13.0+cpu", "built_for": "cpu"},
    "device": "cpu",
    "device_name": "A processor",
    "cases": [
        {
            "precision": "float32",
            "mode": "strict",
            "passed": True,
            "checks": [
                {"name": "finite", "passed": True, "worst": None, "bound": None},
                {"name": "loss", "passed": True, "worst": 1e-9, "bound": 1e-5},
                {"name": "weights", "passed": True, "worst": 8e-7, "bound": 7e-6, "where": "a tensor"},
            ],
        },
        {"precision": "bfloat16", "mode": "default", "passed": True, "checks": [{"name": "finite", "passed": True}]},
    ],
    "not_offered": [{"precision": "float16", "mode": "default", "why": "this device has none"}],
    "stack": {"passed": True, "what": "transformers 5.23.0: BERT, three steps", "losses": [1.1, 1.05, 1.02]},
}
BROKEN = {
    **PROOF,
    "passed": False,
    "cases": [
        {
            "precision": "float32",
            "mode": "strict",
            "passed": False,
            "checks": [{"name": "gradients", "passed": False, "worst": 0.3, "bound": 1e-5, "where": "layer_0"}],
        }
    ],
}


@pytest.fixture(autouse=True)
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "environments"
    monkeypatch.setenv("MODELYARD_ENVIRONMENTS", str(folder))
    monkeypatch.setenv("MODELYARD_LANG", "en")
    monkeypatch.setenv("COLUMNS", "100")
    return folder


def made(folder: Path, name: str, builds: int = 1, proof: dict[str, Any] = PROOF, state: str = "ready") -> Path:
    """An environment as `env create` leaves it."""
    for number in range(1, builds + 1):
        build = folder / name / "builds" / str(number)
        python = build / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
        (build / "weight").write_bytes(bytes(2_000_000))
        (build / "build.json").write_text(json.dumps({"state": state, "made": "2026-11-01"}))
        (build / "proof.json").write_text(json.dumps(proof))
    about = {
        "format": 1, "name": name, "framework": "torch", "accelerator": "cpu", "python": "3.12",
        "created": "2026-11-01T10:00:00+00:00", "current": str(builds),
    }  # fmt: skip
    (folder / name / "environment.json").write_text(json.dumps(about))
    return folder / name


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


# the table


def test_without_environments_the_command_that_makes_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "list"]) == 0
    assert "  modelyard env create\n" in capsys.readouterr().out
    assert main(["env", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["environments"] == []


def test_the_table_lines_up(environments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(environments, "lab")
    made(environments, "a-longer-name", proof=BROKEN)
    made(environments, "half", state="building")
    for language in ("en", "zh"):
        assert main(["env", "list", "--lang", language]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 4
        starts = [cells(re.split(r"torch 2|framework|框架", line)[0]) for line in lines]
        assert len(set(starts)) == 1
    assert "已损坏" in lines[1] and "未完成" in lines[2] and "就绪" in lines[3] and "2 MB" in lines[3]


def test_a_narrow_terminal_gets_a_list(environments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(environments, "lab")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    rows = [env.described(each) for each in Store().environments()]
    env._table(Page(stream), rows, "en")
    lines = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()).splitlines()
    assert lines[0] == "lab" and "  framework    torch 2.13.0+cpu" in lines
    assert all(cells(line) <= 40 for line in lines)


def test_json_says_all_of_an_environment(environments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(environments, "lab", builds=2)
    for given in (["env", "list", "--json"], ["env", "--json", "list"]):
        assert main(given) == 0
        (value,) = json.loads(capsys.readouterr().out)["environments"]
        assert value["version"] == "2.13.0+cpu" and value["proved"] is True and value["state"] == "ready"
        assert value["old_builds"] == ["1"] and value["size_bytes"] > 4_000_000
        assert value["interpreter"] == str(folder / "builds" / "2" / ".venv" / "bin" / "python")


# create, verify, repair


@pytest.fixture
def create_at_once(environments: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """`create` and `repair` that tell their steps as the real ones do, and are done at once."""
    calls: list[tuple[Any, ...]] = []

    def steps(tools: Tools) -> None:
        for name in STAGES:
            with stage(tools.listener, name):
                if name == "choose":
                    tools.listener(
                        {
                            "kind": "choice",
                            "what": "",
                            "value": "",
                            "reason": "cpu: no GPU",
                            "reason_zh": "cpu：没有显卡",
                        }
                    )
                tools.listener({"kind": "progress", "stage": name, "text": "Downloading torch (180.5MiB)"})

    def create(framework: str, accelerator: str, python: str | None, name: str | None, *, tools: Tools) -> Any:
        calls.append((framework, accelerator, python, name))
        steps(tools)
        made(environments, name or framework)
        return Store().open(name or framework)

    def repair(name: str, *, tools: Tools) -> Any:
        steps(tools)
        made(environments, name, builds=2)
        return Store().open(name)

    monkeypatch.setattr(creating, "create", create)
    monkeypatch.setattr(repairing, "repair", repair)
    return calls


def test_create_tells_each_step_the_proof_and_what_comes_next(
    create_at_once: list[tuple[Any, ...]], environments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--framework", "torch", "--accelerator", "cpu", "--python", "3.12", "--name", "lab"]
    assert main(["env", "create", *given]) == 0
    assert create_at_once == [("torch", "cpu", "3.12", "lab")]
    text = capsys.readouterr().out
    for name in ("choice", "project", "lock", "installation", "proof"):
        assert re.search(rf"^{name} +\d+\.\d s$", text, re.MULTILINE)
    assert "  cpu: no GPU\n" in text and "Downloading torch" in text
    assert "Proved on cpu (A processor)" in text
    assert "  float32 strict    worst error 8.0e-07, bound 7.0e-06\n" in text
    assert "  float16           not offered: this device has none\n" in text
    assert "transformers 5.23.0: BERT, three steps, loss 1.100 → 1.020" in text
    assert str(environments / "lab" / "builds" / "1") in text and "modelyard demo" in text


def test_create_for_a_program(create_at_once: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "create", "--json"]) == 0
    captured = capsys.readouterr()
    value = json.loads(captured.out)
    assert value["environment"]["name"] == "torch" and value["proof"]["passed"] is True
    assert "installation" in captured.err


def test_create_in_chinese(create_at_once: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "create", "--lang", "zh"]) == 0
    text = capsys.readouterr().out
    assert "  cpu：没有显卡" in text and "已在 cpu (A processor) 上通过验证" in text and "下一步" in text


def test_repair_names_the_command_that_removes_the_old_build(
    create_at_once: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["env", "repair", "lab"]) == 0
    assert "  modelyard env remove lab --old\n" in capsys.readouterr().out


def test_a_failed_step_is_said_and_the_moving_line_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    with pytest.raises(ZeroDivisionError), Progress(Page(stream), "en") as progress, stage(progress, "install"):
        progress({"kind": "progress", "stage": "install", "text": "Downloading " + "x" * 100})
        assert progress.live is not None
        assert cells(progress._moving().plain) < 60
        raise ZeroDivisionError
    assert progress.live is None
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue())
    assert re.search(r"installation +0\.0 s +failed", text)


@pytest.mark.parametrize("passed", [True, False])
def test_verify_says_what_is_wrong_and_what_mends_it(
    passed: bool, environments: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(environments, "lab", proof=PROOF if passed else BROKEN)
    facts = () if passed else tuple(f"yaml/{number}.py (pyyaml 6.0.3): 5 bytes instead of 4" for number in range(12))
    items = (Item("lock", True, "", (), 0.1), Item("files", passed, "", facts, 2.0), Item("proof", passed, "", (), 7.0))
    verification = Verification("lab", "1", items)
    monkeypatch.setattr(verifying, "verify", lambda name, *, tools: verification)
    assert main(["env", "verify", "lab"]) == (0 if passed else 3)
    text = capsys.readouterr().out
    assert re.search(r"^lock +0\.1 s +fine$", text, re.MULTILINE)
    if passed:
        assert "Proved on cpu" in text and "env repair" not in text
    else:
        assert "yaml/9.py" in text and "yaml/10.py" not in text and "and 2 more" in text
        assert "Not proved on cpu" in text and "gradients" in text and "  modelyard env repair lab\n" in text
    assert main(["env", "verify", "lab", "--json"]) == (0 if passed else 3)
    assert json.loads(capsys.readouterr().out)["passed"] is passed


# remove


def test_remove_asks(environments: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(environments, "lab")
    assert main(["env", "remove", "lab"]) == 2
    assert "hint: modelyard env remove lab --yes" in capsys.readouterr().err
    monkeypatch.setattr("modelyard.cli.page.interactive", lambda: True)
    for answer, stays in (("\n", True), ("n\n", True), ("", True), ("y\n", False)):
        monkeypatch.setattr("sys.stdin", StringIO(answer))
        assert main(["env", "remove", "lab"]) == 0
        assert folder.exists() is stays
        assert "Remove the environment lab (2 MB)? [y/N]" in capsys.readouterr().err


def test_remove_for_a_program(environments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(environments, "lab")
    assert main(["env", "remove", "lab", "--yes", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["removed"] == [str(folder)] and value["freed_bytes"] > 2_000_000 and not folder.exists()


def test_remove_old_keeps_the_build_in_use(environments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(environments, "lab", builds=2)
    assert main(["env", "remove", "lab", "--old"]) == 0
    assert [each.name for each in (folder / "builds").iterdir()] == ["2"]
    assert "2 MB freed" in capsys.readouterr().out
    assert main(["env", "remove", "lab", "--old"]) == 0
    assert "no build that is not in use" in capsys.readouterr().out


# export


def test_export_says_what_it_wrote(
    environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = made(environments, "lab") / "builds" / "1"

    def export(path: Path, form: str, *, name: str, accelerator: str) -> exporting.Exported:
        assert (path, form, name, accelerator) == (build, "conda", "lab", "cpu")
        return exporting.Exported({"environment.yml": "name: lab\n"}, (build / "weight",), ("Set a variable first",))

    monkeypatch.setattr(exporting, "export", export)
    monkeypatch.chdir(tmp_path)
    assert main(["env", "export", "lab", "--format", "conda"]) == 0
    text = capsys.readouterr().out
    assert "wrote lab-conda: 2 files, 2 MB" in text and "environment.yml" in text and "Set a variable first" in text
    assert Path("lab-conda/environment.yml").read_text() == "name: lab\n"
    assert main(["env", "export", "lab", "--format", "conda", "--output", "there", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [
        str(Path("there/environment.yml")),
        str(Path("there/packages/weight")),
    ]


# what is wrong on the command line


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["env"], 2, "create|list|verify|repair|remove|export"),
        (["env", "crate"], 2, "crate"),
        (["env", "verify"], 2, "NAME"),
        (["env", "verify", "nothing"], 1, "there is no environment 'nothing'"),
        (["env", "verify", "labb"], 1, "did you mean 'lab'"),
        (["env", "repair", "../x"], 1, "cannot be the name of an environment"),
        (["env", "remove", "a b", "--yes"], 1, "cannot be the name of an environment"),
        (["env", "export", "lab"], 2, "--format"),
        (["env", "export", "lab", "--format", "condo"], 2, "did you mean 'conda'"),
        (["env", "export", "lab", "--format", "conda", "--platform", "linux-x86_64"], 2, "--air-gapped"),
        (["env", "export", "lab", "--format", "conda", "--air-gapped", "x"], 2, "not allowed with"),
        (["env", "export", "lab", "--air-gapped", "x", "--output", "y"], 2, "--air-gapped x"),
        (["env", "create", "--framework", "pytorch"], 1, "--framework torch"),
        (["env", "create", "--accelerator", "cu999"], 1, "unknown accelerator 'cu999'"),
        (["env", "create", "--name", "a b"], 1, "--name a-b"),
        (["env", "create", "--python", "three"], 1, "'three'"),
    ],
)
def test_mistakes_are_answered_with_what_to_type(
    given: list[str], code: int, said: str, environments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(environments, "lab")
    assert main(given) == code
    error = capsys.readouterr().err
    assert said in error and "hint: " in error
    assert [each.name for each in environments.iterdir()] == ["lab"], "nothing else was left"


def test_the_names_here_are_those_of_the_room() -> None:
    assert tuple(FRAMEWORKS) == env.FRAMEWORKS and env.FORMATS == exporting.FORMATS


@pytest.mark.parametrize("action", env.ACTIONS)
def test_each_action_has_help_in_both_languages(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    for language in ("en", "zh"):
        with pytest.raises(SystemExit) as stopped:
            main(["env", action, "--help", "--lang", language])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert "--json" in text and env.ACTIONS[action][language == "zh"] in text


def test_help_loads_no_room() -> None:
    """`modelyard env --help` answers as quickly as `modelyard --help`."""
    code = (
        "import sys, modelyard.cli.env; print(*[name for name in ('rich', 'pydantic', 'yaml') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == ""
