"""Whether the places that things come from answer quickly, and are what they say they are.

Each place is asked once, all at the same time, within `SECONDS`. What does not answer by then is not reachable: a fact,
not a delay.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urljoin, urlsplit

from modelyard.environment.host import Answer, Host
from modelyard.environment.redaction import plain_address
from modelyard.environment.snapshot import Configuration, Reach

SECONDS = 2.0
HUB = "https://huggingface.co"
PYTORCH = "https://download.pytorch.org/whl"
# A small file of a well-known public model. The hub says the commit of the repository in a header; huggingface_hub
# refuses an answer without it, so a mirror that only redirects is of no use to it.
HUB_FILE = "/google-bert/bert-base-uncased/resolve/main/config.json"
COMMIT_HEADER = "x-repo-commit"
MAX_REDIRECTS = 3
OWN_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
HREF = re.compile(r"""<a\b[^>]*\bhref\s*=\s*["']?([^"'\s>]+)""", re.IGNORECASE)

# What the system's words come down to: (our word, pieces of theirs)
PROBLEMS = (
    ("timed out", ("timed out", "timeout")),
    ("name not known", ("name or service", "name resolution", "nodename nor servname", "getaddrinfo", "no address")),
    ("certificate", ("certificate", "ssl", "tls")),
    ("proxy", ("tunnel connection", "proxy")),
    ("connection refused", ("refused",)),
    ("no route", ("unreachable", "no route")),
)

Purpose = Literal["hub", "pytorch", "packages", "python"]


@dataclass(frozen=True)
class Question:
    """One place to ask."""

    purpose: Purpose
    address: str


def questions(configuration: Configuration, gpu: bool) -> list[Question]:
    """What to ask on this machine: the hub unless told to stay offline, PyTorch's index if it matters, pip's index."""
    found = []
    if not configuration.hub_offline:
        found.append(Question("hub", configuration.hub_endpoint or HUB))
    if configuration.pytorch_mirror or gpu:
        found.append(Question("pytorch", configuration.pytorch_mirror or PYTORCH))
    index = next(
        (each.index_url for each in configuration.indexes if each.tool in ("pip", "uv") and each.index_url), ""
    )
    if index:
        found.append(Question("packages", plain_address(index)))
    if configuration.python_mirror:
        found.append(Question("python", configuration.python_mirror))
    return [each for each in found if each.address.startswith(("http://", "https://"))]


def ask(host: Host, question: Question, proxies: Mapping[str, str]) -> Reach:
    """Ask one place, within `SECONDS`."""
    ends = time.monotonic() + SECONDS
    address = question.address.rstrip("/")
    if question.purpose == "hub":
        reach = _hub(host, address, ends)
    elif question.purpose == "pytorch":
        reach = _pytorch(host, address, ends)
    elif question.purpose == "python":
        reach = _python(host, address, ends)
    else:
        reach = _packages(host, address, ends)
    if not reach.reached and reach.problem and proxied(address, proxies):
        reach = reach.model_copy(update={"problem": f"proxy: {reach.problem.removeprefix('proxy: ')}"})
    return reach


def unanswered(question: Question) -> Reach:
    """What to say of a place that has not answered when the wait is over."""
    return Reach(
        address=question.address.rstrip("/"), purpose=question.purpose, problem=f"timed out after {SECONDS:g} s"
    )


def proxied(address: str, proxies: Mapping[str, str]) -> bool:
    """Whether a request to `address` goes through one of the proxies of the environment."""
    parts = urlsplit(address)
    if not (proxies.get(parts.scheme) or proxies.get("all")):
        return False
    host = parts.hostname or ""
    direct = [each.strip().lower().lstrip("*").lstrip(".") for each in proxies.get("no", "").split(",")]
    return proxies.get("no", "").strip() != "*" and not any(
        each and (host == each or host.endswith(f".{each}")) for each in direct
    )


def _hub(host: Host, address: str, ends: float) -> Reach:
    """The hub's commit header decides; redirects within the same host are followed, as the hub's own library does."""
    started, target = time.monotonic(), address + HUB_FILE
    answer = Answer(None, problem="timed out")
    serves, detail = None, ""
    for _ in range(MAX_REDIRECTS):
        answer = _request(host, target, ends, "HEAD")
        if answer.headers.get(COMMIT_HEADER):
            serves = True
            break
        elsewhere, target = _redirect(answer, target)
        if elsewhere:
            serves, detail = False, f"redirects to {elsewhere}"
            break
        if not target:
            if answer.status is not None and 200 <= answer.status < 400:
                serves, detail = False, f"answers {answer.status} without the header {COMMIT_HEADER}"
            break
    return _reach("hub", address, answer, started, serves, detail)


def _pytorch(host: Host, address: str, ends: float) -> Reach:
    """A mirror's links must stay on the mirror; PyTorch's own index may spread its files over hosts of its own."""
    started = time.monotonic()
    serves, detail = None, ""
    for page in (f"{address}/cpu/torch/", f"{address}/cpu/"):  # an index; a plain folder of files
        target = page
        answer = _request(host, target, ends)
        elsewhere, following = _redirect(answer, target)
        if following and not elsewhere:
            target = following
            answer = _request(host, target, ends)
            elsewhere, _ = _redirect(answer, target)
        if elsewhere:
            serves, detail = False, f"redirects to {elsewhere}"
        elif answer.status == 200:
            serves, detail = _links(address, target, answer.body)
        if answer.status != 404:
            break
    return _reach("pytorch", address, answer, started, serves, detail)


def _links(address: str, page: str, body: str) -> tuple[bool | None, str]:
    """(whether the links stay on the host of `address`, the first host that is another)."""
    own = urlsplit(address).hostname
    wheels = [urljoin(page, link) for link in HREF.findall(body) if ".whl" in link or "torch" in link]
    if not wheels:
        return None, "no link to a wheel on its page"
    if address == PYTORCH:
        return True, ""
    other = next((host for host in (urlsplit(link).hostname for link in wheels) if host and host != own), "")
    return (False, f"its links lead to {other}") if other else (True, "")


def _packages(host: Host, address: str, ends: float) -> Reach:
    """The index knows pip, whatever else it has; one that wants a password is reached all the same."""
    started = time.monotonic()
    answer = _request(host, f"{address}/pip/", ends, "HEAD")
    return _reach("packages", address, answer, started, True if answer.status == 200 else None, "")


def _python(host: Host, address: str, ends: float) -> Reach:
    """The mirror has the file that uv would fetch from it; uv itself says which that is."""
    started = time.monotonic()
    command = [host.uv, "python", "list", OWN_PYTHON, "--only-downloads", "--output-format", "json", "--no-config"]
    variables = {**host.environ, "UV_PYTHON_INSTALL_MIRROR": address}
    ran = host.run(command, max(0.1, ends - time.monotonic()), variables)
    found = re.search(r'"url":\s*"(' + re.escape(address) + r'[^"\s]+)"', ran.output) if ran else None
    answer = _request(host, found[1] if found else address, ends, "HEAD")
    missing = found is not None and answer.status is not None and answer.status >= 400
    detail = f"answers {answer.status} for {found[1].removeprefix(address)}" if found and missing else ""
    serves = False if missing else True if found and answer.status is not None else None
    return _reach("python", address, answer, started, serves, detail)


def _request(host: Host, address: str, ends: float, method: str = "GET") -> Answer:
    left = ends - time.monotonic()
    return host.fetch(address, left, method) if left > 0 else Answer(None, problem="timed out")


def _redirect(answer: Answer, address: str) -> tuple[str, str]:
    """(the other host that the answer sends to, the address on the same host that it sends to), each "" if not."""
    location = answer.headers.get("location", "")
    if answer.status is None or not 300 <= answer.status < 400 or not location:
        return "", ""
    target = urljoin(address, location)
    other = urlsplit(target).hostname or ""
    return (other, "") if other != urlsplit(address).hostname else ("", target)


def _reach(
    purpose: Purpose,
    address: str,
    answer: Answer,
    started: float,
    serves: bool | None,
    detail: str,
) -> Reach:
    refused_by_proxy = answer.status == 407
    reached = answer.status is not None and not refused_by_proxy
    return Reach(
        address=plain_address(address),
        purpose=purpose,
        reached=reached,
        status=answer.status,
        seconds=round(time.monotonic() - started, 3),
        problem="proxy: wants a password" if refused_by_proxy else "" if reached else _problem(answer.problem),
        serves=serves if reached else None,
        detail=detail,
    )


def _problem(text: str) -> str:
    """The system's reason under the few names that findings know, or as it is."""
    plain = text.lower()
    for name, pieces in PROBLEMS:
        if any(piece in plain for piece in pieces):
            return f"timed out after {SECONDS:g} s" if name == "timed out" else name
    return text[:200]
