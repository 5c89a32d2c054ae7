"""What the index of contents trusts, and who waits for whom."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from modelyard.data import cache
from modelyard.data.cache import content_hashes, is_sound, locked, seal
from modelyard.data.sources import Source
from modelyard.errors import DataError
from modelyard.runs.files import file_sha256


def source(*files: Path) -> Source:
    return Source("a", lambda: iter(()), files, "identity")


def test_contents_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, index = tmp_path / "a.csv", tmp_path / "cache" / "content.json"
    file.write_text("one")
    old = time.time() - 100
    os.utime(file, (old, old))
    expected = file_sha256(file)
    assert content_hashes([source(file)], index) == [[expected]]
    with monkeypatch.context() as patch:
        patch.setattr(cache, "file_sha256", lambda path: "hashed again")
        assert content_hashes([source(file)], index) == [[expected]]
        file.write_text("two")
        assert content_hashes([source(file)], index) == [["hashed again"]]
    assert content_hashes([source(file)], index) != [["hashed again"]], "too young to be trusted"


def test_sources_without_files_have_their_identity(tmp_path: Path) -> None:
    assert content_hashes([source()], tmp_path / "content.json") == [["identity"]]
    assert not (tmp_path / "content.json").exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: the file cannot be read"):
        content_hashes([source(tmp_path / "gone.csv")], tmp_path / "content.json")


def test_soundness_is_of_every_file(tmp_path: Path) -> None:
    assert not is_sound(tmp_path)
    big = tmp_path / "big.arrow"
    big.write_bytes(bytes(3 * cache.EDGE_BYTES))
    seal(tmp_path)
    assert is_sound(tmp_path)
    for position in (0, big.stat().st_size - 1):
        content = bytearray(big.read_bytes())
        content[position] = 1
        big.write_bytes(content)
        assert not is_sound(tmp_path)
        content[position] = 0
        big.write_bytes(content)
        assert is_sound(tmp_path)


def test_the_second_waits_and_is_told(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / "entry"
    told, order = threading.Event(), []

    def second() -> None:
        with locked(entry, told.set):
            order.append("second")

    with locked(entry, lambda: order.append("never")):
        (entry.parent / "entry.tmp-1").mkdir()
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"] and not (entry.parent / "entry.tmp-1").exists()
