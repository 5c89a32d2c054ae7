"""Builds by hardware: what is chosen, from where, and what is refused with what would work."""

from __future__ import annotations

import re
import string
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.tags import cpython_tags
from packaging.utils import parse_wheel_filename

from modelyard.environment import compatibility, reasons
from modelyard.environment.choose import Build, accelerators, choose
from modelyard.environment.compatibility import FRAMEWORKS, version_key
from modelyard.environment.snapshot import Accelerators, Amd, Configuration, Gpu, Nvidia, Python, Snapshot, System
from modelyard.environment.sources import Sources
from modelyard.environment.torch_index import fits
from modelyard.errors import InputError, MachineError, ModelyardError

TORCH, JAX = compatibility.tested("torch"), compatibility.tested("jax")
TENSORFLOW = compatibility.tested("tensorflow")
SYSTEMS = {
    "linux": System(name="linux", machine="x86_64", libc="glibc", libc_version="2.36"),
    "arm": System(name="linux", machine="aarch64", libc="glibc", libc_version="2.36"),
    "mac": System(name="darwin", machine="arm64", release="15.1"),
    "windows": System(name="windows", machine="AMD64"),
}
APPLE = Accelerators(apple=Gpu(name="Apple M3"))
BROKEN = Accelerators(nvidia=Nvidia(nvml_error=18, nvml_message="Driver/library version mismatch"))


def nvidia(*capabilities: str, driver: str = "580.82.07") -> Accelerators:
    gpus = tuple(Gpu(name=f"GPU {each}", capability=each) for each in capabilities)
    return Accelerators(nvidia=Nvidia(driver_version=driver, gpus=gpus))


OLDER_DRIVER, AMPERE = nvidia("8.6", driver="550.54.15"), nvidia("8.0")


def amd(capability: str) -> Accelerators:
    return Accelerators(amd=Amd(driver=True, gpus=(Gpu(name="Radeon", capability=capability),)))


def machine(
    system: str = "linux", seen: Accelerators | None = None, python: str = "3.12.4", mirror: str = ""
) -> Snapshot:
    return Snapshot(
        system=SYSTEMS[system], accelerators=seen or Accelerators(), python=Python(version=python),
        configuration=Configuration(pytorch_mirror=mirror),
    )  # fmt: skip


def told(build: Build) -> str:
    return "\n".join(each.text("en") for each in build.reasons)


