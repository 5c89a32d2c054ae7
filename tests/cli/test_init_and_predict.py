"""`init` guesses and says why, or asks; `predict` takes a text, a file, or standard input."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tests.conftest import demo_reviews, write_csv

from modelyard.cli.main import main
from modelyard.recipe.load import load_recipe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(text: str, label: str) -> list[dict[str, str]]:
    return [{"id": str(i), text: row["text"], label: row["label"]} for i, row in enumerate(demo_reviews(60))]


def test_usual_names_are_recognised(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(folder / "a.csv", named("Body", "stars"))
    assert main(["init", "sentiment", "a.csv"]) == 0
    recipe = load_recipe(folder / "recipe.yaml").recipe
    assert (recipe.data.text, recipe.data.label) == ("Body", "stars")
    assert Path(recipe.data.train) == folder / "a.csv"
    assert "the column is called stars; 2 different values" in capsys.readouterr().out


def test_other_names_are_guessed_by_their_values(folder: Path) -> None:
    rows = named("was_sie_schrieben", "urteil")
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["init", "text-classification", "b.jsonl", "--to", "b.yaml"]) == 0
    recipe = load_recipe(folder / "b.yaml").recipe
    assert (recipe.data.text, recipe.data.label) == ("was_sie_schrieben", "urteil")


def test_a_guess_that_is_not_clear_asks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"one": row["text"], "two": row["text"][::-1], "kind": row["label"]} for row in demo_reviews(30)]
    write_csv(folder / "c.csv", rows)
    assert main(["init", "sentiment", "c.csv"]) == 1
    message = capsys.readouterr().err
    assert "which column is the text is not clear; there are: one, two, kind" in message
    assert not (folder / "recipe.yaml").exists()


def test_a_recipe_that_is_there_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").write_text("mine")
    assert main(["init", "sentiment"]) == 1
    assert "--to recipe-2.yaml" in capsys.readouterr().err
    assert (folder / "recipe.yaml").read_text() == "mine"


def test_predict_a_text_a_file_and_standard_input(
    folder: Path, finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["predict", str(finished_run), "a warm , funny film", "--json"]) == 0
    single = json.loads(capsys.readouterr().out)
    write_csv(folder / "texts.csv", [{"text": "a warm , funny film"}, {"text": "dull"}])
    assert main(["predict", str(finished_run), "texts.csv", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["probabilities"] == pytest.approx(single["probabilities"], abs=1e-5)
    monkeypatch.setattr("sys.stdin", io.StringIO("a warm , funny film\n\ndull\n"))
    assert main(["predict", str(finished_run), "-"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith(second["label"])


@pytest.mark.parametrize(
    ("given", "words"),
    [("missing.csv", "there is no file missing.csv"), ("  ", "the text is empty")],
)
def test_predict_wrong_input(
    given: str, words: str, folder: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(finished_run), given]) == 1
    assert words in capsys.readouterr().err


def test_predict_names_the_row_that_cannot_be_read(
    folder: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.jsonl").write_text('{"text": "good"}\n{"text": 7}\n')
    assert main(["predict", str(finished_run), "bad.jsonl"]) == 1
    assert "bad.jsonl:2" in capsys.readouterr().err


def test_texts_that_are_not_utf8(folder: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "gbk.txt").write_bytes("很好的电影".encode("gb18030"))
    assert main(["predict", str(finished_run), "gbk.txt"]) == 1
    assert "is not UTF-8" in capsys.readouterr().err
