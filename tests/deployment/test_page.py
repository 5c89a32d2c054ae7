"""The page in a real browser: text in, label out, in two languages, on a phone, and never as HTML."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import expect, sync_playwright

from modelyard.deployment.app import create_app
from modelyard.deployment.requests import ServerLimits

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
LIMITS = ServerLimits(max_characters=1000)
ATTACK = "<img src=x onerror=document.title='broken'><script>document.title='broken'</script>"


def chromium() -> str | None:
    """A browser on this machine, or None."""
    return os.environ.get("MODELYARD_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    if path is None or not Path(path).exists():
        message = "no Chromium found (looked for MODELYARD_CHROMIUM, chromium, chromium-browser)"
        if os.environ.get("MODELYARD_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield running
        running.close()


Open = Callable[..., Any]


@pytest.fixture
def model(fake: ModuleType) -> Any:
    return fake.FakeModel()


@pytest.fixture
def info_changes() -> dict[str, Any]:
    return {}


@pytest.fixture
def open_page(
    browser: Any, model: Any, fake: ModuleType, start: Callable[[FastAPI], str], info_changes: dict[str, Any]
) -> Iterator[Open]:
    """Opens the page; a test fails when the page logs an error or asks another server for anything."""
    url = start(create_app(model, fake.fake_info(**info_changes), LIMITS))
    contexts, faults = [], []

    def open_one(path: str = "/", **options: Any) -> Any:
        context = browser.new_context(locale=options.pop("locale", "en-US"), **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith(url) or faults.append(request.url))
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.goto(url + path)
        page.wait_for_selector({"/": "#about:not([hidden])", "/docs": ".calls section:nth-child(5)"}[path])
        return page

    open_one.faults = faults  # type: ignore[attr-defined]
    yield open_one
    for context in contexts:
        context.close()
    assert [fault for fault in faults if "Failed to load resource" not in fault] == []


def answer(page: Any) -> tuple[str, str]:
    page.wait_for_selector("#result:not([hidden])")
    return page.inner_text("#label"), page.inner_text("#probability")


def test_a_text_gets_its_label(open_page: Open) -> None:
    page = open_page()
    assert page.inner_text("h1") == "Words by length"
    assert "even, odd" in page.inner_text("#lede")
    page.fill("#text", "three little words")
    page.click("#send")
    assert answer(page) == ("even", "80.0%")
    assert page.locator("#bars li").all_inner_texts() == ["even\n80.0%", "odd\n20.0%"]
    widths = page.eval_on_selector_all(".fill", "fills => fills.map(fill => fill.offsetWidth)")
    assert widths[0] > 3 * widths[1]
    assert "3" in page.inner_text("#costs") and "ms" in page.inner_text("#costs")
    assert page.is_hidden("#cut") and page.is_hidden("#error")
    page.fill("#text", "other")
    assert page.is_visible("#stale")


def test_keys_and_examples_send(open_page: Open) -> None:
    page = open_page()
    page.focus("#text")
    page.keyboard.type("one two")
    page.keyboard.press("Control+Enter")
    assert answer(page)[0] == "odd"
    page.focus("#example-list button >> nth=0")
    page.keyboard.press("Enter")
    expect(page.locator("#text")).to_have_value("an example of five words")
    expect(page.locator("#costs")).to_contain_text("5")
    assert answer(page)[0] == "odd"


def test_what_was_cut_is_said(open_page: Open) -> None:
    page = open_page()
    page.fill("#text", "abc " * 60)
    page.click("#send")
    answer(page)
    assert "first 50 of 60 tokens" in page.inner_text("#cut")


def test_quality_is_told_with_interval_and_baseline(open_page: Open) -> None:
    page = open_page()
    about = page.inner_text("#about")
    for part in (
        "92.3%",
        "(90.5–93.8%)",
        "1,000 texts",
        "95% confidence",
        "Most frequent label",
        "51.2%",
        "50 tokens",
    ):
        assert part in about
    assert page.locator(".chart .interval").count() == 2


def test_markup_stays_text(open_page: Open) -> None:
    page = open_page()
    page.fill("#text", ATTACK)
    page.click("#send")
    answer(page)
    assert page.title() == "Words by length · modelyard"


@pytest.mark.parametrize(
    "info_changes",
    [{"name": ATTACK, "labels": (ATTACK, "odd"), "examples": (ATTACK,), "versions": {ATTACK: ATTACK}}],
)
def test_markup_of_the_model_stays_text(open_page: Open) -> None:
    page = open_page()
    assert page.inner_text("h1") == ATTACK
    assert page.title() == f"{ATTACK} · modelyard"
    assert page.locator("main img, main script").count() == 0


def test_two_languages(open_page: Open) -> None:
    chinese = open_page(locale="zh-CN")
    assert chinese.get_attribute("html", "lang") == "zh-CN"
    assert chinese.inner_text("#send").startswith("判断标签")
    page = open_page()
    page.fill("#text", "three little words")
    page.click("#send")
    answer(page)
    page.click("#language")
    assert page.inner_text("#answer-title") == "结果"
    assert "准确率" in page.inner_text("#about")
    assert page.inner_text("#label") == "even"  # the answer stays
    page.reload()
    page.wait_for_selector("#about:not([hidden])")
    assert page.get_attribute("html", "lang") == "zh-CN"  # and so does the choice
    page.click("#language")
    assert page.inner_text("#answer-title") == "Answer"


def test_both_languages_say_the_same_things(open_page: Open) -> None:
    page = open_page()
    keys = page.evaluate(
        "import('/assets/strings.js').then(all => Object.values(all.strings).map(one => Object.keys(one)))"
    )
    assert sorted(keys[0]) == sorted(keys[1])


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_nothing_is_wider_than_the_screen(open_page: Open, path: str) -> None:
    page = open_page(path)
    if path == "/":
        page.fill("#text", "x" * 900)
        page.click("#send")
        answer(page)
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` as WCAG 2.2 defines it."""
    channels = [int(part) / 255 for part in colour.strip("rgb()").split(",")[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    page.fill("#text", "abc " * 60)
    page.click("#send")
    answer(page)
    pairs = page.evaluate("""() => {
        const hasText = node => [...node.childNodes].some(part => part.nodeType === 3 && part.data.trim());
        const ground = node => getComputedStyle(node).backgroundColor;
        const behind = node =>
            ground(node) === 'rgba(0, 0, 0, 0)' ? behind(node.parentElement) : ground(node);
        return [...document.querySelectorAll('main *, header *')]
            .filter(node => node.offsetParent && hasText(node))
            .map(node => [node.id || node.className, getComputedStyle(node).color, behind(node)]);
    }""")
    assert len(pairs) > 30
    for name, colour, ground in pairs:
        light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, colour, ground)  # WCAG 2.2, level AA


def test_every_control_has_a_name_and_room_for_a_finger(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 800})
    assert page.get_by_label("Text", exact=True).get_attribute("id") == "text"
    assert page.get_by_role("button", name="Label the text").count() == 1
    assert page.get_by_role("status").count() == 0  # hidden until there is an answer
    heights = page.eval_on_selector_all(
        "button, nav a", "all => all.filter(one => one.offsetParent).map(one => one.offsetHeight)"
    )
    assert len(heights) >= 5 and min(heights) >= 44


