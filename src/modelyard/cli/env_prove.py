"""``modelyard env create``, ``verify`` and ``repair``: what ends with a proof, and how the proof is told."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from modelyard.cli.env import described
from modelyard.cli.env_progress import Progress
from modelyard.cli.environment_messages import say
from modelyard.cli.main import language
from modelyard.cli.page import Page, cells, padded

if TYPE_CHECKING:
    from modelyard.environment.store import Environment
    from modelyard.environment.verify import Verification

SHOWN = 10  # findings of one check; --json has all


def create(arguments: argparse.Namespace) -> int:
    """Make and prove an environment, and say where it is and what to type next."""
    page = Page(sys.stderr if arguments.json else sys.stdout)
    environment = make(arguments.framework, arguments.accelerator, arguments.python, arguments.name, page=page)
    show_made(page, environment, language())
    if arguments.json:
        print(json.dumps(as_json(environment), ensure_ascii=False))
    return 0


def make(
    framework: str,
    accelerator: str = "auto",
    python: str | None = None,
    name: str | None = None,
    *,
    page: Page | None = None,
) -> Environment:
    """`environment.create` with its steps on `page`, standard error if not given."""
    from modelyard.environment import create as creating
    from modelyard.environment.building import Tools

    with Progress(page or Page(sys.stderr), language()) as progress:
        return creating.create(framework, accelerator, python, name, tools=Tools(listener=progress))


def repair(arguments: argparse.Namespace) -> int:
    """Build anew beside what is there, prove, and change over."""
    from modelyard.environment import repair as repairing
    from modelyard.environment.building import Tools

    page, spoken = Page(sys.stderr if arguments.json else sys.stdout), language()
    with Progress(page, spoken) as progress:
        environment = repairing.repair(arguments.name, tools=Tools(listener=progress))
    show_made(page, environment, spoken)
    old = [each for each in environment.builds if each.path.name != environment.current]
    if old:
        page.line(say("env.old_kept", spoken, count=len(old)))
        page.command(f"modelyard env remove {environment.name} --old", 2)
    if arguments.json:
        print(json.dumps(as_json(environment), ensure_ascii=False))
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check the environment and prove it again; 3 if anything is not as it should be."""
    from modelyard.environment import verify as verifying
    from modelyard.environment.building import Tools
    from modelyard.environment.store import Store

    page, spoken = Page(sys.stderr if arguments.json else sys.stdout), language()
    with Progress(page, spoken, lines=False) as progress:
        verification = verifying.verify(arguments.name, tools=Tools(listener=progress))
    show_items(page, verification, spoken)
    page.line()
    build = Store().open(arguments.name).build
    show_proof(page, build.read_proof() if build else {}, spoken)
    if not verification.passed:
        page.line()
        page.line(say("verify.broken", spoken, name=arguments.name), "bold")
        page.command(f"modelyard env repair {arguments.name}", 2)
    if arguments.json:
        print(json.dumps(verification.as_json(), ensure_ascii=False))
    return 0 if verification.passed else 3


def show_items(page: Page, verification: Verification, spoken: str) -> None:
    """One line for each check; what is wrong with it below."""
    titles = {each.name: say(f"step.{each.name}", spoken) for each in verification.items}
    width = max(map(cells, titles.values()))
    for each in verification.items:
        verdict = say("fine", spoken) if each.passed else say("wrong", spoken)
        line = f"{padded(titles[each.name], width)}  {each.seconds:6.1f} s  {verdict}"
        page.line(line, "" if each.passed else "error")
        if each.passed or each.name == "proof":  # the proof is told below
            continue
        for fact in each.facts[:SHOWN]:
            page.line(fact, "", 2)
        if len(each.facts) > SHOWN:
            page.line(say("more", spoken, count=len(each.facts) - SHOWN), "dim", 2)


def as_json(environment: Environment) -> dict[str, Any]:
    """The environment and its proof."""
    build = environment.build
    return {"environment": described(environment), "proof": build.read_proof() if build else None}


def show_made(page: Page, environment: Environment, spoken: str) -> None:
    """Where it is, that it was proved, and the next command."""
    from modelyard.cli.hand_over import summary

    build = environment.build
    assert build is not None  # `create` and `repair` raise otherwise
    page.line()
    show_proof(page, build.read_proof(), spoken)
    page.line()
    name = f"{environment.name} ({summary(environment)}, Python {environment.python})"
    following = "modelyard demo" if environment.framework == "torch" else f"modelyard env verify {environment.name}"
    rows = [
        (say("env.environment", spoken), name, ""),
        (say("env.folder", spoken), str(build.path), ""),
        (say("env.python", spoken), str(build.python), ""),
        (say("env.next", spoken), following, "command"),
    ]
    width = max(cells(label) for label, _, _ in rows)
    for label, text, style in rows:
        page.labelled(label, [(text, style)], width, "dim")


def show_proof(page: Page, proof: dict[str, Any], spoken: str) -> None:
    """Verdict, device, and for each case its error nearest to the bound."""
    from modelyard.environment import proving

    passed = proof.get("passed") is True
    device = str(proof.get("device", "")) + (f" ({proof['device_name']})" if proof.get("device_name") else "")
    if not passed:
        page.line(say("proof.failed", spoken, device=device), "error")
        for line in proving.failures(proof)[:5]:
            page.line(line, "", 2)
        return
    page.line(say("proof.passed", spoken, device=device), "bold green")
    rows = [_case(case, spoken) for case in proof.get("cases", [])]
    rows += [
        (str(each.get("precision")), say("proof.not_offered", spoken, why=each.get("why", "")))
        for each in proof.get("not_offered", [])
    ]
    width = max((cells(label) for label, _ in rows), default=0)
    for label, text in rows:
        page.line(f"{label}{' ' * (width - cells(label))}  {text}", "", 2)
    stack = proof.get("stack")
    if isinstance(stack, dict):
        losses = stack.get("losses") or []
        fell = say("proof.losses", spoken, first=f"{losses[0]:.3f}", last=f"{losses[-1]:.3f}") if losses else ""
        page.line(say("comma", spoken).join(part for part in (str(stack.get("what", "")), fell) if part), "", 2)


def _case(case: dict[str, Any], spoken: str) -> tuple[str, str]:
    """("float32 strict", "worst error 3.1e-07, bound 1.2e-05")."""
    label = f"{case.get('precision')} {say('mode.strict' if case.get('mode') == 'strict' else 'mode.default', spoken)}"
    measured = [each for each in case.get("checks", []) if each.get("worst") is not None and each.get("bound")]
    if not measured:
        return label, say("proof.checked", spoken, count=len(case.get("checks", [])))
    nearest = max(measured, key=lambda each: float(each["worst"]) / float(each["bound"]))
    worst, bound = f"{nearest['worst']:.1e}", f"{nearest['bound']:.1e}"
    return label, say("proof.worst", spoken, worst=worst, bound=bound)
