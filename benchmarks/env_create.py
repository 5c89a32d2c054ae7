"""How long an environment takes from warm caches, proof included: python benchmarks/env_create.py [torch jax …]

1. ``env create`` for each framework on the CPU, in a process of its own and an empty folder, with what every step took.
One run before the first fills the caches and is not counted; then three, of which the median stands.
2. Installing the same lock with files copied out of uv's cache (as modelyard does) and with hard links to it.

Needs the network, or caches that are warm. Writes benchmarks/results/env_create.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from modelyard.environment.store import BuildFolder, Store
from modelyard.environment.uv import Uv

RESULTS = Path(__file__).parent / "results" / "env_create.json"
TARGET_SECONDS = 60
RUNS = 3
CREATE = """
import json, sys
from pathlib import Path
from modelyard.environment.building import Tools
from modelyard.environment.create import create
create(sys.argv[1], "cpu", name="benchmark", folder=Path(sys.argv[2]),
       tools=Tools(listener=lambda event: print(json.dumps(event), flush=True)))
"""


def create(framework: str, folder: Path) -> dict[str, Any]:
    """Seconds of one `env create`, with its steps and what the proof took by its own account."""
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", CREATE, framework, str(folder)], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.monotonic() - started
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    proof = build_in(folder).read_proof()
    return {
        "seconds": round(seconds, 2),
        "steps": {each["name"]: each["seconds"] for each in events if each.get("state") == "done"},
        "proof_seconds": proof["seconds"],
        "passed": proof["passed"],
    }


def build_in(folder: Path) -> BuildFolder:
    build = Store(folder).open("benchmark").build
    assert build is not None
    return build


def installing(build: BuildFolder, folder: Path) -> dict[str, float]:
    """Median seconds of installing one lock by each way of linking."""
    result = {}
    for mode in ("copy", "hardlink"):
        times = []
        for _ in range(RUNS):
            place = folder / "linked"
            uv = Uv(variables={"UV_PROJECT_ENVIRONMENT": str(place)})
            os.sync()
            started = time.monotonic()
            uv.run(["sync", "--frozen", "--link-mode", mode, "--python", str(build.python)], build.path, print_nothing)
            times.append(time.monotonic() - started)
            shutil.rmtree(place)
        result[mode] = round(statistics.median(times), 2)
    return result


def print_nothing(event: dict[str, Any]) -> None:
    """uv's lines are not wanted here."""


def size_bytes(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())


def measure(framework: str) -> dict[str, Any]:
    """All figures of one framework."""
    with tempfile.TemporaryDirectory(prefix="modelyard-env-create-") as name:
        folder = Path(name)
        create(framework, folder / "warm-up")
        runs = []
        for number in range(RUNS):
            os.sync()
            runs.append(create(framework, folder / str(number)))
            print(f"{framework}: {runs[-1]['seconds']:.1f} s {runs[-1]['steps']}", flush=True)
            if number < RUNS - 1:
                shutil.rmtree(folder / str(number))
        build = build_in(folder / str(RUNS - 1))
        proof = build.read_proof()
        return {
            "median_seconds": statistics.median(each["seconds"] for each in runs),
            "target_seconds": TARGET_SECONDS,
            "reached": statistics.median(each["seconds"] for each in runs) <= TARGET_SECONDS,
            "framework": proof["framework"],
            "environment_bytes": size_bytes(build.virtual_environment),
            "runs": runs,
            "installing_seconds": installing(build, folder),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frameworks", nargs="*", default=["torch"], help="torch, tensorflow, jax (default: torch)")
    frameworks = parser.parse_args().frameworks
    written = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results = {
        "machine": {
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "uv": version("uv"),
            "load_average": os.getloadavg(),
        },
        "frameworks": written.get("frameworks", {}) | {each: measure(each) for each in frameworks},
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({name: each["median_seconds"] for name, each in results["frameworks"].items()}))
    return 0 if all(each["reached"] for each in results["frameworks"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
