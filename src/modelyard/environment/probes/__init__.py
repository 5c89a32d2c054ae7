"""Look at a machine: `take` runs every probe and puts what they find into one snapshot.

What has to be waited for (the driver, the network, the file systems, other programs) is begun first and collected
last, so the whole takes as long as the slowest of them, and none of them longer than its limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from modelyard.environment import sources
from modelyard.environment.host import Host
from modelyard.environment.probes import accelerators as others
from modelyard.environment.probes import frameworks, nvidia, settings
from modelyard.environment.probes import managed as made
from modelyard.environment.probes import network as reachable
from modelyard.environment.probes import python as pythons
from modelyard.environment.probes import system as surroundings
from modelyard.environment.probes.attempts import Attempts, Begin, in_thread
from modelyard.environment.redaction import plain_address
from modelyard.environment.snapshot import (
    Accelerators,
    Amd,
    Configuration,
    Cpu,
    Disk,
    Gpu,
    IndexSettings,
    Installed,
    Managed,
    Memory,
    Nvidia,
    Python,
    Reach,
    Snapshot,
    System,
    Unread,
)
from modelyard.version import __version__

Ask = Literal["auto", "always", "never"]
PLACE_SECONDS = 2.0  # a network file system whose server is gone never answers
PROGRAM_SECONDS = 6.0  # the Python that is asked has less than that itself
FRAMEWORKS_SECONDS = 240.0  # their probe has limits of its own; this is for the case that they do not hold
LARGEST_WHOLE = 1 << 62


def take(
    host: Host, *, python: str | None = None, ask: Ask = "auto", network: bool = True, begin: Begin = in_thread
) -> Snapshot:
    """All facts of this machine. Whatever a probe meets, a snapshot comes back; `unread` says what is missing.

    `python` is another interpreter to describe; `ask` says whether frameworks are imported in a process of their own;
    `begin` starts what has to be waited for.
    """
    attempts = Attempts(begin)
    seconds = attempts.now("nvidia", lambda: nvidia.nvml_seconds(host), nvidia.NVML_SECONDS)
    driver = attempts.begin("nvidia", lambda: nvidia.driver(host), None, seconds)
    files = attempts.begin("nvidia files", lambda: nvidia.files(host), Nvidia(), nvidia.COMMAND_SECONDS * 2)
    toolkit = attempts.begin("nvcc", lambda: nvidia.toolkit_version(host), "", nvidia.COMMAND_SECONDS * 2)
    configuration = attempts.now("settings", lambda: _configuration(host, attempts), Configuration())
    gpu_likely = attempts.now("nvidia", lambda: nvidia.likely(host), False)
    reach = _begin_network(host, attempts, configuration, gpu_likely) if network else []
    no_places: list[Disk] = []
    places = attempts.now("disks", lambda: surroundings.places(host), no_places)
    disks = [_begin_disk(host, attempts, place) for place in places]
    environments = next((place.path for place in places if place.purpose == "environments"), "")
    managed = _begin_managed(host, attempts, environments)
    interpreter = attempts.begin("python", lambda: pythons.python(host, python), Python(), PROGRAM_SECONDS)

    system = attempts.now("system", lambda: surroundings.system(host), System())
    cpu = attempts.now("cpu", lambda: surroundings.cpu(host), Cpu())
    memory = attempts.now("memory", lambda: surroundings.memory(host), Memory())
    found = _accelerators(host, attempts, cpu, memory, (driver(), files(), toolkit()))
    installed = attempts.begin(
        "frameworks", lambda: _installed(host, python, ask, has_gpu(found)), Installed(), FRAMEWORKS_SECONDS
    )
    parts: dict[str, Any] = {
        "system": system,
        "cpu": cpu,
        "memory": memory,
        "disks": tuple(disk for disk in (collect() for collect in disks) if disk is not None),
        "python": interpreter(),
        "accelerators": found,
        "managed": managed(),
        "reach": tuple(collect() for collect in reach),
        "installed": installed(),
        "configuration": configuration,
    }
    return _assembled(parts, attempts.unread)


def has_gpu(found: Accelerators) -> bool:
    """Whether there is an accelerator worth the seconds that asking a framework takes.

    The graphics part of an AMD or Intel processor is not: no framework of ours computes on it.
    """
    cards = [gpu for gpu in (*found.amd.gpus, *found.intel) if not gpu.integrated]
    return bool(found.nvidia.gpus or cards or found.apple or found.tpu)


def _configuration(host: Host, attempts: Attempts) -> Configuration:
    variables, home = host.environ, host.home
    endpoint, hub_home, offline = settings.hub(variables, home)
    mirrors = attempts.now("mirrors", lambda: sources.mirrors(host), sources.Mirrors())
    tools: tuple[tuple[str, Callable[[Host], IndexSettings | None]], ...] = (
        ("pip", sources.pip_settings),
        ("uv", sources.uv_settings),
        ("conda", settings.conda_settings),
    )
    said = [attempts.now(f"{tool} settings", partial(look, host), None) for tool, look in tools]
    return Configuration(
        indexes=tuple(each for each in said if each is not None and each.sources),
        proxies=settings.proxies(variables),
        hub_endpoint=endpoint,
        hub_home=hub_home,
        hub_offline=offline,
        pytorch_mirror=plain_address(mirrors.pytorch),
        python_mirror=plain_address(mirrors.python),
        variables=settings.harmless(variables),
    )


def _installed(host: Host, python: str | None, ask: Ask, gpu: bool) -> Installed:
    return frameworks.installed(host, python or host.python, ask=ask, gpu=gpu)


def _begin_network(
    host: Host, attempts: Attempts, configuration: Configuration, gpu: bool
) -> list[Callable[[], Reach]]:
    nothing: list[reachable.Question] = []
    asked = attempts.now("network", lambda: reachable.questions(configuration, gpu), nothing)
    proxies = configuration.proxies
    return [
        attempts.begin(
            f"network {each.purpose}",
            partial(reachable.ask, host, each, proxies),
            reachable.unanswered(each),
            reachable.SECONDS,
        )
        for each in asked
    ]


def _begin_disk(host: Host, attempts: Attempts, place: Disk) -> Callable[[], Disk | None]:
    return attempts.begin(f"disk {place.purpose}", lambda: surroundings.disk(host, place), place, PLACE_SECONDS)


def _begin_managed(host: Host, attempts: Attempts, folder: str) -> Callable[[], tuple[Managed, ...]]:
    nothing: tuple[Managed, ...] = ()
    return attempts.begin(
        "environments", lambda: made.managed(host, folder) if folder else nothing, nothing, PLACE_SECONDS
    )


def _accelerators(
    host: Host, attempts: Attempts, cpu: Cpu, memory: Memory, parts: tuple[Nvidia | None, Nvidia, str]
) -> Accelerators:
    """NVML's facts over those of the files, and the other makes."""
    answered, files, toolkit = parts
    driver = answered or Nvidia(nvml_message="NVML did not answer")
    bus: list[tuple[str, str, str]] = []
    no_gpus: tuple[Gpu, ...] = ()
    if attempts.now("system", lambda: host.system == "linux", False):
        bus = attempts.now("pci", lambda: others.pci_devices(host), bus)
    merged = {
        **driver.model_dump(exclude={"kernel_module_version", "device_nodes", "libcuda_path"}),
        **files.model_dump(include={"kernel_module_version", "device_nodes", "libcuda_path"}),
        "toolkit_version": toolkit,
        "bus_devices": others.nvidia_on_bus(bus) if bus else None,
    }
    return Accelerators(
        nvidia=attempts.now("nvidia", lambda: Nvidia.model_validate(merged), driver),
        amd=attempts.now("amd", lambda: others.amd(host), Amd()),
        intel=attempts.now("intel", lambda: others.intel(host), no_gpus),
        apple=attempts.now("apple", lambda: others.apple(host, cpu.name, memory.total_bytes), None),
        tpu=attempts.now("tpu", lambda: others.tpu(host, bus), ""),
    )


def _assembled(parts: dict[str, Any], unread: list[Unread]) -> Snapshot:
    """The snapshot, such that it can be written as JSON and read again: no half characters, no infinities.

    File names and variables of a machine may hold bytes that are no text; Python keeps them as half characters.
    """
    head = {"modelyard": __version__, "taken": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    try:
        snapshot = Snapshot(**head, **parts, unread=tuple(unread))
        if Snapshot.model_validate_json(snapshot.model_dump_json()) == snapshot:
            return snapshot
    except ValueError:  # of pydantic, of characters and of numbers alike
        pass
    plain: dict[str, Any] = {}
    for name, part in parts.items():
        value = _writable(part)
        try:
            Snapshot.model_validate({name: value})
        except ValueError as error:
            unread = [*unread, Unread(probe=name, problem=_writable(str(error).splitlines()[0]))]
        else:
            plain[name] = value
    notes = [_writable(each.model_dump()) for each in unread]
    return Snapshot.model_validate({**head, **plain, "unread": notes})


def _writable(value: Any) -> Any:
    """The same as plain values that JSON can hold; numbers that it cannot are unknown."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if isinstance(value, dict):
        return {_writable(key): _writable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(each) for each in value]
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        return None
    return value
