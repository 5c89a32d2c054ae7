"""The failure catalogue's conditions: small functions from a snapshot to the values of their texts, by subject.

A rule returns None when the failure is not there or when a fact that it needs is unknown, the values that its texts in
failures.yaml are filled with, or a list of such values where several GPUs or packages are concerned.
"""

from __future__ import annotations

from collections.abc import Callable

from modelyard.environment.snapshot import Snapshot

Values = dict[str, object]
Rule = Callable[[Snapshot], Values | list[Values] | None]
