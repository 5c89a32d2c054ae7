"""Commands as the person types them on the machine of a snapshot."""

from __future__ import annotations

import re
import shlex

from modelyard.environment.snapshot import Snapshot

# A redacted snapshot writes the home folder as "~"; quotes would keep the shell from filling it in.
_PLAIN = re.compile(r"~?[\w@%+=:,./-]+", re.ASCII)


def quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else shlex.quote(text)


def set_variable(snapshot: Snapshot, name: str, value: str) -> str:
    """For this shell; PowerShell on Windows."""
    if snapshot.system.name == "windows":
        return f'$env:{name} = "{value}"'
    return f"export {name}={quoted(value)}"


def unset_variable(snapshot: Snapshot, name: str) -> str:
    return f"Remove-Item Env:{name}" if snapshot.system.name == "windows" else f"unset {name}"


def pip(snapshot: Snapshot, arguments: str) -> str:
    """pip of the Python that was asked."""
    return f"{quoted(snapshot.python.executable or 'python')} -m pip {arguments}"


def start_with_gpu(snapshot: Snapshot) -> str:
    """How a container gets the GPUs, by its kind."""
    return {
        "podman": "podman run --device nvidia.com/gpu=all …",
        "kubernetes": "kubectl edit deployment NAME  # containers[].resources.limits: nvidia.com/gpu: 1",
        "apptainer": "apptainer exec --nv …",
        "lxc": "lxc config device add CONTAINER gpu gpu",
    }.get(snapshot.system.container, "docker run --gpus all …")


def start_with_shared_memory(snapshot: Snapshot) -> str:
    """How a container, or this machine, gets a larger /dev/shm."""
    if not snapshot.system.container:
        return "sudo mount -o remount,size=8G /dev/shm"
    return {
        "podman": "podman run --shm-size=8g …",
        "kubernetes": "kubectl edit deployment NAME  # volumes[].emptyDir.medium: Memory, mounted at /dev/shm",
    }.get(snapshot.system.container, "docker run --shm-size=8g …")
