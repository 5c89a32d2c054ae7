"""From a snapshot to findings: the conditions of rules/ joined with the texts of failures.yaml.

Texts are loaded only when there is something to say. A rule that raises is itself a note and hides no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from modelyard.environment import compatibility
from modelyard.environment.findings import ORDER, Finding
from modelyard.environment.rules import Rule, Values, builds, drivers, network, numerics, packages, platforms, resources
from modelyard.environment.snapshot import Snapshot

RULES: dict[str, Rule] = {
    **builds.RULES,
    **drivers.RULES,
    **platforms.RULES,
    **packages.RULES,
    **resources.RULES,
    **network.RULES,
    **numerics.RULES,
}
RULE_FAILED = "rule-failed"
LANGUAGES = ("en", "zh")


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """failures.yaml by identifier, in its order."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (files("modelyard.environment") / "failures.yaml").read_text(encoding="utf-8")
    return {entry["id"]: entry for entry in yaml.load(text, Loader=loader)}


def diagnose(snapshot: Snapshot, language: str = "en") -> list[Finding]:
    """What is wrong with the machine of `snapshot`, worst first, in ``en`` or ``zh``. Never raises for its content."""
    found: list[Finding] = []
    shared: Values | None = None
    for name, rule in RULES.items():
        try:
            result = rule(snapshot)
            for values in [] if not result else result if isinstance(result, list) else [result]:
                shared = _shared(snapshot) if shared is None else shared
                found.append(finding(name, {**shared, **values}, language))
        except Exception as error:  # a snapshot can hold anything; the other rules have their say
            problem = f"{type(error).__name__}: {error}"[:300]
            found.append(finding(RULE_FAILED, {"rule": name, "problem": problem}, language))
    return worst_first(found)


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Errors, warnings, notes; in the order of the catalogue within each."""
    place = {name: number for number, name in enumerate(catalogue())} if findings else {}
    return sorted(findings, key=lambda each: (ORDER[each.severity], place[each.rule]))


def finding(rule: str, values: Mapping[str, object], language: str = "en") -> Finding:
    """The texts of one failure, filled with its values."""
    entry = catalogue()[rule]
    language = language if language in LANGUAGES else "en"

    def text(template: str | dict[str, str]) -> str:
        chosen = template if isinstance(template, str) else template[language]
        return chosen.format_map(values).strip()

    return Finding(
        rule=rule,
        severity=entry["severity"],
        title=text(entry["title"]),
        evidence=text(entry["evidence"]),
        explanation=text(entry["explanation"]),
        fix=tuple(filled for each in entry["fix"] if (filled := text(each))),
        safe=entry["safe"],
        source=entry["source"],
    )


def _shared(snapshot: Snapshot) -> Values:
    """What any text may use; a rule's own values stand before these."""
    try:
        accelerator = compatibility.suggest_accelerator(snapshot)
    except Exception:  # as for the rules; `auto` is what the command takes when nothing is said
        accelerator = "auto"
    return {"accelerator": accelerator, "python": snapshot.python.executable or "python"}
