"""Writes ``docs/recipes.md`` from the schema and the table of aliases.

``python -m modelyard.recipe.document > docs/recipes.md`` writes it; ``--check docs/recipes.md`` says whether
it is current.
"""

from __future__ import annotations

import sys
from pathlib import Path

from modelyard.recipe.aliases import read_aliases
from modelyard.recipe.fields import RecipeField, all_fields
from modelyard.recipe.schema import Recipe
from modelyard.recipe.template import render_template
from modelyard.recipe.write import recipe_text, scalar_text

_INTRODUCTION = """\
# Recipes

*Generated from the schema by `python -m modelyard.recipe.document > docs/recipes.md`.*

A recipe is one YAML file that describes a run. What it does not name keeps its default; what is `null` by
default is found out, and the run stores the recipe with each value that was found and the reason for it. An
unknown key, a wrong type or a value out of range is an error that names file, line and column.

```yaml
{example}```

`modelyard init text-classification` writes such a file for your data.

- **One value for one run**: `--set training.learning_rate=1e-5` (any command that reads a recipe; repeatable;
  the value is YAML; `null` takes a value away). It wins over the file.
- **Paths** in the file are relative to the file's folder, paths in `--set` to the current folder. A value of
  `data.train`, `data.validation`, `data.test` or `design.model` is a path when it begins with `/`, `./`,
  `../` or `~`, when it ends like a data file (`.csv`, `.jsonl.gz`, …), or when something of that name is
  there; else it names something elsewhere.
- **YAML** is read by the core schema of YAML 1.2: only `true` and `false` are booleans, so a class may be
  called `no`, and `1e-5` is a number. Texts are kept as written: `labels: [0, 1]` are the labels `0` and `1`.
"""

_ALIASES = """\
## Names from Hugging Face Transformers

These are understood at the top level or in the section of our key, with a notice. Giving both names with
different values is an error.

| name | here | values |
| --- | --- | --- |
"""

_REFUSED = """
These have no key here; each is an error that says what to write instead, unless its value asks for what
happens anyway.

| name | why | instead |
| --- | --- | --- |
"""

_EXAMPLE_VALUES = {
    "task": "text-classification",
    "data": {"train": "reviews.csv", "text": "body", "label": "topic"},
    "design": {"model": "allenai/longformer-base-4096", "max_length": 4096},
}


def document() -> str:
    """The whole page as Markdown."""
    parts = [_INTRODUCTION.format(example=render_template("text-classification", "reviews.csv"))]
    top = [field for path, field in all_fields().items() if len(path) == 1]
    parts.append(_table("The recipe", "One run, from data to deployment.", top))
    for path, field in all_fields().items():
        if field.section is not None:
            inside = [inner for inner_path, inner in all_fields().items() if inner_path[:-1] == path]
            parts.append(_table(f"`{field.name}`", str(field.section.__doc__).split("\n")[0], inside))
    parts.append(_alias_tables())
    example = recipe_text(Recipe.model_validate(_EXAMPLE_VALUES))
    parts.append(f"## A full recipe\n\nEvery key with its value, as a run stores it:\n\n```yaml\n{example}```\n")
    return "\n".join(parts)


def _table(title: str, summary: str, fields: list[RecipeField]) -> str:
    rows = [f"## {title}\n\n{summary}\n", "| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for field in fields:
        rows.append(f"| `{field.path[-1]}` | {field.expected} | {_default(field)} | {field.info.description} |")
    return "\n".join(rows) + "\n"


def _default(field: RecipeField) -> str:
    if field.info.is_required():
        return "**required**"
    if field.section is not None and not field.nullable:
        return "its defaults"
    return f"`{scalar_text(field.info.default)}`"


def _alias_tables() -> str:
    renamed, refused = read_aliases()
    rows = [_ALIASES.rstrip("\n")]
    for alias in renamed.values():
        ours = " or ".join(f"`{'.'.join(target)}`" for target in alias.targets)
        changes = ", ".join(f"`{theirs}` → `{scalar_text(value)}`" for theirs, value in alias.values.items())
        rows.append(f"| `{alias.name}` | {ours} | {'; '.join(filter(None, [changes, alias.note])) or 'the same'} |")
    rows.append(_REFUSED.rstrip("\n"))
    rows += [f"| `{refusal.name}` | {refusal.because} | {refusal.hint} |" for refusal in refused.values()]
    return "\n".join(rows) + "\n"


def main(arguments: list[str]) -> int:
    """Print the page, or with ``--check FILE`` compare: 0 when the file is current, else 1."""
    if arguments[:1] != ["--check"]:
        sys.stdout.write(document())
        return 0
    file = Path(arguments[1] if len(arguments) > 1 else "docs/recipes.md")
    if file.is_file() and file.read_text(encoding="utf-8") == document():
        return 0
    sys.stderr.write(f"{file} is not current\nhint: python -m modelyard.recipe.document > {file}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
