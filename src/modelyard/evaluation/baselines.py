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
REGULARISATIONS = (1.0, 3.0, 10.0, 30.0, 100.0)  # C of scikit-learn: larger is freer; long texts want it large
WORD_NGRAMS = ((1, 1), (1, 2))  # few long texts want single words, many short ones pairs too
CHARACTER_NGRAMS = ((1, 3),)
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
    vectorizer, features, setting, accuracy = _best_setting(texts, labels, by_character, num_classes, seed)
    classifier = _fit_classifier(setting, features, labels)
    details = {
        "features": "characters" if by_character else "words",
        "num_features": int(features.shape[1]),
        "longest_ngram": setting.ngrams[1],
        "class_weights": "balanced" if setting.balanced else "none",
        "C": setting.regularisation,
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


@dataclass(frozen=True)
class _Setting:
    """What is chosen by cross-validation. ngrams: shortest and longest; balanced: classes weigh the same."""

    ngrams: tuple[int, int]
    balanced: bool = False
    regularisation: float = 3.0  # a guess for data too small to choose on


def _best_setting(
    texts: list[str], labels: NDArray[np.int64], by_character: bool, num_classes: int, seed: int
) -> tuple[Any, sparse.csr_matrix[Any], _Setting, float | None]:
    """Vectorizer, features of all texts, the setting with the best accuracy in 3-fold cross-validation, that accuracy.

    Of ties the first. A baseline that is not tuned is beaten too easily. The accuracy is None, and nothing is chosen,
    where fewer than two classes have the two examples that it takes. At most 10,000 documents are used to choose, fewer
    with many classes: the choice changes little with more, and the time much.
    """
    limit = int(np.clip(100_000 // len(np.unique(labels)), 2_000, 10_000))
    best: tuple[Any, sparse.csr_matrix[Any], _Setting, float | None] | None = None
    for ngrams in CHARACTER_NGRAMS if by_character else WORD_NGRAMS:
        vectorizer, features = _features(texts, ngrams, by_character, num_classes)
        if (np.bincount(labels) >= 2).sum() < 2:
            return vectorizer, features, _Setting(ngrams), None
        for balanced in (False, True):
            for regularisation in REGULARISATIONS:
                setting = _Setting(ngrams, balanced, regularisation)
                accuracy = _validated(setting, features[:limit], labels[:limit], seed)
                if best is None or best[3] is None or accuracy > best[3]:
                    best = vectorizer, features, setting, accuracy
    assert best is not None
    return best


def _features(
    texts: list[str], ngrams: tuple[int, int], by_character: bool, num_classes: int
) -> tuple[Any, sparse.csr_matrix[Any]]:
    max_features = min(MAX_FEATURES, MAX_COEFFICIENTS // num_classes)
    settings: dict[str, Any] = {"sublinear_tf": True, "max_features": max_features, "dtype": np.float32}
    settings |= {"analyzer": "char" if by_character else "word", "ngram_range": ngrams}
    # An n-gram that stands in one document teaches nothing that carries over, but tiny data has few others.
    vectorizer = TfidfVectorizer(min_df=2 if len(texts) >= 100 else 1, **settings)
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError as error:  # nothing but punctuation, or no n-gram in two documents
        raise BaselineUnfit("no_words") from error


def _fit_classifier(setting: _Setting, features: Any, labels: NDArray[np.int64]) -> Any:
    """L2 logistic regression, one class against the rest where there are more than two.

    The dual solver takes seconds where L-BFGS takes minutes on few long documents: it works with one number a
    document, not one a feature.
    """
    classifier: Any = LogisticRegression(
        C=setting.regularisation,
        class_weight="balanced" if setting.balanced else None,
        solver="liblinear",
        dual=True,
        max_iter=200,
        random_state=0,
    )
    if len(np.unique(labels)) > 2:
        classifier = OneVsRestClassifier(classifier)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not converged is judged by its accuracy like the others
        return classifier.fit(features, labels)


def _validated(setting: _Setting, features: Any, labels: NDArray[np.int64], seed: int) -> float:
    """Accuracy in 3-fold cross-validation."""
    fold, hits = _folds(labels, seed), 0
    for held_out in np.unique(fold):
        test = fold == held_out
        classifier = _fit_classifier(setting, features[~test], labels[~test])
        hits += int((classifier.predict(features[test]) == labels[test]).sum())
    return hits / len(labels)


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
