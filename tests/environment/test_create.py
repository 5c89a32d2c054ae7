"""Environments made for real of small fake packages: the steps, the refusals, and a kill at every point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.environment.fake_wheels import make_wheel
from tests.environment.workshop import Workshop, make_workshop

from modelyard.environment import create as creating
from modelyard.environment import proving, space
from modelyard.environment.building import STAGES
from modelyard.environment.choose import Build
from modelyard.environment.host import Host
from modelyard.environment.sources import Sources
from modelyard.errors import InputError, MachineError


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return make_workshop(tmp_path)


def test_an_environment_is_locked_installed_and_proved(workshop: Workshop) -> None:
    environment = workshop.create("torch", workshop.build(variables={"WIDGET": "1"}))
    assert workshop.stages() == [(name, state) for name in STAGES[1:] for state in ("started", "done")]
    assert all(each["seconds"] >= 0 for each in workshop.events if each.get("state") == "done")
    assert workshop.store.open("torch") == environment
    assert (environment.state, environment.current, environment.asked["accelerator"]) == ("ready", "1", "auto")
    build = environment.build
    assert build is not None
    said = subprocess.run([build.python, "-c", "import widget; print(widget.VERSION)"], capture_output=True, text=True)
    assert said.stdout == "1.0\n"
    assert (build.python.parent / ("modelyard.exe" if os.name == "nt" else "modelyard")).exists()
    record = build.read_record()
    assert (record["state"], record["variables"], record["reasons"]) == (
        "ready", {"WIDGET": "1"}, [{"en": "because", "zh": "因为"}],
    )  # fmt: skip
    assert "sha256:" in build.lock.read_text().split('name = "widget"')[-1]
    assert workshop.proof_of(environment)["passed"] is True
    assert workshop.store.find_ready("torch") == environment


def test_names_that_are_taken(workshop: Workshop) -> None:
    workshop.create()
    with pytest.raises(InputError, match=r"an environment 'torch' already \(torch for cpu, ready\)") as raised:
        workshop.create()
    assert "env repair torch" in raised.value.hint
    assert "env remove torch" in raised.value.hint
    assert workshop.create("other").state == "ready"


def test_names_by_default() -> None:
    assert creating.default_name("torch", "auto") == "torch"
    assert creating.default_name("torch", "rocm7.2") == "torch-rocm7.2"


def test_a_failed_proof_keeps_its_record_and_is_not_used(workshop: Workshop) -> None:
    (workshop.control / "proof-fails").touch()
    with pytest.raises(MachineError) as raised:
        workshop.create()
    record = workshop.folder / "environments/torch/builds/1/proof.json"
    assert "float32 strict, gradients: 3.0e-01 instead of at most 1.0e-05: layer.0.query" in raised.value.problem
    assert str(record) in raised.value.hint
    assert "env repair torch" in raised.value.hint
    assert raised.value.exit_code == 3
    assert json.loads(record.read_text())["passed"] is False
    environment = workshop.store.open("torch")
    assert (environment.state, environment.current, environment.build) == ("broken", "", None)
    assert workshop.store.find_ready("torch") is None
    with pytest.raises(InputError, match=r"already \(torch for cpu, broken\)"):
        workshop.create()
    assert record.exists()


def test_a_proof_that_crashes_gets_a_record_with_its_words(workshop: Workshop) -> None:
    (workshop.control / "proof-crashes").touch()
    with pytest.raises(MachineError, match=r"ended with code 1: ImportError: libcudart\.so\.13"):
        workshop.create()
    build = workshop.store.open("torch").builds[0]
    assert build.state == "broken"
    assert "libcudart" in build.read_proof()["output"]


def test_a_proof_that_hangs_is_ended(workshop: Workshop) -> None:
    build = workshop.create().build
    assert build is not None
    (workshop.control / "proof-waits").touch()
    proof = proving.prove(build, "torch", "cpu", workshop.proof_command, seconds=0.5)
    assert "did not end in time" in proving.failures(proof)[0]


def test_an_old_version_leaves_nothing(workshop: Workshop) -> None:
    with pytest.raises(MachineError, match=r"newest widget .* 1\.0; modelyard needs 2\.0"):
        workshop.create("torch", workshop.build(min_versions={"widget": "2.0"}))
    assert workshop.store.environments() == []
    assert list(workshop.store.folder.iterdir()) == []
    assert workshop.stages()[-1] == ("lock", "failed")


def test_too_little_space_is_said_before_anything_is_made(workshop: Workshop) -> None:
    workshop.free_bytes = 3_000_000_000
    build = workshop.build(disk_bytes=7_500_000_000)
    with pytest.raises(
        MachineError, match=r"7\.7 GB are needed .*7\.5 GB for the environment.* 3\.0 GB are free"
    ) as raised:
        workshop.create("torch", build)
    assert "MODELYARD_ENVIRONMENTS" in raised.value.hint
    assert not workshop.store.environments()
    assert not (workshop.folder / "cache").exists() or not list((workshop.folder / "cache").glob("archive*"))


def test_space_for_the_download_counts_only_what_is_not_in_the_cache(workshop: Workshop) -> None:
    make_wheel(workshop.wheels, "widget", "1.1", {"widget.py": "VERSION = '1.1'\n", "more.bin": os.urandom(2_000_000)})
    build = workshop.build(disk_bytes=100_000_000)
    workshop.free_bytes = 100_000_000 + space.TEMPORARY_BYTES + 4_000_000
    with pytest.raises(MachineError, match="8 MB for uv's cache"):
        workshop.create("torch", build)
    assert workshop.store.environments() == []
    workshop.free_bytes = None
    workshop.create("first", build)
    workshop.free_bytes = 100_000_000 + space.TEMPORARY_BYTES + 4_000_000
    assert workshop.create("torch", build).state == "ready"


def test_places_on_different_disks_are_asked_for_each(tmp_path: Path) -> None:
    class Disks(Host):
        def disk_bytes(self, path: str) -> tuple[int, int] | None:
            return (10**12, 10**12) if path.startswith(str(tmp_path)) else (10**12, 10)

    if tmp_path.stat().st_dev == Path("/dev/shm" if Path("/dev/shm").is_dir() else "/").stat().st_dev:
        pytest.skip("needs two file systems")
    with pytest.raises(MachineError, match=r"5 MB for uv's cache.* 0 MB are free under /dev/shm") as raised:
        space.check("torch", tmp_path, 10**9, Path("/dev/shm/cache"), 5_000_000, Disks())
    assert "UV_CACHE_DIR" in raised.value.hint


def test_a_changed_wheel_is_refused_by_name(workshop: Workshop) -> None:
    workshop.waiting_uv()
    original = (workshop.wheels / "widget-1.0-py3-none-any.whl").read_bytes()
    workshop.killed("workshop.create()", "before-sync")
    lock = (workshop.folder / "environments/torch/builds/1/uv.lock").read_text()
    assert "sha256:" in lock.split('name = "widget"')[-1]
    workshop.wheel("widget", "1.0", text="import os\n")
    assert (workshop.wheels / "widget-1.0-py3-none-any.whl").read_bytes() != original
    assert workshop.create().state == "ready", "a new lock takes what is there now"


KILLS = ["before-lock", "after-lock", "before-sync", "after-sync", "proof-waits"]


@pytest.mark.parametrize("point", KILLS)
def test_killed_at_any_point_the_next_call_makes_it(workshop: Workshop, point: str) -> None:
    workshop.waiting_uv()
    workshop.killed("workshop.create()", point)
    assert workshop.store.find_ready("torch") is None
    assert [each.state for each in workshop.store.environments()] == ["unfinished"]
    environment = workshop.create()
    assert environment.state == "ready"
    assert environment.current == "2"
    assert any("interrupted" in each.get("text", "") for each in workshop.events)
    workshop.without_leftovers(environment, ["2"])
    names = {each.name for each in environment.folder.iterdir()}
    assert names == {".lock", "builds", "environment.json"}


KILLED_BEFORE_THE_SWAP = """
from modelyard.environment.store import Environment
import os, signal
Environment.using = lambda self, build: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_when_all_but_done_the_next_call_finishes(workshop: Workshop) -> None:
    code = (
        "from pathlib import Path\nfrom tests.environment.workshop import Workshop\n"
        f"{KILLED_BEFORE_THE_SWAP}\nWorkshop(Path({str(workshop.folder)!r})).create()"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2], capture_output=True)
    assert ended.returncode == -9, ended.stderr
    assert workshop.store.open("torch").state == "unfinished"
    environment = workshop.create()
    assert (environment.state, environment.current) == ("ready", "1")
    assert any("finished an interrupted" in each.get("text", "") for each in workshop.events)