@pytest.mark.parametrize(
    ("framework", "asked", "snapshot", "accelerator", "requirement", "index", "device"),
    [
        ("torch", "auto", machine(), "cpu", f"torch=={TORCH}+cpu", "/cpu", "cpu"),
        ("torch", "auto", machine("arm"), "cpu", f"torch=={TORCH}+cpu", "/cpu", "cpu"),
        ("torch", "auto", machine(seen=nvidia("8.6")), "cu130", f"torch=={TORCH}", None, "cuda"),
        ("torch", "auto", machine("arm", nvidia("9.0")), "cu130", f"torch=={TORCH}", None, "cuda"),
        ("torch", "auto", machine(seen=OLDER_DRIVER), "cu126", f"torch=={TORCH}+cu126", "/cu126", "cuda"),
        ("torch", "auto", machine(seen=nvidia("6.1", "8.6")), "cu126", f"torch=={TORCH}+cu126", "/cu126", "cuda"),
        ("torch", "auto", machine(seen=nvidia("12.0")), "cu130", f"torch=={TORCH}", None, "cuda"),
        ("torch", "auto", machine("windows", nvidia("8.9")), "cu130", f"torch=={TORCH}+cu130", "/cu130", "cuda"),
        ("torch", "cu132", machine(seen=nvidia("8.6")), "cu132", f"torch=={TORCH}+cu132", "/cu132", "cuda"),
        ("torch", "auto", machine(seen=amd("gfx1100")), "rocm7.2", f"torch=={TORCH}+rocm7.2", "/rocm7.2", "cuda"),
        ("torch", "auto", machine(seen=amd("gfx803")), "cpu", f"torch=={TORCH}+cpu", "/cpu", "cpu"),
        ("torch", "auto", machine("mac", APPLE), "mps", f"torch=={TORCH}", None, "mps"),
        ("torch", "cpu", machine("mac", APPLE), "cpu", f"torch=={TORCH}", None, "cpu"),
        ("torch", "auto", machine("windows"), "cpu", f"torch=={TORCH}", None, "cpu"),
        ("torch", "auto", machine(seen=BROKEN), "cpu", f"torch=={TORCH}+cpu", "/cpu", "cpu"),
        ("tensorflow", "auto", machine(), "cpu", f"tensorflow-cpu=={TENSORFLOW}", None, "cpu"),
        ("tensorflow", "auto", machine("arm"), "cpu", f"tensorflow=={TENSORFLOW}", None, "cpu"),
        ("tensorflow", "auto", machine("mac", APPLE), "cpu", f"tensorflow=={TENSORFLOW}", None, "cpu"),
        ("tensorflow", "auto", machine(seen=AMPERE), "cuda12", f"tensorflow[and-cuda]=={TENSORFLOW}", None, "cuda"),
        ("tensorflow", "auto", machine(seen=nvidia("12.0")), "cpu", f"tensorflow-cpu=={TENSORFLOW}", None, "cpu"),
        ("tensorflow", "auto", machine("windows", nvidia("8.6")), "cpu", f"tensorflow-cpu=={TENSORFLOW}", None, "cpu"),
        ("jax", "auto", machine(), "cpu", f"jax=={JAX}", None, "cpu"),
        ("jax", "auto", machine(seen=nvidia("8.0")), "cuda13", f"jax[cuda13]=={JAX}", None, "cuda"),
        ("jax", "cuda12", machine(seen=nvidia("8.0")), "cuda12", f"jax[cuda12]=={JAX}", None, "cuda"),
        ("jax", "auto", machine(seen=Accelerators(tpu="v5litepod-8")), "tpu", f"jax[tpu]=={JAX}", None, "tpu"),
    ],
)  # fmt: skip
def test_what_is_chosen(
    framework: str, asked: str, snapshot: Snapshot, accelerator: str, requirement: str, index: str | None, device: str
) -> None:
    build = choose(framework, asked, None, snapshot, Sources())
    assert (build.accelerator, build.requirements[0], build.proof_device) == (accelerator, requirement, device)
    assert (build.index is None) if index is None else (build.index is not None and build.index.url.endswith(index))
    assert bool(build.packages_from_index) == (build.index is not None)
    assert [str(Requirement(each)) for each in build.requirements] and build.requirements[-1].startswith("modelyard")
    assert 0 < build.download_bytes < build.disk_bytes
    assert build.python in ("3.11", "3.12", "3.13") and len(build.reasons) >= 3
    assert accelerator in told(build)


@pytest.mark.parametrize(
    ("seen", "framework", "words"),
    [
        (Accelerators(), "torch", "no GPU"),
        (BROKEN, "torch", "Driver/library version mismatch (NVML 18)"),
        (amd("gfx803"), "torch", "gfx803"),
        (amd("gfx1100"), "jax", "AMD"),
        (nvidia("3.5"), "torch", "3.5"),
        (nvidia("12.0"), "tensorflow", "12.0"),
        (Accelerators(intel=(Gpu(name="Arc B580"),)), "torch", "xpu"),
    ],
)
def test_a_processor_build_says_why(seen: Accelerators, framework: str, words: str) -> None:
    build = choose(framework, "auto", None, machine(seen=seen), Sources())
    assert build.accelerator == "cpu" and words in told(build)


