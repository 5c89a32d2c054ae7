"""The ``modelyard`` command: the table of commands, and how errors become messages and exit codes.

A command's module is imported only when it is called, so that ``--help`` answers at once. argparse was taken over a
nicer library because of that (docs/experiments.md has the times).
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from modelyard.errors import ModelyardError, UsageError

# name: (module, line of help in English, in Chinese), in the order in which a person meets them
COMMANDS: dict[str, tuple[str, str, str]] = {
    "doctor": ("doctor", "What this machine is, what is wrong with it, and what mends it", "检查本机：是什么、有什么问题、怎样修复"),
    "env": ("env", "Make, prove, repair and export environments with a framework", "创建、验证、修复、导出带框架的环境"),
    "demo": ("demo", "All five stages on real documents that come with modelyard", "用自带的真实文档走完五个阶段"),
    "init": ("init", "Look at your data and write a recipe", "查看数据，写出配方文件"),
    "data": ("data", "Check the data of a recipe: rows, labels, lengths, leakage", "检查配方的数据：行、标签、长度、泄漏"),
    "plan": ("plan", "Say how large the model is and how it will be trained here", "说明模型多大、在本机如何训练"),
    "run": ("run", "All five stages of a recipe; what did not change is skipped", "执行配方的五个阶段；没有变化的会跳过"),
    "train": ("train", "Data, design and training of a recipe", "配方的数据、设计与训练"),
    "evaluate": ("evaluate", "Judge a trained run on its test set", "在测试集上评估训练好的运行"),
    "predict": ("predict", "Labels for a text, a file of texts, or standard input", "为一段文字、一个文件或标准输入预测标签"),
    "export": ("export", "Write the bundle of a run, compared with the trained model", "导出部署包，并与训练好的模型比对"),
    "serve": ("serve", "A page and an HTTP service for a run or a bundle", "为运行或部署包启动网页与 HTTP 服务"),
}  # fmt: skip
LANGUAGES = ("en", "zh")
# These need a framework; where it is missing, they are started in an environment that has it
IN_AN_ENVIRONMENT = ("demo", "data", "plan", "run", "train", "evaluate", "predict", "export", "serve")


def language(environment: dict[str, str] | None = None) -> str:
    """``zh`` or ``en``: MODELYARD_LANG, else the locale's variables in the order in which POSIX reads them."""
    variables = dict(os.environ) if environment is None else environment
    for name in ("MODELYARD_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if variables.get(name):
            return "zh" if variables[name].lower().startswith("zh") else "en"
    return "en"


class Parser(argparse.ArgumentParser):
    """argparse with our kind of error: the problem, and the command that shows what is possible."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")


def overview() -> str:
    """The text of ``modelyard --help``."""
    chinese = language() == "zh"
    head = (
        "用法：modelyard 命令 [选项]\n\n从空机器到训练好、如实评估并部署的 Transformer。\n\n命令：\n"
        if chinese
        else "usage: modelyard COMMAND [options]\n\n"
        "From a bare machine to a trained, honestly evaluated and deployed Transformer.\n\ncommands:\n"
    )
    rows = "".join(f"  {name:<10} {texts[2 if chinese else 1]}\n" for name, texts in COMMANDS.items())
    foot = (
        "\n每个命令都有 --help 和 --json。先试：modelyard demo"
        if chinese
        else "\nEach has --help and --json. Start with: modelyard demo"
    )
    return head + rows + foot


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 (input or data), 2 (usage), 3 (machine) or 130 (interrupted)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    with _spoken(given):
        return _run(given, as_json)


def _run(given: list[str], as_json: bool) -> int:
    try:
        return _dispatch(given)
    except ModelyardError as error:
        _show(error, as_json)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def _spoken(given: list[str]) -> Iterator[None]:
    """Speak the language of ``--lang`` from the first word on, also in what is started; take it out if it leads."""
    chosen = None
    for number, word in enumerate(given):
        if word == "--":
            break
        if word == "--lang" and number + 1 < len(given):
            chosen = given[number + 1]
        elif word.startswith("--lang="):
            chosen = word.removeprefix("--lang=")
    if given and chosen in LANGUAGES and given[0].startswith("--lang"):
        del given[: 2 if given[0] == "--lang" else 1]
    if chosen not in LANGUAGES:
        yield
        return
    before = os.environ.get("MODELYARD_LANG")
    os.environ["MODELYARD_LANG"] = chosen
    try:
        yield
    finally:
        os.environ.pop("MODELYARD_LANG")
        if before is not None:
            os.environ["MODELYARD_LANG"] = before


def add_form(parser: argparse.ArgumentParser, default: object) -> None:
    """``--json`` and ``--lang``, which every command has."""
    parser.add_argument(
        "--json", action="store_true", default=default, help="machine-readable result on stdout, text on stderr"
    )
    parser.add_argument("--lang", choices=LANGUAGES, default=argparse.SUPPRESS, help="language of the texts")


def _dispatch(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if given[0] in ("-V", "--version"):
        from modelyard import __version__

        print(f"modelyard {__version__}")
        return 0
    name = given[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UsageError(
            f"there is no command `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""),
            hint=f"modelyard {near[0]} --help" if near else "modelyard --help",
        )
    module_name, english, chinese = COMMANDS[name]
    module = importlib.import_module(f"modelyard.cli.{module_name}")
    parser = Parser(
        prog=f"modelyard {name}",
        description=(chinese if language() == "zh" else english) + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    add_form(parser, default=False)
    parsed = parser.parse_args(given[1:])
    if name in IN_AN_ENVIRONMENT:
        from modelyard.cli.hand_over import hand_over

        code = hand_over(given, parsed)
        if code is not None:
            return code
    try:
        return int(module.run(parsed))
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] == "modelyard":
            raise
        raise _missing_package(error.name) from error


def _missing_package(name: str) -> ModelyardError:
    from modelyard.errors import MachineError

    return MachineError(
        f"`{name}` is not installed in {sys.executable}; the stages need the extra `torch`",
        hint="pip install 'modelyard[torch]'",
    )


def _show(error: ModelyardError, as_json: bool) -> None:
    """An error on stderr, and as JSON on stdout where JSON was asked for."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    red, dim, plain = ("\033[1;31m", "\033[2m", "\033[0m") if colour else ("", "", "")
    heads = ("错误", "建议") if language() == "zh" else ("error", "hint")
    print(f"{red}{heads[0]}:{plain} {error.problem}\n{dim}{heads[1]}:{plain} {error.hint}", file=sys.stderr)
    if as_json:
        value = {"error": {"kind": type(error).__name__, "problem": error.problem, "hint": error.hint}}
        print(json.dumps(value, ensure_ascii=False))
