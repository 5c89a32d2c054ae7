"""``modelyard env``: environments with a framework that is proved to compute rightly."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.cli.environment_messages import say
from modelyard.cli.main import add_form, language
from modelyard.errors import InputError, UsageError

if TYPE_CHECKING:
    from modelyard.cli.page import Page
    from modelyard.environment.store import Environment

FRAMEWORKS = ("torch", "tensorflow", "jax")
FORMATS = ("requirements", "pylock", "conda", "dockerfile", "devcontainer", "slurm-module")  # environment/export.py

# action: (line of help in English, in Chinese)
ACTIONS = {
    "create": ("make an environment for this machine, and prove it", "为本机创建环境并验证"),
    "list": ("the environments that are there", "列出已有环境"),
    "verify": ("check lock, files and module conflicts, and prove again", "检查锁文件、已装文件、模块冲突，并重新验证"),
    "repair": ("make a new build beside a broken one, prove it, and use it", "在旁边重建并验证，然后切换过去"),
    "remove": ("remove an environment, or its old builds", "删除环境，或其旧的构建"),
    "export": ("write it in a form that other tools read", "导出为其他工具可读的形式"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command for each thing that can be done with an environment."""
    chinese = language() == "zh"
    actions = parser.add_subparsers(dest="action", metavar="|".join(ACTIONS), required=True)
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, (english, translated) in ACTIONS.items():
        text = translated if chinese else english
        parsers[name] = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_form(parsers[name], default=argparse.SUPPRESS)
    create = parsers["create"]
    create.add_argument("--framework", default="torch", help=f"{', '.join(FRAMEWORKS)} (torch if not given)")
    create.add_argument(
        "--accelerator", default="auto", metavar="BUILD", help="auto (what fits this machine), cpu, cu126, cu130, …"
    )
    create.add_argument("--python", metavar="VERSION", help="such as 3.12 (the best that the framework takes)")
    create.add_argument("--name", help="of the environment (framework and build if not given)")
    for name in ("verify", "repair", "remove", "export"):
        parsers[name].add_argument("name", metavar="NAME", help="of the environment, as `modelyard env list` says it")
    remove = parsers["remove"]
    remove.add_argument("--old", action="store_true", help="only the builds that are not in use")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    export = parsers["export"]
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument("--format", metavar="FORMAT", help=", ".join(FORMATS))
    form.add_argument("--air-gapped", type=Path, metavar="DIR", help="all that a machine without network needs")
    export.add_argument("--platform", help="with --air-gapped: linux-x86_64, linux-aarch64, … (this one if not given)")
    export.add_argument("--output", type=Path, metavar="FOLDER", help="where it goes (NAME-FORMAT if not given)")


def run(arguments: argparse.Namespace) -> int:
    """Do what the sub-command says; 3 if the machine or the environment failed."""
    if arguments.action in ("create", "verify", "repair"):
        from modelyard.cli import env_prove

        return {"create": env_prove.create, "verify": env_prove.verify, "repair": env_prove.repair}[arguments.action](
            arguments
        )
    return {"list": show_list, "remove": remove, "export": export}[arguments.action](arguments)


def show_list(arguments: argparse.Namespace) -> int:
    """All environments, by name."""
    from modelyard.cli.page import Page
    from modelyard.environment.store import Store

    store = Store()
    rows = [described(each) for each in store.environments()]
    if arguments.json:
        print(json.dumps({"folder": str(store.folder), "environments": rows}, ensure_ascii=False))
        return 0
    page, spoken = Page(), language()
    if not rows:
        page.line(say("env.none", spoken, folder=store.folder))
        page.command("modelyard env create", 2)
        return 0
    _table(page, rows, spoken)
    return 0


def described(environment: Environment) -> dict[str, Any]:
    """What a person or program wants to know of an environment."""
    build = environment.build
    proof = build.read_proof() if build else {}
    framework = proof.get("framework")
    return {
        "name": environment.name,
        "framework": environment.framework,
        "version": str(framework.get("version", "")) if isinstance(framework, dict) else "",
        "accelerator": environment.accelerator,
        "python": environment.python,
        "state": environment.state,
        "proved": proof.get("passed") if isinstance(proof.get("passed"), bool) else None,
        "size_bytes": folder_bytes(environment.folder),
        "created": environment.created,
        "folder": str(environment.folder),
        "interpreter": str(build.python) if build else None,
        "old_builds": [each.path.name for each in environment.builds if each.path.name != environment.current],
    }


def folder_bytes(folder: Path) -> int:
    """What the files in `folder` take, links not followed; what cannot be read counts nothing."""
    total, folders = 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


