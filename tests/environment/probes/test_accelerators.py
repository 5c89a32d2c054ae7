"""GPUs of every make, from what their drivers show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.environment.machines import GIB, FakeGpu, FakeHost, NvmlError, fake_nvml

from modelyard.environment.probes import nvidia
from modelyard.environment.probes.accelerators import amd, apple, gfx_name, intel, nvidia_on_bus, pci_devices, tpu
from modelyard.environment.snapshot import Snapshot


def test_a_healthy_server_with_nvlink() -> None:
    links = [1, 1, 1, 1, 0, NvmlError(2, "Invalid Argument")]

    class Links(list[object]):
        def __getitem__(self, index: object) -> object:
            value = super().__getitem__(index)  # type: ignore[index]
            if isinstance(value, Exception):
                raise value
            return value

    gpu = FakeGpu(name=b"NVIDIA H100 80GB HBM3", total=80 * GIB, used=3 * GIB, capability=(9, 0), mig=(0, 0))
    gpu.nvlinks = Links(links)
    found = nvidia.driver(FakeHost(nvml_module=fake_nvml(gpu, FakeGpu(mig=(1, 1)))))
    assert (found.driver_version, found.cuda_version, found.nvml_error) == ("580.82.07", "13.0", None)
    first, second = found.gpus
    assert (first.name, first.capability, first.nvlinks, first.mig) == ("NVIDIA H100 80GB HBM3", "9.0", 4, False)
    assert (first.total_bytes, first.free_bytes, first.others_bytes) == (80 * GIB, 77 * GIB, 3 * GIB)
    assert (second.capability, second.nvlinks, second.mig, second.index) == ("8.9", None, True, 1)


@pytest.mark.parametrize(
    ("number", "text"),
    [(9, "Driver Not Loaded"), (12, "NVML Shared Library Not Found"), (18, "Driver/library version mismatch")],
)
def test_an_error_of_the_driver_is_kept_with_its_number(number: int, text: str) -> None:
    found = nvidia.driver(FakeHost(nvml_module=fake_nvml(init=NvmlError(number, text))))
    assert (found.nvml_error, found.nvml_message, found.gpus) == (number, text, ())


def test_a_container_that_lost_its_gpus_answers_at_first() -> None:
    found = nvidia.driver(FakeHost(nvml_module=fake_nvml(count=NvmlError(999, "Unknown Error"))))
    assert (found.nvml_error, found.driver_version, found.gpus) == (999, "580.82.07", ())


def test_a_lost_gpu_does_not_hide_the_others() -> None:
    lost = FakeGpu(handle=NvmlError(15, "GPU is lost"))
    found = nvidia.driver(FakeHost(nvml_module=fake_nvml(lost, FakeGpu())))
    assert found.nvml_error == 15 and [gpu.index for gpu in found.gpus] == [1]


def test_questions_that_fail_leave_only_their_own_field_empty() -> None:
    gpu = FakeGpu(name=NvmlError(3), capability=NvmlError(3))
    found = nvidia.driver(FakeHost(nvml_module=fake_nvml(gpu, driver=NvmlError(3), cuda=NvmlError(3))))
    assert (found.driver_version, found.cuda_version, found.gpus[0].name, found.gpus[0].capability) == ("", "", "", "")
    assert found.gpus[0].total_bytes == 24 * GIB


def test_no_binding_is_said() -> None:
    assert "nvidia-ml-py" in nvidia.driver(FakeHost()).nvml_message


def test_libcuda_is_the_first_that_the_loader_finds() -> None:
    cache = "12 libs found\n\tlibcuda.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so.1\n"
    compat = "/usr/local/cuda/compat"
    files = {f"{compat}/libcuda.so.1": "", "/usr/lib/wsl/lib/libcuda.so.1": ""}
    host = FakeHost(commands={"/sbin/ldconfig": cache}, files=files)
    assert nvidia.files(host).libcuda_path == "/lib/x86_64-linux-gnu/libcuda.so.1"
    host.variables["LD_LIBRARY_PATH"] = f"/opt/x:{compat}"
    assert nvidia.files(host).libcuda_path == f"{compat}/libcuda.so.1"
    assert nvidia.files(FakeHost(files=files)).libcuda_path == "/usr/lib/wsl/lib/libcuda.so.1"


def test_files_of_the_driver_and_nvcc() -> None:
    files = {"/sys/module/nvidia/version": "570.1\n", "/dev/nvidia0": "", "/dev/nvidiactl": "", "/dev/null": ""}
    said = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.4, V12.4.131\n"
    host = FakeHost(files=files, commands={"nvcc": said})
    found = nvidia.files(host)
    assert (found.kernel_module_version, found.device_nodes) == ("570.1", ("/dev/nvidia0", "/dev/nvidiactl"))
    assert nvidia.toolkit_version(host) == "12.4" and nvidia.toolkit_version(FakeHost()) == ""


def test_a_waking_driver_is_waited_for_only_where_there_is_one() -> None:
    assert nvidia.nvml_seconds(FakeHost()) == 1.5
    assert nvidia.nvml_seconds(FakeHost(files={"/sys/module/nvidia/version": "1"})) == 10


@pytest.mark.parametrize(
    ("version", "name"),
    [(110000, "gfx1100"), (90402, "gfx942"), (90010, "gfx90a"), (90012, "gfx90c"), (120001, "gfx1201"),
     (80003, "gfx803"), (110501, "gfx1151"), (0, ""), (10**18, "")],
)  # fmt: skip
def test_names_of_amd_architectures(version: int, name: str) -> None:
    assert gfx_name(version) == name


def kfd_node(number: int, version: int, simd_count: int, heap: int = 1, size: int = 24 * GIB) -> dict[str, str]:
    folder = f"/sys/class/kfd/kfd/topology/nodes/{number}"
    return {
        f"{folder}/properties": f"cpu_cores_count 0\nsimd_count {simd_count}\ngfx_target_version {version}\n"
        f"drm_render_minor {127 + number}\n",
        f"{folder}/mem_banks/0/properties": f"heap_type {heap}\nsize_in_bytes {size}\n",
        f"{folder}/name": "navi31\n",
    }


def test_amd_gpus_are_the_nodes_with_compute_units() -> None:
    files = {**kfd_node(0, 0, 0, heap=0), **kfd_node(2, 110000, 192), **kfd_node(10, 110003, 8, heap=0)}
    files |= {"/dev/kfd": "", "/sys/module/amdgpu/version": "", "/opt/rocm/.info/version": "6.4.1-83\n"}
    device = "/sys/class/drm/renderD129/device"
    files |= {f"{device}/mem_info_vram_total": f"{24 * GIB}", f"{device}/mem_info_vram_used": f"{GIB}"}
    found = amd(FakeHost(files=files, denied={"/dev/kfd"}, variables={"HSA_OVERRIDE_GFX_VERSION": "11.0.0"}))
    assert (found.driver, found.kfd_exists, found.kfd_accessible) == (True, True, False)
    assert (found.rocm_version, found.override) == ("6.4.1", "11.0.0")
    large, small = found.gpus
    assert (large.index, large.capability, large.name, large.integrated) == (0, "gfx1100", "navi31", False)
    assert (large.total_bytes, large.free_bytes, large.others_bytes) == (24 * GIB, 23 * GIB, GIB)
    assert (small.index, small.capability, small.integrated, small.total_bytes) == (1, "gfx1103", True, None)


def test_no_amd_stack() -> None:
    found = amd(FakeHost())
    assert (found.driver, found.kfd_exists, found.kfd_accessible, found.gpus) == (False, False, None, ())


def test_intel_gpus_by_vendor_and_address() -> None:
    files, links = {}, {}
    for card, vendor, identifier, address in (
        (0, "0x8086", "0x46a6", "0000:00:02.0"), (1, "0x8086", "0xe20b", "0000:03:00.0"), (2, "0x10de", "0x2684", "x"),
    ):  # fmt: skip
        folder = f"/sys/class/drm/card{card}/device"
        files |= {f"{folder}/vendor": f"{vendor}\n", f"{folder}/device": f"{identifier}\n"}
        links[folder] = f"/sys/devices/pci0000:00/{address}"
    files["/sys/class/drm/card0-HDMI-A-1/device/vendor"] = "0x8086\n"
    inside, arc = intel(FakeHost(files=files, links=links))
    assert (inside.integrated, arc.integrated, arc.name, arc.index) == (True, False, "Intel GPU 0xe20b", 1)


def test_apple_silicon_also_behind_a_translated_python() -> None:
    mac = FakeHost(name="darwin", machine="x86_64", release="14.5")
    gpu = apple(mac, "Apple M3 Max", 64 * GIB)
    assert gpu is not None and (gpu.name, gpu.total_bytes, gpu.integrated) == ("Apple M3 Max", 64 * GIB, True)
    assert apple(mac, "Intel(R) Core(TM) i7", 16 * GIB) is None
    assert apple(FakeHost(machine="aarch64"), "Neoverse-N1", None) is None


def test_tpus_by_environment_or_by_chips_on_the_bus() -> None:
    chips = {
        f"/sys/bus/pci/devices/0000:0{index}/modalias": "pci:v00001AE0d00000063sv00sd00bc12sc00i00\n"
        for index in range(4)
    }
    host = FakeHost(files=chips)
    assert tpu(FakeHost(variables={"TPU_ACCELERATOR_TYPE": "v5litepod-8"}), []) == "v5litepod-8"
    assert tpu(host, pci_devices(host)) == "v5e (4 chips)"
    assert tpu(FakeHost(), [("1AE0", "0042", "02")]) == ""  # Google's network card


def test_an_nvidia_card_without_a_driver_is_seen_on_the_bus() -> None:
    modalias = "pci:v000010DEd00002684sv000010DEsd0000165Bbc03sc00i00\n"
    audio = "pci:v000010DEd000022BAsv000010DEsd0000165Bbc04sc03i00\n"
    host = FakeHost(files={"/sys/bus/pci/devices/1/modalias": modalias, "/sys/bus/pci/devices/2/modalias": audio})
    assert nvidia_on_bus(pci_devices(host)) == 1


PLAYED = """
class NVMLError(Exception):
    def __init__(self, value):
        super().__init__("Driver/library version mismatch")
        self.value = value
