"""pip's settings as pip itself reads them, and uv doing what it is told with them."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import uv
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.environment.machines import FakeHost

from modelyard.environment import sources
from modelyard.environment.host import Host
from modelyard.environment.redaction import plain_address
from modelyard.environment.sources import Mirrors, Sources, read_sources, uv_arguments, uv_variables

SECRET = "hunter2"


class ThisMachine(Host):
    """The real files, with the environment variables and the Python's folder of a test."""

    def __init__(self, variables: Mapping[str, str], prefix: str) -> None:
        self._variables, self._prefix = variables, prefix

    @property
    def environ(self) -> Mapping[str, str]:
        return self._variables

    @property
    def home(self) -> str:
        return self._variables["HOME"]

    @property
    def prefix(self) -> str:
        return self._prefix


options = st.sampled_from([
    "index-url", "pypi-url", "extra-index-url", "find-links", "trusted-host", "cert", "client-cert", "proxy",
    "timeout", "default-timeout", "no-index", "retries", "unheard-of",
])  # fmt: skip
spellings = st.tuples(options, st.sampled_from(["", "_", "--", "UP"])).map(
    lambda pair: {"_": pair[0].replace("-", "_"), "--": "--" + pair[0], "UP": pair[0].upper()}.get(pair[1], pair[0])
)
values = st.sampled_from([
    "", "https://a.example/simple", "https://user:pass@b.example/simple", "\n  https://a.example/x\n  https://b.example/y",
    "https://a.example https://b.example", "~/wheels", "/", "yes", "0", "off", "maybe", "7.5", "host:8080 other",
])  # fmt: skip
sections = st.sampled_from(["global", "install", "download", "freeze", "DEFAULT"])
config = st.dictionaries(sections, st.dictionaries(spellings, values, max_size=4), max_size=3).map(
    lambda parts: "".join(
        f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in items.items())
        for section, items in parts.items()
    )
)
texts = st.one_of(st.none(), config, st.sampled_from(["nonsense", "[global\n", "[global]\ncert = a\ncert = b\n"]))
PLACES = ("xdg/pip/pip.conf", "home/.pip/pip.conf", "home/.config/pip/pip.conf", "venv/pip.conf", "named.conf")
variables = st.dictionaries(
    options.map(lambda name: "PIP_" + name.upper().replace("-", "_")), values.map(str.strip), max_size=3
)


def what_pip_reads(environ: Mapping[str, str], prefix: str) -> dict[str, Any] | None:
    """The defaults of `pip install` as pip computes them, or None where pip stops with an error."""
    from pip._internal.commands.install import InstallCommand

    with (
        mock.patch.dict(os.environ, environ, clear=True),
        mock.patch.object(sys, "prefix", prefix),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            found = InstallCommand("install", "").parser.get_default_values()
        except SystemExit:
            return None
    return {
        "index_url": found.index_url, "extra_index_urls": found.extra_index_urls, "find_links": found.find_links,
        "certificate": found.cert, "client_certificate": found.client_cert, "proxy": found.proxy,
        "trusted_hosts": found.trusted_hosts, "no_index": found.no_index, "timeout_seconds": found.timeout,
    }  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.tuples(*[texts] * len(PLACES)), said=variables, named=st.sampled_from(["", "file", "missing", "none"]))
@example(files=(None,) * 5, said={"PIP_FIND_LINKS": "~/wheels /"}, named="")
@example(files=("[install]\nno-index = yes\n", None, "[global]\nno-index = no\n", None, None), said={}, named="")
@example(files=("[global]\nproxy = a\n", None, "[global]\nproxy =\n", None, None), said={}, named="")
def test_it_is_read_as_pip_reads_it(
    tmp_path: Path, files: tuple[str | None, ...], said: dict[str, str], named: str
) -> None:
    for place, text in zip(PLACES, files, strict=True):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
    (tmp_path / "home/wheels").mkdir(exist_ok=True)
    environ = said | {"HOME": str(tmp_path / "home"), "XDG_CONFIG_DIRS": str(tmp_path / "xdg")}
    if named:
        choice = {"file": str(tmp_path / "named.conf"), "missing": str(tmp_path / "nowhere"), "none": os.devnull}
        environ["PIP_CONFIG_FILE"] = choice[named]
    prefix = str(tmp_path / "venv")
    ours, theirs = read_sources(ThisMachine(environ, prefix)), what_pip_reads(environ, prefix)
    if theirs is None:
        # pip also stops at values of options that say nothing about where packages come from.
        assert ours.problems or "retries" in str((files, said)).lower()
        return
    assert not ours.problems
    usual = what_pip_reads({"PIP_CONFIG_FILE": os.devnull}, "")
    assert usual is not None
    home = str(tmp_path / "home")
    for field, value in theirs.items():
        if field in ("find_links", "extra_index_urls"):
            # What should lie on this machine and does not is left out: pip warns about it, uv stops.
            places = [each.replace("~", home) if field == "find_links" else each for each in value]
            value = [each for each in places if ":" in each or Path(each).exists()]
        seen = getattr(ours, field)
        seen = list(seen) if isinstance(seen, tuple) else seen
        assert seen == value or (not seen and value == usual[field]), field


