"""Where modelyard keeps what is shared between runs: prepared data and environments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(variables: Mapping[str, str] = os.environ) -> Path:
    """Where prepared data is shared between runs: MODELYARD_CACHE, else the usual cache folder of the system."""
    if variables.get("MODELYARD_CACHE"):
        return Path(variables["MODELYARD_CACHE"]).expanduser()
    if os.name == "nt":
        return Path(variables.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "modelyard" / "cache"
    return Path(variables.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "modelyard"


def environments_folder(variables: Mapping[str, str] = os.environ) -> Path:
    """Where `modelyard env` keeps environments: MODELYARD_ENVIRONMENTS, else the usual data folder of the system."""
    if variables.get("MODELYARD_ENVIRONMENTS"):
        return Path(variables["MODELYARD_ENVIRONMENTS"]).expanduser()
    if os.name == "nt":
        return Path(variables.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "modelyard" / "environments"
    return Path(variables.get("XDG_DATA_HOME", Path.home() / ".local/share")) / "modelyard" / "environments"
