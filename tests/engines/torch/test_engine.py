"""Devices and the engine's promises."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import transformers

from modelyard.engines.base import Engine, ModelSpec, OptimizerSpec, Plan
from modelyard.engines.torch import devices
from modelyard.engines.torch.engine import TorchEngine
from modelyard.errors import MachineError


def test_versions_are_those_of_the_packages() -> None:
    versions = TorchEngine().versions()
    assert versions["torch"] == torch.__version__ and versions["transformers"] == transformers.__version__
    assert versions["cuda"] == (torch.version.cuda or "none")


def test_the_cpu_is_always_the_last_device() -> None:
    engine: Engine = TorchEngine()
    cpu = engine.devices()[-1]
    assert (cpu.name, cpu.kind) == ("cpu", "cpu")
    assert 0 < cpu.memory_bytes <= psutil.virtual_memory().total
    assert 1 <= cpu.num_threads <= (os.cpu_count() or 1)
    assert cpu.description


def test_threads_stay_within_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(devices, "_cgroup_cpus", lambda _: None)
    assert devices.num_threads() == 8
    monkeypatch.setattr(devices, "_cgroup_cpus", lambda _: 3)
    assert devices.num_threads() == 3


def test_limits_of_control_groups_are_read_up_to_the_root(tmp_path: Path) -> None:
    inner = tmp_path / "pod" / "container"
    inner.mkdir(parents=True)
    membership = tmp_path / "membership"
    membership.write_text("0::/pod/container\n")
    folders = devices._own_cgroups(tmp_path, membership)
    assert folders == [inner, inner.parent, tmp_path]
    assert devices._cgroup_cpus(folders) is None and devices._cgroup_bytes(folders) is None
    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "cpu.max").write_text("250000 100000\n")
    (inner.parent / "memory.max").write_text("4096\n")
    assert devices._cgroup_cpus(folders) == 3  # 2.5 CPUs
    assert devices._cgroup_bytes(folders) == 4096
    assert devices._own_cgroups(tmp_path, tmp_path / "none") == []


def test_bfloat16_follows_the_cpu_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def info(text: str) -> Callable[..., str]:
        return lambda self, *_, **__: text if self.name == "cpuinfo" else "max"

    for flags, fast in (("fma avx512_bf16", True), ("fma amx_bf16 amx_tile", True), ("fma avx512f", False)):
        monkeypatch.setattr(Path, "read_text", info(f"processor : 0\nmodel name : A CPU\nflags : {flags}\n"))
        cpu = devices._cpu()
        assert (cpu.fast_bfloat16, cpu.description) == (fast, "A CPU")


def test_a_gpu_that_is_not_there_is_a_machine_error(
    monkeypatch: pytest.MonkeyPatch, config_of: Callable[..., dict[str, Any]]
) -> None:
    monkeypatch.setattr(devices, "_cuda_count", lambda: 0)
    plan = Plan("cuda:0", "float32", 512)
    with pytest.raises(MachineError, match=r"cuda:0 was asked for, but PyTorch 2.* sees 0 such devices") as caught:
        TorchEngine().learner(ModelSpec(None, config_of(), ("a", "b")), OptimizerSpec("adam"), plan)
    assert "--set environment.device=cpu" in caught.value.hint
    assert caught.value.exit_code == 3


def test_a_gpu_that_does_not_work_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cuda_count", lambda: 1)
    monkeypatch.setattr(devices, "_cuda_failure", lambda _: "no kernel image is available for execution")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    assert [device.name for device in devices.find_devices()] == ["cpu"]
    with pytest.raises(MachineError, match=r"cuda \(Old GPU\) does not work: no kernel image"):
        devices.require_device("cuda")


def test_the_trial_of_a_gpu_reports_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch, "ones", broken)
    assert devices._cuda_failure(0) == "CUDA error: no kernel image"
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(8, 8))
    assert devices._cuda_failure(0) == "8 x 8 ones squared sum to 0, not to 512"


def test_the_reference_is_the_librarys_own_code(checkpoint: Callable[..., Any], make_batch: Callable[..., Any]) -> None:
    folder, _ = checkpoint("longformer")
    engine, batch = TorchEngine(), make_batch(range(6))
    ours, theirs = engine.predictor(folder, "cpu"), engine.reference_predictor(folder, "cpu")
    modules = {type(module).__module__.split(".")[0] for module in theirs.model.modules()}
    assert modules == {"torch", "transformers"}
    assert "modelyard" in {type(module).__module__.split(".")[0] for module in ours.model.modules()}
    assert np.allclose(ours.predict(batch).logits, theirs.predict(batch).logits, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("family", ["bert", "longformer"])
def test_cuda_computes_what_the_cpu_computes(
    family: str, tmp_path: Path, config_of: Callable[..., dict[str, Any]], make_batch: Callable[..., Any]
) -> None:
    engine = TorchEngine()
    assert engine.devices()[0].kind == "cuda"
    spec = ModelSpec(None, config_of(family), ("a", "b", "c"), hidden_dropout=0.0, attention_dropout=0.0)
    steps = [[make_batch(range(start, start + 4)), make_batch(range(start + 4, start + 8))] for start in (0, 8, 16)]
    losses = {}
    for device in ("cpu", "cuda"):
        learner = engine.learner(spec, OptimizerSpec("adamw"), Plan(device, "float32", 512))
        losses[device] = [learner.step(step, 1e-3).loss.item() for step in steps]
        assert learner.peak_memory_bytes() > 0
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=1e-4)
    learner.save(tmp_path)
    resumed = engine.learner(spec, OptimizerSpec("adamw"), Plan("cuda", "float32", 512))
    resumed.load(tmp_path)
    assert resumed.step(steps[0], 1e-3).loss.item() == learner.step(steps[0], 1e-3).loss.item()
    bad = replace(steps[0][0], weights=np.full(4, np.inf, dtype=np.float32))
    before = learner.predict(steps[0][0]).logits
    assert not np.isfinite(learner.step([bad], 1e-3).loss.item())
    assert np.array_equal(before, learner.predict(steps[0][0]).logits)
