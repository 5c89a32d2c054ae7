"""The catalogue of devices that a run can be planned for, and what an hour of one costs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from modelyard.errors import InputError

Rate = Literal["float32", "tf32", "float16", "bfloat16"]
Vendor = Literal["nvidia", "amd", "google"]

_MAKERS = re.compile(r"nvidia|geforce|tesla|amd|instinct|google|cloud", re.IGNORECASE)
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class CatalogueDevice:
    """One device, as its maker describes it.

    memory_bytes: as sold. usable_bytes: what the driver offers as the total, an estimate where usable_is_estimate.
    bandwidth_bytes_per_second: between the chip and its memory.
    flops_per_second: dense operations a second by precision; a precision that it does not have is missing.
    capability: NVIDIA's compute capability (``9.0``) or AMD's architecture (``gfx942``), else None.
    watts: power limit of the board, None where the maker names none.
    """

    name: str
    description: str
    aliases: tuple[str, ...]
    vendor: Vendor
    memory_bytes: int
    usable_bytes: int
    usable_is_estimate: bool
    bandwidth_bytes_per_second: float
    flops_per_second: Mapping[str, float]
    capability: str | None
    watts: float | None
    source: str


@dataclass(frozen=True)
class Price:
    """What one provider asked for an hour of one device on demand. date: the day (ISO) on which its page said so."""

    device: str
    provider: str
    dollars_per_hour: float
    date: str
    source: str
    note: str = ""


def find(name: str) -> CatalogueDevice:
    """The device of that name or alias; case, spaces, signs and the maker's name do not matter.

    Raises InputError with the nearest names for one that is not in the catalogue.
    """
    wanted = _plain(name)
    device = _by_plain_name().get(wanted)
    if device is None:
        raise _unknown(name, wanted)
    return device


@cache
def catalogue() -> Mapping[str, CatalogueDevice]:
    """All devices by name, in the order of devices.yaml."""
    data = _read("devices.yaml")
    return {name: _device(name, entry, data["usable_share"]) for name, entry in data["devices"].items()}


def prices(device: str) -> tuple[Price, ...]:
    """The known prices of a device of the catalogue, the lowest first; empty where none is known."""
    entries = _read("prices.yaml")["prices"].get(device, [])
    return tuple(sorted((Price(device=device, **entry) for entry in entries), key=lambda each: each.dollars_per_hour))


def parse_memory(text: str) -> int | None:
    """Bytes in ``24GB`` (10^9), ``24GiB`` (2^30), ``24G`` (as GB), ``512 MiB``; None where `text` is no such size.

    A number alone is no size, since it may be a device (``4090``). Raises InputError for a size of zero.
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None or not match[2]:
        return None
    num_bytes = int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].lower()])
    if num_bytes == 0:
        raise InputError(f"the memory is `{text}`, expected more than nothing", hint="--device 24GB")
    return num_bytes


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _MAKERS.sub("", name).lower())


@cache
def _by_plain_name() -> dict[str, CatalogueDevice]:
    return {
        _plain(spelling): device
        for device in catalogue().values()
        for spelling in (device.name, device.description, *device.aliases)
    }


def _unknown(name: str, wanted: str) -> InputError:
    known = _by_plain_name()
    near = [each for each in known if wanted and each.startswith(wanted)]
    near += difflib.get_close_matches(wanted, known, n=4, cutoff=0.5)
    names = list(dict.fromkeys(known[each].name for each in near))[:4]
    meant = f"did you mean {' or '.join(names)}?" if names else f"known are {', '.join(catalogue())}"
    return InputError(
        f"the device `{name}` is not in the catalogue; {meant}",
        hint=f"--device {names[0] if names else 'l4'}, or only its memory: --device 24GB",
    )


@cache
def _read(file: str) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (files("modelyard.design") / file).read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=loader))


def _device(name: str, entry: Mapping[str, Any], usable_share: Mapping[str, float]) -> CatalogueDevice:
    memory_bytes = entry["memory_gib"] << 30
    share = usable_share["ecc_in_memory" if entry.get("ecc_in_memory") else "otherwise"]
    reported = entry.get("usable_mib")
    return CatalogueDevice(
        name=name,
        description=entry["description"],
        aliases=tuple(entry["aliases"]),
        vendor=entry["vendor"],
        memory_bytes=memory_bytes,
        usable_bytes=int(share * memory_bytes) if reported is None else reported << 20,
        usable_is_estimate=reported is None,
        bandwidth_bytes_per_second=entry["bandwidth_gb"] * 1e9,
        flops_per_second={precision: rate * 1e12 for precision, rate in entry["teraflops"].items()},
        capability=entry.get("capability"),
        watts=entry.get("watts"),
        source=entry["source"],
    )
