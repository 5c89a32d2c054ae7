"""The operating system, the processor, memory and disks, as far as this process may use them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from modelyard.environment.host import Host
from modelyard.environment.probes.cgroups import memory_limit_bytes, quota_cores
from modelyard.environment.snapshot import Cpu, Disk, Memory, System
from modelyard.runs.places import cache_folder, environments_folder

Purpose = Literal["environments", "cache", "hub", "temporary", "shared-memory", "here"]

# By the name that Linux gives them; the ARM ones under the names that people know.
INSTRUCTIONS = {
    **{
        name: name
        for name in (
            "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
            "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "bf16", "i8mm", "sve", "sve2", "sme",
        )
    },
    "asimd": "neon", "neon": "neon", "asimdhp": "fp16", "asimddp": "dotprod",
}  # fmt: skip
MAC_INSTRUCTIONS = {
    "hw.optional.neon": "neon", "hw.optional.AdvSIMD": "neon", "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm", "hw.optional.arm.FEAT_SME": "sme", "hw.optional.avx1_0": "avx",
    "hw.optional.avx2_0": "avx2", "hw.optional.fma": "fma", "hw.optional.avx512f": "avx512f",
}  # fmt: skip
MAC_CPU_NAME = "machdep.cpu.brand_string"
GROUP_WORDS = {
    "kubepods": "kubernetes",
    "docker": "docker",
    "libpod": "podman",
    "lxc": "lxc",
    "containerd": "container",
}
COMMAND_SECONDS = 1.0


def system(host: Host) -> System:
    """The operating system and what surrounds it."""
    name = host.system
    release, machine = host.uname()
    libc, libc_version = _libc(host) if name == "linux" else ("", "")
    kernel = host.read_text("/proc/sys/kernel/osrelease") or ""
    variables = host.environ
    return System(
        name=name,
        release=release,
        distribution=_distribution(host) if name == "linux" else f"macOS {release}" if name == "darwin" else "",
        machine=machine,
        libc=libc,
        libc_version=libc_version,
        container=_container(host) if name == "linux" else "",
        wsl=name == "linux" and ("microsoft" in kernel.lower() or host.exists("/dev/dxg")),
        translated=name == "darwin" and machine == "x86_64" and _mac_values(host, "sysctl.proc_translated") == ["1"],
        locale=next((variables[each] for each in ("LC_ALL", "LC_MESSAGES", "LANG") if variables.get(each)), ""),
    )


def _distribution(host: Host) -> str:
    text = host.read_text("/etc/os-release") or host.read_text("/usr/lib/os-release") or ""
    found = re.search(r"^PRETTY_NAME=(.*)$", text, re.MULTILINE) or re.search(r"^NAME=(.*)$", text, re.MULTILINE)
    return found[1].strip().strip("\"'") if found else ""


def _libc(host: Host) -> tuple[str, str]:
    """The name from the running Python; the version of musl only from its loader, which prints it as an error."""
    name, version = host.libc()
    if name and name != "musl":
        return name, version
    loaders = host.glob("/lib", "ld-musl-*.so.1")
    if not loaders:
        return name, version
    ran = host.run([loaders[0]], COMMAND_SECONDS)
    found = re.search(r"^Version (\S+)", ran.errors, re.MULTILINE) if ran else None
    return "musl", found[1] if found else version


def _container(host: Host) -> str:
    """Which kind of container this is, "" for none. The most telling sign first."""
    variables = host.environ
    if variables.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if variables.get("APPTAINER_CONTAINER") or variables.get("SINGULARITY_CONTAINER"):
        return "apptainer"
    if host.exists("/run/.containerenv"):
        return "podman"
    groups = host.read_text("/proc/1/cgroup") or ""
    if host.exists("/.dockerenv"):
        return "kubernetes" if "kubepods" in groups else "docker"
    # systemd's convention: the manager says its name; WSL does too, and is no container
    said = (host.read_text("/run/systemd/container") or variables.get("container") or "").strip().lower()
    if said and said != "wsl":
        return said if said in GROUP_WORDS.values() else "container"
    return next((kind for word, kind in GROUP_WORDS.items() if word in groups), "")


def cpu(host: Host) -> Cpu:
    """The processor, and how much of it this process may use."""
    logical, physical, affinity = host.cores()
    name, instructions = _mac_cpu(host) if host.system == "darwin" else _linux_cpu(host)
    return Cpu(
        name=name or host.environ.get("PROCESSOR_IDENTIFIER", ""),
        instructions=instructions,
        logical_cores=logical,
        physical_cores=physical,
        affinity_cores=affinity,
        quota_cores=quota_cores(host) if host.system == "linux" else None,
    )


def _linux_cpu(host: Host) -> tuple[str, tuple[str, ...]]:
    text = host.read_text("/proc/cpuinfo") or ""
    name = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    found = {INSTRUCTIONS[each] for each in (flags[1].split() if flags else ()) if each in INSTRUCTIONS}
    board = (host.read_text("/sys/firmware/devicetree/base/model") or "").strip("\0 \n")
    return (name[1].strip() if name else board), tuple(sorted(found))


def _mac_cpu(host: Host) -> tuple[str, tuple[str, ...]]:
    ran = host.run(["sysctl", MAC_CPU_NAME, *MAC_INSTRUCTIONS], COMMAND_SECONDS)  # says nothing of what it lacks
    values = dict(line.split(": ", 1) for line in (ran.output if ran else "").splitlines() if ": " in line)
    found = {name for key, name in MAC_INSTRUCTIONS.items() if values.get(key, "0").strip() == "1"}
    return values.get(MAC_CPU_NAME, "").strip(), tuple(sorted(found))


def _mac_values(host: Host, *names: str) -> list[str]:
    ran = host.run(["sysctl", "-n", *names], COMMAND_SECONDS)
    return ran.output.split() if ran else []


def memory(host: Host) -> Memory:
    """Working memory of the machine and the limit of the control groups."""
    total, available, swap = host.memory_bytes() or (None, None, None)
    limit = memory_limit_bytes(host) if host.system == "linux" else None
    return Memory(total_bytes=total, available_bytes=available, swap_bytes=swap, limit_bytes=limit)


def places(host: Host) -> list[Disk]:
    """What is written where, in the order in which it is told; nothing is known of the places yet."""
    variables = dict(host.environ)
    home = host.home
    # Where the variables are silent, the folders below the host's own home
    defaults = {
        "XDG_CACHE_HOME": f"{home}/.cache",
        "XDG_DATA_HOME": f"{home}/.local/share",
        "LOCALAPPDATA": f"{home}/AppData/Local",
    }
    filled = {**defaults, **{name: value for name, value in variables.items() if value}}
    temporary = variables.get("TMPDIR") or variables.get("TEMP") or variables.get("TMP") or "/tmp"
    found: list[tuple[Purpose, str]] = [
        ("environments", str(environments_folder(filled))),
        ("cache", str(cache_folder(filled))),
        ("hub", _from_home(variables.get("HF_HUB_CACHE", ""), home) or hub_home(variables, home)),
        ("temporary", temporary),
    ]
    if host.system == "linux":
        found.append(("shared-memory", "/dev/shm"))
    if host.here:
        found.append(("here", host.here))
    return [Disk(purpose=purpose, path=path) for purpose, path in found]


def hub_home(variables: Mapping[str, str], home: str) -> str:
    """Where the hub's own library keeps its files: HF_HOME, else its default."""
    named = variables.get("HF_HOME")
    if named:
        return _from_home(named, home)
    caches = variables.get("XDG_CACHE_HOME") or f"{home}/.cache"
    return str(Path(caches) / "huggingface")


def _from_home(path: str, home: str) -> str:
    return home + path[1:] if path == "~" or path.startswith("~/") else path


def disk(host: Host, place: Disk) -> Disk | None:
    """Space at one place and, where modelyard or a framework will write, whether a byte can be written."""
    purpose, path = place.purpose, place.path
    if purpose == "shared-memory" and not host.exists(path):
        return None
    total, free = host.disk_bytes(path) or (None, None)
    writable, problem = None, ""
    if purpose in ("environments", "cache", "hub", "temporary"):
        problem = host.try_write(path)
        hub_files = f"{path}/hub"  # where the models lie; someone else may have made it, with sudo for instance
        if not problem and purpose == "hub" and host.exists(hub_files):
            problem = host.try_write(hub_files)
        writable = problem == ""
    return Disk(purpose=purpose, path=path, total_bytes=total, free_bytes=free, writable=writable, problem=problem)
