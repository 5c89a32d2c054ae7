"""Exports of a real (small) environment, each read by the tool that it is for wherever that tool is here."""

from __future__ import annotations

import base64
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.environment.workshop import PYTHON, Workshop, make_workshop

from modelyard.environment import export
from modelyard.environment.export import FORMATS, Exported
from modelyard.errors import InputError, UsageError


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def build(workshop: Workshop) -> Path:
    """The folder of a finished build, made by uv from fake wheels."""
    made = workshop.create().build
    assert made is not None
    return made.path


@pytest.fixture
def private(build: Path, tmp_path: Path) -> Path:
    """The same build, from a mirror and an index that ask for a login."""
    copy = tmp_path / "torch" / "builds" / "1"
    shutil.copytree(build, copy, ignore=shutil.ignore_patterns(".venv"))
    with (copy / "pyproject.toml").open("a") as file:
        file.write('\n[[tool.uv.index]]\nname = "private"\nurl = "https://someone:hunter2@wheels.example/simple"\n')
        file.write("explicit = true\n")
    record = json.loads((copy / "build.json").read_text())
    record["sources"]["variables"]["UV_DEFAULT_INDEX"] = "https://someone:hunter2@mirror.example/simple"
    (copy / "build.json").write_text(json.dumps(record))
    return copy


def exported(build: Path, form: str, folder: Path, accelerator: str = "") -> Exported:
    made = export.export(build, form, accelerator=accelerator)
    written = export.write(made, folder)
    assert {each.relative_to(folder).as_posix() for each in written} >= set(made.texts)
    assert all(each.is_file() for each in written)
    return made


