"""GPUs that cannot be used: a played NVML, driver files and frameworks; loader, processes and mounts are real."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.environment.provoked import made_frameworks as made
from tests.environment.provoked.shells import H100, Shell, compiled, only, own_mounts

CREATE = "modelyard env create --framework"
OLD_DRIVER = ("470.82.01", 11040)
PASCAL = ("NVIDIA GeForce GTX 1080", (6, 1))
BLACKWELL = ("NVIDIA GeForce RTX 5070", (12, 0))
APPTAINER = "/images/torch.sif"


def real_torch_is_for_the_processor() -> bool:
    if find_spec("torch") is None:
        return False
    from importlib.metadata import version

    return version("torch").endswith("+cpu")


@pytest.mark.skipif(not real_torch_is_for_the_processor(), reason="no CPU build of torch here")
def test_the_real_cpu_build_beside_an_h100(shell: Shell) -> None:
    clean = shell.doctor("--quick")
    shell.gpu()
    found = only("torch-cpu-build", clean, shell.doctor("--quick"), f"{CREATE} torch --accelerator cu130")
    assert found["evidence"].endswith(f"this machine has 1 × {H100[0]}")


def test_a_driver_older_than_the_build(shell: Shell) -> None:
    shell.environment()
    shell.install("torch", "2.13.0+cu130", made.torch())
    shell.gpu()
    clean = shell.doctor()
    assert clean.snapshot["installed"]["frameworks"][0]["devices"] == ["cpu", f"cuda:0 {H100[0]}"]
    shell.gpu(driver=OLD_DRIVER)
    provoked = shell.doctor()
    found = only("driver-too-old", clean, provoked, f"{CREATE} torch --accelerator cpu")
    assert provoked.code == 3
    assert found["evidence"].startswith("driver 470.82.01;")
    assert "580 or newer" in found["fix"][1]


def test_a_gpu_that_the_build_has_no_code_for(shell: Shell) -> None:
    shell.environment()
    shell.install("torch", "2.13.0+cu130", made.torch())
    shell.gpu()
    clean = shell.doctor()
    shell.gpu(PASCAL)
    provoked = shell.doctor()
    only("gpu-architecture-missing", clean, provoked, f"{CREATE} torch --accelerator cu126")
    assert provoked.code == 3


def test_tensorflow_on_blackwell(shell: Shell) -> None:
    shell.environment()
    shell.install("tensorflow", "2.21.0", made.tensorflow())
    shell.gpu()
    clean = shell.doctor()
    shell.gpu(BLACKWELL)
    provoked = shell.doctor()
    only("tensorflow-blackwell", clean, provoked, f"{CREATE} torch --accelerator cu130")
    assert provoked.code == 3


def test_jax_without_its_plugin(shell: Shell) -> None:
    shell.environment()
    shell.gpu()
    shell.install("jax", "0.10.2", made.jax())
    shell.install("jax-cuda13-plugin", "0.10.2", made.JAX_PLUGIN)
    clean = shell.doctor()
    shell.uninstall("jax-cuda13-plugin")
    only("jax-cpu-fallback", clean, shell.doctor(), f"{CREATE} jax --accelerator cuda13")


def test_jax_on_a_gpu_that_others_use_in_part(shell: Shell) -> None:
    shell.environment()
    shell.gpu()
    shell.install("jax", "0.10.2", made.jax())
    shell.install("jax-cuda13-plugin", "0.10.2", made.JAX_PLUGIN)
    clean = shell.doctor()
    shell.gpu(used_gib=30)
    only("jax-preallocates", clean, shell.doctor(), "export XLA_PYTHON_CLIENT_PREALLOCATE=false")
    assert "jax-preallocates" not in shell.doctor(typed="export XLA_PYTHON_CLIENT_PREALLOCATE=false").rules


def test_tensorflow_that_cannot_open_its_libraries(shell: Shell) -> None:
    shell.environment()
    shell.gpu()
    shell.install("tensorflow", "2.21.0", made.tensorflow())
    clean = shell.doctor()
    said = "W0000 gpu_device.cc:2433] Cannot dlopen some GPU libraries. Skipping registering GPU devices..."
    shell.install("tensorflow", "2.20.0", made.tensorflow("2.20.0", f"FOUND = print({said!r}, file=sys.stderr) or 0"))
    found = only("tensorflow-no-gpu", clean, shell.doctor(), f"{CREATE} tensorflow --accelerator cuda12")
    assert "Cannot dlopen some GPU libraries" in found["evidence"]


def test_a_driver_that_was_updated_under_a_running_kernel(shell: Shell) -> None:
    """The real binding of NVML, and a library of the driver that answers with error 18."""
    shell.variables.pop("PYTHONPATH", None)
    clean = shell.doctor("--quick")
    library = compiled("int nvmlInitWithFlags(unsigned f) { return 18; }", shell.folder / "lib" / "libnvidia-ml.so.1")
    provoked = shell.doctor("--quick", LD_LIBRARY_PATH=str(library.parent))
    found = only("driver-library-mismatch", clean, provoked, "sudo reboot")
    assert provoked.code == 3
    assert "NVML/RM version mismatch" in found["evidence"]


def test_compatibility_libraries_on_a_gpu_that_may_not_use_them(shell: Shell) -> None:
    shell.environment()
    shell.gpu(("NVIDIA GeForce RTX 3090", (8, 6)))
    words = (
        "Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted on non supported HW"
    )
    init = f'import os\n        if "cuda/compat" in os.environ["LD_LIBRARY_PATH"]: raise RuntimeError({words!r})'
    shell.install("torch", "2.13.0+cu130", made.torch(init=init))
    compat, other = shell.folder / "cuda" / "compat", shell.folder / "lib"
    for each in (compat, other):
        each.mkdir(parents=True)
    (compat / "libcuda.so.1").touch()
    clean = shell.doctor(LD_LIBRARY_PATH=str(other))
    provoked = shell.doctor(LD_LIBRARY_PATH=f"{compat}:{other}")
    found = only("cuda-error-804", clean, provoked, f"export LD_LIBRARY_PATH={other}")
    assert provoked.code == 3
    assert f"the loader finds {compat}/libcuda.so.1" in found["evidence"]
    assert shell.doctor(LD_LIBRARY_PATH=f"{compat}:{other}", typed=found["fix"][0]).rules == clean.rules


def test_gpus_that_wait_for_the_fabric_manager(shell: Shell) -> None:
    shell.environment()
    shell.gpu()
    shell.install("torch", "2.13.0+cu130", made.torch())
    clean = shell.doctor()
    words = "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"
    shell.install("torch", "2.13.0+cu130.1", made.torch(init=f"raise RuntimeError({words!r})"))
    provoked = shell.doctor()
    only("cuda-error-802", clean, provoked, "sudo systemctl enable --now nvidia-fabricmanager")
    assert provoked.code == 3


def test_a_container_that_lost_its_gpu(shell: Shell) -> None:
    shell.variables["APPTAINER_CONTAINER"] = APPTAINER
    shell.gpu()
    clean = shell.doctor("--quick")
    shell.gpu(error=999)
    provoked = shell.doctor("--quick")
    only("container-lost-gpu", clean, provoked, "apptainer exec --nv …")
    assert provoked.code == 3


@pytest.mark.skipif(any(Path("/dev").glob("nvidia*")), reason="an NVIDIA GPU is here")
def test_a_container_without_the_gpu_of_its_host(shell: Shell) -> None:
    shell.variables["APPTAINER_CONTAINER"] = APPTAINER
    clean = shell.doctor("--quick")
    host = own_mounts(
        "mount -t tmpfs none /sys/module", "mkdir /sys/module/nvidia", "echo 580.82.07 > /sys/module/nvidia/version"
    )
    found = only("container-without-gpu", clean, shell.doctor("--quick", before=host), "apptainer exec --nv …")
    assert found["evidence"].startswith("the host runs NVIDIA driver 580.82.07")


def test_a_linux_driver_inside_wsl(shell: Shell) -> None:
    release = shell.folder / "osrelease"
    release.write_text("5.15.153.1-microsoft-standard-WSL2\n")
    wsl = own_mounts(f"mount --bind {release} /proc/sys/kernel/osrelease")
    windows, linux = (shell.folder / each for each in ("usr/lib/wsl/lib", "usr/lib/x86_64-linux-gnu"))
    for each in (windows, linux):
        each.mkdir(parents=True)
        (each / "libcuda.so.1").touch()
    clean = shell.doctor("--quick", before=wsl, LD_LIBRARY_PATH=str(windows))
    assert clean.snapshot["system"]["wsl"] is True
    provoked = shell.doctor("--quick", before=wsl, LD_LIBRARY_PATH=str(linux))
    remove = "sudo apt-get remove --purge '^nvidia-.*' '^libnvidia-.*'"
    only("wsl-linux-driver", clean, provoked, remove, "wsl.exe --shutdown")
    assert provoked.code == 3


def test_a_gpu_that_fell_off_the_bus(shell: Shell) -> None:
    clean = shell.doctor("--quick")
    shell.gpu(error=15)
    provoked = shell.doctor("--quick")
    only("gpu-lost", clean, provoked, "sudo reboot")
    assert provoked.code == 3


def test_a_gpu_that_others_use_mostly_and_one_that_is_hidden(shell: Shell) -> None:
    shell.environment()
    shell.gpu()
    clean = shell.doctor("--quick")
    only("gpus-hidden", clean, shell.doctor("--quick", CUDA_VISIBLE_DEVICES="-1"), "unset CUDA_VISIBLE_DEVICES")
    shown = shell.doctor("--quick", CUDA_VISIBLE_DEVICES="-1", typed="unset CUDA_VISIBLE_DEVICES")
    assert shown.rules == clean.rules
    shell.gpu(used_gib=60)
    found = only("gpu-memory-used-by-others", clean, shell.doctor("--quick"), "nvidia-smi")
    assert "64.4 GB of 85.9 GB" in found["evidence"]


@pytest.mark.parametrize(
    ("rule", "gpu", "bad", "good", "fix"),
    [
        ("known-bad-cublas", BLACKWELL, "13.5.1.27", "13.4.0.1", '-m pip install "nvidia-cublas==13.4.0.1"'),
        (
            "cublas-concurrent-streams",
            ("NVIDIA B200", (10, 0)),
            "13.1.0.3",
            "13.1.1.3",
            f"{CREATE} torch --accelerator cu130",
        ),
    ],
)
def test_a_cublas_that_is_known_to_be_wrong(
    shell: Shell, rule: str, gpu: tuple[str, tuple[int, int]], bad: str, good: str, fix: str
) -> None:
    shell.environment()
    shell.gpu(gpu)
    shell.install("nvidia-cublas", good)
    clean = shell.doctor()
    shell.install("nvidia-cublas", bad)
    provoked = shell.doctor()
    if fix.startswith("-m pip"):
        fix = f"{shell.python} {fix}"
    only(rule, clean, provoked, fix)
    assert provoked.code == (3 if rule == "known-bad-cublas" else 0)
