"""Each failure of the catalogue is seen in a snapshot that has it, and not in one that nearly has it."""

from __future__ import annotations

import json
import os
import re
import string
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelyard.environment import diagnose as diagnosing
from modelyard.environment.diagnose import LANGUAGES, RULE_FAILED, RULES, catalogue, diagnose, finding
from modelyard.environment.findings import ORDER, Finding
from modelyard.environment.rules import resources
from modelyard.environment.rules.builds import runs_on
from modelyard.environment.snapshot import Snapshot

SNAPSHOTS = Path(__file__).parent / "snapshots"
HEALTHY = sorted((SNAPSHOTS / "healthy").glob("*.json"))
FAILURES = sorted((SNAPSHOTS / "failures").glob("*.yaml"))
LINES = range(1, 34)  # of the list of failures that people meet
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def changed(base: str, *changes: dict[str, Any]) -> Snapshot:
    """A healthy snapshot with other values at dotted paths. Members of a list are named by name, purpose or number."""
    root = json.loads((SNAPSHOTS / "healthy" / f"{base}.json").read_text(encoding="utf-8"))
    for change in changes:
        for path, value in change.items():
            *parents, last = path.split(".")
            place = root
            for part in parents:
                place = member(place, part)
            put(place, last, value)
    return Snapshot.model_validate(root)


def member(place: Any, part: str) -> Any:
    if not isinstance(place, list):
        return place[part]
    if part.isdecimal():
        return place[int(part)]
    found = next((each for each in place if part in (each.get("name"), each.get("purpose"))), None)
    if found is None:
        found = {"name": part}
        place.append(found)
    return found


def put(place: Any, last: str, value: Any) -> None:
    """None takes a member of a list or of the variables away; a mapping changes only what it names."""
    if isinstance(place, list):
        found = member(place, last)
        if value is None:
            place.remove(found)
        else:
            found.update(value)
    elif isinstance(value, dict) and isinstance(place.get(last), dict):
        place[last].update(value)
    elif value is None and last.isupper():
        place.pop(last)
    else:
        place[last] = value


def grave(findings: list[Finding]) -> list[str]:
    return [each.rule for each in findings if each.severity != "note"]