def _table(page: Page, rows: list[dict[str, Any]], spoken: str) -> None:
    from modelyard.cli.doctor_machine import gigabytes
    from modelyard.cli.page import cells, padded

    heads = [
        say(f"column.{name}", spoken)
        for name in ("name", "framework", "accelerator", "python", "state", "proved", "size", "made")
    ]
    lines = []
    for row in rows:
        proved = "" if row["proved"] is None else say("yes" if row["proved"] else "no", spoken)
        lines.append([
            row["name"], f"{row['framework']} {row['version']}".strip(), row["accelerator"], row["python"],
            say(f"state.{row['state']}", spoken), proved, gigabytes(row["size_bytes"]), row["created"][:10],
        ])  # fmt: skip
    widths = [max(cells(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
    if page.width is not None and sum(widths) + 2 * len(widths) - 2 > page.width:
        label = max(map(cells, heads[1:]))
        for line in lines:
            page.line(line[0], "bold")
            for head, value in zip(heads[1:], line[1:], strict=True):
                if value:
                    page.line(f"{padded(head, label)}  {value}", "", 2)
        return
    page.line("  ".join(padded(head, width) for head, width in zip(heads, widths, strict=True)).rstrip(), "dim")
    for row, line in zip(rows, lines, strict=True):
        style = "" if row["state"] == "ready" else "error" if row["state"] == "broken" else "warning"
        page.line("  ".join(padded(value, width) for value, width in zip(line, widths, strict=True)).rstrip(), style)


def export(arguments: argparse.Namespace) -> int:
    """Write what was asked for and say how it is used."""
    from modelyard.environment.store import Store

    if arguments.platform and arguments.air_gapped is None:
        raise UsageError(
            "--platform chooses the wheels of --air-gapped, which was not given",
            hint=f"modelyard env export {arguments.name} --air-gapped DIR --platform {arguments.platform}",
        )
    if arguments.output is not None and arguments.air_gapped is not None:
        raise UsageError(
            f"--output {arguments.output} and --air-gapped {arguments.air_gapped} both name the folder",
            hint=f"modelyard env export {arguments.name} --air-gapped {arguments.air_gapped}",
        )
    environment = Store().open(arguments.name)
    build = environment.build
    notes: tuple[str, ...] = ()
    if build is None:
        raise InputError(
            f"the environment {environment.name!r} was never finished, so there is nothing to export",
            hint=f"modelyard env repair {environment.name}",
        )
    if arguments.air_gapped is not None:
        from modelyard.environment import airgap

        folder = airgap.collect(
            build.path,
            arguments.air_gapped,
            arguments.platform,
            name=environment.name,
            framework=environment.framework,
            device=proved_device(environment),
        )
        written = sorted(each for each in folder.rglob("*") if each.is_file())
    else:
        from modelyard.environment import export as exporting

        made = exporting.export(
            build.path, arguments.format, name=environment.name, accelerator=environment.accelerator
        )
        folder = arguments.output or Path(f"{environment.name}-{arguments.format}")
        written, notes = exporting.write(made, folder), made.notes
    _say_exported(arguments, folder, written, notes)
    return 0


def _say_exported(arguments: argparse.Namespace, folder: Path, written: list[Path], notes: tuple[str, ...]) -> None:
    from modelyard.cli.doctor_machine import gigabytes
    from modelyard.cli.page import Page

    spoken = language()
    page = Page(sys.stderr if arguments.json else sys.stdout)
    size = gigabytes(sum(each.stat().st_size for each in written))
    page.line(say("exported", spoken, folder=folder, count=len(written), size=size), "good")
    for each in written:
        if each.parent == folder:
            page.line(str(each), "", 2)
    for note in notes:
        page.line(note, "warning")
    if arguments.json:
        value = {"folder": str(folder), "files": [str(each) for each in written], "notes": list(notes)}
        print(json.dumps(value, ensure_ascii=False))


def proved_device(environment: Environment) -> str:
    """The device of the last proof, without its number: what a proof elsewhere is asked to use."""
    proof = environment.build.read_proof() if environment.build else {}
    return str(proof.get("device") or "cpu").partition(":")[0]


def remove(arguments: argparse.Namespace) -> int:
    """Remove an environment after asking, or its builds that are not in use."""
    from modelyard.cli.doctor_machine import gigabytes
    from modelyard.cli.page import Page, agreed, interactive
    from modelyard.environment import repair as repairing
    from modelyard.environment.store import Store, check_name

    page, spoken, store = Page(sys.stderr if arguments.json else sys.stdout), language(), Store()
    before = folder_bytes(store.folder / check_name(arguments.name))
    if not arguments.old and not arguments.yes and store.exists(arguments.name):
        if not interactive():
            raise UsageError(
                f"the environment {arguments.name!r} would be removed, and nobody can be asked here",
                hint=f"modelyard env remove {arguments.name} --yes",
            )
        if not agreed(say("remove.ask", spoken, name=arguments.name, size=gigabytes(before)), otherwise=False):
            page.line(say("remove.kept", spoken))
            return 0
    removed = repairing.remove(arguments.name, only_old=arguments.old)
    freed = before - folder_bytes(store.folder / arguments.name)
    if not removed:
        page.line(say("remove.none_old", spoken, name=arguments.name))
    for path in removed:
        page.line(say("remove.removed", spoken, path=path))
    if removed:
        page.line(say("remove.freed", spoken, size=gigabytes(freed)))
    if arguments.json:
        print(json.dumps({"removed": removed, "freed_bytes": freed}, ensure_ascii=False))
    return 0
