"""`modelyard doctor` as a person meets it: worst first, aligned, copyable, and honest about what it did not do."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from modelyard.cli import doctor, doctor_fix
from modelyard.cli.doctor_machine import gigabytes, groups
from modelyard.cli.environment_messages import MESSAGES, say
from modelyard.cli.main import main
from modelyard.cli.page import Page, cells, wrap
from modelyard.environment.findings import Finding
from modelyard.environment.snapshot import (
    Accelerators,
    Configuration,
    Cpu,
    Disk,
    Framework,
    Gpu,
    IndexSettings,
    Installed,
    Managed,
    Memory,
    Nvidia,
    Python,
    Reach,
    Snapshot,
    System,
    Unread,
)

LONG_COMMAND = "pip install --force-reinstall torch==2.13.0 --index-url https://download.example.org/whl/cu126"
SERVER = Snapshot(
    modelyard="0.1.0",
    taken="2026-11-20T10:22:31+00:00",
    system=System(
        name="linux",
        release="6.8.0",
        distribution="Ubuntu 24.04.1 LTS",
        machine="x86_64",
        libc="glibc",
        libc_version="2.39",
        container="docker",
    ),
    cpu=Cpu(name="AMD EPYC 9654", instructions=("avx2", "avx512f"), logical_cores=384, quota_cores=16.0),
    memory=Memory(
        total_bytes=1_620_000_000_000, available_bytes=1_500_000_000_000, limit_bytes=128_000_000_000, swap_bytes=0
    ),
    disks=(
        Disk(purpose="environments", path="/a", total_bytes=2_000_000_000_000, free_bytes=3_100_000_000),
        Disk(purpose="cache", path="/b", total_bytes=2_000_000_000_000, free_bytes=3_110_000_000),
        Disk(
            purpose="hub",
            path="/data/hub",
            total_bytes=9_000_000_000_000,
            free_bytes=4_000_000_000_000,
            writable=False,
            problem="Read-only file system",
        ),
        Disk(purpose="shared-memory", path="/dev/shm", total_bytes=67_108_864, free_bytes=67_108_864),
    ),
    python=Python(executable="/opt/lab/bin/python", version="3.12.7", kind="conda", pip="24.3.1"),
    accelerators=Accelerators(
        nvidia=Nvidia(
            driver_version="550.54.15",
            cuda_version="12.4",
            gpus=tuple(
                Gpu(index=index, name="NVIDIA H200", total_bytes=150_754_820_096, capability="9.0")
                for index in range(8)
            ),
        )
    ),
    installed=Installed(
        frameworks=(
            Framework(name="torch", version="2.13.0+cpu", built_for="cpu"),
            Framework(
                name="tensorflow",
                version="2.21.0",
                built_for="cuda",
                built_version="12.5",
                asked=True,
                outcome="timeout",
            ),
        )
    ),
    configuration=Configuration(
        indexes=(IndexSettings(tool="pip", index_url="https://mirror.example.org/simple"),),
        proxies={"https": "http://proxy.example.org:3128"},
        variables={"OMP_NUM_THREADS": "1"},
    ),
    reach=(
        Reach(address="a", purpose="hub", problem="timed out after 3 s"),
        Reach(address="b", purpose="packages", reached=True, seconds=0.2),
    ),
    managed=(Managed(name="lab", framework="torch", accelerator="cpu", state="broken", proved=False),),
    unread=(Unread(probe="amd", problem="permission denied"),),
)
BUILD = Finding(
    "torch-cpu-build",
    "error",
    "The CPU build of torch runs beside a GPU",
    "torch 2.13.0+cpu; 8 × NVIDIA H200",
    "This build was made without CUDA. Everything runs on the processor and takes tens of times longer.",
    ("modelyard env create --framework torch", LONG_COMMAND),
    source="https://example.org/issue",
)
SPACE = Finding("disk", "error", "Too little space", "3.1 GB free", "", ("Free some space.",))
SHARED = Finding(
    "shm", "warning", "Little shared memory", "67 MB", "Workers fail.", ("sudo mount -o remount /dev/shm",)
)
REPAIR = Finding("broken", "error", "Environment lab is broken", "a file", "", ("modelyard env repair lab",), safe=True)
FINDINGS = [BUILD, SPACE, SHARED]


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def shown(
    width: int | None,
    language: str,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Snapshot = SERVER,
    colours: bool = False,
) -> str:
    """What stands on a terminal of `width` columns; None: in a file."""
    stream = StringIO() if width is None else Terminal()
    monkeypatch.setenv("COLUMNS", str(width or 80))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if colours:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", "1")
    doctor.show(Page(stream), snapshot, FINDINGS, language)
    text = stream.getvalue()
    return text if colours else re.sub(r"\x1b\[[\d;]*m", "", text)


# texts


def test_messages_are_complete_in_both_languages() -> None:
    for key, (english, chinese) in MESSAGES.items():
        assert english and chinese, key
        assert sorted(re.findall(r"{(\w+)", english)) == sorted(re.findall(r"{(\w+)", chinese)), key
        assert key in ("group.python", "reach.pytorch") or english != chinese, key


def test_every_message_is_used_and_every_used_one_is_there() -> None:
    """A call with a literal key uses it; one with an f-string uses the keys that begin and end as it does."""
    patterns: list[re.Pattern[str]] = []
    for file in Path(doctor.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("say", "tell"):
                for key in _keys(node.args[0]):
                    patterns.append(re.compile(key))
    unused = [key for key in MESSAGES if not any(pattern.fullmatch(key) for pattern in patterns)]
    assert unused == []


def _keys(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant):
        return [re.escape(str(node.value))]
    if isinstance(node, ast.JoinedStr):
        parts = [re.escape(str(each.value)) if isinstance(each, ast.Constant) else r"[\w-]+" for each in node.values]
        return ["".join(parts)]
    if isinstance(node, ast.IfExp):
        return [*_keys(node.body), *_keys(node.orelse)]
    return []


# the page


@pytest.mark.parametrize("width", [20, 33, 80])
def test_wrapping_keeps_every_character_and_the_width(width: int) -> None:
    text = "这个构建不含 CUDA，所有计算都在处理器上进行（要慢几十倍），而且没有任何提示。Use another build, please."
    lines = wrap(text, width)
    assert all(cells(line) <= width for line in lines)
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)
    assert not any(line[0] in "，。）" for line in lines)


def test_a_number_stays_with_its_unit() -> None:
    assert wrap("the wait timed out after 3 s", 27) == ["the wait timed out after", "3 s"]


def test_an_address_stays_whole() -> None:
    address = "https://example.org/" + "a" * 60
    assert address in wrap(f"look at {address} first", 40)


def test_sizes() -> None:
    assert [gigabytes(each) for each in (67_108_864, 999_900_000, 41_230_000_000, 1_620_000_000_000)] == [
        "67 MB",
        "1.0 GB",
        "41.2 GB",
        "1,620 GB",
    ]


# what is shown


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_nothing_but_commands_and_addresses_is_wider_than_the_terminal(
    width: int, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in shown(width, language, monkeypatch).splitlines():
        assert cells(line) <= min(width, 100) or "https://" in line or line.strip() == LONG_COMMAND, line


@pytest.mark.parametrize("width", [40, 80, None])
def test_commands_stand_alone_and_whole(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.strip() for line in shown(width, "en", monkeypatch).splitlines()]
    assert "modelyard env create --framework torch" in lines
    assert LONG_COMMAND in lines


def test_the_verdict_is_the_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(80, "en", monkeypatch).splitlines()[0] == "2 things to mend, 1 warning"
    assert shown(80, "zh", monkeypatch).splitlines()[0] == "有 2 个问题需要修复，1 条警告"
    assert doctor.verdict([], "en") == "Nothing to mend"
    assert doctor.verdict([SHARED], "en") == "Nothing to mend, 1 warning"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_labels_line_up_in_columns_of_the_terminal(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(80, language, monkeypatch).splitlines()
    rows = lines[lines.index(next(line for line in lines if "Ubuntu" in line)) :]
    starts = set()
    for line in rows:
        label = re.match(r"^(\S+(?: \S+)*)?\s{2,}", line)
        assert label, line
        starts.add(sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in label[0]))
    assert len(starts) == 1


def test_a_narrow_terminal_has_labels_above(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(40, "en", monkeypatch).splitlines()
    assert "error" in lines and "machine" in lines and "graphics" in lines


def test_what_is_no_terminal_gets_plain_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(None, "en", monkeypatch, colours=True)
    assert "\x1b" not in text
    assert any(BUILD.explanation in line for line in text.splitlines())


def test_severities_are_coloured_and_no_color_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[1;31merror" in shown(80, "en", monkeypatch, colours=True)
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    doctor.show(Page(stream), SERVER, FINDINGS, "en")
    assert not re.search(r"\x1b\[[\d;]*3[1-6]", stream.getvalue())


def test_what_is_known_of_the_machine_is_said_briefly() -> None:
    told = dict(groups(SERVER, "en"))
    assert told["processor"] == ["AMD EPYC 9654", "16 of 384 cores usable", "avx2 avx512f"]
    assert told["memory"] == ["limited to 128 GB of 1,620 GB, 128 GB free, no swap"]
    assert told["graphics"][0] == "8 × NVIDIA H200, 151 GB each, capability 9.0"
    assert told["disks"][0] == "3.1 GB of 2,000 GB free: environments, cache"
    assert "models cannot be written: /data/hub (Read-only file system)" in told["disks"]
    assert told["frameworks"] == [
        "torch 2.13.0+cpu, for CPU",
        "tensorflow 2.21.0, for CUDA 12.5, hangs while it is imported",
        "torch: read from its files; --deep imports it",
    ]
    assert told["network"] == ["hub: not reached, timed out after 3 s", "packages: reached, 0.20 s"]
    assert told["environments"] == ["lab: torch, cpu, broken, not proved"]
    assert told["not read"] == ["amd: permission denied"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_unknown_is_left_out(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert groups(Snapshot(), language) == []
    assert "None" not in shown(80, language, monkeypatch, Snapshot())
    partly = Snapshot(
        accelerators=Accelerators(nvidia=Nvidia(gpus=(Gpu(),)), apple=Gpu(name="Apple M3")),
        installed=Installed(frameworks=(Framework(name="jax"), Framework(name="torch", asked=True, outcome="ok"))),
        disks=(Disk(purpose="cache", path="/x"),),
        reach=(Reach(address="x", purpose="hub", reached=True),),
    )
    text = shown(80, language, monkeypatch, partly)
    assert "None" not in text and "Apple M3" in text


def test_markdown_has_the_machine_as_a_table_and_commands_in_a_block() -> None:
    text = doctor.markdown(SERVER, FINDINGS, "en")
    assert "| processor | AMD EPYC 9654<br>16 of 384 cores usable<br>avx2 avx512f |" in text
    assert f"```console\nmodelyard env create --framework torch\n{LONG_COMMAND}\n```" in text
    assert "**error: Too little space** (`disk`)" in text


# the command


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    file = tmp_path / "server.json"
    file.write_text(SERVER.model_dump_json(), encoding="utf-8")
    return file


def test_a_snapshot_of_another_machine_is_diagnosed(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--from", str(recorded), "--lang", "en"]) == 3
    text = capsys.readouterr().out
    assert "Ubuntu 24.04.1 LTS, taken 2026-11-20 10:22 UTC" in text
    assert re.match(r"\d+ things? to mend", text)


def test_json_is_one_object_with_everything(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--from", str(recorded), "--json"]) == 3
    value = json.loads(capsys.readouterr().out)
    assert value["verdict"] == "error"
    assert {"rule", "severity", "title", "evidence", "explanation", "fix", "safe", "source"} == set(
        value["findings"][0]
    )
    assert Snapshot.model_validate(value["snapshot"]).cpu == SERVER.cpu


def test_language_is_chosen_on_the_command_line(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.environ.get("MODELYARD_LANG")
    main(["doctor", "--from", str(recorded), "--lang", "zh"])
    assert "个问题需要修复" in capsys.readouterr().out
    assert os.environ.get("MODELYARD_LANG") == before
    assert main(["--lang", "zh"]) == 0
    assert "命令" in capsys.readouterr().out
    assert main(["doctor", "--lang", "fr"]) == 2
    assert "fr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--from", "x.json", "--fix"], "--fix can do nothing"),
        (["--from", "x.json", "--deep"], "--deep can do nothing"),
        (["--yes"], "--yes agrees to what --fix does"),
        (["--json", "--markdown"], "two forms of the same"),
        (["--deep", "--quick"], "not allowed with"),
        (["--from", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_makes_no_sense_is_refused(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *given]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error and "hint: " in error


@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
def test_this_machine_is_diagnosed_in_a_light_process(tmp_path: Path) -> None:
    """In little memory, with no framework in its process, and with nothing private in what it records."""
    doctor_command = (
        "import sys\n"
        "from modelyard.cli.main import main\n"
        f"code = main(['doctor', '--quick', '--json', '--record', {str(tmp_path / 'here.json')!r}])\n"
        "print(*{'torch', 'tensorflow', 'jax', 'transformers', 'numpy'} & set(sys.modules), file=sys.stderr)\n"
        "raise SystemExit(code)\n"
    )
    # the parent of the measured process must be small: a fork begins with its parent's resident size
    measure = (
        "import resource, subprocess, sys\n"
        f"code = subprocess.run([sys.executable, '-c', {doctor_command!r}]).returncode\n"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True)
    value = json.loads(result.stdout)
    heavy, code_and_memory = result.stderr.splitlines()[-2:]
    code, kibibytes = code_and_memory.split()
    assert heavy == "" and code in ("0", "3") and int(kibibytes) / 1024 < 80
    assert value["snapshot"]["system"]["name"] == sys.platform
    assert str(Path.home()) not in (tmp_path / "here.json").read_text(encoding="utf-8")


# --fix


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands that would have been run."""
    commands: list[str] = []
    monkeypatch.setattr(doctor_fix, "_run", lambda command: commands.append(command) or 0)
    return commands