def test_errors_are_shown(open_page: Open, model: Any) -> None:
    page = open_page()
    page.click("#send")
    assert "There is no text yet." in page.inner_text("#error")
    page.fill("#text", "x" * 1001)
    assert page.inner_text("#count") == "1,001 characters, at most 1,000"
    page.click("#send")
    assert "at most 1,000 are taken" in page.inner_text("#error")
    page.fill("#text", "unreadable")
    page.click("#send")
    expect(page.locator("#error")).to_contain_text("cannot be read")
    assert page.get_by_role("alert").inner_text().endswith("Write another one.")
    page.route("**/predict", lambda route: route.abort())
    page.fill("#text", "abc")
    page.click("#send")
    expect(page.locator("#error")).to_contain_text("does not answer")
    page.click("#language")
    assert "服务器没有回应" in page.inner_text("#error")
    page.unroute("**/predict")
    page.click("#send")
    assert answer(page)[0] == "odd"
    assert page.is_hidden("#error")


@pytest.mark.parametrize("info_changes", [{"labels": tuple(f"label {n}" for n in range(12))}])
def test_many_labels_are_folded(open_page: Open) -> None:
    page = open_page()
    assert "one of 12 labels" in page.inner_text("#lede")
    page.route("**/predict", lambda route: route.fulfill(json={"seconds": 0.1, "predictions": [MANY]}))
    page.fill("#text", "abc")
    page.click("#send")
    answer(page)
    assert page.locator("#bars li").count() == 5
    page.click("text=Show all 12 labels")
    assert page.locator("#bars li").count() == 12
    assert page.inner_text("#bars li >> nth=11").endswith("< 0.1%")
    assert page.inner_text("#probability") == "> 99.9%"  # not 100%: the model is never certain


MANY = {
    "label": "label 0",
    "probability": 0.9996,
    "probabilities": [{"label": f"label {n}", "probability": 0.9996 if n == 0 else 0.0004 / 11} for n in range(12)],
    "num_tokens": 3,
    "truncated": False,
    "num_tokens_cut": 0,
}


def test_the_interface_page_shows_every_address(open_page: Open) -> None:
    page = open_page("/docs")
    text = page.inner_text("#calls")
    for part in (
        "POST",
        "/predict",
        "/health/ready",
        "predictions[].probabilities[].label",
        "curl http://127.0.0.1",
    ):
        assert part in text
