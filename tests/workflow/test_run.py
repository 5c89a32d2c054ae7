"""One run from data to bundle, and what happens the second time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers

import modelyard
from modelyard.data.tokenizer import TextTokenizer
from modelyard.engines.base import Batch, StepOutcome
from modelyard.engines.torch.learner import TorchLearner
from modelyard.errors import InputError
from modelyard.recipe.load import load_recipe
from modelyard.runs.events import read_events
from modelyard.runs.files import file_sha256
from modelyard.runs.folder import RunFolder
from modelyard.workflow.use import open_bundle


class Heard:
    """A listener that remembers the state of each stage."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    @property
    def stages(self) -> dict[str, str]:
        return {event["name"]: event["state"] for event in self.events if event["kind"] == "stage"}


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


def test_the_folder_holds_what_the_design_says(finished_run: Path) -> None:
    for name in ("recipe.yaml", "manifest.json", "events.jsonl", "plan.json", "data/report.json",
                 "model/config.json", "model/model.safetensors", "model/tokenizer.json",
                 "evaluation/metrics.json", "evaluation/predictions.parquet", "evaluation/report.html",
                 "bundle/bundle.json", "bundle/model/model.safetensors"):  # fmt: skip
        assert (finished_run / name).stat().st_size > 0, name
    manifest = json.loads((finished_run / "manifest.json").read_text())
    assert set(manifest["stages"]) == {"training", "evaluation", "deployment"}
    assert manifest["stages"]["training"]["artefacts"]["model/model.safetensors"] == file_sha256(
        finished_run / "model/model.safetensors"
    )


def test_upstream_loads_the_model_and_gives_the_recorded_probabilities(finished_run: Path, reviews_csv: Path) -> None:
    """AutoModel and AutoTokenizer alone, on the texts of the test set, against predictions.parquet."""
    table = pq.read_table(finished_run / "evaluation/predictions.parquet").to_pylist()
    lines = reviews_csv.read_text(encoding="utf-8").splitlines()
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished_run / "model")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(finished_run / "model").eval()
    import csv

    rows = list(csv.DictReader(lines))
    for row in table[:8]:
        text = rows[int(row["source"].rsplit(":", 1)[1]) - 2]["text"]
        with torch.inference_mode():
            inputs = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")
            probabilities = model(**inputs).logits.softmax(-1)[0].numpy()
        expected = [row[f"probability_{label}"] if f"probability_{label}" in row else row["probabilities"][index]
                    for index, label in enumerate(("negative", "positive"))]  # fmt: skip
        np.testing.assert_allclose(probabilities, expected, atol=2e-5)


def test_a_second_start_skips_every_stage(run_copy: Path, finished_run: Path) -> None:
    heard = Heard()
    recipe = modelyard.load_recipe(finished_run.parent / "small.yaml")
    modelyard.run(recipe, run_copy, listeners=[heard])
    assert [heard.stages[name] for name in ("training", "evaluation", "deployment")] == ["skipped"] * 3


def test_other_metrics_judge_again_but_do_not_train(run_copy: Path, finished_run: Path) -> None:
    heard = Heard()
    recipe = modelyard.load_recipe(finished_run.parent / "small.yaml", ["evaluation.metrics=[accuracy]"])
    metrics = modelyard.run(recipe, run_copy, listeners=[heard])
    assert heard.stages["training"] == "skipped" and heard.stages["evaluation"] == "done"
    assert metrics["metrics"] == ["accuracy"]


def test_other_training_settings_do_not_overwrite_a_run(run_copy: Path, finished_run: Path) -> None:
    recipe = modelyard.load_recipe(finished_run.parent / "small.yaml", ["training.num_epochs=1"])
    before = file_sha256(run_copy / "model/model.safetensors")
    with pytest.raises(InputError, match="other training settings") as caught:
        modelyard.run(recipe, run_copy)
    assert "--run FOLDER" in caught.value.hint
    assert file_sha256(run_copy / "model/model.safetensors") == before


def test_the_resolved_recipe_runs_again_to_the_same_weights(finished_run: Path, tmp_path: Path) -> None:
    again = modelyard.train(load_recipe(finished_run / "recipe.yaml").recipe, tmp_path / "again")
    assert file_sha256(again.model / "model.safetensors") == file_sha256(finished_run / "model/model.safetensors")


