"""The words of results in English and Chinese: the message catalogues, and how numbers are written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


@cache
def catalogue(language: Language) -> Mapping[str, str]:
    """All messages of a language by dotted key (``comparison.better``), from
    ``templates/report.<language>.yaml``.
    """
    text = (files("modelyard.evaluation") / "templates" / f"report.{language}.yaml").read_text(encoding="utf-8")
    messages: dict[str, str] = {}

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                flatten(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            messages[prefix] = str(value)

    flatten("", yaml.safe_load(text))
    return messages


def say(language: Language, key: str, **values: object) -> str:
    """The message `key` with its ``{fields}`` filled in. Raises KeyError when the catalogue lacks the key."""
    return catalogue(language)[key].format(**values)


def system_name(name: str, language: Language) -> str:
    """The readable name of a model or baseline; names that a person chose stand in quotation marks."""
    return catalogue(language).get(f"systems.{name}") or say(language, "systems.quoted", name=name)


def plain_name(name: str, language: Language) -> str:
    """The same without quotation marks and with a capital letter, for tables and charts."""
    known = catalogue(language).get(f"systems.{name}", name)
    return known[:1].upper() + known[1:]


def percent(share: float | None, digits: int = 1) -> str:
    """0.842 to "84.2%"; a dash for None."""
    return "–" if share is None else f"{signed(100 * share, digits)}%"


def signed(number: float, digits: int = 1, *, plus: bool = False) -> str:
    """A number with a true minus sign; never "-0.0"."""
    rounded = round(number, digits)
    if rounded == 0:
        rounded = 0.0
    text = f"{rounded:+.{digits}f}" if plus and rounded else f"{rounded:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def integer(number: int) -> str:
    """1234567 to "1,234,567"."""
    return f"{number:,}"


def p_value_text(p_value: float) -> str:
    """ "p < 0.001" or "p = 0.012"."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.{3 if p_value < 0.1 else 2}f}"


def comparison_sentence(comparison: Mapping[str, Any], language: Language) -> str:
    """What a comparison (``Comparison.as_dict``) shows, in one sentence that claims no more than it may."""
    names = {side: _spaced(system_name(comparison[side], language), language) for side in ("a", "b")}
    n, difference = comparison["n"], comparison["difference"]
    if comparison["num_only_a"] + comparison["num_only_b"] == 0:
        outcome = "identical"
    elif not comparison["shown"]:
        outcome = "not_shown"
    else:
        outcome = "better" if difference > 0 else "worse"
    sign = -1 if outcome == "worse" else 1
    low, high = sorted((sign * comparison["low"], sign * comparison["high"]))
    sentence = say(
        language,
        f"comparison.{outcome}",
        **names,
        points=signed(100 * sign * difference, plus=outcome == "not_shown"),
        low=signed(100 * low),
        high=signed(100 * high),
        level=f"{100 * comparison['confidence']:g}",
        n=integer(n),
        p=p_value_text(comparison["p_value"]),
        detectable=signed(100 * comparison["minimum_detectable"]),
    )
    sentence = sentence.strip()
    return sentence[:1].upper() + sentence[1:]


def _spaced(name: str, language: Language) -> str:
    """In Chinese, a name that begins or ends in Latin script stands apart from the characters around it."""
    if language != "zh":
        return name
    return f"{' ' if name[:1].isascii() else ''}{name}{' ' if name[-1:].isascii() else ''}"