def pip(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """pip in `folder`, without the person's configuration and without an index."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environ |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", *arguments]
    return subprocess.run(command, cwd=folder, env=environ | variables, capture_output=True, text=True, timeout=120)


# requirements and pylock ----------------------------------------------------------------------------------------------


def test_pip_takes_the_requirements(build: Path, tmp_path: Path) -> None:
    exported(build, "requirements", tmp_path)
    ended = pip(tmp_path, "--require-hashes", "-r", "requirements.txt")
    assert ended.returncode == 0, ended.stderr
    assert "widget-1.0" in ended.stdout and "modelyard-" in ended.stdout


def test_pip_refuses_a_wheel_that_was_changed_after_the_export(build: Path, tmp_path: Path) -> None:
    exported(build, "requirements", tmp_path)
    wheel = next((tmp_path / "packages").glob("widget-*.whl"))
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    ended = pip(tmp_path, "--require-hashes", "-r", "requirements.txt")
    assert ended.returncode != 0
    assert "DO NOT MATCH THE HASHES" in ended.stderr and wheel.name in ended.stderr


def test_no_requirement_is_left_out_in_silence_elsewhere(build: Path, tmp_path: Path) -> None:
    """A marker of this platform on every line would make pip on another one install nothing, without a word."""
    exported(build, "requirements", tmp_path)
    text = (tmp_path / "requirements.txt").read_text()
    assert "platform_machine" not in text
    names = {line.split("==")[0] for line in text.splitlines() if "==" in line}
    assert {"widget", "rich", "pydantic"} <= names
    assert text.count("--hash=sha256:") >= len(names) + 1  # and modelyard's own


def test_packaging_reads_the_pylock(build: Path, tmp_path: Path) -> None:
    exported(build, "pylock", tmp_path)
    value = tomllib.loads((tmp_path / "pylock.toml").read_text())
    pylock = pytest.importorskip("packaging.pylock", reason="this packaging knows no pylock.toml")
    read = pylock.Pylock.from_dict(value)
    read.validate()
    assert {"widget", "modelyard"} <= {str(each.name) for each in read.packages}
    places = re.findall(r'path = "([^"]+)"', (tmp_path / "pylock.toml").read_text())
    assert places and all((tmp_path / each).is_file() for each in places)


# conda ----------------------------------------------------------------------------------------------------------------


def test_the_conda_file_has_the_documented_form(build: Path, tmp_path: Path) -> None:
    exported(build, "conda", tmp_path)
    value = yaml.safe_load((tmp_path / "environment.yml").read_text())
    assert set(value) <= {"name", "channels", "dependencies", "prefix", "variables"}
    assert value["name"] == "torch" and all(isinstance(each, str) for each in value["channels"])
    *conda, section = value["dependencies"]
    assert conda == [f"python={PYTHON}", "pip"]
    assert list(section) == ["pip"] and all(isinstance(each, str) for each in section["pip"])
    # conda writes that section into a requirements file in the folder of environment.yml and calls pip there.
    (tmp_path / "condaenv.requirements.txt").write_text("\n".join(section["pip"]))
    ended = pip(tmp_path, "-r", "condaenv.requirements.txt")
    assert ended.returncode == 0, ended.stderr


# Containers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accelerator", ["cpu", "cu130", "rocm7.2", "tpu"])
def test_the_dockerfile_is_small_and_not_root(build: Path, tmp_path: Path, accelerator: str) -> None:
    exported(build, "dockerfile", tmp_path, accelerator)
    text = (tmp_path / "Dockerfile").read_text()
    instructions = [line.split()[0] for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert set(instructions) <= {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "HEALTHCHECK", "CMD"}
    assert f"FROM python:{PYTHON}-slim\n" in text
    users = re.findall(r"(?m)^USER (\S+)", text)
    assert users == ["1000:1000"] and text.index("USER 1000") > text.index("pip install")
    assert "--require-hashes" in text and "HEALTHCHECK NONE" in text and 'CMD ["modelyard"]' in text
    sources = re.findall(r"(?m)^COPY (\S+) ", text)
    assert sources and all((tmp_path / each).exists() for each in sources)
    ignored = (tmp_path / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*" and {f"!{each.strip('/')}" for each in sources} == set(ignored[1:])
    assert ("--gpus all" in text) == (accelerator == "cu130")
    assert ("/dev/kfd" in text) == (accelerator == "rocm7.2")


def test_the_linter_finds_nothing(build: Path, private: Path, tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint has no build for this platform")
    for number, (source, accelerator) in enumerate([(build, "cpu"), (build, "cu130"), (private, "cpu")]):
        folder = tmp_path / str(number)
        exported(source, "dockerfile", folder, accelerator)
        ended = subprocess.run([hadolint, folder / "Dockerfile"], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize("accelerator", ["cpu", "cu126"])
def test_the_dev_container_asks_for_a_gpu_where_it_needs_one(build: Path, tmp_path: Path, accelerator: str) -> None:
    exported(build, "devcontainer", tmp_path, accelerator)
    value = json.loads((tmp_path / "devcontainer.json").read_text())
    # The properties of devContainer.base.schema.json that are used here, with their types.
    known = {"name": str, "build": dict, "remoteUser": str, "customizations": dict, "runArgs": list,
             "hostRequirements": dict}  # fmt: skip
    assert all(isinstance(entry, known[name]) for name, entry in value.items())
    assert set(value["build"]) <= {"dockerfile", "context", "options", "args", "target", "cacheFrom"}
    assert (tmp_path / value["build"]["dockerfile"]).is_file()
    assert all(isinstance(each, str) for each in value["runArgs"])
    assert f"useradd --create-home --uid 1000 {value['remoteUser']}" in (tmp_path / "Dockerfile").read_text()
    gpu = accelerator == "cu126"
    assert value.get("hostRequirements") == ({"gpu": True} if gpu else None)
    assert ("--gpus" in value["runArgs"]) == gpu


# Slurm ----------------------------------------------------------------------------------------------------------------

STUBS = """\
proc module-whatis {args} {}
proc conflict {args} {}
proc module-info {what mode} { return [expr {$mode eq $::mode}] }
proc prepend-path {name value} { puts "prepend $name $value" }
proc setenv {name value} { puts "set $name $value" }
proc unsetenv {name} { puts "unset $name" }
set mode [lindex $argv 1]
set code [catch {source [lindex $argv 0]} said]
puts "code $code"
"""


def load(folder: Path, environments: Path, mode: str = "load") -> tuple[list[str], str]:
    tclsh = shutil.which("tclsh")
    if tclsh is None:
        pytest.skip("tclsh is not installed")
    (folder / "stubs.tcl").write_text(STUBS)
    ended = subprocess.run(
        [tclsh, folder / "stubs.tcl", folder / "modulefiles" / "modelyard" / "torch", mode],
        env={"MODELYARD_ENVIRONMENTS": str(environments), "PATH": os.environ["PATH"], "HOME": "/nowhere"},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines(), ended.stderr


def test_the_modulefile_activates_the_build_in_use(workshop: Workshop, build: Path, tmp_path: Path) -> None:
    exported(build, "slurm-module", tmp_path)
    said, _ = load(tmp_path, workshop.store.folder)
    prefix = build / ".venv"
    assert said == [f"prepend PATH {prefix / 'bin'}", f"set VIRTUAL_ENV {prefix}", "unset PYTHONHOME", "code 0"]
    assert (tmp_path / "modulefiles/modelyard/torch").read_text().startswith("#%Module")  # how Lmod and Tcl know it


def test_the_modulefile_says_what_makes_a_missing_environment(build: Path, tmp_path: Path) -> None:
    exported(build, "slurm-module", tmp_path, "cu130")
    said, errors = load(tmp_path, tmp_path / "empty")
    assert said == ["code 3"]  # break: the module is not loaded
    assert f"modelyard env create --framework torch --accelerator cu130 --python {PYTHON} --name torch" in errors
    assert load(tmp_path, tmp_path / "empty", mode="unload")[0][-1] == "code 0"


def test_the_job_loads_the_module_and_runs_the_recipe(build: Path, tmp_path: Path) -> None:
    exported(build, "slurm-module", tmp_path, "cu130")
    job = (tmp_path / "job.sbatch").read_text()
    assert "#SBATCH --gpus=1\n" in job
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    stubs = 'module() { echo "module $*"; }; srun() { echo "srun $*"; }; export -f module srun; '
    environ = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": "/job", "SLURM_CPUS_PER_TASK": "8"}
    command = [bash, "-c", f'{stubs} bash "$0" my.yaml --resume', str(tmp_path / "job.sbatch")]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)
    assert ended.stdout.splitlines() == [
        "module use /job/modulefiles", "module load modelyard/torch", "srun modelyard run my.yaml --resume",
    ]  # fmt: skip


# Everywhere -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_of_this_machine_and_no_secret_gets_out(
    build: Path, private: Path, workshop: Workshop, tmp_path: Path, form: str
) -> None:
    for number, source in enumerate((build, private)):
        made = exported(source, form, tmp_path / "out" / str(number))
        for text in (*made.texts.values(), *made.notes):
            for word in ("hunter2", "someone", str(workshop.folder), str(tmp_path), str(Path.home()) + "/", "file://"):
                assert word not in text


def test_an_index_with_a_login_names_its_variables(private: Path, tmp_path: Path) -> None:
    made = exported(private, "requirements", tmp_path)
    text = made.texts["requirements.txt"]
    assert "--index-url https://mirror.example/simple\n" in text
    login = "${UV_INDEX_PRIVATE_USERNAME}:${UV_INDEX_PRIVATE_PASSWORD}"
    assert f"--extra-index-url https://{login}@wheels.example/simple\n" in text
    assert any("UV_INDEX_PRIVATE_PASSWORD" in note for note in made.notes)
    docker = export.export(private, "dockerfile").texts["Dockerfile"]
    assert "--mount=type=secret,id=UV_INDEX_PRIVATE_PASSWORD,env=UV_INDEX_PRIVATE_PASSWORD" in docker


@pytest.fixture
def guarded(workshop: Workshop) -> Iterator[str]:
    """An index of the workshop's wheels that asks for the login someone:hunter2; its address without the login."""
    expected = "Basic " + base64.b64encode(b"someone:hunter2").decode()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != expected:
                self.send_response(401)
                self.end_headers()
                return
            name = self.path.rstrip("/").rpartition("/")[2]
            if name.endswith(".whl"):
                self.path = f"/{name}"
                super().do_GET()
                return
            links = "".join(f'<a href="/{each.name}">{each.name}</a>' for each in workshop.wheels.glob(f"{name}-*"))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<!DOCTYPE html><html><body>{links}</body></html>".encode())

        def log_message(self, *_: object) -> None:
            pass

    folder = str(workshop.wheels)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: Handler(*given, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}/simple"
    server.shutdown()
    server.server_close()


def test_pip_logs_in_with_those_variables(build: Path, tmp_path: Path, guarded: str) -> None:
    copy = tmp_path / "builds" / "1"
    shutil.copytree(build, copy, ignore=shutil.ignore_patterns(".venv"))
    with (copy / "pyproject.toml").open("a") as file:
        file.write(f'\n[[tool.uv.index]]\nname = "private"\nurl = "http://someone:hunter2@{guarded}"\ndefault = true\n')
    exported(copy, "requirements", tmp_path / "out")
    for wheel in (tmp_path / "out" / "packages").glob("widget-*"):
        wheel.unlink()  # so that it must come from the index
    login = {"UV_INDEX_PRIVATE_USERNAME": "someone", "UV_INDEX_PRIVATE_PASSWORD": "hunter2"}
    command = ("--require-hashes", "--no-deps", "-r", "requirements.txt", "--no-cache-dir", "--no-input")
    ended = pip(tmp_path / "out", *command, PIP_NO_INDEX="0", NO_PROXY="127.0.0.1", **login)
    assert ended.returncode == 0, ended.stderr
    assert "widget-1.0" in ended.stdout
    wrong = pip(tmp_path / "out", *command, PIP_NO_INDEX="0", NO_PROXY="127.0.0.1", **login | {
        "UV_INDEX_PRIVATE_PASSWORD": "wrong",
    })  # fmt: skip
    assert wrong.returncode != 0


def test_a_local_wheel_that_is_gone_is_named(build: Path, workshop: Workshop, tmp_path: Path) -> None:
    copy = tmp_path / "builds" / "1"
    shutil.copytree(build, copy, ignore=shutil.ignore_patterns(".venv"))
    lock = (copy / "uv.lock").read_text()
    (copy / "uv.lock").write_text(lock.replace(str(workshop.wheels), "/no/such/folder"))
    made = export.export(copy, "requirements")
    assert any("widget-1.0-py3-none-any.whl" in note for note in made.notes)
    assert "# Put these files into packages/" in made.texts["requirements.txt"]


def test_an_unknown_format_names_the_nearest(build: Path) -> None:
    with pytest.raises(UsageError, match=r"'docker'; did you mean 'dockerfile'\?"):
        export.export(build, "docker")
    with pytest.raises(UsageError, match="no export format 'xyz'") as caught:
        export.export(build, "xyz")
    assert "requirements|pylock|conda" in caught.value.hint


@pytest.mark.parametrize("gone", ["uv.lock", "pyproject.toml", "packages"])
def test_an_unfinished_build_is_refused(build: Path, tmp_path: Path, gone: str) -> None:
    copy = tmp_path / "build"
    shutil.copytree(build, copy, ignore=shutil.ignore_patterns(".venv", gone))
    with pytest.raises(InputError) as caught:
        export.export(copy, "requirements")
    assert gone in caught.value.problem and "modelyard env" in caught.value.hint


def test_a_damaged_lock_is_refused(build: Path, tmp_path: Path) -> None:
    copy = tmp_path / "build"
    shutil.copytree(build, copy, ignore=shutil.ignore_patterns(".venv"))
    (copy / "uv.lock").write_text("version = [")
    with pytest.raises(InputError, match="cannot be read"):
        export.export(copy, "requirements")
