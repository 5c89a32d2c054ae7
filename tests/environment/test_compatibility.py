"""The tables against what their owners say, and versions compared as `packaging` compares them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

from modelyard.environment import compatibility
from modelyard.environment.compatibility import covers, driver_floor, judge, suggest_accelerator, version_key
from modelyard.environment.snapshot import Accelerators, Amd, Gpu, Nvidia, Snapshot, System

numbers = st.lists(st.integers(0, 3000), min_size=1, max_size=5).map(lambda parts: ".".join(map(str, parts)))
phases = st.sampled_from(["", "a1", "b2", "rc1", "rc2", ".dev3", ".post1"])
versions = st.tuples(numbers, phases, st.sampled_from(["", "+cpu", "+cu130"])).map("".join)


@given(versions, versions)
def test_versions_sort_as_packaging_sorts_them(left: str, right: str) -> None:
    first, second = Version(Version(left).public), Version(Version(right).public)
    assert (version_key(left) < version_key(right)) == (first < second)
    assert (version_key(left) == version_key(right)) == (first == second)


@given(st.text(max_size=30))
def test_any_text_has_a_key_and_a_minor(text: str) -> None:
    assert version_key(text) >= ()
    compatibility.minor(text)
    driver_floor(text, text)
    assert covers(("8.0",), text) in (True, False)


@pytest.mark.parametrize("text", ["", "unknown", "+cpu", "v", "-1"])
def test_what_is_no_version_sorts_lowest(text: str) -> None:
    assert version_key(text) == () < version_key("0")


def test_driver_floors() -> None:
    assert driver_floor("13.0") == driver_floor("13.2", "windows") == "580"
    assert driver_floor("12.6") == "525.60.13"
    assert driver_floor("12.6", "windows") == "528.33"
    assert driver_floor("99.0") is driver_floor("") is driver_floor("12.6", "darwin") is None


@pytest.mark.parametrize(("variant", "cuda"), [("cu126", "12.6"), ("cu130", "13.0"), ("cuda12", "12.0"), ("cpu", None)])
def test_the_cuda_of_a_variant(variant: str, cuda: str | None) -> None:
    assert compatibility.cuda_version(variant) == cuda


def dotted(code: int) -> str:
    return f"{code // 10}.{code % 10}"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("variant", ["cu126", "cu130", "cu132"])
def test_architectures_are_those_that_torch_itself_lists(variant: str, machine: str) -> None:
    table: dict[str, dict[str, set[int]]] = getattr(torch.cuda, "PYTORCH_RELEASES_CODE_CC", {})
    cuda = compatibility.cuda_version(variant)
    if cuda not in table:
        pytest.skip("this torch has no such table")
    assert set(compatibility.architectures(variant, machine)) == {dotted(each) for each in table[cuda][machine]}


def test_a_gpu_is_covered_where_torch_says_so() -> None:
    requirement: dict[int, Any] = getattr(torch.cuda, "DEVICE_REQUIREMENT", {})
    if not requirement:
        pytest.skip("this torch has no such table")
    for code, devices in requirement.items():
        for device in requirement:
            if {code, device} == {101, 110}:  # one board under two numbers, that of CUDA 12 and of 13
                continue
            assert covers((dotted(code),), dotted(device)) == (device in devices), (code, device)


def test_every_variant_of_the_tested_torch_has_what_choosing_needs() -> None:
    tested = compatibility.tested("torch")
    variants = compatibility.torch_variants(tested)
    assert {"cpu", "cu126", "cu130"} <= set(variants)
    assert compatibility.default_torch_variant(tested) in variants
    for variant in variants:
        if (cuda := compatibility.cuda_version(variant)) is not None:
            assert driver_floor(cuda) and compatibility.architectures(variant)
    assert compatibility.torch_variants("1.0") == compatibility.pythons("torch", "1.0") == ()


def test_pythons() -> None:
    assert compatibility.tensorflow_pythons("2.21.0") == ("3.10", "3.11", "3.12", "3.13")
    assert "3.11" in compatibility.jax_pythons("0.10.2")
    assert "3.11" not in compatibility.jax_pythons("0.12")
    assert compatibility.pythons("torch", "2.13.0+cpu")[-1] == "3.14"


def test_floors_agree_with_the_project_and_the_tested_versions() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = {}
    for each in map(Requirement, project["optional-dependencies"]["torch"]):
        lowest[each.name] = next(iter(part.version for part in each.specifier if part.operator == ">="))
    for package in ("torch", "transformers", "tokenizers", "numpy"):
        assert compatibility.floor(package) == lowest[package]
    for package in compatibility.tables()["floors"]:
        if package != "source" and compatibility.tested(package):
            assert version_key(compatibility.floor(package)) <= version_key(compatibility.tested(package))
    assert compatibility.floor("source") == compatibility.floor("unheard-of") == ""


def test_every_table_says_where_it_is_from() -> None:
    assert all(table["source"] for table in compatibility.tables().values())


OWN_GRAPHICS = Gpu(capability="gfx1036", integrated=True)


def machine(*capabilities: str, driver: str = "580.82.07", system: str = "linux", cpu: str = "x86_64") -> Snapshot:
    nvidia = Nvidia(driver_version=driver, gpus=tuple(Gpu(name="GPU", capability=each) for each in capabilities))
    return Snapshot(system=System(name=system, machine=cpu), accelerators=Accelerators(nvidia=nvidia))


@pytest.mark.parametrize(
    ("snapshot", "torch_build", "tensorflow_build", "jax_build"),
    [
        (machine("8.6"), "cu130", "cuda12", "cuda13"),
        (machine("8.6", driver="550.54"), "cu126", "cuda12", "cuda12"),
        (machine("9.0", cpu="aarch64"), "cu130", "cpu", "cuda13"),
        (machine("6.1"), "cu126", "cuda12", "cuda12"),
        (machine("7.0", "8.0"), "cu126", "cuda12", "cuda12"),
        (machine("12.0"), "cu130", "cpu", "cuda13"),
        (machine("12.0", driver="570.10"), "cpu", "cpu", "cuda12"),
        (machine("6.1", "12.0"), "cpu", "cpu", "cuda12"),
        (machine("3.5"), "cpu", "cpu", "cpu"),
        (machine("8.6", driver="470.10"), "cpu", "cpu", "cpu"),
        (machine("8.6", system="windows", cpu="AMD64"), "cu130", "cpu", "cpu"),
        (machine(""), "cu130", "cuda12", "cuda13"),
        (Snapshot(), "cpu", "cpu", "cpu"),
    ],
)
def test_suggestions(snapshot: Snapshot, torch_build: str, tensorflow_build: str, jax_build: str) -> None:
    assert suggest_accelerator(snapshot) == torch_build
    assert suggest_accelerator(snapshot, "tensorflow") == tensorflow_build
    assert suggest_accelerator(snapshot, "jax") == jax_build


@pytest.mark.parametrize(
    ("seen", "accelerator", "outcome"),
    [
        (Accelerators(), "cpu", "no-gpu"),
        (Accelerators(nvidia=Nvidia(nvml_error=12)), "cpu", "no-gpu"),
        (Accelerators(nvidia=Nvidia(nvml_error=18, nvml_message="mismatch")), "cpu", "driver-broken"),
        (Accelerators(nvidia=Nvidia(nvml_error=9, kernel_module_version="580.1")), "cpu", "driver-broken"),
        (Accelerators(amd=Amd(driver=True, gpus=(Gpu(capability="gfx1100"),))), "rocm7.2", "fits"),
        (Accelerators(amd=Amd(driver=True, gpus=(Gpu(capability="gfx803"),))), "cpu", "gpu-old"),
        (Accelerators(amd=Amd(driver=True, gpus=(Gpu(name="Radeon"),))), "cpu", "gpu-unknown"),
        # The processor's own graphics beside a real GPU is not what the build is chosen for.
        (Accelerators(amd=Amd(gpus=(OWN_GRAPHICS, Gpu(capability="gfx1201")))), "rocm7.2", "fits"),
        (Accelerators(intel=(Gpu(name="Arc B580"),)), "cpu", "none"),
        (Accelerators(intel=(Gpu(name="UHD", integrated=True),)), "cpu", "no-gpu"),
    ],
)  # fmt: skip
def test_verdicts_for_torch(seen: Accelerators, accelerator: str, outcome: str) -> None:
    verdict = judge(Snapshot(system=System(name="linux", machine="x86_64"), accelerators=seen))
    assert (verdict.accelerator, verdict.outcome) == (accelerator, outcome)


def test_apple_and_tpu() -> None:
    apple = Snapshot(system=System(name="darwin", machine="arm64"), accelerators=Accelerators(apple=Gpu(name="M3")))
    assert [suggest_accelerator(apple, each) for each in compatibility.FRAMEWORKS] == ["mps", "cpu", "cpu"]
    tpu = Snapshot(system=System(name="linux", machine="x86_64"), accelerators=Accelerators(tpu="v5litepod-8"))
    assert [suggest_accelerator(tpu, each) for each in compatibility.FRAMEWORKS] == ["cpu", "cpu", "tpu"]


names = st.sampled_from(["", "linux", "darwin", "windows", "source", "plan9", "x86_64", "arm64", "x"])
words = st.one_of(st.sampled_from(["", "8.6", "12.0", "580", "470.1", "gfx1100", "rc", "٣.٥"]), st.text(max_size=8))
gpus = st.lists(st.builds(Gpu, name=words, capability=words, integrated=st.booleans()), max_size=3).map(tuple)


@given(st.data())
def test_no_machine_is_too_strange_to_judge(data: st.DataObject) -> None:
    nvidia = data.draw(st.builds(Nvidia, driver_version=words, nvml_error=st.none() | st.integers(0, 999), gpus=gpus))
    amd = data.draw(st.builds(Amd, driver=st.booleans(), gpus=gpus))
    seen = Accelerators(nvidia=nvidia, amd=amd, tpu=data.draw(words), apple=data.draw(st.none() | st.builds(Gpu)))
    system = System(name=data.draw(names), machine=data.draw(names))
    for framework in compatibility.FRAMEWORKS:
        verdict = judge(Snapshot(system=system, accelerators=seen), framework)
        assert (verdict.accelerator == "cpu") or verdict.outcome == "fits"
