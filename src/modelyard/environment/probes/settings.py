"""Settings of the person: conda, the hub, proxies, and the variables that change behaviour.

Where pip and uv look is read in sources.py, which also uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from modelyard.environment.host import Host
from modelyard.environment.probes.system import hub_home
from modelyard.environment.redaction import plain_address
from modelyard.environment.snapshot import IndexSettings

# Only these variables are ever kept. None of them holds a secret.
HARMLESS = (
    "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "CONDA_DEFAULT_ENV", "CONDA_PREFIX", "DYLD_LIBRARY_PATH",
    "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HIP_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "JAX_ENABLE_X64",
    "JAX_PLATFORMS", "JAX_PLATFORM_NAME", "KERAS_BACKEND", "KERAS_HOME", "KMP_AFFINITY", "KMP_DUPLICATE_LIB_OK",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "MKL_NUM_THREADS", "MKL_THREADING_LAYER", "MODELYARD_CACHE",
    "MODELYARD_ENVIRONMENTS", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ONEAPI_DEVICE_SELECTOR",
    "OPENBLAS_NUM_THREADS", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONPATH", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK", "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
    "ROCR_VISIBLE_DEVICES", "TF_ENABLE_ONEDNN_OPTS", "TF_FORCE_GPU_ALLOW_GROWTH", "TF_USE_LEGACY_KERAS", "TMPDIR",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TPU_VISIBLE_CHIPS", "TRANSFORMERS_OFFLINE", "USE_JAX", "USE_TF",
    "USE_TORCH", "UV_LINK_MODE", "UV_PYTHON_PREFERENCE", "UV_TORCH_BACKEND", "VIRTUAL_ENV", "XLA_CLIENT_MEM_FRACTION",
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_ALLOCATOR", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE",
    "ZE_AFFINITY_MASK",
)  # fmt: skip
MAX_VALUE_LETTERS = 4000
TRUE = frozenset(("1", "true", "yes", "on"))
CHANNELS = ("channels", "default_channels")


def proxies(variables: Mapping[str, str]) -> dict[str, str]:
    """HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; the lower-case spelling wins, as it does in most programs."""
    found = {}
    for name in ("http", "https", "all", "no"):
        value = variables.get(f"{name}_proxy") or variables.get(f"{name.upper()}_PROXY")
        if value:
            found[name] = value if name == "no" else plain_address(value)
    return found


def hub(variables: Mapping[str, str], home: str) -> tuple[str, str, bool]:
    """(HF_ENDPOINT, HF_HOME, whether the person wants no questions to the hub)."""
    offline = any(variables.get(name, "").lower() in TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    endpoint = plain_address(variables.get("HF_ENDPOINT", "")).rstrip("/")
    return endpoint, hub_home(variables, home), offline


def harmless(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that change how frameworks behave and cannot hold a secret."""
    return {name: variables[name][:MAX_VALUE_LETTERS] for name in HARMLESS if name in variables}


def conda_settings(host: Host) -> IndexSettings | None:
    """Channels, proxy and certificate of conda's files, None when there is no such file.

    `index_url` is the address that stands before channels which are only names.
    """
    variables, home = host.environ, host.home
    prefixes = [variables[name] for name in ("CONDA_PREFIX", "CONDA_ROOT") if variables.get(name)]
    configured = variables.get("XDG_CONFIG_HOME") or f"{home}/.config"
    paths = [
        variables.get("CONDARC", ""), *(f"{each}/.condarc" for each in prefixes), f"{home}/.mambarc",
        f"{home}/.condarc", f"{home}/.conda/.condarc", f"{configured}/conda/.condarc", "/etc/conda/.condarc",
    ]  # fmt: skip
    tables = {path: _conda_table(host.read_text(path)) for path in paths if path}
    told = {path: table for path, table in tables.items() if table}
    if not told:
        return None
    channels = [each for table in told.values() for key in CHANNELS for each in _texts(table.get(key))]
    servers = [table["proxy_servers"] for table in told.values() if isinstance(table.get("proxy_servers"), dict)]
    return IndexSettings(
        tool="conda",
        index_url=plain_address(_first(table.get("channel_alias") for table in told.values())),
        extra_index_urls=tuple(dict.fromkeys(plain_address(each) for each in channels)),
        proxy=plain_address(_first(server.get(scheme) for server in servers for scheme in ("https", "http"))),
        certificate=_first(table.get("ssl_verify") for table in told.values()),
        sources=tuple(told),
    )


def _conda_table(text: str | None) -> dict[str, Any]:
    """The settings of one file, empty if there is none or it cannot be read."""
    if text is None:
        return {}
    import yaml

    try:
        table = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _first(values: Iterable[object]) -> str:
    """The first text that is not empty."""
    return next((each for each in values if isinstance(each, str) and each), "")


def _texts(value: object) -> list[str]:
    """A text or a list of texts, as a list without empty ones."""
    several = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [each for each in several if isinstance(each, str) and each]
