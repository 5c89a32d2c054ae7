"""A command that needs a framework, typed in a Python without one: a light installation, as `pip install modelyard`
makes it, and environments whose Python is a script that says how it was started."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelyard.cli.hand_over import MARK, child_variables
from modelyard.cli.run import TYPED, own_command

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses a shell script as Python")

ROOT = Path(__file__).parents[2]
LIGHT = ("pydantic", "PyYAML", "rich", "psutil", "uv", "nvidia-ml-py")
RECIPE = "task: sentiment\ndata: {train: rows.csv}\ndesign: {architecture: {family: bert}}\n"
HINT = "hint: modelyard env create --framework torch"


@pytest.fixture(scope="module")
def light_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing but what the light package needs, and modelyard itself from the checkout.

    The packages are linked from here, file by file as their RECORD says, so no network is asked.
    """
    import importlib.metadata

    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    wanted, seen = list(LIGHT), set()
    while wanted:
        name = re.split(r"[\s;\[<>=!~(]", wanted.pop())[0]
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another platform or another Python
            continue
        wanted += [each for each in distribution.requires or [] if "extra ==" not in each]
        for file in distribution.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    (site / "modelyard.pth").write_text(f"{ROOT / 'src'}\n")
    return folder / "bin" / "python"


@pytest.fixture
def environments(tmp_path: Path) -> Path:
    return tmp_path / "environments"


def make(environments: Path, name: str, *, proved: bool = True, state: str = "ready", made: str = "2026-11-01") -> Path:
    """An environment as `env create` leaves it, whose Python prints how it was started."""
    build = environments / name / "builds" / "1"
    python = build / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\n"
        'printf "%s\\n" "$@"\n'
        f'echo "mark=${MARK} threads=$OMP_NUM_THREADS path=$PYTHONPATH language=$MODELYARD_LANG"\n'
        "exit 7\n"
    )
    python.chmod(0o755)
    about = {"format": 1, "name": name, "framework": "torch", "accelerator": "cpu", "current": "1"}
    (environments / name / "environment.json").write_text(json.dumps(about))
    record = {"state": state, "made": made, "variables": {"OMP_NUM_THREADS": "3"}}
    (build / "build.json").write_text(json.dumps(record))
    proof = {"format": 1, "passed": proved, "framework": {"name": "torch", "version": "2.13.0"}}
    (build / "proof.json").write_text(json.dumps(proof))
    return python


def variables(environments: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in (MARK, "PYTHONPATH", "MODELYARD_LANG")}
    return {**kept, "MODELYARD_ENVIRONMENTS": str(environments), "LC_ALL": "C.UTF-8", "TERM": "xterm", **more}


def started(
    python: Path, environments: Path, *arguments: str, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-m", "modelyard", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env=variables(environments, **more),
        timeout=60,
        check=False,
    )


