"""The page of all keys is what the schema says today."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.recipe.document import document, main
from modelyard.recipe.fields import all_fields
from modelyard.recipe.load import load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == document(), "python -m modelyard.recipe.document > docs/recipes.md"


def test_every_key_is_described() -> None:
    for field in all_fields().values():
        assert str(field.info.description).strip().endswith("."), field.name
        assert f"| `{field.path[-1]}` |" in document()


@pytest.mark.parametrize("number", [0, 1])
def test_examples_of_the_page_load(tmp_path: Path, number: int) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(re.findall(r"```yaml\n(.*?)```", document(), re.DOTALL)[number], encoding="utf-8")
    assert load_recipe(path).notices == ()


def test_check_tells_a_stale_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(PAGE)]) == 0
    stale = tmp_path / "recipes.md"
    stale.write_text("old")
    assert main(["--check", str(stale)]) == 1
    assert f"hint: python -m modelyard.recipe.document > {stale}" in capsys.readouterr().err


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = (
        "import sys, modelyard.recipe.load, modelyard.recipe.write, modelyard.recipe.template\n"
        "heavy = {'numpy', 'torch', 'pyarrow', 'transformers', 'huggingface_hub', 'sklearn', 'matplotlib'}\n"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
