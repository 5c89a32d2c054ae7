"""Tiny random checkpoints and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from modelyard.engines.base import Batch

VOCAB_SIZE = 60
DIMENSIONS = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": VOCAB_SIZE,
    "num_hidden_layers": 2,
}
FAMILIES: dict[str, dict[str, object]] = {
    "bert": {"max_position_embeddings": 64},
    "roberta": {"max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "longformer": {
        "max_position_embeddings": 66,
        "attention_window": [8, 8],
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "sep_token_id": 2,
    },
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config_of() -> Callable[..., dict[str, object]]:
    """The keys of a tiny configuration of a family, as `ModelSpec.config` carries them."""

    def make(family: str = "bert", **changes: object) -> dict[str, object]:
        return {"model_type": family, **DIMENSIONS, **FAMILIES[family], **changes}

    return make


@pytest.fixture
def checkpoint(
    tmp_path: Path, config_of: Callable[..., dict[str, object]]
) -> Callable[..., tuple[Path, PreTrainedModel]]:
    """Writes a tiny random checkpoint and gives its folder and the model that was saved."""

    def make(
        family: str = "bert",
        *,
        head: str = "classifier",
        labels: Sequence[str] = ("a", "b", "c"),
        **changes: object,
    ) -> tuple[Path, PreTrainedModel]:
        keys = config_of(family, **changes)
        config = AutoConfig.for_model(
            keys.pop("model_type"),
            **keys,
            id2label=dict(enumerate(labels)),
            label2id={name: index for index, name in enumerate(labels)},
        )
        torch.manual_seed(11)
        kind = AutoModelForSequenceClassification if head == "classifier" else AutoModelForMaskedLM
        model = kind.from_config(config)
        folder = tmp_path / f"{family}-{head}-{len(labels)}"
        model.save_pretrained(folder)
        return folder, model

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A batch of random texts of random lengths, padded to the longest; the same for the same rows."""

    def make(rows: Sequence[int], *, num_labels: int = 3, longest: int = 20, pad: int = 1) -> Batch:
        texts = []
        for row in rows:
            random = np.random.default_rng(row)
            texts.append(random.integers(4, VOCAB_SIZE, size=random.integers(4, longest + 1)))
        width = max(len(text) for text in texts)
        ids = np.full((len(rows), width), pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, text in enumerate(texts):
            ids[index, : len(text)] = text
            mask[index, : len(text)] = 1
        labels = np.asarray([row % num_labels for row in rows], dtype=np.int64)
        return Batch(
            {"input_ids": ids, "attention_mask": mask, "labels": labels},
            weights=np.asarray([0.5 + row % 4 for row in rows], dtype=np.float32),
            rows=np.asarray(rows, dtype=np.int64),
        )

    return make
