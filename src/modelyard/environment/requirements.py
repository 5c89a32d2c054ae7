"""Is this machine enough for that recipe? What `modelyard doctor --for recipe.yaml` adds to the diagnosis.

All sizes are estimates or floors and are called so in the texts. What is not known is passed over.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import yaml

from modelyard.environment.compatibility import version_key
from modelyard.environment.diagnose import finding, worst_first
from modelyard.environment.findings import Finding
from modelyard.environment.host import Host
from modelyard.environment.rules import Values, facts
from modelyard.environment.snapshot import Framework, Gpu, Snapshot
from modelyard.recipe.schema import ArchitectureSection, Recipe

BFLOAT16_CAPABILITY = "8.0"
# Instructions that multiply in bfloat16. "bf16" is Arm's name.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
LOCAL = ("package:", "/", "./", "../", "~")
WEIGHT_BYTES = 4  # float32
TRAINING_COPIES = 4  # weights, gradients, Adam's two moments
CHECKPOINT_COPIES = 3  # weights and Adam's two moments
# A guess for the vocabulary that a model from scratch gets, unless the recipe names one.
VOCABULARY = 8192


def enough(
    recipe: Recipe, snapshot: Snapshot, language: str = "en", *, path: str = "recipe.yaml", host: Host | None = None
) -> list[Finding]:
    """What this machine lacks for `recipe`, worst first; empty if nothing is known to be missing.

    path: of the recipe, for the commands. host: where folders and caches are looked up; None for a snapshot of another
    machine, whose files are not here.
    """
    checks = {
        "recipe-framework-missing": _framework_missing(recipe, snapshot),
        "recipe-device-missing": _device_missing(recipe, snapshot),
        "recipe-bfloat16-slow": _bfloat16_slow(recipe, snapshot),
        "recipe-model-not-here": _model_not_here(recipe, snapshot, host),
        "recipe-disk-too-small": _disk_too_small(recipe, snapshot, host),
        "recipe-memory-too-small": _memory_too_small(recipe, snapshot, host),
    }
    found = {name: values for name, values in checks.items() if values is not None}
    return worst_first([finding(name, {"recipe": path, **values}, language) for name, values in found.items()])


def _framework_missing(recipe: Recipe, snapshot: Snapshot) -> Values | None:
    framework = recipe.environment.framework
    installed = snapshot.installed.version(framework) or snapshot.installed.framework(framework)
    ready = any(each.framework == framework and each.state == "ready" for each in snapshot.managed)
    if installed or ready or not snapshot.python.version:
        return None
    return {"framework": framework, "python": snapshot.python.executable or "python"}


def _device_missing(recipe: Recipe, snapshot: Snapshot) -> Values | None:
    device = recipe.environment.device
    if not device.startswith("cuda"):
        return None
    # A probe that could not look says nothing about what is there.
    if not snapshot.system.name or any("accelerator" in each.probe for each in snapshot.unread):
        return None
    index = int(device.partition(":")[2] or 0)
    count = len(_gpus(snapshot))
    torch = snapshot.installed.framework("torch")
    if torch is not None and facts.works(torch) and torch.built_for in ("cuda", "rocm"):  # it knows best
        count = sum(each.startswith("cuda") for each in torch.devices)
    return {"device": device, "count": count} if index >= count else None


def _gpus(snapshot: Snapshot) -> tuple[Gpu, ...]:
    """GPUs that torch calls ``cuda:N``: NVIDIA's that are not hidden, else AMD's own cards."""
    seen = snapshot.accelerators
    nvidia = () if facts.gpus_hidden(snapshot) else seen.nvidia.gpus
    return nvidia or tuple(each for each in seen.amd.gpus if not each.integrated)


def _gpu(recipe: Recipe, snapshot: Snapshot) -> Gpu | None:
    """The GPU that the recipe computes on, None for the processor."""
    device, gpus = recipe.environment.device, _gpus(snapshot)
    index = int(device.partition(":")[2] or 0)
    torch = snapshot.installed.framework("torch")
    if device == "cpu" or index >= len(gpus):
        return None
    if device == "auto" and torch is not None and not _reaches(torch):  # `auto` takes only what works
        return None
    return gpus[index]


def _reaches(torch: Framework) -> bool:
    return facts.reaches_accelerator(torch) if facts.works(torch) else torch.built_for != "cpu"


def _bfloat16_slow(recipe: Recipe, snapshot: Snapshot) -> Values | None:
    if recipe.training.precision != "bfloat16":
        return None
    gpu = _gpu(recipe, snapshot)
    if gpu is not None:
        if not version_key(gpu.capability) or version_key(gpu.capability) >= version_key(BFLOAT16_CAPABILITY):
            return None
        return {"device": gpu.name or "GPU", "reason": f"{gpu.capability} < {BFLOAT16_CAPABILITY}"}
    cpu = snapshot.cpu
    if recipe.environment.device.startswith("cuda") or not cpu.instructions:
        return None
    if any(each in cpu.instructions for each in BFLOAT16_INSTRUCTIONS):
        return None
    return {"device": cpu.name or "CPU", "reason": ", ".join(cpu.instructions)}


def _model_not_here(recipe: Recipe, snapshot: Snapshot, host: Host | None) -> Values | None:
    model = recipe.design.model
    if model is None or not _is_hub_id(model, host):
        return None
    reach = next((each for each in snapshot.reach if each.purpose == "hub"), None)
    offline = snapshot.configuration.hub_offline
    if not offline and (reach is None or reach.reached):
        return None
    home, variables = snapshot.configuration.hub_home, snapshot.configuration.variables
    cache = variables.get("HF_HUB_CACHE") or (f"{home}/hub" if home else "")
    if host is None or not cache or host.glob(_cached(cache, model), "snapshots/*/config.json"):
        return None
    problem = "HF_HUB_OFFLINE" if offline or reach is None else reach.problem
    address = reach.address if reach is not None else "hub"
    return {"model": model.partition("@")[0], "cache": cache, "address": address, "problem": problem or "?"}


def _is_hub_id(model: str, host: Host | None) -> bool:
    if model.startswith(LOCAL) or (host is not None and host.exists(model)):
        return False
    return HUB_ID.fullmatch(model.partition("@")[0]) is not None


def _cached(cache: str, model: str) -> str:
    """The folder of the hub's cache that holds a model: ``models--org--name``."""
    return f"{cache}/models--{model.partition('@')[0].replace('/', '--')}"


