"""uv's failures, provoked for real where that is possible, become errors with the cause and the next command."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.environment.fake_wheels import make_wheel
from tests.environment.workshop import PYTHON, Workshop

from modelyard.environment import project
from modelyard.environment.uv import Uv, explain, find_uv, ignore
from modelyard.errors import MachineError

PROJECT = """
[project]
name = "modelyard-environment"
version = "0"
requires-python = "=={python}.*"
dependencies = [{requirement!r}]
[tool.uv]
package = false
prerelease = "disallow"
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    workshop = Workshop(tmp_path_factory.mktemp("workshop"))
    workshop.wheel("widget", "1.0")
    workshop.wheel("needy", "1.0", "widget>=7")
    make_wheel(workshop.wheels, "large", "1.0", {"large.bin": os.urandom(6_000_000)})
    return workshop


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)


def written(folder: Path, requirement: str = "widget", python: str = PYTHON) -> Path:
    (folder / "pyproject.toml").write_text(PROJECT.format(requirement=requirement, python=python))
    return folder


def uv_of(workshop: Workshop, *arguments: str, **variables: str) -> Uv:
    arguments = arguments or ("--no-index", "--find-links", workshop.wheels.as_uri())
    return Uv(arguments=arguments, environ=workshop.tools.host.environ, variables=variables)


def test_the_lines_of_uv_are_events(workshop: Workshop, folder: Path) -> None:
    events: list[dict[str, object]] = []
    uv = uv_of(workshop)
    uv.lock(folder, PYTHON, events.append)
    uv.sync(folder, PYTHON, events.append)
    assert {each["kind"] for each in events} == {"progress"}
    assert {"+ widget==1.0"} <= {each["text"] for each in events if each["stage"] == "install"}
    assert any(str(each["text"]).startswith("Resolved 2 packages") for each in events if each["stage"] == "lock")


def test_files_of_an_environment_are_its_own(workshop: Workshop, folder: Path) -> None:
    """What spoils a file of an environment must not spoil uv's cache, from which a repair takes it again."""
    uv = uv_of(workshop, UV_LINK_MODE="hardlink")
    uv.lock(folder, PYTHON, ignore)
    uv.sync(folder, PYTHON, ignore)
    installed = next((folder / ".venv").rglob("widget.py"))
    assert installed.stat().st_nlink == 1
    right = installed.read_bytes()
    with installed.open("a") as file:
        file.write("spoilt\n")
    shutil.rmtree(folder / ".venv")
    uv.sync(folder, PYTHON, ignore)
    assert next((folder / ".venv").rglob("widget.py")).read_bytes() == right


