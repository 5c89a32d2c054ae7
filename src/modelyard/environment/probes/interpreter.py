"""What a Python says of itself. Run as a program by the Python that is asked, so it stands alone and is plain.

It prints one JSON object; every Python since 3.6 can run it.
"""

import json
import struct
import sys
from pathlib import Path


def facts() -> "dict[str, object]":
    """Version, folders, and the versions of pip and uv by the names of their metadata folders."""
    installed: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = [each.name for each in Path(folder or ".").iterdir()]
        except OSError:
            continue
        for name in names:
            if name.startswith(("pip-", "uv-")) and name.endswith((".dist-info", ".egg-info")):
                package, _, version = name.rpartition(".")[0].partition("-")
                installed.setdefault(package, version.split("-")[0])
    prefix, library = Path(sys.prefix), Path(json.__file__).parent.parent
    return {
        "executable": sys.executable or "",
        "version": ".".join(str(each) for each in sys.version_info[:3]) + _ending(),
        "bits": struct.calcsize("P") * 8,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "conda": (prefix / "conda-meta").is_dir(),
        "externally_managed": (library / "EXTERNALLY-MANAGED").is_file(),
        "pip": installed.get("pip", ""),
        "uv": installed.get("uv", ""),
    }


def _ending() -> str:
    """What follows the numbers: "rc1" of 3.15.0rc1, nothing for a release."""
    version = sys.version_info
    short = {"alpha": "a", "beta": "b", "candidate": "rc"}.get(version.releaselevel)
    return f"{short}{version.serial}" if short else ""


if __name__ == "__main__":
    print(json.dumps(facts()))
