"""What a recipe will need on a device, which need not be here: memory, time, price, and other ways to do it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from modelyard.engines.base import Device, Engine
from modelyard.errors import MachineError
from modelyard.recipe.write import set_values
from modelyard.workflow.alternatives import Alternatives
from modelyard.workflow.forecasting import Forecaster
from modelyard.workflow.ground import Ground
from modelyard.workflow.learning import design
from modelyard.workflow.stage import Stage
from modelyard.workflow.targets import find_target


class _Offering:
    """An engine with one device that is not here, for the choices that depend on devices only."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def devices(self) -> list[Device]:
        return [self.device]


def plan_recipe(ground: Ground, engine: Engine, wanted: str, stage: Stage) -> dict[str, Any]:
    """The plan as `learning.design` makes it, with ``memory``, ``time`` and ``alternatives`` for the device `wanted`.

    wanted: ``auto``, a device of this machine (``cpu``, ``cuda:0``), one of the catalogue, or a memory (``24GB``).
    Raises InputError for a device that is not known, and MachineError for one that is not here.
    """
    target = find_target(ground.recipe, engine, wanted)
    named = "auto" if wanted == "auto" and ground.recipe.environment.device == "auto" else target.device.name
    recipe = set_values(ground.recipe, {"environment.device": named})
    offering = cast(Engine, _Offering(target.device))
    chosen, value, ground = design(replace(ground, recipe=recipe), offering, stage)
    forecaster = Forecaster(ground, engine, chosen, target)
    value["device"] = {
        **value["device"],
        "here": target.here,
        "known_as": target.known.name if target.known else None,
        "usable_is_estimate": bool(target.known and target.known.usable_is_estimate and not target.here),
    }
    value["activation_checkpointing"] = chosen.activation_checkpointing
    try:
        value["memory"] = forecaster.memory()
    except MachineError as error:
        operation = getattr(error, "operation", None)
        if operation is None:
            raise
        value["memory"] = {"problem": error.problem, "operation": operation}
    value["time"] = forecaster.time()
    traced = "problem" not in value["memory"]
    value["alternatives"] = [each.to_json() for each in Alternatives(forecaster).all()] if traced else []
    return value
