"""``modelyard doctor``: what this machine is, what is wrong with it, and the commands that mend it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.cli.environment_messages import count, say
from modelyard.cli.main import language
from modelyard.errors import InputError, UsageError

if TYPE_CHECKING:
    from modelyard.cli.page import Page
    from modelyard.environment.findings import Finding
    from modelyard.environment.probes import Ask
    from modelyard.environment.snapshot import Snapshot

SEVERITIES = ("error", "warning", "note")
SENTENCE_ENDS = (".", "。", "！", "!")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to look at, how deeply, and in which form it is said."""
    parser.add_argument("--for", dest="recipe", type=Path, metavar="RECIPE", help="is it enough for this recipe?")
    parser.add_argument("--python", metavar="PATH", help="look at this Python instead of the one that runs modelyard")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--deep", action="store_true", help="import each framework (in a process of its own) and ask it")
    depth.add_argument("--quick", action="store_true", help="import nothing and ask no address")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write what was found, without private things")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="diagnose what --record wrote")
    parser.add_argument("--markdown", action="store_true", help="for a bug report, without private things")
    parser.add_argument("--fix", action="store_true", help="mend what can be mended; asks before it runs anything")
    parser.add_argument("--yes", action="store_true", help="with --fix: do not ask (never runs sudo)")


def run(arguments: argparse.Namespace) -> int:
    """Diagnose, and say it; 3 if something must be mended."""
    _check(arguments)
    from modelyard.cli.page import Page

    spoken = language()
    snapshot, findings = examine(arguments, spoken)
    if arguments.record is not None:
        from modelyard.environment import record

        record.write(record.redact(snapshot), arguments.record)
        Page(sys.stderr).line(say("recorded", spoken, path=arguments.record), "dim")
    if arguments.fix:
        from modelyard.cli.doctor_fix import mend

        page = Page(sys.stderr if arguments.json or arguments.markdown else sys.stdout)
        show_findings(page, findings, spoken)
        if mend(page, findings, spoken, agreed_beforehand=arguments.yes):
            snapshot, findings = examine(arguments, spoken)
            page.line(say("fix.again", spoken), "bold")
            page.line()
        elif not (arguments.json or arguments.markdown):
            return exit_code(findings)
    if arguments.json:
        print(json.dumps(as_json(snapshot, findings), ensure_ascii=False))
    elif arguments.markdown:
        print(markdown(snapshot, findings, spoken))
    else:
        show(Page(), snapshot, findings, spoken, from_file=arguments.source is not None)
    return exit_code(findings)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.source is not None:
        for name in ("fix", "python", "deep", "quick"):
            if getattr(arguments, name):
                raise UsageError(
                    f"--from {arguments.source} is about another machine, on which --{name} can do nothing",
                    hint=f"modelyard doctor --from {arguments.source}",
                )
    if arguments.yes and not arguments.fix:
        raise UsageError("--yes agrees to what --fix does, which was not given", hint="modelyard doctor --fix --yes")
    if arguments.python is not None and shutil.which(arguments.python) is None:
        raise InputError(
            f"{arguments.python} is no program that can be started, so it cannot be asked",
            hint="give the path of a Python: --python .venv/bin/python",
        )
    if arguments.json and arguments.markdown:
        raise UsageError("--json and --markdown are two forms of the same", hint="modelyard doctor --markdown")


def examine(arguments: argparse.Namespace, spoken: str) -> tuple[Snapshot, list[Finding]]:
    """The snapshot that was asked for, and all that is found in it, worst first."""
    from modelyard.environment.diagnose import diagnose
    from modelyard.environment.findings import ORDER

    snapshot = look(arguments)
    findings = list(diagnose(snapshot, spoken))
    if arguments.recipe is not None:
        from modelyard.environment.host import Host
        from modelyard.environment.requirements import enough
        from modelyard.recipe.load import load_recipe

        recipe = load_recipe(arguments.recipe).recipe
        host = None if arguments.source is not None else Host()  # the folders of another machine are not here
        findings += enough(recipe, snapshot, spoken, path=str(arguments.recipe), host=host)
    return snapshot, sorted(findings, key=lambda finding: ORDER[finding.severity])


def look(arguments: argparse.Namespace) -> Snapshot:
    """Read a recorded snapshot, or take one; redacted if it is for others to read."""
    from modelyard.environment import record

    if arguments.source is not None:
        return record.read(arguments.source)
    from modelyard.environment import probes
    from modelyard.environment.host import Host

    ask: Ask = "always" if arguments.deep else "never" if arguments.quick else "auto"
    snapshot = probes.take(Host(), python=arguments.python, ask=ask, network=not arguments.quick)
    return record.redact(snapshot) if arguments.markdown else snapshot


