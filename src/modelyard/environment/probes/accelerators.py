"""AMD, Intel and Apple GPUs and TPUs, read from the files that their drivers show. NVIDIA's are in nvidia.py."""

from __future__ import annotations

import re

from modelyard.environment.host import Host
from modelyard.environment.snapshot import Amd, Gpu

KFD_NODES = "/sys/class/kfd/kfd/topology/nodes"
FRAME_BUFFER_HEAPS = (1, 2)  # HSA_HEAPTYPE_FRAME_BUFFER_PUBLIC and _PRIVATE; 0 is the machine's own memory
# Graphics parts inside AMD's processors. gfx942 also exists as one (MI300A), but that is a large accelerator.
INTEGRATED_AMD = frozenset((
    "gfx801", "gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037", "gfx1103", "gfx1150",
    "gfx1151", "gfx1152", "gfx1153",
))  # fmt: skip
INTEL, GOOGLE, NVIDIA = "8086", "1AE0", "10DE"
INTEL_INTEGRATED_ADDRESS = "0000:00:02.0"  # Intel has put the graphics of its processors there for twenty years
# Of JAX's table of TPU chips; Google's other PCI devices (network, disks) have the same vendor
TPU_CHIPS = {
    "0027": "v3",
    "005E": "v4",
    "0062": "v5p",
    "0063": "v5e",
    "006F": "v6e",
    "0076": "v7x",
}
MODALIAS = re.compile(r"^pci:v0000(....)d0000(....)sv.*bc(..)sc", re.IGNORECASE)
MAX_NUMBER_DIGITS = 18


def pci_devices(host: Host) -> list[tuple[str, str, str]]:
    """(vendor, device, class) of everything on the PCI bus, in capital hexadecimal digits."""
    found = []
    for path in host.glob("/sys/bus/pci/devices", "*/modalias"):
        match = MODALIAS.match((host.read_text(path) or "").strip())
        if match:
            found.append((match[1].upper(), match[2].upper(), match[3].upper()))
    return found


def nvidia_on_bus(devices: list[tuple[str, str, str]]) -> int:
    """How many display controllers of NVIDIA's are on the bus, with or without a driver."""
    return sum(vendor == NVIDIA and kind == "03" for vendor, _, kind in devices)


def amd(host: Host) -> Amd:
    """AMD's compute stack as the kernel shows it."""
    if host.system != "linux":
        return Amd(override=host.environ.get("HSA_OVERRIDE_GFX_VERSION", ""))
    version = host.read_text("/opt/rocm/.info/version") or host.read_text("/opt/rocm/.info/version-dev") or ""
    return Amd(
        driver=host.exists("/sys/module/amdgpu"),
        kfd_exists=host.exists("/dev/kfd"),
        kfd_accessible=host.accessible("/dev/kfd"),
        rocm_version=version.strip().partition("-")[0],
        override=host.environ.get("HSA_OVERRIDE_GFX_VERSION", ""),
        gpus=_amd_gpus(host),
    )


def _amd_gpus(host: Host) -> tuple[Gpu, ...]:
    nodes = []
    for path in host.glob(KFD_NODES, "*/properties"):
        numbers = _properties(host.read_text(path) or "")
        if numbers.get("simd_count"):  # 0 is a processor
            nodes.append((path.removesuffix("/properties"), numbers))
    nodes.sort(key=lambda each: (len(each[0]), each[0]))  # 2 before 10
    return tuple(_amd_gpu(host, index, folder, numbers) for index, (folder, numbers) in enumerate(nodes))


def _amd_gpu(host: Host, index: int, folder: str, numbers: dict[str, int]) -> Gpu:
    capability = gfx_name(numbers.get("gfx_target_version", 0))
    render = f"/sys/class/drm/renderD{numbers.get('drm_render_minor', 0)}/device"
    total, used = (_number(host.read_text(f"{render}/mem_info_vram_{each}")) for each in ("total", "used"))
    banks = [_properties(host.read_text(each) or "") for each in host.glob(f"{folder}/mem_banks", "*/properties")]
    own = sum(bank.get("size_in_bytes", 0) for bank in banks if bank.get("heap_type") in FRAME_BUFFER_HEAPS)
    without_memory = bool(banks) and not own and not capability.startswith("gfx94")
    total = total or own or None
    name = host.read_text(f"{render}/product_name") or host.read_text(f"{folder}/name") or ""
    return Gpu(
        index=index,
        name=name.strip() or capability,
        total_bytes=total,
        free_bytes=max(0, total - used) if total and used is not None else None,
        others_bytes=used,
        capability=capability,
        integrated=capability in INTEGRATED_AMD or without_memory,
    )


def gfx_name(version: int) -> str:
    """The compiler's name of an architecture: 110000 is gfx1100, 90402 gfx942, 90010 gfx90a; 0 is unknown."""
    if not 0 < version < 1_000_000:
        return ""
    return f"gfx{version // 10_000}{version // 100 % 100:x}{version % 100:x}"


def _properties(text: str) -> dict[str, int]:
    """Lines "name number"."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        number = _number(value)
        if number is not None:
            found[name] = number
    return found


def _number(text: str | None) -> int | None:
    word = (text or "").strip()
    return int(word) if word.isascii() and word.isdigit() and len(word) <= MAX_NUMBER_DIGITS else None


def intel(host: Host) -> tuple[Gpu, ...]:
    """Intel's GPUs that have a kernel driver; the one of the processor is told by its address on the bus."""
    found = []
    for path in host.glob("/sys/class/drm", "card*/device/vendor"):
        folder = path.removesuffix("/vendor")
        if not re.search(r"/card\d+/device$", folder) or (host.read_text(path) or "").strip() != f"0x{INTEL.lower()}":
            continue
        identifier = (host.read_text(f"{folder}/device") or "").strip()
        address = host.resolve(folder).rstrip("/").rpartition("/")[2]
        found.append((f"Intel GPU {identifier}".strip(), address == INTEL_INTEGRATED_ADDRESS))
    return tuple(Gpu(index=index, name=name, integrated=inside) for index, (name, inside) in enumerate(found))


def apple(host: Host, cpu_name: str, memory_bytes: int | None) -> Gpu | None:
    """The GPU of Apple silicon. A translated Python sees an x86 machine, but the processor's name tells."""
    silicon = host.uname()[1] == "arm64" or cpu_name.startswith("Apple")
    if host.system != "darwin" or not silicon:
        return None
    return Gpu(name=cpu_name, total_bytes=memory_bytes, integrated=True)


def tpu(host: Host, devices: list[tuple[str, str, str]]) -> str:
    """The type of TPU as a TPU VM's environment says it, else the chips on the bus; "" without one.

    The metadata server of the cloud is not asked: it costs seconds where there is none.
    """
    said = host.environ.get("TPU_ACCELERATOR_TYPE", "")
    if said:
        return said
    chips = [TPU_CHIPS[device] for vendor, device, _ in devices if vendor == GOOGLE and device in TPU_CHIPS]
    if chips:
        return f"{chips[0]} ({len(chips)} chips)"
    return "of unknown type" if host.environ.get("TPU_NAME") else ""  # the name itself is the person's own
