"""What a machine is: plain facts, as the probes found them, that can be written to a file and diagnosed elsewhere.

Every field may be unknown (``None`` or empty): a probe that cannot look leaves it so, and a rule that needs the fact
stays silent. Sizes are bytes, durations seconds, versions the text that their owner prints.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FORMAT = 1


class Part(BaseModel):
    """Frozen; a field that a newer modelyard wrote is passed over, so that its snapshots can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")


class System(Part):
    """The operating system and what surrounds it."""

    name: str = ""  # linux | darwin | windows
    release: str = ""  # of the kernel, or of macOS: "14.5"
    distribution: str = ""  # "Debian GNU/Linux 12 (bookworm)"
    machine: str = ""  # x86_64 | aarch64 | arm64 | AMD64
    libc: str = ""  # glibc | musl | "" (neither macOS nor Windows has one that matters here)
    libc_version: str = ""
    container: str = ""  # docker | podman | kubernetes | lxc | apptainer | container (of unknown kind) | ""
    wsl: bool = False
    translated: bool = False  # an x86 Python under Rosetta on Apple silicon
    locale: str = ""


class Cpu(Part):
    """The processor, and how much of it this process may use."""

    name: str = ""
    instructions: tuple[str, ...] = ()  # those that matter: avx2, avx512f, avx512_bf16, amx_bf16, neon, bf16 …
    logical_cores: int | None = None  # of the machine
    physical_cores: int | None = None
    affinity_cores: int | None = None  # that the scheduler gives this process
    quota_cores: float | None = None  # that the control group pays for (v1 or v2)

    @property
    def usable_cores(self) -> int | None:
        """The least of machine, affinity and quota, at least 1."""
        known = [each for each in (self.logical_cores, self.affinity_cores, self.quota_cores) if each is not None]
        return max(1, int(min(known))) if known else None


class Memory(Part):
    """Working memory of the machine and the limit of the control group."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    limit_bytes: int | None = None  # of the control group (v1 or v2), None: no limit
    swap_bytes: int | None = None

    @property
    def usable_bytes(self) -> int | None:
        known = [each for each in (self.total_bytes, self.limit_bytes) if each is not None]
        return min(known) if known else None


class Disk(Part):
    """One place that modelyard or a framework writes to."""

    purpose: Literal["environments", "cache", "hub", "temporary", "shared-memory", "here"]
    path: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    writable: bool | None = None  # tried by writing a byte, None: not tried
    problem: str = ""  # the operating system's word when it is not writable


class Python(Part):
    """The Python that was asked (the one of ``--python``, else the one that runs modelyard)."""

    executable: str = ""
    version: str = ""
    bits: int | None = None
    kind: str = ""  # venv | conda | pyenv | uv | system | homebrew | python.org | store | unknown
    externally_managed: bool = False  # PEP 668: EXTERNALLY-MANAGED lies in its standard library, and it is no venv
    environment: str = ""  # sys.prefix if it is a virtual environment, else ""
    pip: str = ""
    uv: str = ""


class Gpu(Part):
    """One GPU of any make. NVIDIA's are read through NVML, AMD's from sysfs, Apple's and Intel's from the system."""

    index: int = 0
    name: str = ""
    total_bytes: int | None = None
    free_bytes: int | None = None
    others_bytes: int | None = None  # used by other processes
    capability: str = ""  # NVIDIA: "8.6"; AMD: "gfx1100"; else ""
    integrated: bool = False
    mig: bool = False
    nvlinks: int | None = None  # active NVLink connections


class Nvidia(Part):
    """The NVIDIA driver and GPUs; all from NVML, the files of the kernel module and of libcuda."""

    driver_version: str = ""  # "580.82.07"
    cuda_version: str = ""  # highest that the driver says it can: "13.0"
    nvml_error: int | None = None  # return code of NVML: 9 no driver, 12 no library, 18 versions differ, 999 unknown
    nvml_message: str = ""
    kernel_module_version: str = ""  # /sys/module/nvidia/version
    device_nodes: tuple[str, ...] = ()  # /dev/nvidia*
    libcuda_path: str = ""  # what the loader finds
    toolkit_version: str = ""  # nvcc's, if it is on PATH
    bus_devices: int | None = None  # NVIDIA display controllers on the PCI bus, with or without a driver
    gpus: tuple[Gpu, ...] = ()


class Amd(Part):
    """AMD's compute stack."""

    driver: bool = False  # /sys/module/amdgpu
    kfd_exists: bool = False
    kfd_accessible: bool | None = None  # os.access(/dev/kfd, R | W)
    rocm_version: str = ""
    override: str = ""  # HSA_OVERRIDE_GFX_VERSION
    gpus: tuple[Gpu, ...] = ()


class Accelerators(Part):
    """All that could compute besides the processor."""

    nvidia: Nvidia = Nvidia()
    amd: Amd = Amd()
    intel: tuple[Gpu, ...] = ()
    apple: Gpu | None = None
    tpu: str = ""  # "v5litepod-8", from the environment of a TPU VM, or "" ; /dev/accel* and /dev/vfio


