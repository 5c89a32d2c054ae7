"""Addresses in what tools say, without their secrets."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(?<=://)[^/@\s\"'$]+@")  # an address that already names a variable ($) stays
_QUERY = re.compile(r"(https?://[^\s\"'?#]+)\?[^\s\"'#]*")


def without_secrets(text: str) -> str:
    """`text` with user names, passwords and queries taken out of its addresses."""
    return _QUERY.sub(r"\1", _USERINFO.sub("", text))
