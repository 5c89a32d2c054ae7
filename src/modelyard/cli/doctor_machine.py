"""A snapshot as short lines in groups: what a person wants to see of a machine at a glance. The unknown is left out."""

from __future__ import annotations

from collections.abc import Iterator

from modelyard.cli.environment_messages import say
from modelyard.environment.snapshot import Disk, Framework, Gpu, IndexSettings, Snapshot

Group = tuple[str, list[str]]  # label, lines


def groups(snapshot: Snapshot, language: str) -> list[Group]:
    """All groups that have a line, in the order in which they are read."""
    found: list[Group] = []
    for name, lines in (
        ("machine", _system(snapshot, language)),
        ("processor", _processor(snapshot, language)),
        ("memory", _memory(snapshot, language)),
        ("graphics", _graphics(snapshot, language)),
        ("disks", _disks(snapshot, language)),
        ("python", _python(snapshot, language)),
        ("frameworks", _frameworks(snapshot, language)),
        ("environments", _environments(snapshot, language)),
        ("sources", _sources(snapshot, language)),
        ("network", _network(snapshot, language)),
        ("variables", iter(f"{name}={value}" for name, value in snapshot.configuration.variables.items())),
        ("unread", iter(_named(language, each.probe, each.problem) for each in snapshot.unread)),
    ):
        kept = [line for line in lines if line]
        if kept:
            found.append((say(f"group.{name}", language), kept))
    return found


def gigabytes(count: int) -> str:
    """Bytes in units of 10⁹, as everywhere in modelyard; less than one in units of 10⁶ or 10³."""
    if count < 0.9995e6:
        return f"{count / 1e3:.0f} kB"
    if count < 0.9995e9:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:.1f} GB" if count < 99.95e9 else f"{count / 1e9:,.0f} GB"


def _joined(language: str, *parts: str) -> str:
    return say("comma", language).join(part for part in parts if part)


def _named(language: str, name: str, text: str) -> str:
    return say("named", language, name=name, text=text)


def _system(snapshot: Snapshot, language: str) -> Iterator[str]:
    system = snapshot.system
    kernel = {"linux": "Linux", "darwin": "macOS", "windows": "Windows"}.get(system.name, system.name)
    kernel = f"{kernel} {system.release}".strip()
    libc = f"{system.libc} {system.libc_version}".strip()
    yield _joined(language, system.distribution or kernel, system.machine, libc, kernel if system.distribution else "")
    if system.container:
        yield say("container", language, kind=system.container)
    if system.wsl:
        yield say("wsl", language)
    if system.translated:
        yield say("translated", language)


def _processor(snapshot: Snapshot, language: str) -> Iterator[str]:
    cpu = snapshot.cpu
    yield cpu.name
    usable, logical = cpu.usable_cores, cpu.logical_cores
    if usable is not None:
        if logical is not None and usable < logical:
            cores = say("cores.some", language, usable=usable, logical=logical)
        else:
            cores = say("cores.all", language, logical=usable)
        yield cores
    yield " ".join(cpu.instructions)


def _memory(snapshot: Snapshot, language: str) -> Iterator[str]:
    memory = snapshot.memory
    usable = memory.usable_bytes
    if usable is None:
        return
    parts = [gigabytes(usable)]
    if memory.limit_bytes is not None and memory.total_bytes is not None and memory.limit_bytes < memory.total_bytes:
        parts = [say("memory.limit", language, usable=gigabytes(usable), total=gigabytes(memory.total_bytes))]
    if memory.available_bytes is not None:
        parts.append(say("free", language, size=gigabytes(min(memory.available_bytes, usable))))
    if memory.swap_bytes is not None:
        size = gigabytes(memory.swap_bytes)
        parts.append(say("swap", language, size=size) if memory.swap_bytes else say("swap.none", language))
    yield _joined(language, *parts)


def _graphics(snapshot: Snapshot, language: str) -> Iterator[str]:
    accelerators = snapshot.accelerators
    nvidia, amd = accelerators.nvidia, accelerators.amd
    apple = (accelerators.apple,) if accelerators.apple else ()
    shown = False
    for gpus in (nvidia.gpus, amd.gpus, accelerators.intel, apple):
        for line in _gpus(gpus, language):
            shown = True
            yield line
    if accelerators.tpu:
        yield f"TPU {accelerators.tpu}"
    if nvidia.driver_version:
        cuda = say("cuda.up_to", language, version=nvidia.cuda_version) if nvidia.cuda_version else ""
        toolkit = f"nvcc {nvidia.toolkit_version}" if nvidia.toolkit_version else ""
        yield _joined(language, say("driver", language, version=nvidia.driver_version), cuda, toolkit)
    if amd.rocm_version:
        yield f"ROCm {amd.rocm_version}"
    looked = not any("accel" in each.probe or "nvidia" in each.probe for each in snapshot.unread)
    if not shown and not accelerators.tpu and looked and snapshot.system.name:
        yield say("graphics.none", language)


