"""The doctor on machines that answer rubbish: it never stops, and what it says can be written and read again.

Hypothesis draws the rubbish; a seed decides where it lands, mixed with pieces that look right, so that the code behind
the first check is reached as well.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Mapping, Sequence
from importlib.resources import files
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.environment.host import Answer, Host, Ran
from modelyard.environment.probes import take
from modelyard.environment.probes.attempts import at_once
from modelyard.environment.record import redact
from modelyard.environment.snapshot import Snapshot

CASES_EACH = 400
CATALOGUE = files("modelyard.environment") / "failures.yaml"
PLAUSIBLE = (
    "", "0", "-1", "max", "max 100000", "150000 100000", "0 0", "1e400 1", "9223372036854771712", "1" * 5000,
    "0::/a/../b", "4:cpu,cpuacct:/x\n3:memory:/x\n0::/", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
    "31 23 0:27 /docker/1 /c rw - cgroup cgroup rw,cpu\n32 23 0:28 / /m rw - cgroup cgroup rw,memory",
    "simd_count 64\ngfx_target_version 90010\ndrm_render_minor 128", "heap_type 1\nsize_in_bytes 17163091968",
    "gfx_target_version 99999999999999999999\nsimd_count 1", "pci:v000010DEd00002684sv1sd2bc03sc00i00", "0x8086",
    "PRETTY_NAME=", "NAME='", "flags : avx2 amx_bf16 \udc80", "microsoft", "uv 0.9", "release 13.0", "NaN",
    "[tool.uv]\nindex = [{url = 3}, 7]", "[[index]]\nurl = 'https://u:p@h'\ndefault = true",
    "channels: [a, 3, {b: c}]\nproxy_servers: 7", "channels: &a [*a]", "? : :\n\t-", "{", "[]", "null", "[" * 3000,
    '{"current": 7}', '{"current": "1", "framework": ["x"]}', '{"state": "ready"}',
    '{"passed": 1, "cases": [{"checks": 3}]}',
    '{"passed": false, "cases": [{"passed": false, "checks": [{"passed": false}]}], "stack": {"passed": false}}',
    '{"version": 3, "bits": "x", "prefix": null, "base_prefix": "", "conda": 1, "externally_managed": "y", "pip": []}',
    '{"version": "3.12", "bits": 1e999, "prefix": "/a", "base_prefix": "/b", "conda": "", "externally_managed": 1,'
    ' "pip": "", "uv": ""}', '{"outcome": "ok", "devices": [1, null], "seconds": NaN, "version": "\\ud800"}',
    "<a href='https://elsewhere/torch.whl'>", "<a href=\"//[::1/torch\">", "<a href=torch-1.whl>", "https://[::1",
)  # fmt: skip
NUMBERS = (0, 1, -1, 3, 12, 999, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, float("nan"), float("inf"), -float("inf"))
VARIABLES = (
    "HF_ENDPOINT", "HF_HOME", "HTTPS_PROXY", "no_proxy", "MODELYARD_PYTORCH_INDEX", "MODELYARD_ENVIRONMENTS",
    "UV_INDEX", "UV_DEFAULT_INDEX", "UV_CONFIG_FILE", "CONDARC", "TMPDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH",
    "TPU_ACCELERATOR_TYPE", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "HSA_OVERRIDE_GFX_VERSION", "OMP_NUM_THREADS",
    "PYENV_ROOT", "PYTHONPATH", "LANG",
)  # fmt: skip
rubbish = st.one_of(
    st.text(max_size=40),
    st.binary(max_size=40).map(lambda data: data.decode("utf-8", errors="surrogateescape")),
    st.text(alphabet="0123456789.:/\\@ \n=-", max_size=30),
)


class RubbishHost(Host):
    """Every method answers with what may come, of the type that it promises, or one that slipped in."""

    def __init__(self, seed: int, pool: Sequence[str]) -> None:
        self._chance = random.Random(seed)
        self._texts = (*PLAUSIBLE, *pool, *pool, *pool)
        self._rate = self._chance.choice((0.02, 0.3, 0.8))  # how often a method raises or answers something else
        self._system = self._chance.choice(("linux", "linux", "darwin", "windows", self._text()))
        self._variables = {name: self._text() for name in VARIABLES if self._chance.random() < 0.4}
        self._python = self._text()

    def _text(self) -> str:
        return self._chance.choice(self._texts)

    def _path(self) -> str:
        return f"/{self._text().strip()}"

    def _number(self) -> Any:
        return self._chance.choice((*NUMBERS, None, self._chance.getrandbits(40)))

    def _odd(self, usual: Any) -> Any:
        """What was meant, or now and then something that no one expects there."""
        if self._chance.random() > self._rate * 0.2:
            return usual
        odd = self._chance.choice(
            (None, 7, b"\xff", [], {}, "x", RuntimeError("rubbish"), OSError(5, "I/O"), KeyError(1))
        )
        if isinstance(odd, Exception):
            raise odd
        return odd

    @property
    def environ(self) -> Mapping[str, str]:
        return self._odd(self._variables)

    @property
    def system(self) -> str:
        return self._system

    @property
    def home(self) -> str:
        return self._odd(self._path())

    @property
    def here(self) -> str:
        return self._odd(self._path())

    @property
    def python(self) -> str:
        return self._python

    def read_text(self, path: str) -> str | None:
        return self._odd(self._chance.choice((None, self._text(), self._text())))

    def exists(self, path: str) -> bool:
        return self._odd(self._chance.random() < 0.5)

    def glob(self, folder: str, pattern: str) -> list[str]:
        count = self._chance.choice((0, 0, 1, 3))
        return self._odd([f"{folder}/{pattern.replace('*', self._text() or '1')}" for _ in range(count)])

    def resolve(self, path: str) -> str:
        return self._odd(self._path())

    def accessible(self, path: str) -> bool | None:
        return self._odd(self._chance.choice((True, False, None)))

    def disk_bytes(self, path: str) -> Any:
        return self._odd(self._chance.choice((None, (self._number(), self._number()))))

    def try_write(self, folder: str) -> str:
        return self._odd(self._text())

    def run(self, command: Sequence[str], seconds: float, environ: Mapping[str, str] | None = None) -> Ran | None:
        code = self._chance.choice((0, 0, 1, -9, None))
        ended = Ran(
            code, self._text() + self._chance.choice(("", "\n@modelyard@")) + self._text(), self._text(), seconds
        )
        return self._odd(self._chance.choice((None, ended, ended, ended)))

    def nvml(self) -> Any:
        return self._odd(self._chance.choice((None, RubbishNvml(self), RubbishNvml(self))))

    def memory_bytes(self) -> Any:
        return self._odd(self._chance.choice((None, (self._number(), self._number(), self._number()))))

    def cores(self) -> Any:
        return self._odd((self._number(), self._number(), self._number()))

    def uname(self) -> tuple[str, str]:
        return self._odd((self._text(), self._chance.choice(("x86_64", "arm64", self._text()))))

    def libc(self) -> tuple[str, str]:
        return self._odd((self._chance.choice(("", "glibc", "musl", self._text())), self._text()))

    def library_path(self, name: str) -> str:
        return self._odd(self._text())

    def fetch(self, address: str, seconds: float, method: str = "GET", max_bytes: int = 1 << 18) -> Answer:
        status = self._chance.choice((None, 200, 301, 302, 404, 407, 500, self._number()))
        headers = {each: self._text() for each in ("location", "x-repo-commit", "link") if self._chance.random() < 0.4}
        return self._odd(Answer(status, headers, self._text(), self._text(), 0.1))


class RubbishNvml(ModuleType):
    """A module of which every function raises, or says whatever."""

    def __init__(self, host: RubbishHost) -> None:
        super().__init__("pynvml")
        self.__dict__["host"] = host

    def __getattr__(self, name: str) -> Any:
        host = self.__dict__["host"]
        chance: random.Random = host._chance
        if name.startswith("__") or chance.random() < 0.1:
            raise AttributeError(name)

        def answer(*arguments: object) -> Any:
            if chance.random() < (0.05 if name in ("nvmlInit", "nvmlDeviceGetCount") else 0.3):
                error = RuntimeError(host._text())
                error.value = host._number()  # type: ignore[attr-defined]
                raise error
            memory = SimpleNamespace(total=host._number(), free=host._number(), used=host._text())
            choices = (host._number(), host._text(), b"NVIDIA \xff", (8, 9), (host._number(), "x"), [], memory, None, 2)
            return chance.choice(choices)

        return answer


def doctor(host: Host) -> Snapshot:
    """Look, diagnose in both languages, redact; whatever is built of that."""
    snapshot = take(host, begin=at_once)
    if importlib.util.find_spec("modelyard.environment.diagnose") and CATALOGUE.is_file():
        from modelyard.environment.diagnose import diagnose

        for language in ("en", "zh"):
            for finding in diagnose(snapshot, language):
                json.dumps([finding.title, finding.evidence, finding.fix]).encode()
    return snapshot


@pytest.mark.parametrize("part", range(5))
@settings(max_examples=CASES_EACH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**64), pool=st.lists(rubbish, min_size=1, max_size=8))
def test_rubbish_never_stops_the_doctor(part: int, seed: int, pool: list[str]) -> None:
    snapshot = doctor(RubbishHost(seed + part, pool))
    text = snapshot.model_dump_json()
    assert Snapshot.model_validate_json(text) == snapshot
    text.encode()
    cleaned = redact(snapshot, home="/home/ann", users=["ann"], hosts=["ann-pc"])
    assert Snapshot.model_validate_json(cleaned.model_dump_json()) == cleaned
