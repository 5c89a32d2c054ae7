"""The hub, mirrors, proxies and certificates (lines 28 and 29)."""

from __future__ import annotations

from modelyard.environment.rules import Rule, Values, commands
from modelyard.environment.snapshot import Reach, Snapshot


def _to(snapshot: Snapshot, purpose: str) -> Reach | None:
    return next((each for each in snapshot.reach if each.purpose == purpose), None)


def hub_mirror_redirects(snapshot: Snapshot) -> Values | None:
    reach = _to(snapshot, "hub")
    if reach is None or not reach.reached or reach.serves is not False or not snapshot.configuration.hub_endpoint:
        return None
    return {
        "address": reach.address,
        "detail": reach.detail or f"HTTP {reach.status}",
        "command": commands.unset_variable(snapshot, "HF_ENDPOINT"),
    }


def hub_not_genuine(snapshot: Snapshot) -> Values | None:
    reach = _to(snapshot, "hub")
    if reach is None or not reach.reached or reach.serves is not False or snapshot.configuration.hub_endpoint:
        return None
    return {"address": reach.address, "detail": reach.detail or f"HTTP {reach.status}"}


def pytorch_mirror_links_upstream(snapshot: Snapshot) -> Values | None:
    reach, mirror = _to(snapshot, "pytorch"), snapshot.configuration.pytorch_mirror
    if reach is None or not reach.reached or reach.serves is not False or not mirror:
        return None
    return {
        "address": reach.address,
        "detail": reach.detail or f"HTTP {reach.status}",
        "command": commands.unset_variable(snapshot, "MODELYARD_PYTORCH_INDEX"),
    }


def python_mirror_lacks_builds(snapshot: Snapshot) -> Values | None:
    reach = _to(snapshot, "python")
    if reach is None or not reach.reached or reach.serves is not False:
        return None
    command = commands.unset_variable(snapshot, "UV_PYTHON_INSTALL_MIRROR")
    return {"address": reach.address, "detail": reach.detail or f"HTTP {reach.status}", "command": command}


def proxy_unreachable(snapshot: Snapshot) -> Values | None:
    proxies = {name: value for name, value in snapshot.configuration.proxies.items() if name != "no" and value}
    failed = [each for each in snapshot.reach if not each.reached and "proxy" in each.problem.lower()]
    if not failed or any("certificate" in each.problem.lower() for each in failed):
        return None
    first = failed[0]
    name, value = next(iter(proxies.items()), ("https", "?"))
    variables = f"{name.upper()}_PROXY"
    if snapshot.system.name != "windows":  # there, capitals make no difference
        variables += f" {name.lower()}_proxy"
    command = commands.unset_variable(snapshot, variables)
    return {"proxy": value, "address": first.address, "problem": first.problem or "?", "command": command}


def certificate_not_trusted(snapshot: Snapshot) -> Values | None:
    failed = [each for each in snapshot.reach if not each.reached and "certificate" in each.problem.lower()]
    if not failed:
        return None
    return {
        "address": failed[0].address,
        "problem": failed[0].problem,
        "ssl": commands.set_variable(snapshot, "SSL_CERT_FILE", "/path/company-ca.pem"),
        "requests": commands.set_variable(snapshot, "REQUESTS_CA_BUNDLE", "/path/company-ca.pem"),
    }


def hub_not_reachable(snapshot: Snapshot) -> Values | None:
    reach = _to(snapshot, "hub")
    if reach is None or reach.reached or snapshot.configuration.hub_offline:
        return None
    if proxy_unreachable(snapshot) or certificate_not_trusted(snapshot):
        return None
    return {
        "address": reach.address,
        "problem": reach.problem or "?",
        "command": commands.set_variable(snapshot, "HF_HUB_OFFLINE", "1"),
    }


RULES: dict[str, Rule] = {
    "hub-mirror-redirects": hub_mirror_redirects,
    "hub-not-genuine": hub_not_genuine,
    "pytorch-mirror-links-upstream": pytorch_mirror_links_upstream,
    "python-mirror-lacks-builds": python_mirror_lacks_builds,
    "proxy-unreachable": proxy_unreachable,
    "certificate-not-trusted": certificate_not_trusted,
    "hub-not-reachable": hub_not_reachable,
}
