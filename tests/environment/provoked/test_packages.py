"""Packages that do not go together: real wheels in real environments, installed by uv; libraries by a real loader."""

from __future__ import annotations

import importlib.metadata
import sysconfig
from pathlib import Path

import pytest
from tests.environment.provoked import made_frameworks as made
from tests.environment.provoked.shells import Shell, compiled, only

CREATE = "modelyard env create --framework"


def library(folder: Path, name: str, *flags: str) -> bytes:
    """The bytes of a shared library with nothing in it."""
    return compiled("int nothing;", folder / name, f"-Wl,-soname,{name}", *flags).read_bytes()


def test_torchvision_of_another_build(shell: Shell) -> None:
    shell.environment()
    shell.gpu()
    shell.install("torch", "2.13.0+cu130", made.torch())
    shell.install("torchvision", "0.28.0+cu130", {"torchvision/__init__.py": "", "torchvision/ops.py": made.NMS})
    clean = shell.doctor()
    shell.install("torchvision", "0.28.0+cpu", {"torchvision/__init__.py": "", "torchvision/ops.py": made.NO_NMS})
    provoked = shell.doctor()
    found = only("torchvision-mismatch", clean, provoked, f"{CREATE} torch --accelerator cu130")
    assert provoked.code == 3
    assert "operator torchvision::nms does not exist" in found["evidence"]


def test_two_wheels_of_cudnn(shell: Shell) -> None:
    shell.environment()
    shell.install("nvidia-cudnn-cu13", "9.10.0", {"nvidia/cudnn/lib/libcudnn.so.9": "for CUDA 13"})
    clean = shell.doctor()
    shell.install("nvidia-cudnn-cu12", "9.10.0", {"nvidia/cudnn/lib/libcudnn.so.9": "for CUDA 12"})
    provoked = shell.doctor()
    found = only("cuda-12-and-13-together", clean, provoked, f"{CREATE} torch --accelerator cpu")
    assert provoked.code == 3
    assert found["evidence"] == "installed: nvidia-cudnn-cu12, nvidia-cudnn-cu13; files that both own: 1"


def test_two_packages_that_own_one_file(shell: Shell) -> None:
    shell.environment()
    shell.install("tensorflow", "2.21.0", made.tensorflow())
    clean = shell.doctor()
    shell.install("tensorflow-cpu", "2.21.0", made.tensorflow(first="FOUND = False"))
    found = only("files-owned-twice", clean, shell.doctor(), f"{CREATE} torch --accelerator cpu")
    assert found["evidence"].startswith("tensorflow/__init__.py belongs to tensorflow, tensorflow-cpu")


def test_a_system_cuda_in_the_way(shell: Shell) -> None:
    """torch's library asks for cuDNN and knows where its own lies; LD_LIBRARY_PATH stands before that."""
    build = shell.folder / "build"
    own = library(build, "libcudnn.so.9")
    run_path = "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../nvidia/cudnn/lib"
    torch = library(build, "libtorch.so", "-Wl,--no-as-needed", run_path, str(build / "libcudnn.so.9"))
    shell.environment()
    first = "import ctypes, pathlib\nctypes.CDLL(pathlib.Path(__file__).with_name('libtorch.so'))"
    files = made.torch("2.13.0+cpu", None, first=first) | {"torch/libtorch.so": torch}
    shell.install("torch", "2.13.0+cpu", files)
    shell.install("nvidia-cudnn-cu13", "9.10.0", {"nvidia/cudnn/lib/libcudnn.so.9": own})
    system, other = shell.folder / "cuda-12.4" / "lib64", shell.folder / "cuda-tools"
    for each in (system, other):
        each.mkdir(parents=True)
    clean = shell.doctor("--deep", LD_LIBRARY_PATH=str(other))
    [used] = clean.snapshot["installed"]["frameworks"][0]["libraries"]
    assert used.endswith("site-packages/nvidia/cudnn/lib/libcudnn.so.9")
    library(system, "libcudnn.so.9")
    provoked = shell.doctor(LD_LIBRARY_PATH=f"{system}:{other}")
    found = only("system-cuda-in-the-way", clean, provoked, f"export LD_LIBRARY_PATH={other}")
    assert found["evidence"].startswith(f"{system}/libcudnn.so.9 was loaded")
    assert shell.doctor(LD_LIBRARY_PATH=f"{system}:{other}", typed=found["fix"][0]).rules == clean.rules


# What code compiled for NumPy 1 does when it is imported: it asks for the table of functions under its old name.
NUMPY_1_EXTENSION = """
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", NULL, -1, NULL};
PyMODINIT_FUNC PyInit__C(void) {
    PyObject *numpy = PyImport_ImportModule("numpy.core._multiarray_umath");
    PyObject *table = numpy ? PyObject_GetAttrString(numpy, "_ARRAY_API") : NULL;
    if (table == NULL) {
        PyErr_Print();
        PyErr_SetString(PyExc_ImportError, "numpy.core.multiarray failed to import");
        return NULL;
    }
    return PyModule_Create(&definition);
}
"""


