"""``modelyard doctor --fix``: what is safe is done, anything else is asked first, and sudo is never run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

from modelyard.cli.doctor import is_sentence
from modelyard.cli.environment_messages import say
from modelyard.cli.page import agreed, interactive

if TYPE_CHECKING:
    from modelyard.cli.page import Page
    from modelyard.environment.findings import Finding

# These need rights that nobody gave us, change only the shell that runs them, start the machine or a container anew, or
# have a place to be filled in (<NAME>, IMAGE): only the person can do them.
BY_HAND = re.compile(
    r"\b(sudo|su|doas|runas|reboot|shutdown|docker|podman|kubectl)\b"
    r"|(^|[;&|]\s*)(export|set|unset|source|cd|exit)\s"
    r"|\$env:|\bEnv:"
    r"|<[\w -]+>|…|(?<![\w=/$.-])[A-Z]{4,}(?![\w=/.-])"
)
OWN = re.compile(r"^modelyard env repair \S+$")


def mend(page: Page, findings: list[Finding], spoken: str, *, agreed_beforehand: bool) -> bool:
    """Go through the findings; True if something was run, so that another look is worth it."""
    commands = [finding for finding in findings if any(not is_sentence(fix) for fix in finding.fix)]
    if not commands:
        if findings:
            page.line(say("fix.nothing", spoken))
        return False
    done: set[tuple[str, ...]] = set()
    ran = False
    for finding in commands:
        fix = tuple(each for each in finding.fix if not is_sentence(each))
        if fix not in done:
            done.add(fix)
            ran |= _mend_one(page, finding, fix, spoken, agreed_beforehand)
    return ran


def _mend_one(page: Page, finding: Finding, fix: tuple[str, ...], spoken: str, agreed_beforehand: bool) -> bool:
    page.line(say("fix.doing", spoken, title=finding.title), "bold")
    if any(BY_HAND.search(command) for command in fix):
        page.line(say("fix.yourself", spoken), "", 2)
        for command in fix:
            page.command(command, 2)
        page.line()
        return False
    for command in fix:
        page.command(command, 2)
    if finding.safe and all(OWN.match(command) for command in fix):
        page.line(say("fix.safe", spoken), "dim", 2)
    elif not agreed_beforehand:
        if not interactive():
            page.line(say("fix.not_asked", spoken), "dim", 2)
            page.line()
            return False
        if not agreed("  " + say("fix.ask", spoken), otherwise=False):
            page.line(say("fix.declined", spoken), "dim", 2)
            page.line()
            return False
    for command in fix:
        code = _run(command)
        if code:
            page.line(say("fix.failed", spoken, code=code), "error", 2)
            break
    page.line()
    return True


def _run(command: str) -> int:
    """Run one command with this terminal; what it prints goes to standard error, because ours may be JSON."""
    if command.startswith("modelyard "):  # this very modelyard, wherever the shell would look for it
        words = [sys.executable, "-m", *shlex.split(command)]
        return subprocess.run(words, stdout=sys.stderr.fileno(), check=False).returncode
    return subprocess.run(command, shell=True, stdout=sys.stderr.fileno(), check=False).returncode
