"""Text to token ids and back to a folder that transformers loads: one class around the `tokenizers` library.

It needs no framework. Texts are always encoded whole, so that the length before truncation is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

# The library warns and goes single-threaded after a fork unless this is said before its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import numpy as np
from numpy.typing import NDArray
from tokenizers import (
    Tokenizer,
)

from modelyard.data.vocabulary import learn_byte_level_bpe, learn_wordpiece
from modelyard.errors import InputError
from modelyard.runs.files import write_text

Family = Literal["bert", "roberta", "longformer"]
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


class Encoded(NamedTuple):
    """ids: token ids of each text, special tokens included, at most max_length. full_lengths: (N,) int32
    before the cut."""

    ids: list[list[int]]
    full_lengths: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer and what a model must know of it.

    special: the token of each role (``pad``, ``cls``, …) that it has. folder: where it was loaded from, if it
    was.
    """

    tokenizer: Tokenizer
    special: Mapping[str, str]
    pad_token_id: int
    folder: Path | None = None
    config: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Read ``tokenizer.json`` of a Hugging Face folder; older files are converted by transformers.

        Raises InputError when the folder holds no tokenizer or the files are damaged.
        """
        file = folder / "tokenizer.json"
        if file.is_file():
            try:
                tokenizer = Tokenizer.from_file(str(file))
            except Exception as error:  # the library raises plain Exception
                raise InputError(
                    f"{file} is no sound tokenizer ({error})", hint="download or copy the checkpoint again"
                ) from error
        else:
            tokenizer = _converted(folder)
        special = _special_tokens(folder)
        return cls(_bare(tokenizer), special, _pad_token_id(folder, tokenizer, special), folder)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, family: Family) -> TextTokenizer:
        """Learn a vocabulary: lower-cased WordPiece for ``bert``, byte-level BPE for ``roberta`` and ``longformer``.

        texts: read twice for ``bert``; an iterator, which cannot be, is held in memory.
        vocab_size: entries at most, special tokens included; a small corpus yields fewer.
        The same texts give the same tokenizer.
        """
        if iter(texts) is texts:
            texts = list(texts)
        learn = learn_wordpiece if family == "bert" else learn_byte_level_bpe
        tokenizer, special = learn(texts, vocab_size)
        pad_token_id = tokenizer.token_to_id(special["pad"])
        assert pad_token_id is not None
        inputs = (
            ["input_ids", "token_type_ids", "attention_mask"] if family == "bert" else ["input_ids", "attention_mask"]
        )
        return cls(tokenizer, special, pad_token_id, None, _generic_config(special, inputs))

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to here, exclusive."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the serialised tokenizer: two that are equal here give equal ids."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()

    @cached_property
    def _frame(self) -> tuple[int, int]:
        mask = self.tokenizer.encode("a").special_tokens_mask
        first = mask.index(0) if 0 in mask else len(mask)
        return first, len(mask) - first - mask[first:].count(0)

    @property
    def num_prefix_tokens(self) -> int:
        """Special tokens before the text (1 for ``[CLS]``)."""
        return self._frame[0]

    @property
    def num_suffix_tokens(self) -> int:
        """Special tokens after the text (1 for ``[SEP]``)."""
        return self._frame[1]

    def special_token_ids(self) -> dict[str, int]:
        """The id of each special token, by its role (``pad``, ``unk``, ``cls``, ``sep``, ``mask``, ``bos``,
        ``eos``)."""
        ids = {role: self.tokenizer.token_to_id(token) for role, token in self.special.items()}
        return {role: number for role, number in ids.items() if number is not None}

    def encode_batch(self, texts: Sequence[str], max_length: int) -> Encoded:
        """Encode texts whole, then keep max_length tokens of each: the first ones and the special tokens at
        both ends."""
        self._require_room(max_length)
        encodings = self.tokenizer.encode_batch_fast(list(texts))
        ids: list[list[int]] = [encoding.ids for encoding in encodings]
        full_lengths = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids))
        for row in np.flatnonzero(full_lengths > max_length):
            ids[row] = self.window(ids[row], 0, max_length)
        return Encoded(ids, full_lengths)

    def window(self, ids: Sequence[int], start: int, length: int) -> list[int]:
        """Cut `length` tokens, special ones included, out of an encoded text, from its `start`-th token of text on."""
        self._require_room(length)
        if len(ids) <= length:
            return list(ids)
        prefix, suffix = self._frame
        content = length - prefix - suffix
        start = min(max(start, 0), len(ids) - length)
        begin = prefix + start
        return [*ids[:prefix], *ids[begin : begin + content], *ids[len(ids) - suffix :]]

    def _require_room(self, length: int) -> None:
        if length <= sum(self._frame):
            raise InputError(
                f"max_length {length} leaves no room for text: {sum(self._frame)} special tokens are added to each",
                hint=f"type --set design.max_length={max(16, 2 * sum(self._frame) + 2)} or more",
            )

    def save(self, folder: Path) -> None:
        """Write the files that ``AutoTokenizer.from_pretrained(folder)`` reads; those of a loaded one are copied."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.folder is not None:
            if self.folder.resolve() == folder.resolve():
                return
            for name in TOKENIZER_FILES:
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, folder / name)
        if self.folder is None or not (self.folder / "tokenizer.json").is_file():
            write_text(folder / "tokenizer.json", self.tokenizer.to_str(pretty=False))
        if self.config is not None:
            write_text(folder / "tokenizer_config.json", json.dumps(self.config, indent=2) + "\n")
            tokens = {f"{role}_token": token for role, token in self.special.items()}
            write_text(folder / "special_tokens_map.json", json.dumps(tokens, indent=2) + "\n")


def _bare(tokenizer: Tokenizer) -> Tokenizer:
    """Files often carry a truncation and padding of their own, which would cut texts unseen."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _converted(folder: Path) -> Tokenizer:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"there is no tokenizer in {folder}", hint="copy tokenizer.json and tokenizer_config.json into it"
        )
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        tokenizer: Tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # a missing package, a missing file, a tokenizer in pure Python
        raise InputError(
            f"the tokenizer in {folder} has no tokenizer.json and cannot be converted ({error})",
            hint="save it with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(folder)",
        ) from error
    return tokenizer


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file} is not JSON ({error})", hint="download or copy the checkpoint again") from error
    return value if isinstance(value, dict) else {}


def _special_tokens(folder: Path) -> dict[str, str]:
    """The token of each role, as tokenizer_config.json or else special_tokens_map.json says it."""
    declared = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    tokens = {}
    for role in ROLES:
        token = declared.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            tokens[role] = token
    return tokens


def _pad_token_id(folder: Path, tokenizer: Tokenizer, special: Mapping[str, str]) -> int:
    """By the declared token, else by the model's configuration, else by the names that BERT and RoBERTa use."""
    for token in (special.get("pad"), "[PAD]", "<pad>"):
        if token is not None and (number := tokenizer.token_to_id(token)) is not None:
            return int(number)
        configured = _read_json(folder / "config.json").get("pad_token_id")
        if isinstance(configured, int):
            return configured
    raise InputError(
        f"the tokenizer in {folder} has no padding token",
        hint='add "pad_token_id" to config.json or "pad_token" to tokenizer_config.json',
    )


def _generic_config(special: Mapping[str, str], inputs: list[str]) -> dict[str, Any]:
    """The generic class reads tokenizer.json as it is; a model's own class would build its own normaliser anew."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": inputs,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": token for role, token in special.items()},
    }
