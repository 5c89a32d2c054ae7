"""How long a training step takes, from its operations and bytes, before it has run; and its energy and price.

Two ways. From the catalogue alone, the matrix products of the whole step run at a share of the device's rate that
published trainings of encoders reached, and the interval is +-40%. With a calibration, the device's own rates of large
matrix products and of memory traffic, measured in seconds, are used instead, and the interval is +-20%.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelyard.design.architecture import flops_per_token
from modelyard.design.devices import CatalogueDevice, Price, Rate
from modelyard.errors import InputError
from modelyard.runs.files import write_json

CATALOGUE_ERROR = 0.40
CALIBRATED_ERROR = 0.20

# Share of the rate that a whole training step reaches (model FLOPs utilisation). Published trainings of encoders lie
# between 0.20 and 0.45: ModernBERT (arXiv 2412.13663) 0.21 to 0.33 on H100, by its tokens a second and our FLOPs a
# token. 0.30 with +-40% of the time spans 0.21 to 0.50.
MATRIX_UNIT_UTILISATION = 0.30
# Plain float32 has no matrix units: the products take most of the step and come nearer to a lower rate. A guess, in
# line with eager float32 products that reach 65% of the peak on processors.
FLOAT32_UTILISATION = 0.50
# Share of the sheet's bandwidth that kernels which only move memory reach; a guess between copies (0.9) and
# reductions over short rows.
BANDWIDTH_UTILISATION = 0.70
# What a kernel costs at least in eager mode, mostly time of Python and of PyTorch's dispatcher. A guess.
KERNEL_SECONDS = 6e-6

# Share of the board's power limit that a training draws on average; a guess, wide on purpose.
POWER_SHARE = (0.6, 0.8, 1.0)
JOULES_PER_KILOWATT_HOUR = 3.6e6

CALIBRATION_FORMAT = 1


@dataclass(frozen=True)
class Interval:
    """A prediction and what it may be off by; low <= expected <= high, in one unit that the context names."""

    low: float
    expected: float
    high: float

    def __mul__(self, factor: float) -> Interval:
        """For steps of an epoch, say. Errors of equal steps are the same error, so the interval widens with them."""
        return Interval(self.low * factor, self.expected * factor, self.high * factor)


@dataclass(frozen=True)
class Calibration:
    """What was measured on a device, once.

    device_name: as the driver says it. matrix_flops_per_second: of large matrix products, by precision.
    bandwidth_bytes_per_second: bytes read and written by a kernel that only moves memory.
    kernel_seconds: the least time of a kernel, launches included. step_overhead_seconds: what every step costs besides.
    taken: ISO time. versions: of the framework and the driver.
    """

    device_name: str
    matrix_flops_per_second: Mapping[str, float]
    bandwidth_bytes_per_second: float
    step_overhead_seconds: float
    kernel_seconds: float
    taken: str
    versions: Mapping[str, str]


def step_flops(
    config: Mapping[str, Any], *, num_tokens: int, num_examples: int, activation_checkpointing: bool = False
) -> float:
    """Operations of one optimiser step over `num_examples` of `num_tokens` each, padding included.

    Activation checkpointing runs the forward pass twice: 4 instead of 3 passes' worth.
    """
    flops = flops_per_token(config, num_tokens, training=True) * num_tokens * num_examples
    return flops * 4 / 3 if activation_checkpointing else flops


def predict_seconds(
    flops: float,
    bytes_moved: float,
    device: CatalogueDevice,
    precision: Rate,
    *,
    num_kernels: int = 0,
    calibration: Calibration | None = None,
) -> Interval:
    """Seconds of a step.

    flops: of all matrix products. bytes_moved: read and written by all other kernels. num_kernels: how many kernels the
    step launches, which is what a tiny model spends its time on; 0 leaves that out.

    From the catalogue, products and movements are a roofline (the larger counts), since the utilisation is that of
    whole steps. With a calibration they follow each other.
    Raises InputError for a precision that the device has no rate for.
    """
    assert flops >= 0 and bytes_moved >= 0 and num_kernels >= 0
    if calibration is not None:
        rate = _rate(calibration.matrix_flops_per_second, precision, calibration.device_name)
        busy = flops / rate + bytes_moved / calibration.bandwidth_bytes_per_second
        seconds = max(busy, num_kernels * calibration.kernel_seconds) + calibration.step_overhead_seconds
        return _around(seconds, CALIBRATED_ERROR)
    rate = _rate(device.flops_per_second, precision, device.name)
    utilisation = FLOAT32_UTILISATION if precision == "float32" else MATRIX_UNIT_UTILISATION
    products = flops / (rate * utilisation)
    movements = bytes_moved / (device.bandwidth_bytes_per_second * BANDWIDTH_UTILISATION)
    return _around(max(products, movements, num_kernels * KERNEL_SECONDS), CATALOGUE_ERROR)


def energy_kilowatt_hours(seconds: Interval, device: CatalogueDevice) -> Interval | None:
    """What the device alone draws: its power limit times POWER_SHARE times the time; None where no limit is known.

    The rest of the machine and its cooling are not in it.
    """
    if device.watts is None:
        return None
    low, expected, high = (share * device.watts / JOULES_PER_KILOWATT_HOUR for share in POWER_SHARE)
    return Interval(seconds.low * low, seconds.expected * expected, seconds.high * high)


def cost_dollars(seconds: Interval, price: Price) -> Interval:
    """What the time costs at that price by the second, without the time to set up."""
    return seconds * (price.dollars_per_hour / 3600)


def calibration_file(folder: Path, device_name: str) -> Path:
    """Where the calibration of a device is kept below the cache folder."""
    return folder / "calibrations" / f"{re.sub(r'[^a-z0-9]+', '-', device_name.lower()).strip('-')}.json"


def save_calibration(calibration: Calibration, folder: Path) -> Path:
    """Keep a calibration below the cache folder, instead of an older one of the same device."""
    path = calibration_file(folder, calibration.device_name)
    return write_json(path, {"format": CALIBRATION_FORMAT, **asdict(calibration)})


def load_calibration(folder: Path, device_name: str) -> Calibration | None:
    """The calibration of that device, or None when there is none, or a damaged one, which measuring again replaces."""
    try:
        data = json.loads(calibration_file(folder, device_name).read_text(encoding="utf-8"))
        if data.pop("format") != CALIBRATION_FORMAT:
            return None
        calibration = Calibration(**data)
        rates = [calibration.bandwidth_bytes_per_second, *calibration.matrix_flops_per_second.values()]
        times = [calibration.step_overhead_seconds, calibration.kernel_seconds]
        sound = all(math.isfinite(rate) and rate > 0 for rate in rates)
        sound = sound and all(math.isfinite(time) and time >= 0 for time in times)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return calibration if sound and calibration.device_name == device_name else None


def _rate(rates: Mapping[str, float], precision: str, device: str) -> float:
    if precision not in rates:
        known = sorted(rates)
        raise InputError(
            f"no rate of {precision} is known for {device}, only of {', '.join(known)}",
            hint=f"--set training.precision={'float32' if 'float32' in known else known[0]}, or another --device",
        )
    return rates[precision]


def _around(seconds: float, error: float) -> Interval:
    return Interval(seconds * (1 - error), seconds, seconds * (1 + error))