def nvmlInit():
    {init}
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return b"535.183.01"
def nvmlSystemGetCudaDriverVersion_v2(): return 12020
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(handle): return "NVIDIA RTX A6000"
def nvmlDeviceGetCudaComputeCapability(handle): return (8, 6)
class Memory: total, free, used = 48 << 30, 40 << 30, 8 << 30
def nvmlDeviceGetMemoryInfo(handle): return Memory
"""
PROGRAM = (
    "from modelyard.environment.host import Host\nfrom modelyard.environment.probes import take\n"
    "print(take(Host(), ask='never', network=False).model_dump_json())"
)


@pytest.mark.parametrize(
    ("init", "error", "num_gpus"),
    [("return None", None, 1), ("raise NVMLError(18)", 18, 0), ("import time; time.sleep(60)", None, 0)],
)
def test_a_driver_played_by_a_module_on_the_path(tmp_path: Path, init: str, error: int | None, num_gpus: int) -> None:
    """A whole process meets a GPU, a broken driver, or one that hangs, which costs no more than its limit."""
    (tmp_path / "pynvml.py").write_text(PLAYED.format(init=init))
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True, check=True, timeout=30
    )
    snapshot = Snapshot.model_validate_json(done.stdout)
    found = snapshot.accelerators.nvidia
    assert found.nvml_error == error and len(found.gpus) == num_gpus
    if num_gpus:
        assert (found.driver_version, found.cuda_version, found.gpus[0].capability) == ("535.183.01", "12.2", "8.6")
    if "sleep" in init:
        assert [each.problem for each in snapshot.unread if each.probe == "nvidia"] == ["no answer within 1.5 s"]
