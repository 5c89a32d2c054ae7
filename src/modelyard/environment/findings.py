"""What is wrong, as the diagnosis says it: the same for the screen, for JSON and for a bug report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]  # must be mended; costs something; good to know
ORDER: dict[str, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One failure of the catalogue that a snapshot shows, in one language.

    `fix` holds the exact commands for this machine, in order, or one sentence where no command mends it. `safe` says
    that `doctor --fix` may do it without asking: it changes nothing but environments that modelyard made.
    """

    rule: str  # identifier, "torch-cpu-build"
    severity: Severity
    title: str
    evidence: str  # the facts that show it, with their values
    explanation: str
    fix: tuple[str, ...]
    safe: bool = False
    source: str = ""  # where the failure is described