@pytest.mark.parametrize(
    ("framework", "asked", "snapshot", "words", "hint"),
    [
        ("torch", "auto", machine(seen=nvidia("12.0", driver="570.1")), "570.1", "580"),
        ("torch", "auto", machine(seen=nvidia("8.6", driver="470.1")), "525.60.13", "--accelerator cpu"),
        ("torch", "auto", machine(seen=nvidia("6.1", "12.0")), "6.1, 12.0", "cu126"),
        ("torch", "cu130", machine(seen=nvidia("8.6", driver="550.1")), "550.1", "auto"),
        ("torch", "cu130", machine(seen=nvidia("6.1")), "6.1", "auto"),
        ("torch", "cu130", machine(), "an NVIDIA GPU", "doctor"),
        ("torch", "cu130", machine(seen=BROKEN), "mismatch", "doctor"),
        ("torch", "rocm7.2", machine(), "an AMD GPU", "cpu"),
        ("torch", "rocm7.2", machine("windows", amd("gfx1100")), "windows", "auto"),
        ("torch", "mps", machine(), "linux-x86_64", "auto"),
        ("torch", "xpu", machine(), "Intel", "cpu"),
        ("jax", "tpu", machine(), "a TPU", "cpu"),
        ("tensorflow", "cuda12", machine("windows", nvidia("8.6")), "windows", "WSL2"),
    ],
)
def test_what_the_machine_cannot_do_is_refused(
    framework: str, asked: str, snapshot: Snapshot, words: str, hint: str
) -> None:
    with pytest.raises(MachineError) as error:
        choose(framework, asked, None, snapshot, Sources())
    assert words in error.value.problem and hint in error.value.hint


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (System(name="darwin", machine="x86_64", release="14.5"), "torch 2.2"),
        (System(name="darwin", machine="x86_64", translated=True), "translated"),
        (System(name="darwin", machine="arm64", release="13.6"), "macOS 14.0"),
        (System(name="linux", machine="x86_64", libc="musl", distribution="Alpine Linux"), "Alpine"),
        (System(name="linux", machine="x86_64", libc="glibc", libc_version="2.17"), "glibc 2.28"),
        (System(name="linux", machine="riscv64", libc="glibc", libc_version="2.39"), "linux-riscv64"),
        (System(name="windows", machine="ARM64"), "windows-aarch64"),
    ],
)
def test_platforms_without_wheels_are_refused(system: System, words: str) -> None:
    with pytest.raises(MachineError, match=re.escape(words)):
        choose("torch", "auto", None, Snapshot(system=system), Sources())


@pytest.mark.parametrize(
    ("framework", "asked", "words", "hint"),
    [
        ("pytorch", "auto", "'pytorch'", "--framework torch"),
        ("tensorflw", "auto", "torch, tensorflow, jax", "--framework tensorflow"),
        ("", "auto", "''", "--framework"),
        ("torch", "cu13", "'cu13'", "--accelerator cu130"),
        ("torch", "gpu", "rocm7.2", "--accelerator auto"),
        ("torch", "\N{SNOWMAN}", "\N{SNOWMAN}", "--accelerator"),
        ("tensorflow", "rocm7.2", "auto, cpu, cuda12", "auto"),
        ("torch", "tpu", "'tpu'", "auto"),
        ("torch", "cuda12", "cu126", "--accelerator cu126"),
        ("jax", "cu130", "cuda13", "--accelerator cuda13"),
        ("tensorflow", "cuda13", "cuda12", "--accelerator cuda12"),
    ],
)
def test_names_and_combinations_that_do_not_exist(framework: str, asked: str, words: str, hint: str) -> None:
    with pytest.raises(InputError) as error:
        choose(framework, asked, None, machine(seen=nvidia("8.6")), Sources())
    assert words in error.value.problem and hint in error.value.hint


def test_every_accelerator_has_a_name() -> None:
    assert {"auto", "cpu", "cu126", "cu130", "cu132", "cuda12", "cuda13", "rocm7.2", "xpu", "mps", "tpu"} == set(
        accelerators()
    )


@pytest.mark.parametrize(
    ("framework", "python", "running", "chosen"),
    [
        ("torch", "3.14", "3.11.7", "3.14"),
        ("torch", None, "3.11.7", "3.11"),
        ("tensorflow", None, "3.14.1", "3.13"),
        ("torch", None, "3.9.1", "3.11"),
        ("torch", None, "3.99.0", "3.14"),
    ],
)
def test_the_python(framework: str, python: str | None, running: str, chosen: str) -> None:
    build = choose(framework, "cpu", python, machine(python=running), Sources())
    assert build.python == chosen and f"Python {chosen}" in told(build)