def test_who_said_it_is_known() -> None:
    host = FakeHost(
        files={"/etc/pip.conf": "[global]\nindex-url = https://a.example\ncert = /ca.pem\n",
               "/home/ann/.config/pip/pip.conf": "[global]\nindex-url = https://b.example\n"},
        variables={"PIP_TIMEOUT": "20", "PIP_NO_INDEX": ""},
    )  # fmt: skip
    found = read_sources(host)
    assert (found.index_url, found.certificate, found.timeout_seconds) == ("https://b.example", "/ca.pem", 20)
    assert set(found.told_by) == {"/home/ann/.config/pip/pip.conf", "/etc/pip.conf", "PIP_TIMEOUT"}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("darwin", "/Library/Application Support/pip/pip.conf"),
        ("darwin", "/home/ann/.config/pip/pip.conf"),
        ("darwin", "/home/ann/Library/Application Support/pip/pip.conf"),
        ("windows", r"C:\ProgramData\pip\pip.ini"),
        ("windows", r"C:\Users\Ann\AppData\Roaming\pip\pip.ini"),
        ("windows", r"C:\Users\Ann\pip\pip.ini"),
    ],
)
def test_the_places_on_other_systems(name: str, path: str) -> None:
    home = r"C:\Users\Ann" if name == "windows" else "/home/ann"
    host = FakeHost(name=name, home_folder=home, files={path: "[global]\nindex-url = https://a.example\n"})
    host.folders.add(path.rsplit("/", 1)[0])
    assert read_sources(host).index_url == "https://a.example"


def test_the_network_library_s_own_certificate_counts() -> None:
    assert read_sources(FakeHost(variables={"REQUESTS_CA_BUNDLE": "/ca.pem"})).certificate == "/ca.pem"


def test_no_secret_is_ever_shown() -> None:
    addresses = f"https://ann:{SECRET}@a.example/x?token={SECRET} https://b.example/0123456789{SECRET}0123/simple"
    host = FakeHost(
        variables={"PIP_INDEX_URL": f"https://{SECRET}@a.example/simple", "PIP_EXTRA_INDEX_URL": addresses,
                   "PIP_PROXY": f"http://ann:p@{SECRET}@proxy.example:3128", "PIP_FIND_LINKS": addresses,
                   "UV_INDEX": f"inner=https://ann:{SECRET}@c.example/simple"}
    )  # fmt: skip
    shown = [repr(read_sources(host)), str(read_sources(host)), str(sources.pip_settings(host))]
    shown.append(str(sources.uv_settings(host)))
    assert not any(SECRET in each for each in shown)
    assert "c.example" in shown[0] and "a.example" in shown[2] and "c.example" in shown[3]


@given(st.text(max_size=40))
def test_any_address_can_be_shown(address: str) -> None:
    assert "pass" not in plain_address(f"https://user:pass@{address}")
    sources.local_path(address)


def test_uv_s_own_settings_win_and_are_left_to_uv() -> None:
    host = FakeHost(
        files={"/etc/pip.conf": "[global]\nindex-url = https://pip.example\ncert = /ca.pem\nfind-links = /wheels\n"},
        folders={"/wheels"},
        variables={"UV_DEFAULT_INDEX": "https://uv.example/simple"},
    )
    found = read_sources(host)
    assert found.uv_configured and found.index_url == "https://uv.example/simple" and found.find_links == ()
    assert found.told_by[0] == "UV_DEFAULT_INDEX"
    assert uv_variables(found) == {"SSL_CERT_FILE": "/ca.pem"}
    assert sources.pip_settings(host).index_url == "https://pip.example"