def exit_code(findings: list[Finding]) -> int:
    """3 (the machine) if something must be mended, else 0."""
    return 3 if any(finding.severity == "error" for finding in findings) else 0


def as_json(snapshot: Snapshot, findings: list[Finding]) -> dict[str, object]:
    """The whole answer for a program; the verdict is the worst severity, or ``fine``."""
    import dataclasses

    return {
        "verdict": findings[0].severity if findings else "fine",
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "snapshot": snapshot.model_dump(mode="json"),
    }


def verdict(findings: list[Finding], spoken: str) -> str:
    """``2 things to mend, 1 warning``."""
    numbers = Counter(finding.severity for finding in findings)
    parts = [count("mend", numbers["error"], spoken) if numbers["error"] else say("mend.none", spoken)]
    parts += [count(name, numbers[name], spoken) for name in ("warning", "note") if numbers[name]]
    return say("comma", spoken).join(parts)


def show(page: Page, snapshot: Snapshot, findings: list[Finding], spoken: str, *, from_file: bool = False) -> None:
    """The verdict, the findings, the machine."""
    from modelyard.cli.doctor_machine import groups
    from modelyard.cli.page import cells

    show_findings(page, findings, spoken)
    if from_file:
        machine = snapshot.system.distribution or snapshot.system.name or say("another_machine", spoken)
        page.line(say("taken", spoken, machine=machine, time=readable(snapshot.taken)), "dim")
        page.line()
    told = groups(snapshot, spoken)
    width = max((cells(label) for label, _ in told), default=0)
    for label, lines in told:
        page.labelled(label, [(line, "") for line in lines], width, "dim")


def show_findings(page: Page, findings: list[Finding], spoken: str) -> None:
    """The verdict in one line, then each finding, worst first."""
    from modelyard.cli.page import cells

    worst = findings[0].severity if findings else "good"
    page.line(verdict(findings, spoken), worst if worst in ("error", "warning") else "bold green")
    page.line()
    width = max(cells(say(f"severity.{name}", spoken)) for name in SEVERITIES)
    for finding in findings:
        show_finding(page, finding, spoken, width)


def show_finding(page: Page, finding: Finding, spoken: str, width: int) -> None:
    """What it is, what shows it, why it matters, and the commands, each in a line of its own."""
    said = [(finding.title, "bold"), (finding.evidence, "dim"), (finding.explanation, "")]
    lines = [each for each in said if each[0]]
    page.labelled(say(f"severity.{finding.severity}", spoken), lines, width, finding.severity)
    indent = 2 if page.narrow else width + 2
    for command in finding.fix:
        if is_sentence(command):
            page.line(command, "", indent)
        else:
            page.command(command, indent)
    if finding.source:
        page.line(finding.source, "dim", indent)
    page.line()


def is_sentence(fix: str) -> bool:
    """Whether a fix is something for a person to do, and no command."""
    return fix.rstrip().endswith(SENTENCE_ENDS) and not fix.rstrip().endswith((" .", "/."))


def readable(taken: str) -> str:
    """``2026-11-23T20:31:05+00:00`` as ``2026-11-23 20:31 UTC``."""
    return f"{taken[:10]} {taken[11:16]} UTC" if len(taken) >= 16 and taken[10] == "T" else taken


def markdown(snapshot: Snapshot, findings: list[Finding], spoken: str) -> str:
    """For a bug report: the machine as a table, the findings as a list."""
    from modelyard.cli.doctor_machine import groups

    lines = [f"### modelyard doctor: {verdict(findings, spoken)}", "", "| | |", "| --- | --- |"]
    lines.append(f"| modelyard | {snapshot.modelyard}, {readable(snapshot.taken)} |")
    for label, told in groups(snapshot, spoken):
        lines.append(f"| {label} | {'<br>'.join(each.replace('|', chr(92) + '|') for each in told)} |")
    for finding in findings:
        severity = say(f"severity.{finding.severity}", spoken)
        lines += ["", f"**{severity}: {finding.title}** (`{finding.rule}`)", "", finding.evidence]
        lines += ["", finding.explanation]
        commands = [fix for fix in finding.fix if not is_sentence(fix)]
        lines += ["", *(fix for fix in finding.fix if is_sentence(fix))]
        if commands:
            lines += ["```console", *commands, "```"]
    return "\n".join(lines)
