"""Where the person's tools look, without the passwords that stand in addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.environment.machines import FakeHost

from modelyard.environment.probes.settings import (
    HARMLESS,
    conda_settings,
    harmless,
    hub,
    proxies,
)
from modelyard.environment.redaction import plain_address


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("https://user:secret@pkgs.example/simple", "https://pkgs.example/simple"),
        ("https://token@pkgs.example/simple/", "https://pkgs.example/simple/"),
        ("https://u:p/a@ss@pkgs.example/simple", "https://pkgs.example/simple"),
        ("https://pkgs.example/simple?token=1#sha", "https://pkgs.example/simple"),
        ("user:secret@proxy:3128", "proxy:3128"),
        ("/srv/wheels", "/srv/wheels"),
        ("", ""),
    ],
)
def test_addresses_lose_their_secrets(address: str, plain: str) -> None:
    assert plain_address(address) == plain


@given(st.text(max_size=60))
def test_no_at_sign_is_left(text: str) -> None:
    assert "@" not in plain_address(text)
    assert plain_address(plain_address(text)) == plain_address(text)


def test_proxies_in_either_case_without_passwords() -> None:
    variables = {"HTTPS_PROXY": "http://u:p@a:1", "https_proxy": "http://u:p@b:2", "NO_PROXY": "localhost,.corp"}
    assert proxies(variables) == {"https": "http://b:2", "no": "localhost,.corp"}


def test_the_hub() -> None:
    assert hub({}, "/home/ann") == ("", "/home/ann/.cache/huggingface", False)
    variables = {"HF_ENDPOINT": "https://t@hf-mirror.com/", "HF_HOME": "/models", "HF_HUB_OFFLINE": "True"}
    assert hub(variables, "/home/ann") == ("https://hf-mirror.com", "/models", True)
    assert hub({"XDG_CACHE_HOME": "/c"}, "/home/ann")[1] == "/c/huggingface"


def test_only_variables_of_the_list_are_kept() -> None:
    assert harmless({"OMP_NUM_THREADS": "4", "HF_TOKEN": "hf_x", "PATH": "/bin"}) == {"OMP_NUM_THREADS": "4"}
    assert not [each for each in HARMLESS if any(word in each for word in ("TOKEN", "KEY", "SECRET", "PASS"))]


def test_conda_channels_proxy_and_certificate() -> None:
    files = {
        "/home/ann/.condarc": "channels: [conda-forge, 'https://u:p@c.example/x']\nssl_verify: /ca.pem\n",
        "/opt/conda/.condarc": "channels: [defaults]\nproxy_servers:\n  https: http://u:p@proxy:1\nssl_verify: true\n",
        "/etc/conda/.condarc": ": not [ yaml",
    }
    found = conda_settings(FakeHost(files=files, variables={"CONDA_PREFIX": "/opt/conda"}))
    assert found is not None
    assert found.extra_index_urls == ("defaults", "conda-forge", "https://c.example/x")
    assert (found.certificate, found.proxy) == ("/ca.pem", "http://proxy:1")
    assert found.sources == ("/opt/conda/.condarc", "/home/ann/.condarc")
    assert conda_settings(FakeHost()) is None
