"""The library's public names; to change them is a decision, so this list is written out."""

from __future__ import annotations

import pytest

import modelyard


def test_exports() -> None:
    assert modelyard.__all__ == [
        "ModelyardError",
        "__version__",
        "evaluate",
        "export",
        "load_recipe",
        "prepare",
        "run",
        "serve",
        "train",
    ]
    for name in modelyard.__all__:
        assert getattr(modelyard, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="tranes"):
        modelyard.tranes  # noqa: B018 - the look-up is the test
