"""The device that a plan is for: one of this machine, one of the catalogue, or only a memory."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from modelyard.design import fixed_costs
from modelyard.design.devices import CatalogueDevice, find, parse_memory
from modelyard.design.planner import Room
from modelyard.engines.base import Device, Engine
from modelyard.errors import InputError
from modelyard.recipe.schema import Recipe
from modelyard.workflow.ground import choose_device


@dataclass(frozen=True)
class Target:
    """The device that is planned for. known: its line of the catalogue, if it has one. here: it is in this machine."""

    device: Device
    known: CatalogueDevice | None
    room: Room
    here: bool


def find_target(recipe: Recipe, engine: Engine, wanted: str) -> Target:
    """The device by its name. Raises InputError for an unknown one, with the nearest names."""
    if wanted in ("auto", "cpu") or wanted.startswith("cuda"):
        device, _ = choose_device(engine, recipe.environment.device if wanted == "auto" else wanted)
        known = _known(device.description) if device.kind == "cuda" else None
        return Target(device, known, _room_here(device, known), here=True)
    num_bytes = parse_memory(wanted)
    if num_bytes is not None:
        device = Device("cuda:0", "cuda", wanted, num_bytes, 1, fast_bfloat16=True)
        return Target(device, None, room_of_gpu(num_bytes, None), here=False)
    known = find(wanted)
    if known.vendor == "google":
        raise InputError(
            f"the device `{wanted}` is {known.description}, on which the engine torch does not train",
            hint="name a GPU: --device l4, or only a memory: --device 24GB",
        )
    return Target(_device_of(known), known, room_of_gpu(known.usable_bytes, known.capability), here=False)


def _device_of(known: CatalogueDevice) -> Device:
    fast = "bfloat16" in known.flops_per_second
    return Device("cuda:0", "cuda", known.description, known.usable_bytes, 1, fast_bfloat16=fast)


def _known(description: str) -> CatalogueDevice | None:
    try:
        return find(description)
    except InputError:
        return None


def room_of_gpu(usable_bytes: int, capability: str | None) -> Room:
    workspaces = fixed_costs.num_blas_workspaces("training") * fixed_costs.blas_workspace_bytes(capability)
    return Room("cuda", usable_bytes, fixed_costs.context_bytes(capability), workspaces)


def _room_here(device: Device, known: CatalogueDevice | None) -> Room:
    """Of a processor: what is free now, and what this process (the interpreter and its libraries) holds already."""
    if device.kind == "cuda":
        return room_of_gpu(device.memory_bytes, known.capability if known else None)
    own = int(psutil.Process().memory_info().rss)
    return Room("cpu", min(device.memory_bytes, int(psutil.virtual_memory().available) + own), own)


def without_rates(device: Device) -> CatalogueDevice:
    """What the formulas ask for beside a calibration, which has the rates."""
    return CatalogueDevice(
        name=device.name,
        description=device.description,
        aliases=(),
        vendor="nvidia",
        memory_bytes=device.memory_bytes,
        usable_bytes=device.memory_bytes,
        usable_is_estimate=False,
        bandwidth_bytes_per_second=1.0,
        flops_per_second={},
        capability=None,
        watts=None,
        source="",
    )
