"""A small tokenizer, and one call that prepares data with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from modelyard.data.prepare import prepare
from modelyard.data.prepared import Prepared
from modelyard.data.tokenizer import TextTokenizer
from modelyard.recipe.schema import DataSection
from modelyard.tasks.text_classification import TASKS

TEXTS = [f"the film number {n} was {'good' if n % 2 else 'bad'} and long" for n in range(200)]

WriteLines = Callable[..., Path]
PrepareFile = Callable[..., Prepared]


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS, 400, "bert")


@pytest.fixture
def write_jsonl(tmp_path: Path) -> WriteLines:
    """Write rows (values or raw lines) as a JSONL file."""

    def write(rows: Iterable[Any], name: str = "reviews.jsonl") -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def prepare_file(tmp_path: Path, tokenizer: TextTokenizer) -> PrepareFile:
    """Prepare `train` with fields of the data section by name."""

    def run(
        train: Path,
        *,
        max_length: int = 32,
        on_too_long: Any = "truncate",
        task: str = "text-classification",
        cache: Path | None = None,
        rejected: Path | None = None,
        progress: Any = None,
        with_tokenizer: TextTokenizer | None = None,
        **fields: Any,
    ) -> Prepared:
        return prepare(
            DataSection(train=str(train), **fields),
            TASKS[task],
            with_tokenizer or tokenizer,
            max_length=max_length,
            on_too_long=on_too_long,
            cache_folder=cache or tmp_path / "cache",
            rejected_path=rejected,
            progress=progress,
        )

    return run
