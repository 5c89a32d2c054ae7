"""A small real model through bundle, parity, predictor and server, compared with transformers' answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from modelyard.data.batches import batch_of_ids  # noqa: E402
from modelyard.data.tokenizer import TextTokenizer  # noqa: E402
from modelyard.deployment.bundle import Bundle, load_bundle, write_bundle  # noqa: E402
from modelyard.deployment.parity import check_parity  # noqa: E402
from modelyard.deployment.predict import TextPredictor  # noqa: E402
from modelyard.deployment.server import create_app  # noqa: E402
from modelyard.engines.torch.engine import TorchEngine  # noqa: E402
from modelyard.recipe.schema import DeploymentSection  # noqa: E402

TEXTS = [
    "A lovely film that I would see again.",
    "It drags.",
    "The story <br /> ends before it begins, and the rest of the evening was no better either.",
    "很好看的电影",
    "word " * 100,
]
MAX_LENGTH = 32
REMOVE = r"<[^>]*>"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a tokenizer learnt from the texts."""
    folder: Path = tmp_path_factory.mktemp("model")
    tokenizer = TextTokenizer.train(iter(TEXTS), vocab_size=400, family="bert")
    tokenizer.save(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
        id2label={0: "negative", 1: "neutral", 2: "positive"},
        label2id={"negative": 0, "neutral": 1, "positive": 2},
    )
    transformers.BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(model_folder: Path, tmp_path_factory: pytest.TempPathFactory, fake: ModuleType) -> Bundle:
    """Written, moved, and its source deleted."""
    engine = TorchEngine()
    tokenizer = TextTokenizer.load(model_folder)
    trained = engine.predictor(model_folder, "cpu")
    batches = [
        batch_of_ids(tokenizer.encode_batch(texts, MAX_LENGTH).ids, tokenizer.pad_token_id)
        for texts in (TEXTS, TEXTS[:2], TEXTS[3:4])
    ]
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(model_folder, copy / "model")
    record = check_parity(
        [(batch, trained.predict(batch).logits) for batch in batches], engine.predictor(copy / "model", "cpu")
    )
    written = write_bundle(
        copy / "bundle",
        model_folder=copy / "model",
        labels=("negative", "neutral", "positive"),
        max_length=MAX_LENGTH,
        remove=REMOVE,
        task_name="sentiment",
        limits=DeploymentSection(),
        metrics_summary=fake.facts()["metrics"],
        parity=record,
        versions=engine.versions(),
        examples=TEXTS[:2],
    )
    moved = tmp_path_factory.mktemp("moved") / "bundle"
    shutil.move(written.folder, moved)
    shutil.rmtree(copy)
    return load_bundle(moved)


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> TextPredictor:
    loaded = TorchEngine().predictor(bundle.model_folder, "cpu")
    return TextPredictor(bundle, loaded, TextTokenizer.load(bundle.model_folder))


def expected(folder: Path, text: str) -> tuple[dict[str, float], int, int]:
    """Probabilities, tokens read and tokens cut by transformers' own classes, for one text alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    clean = text.replace("<br />", "")
    inputs = tokenizer(clean, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    with torch.no_grad():
        probabilities = torch.softmax(model(**inputs).logits[0].double(), dim=0).tolist()
    read, full = inputs["input_ids"].shape[1], len(tokenizer(clean)["input_ids"])
    return dict(zip(model.config.id2label.values(), probabilities, strict=True)), read, full - read


def test_the_predictor_answers_as_transformers_does(bundle: Bundle, predictor: TextPredictor) -> None:
    for text, prediction in zip(TEXTS, predictor.predict(TEXTS, max_batch_tokens=70), strict=True):
        probabilities, num_tokens, num_tokens_cut = expected(bundle.model_folder, text)
        assert prediction.probabilities == pytest.approx(probabilities, abs=1e-6)
        assert prediction.label == max(probabilities, key=lambda label: probabilities[label])
        assert prediction.probability == pytest.approx(max(probabilities.values()), abs=1e-6)
        assert (prediction.num_tokens, prediction.num_tokens_cut) == (num_tokens, num_tokens_cut)
    assert predictor.predict(TEXTS)[-1].num_tokens_cut > 50
    assert predictor.predict([]) == []


def test_batches_keep_within_the_budget(bundle: Bundle) -> None:
    shapes: list[Any] = []
    inner = TorchEngine().predictor(bundle.model_folder, "cpu")

    class Watched:
        def predict(self, batch: Any) -> Any:
            shapes.append(batch.arrays["input_ids"].shape)
            return inner.predict(batch)

    watched = TextPredictor(bundle, Watched(), TextTokenizer.load(bundle.model_folder))
    many = TEXTS * 4
    answers = watched.predict(many, max_batch_tokens=64)
    assert all(size * length <= 64 for size, length in shapes)
    assert sum(size for size, _ in shapes) == len(many)
    single = [watched.predict([text])[0] for text in TEXTS] * 4
    for one, other in zip(answers, single, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_the_record_in_the_bundle_is_of_this_model(bundle: Bundle) -> None:
    assert bundle.info.parity.passed
    assert bundle.info.parity.num_agreeing == bundle.info.parity.num_examples == 8
    assert bundle.info.parity.longest_tokens == MAX_LENGTH
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bundle.model_folder)
    assert bundle.info.model.num_parameters == sum(weight.numel() for weight in model.parameters())
    assert bundle.info.model.architecture == type(model).__name__


def test_a_changed_model_is_not_published(model_folder: Path, bundle: Bundle) -> None:
    engine = TorchEngine()
    trained = engine.predictor(model_folder, "cpu")
    batch = batch_of_ids([[2, 5, 6, 3], [2, 7, 3]], 0)

    class Noisy:
        def predict(self, batch: Any) -> Any:
            answer = trained.predict(batch)
            return type(answer)(answer.logits + np.float32(0.001))

    record = check_parity([(batch, trained.predict(batch).logits)], Noisy())
    assert not record.passed
    assert "0.001" in record.reason


def test_the_server_gives_the_same_answers(
    bundle: Bundle, predictor: TextPredictor, start: Callable[[FastAPI], str]
) -> None:
    url = start(create_app(predictor, bundle.info))
    reply = httpx.post(f"{url}/predict", json={"texts": TEXTS}, timeout=60).json()
    for text, answer in zip(TEXTS, reply["predictions"], strict=True):
        probabilities, num_tokens, num_tokens_cut = expected(bundle.model_folder, text)
        found = {one["label"]: one["probability"] for one in answer["probabilities"]}
        assert found == pytest.approx(probabilities, abs=1e-6)
        assert (answer["num_tokens"], answer["num_tokens_cut"]) == (num_tokens, num_tokens_cut)
        assert answer["truncated"] == (num_tokens_cut > 0)
    assert json.loads((bundle.folder / "bundle.json").read_text())["examples"] == TEXTS[:2]