@pytest.mark.parametrize("python", ["3.14", "3.10", "3", "3.12.4", "python3.12", "", "3.99", "-3.1"])
def test_a_python_that_tensorflow_has_no_wheels_for(python: str) -> None:
    with pytest.raises(InputError) as error:
        choose("tensorflow", "cpu", python, machine(), Sources())
    assert f"{python}" in error.value.problem and "--python 3.1" in error.value.hint


def test_a_wheel_in_the_person_s_own_folder_is_taken(tmp_path: Path) -> None:
    name = f"torch-{TORCH}+cpu-cp312-cp312-manylinux_2_28_x86_64.whl"
    (tmp_path / name).touch()
    folders = Sources(find_links=("https://elsewhere.example", str(tmp_path / "nowhere"), str(tmp_path)))
    build = choose("torch", "cpu", None, machine(), folders)
    assert build.index is not None and (build.index.url, build.index.format) == (tmp_path.as_uri(), "flat")
    assert build.packages_from_index == ("torch",) and build.requirements[0] == f"torch=={TORCH}+cpu"
    assert name in told(build) and str(tmp_path) in told(build)
    for other in (machine(python="3.13.0"), machine("arm")):
        index = choose("torch", "cpu", None, other, folders).index
        assert index is not None and index.format == "simple"
    # Without any index the folder is found as find-links, so no index is named.
    offline = choose("torch", "cpu", None, machine(), Sources(find_links=(str(tmp_path),), no_index=True))
    assert offline.index is None and offline.requirements[0].endswith("+cpu")


def test_another_build_is_never_taken_by_chance(tmp_path: Path) -> None:
    """A folder with the processor's build must not win over PyPI's CUDA build: 2.13.0+cpu sorts above 2.13.0."""
    (tmp_path / f"torch-{TORCH}+cpu-cp312-cp312-manylinux_2_28_x86_64.whl").touch()
    for places in (Sources(find_links=(str(tmp_path),)), Sources(extra_index_urls=("https://a.example/simple",))):
        build = choose("torch", "auto", None, machine(seen=nvidia("8.6")), places)
        assert build.requirements[0] == f"torch=={TORCH}+cu130"
        assert build.index is not None and build.index.url.endswith("/cu130")


@pytest.mark.parametrize(
    ("mirror", "url", "form"),
    [
        ("https://m.example/whl", "https://m.example/whl/cpu", "simple"),
        ("https://m.example/whl/", "https://m.example/whl/cpu", "simple"),
        ("flat+https://m.example/wheels", "https://m.example/wheels/cpu", "flat"),
    ],
)
def test_a_mirror_of_the_pytorch_index(mirror: str, url: str, form: str) -> None:
    index = choose("torch", "cpu", None, machine(mirror=mirror), Sources()).index
    assert index is not None and (index.url, index.format, index.name) == (url, form, "pytorch-cpu")


@pytest.mark.parametrize(("accelerator", "seen", "triton"), [
    ("rocm7.2", amd("gfx1100"), "triton-rocm"), ("xpu", Accelerators(intel=(Gpu(name="Arc"),)), "triton-xpu"),
])  # fmt: skip
def test_triton_comes_from_the_same_index(accelerator: str, seen: Accelerators, triton: str) -> None:
    build = choose("torch", accelerator, None, machine(seen=seen), Sources())
    assert triton in build.requirements and triton in build.packages_from_index


def test_asking_for_cuda_of_tensorflow_on_a_new_gpu_warns() -> None:
    build = choose("tensorflow", "cuda12", None, machine(seen=nvidia("12.0")), Sources())
    assert build.accelerator == "cuda12" and "may fail" in told(build)


def test_asking_for_a_build_that_covers_some_gpus_says_which_not() -> None:
    build = choose("torch", "cu130", None, machine(seen=nvidia("6.1", "12.0")), Sources())
    assert "6.1" in told(build)