def case(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("path", HEALTHY, ids=lambda path: path.stem)
def test_nothing_is_found_on_a_healthy_machine(path: Path) -> None:
    assert diagnose(Snapshot.model_validate_json(path.read_text(encoding="utf-8"))) == []


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert diagnose(Snapshot()) == []


@pytest.mark.parametrize("path", FAILURES, ids=lambda path: path.stem)
def test_a_failure_is_found_alone_with_its_fix(path: Path) -> None:
    given = case(path)
    snapshot = changed(given["base"], given.get("common", {}), given["triggers"])
    findings = diagnose(snapshot)
    found = next(each for each in findings if each.rule == path.stem)
    assert {path.stem, *grave(findings)} == {path.stem, *given.get("also", [])}
    assert any(given["fix_contains"] in each for each in found.fix), found.fix
    assert given.get("evidence_contains", "") in found.evidence
    assert found.safe is given.get("safe", False)


@pytest.mark.parametrize("path", FAILURES, ids=lambda path: path.stem)
def test_a_near_miss_is_not_found(path: Path) -> None:
    given = case(path)
    findings = diagnose(changed(given["base"], given.get("common", {}), given["silent"]))
    assert path.stem not in [each.rule for each in findings]
    assert grave(findings) == given.get("silent_also", [])


@pytest.mark.parametrize("path", FAILURES, ids=lambda path: path.stem)
@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_filled(path: Path, language: str) -> None:
    given = case(path)
    snapshot = changed(given["base"], given.get("common", {}), given["triggers"])
    for found in diagnose(snapshot, language):
        texts = (found.title, found.evidence, found.explanation, *found.fix)
        assert all(each and not re.search(r"[{}]|\bNone\b", each) for each in texts), texts
        if language == "zh":
            assert CHINESE.search(found.title) and CHINESE.search(found.explanation)
        else:
            assert not any(CHINESE.search(each) for each in texts)


def test_every_rule_has_texts_and_a_case() -> None:
    asked_for = {name for name, entry in catalogue().items() if entry.get("group") == "recipe"}
    assert set(RULES) | {RULE_FAILED} == set(catalogue()) - asked_for
    assert {path.stem for path in FAILURES} == set(RULES)


def test_every_line_of_the_list_has_a_rule() -> None:
    assert {entry["number"] for entry in catalogue().values()} - {None} == set(LINES)


@pytest.mark.parametrize("name", catalogue())
def test_an_entry_is_whole_in_both_languages(name: str) -> None:
    entry = catalogue()[name]
    keys = {"id", "number", "severity", "title", "evidence", "explanation", "fix", "safe", "source"}
    assert set(entry) - {"group"} == keys
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert entry["severity"] in ORDER and isinstance(entry["safe"], bool) and entry["fix"]
    assert entry["source"] == "" or entry["source"].startswith("https://")
    sentences = [each for each in entry["fix"] if not isinstance(each, str)]
    for texts in (entry["title"], entry["evidence"], entry["explanation"], *sentences):
        assert set(texts) == set(LANGUAGES)
        assert placeholders(texts["en"]) == placeholders(texts["zh"])
        assert all(each.strip() for each in texts.values())
    # The screen tells commands from sentences by the full stop.
    assert all(each["en"].endswith(".") and each["zh"].endswith("。") for each in sentences)
    assert not any(each.endswith((".", "。")) for each in entry["fix"] if isinstance(each, str))


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_the_worst_comes_first() -> None:
    snapshot = changed(
        "gpu-server",
        {
            "configuration.variables.CUDA_VISIBLE_DEVICES": "-1",
            "configuration.variables.KMP_DUPLICATE_LIB_OK": "1",
            "managed": [{"name": "a", "framework": "torch", "accelerator": "cu130", "state": "broken"}],
        },
    )
    assert [each.severity for each in diagnose(snapshot)] == ["error", "warning", "note"]


def test_a_rule_that_raises_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(snapshot: Snapshot) -> None:
        raise KeyError("gpu")

    monkeypatch.setitem(diagnosing.RULES, "torch-cpu-build", raises)
    findings = diagnose(changed("laptop-linux", {"configuration.variables.KMP_DUPLICATE_LIB_OK": "1"}))
    assert [(each.rule, each.severity) for each in findings] == [
        ("duplicate-openmp-allowed", "warning"),
        (RULE_FAILED, "note"),
    ]
    assert "torch-cpu-build" in findings[1].evidence and "KeyError" in findings[1].evidence


def test_an_unknown_language_is_english() -> None:
    values = {"value": "1", "command": "unset X"}
    assert finding("duplicate-openmp-allowed", values, "fr") == finding("duplicate-openmp-allowed", values, "en")


def test_values_with_braces_are_kept_as_they_are() -> None:
    problems = ["torchaudio-import: KeyError: {gpu}"]
    found = diagnose(changed("laptop-linux", {"installed.frameworks.torch.problems": problems}))
    assert "{gpu}" in found[0].evidence


def test_commands_on_windows_are_for_its_shell() -> None:
    variables = {"configuration.variables.KMP_DUPLICATE_LIB_OK": "1", "configuration.variables.OMP_NUM_THREADS": "64"}
    fixes = [each for one in diagnose(changed("windows", variables)) for each in one.fix]
    assert "Remove-Item Env:KMP_DUPLICATE_LIB_OK" in fixes
    assert '$env:OMP_NUM_THREADS = "24"' in fixes


def test_several_gpus_of_one_kind_are_one_finding() -> None:
    gpus = [{"index": each, "name": "Tesla P100", "capability": "6.0"} for each in range(4)]
    found = diagnose(changed("gpu-server", {"accelerators.nvidia.gpus": gpus}))
    assert [each.rule for each in found].count("gpu-architecture-missing") == 1


@pytest.mark.parametrize(
    ("compiled", "capability", "runs"),
    [
        (("sm_80",), "8.6", True),
        (("sm_86",), "8.0", False),
        (("sm_80", "sm_90"), "10.0", False),
        (("sm_90", "compute_90"), "12.0", True),
        (("sm_90a",), "9.0", True),
        (("sm_100a",), "10.3", False),
        (("sm_100f",), "10.3", True),
        (("sm_120",), "12.1", True),
        (("gfx1100",), "9.0", True),
        ((), "9.0", True),
    ],
)
def test_architectures_are_compared_as_the_driver_does(compiled: tuple[str, ...], capability: str, runs: bool) -> None:
    assert runs_on(compiled, capability) is runs


def test_this_machine_has_nothing_to_mend() -> None:
    probes = pytest.importorskip("modelyard.environment.probes")
    from modelyard.environment.host import Host

    class Fresh(Host):
        """Without what torch's compiler sets in the process of the tests, once one of them has used it."""

        @property
        def environ(self) -> dict[str, str]:
            return {name: value for name, value in os.environ.items() if name != "KMP_DUPLICATE_LIB_OK"}

    findings = diagnose(probes.take(Fresh(), network=False))
    # Little memory or a small disk is true of some machines that run these tests.
    assert set(grave(findings)) <= set(resources.RULES)
