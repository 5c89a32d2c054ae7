"""All that real builds need, without a network: fake wheels, a build made of them, a stand-in for the proof.

uv, the locks, the installation and the processes are real; only what is installed and proved is small.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uv
from tests.environment.fake_wheels import make_wheel

from modelyard.environment import compatibility
from modelyard.environment.building import Tools, clean
from modelyard.environment.choose import Build
from modelyard.environment.create import install
from modelyard.environment.host import Host
from modelyard.environment.reasons import Reason
from modelyard.environment.snapshot import Snapshot
from modelyard.environment.sources import Sources
from modelyard.environment.store import Environment, Store
from modelyard.environment.torch_index import Index
from modelyard.environment.uv import ignore

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PROOF = """\
import json, sys, time
from pathlib import Path
control, out = Path(sys.argv[1]), Path(sys.argv[2])
(control / "proof-started").touch()
while (control / "proof-waits").exists():
    time.sleep(0.02)
if (control / "proof-crashes").exists():
    print("ImportError: libcudart.so.13: cannot open shared object file")
    sys.exit(1)
import widget
passed = not (control / "proof-fails").exists()
check = {"name": "gradients", "passed": passed, "worst": 0.3, "bound": 1e-5, "where": "layer.0.query", "detail": ""}
case = {"precision": "float32", "mode": "strict", "passed": passed, "seconds": 0.1, "checks": [check]}
stack = {"passed": True, "what": "widget " + widget.VERSION, "losses": [3, 2, 1], "seconds": 0.1, "detail": ""}
out.write_text(json.dumps({"format": 1, "passed": passed, "taken": "now", "cases": [case], "stack": stack}))
sys.exit(0 if passed else 3)
"""
# Stands for uv: before or after a command it waits, as long as a file says so, and tells that it does.
WAITING_UV = """\
#!{python}
import subprocess, sys, time
from pathlib import Path
control = Path({control!r})
word = next((each for each in sys.argv[1:] if each in ("lock", "sync") and "--dry-run" not in sys.argv), "")
def wait(name):
    while (control / name).exists():
        (control / (name + "-reached")).touch()
        time.sleep(0.02)
