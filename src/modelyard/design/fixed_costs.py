"""Device memory that a run takes besides its tensors: typed access to fixed_costs.yaml."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

OptimizerLoop = Literal["fused", "foreach", "loop"]


def context_bytes(capability: str | None) -> int:
    """What the driver holds for one process, outside the caching allocator; an estimate.

    capability: as in the catalogue (``9.0``); the most of its generation stands for an unknown one.
    """
    costs = _costs()["cuda_context"]
    known: dict[str, int] = costs["mib"]
    if capability in known:
        return known[capability] << 20
    major = (capability or "").split(".")[0]
    same = [mib for each, mib in known.items() if each.split(".")[0] == major]
    return (max(same) if same else int(costs["mib_otherwise"])) << 20


def blas_workspace_bytes(capability: str | None, config: str | None = None) -> int:
    """One workspace of cuBLAS (rocBLAS on AMD); it is allocated through the caching allocator and stays.

    config: the value of CUBLAS_WORKSPACE_CONFIG (``:KiB:count`` repeated), or None; one that PyTorch cannot read
    counts for nothing, as there.
    """
    costs = _costs()["blas_workspace"]
    pairs = re.findall(r":([0-9]+):([0-9]+)", config or "")
    if pairs:
        return sum(int(kibibytes) * 1024 * int(count) for kibibytes, count in pairs)
    if capability is not None and capability.startswith("gfx"):
        large = capability.startswith(tuple(costs["rocm_large_architectures"]))
        return int(costs["rocm_large_bytes" if large else "rocm_bytes"])
    major = int(capability.split(".")[0]) if capability else 0
    return int(costs["large_bytes" if major in costs["large_majors"] else "bytes"])


def num_blas_workspaces(purpose: Literal["training", "prediction"]) -> int:
    """How many of them one stream comes to hold."""
    return int(_costs()["blas_workspace"]["handles"][purpose])


def cudnn_workspace_bytes() -> int:
    """cuDNN's workspace for a text model."""
    return int(_costs()["cudnn"]["text_bytes"])


def communicator_bytes() -> int:
    """NCCL's buffers of one communicator on one rank, outside the caching allocator; an estimate."""
    return int(_costs()["nccl"]["communicator_mib"]) << 20


def optimizer_temporary_bytes(trainable_bytes: int, loop: OptimizerLoop) -> int:
    """Temporaries at the peak of an optimiser step over parameters of `trainable_bytes`, where no trace shows them."""
    return int(trainable_bytes * float(_costs()["optimizer_temporaries"][loop]))


@cache
def _costs() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (files("modelyard.design") / "fixed_costs.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=loader))
