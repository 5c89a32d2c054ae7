"""The real machine through `Host`: programs that will not end, and servers that talk nonsense."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modelyard.environment.host import Host

SLEEPER = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'], {more}){rest}"
)


@pytest.mark.skipif(sys.platform == "win32", reason="sessions are a matter of POSIX")
@pytest.mark.parametrize(
    ("more", "rest"),
    [("", ".wait()"), ("start_new_session=True", ".wait()"), ("start_new_session=True", "")],
    ids=["child", "child that left the group", "child that outlives its parent"],
)
def test_a_program_is_waited_for_no_longer_than_its_limit(more: str, rest: str) -> None:
    started = time.monotonic()
    ran = Host().run([sys.executable, "-c", SLEEPER.format(more=more, rest=rest)], 0.5)
    assert ran is not None and ran.code is None
    assert time.monotonic() - started < 5


def test_a_program_that_is_not_there_or_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    assert Host().run([str(tmp_path / "none")], 1) is None
    assert Host().run([str(tmp_path / "text")], 1) is None
    assert Host().run(["with\0zero"], 1) is None


def test_the_current_folder_may_be_gone(tmp_path: Path) -> None:
    program = (
        "import os\nfrom modelyard.environment.host import Host\nos.mkdir('x'); os.chdir('x'); os.rmdir('../x')\n"
        "print(repr(Host().here))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "''"


@pytest.mark.parametrize(
    "reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: " + b"x" * 70_000, b"HTTP/1.1 999999 \r\n\r\n",
              b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"],
)  # fmt: skip
def test_a_server_that_talks_nonsense_is_an_answer(reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        answer = Host().fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/", 2)
        thread.join()
    assert (answer.status is None) == bool(answer.problem)
