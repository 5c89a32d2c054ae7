"""System, processor, memory and disks: on machines of the table, and on this one with real limits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from tests.environment.machines import GIB, FakeHost

from modelyard.environment.host import Host, Ran
from modelyard.environment.probes.cgroups import memory_limit_bytes, quota_cores
from modelyard.environment.probes.system import cpu, disk, memory, places, system
from modelyard.environment.snapshot import Disk

V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MOUNTS = (
    "31 23 0:27 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 23 0:28 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.mark.parametrize(
    ("files", "variables", "kind"),
    [
        ({}, {}, ""),
        ({"/.dockerenv": ""}, {}, "docker"),
        ({"/.dockerenv": "", "/proc/1/cgroup": "0::/kubepods/pod1"}, {}, "kubernetes"),
        ({"/.dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({"/run/.containerenv": ""}, {"container": "podman"}, "podman"),
        ({}, {"APPTAINER_CONTAINER": "/x.sif"}, "apptainer"),
        ({"/run/systemd/container": "lxc\n"}, {}, "lxc"),
        ({"/run/systemd/container": "systemd-nspawn\n"}, {}, "container"),
        ({"/run/systemd/container": "wsl\n"}, {}, ""),
        ({"/proc/1/cgroup": "4:memory:/docker/abc"}, {}, "docker"),
    ],
)
def test_container(files: dict[str, str], variables: dict[str, str], kind: str) -> None:
    assert system(FakeHost(files=files, variables=variables)).container == kind


@pytest.mark.parametrize("name", ["PRETTY_NAME", "NAME"])
def test_distribution(name: str) -> None:
    assert (
        system(FakeHost(files={"/etc/os-release": f'ID=x\n{name}="Rocky Linux 9.4"\n'})).distribution
        == "Rocky Linux 9.4"
    )


def test_wsl_by_its_kernel_or_its_gpu_device() -> None:
    kernel = {"/proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2\n"}
    assert system(FakeHost(files=kernel)).wsl and system(FakeHost(files={"/dev/dxg": ""})).wsl
    assert not system(FakeHost(files={"/proc/sys/kernel/osrelease": "6.1.0-37-amd64"})).wsl


def test_musl_is_told_by_its_loader_only_where_python_knows_no_glibc() -> None:
    loader = "/lib/ld-musl-x86_64.so.1"
    said = Ran(1, "", "musl libc (x86_64)\nVersion 1.2.5\nDynamic Program Loader\n", 0.01)
    alpine = FakeHost(files={loader: ""}, commands={loader: said}, libc_name=("", ""))
    assert (system(alpine).libc, system(alpine).libc_version) == ("musl", "1.2.5")
    debian = FakeHost(files={loader: ""}, commands={loader: said}, libc_name=("glibc", "2.36"))
    assert (system(debian).libc, system(debian).libc_version) == ("glibc", "2.36")


def test_a_translated_python_on_apple_silicon() -> None:
    mac = FakeHost(
        name="darwin", release="14.5", machine="x86_64", commands={"sysctl -n sysctl.proc_translated": "1\n"}
    )
    assert system(mac).translated and system(mac).distribution == "macOS 14.5"
    native = FakeHost(name="darwin", machine="arm64", commands={"sysctl": "1\n"})
    assert not system(native).translated


def test_processor_of_x86_arm_and_apple() -> None:
    text = "processor : 0\nmodel name : AMD EPYC 9554\nflags : fpu avx2 fma avx512f avx512_bf16 unheard_of\n"
    x86 = cpu(FakeHost(files={"/proc/cpuinfo": text}))
    assert (x86.name, x86.instructions) == ("AMD EPYC 9554", ("avx2", "avx512_bf16", "avx512f", "fma"))
    arm = cpu(
        FakeHost(
            files={
                "/proc/cpuinfo": "Features : fp asimd bf16 i8mm sve\n",
                "/sys/firmware/devicetree/base/model": "NVIDIA Jetson AGX Orin\0",
            }
        )
    )
    assert (arm.name, arm.instructions) == ("NVIDIA Jetson AGX Orin", ("bf16", "i8mm", "neon", "sve"))
    said = "machdep.cpu.brand_string: Apple M2\nhw.optional.neon: 1\nhw.optional.arm.FEAT_BF16: 1\nhw.optional.fma: 0\n"
    apple = cpu(FakeHost(name="darwin", commands={"sysctl": said}))
    assert (apple.name, apple.instructions) == ("Apple M2", ("bf16", "neon"))


def in_group(version: int, own: str, root: str, files: dict[str, str]) -> FakeHost:
    text = f"0::{own}\n" if version == 2 else f"5:cpu,cpuacct:{own}\n4:memory:{own}\n0::/\n"
    mounts = (V2_MOUNT if version == 2 else V1_MOUNTS).format(root=root)
    return FakeHost(files={"/proc/self/cgroup": text, "/proc/self/mountinfo": mounts, **files})


@pytest.mark.parametrize(
    ("own", "root", "files", "cores", "limit"),
    [
        ("/", "/", {}, None, None),
        ("/", "/", {"cpu.max": "150000 100000\n", "memory.max": "4294967296\n"}, 1.5, 4 * GIB),
        ("/", "/", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
        # The parent is tighter than the group itself, and the least counts
        ("/a/b", "/", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 100000", "a/b/memory.max": "99"}, 0.5, 99),
        # A container: the host's path, of which only the own part is mounted
        ("/docker/1", "/docker/1", {"cpu.max": "200000 100000", "memory.max": "7"}, 2.0, 7),
        # A namespace that shows a path outside of the mount
        ("/../x", "/", {"cpu.max": "200000 100000"}, 2.0, None),
        ("/other", "/docker/1", {"memory.max": "8"}, None, 8),
    ],
)
def test_control_groups_version_2(
    own: str, root: str, files: dict[str, str], cores: float | None, limit: int | None
) -> None:
    host = in_group(2, own, root, {f"/sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert (quota_cores(host), memory_limit_bytes(host)) == (cores, limit)


@pytest.mark.parametrize(
    ("own", "root", "files", "cores", "limit"),
    [
        ("/", "/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, None, None),
        ("/", "/", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None, None),
        ("/docker/1", "/docker/1",
         {"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000",
          "memory/memory.limit_in_bytes": "2147483648"}, 3.0, 2 * GIB),
        ("/a/b", "/", {"memory/a/b/memory.limit_in_bytes": "900", "memory/a/memory.limit_in_bytes": "800"}, None, 800),
    ],
)  # fmt: skip
def test_control_groups_version_1(
    own: str, root: str, files: dict[str, str], cores: float | None, limit: int | None
) -> None:
    host = in_group(1, own, root, {f"/sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert (quota_cores(host), memory_limit_bytes(host)) == (cores, limit)


def test_the_least_of_machine_affinity_and_quota_is_usable() -> None:
    host = in_group(2, "/", "/", {"/sys/fs/cgroup/cpu.max": "250000 100000", "/sys/fs/cgroup/memory.max": f"{4 * GIB}"})
    assert cpu(host).usable_cores == 2 and memory(host).usable_bytes == 4 * GIB


def test_places_follow_the_variables() -> None:
    host = FakeHost(variables={"MODELYARD_CACHE": "/fast/cache", "HF_HOME": "~/models", "TMPDIR": "/scratch"})
    found = {each.purpose: each.path for each in places(host)}
    assert found == {
        "environments": "/home/ann/.local/share/modelyard/environments",
        "cache": "/fast/cache",
        "hub": "/home/ann/models",
        "temporary": "/scratch",
        "shared-memory": "/dev/shm",
        "here": "/home/ann/work",
    }


def test_the_folder_of_models_may_be_closed_while_the_hub_folder_is_open() -> None:
    host = FakeHost(folders={"/hf/hub"}, unwritable={"/hf/hub": "Permission denied"})
    closed = disk(host, Disk(purpose="hub", path="/hf"))
    assert closed is not None and closed.writable is False and closed.problem == "Permission denied"


def test_this_machine_as_psutil_sees_it() -> None:
    host = Host()
    assert memory(host).total_bytes == psutil.virtual_memory().total
    assert cpu(host).logical_cores == psutil.cpu_count()
    assert system(host).name == sys.platform.replace("win32", "windows")
    if sys.platform == "linux":
        assert system(host).release == os.uname().release


@pytest.fixture
def group() -> Iterator[tuple[int, list[Path]]]:
    """New control groups, of the version that this machine has and lets us make: (version, folders)."""
    name = f"modelyard-test-{uuid4().hex[:8]}"
    base = Path("/sys/fs/cgroup")
    v2 = (base / "cgroup.controllers").exists()
    folders = [base / name] if v2 else [base / "cpu" / name, base / "memory" / name]
    try:
        for folder in folders:
            folder.mkdir()
        if v2:
            (base / "cgroup.subtree_control").write_text("+cpu +memory")
            (folders[0] / "cpu.max").write_text("50000 100000")
            (folders[0] / "memory.max").write_text(str(GIB))
        else:
            (folders[0] / "cpu.cfs_quota_us").write_text("50000")
            (folders[1] / "memory.limit_in_bytes").write_text(str(GIB))
    except OSError as error:
        _remove(folders)
        pytest.skip(f"control groups cannot be made here: {error}")
    yield (2 if v2 else 1), folders
    _remove(folders)


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def test_real_control_groups_limit_a_real_process(group: tuple[int, list[Path]]) -> None:
    _, folders = group
    program = (
        "import sys\nfrom pathlib import Path\n"
        "for folder in sys.argv[1:]:\n    Path(folder, 'cgroup.procs').write_text('0')\n"
        "from modelyard.environment.host import Host\n"
        "from modelyard.environment.probes.system import cpu, memory\n"
        "print(cpu(Host()).quota_cores, memory(Host()).limit_bytes)"
    )
    command = [sys.executable, "-c", program, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["0.5", str(GIB)]


def in_own_mounts(prepare: str, program: str) -> str:
    """Run Python in a mount namespace of its own after `prepare`; skips where that is not allowed."""
    command = ["unshare", "-m", "sh", "-ec", f'{prepare}; exec "$0" -c "$1"', sys.executable, program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except OSError as error:
        pytest.skip(f"no unshare here: {error}")
    if done.returncode and "Traceback" not in done.stderr:
        pytest.skip(f"mounts of one's own are not allowed here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


TAKE = (
    "from modelyard.environment.host import Host\nfrom modelyard.environment.probes import take\n"
    "snapshot = take(Host(), ask='never', network=False)\n"
)


def test_a_small_shared_memory_is_seen() -> None:
    said = in_own_mounts(
        "mount -t tmpfs -o size=64M tmpfs /dev/shm", TAKE + "print(snapshot.disk('shared-memory').total_bytes)"
    )
    assert int(said) == 64 << 20


def test_a_read_only_cache_is_seen_by_writing(tmp_path: Path) -> None:
    said = in_own_mounts(
        f"mount --bind {tmp_path} {tmp_path}; mount -o remount,bind,ro {tmp_path}; export HF_HOME={tmp_path}/hf",
        TAKE + "disk = snapshot.disk('hub'); print(disk.writable, disk.problem)",
    )
    assert said.strip() == "False Read-only file system"


def test_a_full_disk_is_seen_by_writing(tmp_path: Path) -> None:
    said = in_own_mounts(
        f"mount -t tmpfs -o size=64k tmpfs {tmp_path}; head -c 100000 /dev/zero > {tmp_path}/full 2>/dev/null || true;"
        f" export MODELYARD_CACHE={tmp_path}",
        TAKE + "disk = snapshot.disk('cache'); print(disk.writable, disk.free_bytes, disk.problem)",
    )
    assert said.strip() == "False 0 No space left on device"