def test_ctrl_c_leaves_nothing(workshop: Workshop) -> None:
    def interrupt(event: dict[str, object]) -> None:
        if event["kind"] == "progress" and event["stage"] == "install":
            raise KeyboardInterrupt

    tools = workshop.tools
    with pytest.raises(KeyboardInterrupt):
        creating.install(
            workshop.store, "torch", workshop.build(), workshop.sources, creating.Snapshot(),
            type(tools)(tools.host, interrupt, tools.uv, tools.proof), asked={},
        )  # fmt: skip
    assert list(workshop.store.folder.iterdir()) == []


def test_the_whole_way_from_a_framework_name(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[str, str, str | None]] = []

    def choose(framework: str, accelerator: str, python: str | None, _snapshot: object, sources: Sources) -> Build:
        chosen.append((framework, accelerator, python))
        assert sources.find_links == (str(workshop.wheels),)
        return workshop.build(accelerator="cu126")

    monkeypatch.setattr(creating, "choose", choose)
    workshop.variables = {
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(workshop.wheels), "PIP_CONFIG_FILE": os.devnull,
        "MODELYARD_ENVIRONMENTS": str(workshop.folder / "environments"),
    }  # fmt: skip
    environment = creating.create("torch", "cu126", name=None, tools=workshop.tools)
    assert chosen == [("torch", "cu126", None)]
    assert (environment.name, environment.accelerator, environment.state) == ("torch-cu126", "cu126", "ready")
    assert {"kind": "choice", "what": "", "value": "", "reason": "because", "reason_zh": "因为"} in workshop.events
    assert [name for name, state in workshop.stages() if state == "done"] == list(STAGES)


@pytest.mark.parametrize(
    ("framework", "accelerator", "problem", "hint"),
    [("pytorhc", "auto", "unknown framework 'pytorhc'", "torch"),
     ("torch", "cu999", "unknown accelerator 'cu999'", "--accelerator")],
)  # fmt: skip
def test_unknown_names_get_the_nearest(
    workshop: Workshop, framework: str, accelerator: str, problem: str, hint: str
) -> None:
    with pytest.raises(InputError, match=problem) as raised:
        creating.create(framework, accelerator, name="x", tools=workshop.tools, folder=workshop.store.folder)
    assert hint in raised.value.hint
    assert workshop.store.environments() == []


def test_passwords_of_indexes_are_not_written(workshop: Workshop) -> None:
    sources = Sources(
        no_index=True,
        find_links=(str(workshop.wheels),),
        proxy="http://ann:secret@proxy.invalid:3128",
        uv_configured=False,
    )
    environment = workshop.create("torch", sources=sources)
    texts = [file.read_text() for file in environment.folder.rglob("*.*") if file.suffix in (".json", ".toml", ".lock")]
    assert texts
    assert not [text for text in texts if "secret" in text]