class Package(Part):
    """An installed distribution that matters here."""

    name: str  # normalised: lower case, dashes
    version: str = ""


class Conflict(Part):
    """One file in site-packages that several distributions claim as theirs in RECORD."""

    file: str
    owners: tuple[str, ...]


class Framework(Part):
    """torch, tensorflow, jax, keras or transformers, as installed in the Python that was asked.

    What is read without importing it stands first; the rest is known only if ``asked``.
    """

    name: str
    version: str = ""
    built_for: str = ""  # cpu | cuda | rocm | xpu | tpu (jax) | "" unknown
    built_version: str = ""  # of CUDA or ROCm: "13.0"
    asked: bool = False  # it was imported in a process of its own
    outcome: str = ""  # ok | failed | timeout | crashed, when asked
    error: str = ""  # the last lines of what it said when it did not work
    warnings: str = ""  # stderr at import, shortened
    seconds: float | None = None
    architectures: tuple[str, ...] = ()  # compiled in: "sm_80", "gfx1100"
    devices: tuple[str, ...] = ()  # that it reaches: "cuda:0 NVIDIA H200", "mps", "cpu"
    device_error: str = ""  # why it reaches no accelerator, in its own words
    num_threads: int | None = None
    libraries: tuple[str, ...] = ()  # CUDA, cuDNN, NCCL and OpenMP libraries mapped after the import (paths)
    backend: str = ""  # keras: tensorflow | jax | torch; jax: default backend
    problems: tuple[str, ...] = ()  # named checks that failed: "torchvision-nms: operator does not exist"


class Installed(Part):
    """What is installed in the Python that was asked."""

    packages: tuple[Package, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    frameworks: tuple[Framework, ...] = ()

    def version(self, package: str) -> str | None:
        """The version of an installed package, or None."""
        return next((each.version for each in self.packages if each.name == package), None)

    def framework(self, name: str) -> Framework | None:
        return next((each for each in self.frameworks if each.name == name), None)


class IndexSettings(Part):
    """How one installer is told where packages are. Passwords and tokens in addresses are never kept."""

    tool: Literal["pip", "uv", "conda"]
    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    certificate: str = ""
    client_certificate: str = ""
    proxy: str = ""
    trusted_hosts: tuple[str, ...] = ()
    no_index: bool = False
    sources: tuple[str, ...] = ()  # the files and variables that said so


class Configuration(Part):
    """Settings of the person that decide where things come from."""

    indexes: tuple[IndexSettings, ...] = ()
    proxies: dict[str, str] = {}  # http, https, no
    hub_endpoint: str = ""  # HF_ENDPOINT
    hub_home: str = ""  # HF_HOME, resolved
    hub_offline: bool = False
    pytorch_mirror: str = ""  # MODELYARD_PYTORCH_INDEX: replaces the base of the PyTorch wheel index
    python_mirror: str = ""  # UV_PYTHON_INSTALL_MIRROR
    # Others that change behaviour: LD_LIBRARY_PATH, CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS, KMP_DUPLICATE_LIB_OK,
    # XLA_PYTHON_CLIENT_PREALLOCATE, KERAS_BACKEND, JAX_PLATFORMS, PYTHONPATH …
    variables: dict[str, str] = {}


class Reach(Part):
    """What came back from one address, within a bounded wait."""

    address: str
    purpose: Literal["hub", "pytorch", "packages", "python"]
    reached: bool = False
    status: int | None = None
    seconds: float | None = None
    problem: str = ""  # "timed out after 3 s", "name not known", "certificate", "connection refused", "proxy"
    serves: bool | None = None  # it is what it says: the hub answers with x-repo-commit, the mirror's links stay on it
    detail: str = ""  # the first link or header that shows otherwise


class Managed(Part):
    """An environment that `modelyard env` made on this machine."""

    name: str
    framework: str = ""
    accelerator: str = ""
    state: str = ""  # ready | broken | unfinished
    proved: bool | None = None
    proof_failures: tuple[str, ...] = ()


class Unread(Part):
    """A probe that could not look, and why. Never a reason to stop."""

    probe: str
    problem: str


class Snapshot(Part):
    """All facts of one machine at one time."""

    format: int = FORMAT
    modelyard: str = ""
    taken: str = ""  # UTC, ISO 8601
    system: System = System()
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    disks: tuple[Disk, ...] = ()
    python: Python = Python()
    accelerators: Accelerators = Accelerators()
    installed: Installed = Installed()
    configuration: Configuration = Configuration()
    reach: tuple[Reach, ...] = ()
    managed: tuple[Managed, ...] = ()
    unread: tuple[Unread, ...] = ()

    def disk(self, purpose: str) -> Disk | None:
        return next((each for each in self.disks if each.purpose == purpose), None)
