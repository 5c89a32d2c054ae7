"""Cores, memory, disks, AMD's devices and the system's Python: limits of this machine that are really set."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.environment.fake_wheels import run_uv
from tests.environment.provoked import made_frameworks as made
from tests.environment.provoked.shells import Shell, compiled, only, own_mounts

from modelyard.environment.host import Host
from modelyard.environment.probes.cgroups import _mounts, _own_groups

CREATE = "modelyard env create --framework"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
PROGRAM_IN_GROUP = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


@contextmanager
def control_group(controller: str, settings: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """What starts a command in a new control group; `settings` are files of version 1 and 2, whichever is there.

    Skips where this process's own group is not the top one: what a manager of groups made is not ours to divide.
    """
    own = _own_groups(Host().read_text("/proc/self/cgroup") or "")
    mounts = list(_mounts(Host().read_text("/proc/self/mountinfo") or ""))
    top = next((each for each in mounts if controller in each.controllers), None)
    group = own.get(controller if top else "")
    top = top or next((each for each in mounts if not each.controllers), None)
    if top is None or group != "/" or top.root != "/":
        pytest.skip("the control groups of this machine are not ours to divide")
    folder = Path(top.point) / f"modelyard-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control groups can be made here: {error}")
    try:
        there = {name: value for name, value in settings.items() if (folder / name).exists()}
        if not there:
            pytest.skip(f"the control groups of this machine do not limit the {controller}")
        for name, value in there.items():
            (folder / name).write_text(value)
        yield ("sh", "-c", PROGRAM_IN_GROUP, str(folder))
    finally:
        folder.rmdir()


@pytest.mark.skipif(len(CORES) < 2, reason="one core")
def test_a_quota_of_one_core(shell: Shell) -> None:
    clean = shell.doctor("--quick")
    one_core = {"cpu.cfs_quota_us": "100000", "cpu.max": "100000 100000"}
    with control_group("cpu", one_core) as before:
        found = only("cpu-quota-threads", clean, shell.doctor("--quick", before=before), "export OMP_NUM_THREADS=1")
        assert shell.doctor("--quick", before=before, typed=found["fix"][0]).rules == clean.rules


def test_a_memory_limit(shell: Shell) -> None:
    clean = shell.doctor("--quick")
    limit = {"memory.limit_in_bytes": str(1 << 30), "memory.max": str(1 << 30)}
    with control_group("memory", limit) as before:
        found = only("memory-too-small", clean, shell.doctor("--quick", before=before))
    assert found["evidence"].startswith("1.1 GB can be used")


@pytest.mark.skipif(len(CORES) < 2 or shutil.which("taskset") is None, reason="one core, or no taskset")
def test_more_threads_than_cores_of_this_process(shell: Shell) -> None:
    threads = str(len(CORES))
    clean = shell.doctor("--quick", OMP_NUM_THREADS=threads)
    one = ("taskset", "-c", str(CORES[0]))
    provoked = shell.doctor("--quick", before=one, OMP_NUM_THREADS=threads)
    found = only("thread-variables-too-large", clean, provoked, "export OMP_NUM_THREADS=1")
    assert shell.doctor("--quick", before=one, OMP_NUM_THREADS=threads, typed=found["fix"][0]).rules == clean.rules


def test_a_small_shared_memory(shell: Shell) -> None:
    shell.variables["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
    clean = shell.doctor("--quick")
    small = own_mounts("mount -t tmpfs -o size=64m none /dev/shm")
    fix = "kubectl edit deployment NAME  # volumes[].emptyDir.medium: Memory, mounted at /dev/shm"
    found = only("small-shared-memory", clean, shell.doctor("--quick", before=small), fix)
    assert found["evidence"] == "/dev/shm has 67 MB"


@pytest.mark.parametrize("variable", ["HF_HOME", "MODELYARD_ENVIRONMENTS", "TMPDIR"])
def test_a_full_disk(shell: Shell, variable: str) -> None:
    folder = shell.folder / "place"
    folder.mkdir()
    shell.variables[variable] = str(folder)
    clean = shell.doctor("--quick")
    full = own_mounts(
        f"mount -t tmpfs -o size=4m none {folder}",
        f"dd if=/dev/zero of={folder}/large bs=1M count=8 2>/dev/null || true",
    )
    provoked = shell.doctor("--quick", before=full)
    found = only("disk-full", clean, provoked)
    assert provoked.code == 3
    assert found["evidence"] == f"{folder} has 0 MB free"
    assert f"export {variable}=" in found["fix"][0]
    assert shell.doctor("--quick", before=full, typed=found["fix"][0]).rules == clean.rules


def test_too_little_space_for_a_framework(shell: Shell) -> None:
    folder = Path(shell.variables["MODELYARD_ENVIRONMENTS"])
    folder.mkdir()
    clean = shell.doctor("--quick")
    small = own_mounts(f"mount -t tmpfs -o size=500m none {folder}")
    found = only("disk-low", clean, shell.doctor("--quick", before=small))
    assert found["evidence"].startswith(f"{folder} has 524 MB free")
    assert "export MODELYARD_ENVIRONMENTS=" in found["fix"][0]
    assert shell.doctor("--quick", before=small, typed=found["fix"][0]).rules == clean.rules


@pytest.mark.parametrize(
    ("variable", "rule"), [("HF_HOME", "hub-cache-not-writable"), ("MODELYARD_CACHE", "folder-not-writable")]
)
def test_a_folder_that_may_only_be_read(shell: Shell, variable: str, rule: str) -> None:
    folder = shell.folder / "place"
    folder.mkdir()
    shell.variables[variable] = str(folder)
    del shell.variables["HF_HUB_OFFLINE"]  # offline, a cache that someone else filled is only read
    clean = shell.doctor("--quick")
    read_only = own_mounts(f"mount -t tmpfs -o ro none {folder}")
    provoked = shell.doctor("--quick", before=read_only)
    found = only(rule, clean, provoked)
    assert provoked.code == 3
    assert found["evidence"] == f"{folder}: Read-only file system"
    assert f"export {variable}=" in found["fix"][0]
    assert shell.doctor("--quick", before=read_only, typed=found["fix"][0]).rules == clean.rules


SYSTEM_PYTHON = Path("/usr/bin/python3")


def externally_managed() -> bool:
    if not SYSTEM_PYTHON.exists():
        return False
    code = "import sys, sysconfig; print(sysconfig.get_path('stdlib') if sys.version_info >= (3, 11) else '')"
    ran = subprocess.run([SYSTEM_PYTHON, "-I", "-c", code], capture_output=True, text=True)
    return ran.stdout.strip() != "" and (Path(ran.stdout.strip()) / "EXTERNALLY-MANAGED").exists()


@pytest.mark.skipif(not externally_managed(), reason="no Python here belongs to the system")
def test_the_python_of_the_system(shell: Shell) -> None:
    run_uv("venv", "--quiet", "--python", str(SYSTEM_PYTHON), str(shell.folder / "environment"))
    shell.python = shell.folder / "environment" / "bin" / "python"
    clean = shell.doctor("--quick")
    shell.python = SYSTEM_PYTHON
    found = only("externally-managed", clean, shell.doctor("--quick"), f"{CREATE} torch")
    assert found["evidence"].startswith(f"{SYSTEM_PYTHON} (system)")


def test_an_old_c_library(shell: Shell) -> None:
    """What the C library says of itself is played by one that is loaded before it."""
    source = """
        #include <string.h>
        unsigned long confstr(int name, char *buffer, unsigned long size) {
            const char *version = "glibc 2.17";
            if (buffer && size) { strncpy(buffer, version, size); buffer[size - 1] = 0; }
            return strlen(version) + 1;
        }
    """
    clean = shell.doctor("--quick")
    if clean.snapshot["system"]["libc"] != "glibc":
        pytest.skip("another C library")
    old = compiled(source, shell.folder / "old.so")
    provoked = shell.doctor("--quick", LD_PRELOAD=str(old))
    only("glibc-too-old", clean, provoked, 'docker run -it -v "$PWD":/work -w /work python:3.12 bash')
    assert provoked.code == 3


def amd_gpu(gfx: int) -> tuple[str, ...]:
    """The kernel's description of an AMD GPU, where the driver would show it."""
    node = "/sys/class/kfd/kfd/topology/nodes/1"
    return (
        "mount -t tmpfs none /sys/class",
        f"mkdir -p {node}",
        f"printf 'simd_count 96\\ngfx_target_version {gfx}\\n' > {node}/properties",
    )


