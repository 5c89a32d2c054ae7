from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.evaluation import report
from modelyard.evaluation.evaluate import evaluate
from modelyard.evaluation.report import ReportData, render_report, write_report
from modelyard.evaluation.views import curves
from modelyard.evaluation.wording import catalogue, comparison_sentence, p_value_text, percent, plain_name, signed
from modelyard.recipe.schema import EvaluationSection
from modelyard.tasks.text_classification import TASKS

ATTACK = '<script>alert(1)</script><img src=x onerror=alert(2)> & "quoted"'


class Page(HTMLParser):
    """Collects tags, attributes and whether every tag that is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in {"meta", "input", "br", "tr", "td", "th", "li", "thead"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"tr", "td", "th", "li", "thead"}:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def report_data(
    tmp_path: Path, make_split: Callable[..., Any], noisy_logits: Callable[..., Any]
) -> Callable[..., ReportData]:
    def make(num_classes: int = 2, n: int = 80, strength: float = 1.5, **changes: Any) -> ReportData:
        generator = np.random.default_rng(3)
        labels = np.arange(n) % num_classes
        split = make_split(
            [f"{ATTACK} text {row}" for row in range(n)], labels, generator.integers(5, 3000, n), max_length=1024
        )
        names = [f"class {index}" for index in range(num_classes - 1)] + [ATTACK]
        evaluation = evaluate(
            [(np.arange(n), noisy_logits(labels, num_classes, strength))],
            split,
            split,
            names,
            task=TASKS["text-classification"],
            options=EvaluationSection(num_resamples=100),
            folder=tmp_path,
            cost={"num_parameters": 22_713_216},
        )
        values: dict[str, Any] = {
            "name": f"run {ATTACK}",
            "metrics": evaluation.metrics,
            "recipe": {"task": "text-classification", "training": {"best_metric": "f1", "freeze": []}},
            "reasons": {"task": ATTACK},
            "data": {"warnings": [ATTACK], "num_rows": 80},
            "plan": {"device": "cpu", "why": ATTACK},
            "events": _events(),
            "parity": {"huggingface": {"max_difference": 1e-6}},
            "versions": {"python": "3.13", "machine": {"cpu": ATTACK}},
        }
        return ReportData(**{**values, **changes})

    return make


def _events() -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"kind": "step", "step": step, "loss": 1 / step} for step in range(1, 301)]
    evaluations = [
        {"kind": "evaluation", "step": step, "loss": 0.5, "accuracy": 0.8, "f1": 0.6 + step % 200 / 1000}
        for step in (100, 200, 300)
    ]
    return [*steps, *evaluations]


def test_untrusted_text_is_shown_and_never_run(report_data: Callable[..., ReportData]) -> None:
    html = render_report(report_data())
    page = Page(html)
    assert not page.open
    assert not {"script", "img", "iframe", "object", "link"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in "".join(page.text)  # as words of the document
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in [value for _, value in page.attributes]


def test_the_page_loads_nothing(report_data: Callable[..., ReportData]) -> None:
    html = render_report(report_data())
    loading = [value for name, value in Page(html).attributes if name in {"src", "href", "srcset", "data", "action"}]
    assert loading == []
    assert "url(" not in html
    assert "@import" not in html
    assert "://" not in html


def test_both_languages_are_in_one_file_and_one_alone_when_asked(
    report_data: Callable[..., ReportData], tmp_path: Path
) -> None:
    path = write_report(report_data(), tmp_path / "report.html")
    both = path.read_text(encoding="utf-8")
    assert '<html lang="en">' in both
    assert "classified correctly" in both
    assert "分类正确" in both
    assert both.count("checked") >= 1
    chinese = render_report(report_data(), ["zh"])
    assert '<html lang="zh">' in chinese
    assert "classified correctly" not in chinese
    assert "show-en" not in re.sub(r"<style>.*</style>", "", chinese, flags=re.DOTALL)


def test_the_catalogues_have_the_same_keys_and_fields() -> None:
    english, chinese = catalogue("en"), catalogue("zh")
    assert set(english) == set(chinese)
    for key, message in english.items():
        fields = set(re.findall(r"\{(\w+)\}", message))
        assert set(re.findall(r"\{(\w+)\}", chinese[key])) == fields, key


def test_every_message_is_used() -> None:
    room = Path(report.__file__).parent
    sources = "".join(path.read_text("utf-8") for path in [*room.rglob("*.html"), *room.glob("*.py")])
    # A section whose messages are chosen by name, as in t["metric." ~ metric], counts as used.
    chosen = set(re.findall(r'"(\w+)\." ~', sources)) | set(re.findall(r'f"(\w+)\.\{', sources))
    assert [key for key in catalogue("en") if key not in sources and key.split(".")[0] not in chosen] == []


def test_many_classes_show_the_largest_confusions_instead_of_a_matrix(
    report_data: Callable[..., ReportData],
) -> None:
    html = render_report(report_data(num_classes=30, n=120, strength=2.0), ["en"])
    assert "Largest confusions" in html
    assert 'class="matrix"' not in html
    assert "and 22 more" in html


def test_a_perfect_model_without_training_events_still_makes_a_page(
    report_data: Callable[..., ReportData],
) -> None:
    html = render_report(report_data(strength=60.0, events=(), recipe={}, plan={}, data={}, versions={}, parity=None))
    assert "No mistake on this test set." in html
    assert "No training events were recorded." in html
    assert not Page(html).open


def test_a_single_example_makes_a_page(report_data: Callable[..., ReportData]) -> None:
    assert "100.0% of 1 test texts" in render_report(report_data(n=1, strength=60.0))


def test_a_slice_with_few_texts_shows_no_number(report_data: Callable[..., ReportData]) -> None:
    html = render_report(report_data(n=400), ["en"])
    section = html.split('class="length"')[1].split("</section>")[0]
    assert "too few for a claim" in section


def test_no_slice_with_enough_texts_leaves_the_part_out(report_data: Callable[..., ReportData]) -> None:
    assert 'class="length"' not in render_report(report_data(n=25), ["en"])


def test_a_page_without_baselines_says_that_nothing_was_compared(
    report_data: Callable[..., ReportData],
) -> None:
    data = report_data()
    metrics = {**data.metrics, "systems": data.metrics["systems"][:1], "comparisons": []}
    for part in (*metrics["slices"]["length"], *metrics["slices"]["truncation"]):
        part["accuracy"] = {"model": part["accuracy"]["model"]}
    html = render_report(ReportData(name="alone", metrics=metrics), ["en"])
    assert "There is nothing to compare the model with: no baseline was evaluated." in html


def test_a_resumed_run_counts_each_step_once() -> None:
    events = [
        {"kind": "step", "step": 1, "loss": 9.0},
        {"kind": "step", "step": 2, "loss": 9.0},
        {"kind": "resume", "step": 1},
        {"kind": "step", "step": 2, "loss": 1.0},
        {"kind": "step", "step": 3, "loss": None},
    ]
    found = curves(events, "f1")
    assert found is not None
    assert found["loss"]["raw"].count("L") == 1
    assert found["metrics"] is None
    assert curves([{"kind": "stage", "name": "data"}], "f1") is None


@pytest.mark.parametrize(("metric", "best"), [("f1", 100), ("accuracy", 100), ("loss", 300)])
def test_the_best_step_is_the_first_with_the_best_value(metric: str, best: int) -> None:
    events = [
        {"kind": "evaluation", "step": step, "loss": 1 / step, "accuracy": 0.8, "f1": 0.7 - step / 1000}
        for step in (100, 200, 300)
    ]
    found = curves(events, metric)
    assert found is not None
    assert found["loss"]["best"] == best


def test_numbers_are_written_with_a_true_minus_and_without_negative_zero() -> None:
    assert signed(-1.25) == "−1.2"
    assert signed(-0.04) == signed(0.04, plus=True) == "0.0"
    assert signed(3.0, plus=True) == "+3.0"
    assert (percent(0.8416), percent(None)) == ("84.2%", "–")
    assert (p_value_text(0.0004), p_value_text(0.012), p_value_text(0.5)) == ("p < 0.001", "p = 0.012", "p = 0.50")


def test_chinese_sentences_space_latin_names_and_quote_chosen_ones() -> None:
    comparison = {
        "a": "model", "b": "tfidf-logistic-regression", "n": 500, "difference": -0.03, "low": -0.05, "high": -0.01,
        "p_value": 0.004, "shown": True, "confidence": 0.95, "num_only_a": 5, "num_only_b": 20,
        "minimum_detectable": 0.03,
    }  # fmt: skip
    assert comparison_sentence(comparison, "zh") == (
        "本模型不如 TF-IDF + 逻辑回归：准确率低 3.0 个百分点"
        "（95% 区间 1.0 至 5.0，n = 500，精确 McNemar 检验 p = 0.004）。"
    )
    assert comparison_sentence({**comparison, "b": "旧模型"}, "zh").startswith("本模型不如“旧模型”：")
    assert plain_name("cut at 512", "zh") == "Cut at 512"