def test_code_for_numpy_1_meets_numpy_2(shell: Shell) -> None:
    """The real NumPy 2 refuses a compiled module; its own words are the evidence."""
    numpy = pytest.importorskip("numpy")
    if numpy.__version__.startswith("1."):
        pytest.skip("NumPy 1 here")
    headers = sysconfig.get_path("include")
    if not (Path(headers) / "Python.h").exists():
        pytest.skip("no headers of Python here")
    extension = compiled(NUMPY_1_EXTENSION, shell.folder / "build" / "_C.so", f"-I{headers}")
    site = shell.environment()
    first = "try:\n    from torch import _C\nexcept ImportError:\n    pass"
    files = made.torch("2.2.0+cpu", None, first=first) | {"torch/_C.so": extension.read_bytes()}
    shell.install("torch", "2.2.0+cpu", files)
    shell.install("numpy", "1.26.4", {"numpy/core/_multiarray_umath.py": "_ARRAY_API = object()"})
    clean = shell.doctor("--deep")
    shell.uninstall("numpy")
    installed = Path(importlib.metadata.distribution("numpy").locate_file(""))
    for each in (*installed.glob("numpy"), *installed.glob("numpy.libs"), *installed.glob("numpy-*.dist-info")):
        (site / each.name).symlink_to(each)
    provoked = shell.doctor()
    found = only("numpy-2-abi", clean, provoked, f"{CREATE} torch")
    assert provoked.code == 3
    assert f'{shell.python} -m pip install "numpy<2"' in found["fix"][1]
    assert found["evidence"].startswith(f"NumPy {numpy.__version__};")
    assert "compiled using NumPy 1.x" in found["evidence"]


def test_transformers_5_with_tensorflow_only(shell: Shell) -> None:
    shell.environment()
    shell.install("tensorflow", "2.21.0")
    shell.install("transformers", "5.23.0")
    shell.install("torch", "2.13.0+cpu", made.torch("2.13.0+cpu", None))
    clean = shell.doctor()
    shell.uninstall("torch")
    found = only("transformers-5-without-torch", clean, shell.doctor(), f"{CREATE} torch --accelerator cpu")
    assert f"{CREATE} tensorflow" in found["fix"][1]


def test_keras_3_with_the_tensorflow_code_of_transformers_4(shell: Shell) -> None:
    shell.environment()
    for name, version in (("tensorflow", "2.21.0"), ("keras", "3.15.1"), ("transformers", "4.57.1")):
        shell.install(name, version)
    shell.install("tf-keras", "2.21.0")
    clean = shell.doctor()
    shell.uninstall("tf-keras")
    provoked = shell.doctor()
    only("keras-3-with-transformers-tf", clean, provoked, f'{shell.python} -m pip install "tf-keras~=2.21.0"')
    assert provoked.code == 3


def test_a_release_candidate_and_an_old_release(shell: Shell) -> None:
    shell.environment()
    shell.install("tensorflow", "2.21.0")
    shell.install("jax", "0.10.2")
    clean = shell.doctor()
    shell.install("tensorflow", "2.22.0rc1")
    only("prerelease-framework", clean, shell.doctor(), f"{CREATE} tensorflow --python 3.12")
    shell.install("tensorflow", "2.21.0")
    shell.install("jax", "0.5.2")
    found = only("framework-below-floor", clean, shell.doctor(), f"{CREATE} jax")
    assert found["evidence"].startswith("jax 0.5.2;")


def test_two_openmp_runtimes(shell: Shell) -> None:
    build = shell.folder / "build"
    shell.environment()
    first = (
        "import ctypes, pathlib, sys\n"
        "for each in ('torch/lib/libgomp.so.1', '../../libiomp5.so'):\n"
        "    file = pathlib.Path(__file__).parents[1] / each\n"
        "    file.exists() and ctypes.CDLL(file)"
    )
    gnu: dict[str, bytes | str] = {"torch/lib/libgomp.so.1": library(build, "libgomp.so.1")}
    shell.install("torch", "2.13.0+cpu", made.torch("2.13.0+cpu", None, first=first) | gnu)
    clean = shell.doctor("--deep")
    assert len(clean.snapshot["installed"]["frameworks"][0]["libraries"]) == 1
    intel = "intel_openmp-2025.1.0.data/data/lib/libiomp5.so"  # beside site-packages, as the real one has it
    shell.install("intel-openmp", "2025.1.0", {intel: library(build, "libiomp5.so")})
    found = only("two-openmp-runtimes", clean, shell.doctor(), f"{CREATE} torch")
    assert "libgomp.so.1" in found["evidence"]
    assert "libiomp5.so" in found["evidence"]
    hidden = shell.doctor("--quick", KMP_DUPLICATE_LIB_OK="TRUE")
    only("duplicate-openmp-allowed", clean, hidden, "unset KMP_DUPLICATE_LIB_OK")
    mended = shell.doctor("--quick", KMP_DUPLICATE_LIB_OK="TRUE", typed="unset KMP_DUPLICATE_LIB_OK")
    assert mended.rules == clean.rules


@pytest.mark.parametrize(
    ("rule", "code", "said"),
    [
        ("framework-crashed", "import ctypes; ctypes.string_at(0)", "SIGSEGV while importing torch"),
        ("framework-import-failed", "import ctypes; ctypes.CDLL('libcudart.so.99')", "libcudart.so.99"),
    ],
)
def test_a_torch_that_does_not_start(shell: Shell, rule: str, code: str, said: str) -> None:
    shell.environment()
    shell.install("torch", "2.13.0+cpu", made.torch("2.13.0+cpu", None))
    clean = shell.doctor("--deep")
    shell.install("torch", "2.13.1+cpu", made.torch("2.13.1+cpu", None, first=code))
    provoked = shell.doctor("--deep")
    found = only(rule, clean, provoked, f"{CREATE} torch")
    assert provoked.code == 3
    assert said in found["evidence"]
    assert f'{shell.python} -m pip install --force-reinstall --no-deps "torch==2.13.1"' in found["fix"][1]