def _disk_too_small(recipe: Recipe, snapshot: Snapshot, host: Host | None) -> Values | None:
    disk, weights = snapshot.disk("here"), _weight_bytes(recipe, host)
    if disk is None or disk.free_bytes is None or weights is None:
        return None
    checkpoints = recipe.training.keep_checkpoints + 1  # and the best
    needed = weights * (CHECKPOINT_COPIES * (checkpoints + 1) + 2)  # one more while it is written; model and bundle
    if disk.free_bytes >= needed:
        return None
    sizes = {"free": facts.size(disk.free_bytes), "needed": facts.size(needed)}
    return {"path": disk.path, "checkpoints": checkpoints, **sizes}


def _memory_too_small(recipe: Recipe, snapshot: Snapshot, host: Host | None) -> Values | None:
    weights, gpu = _weight_bytes(recipe, host), _gpu(recipe, snapshot)
    usable = gpu.total_bytes if gpu is not None else snapshot.memory.usable_bytes
    if weights is None or usable is None or usable >= weights * TRAINING_COPIES:
        return None
    if gpu is None and recipe.environment.device.startswith("cuda"):  # the missing device is said elsewhere
        return None
    return {
        "device": (gpu.name or "GPU") if gpu is not None else (snapshot.cpu.name or "CPU"),
        "usable": facts.size(usable),
        "needed": facts.size(weights * TRAINING_COPIES),
        "parameters": f"{weights // WEIGHT_BYTES:,}",
    }


def _weight_bytes(recipe: Recipe, host: Host | None) -> int | None:
    """Bytes of the model in float32, None where that cannot be told without a download."""
    if recipe.design.architecture is not None:
        return WEIGHT_BYTES * parameters_from_scratch(recipe.design.architecture)
    model = recipe.design.model or ""
    if host is None:
        return None
    folders = [_package_folder(model)] if model.startswith("package:") else [model]
    if _is_hub_id(model, host):
        return None
    return next((size for each in folders if (size := _safetensors_bytes(each))), None)


def _safetensors_bytes(folder: str) -> int:
    """Sizes of the weights' files; half of the truth for a model stored in 16 bits, so a floor."""
    try:
        return (
            sum(each.stat().st_size for each in Path(folder).expanduser().glob("model*.safetensors")) if folder else 0
        )
    except (OSError, RuntimeError, ValueError):
        return 0


def _package_folder(model: str) -> str:
    name, _, inside = model.removeprefix("package:").partition("/")
    spec = find_spec(name) if name.isidentifier() else None  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        return ""
    return str(Path(spec.submodule_search_locations[0]) / inside)


def parameters_from_scratch(architecture: ArchitectureSection) -> int:
    """Parameters of a model from scratch, without its small head.

    A layer has four projections of H to H (seven in Longformer, arXiv 2004.05150, 3.1) and two to and from the
    feed-forward width; biases and normalisations are below a hundredth and left out.
    """
    # The dimensions are data of the design room, which stands above this one: the file is read, nothing is imported.
    text = (Path(__file__).parents[1] / "design" / "presets.yaml").read_text(encoding="utf-8")
    presets = yaml.safe_load(text)
    size = presets["sizes"][architecture.preset]
    hidden = architecture.hidden_size or size["hidden_size"]
    layers = architecture.num_layers or size["num_layers"]
    projections = 7 if architecture.family == "longformer" else 4
    layer = (projections + 2 * presets["feed_forward_factor"]) * hidden * hidden
    positions = presets["families"][architecture.family]["max_length"]
    return int(layers * layer + hidden * ((architecture.vocab_size or VOCABULARY) + positions))
