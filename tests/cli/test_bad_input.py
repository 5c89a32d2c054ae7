"""Wrong things that people type: each gets the problem, the next command, its exit code, and leaves no trace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.conftest import RECIPE, demo_reviews, write_csv

from modelyard.cli.main import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_with(folder: Path, data: Path | str, *arguments: str) -> int:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(train=data), encoding="utf-8")
    return main(["train", str(recipe), "--run", str(folder / "run"), *arguments])


def refused(folder: Path, capsys: pytest.CaptureFixture[str], data: Path | str, *arguments: str, code: int = 1) -> str:
    """Train with something wrong; the message. Nothing of a run may be left."""
    assert train_with(folder, data, *arguments) == code
    message = capsys.readouterr().err
    assert "hint: " in message
    assert not (folder / "run" / "manifest.json").exists() and not (folder / "run" / "model").exists()
    return message


def test_missing_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.csv" in refused(folder, capsys, "nowhere.csv")


def test_wrong_column(folder: Path, capsys: pytest.CaptureFixture[str], reviews_csv: Path) -> None:
    message = refused(folder, capsys, reviews_csv, "--set", "data.text=txet")
    assert "'txet'" in message and "the columns are 'text', 'label'" in message


def test_one_class_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"text {index}", "label": "only"} for index in range(40)]
    assert "only" in refused(folder, capsys, write_csv(folder / "one.csv", rows))


def test_label_never_seen_in_train(folder: Path, capsys: pytest.CaptureFixture[str], reviews_csv: Path) -> None:
    rows = [*demo_reviews(200)[160:190], {"text": "so so", "label": "mixed"}]
    test = write_csv(folder / "test.csv", rows)
    assert "mixed" in refused(folder, capsys, reviews_csv, "--set", f"data.test={test}")


def test_empty_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty.csv").write_text("")
    assert "empty.csv" in refused(folder, capsys, folder / "empty.csv")


def test_broken_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps(row) for row in demo_reviews(50)]
    lines[20] = lines[20][:-5]
    (folder / "broken.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert "broken.jsonl:21" in refused(folder, capsys, folder / "broken.jsonl")


def test_wrong_encoding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "gbk.csv").write_bytes("text,label\n很好的电影,positive\n".encode("gb18030"))
    message = refused(folder, capsys, folder / "gbk.csv")
    assert "gbk.csv:2" in message and "UTF-8" in message


def test_misspelt_key(folder: Path, capsys: pytest.CaptureFixture[str], reviews_csv: Path) -> None:
    assert "learning_rate" in refused(folder, capsys, reviews_csv, "--set", "training.lerning_rate=0.1")


def test_number_out_of_range(folder: Path, capsys: pytest.CaptureFixture[str], reviews_csv: Path) -> None:
    message = refused(folder, capsys, reviews_csv, "--set", "training.batch_size=0")
    assert "batch_size" in message and "0" in message


def test_hub_id_without_a_network(
    folder: Path, capsys: pytest.CaptureFixture[str], reviews_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = folder / "hub.yaml"
    recipe.write_text(f"task: sentiment\ndata: {{train: {reviews_csv}}}\ndesign: {{model: nobody/no-such-model}}\n")
    assert main(["train", str(recipe)]) in (1, 3)
    message = capsys.readouterr().err
    assert "nobody/no-such-model" in message and "architecture" in message
    assert not (folder / "runs/hub/manifest.json").exists()


def test_cuda_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str], reviews_csv: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    message = refused(folder, capsys, reviews_csv, "--set", "environment.device=cuda", code=3)
    assert "--set environment.device=cpu" in message


def test_run_folder_exists(folder: Path, capsys: pytest.CaptureFixture[str], finished_run: Path) -> None:
    assert main(["train", str(finished_run.parent / "small.yaml"), "--run", str(finished_run)]) == 1
    assert "--resume" in capsys.readouterr().err


def test_what_is_no_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "export", "serve"):
        assert main([command, "nothing-here"]) == 1
        assert "nothing-here is not a run" in capsys.readouterr().err


def test_another_models_tokenizer(
    folder: Path, capsys: pytest.CaptureFixture[str], reviews_csv: Path, finished_run: Path
) -> None:
    """A model whose folder holds a tokenizer with more entries than it has embeddings."""
    model = shutil.copytree(finished_run / "model", folder / "mixed")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    recipe = folder / "mixed.yaml"
    recipe.write_text(f"task: sentiment\ndata: {{train: {reviews_csv}}}\ndesign: {{model: {model}}}\n")
    assert main(["train", str(recipe), "--run", str(folder / "run")]) == 1
    message = capsys.readouterr().err
    assert "only 300 embeddings" in message and "hint: put the tokenizer files" in message
    assert not (folder / "run").exists()


def test_a_checkpoint_with_another_head_gets_a_new_one(
    folder: Path, capsys: pytest.CaptureFixture[str], finished_run: Path
) -> None:
    rows = [
        {"text": row["text"], "label": f"{row['label']} {index % 2}"} for index, row in enumerate(demo_reviews(120))
    ]
    data, recipe = write_csv(folder / "four.csv", rows), folder / "four.yaml"
    recipe.write_text(
        f"task: text-classification\ndata: {{train: {data}}}\ndesign: {{model: {finished_run / 'model'}}}\n"
        "training: {num_epochs: 1}\n"
    )
    assert main(["train", str(recipe), "--run", str(folder / "run")]) == 0
    assert "classifies 2 labels, this task has 4: new head" in capsys.readouterr().out