def test_the_light_installation_has_no_framework(light_python: Path, environments: Path) -> None:
    code = "import importlib.util as u; print(*[n for n in ('torch', 'numpy', 'transformers') if u.find_spec(n)])"
    result = subprocess.run([str(light_python), "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
    assert started(light_python, environments, "--help").returncode == 0


def test_the_same_command_goes_on_in_the_environment(light_python: Path, environments: Path, tmp_path: Path) -> None:
    make(environments, "lab")
    (tmp_path / "r.yaml").write_text(RECIPE)
    given = ("train", "r.yaml", "--set", "training.seed=3", "--json")
    result = started(light_python, environments, *given, cwd=tmp_path, PYTHONPATH="/elsewhere", OMP_NUM_THREADS="64")
    assert result.returncode == 7, result.stderr
    assert result.stdout.splitlines() == ["-m", "modelyard", *given, "mark=lab threads=3 path= language="]
    assert result.stderr == "in the environment lab (torch 2.13.0, cpu)\n"


def test_the_language_of_the_command_line_goes_along(light_python: Path, environments: Path) -> None:
    make(environments, "lab")
    result = started(light_python, environments, "predict", "runs/x", "a text", "--lang", "zh")
    assert "language=zh" in result.stdout and "在环境 lab 中运行（torch 2.13.0, cpu）" in result.stderr


@pytest.mark.parametrize(
    "given", [("evaluate", "r"), ("predict", "r", "x"), ("export", "r"), ("serve", "r"), ("demo",)]
)
def test_commands_without_a_recipe_take_torch(given: tuple[str, ...], light_python: Path, environments: Path) -> None:
    make(environments, "lab")
    assert started(light_python, environments, *given).returncode == 7


def test_the_newest_proved_environment_is_taken(light_python: Path, environments: Path) -> None:
    make(environments, "old", made="2026-10-01")
    make(environments, "new", made="2026-11-02")
    make(environments, "later-but-unproved", proved=False, made="2026-11-05")
    make(environments, "half", state="building", made="2026-11-06")
    assert "mark=new" in started(light_python, environments, "demo").stdout


def test_no_loop_is_possible(light_python: Path, environments: Path) -> None:
    """An environment whose Python leads back to one without the framework."""
    python = make(environments, "lab")
    python.write_text(f'#!/bin/sh\nexec {light_python} "$@"\n')
    result = started(light_python, environments, "demo")
    assert result.returncode == 3
    assert "not installed" in result.stderr and "'lab'" in result.stderr
    assert "hint: modelyard env verify lab" in result.stderr


def test_without_an_environment_the_hint_is_the_command_that_makes_one(
    light_python: Path, environments: Path, tmp_path: Path
) -> None:
    make(environments, "broken", proved=False)
    result = started(light_python, environments, "demo", "--json")
    assert result.returncode == 3
    assert "`torch` is not installed in " in result.stderr and HINT in result.stderr
    error = json.loads(result.stdout)["error"]
    assert error["hint"] == "modelyard env create --framework torch" and error["kind"] == "MachineError"


def test_a_wrong_recipe_is_said_before_anything_is_made(light_python: Path, environments: Path, tmp_path: Path) -> None:
    result = started(light_python, environments, "train", str(tmp_path / "nowhere.yaml"))
    assert result.returncode == 1 and "nowhere.yaml" in result.stderr
    assert started(light_python, environments, "train").returncode == 2


def test_doctor_env_and_init_stay_here(light_python: Path, environments: Path, tmp_path: Path) -> None:
    make(environments, "lab")
    assert started(light_python, environments, "env", "list").returncode == 0
    assert started(light_python, environments, "doctor", "--quick").returncode in (0, 3)
    assert started(light_python, environments, "init", "sentiment", cwd=tmp_path).returncode == 0


def test_a_python_with_the_framework_goes_on_by_itself(environments: Path) -> None:
    pytest.importorskip("torch")
    make(environments, "lab")
    result = started(Path(sys.executable), environments, "evaluate", "runs/none")
    assert "in the environment" not in result.stderr and result.returncode == 1


def test_the_variables_of_the_environment_win() -> None:
    given = {"A": "1", "B": "2", "PYTHONPATH": "/x", "PYTHONHOME": "/y"}
    assert child_variables("lab", {"B": "3"}, given) == {"A": "1", "B": "3", MARK: "lab", TYPED: own_command()}


class Typed:
    """A command on a pseudo-terminal, with what it shows and what is typed."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        import pty

        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environ)
        os.close(slave)
        self.text = ""

    def wait_for(self, text: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while text not in self.text and time.monotonic() < end:
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.master, 65536).decode("utf-8", errors="replace")
                except OSError:  # the other end is closed: the command ended
                    break
        assert text in self.text, self.text

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        code = self.process.wait(30)
        while select.select([self.master], [], [], 0.2)[0]:
            try:
                self.text += os.read(self.master, 65536).decode("utf-8", errors="replace")
            except OSError:
                break
        os.close(self.master)
        return code


@pytest.fixture
def typed(light_python: Path, environments: Path) -> Iterator[Typed]:
    """`modelyard demo` on a terminal, with `env create` replaced by one that makes an environment at once."""
    code = (
        "import sys\n"
        "import modelyard.cli.env_prove as env_prove\n"
        "from modelyard.environment.store import Store\n"
        "def make(framework):\n"
        "    print('making', framework, file=sys.stderr)\n"
        f"    import types; namespace = types.SimpleNamespace()\n"
        f"    exec(open({str(environments.parent / 'make.py')!r}).read(), vars(namespace))\n"
        "    return Store().find_ready(framework)\n"
        "env_prove.make = make\n"
        "from modelyard.cli.main import main\n"
        "raise SystemExit(main(['demo']))\n"
    )
    script = environments.parent / "make.py"
    finished = environments.parent / "finished"
    make(finished, "fresh")
    script.write_text(f"import os\nos.rename({str(finished)!r}, {str(environments)!r})\n")
    command = Typed([str(light_python), "-c", code], variables(environments))
    yield command
    if command.process.poll() is None:
        command.process.kill()
        command.process.wait()


def test_an_agreed_question_makes_the_environment_and_goes_on(typed: Typed) -> None:
    typed.wait_for("Make it now with `modelyard env create --framework torch`? [Y/n] ")
    typed.type("\n")
    typed.wait_for("making torch")
    assert typed.end() == 7
    assert "in the environment fresh (torch 2.13.0, cpu)" in typed.text


def test_a_declined_question_leaves_the_command_as_hint(typed: Typed) -> None:
    typed.wait_for("[Y/n] ")
    typed.type("n\n")
    assert typed.end() == 3
    assert HINT in re.sub(r"\x1b\[[\d;]*m", "", typed.text) and "making" not in typed.text


def test_ctrl_d_is_no_agreement(typed: Typed) -> None:
    typed.wait_for("[Y/n] ")
    typed.type("\x04")
    assert typed.end() == 3
    assert "making" not in typed.text
