"""A Python whose site-packages a test fills by hand, and this machine with other variables."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.environment.fake_wheels import make_environment

from modelyard.environment.host import Host, Ran
from modelyard.environment.probes.frameworks import PROGRAM, installed
from modelyard.environment.snapshot import Framework, Installed


class OtherVariables(Host):
    """This machine with other variables, which the asked processes get as well; it remembers what it ran."""

    def __init__(self, home: str = "/nowhere", **variables: str) -> None:
        self.variables = {"PATH": os.environ["PATH"], "HOME": home, **variables}
        self.asked: list[str] = []

    @property
    def environ(self) -> Mapping[str, str]:
        return self.variables

    @property
    def home(self) -> str:
        return self.variables["HOME"]

    def run(self, command: Sequence[str], seconds: float, environ: Mapping[str, str] | None = None) -> Ran | None:
        if str(PROGRAM) in command:
            self.asked.append(command[-1])
        return super().run(command, seconds, environ)


class Place:
    """A Python whose site-packages a test fills by hand."""

    def __init__(self, folder: Path) -> None:
        python, self.site = make_environment(folder)
        self.python = str(python)

    def add(self, name: str, release: str, files: Mapping[str, str] | None = None) -> None:
        (self.site / f"{name}-{release}.dist-info").mkdir()
        for path, text in (files or {}).items():
            (self.site / path).parent.mkdir(parents=True, exist_ok=True)
            (self.site / path).write_text(textwrap.dedent(text))

    def ask(self, name: str, host: Host | None = None, seconds: float = 30.0) -> Framework:
        answer = installed(host or OtherVariables(), self.python, ask="always", gpu=False, seconds=seconds)
        framework = answer.framework(name)
        assert framework is not None
        assert framework.asked
        return framework

    def look(self, host: Host | None = None) -> Installed:
        return installed(host or OtherVariables(), self.python, ask="never", gpu=False)