def test_settings_that_a_build_decides_do_not_leak_in(workshop: Workshop, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    uv = Uv(
        arguments=["--no-index", "--find-links", workshop.wheels.as_uri()],
        environ=dict(workshop.tools.host.environ) | {
            "UV_PROJECT_ENVIRONMENT": str(elsewhere), "VIRTUAL_ENV": str(elsewhere), "UV_PYTHON": "2.7",
            "UV_FROZEN": "1", "UV_PROJECT": str(elsewhere), "UV_PRERELEASE": "allow", "UV_NO_SYNC": "1",
        },
    )  # fmt: skip
    uv.lock(folder, PYTHON, ignore)
    uv.sync(folder, PYTHON, ignore)
    assert (folder / ".venv").is_dir()
    assert not elsewhere.exists()


def test_what_is_not_in_the_cache(workshop: Workshop, folder: Path, tmp_path: Path) -> None:
    uv = uv_of(workshop, UV_CACHE_DIR=str(tmp_path / "cache"))
    uv.lock(folder, PYTHON, ignore)
    assert uv.not_cached(folder, PYTHON) == ["widget"]
    uv.sync(folder, PYTHON, ignore)
    shutil.rmtree(folder / ".venv")
    assert uv.not_cached(folder, PYTHON) == []
    assert uv.cache_folder() == tmp_path / "cache"


def test_a_name_that_is_not_known_to_the_network(workshop: Workshop, folder: Path) -> None:
    uv = uv_of(workshop, "--default-index", "https://ann:secret@nowhere.invalid/simple")
    with pytest.raises(
        MachineError, match=r"cannot get the list of versions of widget from nowhere\.invalid: "
    ) as raised:
        uv.lock(folder, PYTHON, ignore)
    assert "modelyard doctor" in raised.value.hint
    assert "env export NAME --air-gapped DIR" in raised.value.hint
    assert "secret" not in str(raised.value)


def test_a_proxy_that_nobody_answers_at(workshop: Workshop, folder: Path) -> None:
    proxy = "http://127.0.0.1:9"
    uv = uv_of(workshop, "--default-index", "https://index.invalid/simple", HTTPS_PROXY=proxy, HTTP_PROXY=proxy)
    with pytest.raises(MachineError, match=r"versions of widget from index\.invalid: .*Connection refused"):
        uv.lock(folder, PYTHON, ignore)


@pytest.fixture
def index(workshop: Workshop) -> Iterator[str]:
    """An index on this machine that serves widget; under /401, /403 and /500 it does not, under /cut only half."""
    wheel = (workshop.wheels / "widget-1.0-py3-none-any.whl").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first = self.path.split("/")[1]
            status = int(first) if first.isdecimal() else 200
            body = wheel if self.path.endswith(".whl") else b'<a href="widget-1.0-py3-none-any.whl">widget</a>'
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if first == "cut" and self.path.endswith(".whl") else body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("status", [401, 403])
def test_an_index_that_wants_a_login(workshop: Workshop, folder: Path, index: str, status: int) -> None:
    with pytest.raises(MachineError, match=rf"http://127\S+/{status}/simple refuses to serve \({status}") as raised:
        uv_of(workshop, "--default-index", f"{index}/{status}/simple").lock(folder, PYTHON, ignore)
    assert "password" in raised.value.hint


def test_an_index_that_is_broken(workshop: Workshop, folder: Path, index: str) -> None:
    with pytest.raises(MachineError, match=r"versions of widget from 127.*500 Internal Server Error"):
        uv_of(workshop, "--default-index", f"{index}/500/simple").lock(folder, PYTHON, ignore)


def test_an_interrupted_download_goes_on_with_the_next_call(
    workshop: Workshop, folder: Path, index: str, tmp_path: Path
) -> None:
    arguments = ["--default-index", f"{index}/good/simple"]
    cache = str(tmp_path / "cache")
    uv_of(workshop, *arguments, UV_CACHE_DIR=str(tmp_path / "other")).lock(folder, PYTHON, ignore)
    lock = folder / "uv.lock"
    good = lock.read_text()
    lock.write_text(good.replace("/good/", "/cut/"))
    with pytest.raises(MachineError, match=r"cannot get widget==1\.0 from .*: end of file") as raised:
        uv_of(workshop, "--default-index", f"{index}/cut/simple", UV_CACHE_DIR=cache).sync(folder, PYTHON, ignore)
    assert "type the same command again" in raised.value.hint
    lock.write_text(good)
    uv_of(workshop, *arguments, UV_CACHE_DIR=cache).sync(folder, PYTHON, ignore)


def test_versions_that_do_not_exist(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"only widget==1\.0 is available|widget>=7") as raised:
        uv_of(workshop).lock(written(tmp_path, "needy"), PYTHON, ignore)
    assert "do not fit this machine" in raised.value.problem
    assert "--python" in raised.value.hint


def test_a_changed_file_is_refused_with_its_name(workshop: Workshop, folder: Path, tmp_path: Path) -> None:
    uv = uv_of(workshop, UV_CACHE_DIR=str(tmp_path / "cache"))
    uv.lock(folder, PYTHON, ignore)
    project.add_missing_hashes(folder / "uv.lock")
    wheel = workshop.wheels / "widget-1.0-py3-none-any.whl"
    right = wheel.read_bytes()
    try:
        workshop.wheel("widget", "1.0", text="import os  # not what was locked\n")
        with pytest.raises(MachineError, match=r"widget==1\.0 is not the file that was locked, so it was refused"):
            uv.sync(folder, PYTHON, ignore)
    finally:
        wheel.write_bytes(right)
    uv.sync(folder, PYTHON, ignore)


def test_a_python_that_is_not_here(workshop: Workshop, tmp_path: Path) -> None:
    uv = uv_of(workshop, "--offline")
    with pytest.raises(MachineError, match=r"Python 3\.99 is not on this machine; here are: .*3\.\d+") as raised:
        uv.lock(written(tmp_path, python="3.99"), "3.99", ignore)
    assert "--python" in raised.value.hint
    assert "UV_PYTHON_INSTALL_MIRROR" in raised.value.hint
    assert any(version.startswith(f"{PYTHON}.") for version, _ in uv.pythons())


def test_a_python_that_cannot_be_fetched(workshop: Workshop, tmp_path: Path) -> None:
    uv = uv_of(workshop, UV_PYTHON_INSTALL_MIRROR="https://nowhere.invalid/", UV_PYTHON_PREFERENCE="only-managed",
               UV_PYTHON_INSTALL_DIR=str(tmp_path / "pythons"))  # fmt: skip
    with pytest.raises(MachineError, match=r"Python 3\.14 is not on this machine and cannot be downloaded"):
        uv.lock(written(tmp_path, python="3.14"), "3.14", ignore)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a small file system of its own")
@pytest.mark.parametrize("small", ["environment", "cache"])
def test_a_disk_that_becomes_full(workshop: Workshop, tmp_path: Path, small: str) -> None:
    """On a tmpfs of 2 MB, mounted in a name space of its own that ends with the process."""
    disk, place = tmp_path / "disk", tmp_path / "project"
    disk.mkdir()
    place.mkdir()
    written(place, "large")
    uv_of(workshop, UV_CACHE_DIR=str(tmp_path / "cache")).lock(place, PYTHON, ignore)
    script = (
        "import sys\nfrom pathlib import Path\nfrom modelyard.environment.uv import Uv, ignore\n"
        "from modelyard.errors import MachineError\n"
        f"uv = Uv(arguments=['--no-index', '--find-links', {workshop.wheels.as_uri()!r}],\n"
        f"        variables={{'UV_CACHE_DIR': {str(disk / 'cache' if small == 'cache' else tmp_path / 'cache')!r}}})\n"
        f"place = Path({str(disk / 'project' if small == 'environment' else place)!r})\n"
        f"if not place.exists(): import shutil; shutil.copytree({str(place)!r}, place)\n"
        "try:\n    uv.sync(place, sys.argv[1], ignore)\nexcept MachineError as error:\n    print(error)\n"
    )
    mount = f"mount -t tmpfs -o size=2m tmpfs '{disk}' || exit 77; exec '{sys.executable}' -c \"$1\" {PYTHON}"
    ended = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh", script], capture_output=True, text=True
    )
    if ended.returncode == 77 or "unshare" in ended.stderr:
        pytest.skip(f"no file system of its own: {ended.stderr.strip()}")
    assert "the disk became full" in ended.stdout, ended.stdout + ended.stderr
    assert "MODELYARD_ENVIRONMENTS and UV_CACHE_DIR" in ended.stdout


