"""What a model must beat: the majority class, and TF-IDF with logistic regression, fitted on the same
training texts.

Legend: N examples, B examples of a chunk, C classes.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from modelyard.evaluation.metrics import Values
from modelyard.evaluation.predictions import EvaluatedSplit

MAX_DOCUMENTS = 50_000
MAX_CHARACTERS = 30_000_000
MAX_FEATURES = 500_000
MAX_COEFFICIENTS = 10_000_000  # features times classes: 80 MB
MIN_CJK_SHARE = 0.2
NUM_FOLDS = 3
REGULARISATIONS = (
    0.3,
    1.0,
    3.0,
    10.0,
    30.0,
    100.0,
)  # C of scikit-learn: larger is freer; long texts want it large
DEFAULT_REGULARISATION = 3.0  # a guess for data too small to choose on
_CHUNK = 512
_LANGUAGE_SAMPLE = 200

# Scripts that put no spaces between words: kana, Han, Thai, Lao, Myanmar, Khmer.
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_LETTER = re.compile(r"[^\W\d_]")


class Baseline(Protocol):
    """A fitted baseline. details: plain values that describe it in the report; seconds: of the fit."""

    name: str
    details: dict[str, Any]
    seconds: float

    def predict(self, split: EvaluatedSplit) -> Iterator[tuple[NDArray[np.int64], Values]]:
        """Rows (B,) and logarithms of probabilities (B, C), in the order of the split."""


class BaselineUnfit(Exception):
    """The training data gives this baseline nothing to learn. reason: ``no_examples``, ``one_class`` or
    ``no_words``.

    Never reaches a person: `evaluate` goes on without the baseline and the report says why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class MajorityClass:
    """Always the most frequent class of the training data; probabilities are the classes' shares (plus one
    example).
    """

    log_shares: Values
    details: dict[str, Any]
    seconds: float
    name: str = "majority"

    def predict(self, split: EvaluatedSplit) -> Iterator[tuple[NDArray[np.int64], Values]]:
        for rows in _chunks(len(split)):
            yield rows, np.tile(self.log_shares, (len(rows), 1))


@dataclass
class TfidfLogisticRegression:
    """Word 1- and 2-grams (character 1- to 3-grams where words are not spaced), sublinear TF-IDF, L2 logistic
    regression.
    """

    vectorizer: Any
    classifier: Any
    num_classes: int
    details: dict[str, Any]
    seconds: float
    name: str = field(default="tfidf-logistic-regression")

    def predict(self, split: EvaluatedSplit) -> Iterator[tuple[NDArray[np.int64], Values]]:
        for rows in _chunks(len(split)):
            features = self.vectorizer.transform(split.text(int(row)) for row in rows)
            # A class that the drawn training documents lack gets a probability too small to matter, but a
            # finite loss.
            logs = np.full((len(rows), self.num_classes), np.log(1e-9))
            logs[:, self.classifier.classes_] = np.log(np.maximum(self.classifier.predict_proba(features), 1e-9))
            yield rows, logs


def fit_baseline(name: str, train: EvaluatedSplit, num_classes: int, seed: int) -> Baseline:
    """Fit the baseline `name` (``majority`` or ``tfidf-logistic-regression``) on the training split;
    deterministic.

    Raises BaselineUnfit when the data gives it nothing to learn, KeyError for another name.
    """
    return {"majority": _fit_majority, "tfidf-logistic-regression": _fit_tfidf}[name](train, num_classes, seed)


def _fit_majority(train: EvaluatedSplit, num_classes: int, seed: int) -> Baseline:
    counts = np.bincount(np.asarray(train.labels), minlength=num_classes)
    if not counts.any():
        raise BaselineUnfit("no_examples")
    shares = (counts + 1) / (counts.sum() + num_classes)
    details = {"class": int(counts.argmax()), "share": float(counts.max() / counts.sum())}
    return MajorityClass(np.log(shares), details, 0.0)