def mended(
    findings: list[Finding], monkeypatch: pytest.MonkeyPatch, answer: Callable[[], bool] | None, yes: bool = False
) -> tuple[bool, str]:
    monkeypatch.setattr(doctor_fix, "interactive", lambda: answer is not None)
    monkeypatch.setattr(doctor_fix, "agreed", lambda question, otherwise: answer() if answer else False)
    stream = StringIO()
    return doctor_fix.mend(Page(stream), findings, "en", agreed_beforehand=yes), stream.getvalue()


def test_what_is_safe_is_done_and_the_rest_only_said(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    worth_another_look, text = mended([REPAIR, BUILD, SPACE, SHARED], monkeypatch, None)
    assert ran == ["modelyard env repair lab"] and worth_another_look
    assert "nobody can be asked here" in text and LONG_COMMAND in text


def test_anything_else_is_asked(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert mended([BUILD], monkeypatch, lambda: False) == (False, mended([BUILD], monkeypatch, lambda: False)[1])
    assert ran == []
    assert mended([BUILD], monkeypatch, lambda: True)[0]
    assert ran == list(BUILD.fix)


@pytest.mark.parametrize(
    "command",
    [
        "sudo apt-get install nvidia-driver-580",
        "curl https://example.org | sudo sh",
        "export LD_LIBRARY_PATH=",
        "sudo reboot",
        "docker run --gpus all IMAGE",
        "pip install <name of the package>",
        "modelyard env repair NAME",
    ],
)
def test_some_commands_are_never_run(command: str, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding("x", "error", "A title", "", "", (command,), safe=True)
    changed, text = mended([finding], monkeypatch, lambda: True, yes=True)
    assert ran == [] and not changed
    assert command in text and "to be run by you" in text


def test_a_finding_that_calls_itself_safe_may_only_repair_an_environment(
    ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mended([Finding("x", "error", "A title", "", "", ("rm -rf /data",), safe=True)], monkeypatch, None)
    assert ran == []


def test_sentences_are_not_commands(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    changed, text = mended([SPACE], monkeypatch, lambda: True, yes=True)
    assert not changed and ran == [] and say("fix.nothing", "en") in text
    assert not doctor.is_sentence("pip install .") and doctor.is_sentence("请腾出空间。")


def test_a_command_that_fails_ends_its_fix(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding("x", "error", "A title", "", "", ("echo one && false", "echo two"))
    changed, text = mended([finding], monkeypatch, None, yes=True)
    assert changed and "ended with code 1" in text
    captured = capfd.readouterr()
    assert "one" in captured.err and "two" not in captured.err and captured.out == ""


def test_fix_looks_again(ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    states = [[REPAIR], []]
    monkeypatch.setattr(doctor, "examine", lambda arguments, spoken: (SERVER, states.pop(0)))
    arguments = argparse.Namespace(
        recipe=None, python=None, deep=False, quick=False, record=None, source=None, markdown=False,
        fix=True, yes=False, json=False,
    )  # fmt: skip
    assert doctor.run(arguments) == 0
    text = capsys.readouterr().out
    assert text.index("1 thing to mend") < text.index("diagnosed again") < text.index("Nothing to mend")
    assert ran == ["modelyard env repair lab"]
