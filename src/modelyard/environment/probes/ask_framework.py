"""Import one framework and say what it reaches: ``python -X faulthandler ask_framework.py torch``.

It runs alone in the Python that is asked, which may be old and need not have modelyard: standard library only, Python
3.9. What it knows so far goes out as one marked line of JSON after each step, so that a crash or a hang later does not
take it along; ``step`` names what comes next.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
import re
import sys
import traceback
from contextlib import suppress
from typing import Any

MARK = "@modelyard@"  # the same as in packages.py
MAX_CHARACTERS = 1500
LIBRARY = re.compile(r"(libcud|libcublas|libnccl|libgomp|libiomp5|libomp|libamdhip64|librccl|libmiopen)")
ADVICE = ("CUDA kernel errors might", "HIP kernel errors might", "For debugging consider", "Compile with `TORCH_USE")

# A question must not take the memory of a GPU on which others compute; what the person has set stays.
POLITE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}

FACTS: dict[str, Any] = {}


def tell(step: str, **facts: Any) -> None:
    """Send all facts so far. Straight to the descriptor, since frameworks and their C code also print."""
    FACTS.update(facts, step=step)
    with suppress(Exception):
        sys.stdout.flush()
    os.write(1, f"\n{MARK}{json.dumps(FACTS)}\n".encode())


def words(error: BaseException) -> str:
    """Type and first lines of an error, in the framework's own words, without the advice that torch always adds."""
    lines = [each for each in str(error).splitlines() if each.strip() and not each.startswith(ADVICE)]
    return f"{type(error).__name__}: {chr(10).join(lines[:3])}".strip()[:MAX_CHARACTERS]


def problem(check: str, error: BaseException) -> None:
    FACTS.setdefault("problems", []).append(f"{check}: {words(error)}")