def _fit_tfidf(train: EvaluatedSplit, num_classes: int, seed: int) -> Baseline:
    started = time.perf_counter()
    texts, labels = _drawn(train, seed)
    if len(np.unique(labels)) < 2:
        raise BaselineUnfit("one_class" if len(labels) else "no_examples")
    by_character = unspaced_share(texts[:_LANGUAGE_SAMPLE]) >= MIN_CJK_SHARE
    vectorizer, features = _features(texts, by_character, num_classes)
    regularisation, accuracy = _choose_regularisation(features, labels, seed)
    classifier = _fit_classifier(regularisation, features, labels)
    details = {
        "features": "characters" if by_character else "words",
        "num_features": int(features.shape[1]),
        "C": regularisation,
        "validated_accuracy": accuracy,
        "num_documents": len(texts),
        "num_available": len(train),
    }
    return TfidfLogisticRegression(vectorizer, classifier, num_classes, details, time.perf_counter() - started)


def unspaced_share(texts: Sequence[str]) -> float:
    """Share of the letters that belong to scripts without spaces between words (Chinese, Japanese, Thai …), 0
    to 1.
    """
    letters = unspaced = 0
    for text in texts:
        start = text[:2000]
        letters += len(_LETTER.findall(start))
        unspaced += len(_UNSPACED.findall(start))
    return unspaced / max(1, letters)


def _drawn(train: EvaluatedSplit, seed: int) -> tuple[list[str], NDArray[np.int64]]:
    """Training texts and labels, at most 50,000 documents and 30 million characters, in an order drawn by
    `seed`.
    """
    order = np.random.default_rng(seed).permutation(len(train))[:MAX_DOCUMENTS]
    texts: list[str] = []
    characters = 0
    for row in order:
        text = train.text(int(row))
        if texts and characters + len(text) > MAX_CHARACTERS:
            break
        texts.append(text)
        characters += len(text)
    return texts, np.asarray(train.labels)[order[: len(texts)]].astype(np.int64)


def _features(texts: list[str], by_character: bool, num_classes: int) -> tuple[Any, sparse.csr_matrix[Any]]:
    max_features = min(MAX_FEATURES, MAX_COEFFICIENTS // num_classes)
    settings: dict[str, Any] = {"sublinear_tf": True, "max_features": max_features, "dtype": np.float32}
    settings |= {"analyzer": "char", "ngram_range": (1, 3)} if by_character else {"ngram_range": (1, 2)}
    # An n-gram that stands in one document teaches nothing that carries over, but small data has few others.
    vectorizer = TfidfVectorizer(min_df=2 if len(texts) >= 1000 else 1, **settings)
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError as error:  # nothing but punctuation, or no n-gram in two documents
        raise BaselineUnfit("no_words") from error


def _fit_classifier(regularisation: float, features: Any, labels: NDArray[np.int64]) -> Any:
    """L2 logistic regression, one class against the rest where there are more than two.

    The dual solver takes seconds where L-BFGS takes minutes on few long documents: it works with one number a
    document, not one a feature.
    """
    classifier: Any = LogisticRegression(C=regularisation, solver="liblinear", dual=True, max_iter=200, random_state=0)
    if len(np.unique(labels)) > 2:
        classifier = OneVsRestClassifier(classifier)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not converged is judged by its accuracy like the others
        return classifier.fit(features, labels)


def _choose_regularisation(features: Any, labels: NDArray[np.int64], seed: int) -> tuple[float, float | None]:
    """The C with the best accuracy in 3-fold cross-validation (of ties the smallest) and that accuracy.

    None and the default where fewer than two classes have the two examples that it takes. At most 10,000
    documents are used, fewer with many classes: the choice changes little with more, and the time much.
    """
    num_documents = int(np.clip(100_000 // len(np.unique(labels)), 2_000, 10_000))
    features, labels = features[:num_documents], labels[:num_documents]
    fold = _folds(labels, seed)
    if (np.bincount(labels) >= 2).sum() < 2:
        return DEFAULT_REGULARISATION, None
    accuracies = []
    for regularisation in REGULARISATIONS:
        hits = 0
        for held_out in np.unique(fold):
            test = fold == held_out
            classifier = _fit_classifier(regularisation, features[~test], labels[~test])
            hits += int((classifier.predict(features[test]) == labels[test]).sum())
        accuracies.append(hits / len(labels))
    best = int(np.argmax(accuracies))
    return REGULARISATIONS[best], accuracies[best]


def _folds(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(N,) fold of each example; every class is dealt out evenly, so that one with two examples is never held
    out whole.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    fold = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        fold[members] = np.arange(len(members)) % NUM_FOLDS
    return fold


def _chunks(num_rows: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, num_rows, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, num_rows), dtype=np.int64)
