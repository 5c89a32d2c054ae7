"""How much of the catalogue is provoked for real: counted in the tests of this folder."""

from __future__ import annotations

import re
from pathlib import Path

from modelyard.environment.diagnose import catalogue

OTHER_SYSTEMS = {20, 23}  # Windows and macOS; only snapshots show them


def test_nearly_all_failures_of_the_list_are_provoked() -> None:
    text = "".join(each.read_text(encoding="utf-8") for each in Path(__file__).parent.glob("test_*.py"))
    provoked = {name for name in re.findall(r'"([a-z0-9-]+)"', text) if name in catalogue()}
    numbers = {catalogue()[name]["number"] for name in provoked} - {None}
    assert numbers == set(range(1, 34)) - OTHER_SYSTEMS
