"""Familiar names are taken where it is said, and the table is true of Transformers and of the schema."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from modelyard.errors import RecipeError
from modelyard.recipe.aliases import read_aliases
from modelyard.recipe.fields import all_fields
from modelyard.recipe.load import LoadedRecipe, load_recipe

DATA = "task: sentiment\ndata: {train: a.csv}\n"
RENAMED, REFUSED = read_aliases()


def load(tmp_path: Path, text: str) -> LoadedRecipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_targets_are_keys_of_the_schema() -> None:
    assert all(target in all_fields() for alias in RENAMED.values() for target in alias.targets)
    assert {(refusal.section,) for refusal in REFUSED.values()} <= set(all_fields())


def test_training_names_exist_in_transformers() -> None:
    from transformers import TrainingArguments

    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    ours = {name for name, alias in RENAMED.items() if alias.targets[0][0] in ("training", "environment")}
    # Of an earlier version (warmup_steps took its place), of example scripts and of a callback.
    assert ours - theirs == {"train_batch_size", "warmup_ratio", "early_stopping_patience"}
    assert {name for name, refusal in REFUSED.items() if refusal.section == "training"} <= theirs


@pytest.mark.parametrize("place", ["top", "section"])
def test_a_usual_set_of_training_arguments(tmp_path: Path, place: str) -> None:
    arguments = {
        "num_train_epochs": 4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "max_grad_norm": 0.5,
        "label_smoothing_factor": 0.1,
        "bf16": "true",
        "gradient_checkpointing": "true",
        "torch_compile": "false",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.1,
        "adam_beta2": 0.98,
        "save_steps": 500,
        "save_total_limit": 3,
        "load_best_model_at_end": "true",
        "metric_for_best_model": "eval_loss",
        "data_seed": 5,
        "learning_rate": "1e-5",
    }
    indent = "" if place == "top" else "  "
    lines = "".join(f"{indent}{name}: {value}\n" for name, value in arguments.items())
    text = DATA + "design: {model: org/name}\n" + ("" if place == "top" else "training:\n") + lines
    loaded = load(tmp_path, text)
    training = loaded.recipe.training
    assert (training.num_epochs, training.batch_size, training.schedule) == (4, 32, "cosine")
    assert (training.warmup_ratio, training.max_gradient_norm, training.label_smoothing) == (0.1, 0.5, 0.1)
    assert (training.precision, training.activation_checkpointing, training.compile) == (
        "bfloat16",
        True,
        False,
    )
    assert (training.optimizer, training.weight_decay, training.adam_beta2) == ("adamw", 0.1, 0.98)
    assert (training.checkpoint_every_steps, training.keep_checkpoints) == (500, 3)
    assert (training.best_metric, training.seed, training.learning_rate) == ("loss", 5, 1e-5)
    assert "`num_train_epochs` is called `training.num_epochs` here" in loaded.notices
    assert "`optim: adamw_torch_fused` is called `training.optimizer: adamw` here" in loaded.notices
    assert any("times `gradient_accumulation_steps: 4` is `training.batch_size: 32`" in n for n in loaded.notices)
    assert any("`load_best_model_at_end: true` is not needed here" in notice for notice in loaded.notices)
    assert ("`learning_rate` stands under `training` here" in loaded.notices) == (place == "top")


def test_data_and_design_names(tmp_path: Path) -> None:
    text = (
        "task: sentiment\ntrain_file: a.csv\nvalidation_file: b.csv\ntest_file: c.csv\n"
        "text_column_name: body\nlabel_column_name: topic\nid2label: {0: no, 1: yes}\n"
        "model_name_or_path: org/name\nmax_seq_length: 128\n"
        "hidden_dropout_prob: 0.2\nattention_probs_dropout_prob: 0.3\nuse_cpu: true\n"
    )
    recipe = load(tmp_path, text).recipe
    data, design = recipe.data, recipe.design
    assert [Path(str(p)).name for p in (data.train, data.validation, data.test)] == [
        "a.csv",
        "b.csv",
        "c.csv",
    ]
    assert (data.text, data.label, data.label_names) == ("body", "topic", {"0": "no", "1": "yes"})
    assert (design.model, design.max_length, design.dropout, design.attention_dropout) == (
        "org/name",
        128,
        0.2,
        0.3,
    )
    assert recipe.environment.device == "cpu"


def test_the_section_decides_between_two_targets(tmp_path: Path) -> None:
    text = DATA + "design: {architecture: {model_type: bert, num_hidden_layers: 3}}\n"
    architecture = load(tmp_path, text).recipe.design.architecture
    assert architecture is not None
    assert (architecture.family, architecture.num_layers) == ("bert", 3)
    assert load(tmp_path, DATA + "design: {model: a/b, num_hidden_layers: 3}\n").recipe.design.num_layers == 3


def test_both_names_with_one_value_are_one(tmp_path: Path) -> None:
    text = DATA + "design: {model: a/b}\nlearning_rate: 1e-5\ntraining: {learning_rate: 0.00001}\n"
    assert load(tmp_path, text).recipe.training.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "num_train_epochs: 3\ntraining: {num_epochs: 4}",
            "`num_train_epochs: 3` and `training.num_epochs: 4`",
        ),
        ("seed: 3\ndata_seed: 4", "`data_seed: 4` and `training.seed: 3`"),
        ("num_train_epochs: 0", "`training.num_epochs` (written `num_train_epochs`) is `0`, must be"),
        (
            "optim: adafactor",
            "`training.optimizer` (written `optim`) is `adafactor`, must be `adam` or `adamw`",
        ),
        (
            "num_train_epochs: 3\ntraining: 4",
            "`num_train_epochs` is `training.num_epochs` here, but `training` is",
        ),
        ("training: {max_seq_length: 3}", "did you mean `design.max_length`?"),
        ("num_train_epoch: 3", "did you mean `training.num_epochs`?"),
        ("gradient_accumulation_steps: 2", "batch_size counts all examples of an optimiser step"),
        (
            "gradient_accumulation_steps: x\nper_device_train_batch_size: 2",
            "`gradient_accumulation_steps` has no",
        ),
        ("load_best_model_at_end: false", "is always the one that is kept"),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, lines: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, DATA + "design: {model: a/b}\n" + lines + "\n")
    assert words in str(caught.value), str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_names_say_why_and_what_instead(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, DATA + f"design: {{model: a/b}}\n{name}: 17\n")
    assert f"`{name}` has no field here: {REFUSED[name].because}" in caught.value.problem
    assert caught.value.where.endswith(":4:1")
    assert caught.value.hint == REFUSED[name].hint


def test_harmless_values_of_refused_names_pass(tmp_path: Path) -> None:
    loaded = load(tmp_path, DATA + "design: {model: a/b}\nfp16: False\nmax_steps: -1\neval_strategy: epoch\n")
    assert len(loaded.notices) == 3
