"""Addresses in what tools say, without their secrets."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(?<=://)[^/@\s\"'$]+@")  # an address that already names a variable ($) stays
_QUERY = re.compile(r"(https?://[^\s\"'?#]+)\?[^\s\"'#]*")


def without_secrets(text: str) -> str:
    """`text` with user names, passwords and queries taken out of its addresses."""
    return _QUERY.sub(r"\1", _USERINFO.sub("", text))


def plain_address(address: str) -> str:
    """An address without user, password, query, fragment, and what looks like a token in its path.

    Everything up to the last "@" goes, because people write passwords with odd characters as they are. That a long part
    of a path with letters and digits is a token is a guess, on the safe side.
    """
    scheme, found, rest = address.strip().rpartition("://")
    rest = re.split(r"[?#]", rest.rpartition("@")[2], maxsplit=1)[0]
    rest = re.sub(r"(?<=/)(?=[^/]*\d)(?=[^/]*[A-Za-z])[A-Za-z0-9_=-]{20,}(?=/|$)", "****", rest) if found else rest
    return f"{scheme.rpartition('@')[2]}{found}{rest}".strip()