@pytest.mark.parametrize("path", ["/home/ann/.config/uv/uv.toml", "/etc/uv/uv.toml"])
def test_uv_s_files_count_where_they_name_indexes(path: str) -> None:
    text = (
        '[[index]]\nurl = "https://uv.example"\ndefault = true\n[[index]]\nname = "x"\nurl = "https://more.example"\n'
    )
    found = sources.uv_settings(FakeHost(files={path: text}))
    assert (found.index_url, found.extra_index_urls, found.sources) == (
        "https://uv.example",
        ("https://more.example",),
        (path,),
    )
    assert not read_sources(FakeHost(files={path: 'python-preference = "managed"\n'})).uv_configured
    assert not read_sources(FakeHost(files={path: text}, variables={"UV_NO_CONFIG": "1"})).uv_configured
    assert read_sources(FakeHost(files={path: "not toml ["})).problems


def test_mirrors_have_one_setting_each() -> None:
    host = FakeHost(
        variables={"MODELYARD_PYTORCH_INDEX": "https://m.example/whl/", "UV_TORCH_BACKEND_INDEX": "https://n.example",
                   "UV_PYTHON_INSTALL_MIRROR": "https://p.example/", "HF_ENDPOINT": "https://h.example"}
    )  # fmt: skip
    assert sources.mirrors(host) == Mirrors("https://m.example/whl", "https://p.example", "https://h.example")
    assert sources.mirrors(FakeHost()) == Mirrors()


def test_what_uv_is_told() -> None:
    told = uv_variables(
        Sources(index_url="https://a.example/simple", extra_index_urls=("https://b.example", "/srv/index"),
                find_links=("/srv/wheels, old",), certificate="/ca.pem", client_certificate="/me.pem",
                proxy="http://proxy:3128", trusted_hosts=("a.example", "b:81"), timeout_seconds=0.2)
    )  # fmt: skip
    assert told["UV_DEFAULT_INDEX"] == "https://a.example/simple"
    assert told["UV_INDEX"] == "https://b.example file:///srv/index"
    assert told["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert told["UV_FIND_LINKS"] == "file:///srv/wheels%2C%20old"
    assert (told["SSL_CERT_FILE"], told["SSL_CLIENT_CERT"]) == ("/ca.pem", "/me.pem")
    assert told["HTTPS_PROXY"] == told["HTTP_PROXY"] == "http://proxy:3128"
    assert (told["UV_INSECURE_HOST"], told["UV_HTTP_TIMEOUT"]) == ("a.example b:81", "1")
    assert uv_variables(Sources()) == {} and uv_arguments(Sources()) == []
    assert uv_arguments(Sources(no_index=True)) == ["--no-index"]
    assert "UV_INDEX_STRATEGY" not in uv_variables(Sources(index_url="https://a.example"))


def make_wheel(folder: Path, name: str, version: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def make_index(folder: Path, name: str, version: str) -> Path:
    wheel = make_wheel(folder / "files", name, version)
    page = folder / "simple" / name / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="{wheel.as_uri()}">{wheel.name}</a>')
    return folder / "simple"


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    main, extra = make_index(tmp_path / "main", "thing", "1.0"), make_index(tmp_path / "ex tra", "thing", "2.0")
    make_wheel(tmp_path / "wheels, mine", "thing", "3.0")
    yield str(main), str(extra), str(tmp_path / "wheels, mine")


def uv_takes(found: Sources, tmp_path: Path) -> str:
    """The version of `thing` that the real uv resolves to."""
    (tmp_path / "requirements.in").write_text("thing\n")
    command = [uv.find_uv_bin(), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-config"]
    command += ["--python", sys.executable, "--cache-dir", str(tmp_path / "cache"), *uv_arguments(found)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    ran = subprocess.run(
        [*command, "requirements.in"], cwd=tmp_path, env=environ | uv_variables(found), capture_output=True, text=True
    )
    return ran.stdout.strip() or ran.stderr


def test_uv_takes_from_the_same_places_as_pip(places: tuple[str, str, str], tmp_path: Path) -> None:
    main, extra, links = places
    assert uv_takes(Sources(index_url=main), tmp_path) == "thing==1.0"
    assert uv_takes(Sources(index_url=extra, extra_index_urls=(main,)), tmp_path) == "thing==2.0"
    assert uv_takes(Sources(index_url=main, extra_index_urls=(extra,)), tmp_path) == "thing==2.0"
    assert uv_takes(Sources(index_url=main, find_links=(links,)), tmp_path) == "thing==3.0"
    assert uv_takes(Sources(find_links=(links,), no_index=True), tmp_path) == "thing==3.0"
    assert "not found" in uv_takes(Sources(index_url=main, no_index=True), tmp_path)
