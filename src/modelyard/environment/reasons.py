"""Why a build was chosen, in the languages that a person may ask for."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml


class Reason(NamedTuple):
    """One choice with its reason."""

    english: str
    chinese: str

    def text(self, language: str = "en") -> str:
        return self.chinese if language.startswith("zh") else self.english


@cache
def texts() -> dict[str, dict[str, str]]:
    """All of reasons.yaml."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (files("modelyard.environment") / "reasons.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=loader))


def reason(key: str, **facts: Any) -> Reason:
    """The text of reasons.yaml with its facts filled in."""
    text = texts()[key]
    return Reason(text["en"].format(**facts), text["zh"].format(**facts))