def test_derived_values_carry_their_reason(finished_run: Path) -> None:
    text = (finished_run / "recipe.yaml").read_text()
    assert "# derived: the labels found in train" in text
    assert "device: cpu" in text


def test_training_into_a_run_that_is_there_is_refused(run_copy: Path, recipe_file: Path) -> None:
    with pytest.raises(InputError, match="already holds a run") as caught:
        modelyard.train(modelyard.load_recipe(recipe_file), run_copy)
    assert "--resume" in caught.value.hint


def test_the_head_is_fitted_once_on_whole_documents_and_a_resume_is_exact(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = ["training.head_start=probe", "training.train_window=16", "training.class_weights=balanced"]
    recipe = modelyard.load_recipe(recipe_file, [*probe, "training.checkpoint_every_steps=2"])
    fitted: list[Batch] = []
    step, fit_head = TorchLearner.step, TorchLearner.fit_head

    def fit(self: TorchLearner, batches: Iterable[Batch]) -> float:
        fitted.extend(batches)
        return fit_head(self, fitted)

    def fail_at_step_3(self: TorchLearner, *arguments: Any) -> StepOutcome:
        if self._num_steps == 3:
            raise RuntimeError("the power went")
        return step(self, *arguments)

    undisturbed = modelyard.train(recipe, tmp_path / "undisturbed")
    monkeypatch.setattr(TorchLearner, "fit_head", fit)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the power went"):
        patch.setattr(TorchLearner, "step", fail_at_step_3)
        modelyard.train(recipe, tmp_path / "resumed")
    rows = np.concatenate([batch.rows for batch in fitted])
    resumed = modelyard.train(recipe, tmp_path / "resumed", resume=True)

    assert sum(batch.num_examples for batch in fitted) == len(rows) == len(set(rows))  # and not fitted again
    assert max(batch.arrays["input_ids"].shape[1] for batch in fitted) == 48
    weights = np.concatenate([batch.weights for batch in fitted])
    assert len(np.unique(weights)) == 2 and weights.mean() == pytest.approx(1)
    assert file_sha256(resumed.model / "model.safetensors") == file_sha256(undisturbed.model / "model.safetensors")
    notes = [event["text"] for event in read_events(resumed.path / "events.jsonl") if event["kind"] == "note"]
    assert sum(note.startswith("head fitted on the frozen encoder: right on ") for note in notes) == 1


def test_a_vocabulary_is_learned_once(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judging and shipping read the run's own tokenizer, and so meet the data of the training in the cache."""

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("prepared or learned again")

    monkeypatch.setattr(TextTokenizer, "train", refuse)
    monkeypatch.setattr(TextTokenizer, "encode_batch", refuse)

    def metrics() -> list[object]:
        systems = json.loads((run_copy / "evaluation/metrics.json").read_text())["systems"]
        return [system["metrics"] for system in systems]

    before = metrics()
    RunFolder(run_copy).forget_stages("evaluation", "deployment")
    modelyard.evaluate(run_copy)
    assert metrics() == before
    modelyard.export(run_copy)


def test_a_changed_model_is_not_judged(run_copy: Path) -> None:
    with (run_copy / "model/model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(InputError, match=r"model\.safetensors is missing or was changed"):
        modelyard.evaluate(run_copy)


def test_a_bundle_needs_nothing_but_its_folder(run_copy: Path, tmp_path: Path) -> None:
    bundle_folder = Path(shutil.move(run_copy / "bundle", tmp_path / "elsewhere"))
    shutil.rmtree(run_copy)
    bundle, predictor = open_bundle(bundle_folder)
    prediction = predictor.predict(["a warm , funny film"])[0]
    assert prediction.label in bundle.info.labels
    assert sum(prediction.probabilities.values()) == pytest.approx(1)


def test_events_tell_the_story_in_order(finished_run: Path) -> None:
    kinds = [event["kind"] for event in read_events(finished_run / "events.jsonl")]
    assert kinds.index("step") < kinds.index("epoch") < kinds.index("result")
    steps = [event["step"] for event in read_events(finished_run / "events.jsonl") if event["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