wait("before-" + word)
code = subprocess.run([{uv!r}, *sys.argv[1:]]).returncode
wait("after-" + word)
sys.exit(code)
"""


class OwnHost(Host):
    """This machine with other variables."""

    def __init__(self, variables: Mapping[str, str], free_bytes: int | None = None) -> None:
        self.variables = dict(variables)
        self.free_bytes = free_bytes

    @property
    def environ(self) -> Mapping[str, str]:
        return self.variables

    def disk_bytes(self, path: str) -> tuple[int, int] | None:
        return super().disk_bytes(path) if self.free_bytes is None else (self.free_bytes, self.free_bytes)


@dataclass
class Workshop:
    """A folder with everything; `events` are those of the last command."""

    folder: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    uv: str | None = None
    free_bytes: int | None = None

    def __post_init__(self) -> None:
        for each in (self.control, self.wheels):
            each.mkdir(parents=True, exist_ok=True)
        (self.folder / "proof.py").write_text(PROOF)

    @property
    def control(self) -> Path:
        return self.folder / "control"

    @property
    def wheels(self) -> Path:
        return self.folder / "wheels"

    @property
    def store(self) -> Store:
        return Store(self.folder / "environments")

    @property
    def tools(self) -> Tools:
        self.events.clear()
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
        own = {"UV_CACHE_DIR": str(self.folder / "cache"), "UV_HTTP_RETRIES": "0"}
        host = OwnHost(clean | own | self.variables, self.free_bytes)
        return Tools(host=host, listener=self.events.append, uv=self.uv, proof=self.proof_command)

    @property
    def sources(self) -> Sources:
        return Sources(no_index=True, find_links=(str(self.wheels),))

    def proof_command(self, python: Path, framework: str, device: str, out: Path) -> Sequence[str]:
        return [str(python), "-I", str(self.folder / "proof.py"), str(self.control), str(out)]

    def wheel(self, name: str, version: str, *requires: str, text: str = "") -> Path:
        """A wheel of one module, in the folder of wheels."""
        module = compatibility.normalised(name).replace("-", "_")
        path = make_wheel(self.wheels, name, version, {f"{module}.py": f"VERSION = {version!r}\n{text}"})
        if requires:
            path = _requiring(path, requires)
        return path

    def build(self, **changes: Any) -> Build:
        """A build of the package ``widget``."""
        build = Build(
            framework="torch", accelerator="cpu", python=PYTHON, requirements=("widget>=1",), index=None,
            packages_from_index=(), constraints=(), min_versions={"widget": "1"}, proof_device="cpu", variables={},
            reasons=(Reason("because", "因为"),), download_bytes=1000, disk_bytes=1000,
        )  # fmt: skip
        return replace(build, **changes)

    def index(self) -> Index:
        return Index("own-folder", self.wheels.as_uri(), "flat")

    def create(self, name: str = "torch", build: Build | None = None, sources: Sources | None = None) -> Environment:
        return install(
            self.store, name, build or self.build(), sources or self.sources, Snapshot(), self.tools,
            asked={"accelerator": "auto", "python": ""},
        )  # fmt: skip

    def waiting_uv(self) -> None:
        """From now on uv waits where `control` says ``before-lock``, ``after-lock``, ``before-sync`` …"""
        script = self.folder / "uv"
        text = WAITING_UV.format(python=sys.executable, control=str(self.control), uv=uv.find_uv_bin())
        script.write_text(text)
        script.chmod(0o755)
        self.uv = str(script)

    def killed(self, code: str, waits_at: str) -> None:
        """Run Python `code`, which has `workshop`, in a process of its own, and kill -9 it once it waits at a point."""
        gate = self.control / waits_at
        gate.touch()
        reached = self.control / ("proof-started" if waits_at == "proof-waits" else f"{waits_at}-reached")
        start = (
            "from pathlib import Path\nfrom tests.environment.workshop import Workshop\n"
            f"workshop = Workshop(Path({str(self.folder)!r}), uv={self.uv!r})\n{code}"
        )
        root = Path(__file__).resolve().parents[2]
        log = self.folder / "killed.log"
        with log.open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-c", start], cwd=root, stdout=said, stderr=said, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 60
            while not reached.exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        finally:
            gate.unlink()  # what the killed process had started goes on: it is an orphan that still writes
            reached.unlink(missing_ok=True)

    def without_leftovers(self, environment: Environment, builds: list[str]) -> None:
        """What a killed command had started may write once more; when that has ended, cleaning leaves `builds`."""
        deadline = time.monotonic() + 10
        while [each.path.name for each in environment.builds] != builds:
            assert time.monotonic() < deadline, environment.builds
            time.sleep(0.05)
            clean(environment, ignore)

    def proof_of(self, environment: Environment) -> dict[str, Any]:
        assert environment.build is not None
        return dict(json.loads(environment.build.proof.read_text()))

    def stages(self) -> list[tuple[str, str]]:
        return [(each["name"], each["state"]) for each in self.events if each["kind"] == "stage"]


def make_workshop(folder: Path) -> Workshop:
    """With ``widget`` 1.0 and stand-ins for what modelyard itself requires."""
    workshop = Workshop(folder)
    workshop.wheel("widget", "1.0")
    for requirement in importlib.metadata.requires("modelyard") or []:
        if "extra ==" not in requirement:
            name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            workshop.wheel(name, compatibility.tested(name))
    return workshop


def _requiring(wheel: Path, requires: Sequence[str]) -> Path:
    """The same wheel with requirements in its metadata, and RECORD after it."""
    with zipfile.ZipFile(wheel) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    metadata = next(name for name in members if name.endswith("METADATA"))
    record = metadata.replace("METADATA", "RECORD")
    members[metadata] += "".join(f"Requires-Dist: {each}\n" for each in requires).encode()
    rows = [row for row in members[record].decode().splitlines() if not row.startswith(metadata)]
    digest = base64.urlsafe_b64encode(hashlib.sha256(members[metadata]).digest()).rstrip(b"=").decode()
    rows.insert(0, f"{metadata},sha256={digest},{len(members[metadata])}")
    members[record] = ("\n".join(rows) + "\n").encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return wheel
