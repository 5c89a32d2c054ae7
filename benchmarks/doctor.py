"""How long `modelyard doctor` takes and how much memory, beside the tools that people are asked to run in bug reports.

    python benchmarks/doctor.py [--repeats 5]

Each program is started in turn, so that whatever else the machine does falls on all; medians are compared. Memory is
the largest resident size of the program or of any process that it started, as the kernel counted it. The doctor asks
the network too (a bounded wait); ``--quick`` leaves that out, and ``--deep`` imports the frameworks as the others do.

Needs: pip install -e '.[torch]' accelerate. Prints a table and writes benchmarks/results/doctor.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "doctor.json"
OURS = "modelyard doctor"
LIMIT_SECONDS, LIMIT_BYTES = 1.0, 80e6
FINE = (0, 3)  # the doctor's 3: something must be mended
KIB = 1024 if sys.platform == "linux" else 1  # ru_maxrss is KiB on Linux and bytes on macOS


@dataclass(frozen=True)
class Run:
    seconds: float
    cpu_seconds: float  # of all its threads and processes; unlike `seconds` it does not grow on a busy machine
    peak_bytes: int


def contestants() -> dict[str, list[str]]:
    """The commands, those of the peers only where they are installed."""
    python, folder = sys.executable, Path(sys.executable).parent
    doctor = [python, "-m", "modelyard", "doctor"]
    found = {OURS: doctor, f"{OURS} --quick": [*doctor, "--quick"], f"{OURS} --deep": [*doctor, "--deep"]}
    for name in ("transformers", "accelerate"):
        if (folder / name).exists():
            found[f"{name} env"] = [str(folder / name), "env"]
    if _version("torch"):
        found["torch collect_env"] = [python, "-m", "torch.utils.collect_env"]
    return found


def measure(command: list[str]) -> Run:
    """Start it, wait for it. Raises SystemExit with what it said when it fails, so that no failure looks fast."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in FINE:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * KIB)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine() -> dict[str, Any]:
    packages = ("modelyard", "torch", "transformers", "accelerate")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),  # far above 0: the seconds are those of a busy machine
        "versions": {package: _version(package) for package in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    here = machine()
    commands = contestants()
    for command in commands.values():
        measure(command)  # files into the page cache, for all alike
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            runs[name].append(measure(command))
    seconds = {name: statistics.median(each.seconds for each in taken) for name, taken in runs.items()}
    cpu = {name: statistics.median(each.cpu_seconds for each in taken) for name, taken in runs.items()}
    peaks = {name: statistics.median(each.peak_bytes for each in taken) for name, taken in runs.items()}
    print(f"{'':26} {'seconds':>8} {'CPU':>6} {'MB':>6} {'time':>7} {'memory':>7}")
    for name in commands:
        ratios = f"{seconds[name] / seconds[OURS]:6.1f}x {peaks[name] / peaks[OURS]:6.1f}x"
        print(f"{name:26} {seconds[name]:8.2f} {cpu[name]:6.2f} {peaks[name] / 1e6:6.0f} {ratios}")
    reached = seconds[OURS] < LIMIT_SECONDS and peaks[OURS] < LIMIT_BYTES
    print(f"{here['cores']} cores, load before: {here['load_before']}")
    print(f"below {LIMIT_SECONDS:g} s and {LIMIT_BYTES / 1e6:.0f} MB: {'yes' if reached else 'no'}")
    table = {
        name: {
            "seconds": round(seconds[name], 3),
            "cpu_seconds": round(cpu[name], 3),
            "peak_bytes": int(peaks[name]),
            "all_seconds": [round(each.seconds, 3) for each in runs[name]],
        }
        for name in commands
    }
    RESULTS.write_text(json.dumps({"machine": here, "repeats": repeats, "programs": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
