"""The environments that `modelyard env` made, read from their files alone."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

from modelyard.environment.host import Host
from modelyard.environment.snapshot import Managed


def managed(host: Host, folder: str) -> tuple[Managed, ...]:
    """Every environment below `folder`, whatever state it is in."""
    named = host.glob(folder, "*/environment.json")
    begun = [str(PurePath(build).parent / "environment.json") for build in host.glob(folder, "*/builds")]
    return tuple(_environment(host, PurePath(path)) for path in sorted({*named, *begun}))


def _environment(host: Host, path: PurePath) -> Managed:
    """unfinished: never made ready. broken: its build is gone or its files cannot be read. ready: all there."""
    folder, name = path.parent, path.parent.name
    text = host.read_text(str(path))
    if text is None:
        return Managed(name=name, state="unfinished")
    said = _table(text)
    current = str(said.get("current") or "")
    described = {key: str(said.get(key) or "") for key in ("framework", "accelerator")}
    if not said:
        return Managed(name=name, state="broken")
    if not current:
        return Managed(name=name, state="unfinished", **described)
    build = folder / "builds" / current
    ready = _table(host.read_text(str(build / "build.json"))).get("state") == "ready"
    if not host.exists(str(build / ".venv")):  # whatever was proved of it is of no interest any more
        return Managed(name=name, state="broken", **described)
    proof = _table(host.read_text(str(build / "proof.json")))
    passed = proof.get("passed")
    return Managed(
        name=name,
        state="ready" if ready else "broken",
        proved=passed if isinstance(passed, bool) else None,
        proof_failures=_failures(proof),
        **described,
    )


def _failures(proof: dict[str, Any]) -> tuple[str, ...]:
    """ "float32 strict: gradients" for each check that failed, and the second proof's own words."""
    found = []
    for case in _tables(proof.get("cases")):
        if case.get("passed") is False:
            failed = [str(each.get("name", "")) for each in _tables(case.get("checks")) if each.get("passed") is False]
            found.append(f"{case.get('precision', '')} {case.get('mode', '')}: {', '.join(failed)}")
    stack = proof.get("stack")
    if isinstance(stack, dict) and stack.get("passed") is False:
        found.append(f"{stack.get('what', '')}: {stack.get('detail', '')}")
    return tuple(each[:500] for each in found)


def _table(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _tables(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
