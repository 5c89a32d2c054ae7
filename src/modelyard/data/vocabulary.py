"""Learning a tokenizer's vocabulary from texts, so that the same texts always give the same tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CONTINUES = "##"
COUNTED_AT_ONCE = 1000


def learn_byte_level_bpe(texts: Iterable[str], vocab_size: int) -> tuple[Tokenizer, dict[str, str]]:
    """As RoBERTa's, which Longformer shares: BPE over bytes, so nothing is unknown (Liu et al., arXiv 1907.11692).

    Returns the tokenizer and its special tokens by role.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", _token_id(tokenizer, "</s>")), ("<s>", _token_id(tokenizer, "<s>")), add_prefix_space=False
    )
    roles = ("bos", "pad", "eos", "unk", "mask", "cls", "sep")
    return tokenizer, dict(zip(roles, ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<s>", "</s>"), strict=True))


def learn_wordpiece(texts: Iterable[str], vocab_size: int) -> tuple[Tokenizer, dict[str, str]]:
    """As BERT's uncased: lower case, no accents, Chinese characters apart (Devlin et al., arXiv 1810.04805).

    The library's trainer numbers the continuing characters (``##a``) in the order of a hash table, which
    differs from run to run and decides ties. So they are counted and numbered here, as special tokens of the
    training alone. Returns the tokenizer and its special tokens by role.
    """
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokens = list(special.values())
    learning = _wordpiece({})
    # A third of the entries, so that scripts of thousands of characters still leave room for words.
    alphabet = _most_frequent_characters(texts, max(vocab_size // 3, 1))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=tokens + [CONTINUES + character for character in alphabet if _can_continue(character)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learning.train_from_iterator(iter(texts), trainer)
    tokenizer = _wordpiece(learning.get_vocab())
    tokenizer.add_special_tokens(tokens)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, _token_id(tokenizer, token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer, special


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _most_frequent_characters(texts: Iterable[str], limit: int) -> list[str]:
    """Characters as they stand after normalising, the most frequent ones, sorted."""
    counts = np.zeros(0x110000, dtype=np.int64)
    for block in _blocks(texts):
        codes = np.frombuffer("".join(block).encode("utf-32-le"), dtype=np.uint32)
        found = np.bincount(codes)
        counts[: len(found)] += found
    normalizer = normalizers.BertNormalizer(lowercase=True)
    totals: dict[str, int] = {}
    for code in np.flatnonzero(counts):
        for character in normalizer.normalize_str(chr(code)):
            if not character.isspace():
                totals[character] = totals.get(character, 0) + int(counts[code])
    return sorted(sorted(totals, key=lambda character: (-totals[character], character))[:limit])


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while block := list(islice(iterator, COUNTED_AT_ONCE)):
        yield block


def _can_continue(character: str) -> bool:
    """Whether it can stand inside a word: punctuation and Chinese characters always stand alone."""
    text = normalizers.BertNormalizer(lowercase=True).normalize_str(f"a{character}a")
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)) == 1


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None, token
    return number