def test_a_cache_that_cannot_be_written(workshop: Workshop, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cache") as raised:
        uv_of(workshop, UV_CACHE_DIR=str(tmp_path / "file")).lock(folder, PYTHON, ignore)
    assert raised.value.exit_code == 3


def test_a_binary_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="uv cannot be started") as raised:
        Uv(str(tmp_path / "uv"), environ={}).cache_folder()
    assert "pip install" in raised.value.hint


def test_without_uv_the_next_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MachineError) as raised:
        find_uv()
    assert raised.value.hint == "pip install uv"


def test_uv_ends_when_the_command_is_interrupted(workshop: Workshop, folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "slow"
    script.write_text(f"#!{sys.executable}\nimport os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n")
    script.chmod(0o755)
    seen: list[int] = []

    def interrupt(event: dict[str, object]) -> None:
        seen.append(int(str(event["text"])))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Uv(str(script), environ=os.environ).run(["sync"], folder, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


@pytest.mark.parametrize(
    ("said", "problem", "hint"),
    [
        ("error: Failed to install: x\n  cause: failed to copy file from a to b: No space left on device (os error 28)",
         "the disk became full while uv was writing: failed to copy file", "uv cache prune"),
        ("error: failed to write\n  cause: There is not enough space on the disk. (os error 112)",
         "disk became full", ""),
        ("error: failed to create directory `/x/.venv`: Read-only file system (os error 30)", "uv cannot write", ""),
        ("error: failed to open `/x`: Permission denied (os error 13)", "uv cannot write", "UV_CACHE_DIR"),
        ("error: Failed to fetch: `https://u:p@mirror.example/simple/torch/`\n  cause: error sending request\n"
         "  cause: client error (Connect)\n  cause: invalid peer certificate: UnknownIssuer",
         "certificate of mirror.example is not trusted", "pip config set global.cert"),
        ("error: Distribution `torch==2.13.0 @ registry+x` can't be installed because it doesn't have a source "
         "distribution or wheel for the current platform", "do not fit this machine", "--accelerator"),
        ("error: something new\n  cause: that nobody saw before", "something new cause: that nobody saw", "doctor"),
        ("", "it said nothing", "doctor"),
    ],
)  # fmt: skip
def test_what_is_made_of_words(said: str, problem: str, hint: str) -> None:
    error = explain("sync", said.splitlines(), 2)
    assert problem in error.problem
    assert hint in error.hint
    assert "u:p@" not in str(error)


def test_a_uv_that_the_system_ended() -> None:
    assert "signal 9" in explain("sync", [], -9).problem


def test_the_list_of_pythons_is_json(workshop: Workshop) -> None:
    rows = json.loads(uv_of(workshop).ask(["python", "list", "--only-installed", "--output-format", "json"]))
    assert {"version", "path"} <= set(rows[0])