def test_a_silent_fall_back_is_made_an_error() -> None:
    on_gpu = choose("jax", "auto", None, machine(seen=nvidia("8.6")), Sources()).variables
    assert on_gpu["JAX_PLATFORMS"] == "cuda" and on_gpu["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert choose("jax", "cpu", None, machine(), Sources()).variables["JAX_PLATFORMS"] == "cpu"
    assert choose("tensorflow", "cpu", None, machine(), Sources()).variables["KERAS_BACKEND"] == "tensorflow"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_floors_and_constraints_fit_the_requirements(framework: str) -> None:
    build = choose(framework, "cpu", None, machine(), Sources())
    constraints = {each.name: each for each in map(Requirement, build.constraints)}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in map(Requirement, build.requirements):
        assert requirement.name not in constraints
    for requirement in map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["torch"]]):
        pinned = constraints.get(requirement.name.lower().replace("_", "-"))
        if pinned is not None:
            assert requirement.specifier.contains(next(iter(pinned.specifier)).version), requirement
    for package, floor in build.min_versions.items():
        assert floor and version_key(floor) <= version_key(compatibility.tested(package))


def test_a_tested_version_without_wheels_for_a_python_is_not_forced() -> None:
    assert any(each.startswith("h5py==") for each in choose("jax", "cpu", "3.13", machine(), Sources()).constraints)
    assert not any(each.startswith("h5py") for each in choose("jax", "cpu", "3.14", machine(), Sources()).constraints)


@pytest.mark.parametrize(
    "tag",
    [
        "manylinux_2_17_x86_64",
        "manylinux_2_28_x86_64",
        "manylinux_2_99_x86_64",
        "linux_x86_64",
        "manylinux_2_28_aarch64",
        "win_amd64",
        "macosx_14_0_arm64",
        "manylinux_2_27_x86_64.manylinux_2_28_x86_64",
    ],
)
def test_which_wheels_fit_is_what_packaging_says(tag: str) -> None:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)] + ["linux_x86_64"]
    for python in ((3, 11), (3, 12)):
        wheel = f"torch-{TORCH}+cpu-cp312-cp312-{tag}.whl"
        expected = bool(parse_wheel_filename(wheel)[3] & set(cpython_tags(python, platforms=platforms)))
        assert fits(wheel, f"{TORCH}+cpu", f"3.{python[1]}", SYSTEMS["linux"]) == expected
    assert not fits(f"torch-{TORCH}+cpu-cp312-cp312-{tag}.whl", f"{TORCH}+cu130", "3.12", SYSTEMS["linux"])
    assert not fits(tag, f"{TORCH}+cpu", "3.12", SYSTEMS["linux"])


def test_every_reason_says_the_same_in_both_languages() -> None:
    for key, text in reasons.texts().items():
        assert set(text) == {"en", "zh"}, key
        names = [{name for _, name, _, _ in string.Formatter().parse(each) if name} for each in text.values()]
        assert names[0] == names[1], key
        assert re.search("[\u4e00-\u9fff]", text["zh"]) and not re.search("[\u4e00-\u9fff]", text["en"]), key


words = st.one_of(st.sampled_from(["", "8.6", "12.0", "580", "470.1", "gfx1100"]), st.text(max_size=8))
gpus = st.lists(st.builds(Gpu, name=words, capability=words, integrated=st.booleans()), max_size=3).map(tuple)
machines = st.builds(
    Snapshot,
    system=st.sampled_from(list(SYSTEMS.values())),
    python=st.builds(Python, version=words),
    accelerators=st.builds(
        Accelerators,
        nvidia=st.builds(Nvidia, driver_version=words, nvml_error=st.none() | st.integers(0, 999), gpus=gpus),
        amd=st.builds(Amd, driver=st.booleans(), gpus=gpus),
        intel=gpus,
        apple=st.none() | st.builds(Gpu),
        tpu=words,
    ),
)


@given(st.sampled_from(FRAMEWORKS), st.sampled_from(accelerators()), machines)
def test_every_machine_gets_a_build_or_an_error_of_ours(framework: str, accelerator: str, snapshot: Snapshot) -> None:
    try:
        build = choose(framework, accelerator, None, snapshot, Sources())
    except ModelyardError as error:
        assert error.problem and error.hint
    else:
        assert accelerator in ("auto", build.accelerator)
        assert all(each.english and each.chinese for each in build.reasons)
