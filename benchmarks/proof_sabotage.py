"""Does the proof see what is wrong? Faults planted in PyTorch, one at a time, and clean runs that must raise nothing.

    python benchmarks/proof_sabotage.py                # every fault with 3 seeds, 100 clean runs
    python benchmarks/proof_sabotage.py --clean 200    # the runs that the bounds were taken from

The faults stand in ``proof_faults.py``. Each is in place while the problem is trained in strict float32 on the CPU; it
is caught when some check fails with every seed. The clean runs cover every case, and float32 at default precision as
other hardware multiplies: cut to TensorFloat-32 (ten bits of mantissa), and in one pass of bfloat16 (TPU).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modelyard.engines.torch import proof
from modelyard.environment.proof import command
from modelyard.environment.proof.problem import CASES, Case
from modelyard.environment.proof.record import JudgedCase
from proof_faults import FAULTS, Fault
from proof_planting import Plant, cut_to_ten_bits, rounded_inputs, to_bfloat16

RESULTS = Path(__file__).parent / "results"
STRICT, DEFAULT, BFLOAT16, FLOAT16 = CASES


@dataclass(frozen=True)
class Clean:
    """A way to compute that is right. `bits`: significant bits, for the growth in units of the roundoff."""

    name: str
    case: Case
    bits: int
    plant: Plant = nullcontext
    device: str = "cpu"  # the device whose bounds are taken


CLEAN = (
    Clean("float32 strict", STRICT, 24),
    Clean("float32 default, TensorFloat-32", DEFAULT, 11, rounded_inputs(cut_to_ten_bits)),
    Clean("float32 default, bfloat16 passes", DEFAULT, 8, rounded_inputs(to_bfloat16), "tpu"),
    Clean("bfloat16 mixed", BFLOAT16, 8),
    Clean("float16 mixed", FLOAT16, 11),
)


def train_and_judge(case: Case, seed: int, device: str = "cpu") -> JudgedCase:
    """As `command.run_case` does, on the CPU, whatever device is asked for."""
    side = proof.TorchSide()
    side.open("cpu")
    return command.run_case(side, case, device, seed)


def sabotage(fault: Fault, seed: int) -> JudgedCase:
    """Train with the fault in place, and judge."""
    torch.manual_seed(seed)  # for the dropouts that were left on
    with fault.plant():
        return train_and_judge(STRICT, seed, fault.device)


def measure_fault(fault: Fault, seeds: int) -> dict[str, Any]:
    """Which checks caught it, with the smallest worst / bound over the seeds; None where nothing was measured."""
    excess: dict[str, list[float | None]] = {}
    caught = 0
    for seed in range(seeds):
        failed = [check for check in sabotage(fault, seed).checks if not check.passed]
        caught += bool(failed)
        for check in failed:
            measured = None if check.worst is None or check.bound is None else check.worst / check.bound
            excess.setdefault(check.name, []).append(measured)
    checks = {
        name: None if None in values else round(min(value for value in values if value is not None), 2)
        for name, values in excess.items()
        if len(values) == seeds
    }
    return {"fault": fault.name, "caught": caught, "seeds": seeds, "worst_over_bound": checks}


def measure_clean(clean: Clean, runs: int) -> dict[str, Any]:
    """The worst errors over the seeds, as growth (in units of the roundoff) and against the bound; false alarms."""
    worst = {"loss": 0.0, "gradients": 0.0, "weights": 0.0}
    bounds: dict[str, float] = {}
    alarms = []
    for seed in range(runs):
        with clean.plant():
            checks = train_and_judge(clean.case, seed, clean.device).checks
        if not all(check.passed for check in checks if check.name != "device"):  # the device is not that one, of course
            alarms.append(seed)
        for check in checks:
            if check.name in worst and check.worst is not None and check.bound is not None:
                worst[check.name] = max(worst[check.name], check.worst)
                bounds[check.name] = check.bound
    return {
        "way": clean.name,
        "runs": runs,
        "false_alarms": alarms,
        "worst": worst,
        "bounds": bounds,
        "growth": {name: round(error * 2.0**clean.bits, 1) for name, error in worst.items()},
    }


def show_fault(row: dict[str, Any]) -> None:
    checks = ", ".join(
        f"{name} {excess:.3g} x" if excess is not None else name for name, excess in row["worst_over_bound"].items()
    )
    print(f"{row['fault']:<44} {row['caught']} of {row['seeds']}   {checks or 'MISSED'}")


def show_clean(row: dict[str, Any]) -> None:
    errors = ", ".join(f"{name} {row['worst'][name]:.1e} of {row['bounds'][name]:.1e}" for name in row["worst"])
    print(f"{row['way']:<34} {row['runs']} runs, {len(row['false_alarms'])} false alarms; worst: {errors}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="for each fault (default: 3)")
    parser.add_argument("--clean", type=int, default=100, help="clean runs of each kind (default: 100)")
    options = parser.parse_args()
    started = time.monotonic()
    faults, clean = [], []
    for fault in FAULTS:
        faults.append(measure_fault(fault, options.seeds))
        show_fault(faults[-1])
    for way in CLEAN:
        clean.append(measure_clean(way, options.clean))
        show_clean(clean[-1])
    caught = sum(row["caught"] == row["seeds"] for row in faults)
    alarms = sum(len(row["false_alarms"]) for row in clean)
    print(f"\n{caught} of {len(faults)} faults caught with every seed")
    print(f"{alarms} false alarms in {len(clean) * options.clean} clean runs")
    result = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": command.processor_name(),
        "seconds": round(time.monotonic() - started, 1),
        "faults": len(faults),
        "caught": caught,
        "clean": clean,
        "table": faults,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "proof_sabotage.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