def test_an_amd_gpu_that_torch_has_no_code_for(shell: Shell) -> None:
    shell.environment()
    torch = made.torch("2.13.0+rocm7.2", None, hip="7.2.26015", flags="gfx90a gfx942 gfx1030 gfx1100")
    shell.install("torch", "2.13.0+rocm7.2", torch)
    clean = shell.doctor(before=own_mounts(*amd_gpu(110000)))
    assert clean.snapshot["accelerators"]["amd"]["gpus"][0]["capability"] == "gfx1100"
    provoked = shell.doctor(before=own_mounts(*amd_gpu(80003)))
    found = only("amd-gfx-unsupported", clean, provoked, f"{CREATE} torch --accelerator cpu")
    assert "is gfx803;" in found["evidence"]
    pretending = shell.doctor(before=own_mounts(*amd_gpu(110000)), HSA_OVERRIDE_GFX_VERSION="10.3.0")
    only("amd-override", clean, pretending, "unset HSA_OVERRIDE_GFX_VERSION")


@pytest.mark.skipif(shutil.which("setpriv") is None or os.geteuid() != 0, reason="no setpriv, or not root")
def test_an_amd_gpu_that_belongs_to_another_group(shell: Shell) -> None:
    """The rights of root over files are given up, so that the owner of the device matters, as for any person."""
    shell.environment()
    files = ("null", "zero", "random", "urandom")
    kept = shell.folder / "dev"
    kept.mkdir()
    devices = (
        f"mount --rbind /dev {kept}",
        "mount -t tmpfs none /dev",
        *(f"touch /dev/{each} && mount --bind {kept}/{each} /dev/{each}" for each in files),
        f"mkdir /dev/shm && mount --bind {kept}/shm /dev/shm",
        "touch /dev/kfd && chmod 660 /dev/kfd",
        *amd_gpu(110000),
    )
    person = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    clean = shell.doctor("--quick", before=(*own_mounts(*devices), *person))
    provoked = shell.doctor("--quick", before=(*own_mounts(*devices, "chown 1234:1234 /dev/kfd"), *person))
    only("kfd-denied", clean, provoked, "sudo usermod -aG render,video $USER")
    assert provoked.code == 3