def _gpus(gpus: tuple[Gpu, ...], language: str) -> Iterator[str]:
    """Equal GPUs in one line, with how many there are and the least that is free on one of them."""
    kinds: dict[tuple[object, ...], list[Gpu]] = {}
    for gpu in gpus:
        kinds.setdefault((gpu.name, gpu.total_bytes, gpu.capability, gpu.mig, gpu.nvlinks), []).append(gpu)
    for same in kinds.values():
        first = same[0]
        size = gigabytes(first.total_bytes) if first.total_bytes else ""
        free = min((each.free_bytes for each in same if each.free_bytes is not None), default=None)
        others = max((each.others_bytes or 0 for each in same), default=0)
        yield _joined(
            language,
            (f"{len(same)} × " if len(same) > 1 else "") + (first.name or "GPU"),
            size if len(same) == 1 or not size else say("each", language, size=size),
            "" if free is None else say("free", language, size=gigabytes(free)),
            say("others", language, size=gigabytes(others)) if others > 50e6 else "",
            _capability(first.capability, language),
            say("integrated", language) if first.integrated else "",
            "MIG" if first.mig else "",
            f"{first.nvlinks} NVLink" if first.nvlinks else "",
        )


def _capability(text: str, language: str) -> str:
    return say("capability", language, capability=text) if text[:1].isdigit() else text


def _disks(snapshot: Snapshot, language: str) -> Iterator[str]:
    """Places on the same file system in one line: they have the same size and the same space left."""
    places: dict[tuple[int, int], list[Disk]] = {}
    for disk in snapshot.disks:
        if disk.total_bytes is not None and disk.free_bytes is not None:
            places.setdefault((disk.total_bytes, round(disk.free_bytes / 1e8)), []).append(disk)
    for (total, _), same in places.items():
        names = say("list", language).join(say(f"disk.{each.purpose}", language) for each in same)
        free = gigabytes(same[0].free_bytes or 0)
        yield say("disk", language, free=free, total=gigabytes(total), names=names)
    for disk in snapshot.disks:
        if disk.writable is False:
            name = say(f"disk.{disk.purpose}", language)
            yield say("not_writable", language, name=name, path=disk.path, problem=disk.problem)


def _python(snapshot: Snapshot, language: str) -> Iterator[str]:
    python = snapshot.python
    if python.version:
        managed = say("externally_managed", language) if python.externally_managed else ""
        yield _joined(language, python.version, python.kind if python.kind != "unknown" else "", managed)
    yield python.executable
    yield _joined(language, f"pip {python.pip}" if python.pip else "", f"uv {python.uv}" if python.uv else "")


def _frameworks(snapshot: Snapshot, language: str) -> Iterator[str]:
    frameworks = snapshot.installed.frameworks
    from_files = [each.name for each in frameworks if each.version and not each.asked]
    number = "one" if len(from_files) == 1 else "many"
    for each in frameworks:
        if each.version or each.asked:
            yield _framework(each, language)
    if from_files and len(from_files) == len(frameworks):
        yield say(f"from_files.{number}", language)
    elif from_files:
        yield _named(language, say("list", language).join(from_files), say(f"from_files.{number}", language))
    if not frameworks and snapshot.python.version:
        yield say("frameworks.none", language)


def _framework(framework: Framework, language: str) -> str:
    built = {"cpu": "CPU", "cuda": "CUDA", "rocm": "ROCm", "xpu": "XPU"}.get(framework.built_for, framework.built_for)
    if built:
        built = say("built", language, what=f"{built} {framework.built_version}".strip())
    if framework.outcome and framework.outcome != "ok":
        state = say(f"outcome.{framework.outcome}", language)
    elif framework.devices:
        state = say("reaches", language, devices=say("list", language).join(framework.devices))
    else:
        state = ""
    backend = say("backend", language, backend=framework.backend) if framework.backend else ""
    return _joined(language, f"{framework.name} {framework.version}".strip(), built, backend, state)


def _environments(snapshot: Snapshot, language: str) -> Iterator[str]:
    for each in snapshot.managed:
        proved = "" if each.proved is None else say("proved" if each.proved else "not_proved", language)
        state = say(f"state.{each.state}", language) if each.state else ""
        yield _named(language, each.name, _joined(language, each.framework, each.accelerator, state, proved))


def _sources(snapshot: Snapshot, language: str) -> Iterator[str]:
    configuration = snapshot.configuration
    for settings in configuration.indexes:
        for said in _index(settings, language):
            yield _named(language, settings.tool, said)
    for kind, address in configuration.proxies.items():
        yield _named(language, kind, say("proxy", language, address=address))
    if configuration.pytorch_mirror:
        yield say("mirror.pytorch", language, address=configuration.pytorch_mirror)
    if configuration.python_mirror:
        yield say("mirror.python", language, address=configuration.python_mirror)
    if configuration.hub_endpoint:
        yield say("mirror.hub", language, address=configuration.hub_endpoint)
    if configuration.hub_offline:
        yield say("hub_offline", language)


def _index(settings: IndexSettings, language: str) -> Iterator[str]:
    if settings.index_url:
        yield settings.index_url
    for address in settings.extra_index_urls:
        yield say("extra_index", language, address=address)
    for place in settings.find_links:
        yield say("find_links", language, place=place)
    if settings.no_index:
        yield say("no_index", language)
    if settings.certificate:
        yield say("certificate", language, path=settings.certificate)
    if settings.proxy:
        yield say("proxy", language, address=settings.proxy)


def _network(snapshot: Snapshot, language: str) -> Iterator[str]:
    for reach in snapshot.reach:
        name = say(f"reach.{reach.purpose}", language)
        if reach.reached:
            seconds = "" if reach.seconds is None else f"{reach.seconds:.2f} s"
            served = say("reach.serves_not", language, detail=reach.detail) if reach.serves is False else ""
            yield _named(language, name, _joined(language, say("reach.yes", language), seconds, served))
        else:
            yield _named(language, name, _joined(language, say("reach.no", language), reach.problem))