def mapped_libraries() -> list[str]:
    """CUDA, cuDNN, NCCL, ROCm and OpenMP libraries in this process, in order of their paths."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            paths = {line.split(None, 5)[5].strip() for line in file if line.count("/") > 0}
    except (OSError, IndexError):
        return []
    plain = {path[: -len(" (deleted)")] if path.endswith(" (deleted)") else path for path in paths}
    return sorted(path for path in plain if LIBRARY.match(path.rpartition("/")[2]))


def there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def ask_torch(torch: Any) -> None:
    build = torch.version
    cuda, hip, xpu = (getattr(build, name, None) for name in ("cuda", "hip", "xpu"))
    kind = "cuda" if cuda else "rocm" if hip else "xpu" if xpu else "cpu"
    tell("its GPUs", built_for=kind, num_threads=torch.get_num_threads(), devices=["cpu"])
    if cuda or hip:
        flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()  # get_arch_list() is empty without a GPU
        tell("its GPUs", architectures=flags.split() if flags else list(torch.cuda.get_arch_list()))
        ask_torch_gpus(torch)
    with suppress(AttributeError):
        if torch.xpu.is_available():
            FACTS["devices"] += [f"xpu:{i} {torch.xpu.get_device_name(i)}" for i in range(torch.xpu.device_count())]
    if sys.platform == "darwin" and getattr(torch.backends, "mps", None) is not None:
        try:
            torch.zeros(1, device="mps")
            FACTS["devices"].append("mps")
        except Exception as error:
            FACTS["device_error"] = words(error)
    if there("numpy"):
        tell("exchanging an array with NumPy")
        try:
            torch.zeros(1).numpy()
        except Exception as error:
            problem("torch-numpy", error)
    if there("torchvision"):
        tell("calling torchvision.ops.nms")
        try:
            boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
            kept = importlib.import_module("torchvision.ops").nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
            if kept.tolist() != [0, 2]:
                raise ArithmeticError(f"nms kept the boxes {kept.tolist()}, not [0, 2]")
        except Exception as error:
            problem("torchvision-nms", error)
    if there("torchaudio"):
        tell("importing torchaudio")
        try:
            importlib.import_module("torchaudio")
        except Exception as error:
            problem("torchaudio-import", error)


def ask_torch_gpus(torch: Any) -> None:
    """Name the GPUs, and compute on the first: only an operation shows that the build has kernels for it."""
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
        FACTS["devices"] += [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(count)]
    except Exception as error:
        FACTS["device_error"] = words(error)
        return
    tell("computing on cuda:0")
    try:
        square = torch.ones(4, 4, device="cuda:0")
        if (square @ square).sum().item() != 64.0:
            raise ArithmeticError("the sum of ones(4, 4) @ ones(4, 4) is not 64")
    except Exception as error:
        problem("cuda-compute", error)


def ask_tensorflow(tensorflow: Any) -> None:
    build = dict(tensorflow.sysconfig.get_build_info())
    kind = "cuda" if build.get("is_cuda_build") else "rocm" if build.get("is_rocm_build") else "cpu"
    threads = tensorflow.config.threading.get_intra_op_parallelism_threads() or None  # 0: it decides itself
    tell("its GPUs", built_for=kind, num_threads=threads, devices=["cpu"])
    tell("its GPUs", architectures=[str(each) for each in build.get("cuda_compute_capabilities", ())])
    for device in tensorflow.config.list_physical_devices():
        if device.device_type != "CPU":
            details = tensorflow.config.experimental.get_device_details(device) if device.device_type == "GPU" else {}
            label = "cuda" if device.device_type == "GPU" else device.device_type.lower()
            name = f"{label}:{device.name.rpartition(':')[2]} {details.get('device_name', '')}"
            FACTS["devices"].append(name.strip())


def jax_plugins() -> list[str]:
    try:
        return [each.name for each in pkgutil.iter_modules(importlib.import_module("jax_plugins").__path__)]
    except ImportError:
        return []


def ask_jax(jax: Any) -> None:
    tell("its devices", devices=["cpu"])
    try:
        FACTS["backend"] = jax.default_backend()
        devices = [each for each in jax.devices() if each.platform != "cpu"]
    except Exception as error:
        FACTS["device_error"] = words(error)
        return
    for each in devices:
        label = "cuda" if each.platform == "gpu" else each.platform
        FACTS["devices"].append(f"{label}:{each.id} {each.device_kind}".strip())
    if not devices:  # it falls back silently; asked for by name, it says why
        for platform in ("cuda", "rocm"):
            if any(name.startswith(f"xla_{platform}") for name in jax_plugins()):
                try:
                    jax.devices(platform)
                except Exception as error:
                    FACTS["device_error"] = words(error)
    tell("computing a sum")
    try:
        if float(jax.numpy.ones((4, 4)).sum()) != 16.0:
            raise ArithmeticError("the sum of ones((4, 4)) is not 16")
    except Exception as error:
        problem("jax-compute", error)


def ask_keras(keras: Any) -> None:
    FACTS["backend"] = str(keras.backend.backend())


def ask_transformers(transformers: Any) -> None:
    seen = []
    for name in ("torch", "tf", "flax"):
        with suppress(AttributeError):
            if getattr(transformers.utils, f"is_{name}_available")():
                seen.append({"tf": "tensorflow", "flax": "jax"}.get(name, name))
    FACTS["backend"] = ", ".join(seen)


ASK = {
    "torch": ask_torch,
    "tensorflow": ask_tensorflow,
    "jax": ask_jax,
    "keras": ask_keras,
    "transformers": ask_transformers,
}


def main(name: str) -> None:
    # Python puts the folder of this file first, where others have names that a framework may look for.
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [each for each in sys.path if os.path.abspath(each) != here]  # noqa: PTH100
    for variable, value in POLITE.items():
        os.environ.setdefault(variable, value)
    tell(f"importing {name}")
    try:
        module = importlib.import_module(name)
        if getattr(module, "__file__", None) is None:
            raise ImportError(f"{name} is a folder without code: {list(getattr(module, '__path__', []))}")
    except BaseException:  # a framework may even call sys.exit while it is imported
        said = traceback.format_exc().strip()
        tell("", outcome="failed", error=said[-MAX_CHARACTERS:], libraries=mapped_libraries())
        return
    version = getattr(module, "__version__", "")
    tell(f"asking {name}", version=str(version))
    try:
        ASK[name](module)
    except Exception as error:
        problem(f"{name}-facts", error)
    tell("", outcome="ok", libraries=mapped_libraries())


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)  # some frameworks crash or wait while they are taken down; nobody asked for that
