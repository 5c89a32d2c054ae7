"""Frameworks of a few lines that treat the machine as the real ones do: the files of their wheels.

They ask NVML for the GPU, as far as this shell has a binding of it, and fail with the words of the real ones.
"""

from __future__ import annotations

TORCH_VERSION = """\
from typing import Optional
__version__ = {version!r}
cuda: Optional[str] = {cuda!r}
hip: Optional[str] = {hip!r}
"""
TORCH = """\
import types
import torch.version
from torch.version import __version__
FLAGS = {flags!r}
{first}
class Matrix:
    __matmul__ = lambda self, other: self
    sum = lambda self: self
    item = lambda self: 64.0

def ones(*shape, device):
    if not version.hip and "sm_%d%d" % tuple(nvml().nvmlDeviceGetCudaComputeCapability(0)) not in FLAGS.split():
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
    return Matrix()

def nvml():
    import pynvml
    return pynvml

class cuda:
    def init():
        if version.hip:
            return
        try:
            driver = nvml().nvmlSystemGetCudaDriverVersion_v2()
        except ImportError:
            raise RuntimeError("Found no NVIDIA driver on your system.")
        if driver // 1000 < int(version.cuda.split(".")[0]):
            raise RuntimeError(f"The NVIDIA driver on your system is too old (found version {{driver}}).")
        {init}
    device_count = staticmethod(lambda: 1)
    get_device_name = staticmethod(lambda index: "AMD" if version.hip else nvml().nvmlDeviceGetName(index))

class xpu:
    is_available = staticmethod(lambda: False)

_C = types.SimpleNamespace(_cuda_getArchFlags=lambda: FLAGS)
tensor = lambda data: data
get_num_threads = lambda: {threads}
"""
CU130 = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"
NMS = """\
class Kept(list):
    tolist = lambda self: list(self)
def nms(boxes, scores, overlap):
    return Kept([0, 2])
"""
NO_NMS = "def nms(*given): raise RuntimeError('operator torchvision::nms does not exist')\n"


def torch(
    version: str = "2.13.0+cu130",
    cuda: str | None = "13.0",
    hip: str | None = None,
    flags: str = CU130,
    first: str = "",
    init: str = "pass",
    threads: str = "1",
) -> dict[str, bytes | str]:
    """`first` runs at import, `init` when the GPU is asked for."""
    text = TORCH.format(flags=flags, first=first, init=init, threads=threads)
    return {"torch/version.py": TORCH_VERSION.format(version=version, cuda=cuda, hip=hip), "torch/__init__.py": text}


TENSORFLOW = """\
import sys, types
__version__ = {version!r}
CPU, GPU = (types.SimpleNamespace(device_type=each, name=f"/physical_device:{{each}}:0") for each in ("CPU", "GPU"))
FOUND = True
{first}
sysconfig = types.SimpleNamespace(get_build_info=lambda: {{"is_cuda_build": True, "cuda_version": "12.5.1"}})
config = types.SimpleNamespace(
    threading=types.SimpleNamespace(get_intra_op_parallelism_threads=lambda: 0),
    list_physical_devices=lambda: [CPU] + [GPU] * FOUND,
    experimental=types.SimpleNamespace(get_device_details=lambda device: {{"device_name": "GPU"}}),
)
"""
BUILD_INFO = (
    "build_info = collections.OrderedDict([('cuda_compute_capabilities', ['sm_60', 'compute_90']), "
    "('cuda_version', '12.5.1'), ('cudnn_version', '9'), ('is_cuda_build', True), ('is_rocm_build', False)])\n"
)


def tensorflow(version: str = "2.21.0", first: str = "") -> dict[str, bytes | str]:
    """A CUDA build; `first` runs at import."""
    return {
        "tensorflow/__init__.py": TENSORFLOW.format(version=version, first=first),
        "tensorflow/python/platform/build_info.py": BUILD_INFO,
    }


JAX = """\
import importlib.util, types
__version__ = {version!r}
GPU = importlib.util.find_spec("jax_plugins") is not None
default_backend = lambda: "gpu" if GPU else "cpu"
def devices(platform=None):
    kind = "gpu" if GPU else "cpu"
    return [types.SimpleNamespace(platform=kind, id=0, device_kind="H100" if GPU else "cpu")]
numpy = types.SimpleNamespace(ones=lambda shape: types.SimpleNamespace(sum=lambda: 16.0))
"""


def jax(version: str = "0.10.2") -> dict[str, bytes | str]:
    """It computes on the GPU if a plugin lies beside it."""
    return {"jax/__init__.py": JAX.format(version=version)}


JAX_PLUGIN: dict[str, bytes | str] = {"jax_plugins/xla_cuda13/__init__.py": ""}
