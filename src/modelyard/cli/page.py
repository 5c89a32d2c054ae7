"""Text for people: lines that wrap where words end, labels that line up, and questions.

Chinese characters are two columns wide and may be parted anywhere but before closing punctuation, which is why lines
are wrapped here. What is not a terminal gets whole lines without colours. Commands are never wrapped, so that they
can be copied.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

NARROW = 60  # columns; below, a label stands above its lines and not beside them
WIDEST = 100  # columns; longer lines are hard to read
WHOLE = ("http://", "https://", "/")  # addresses and paths are not parted
NEVER_FIRST = "，。；：！？、）》」』”’…,.;:!?)]}"
STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan", "good": "green", "command": "green"}
UNIT = re.compile(r"(?<=\d) (?=(?:GB|MB|s|NVLink|GiB|MiB)\b)")  # a number stays with its unit
TIED = "\u00a0"
PIECE = re.compile(r"[ \t\n]+|[⺀-鿿豈-﫿＀-｠　-〿]|[^ \t\n⺀-鿿豈-﫿＀-｠　-〿]+")


def cells(text: str) -> int:
    """How many columns `text` takes."""
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int) -> str:
    """`text` with spaces up to `width` columns."""
    return text + " " * max(0, width - cells(text))


def wrap(text: str, width: int | None) -> list[str]:
    """The lines of `text`, each at most `width` columns where words allow it; None: as it is."""
    if width is None or cells(text) <= width:
        return [text]
    lines, line = [], ""
    for piece in _pieces(UNIT.sub(TIED, text)):
        if not line or cells(line + piece.rstrip()) <= width:
            line = (line + piece) if line else piece.lstrip()
        else:
            lines.append(line.rstrip())
            line = piece.lstrip()
        while cells(line.rstrip()) > width and not line.startswith(
            ("http://", "https://", "/")
        ):  # addresses stay whole
            head = _fitting(line, width)
            lines.append(head)
            line = line[len(head) :]
    if line.strip():
        lines.append(line.rstrip())
    return [each.replace(TIED, " ") for each in lines]


def _pieces(text: str) -> list[str]:
    """Words and single wide characters; closing punctuation stays with what is before it."""
    pieces: list[str] = []
    for piece in PIECE.findall(text):
        if pieces and (piece[0] in NEVER_FIRST or pieces[-1] in ("（", "《", "「", "“")):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces


def _fitting(line: str, width: int) -> str:
    """As many characters as fit into `width` columns, at least one."""
    end = len(line)
    while end > 1 and cells(line[:end]) > width:
        end -= 1
    return line[:end]


class Page:
    """Prints to `stream` (standard output if not given); knows how wide it is and whether it is a terminal."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        from rich.console import Console
        from rich.theme import Theme

        self.console: Console = Console(
            file=stream or sys.stdout, highlight=False, emoji=False, markup=False, theme=Theme(STYLES)
        )
        self.terminal = self.console.is_terminal
        self.width: int | None = min(self.console.width, WIDEST) if self.terminal else None

    @property
    def narrow(self) -> bool:
        return self.width is not None and self.width < NARROW

    def line(self, text: str = "", style: str = "", indent: int = 0) -> None:
        """One line of text, or several where it does not fit."""
        for each in wrap(text, None if self.width is None else max(20, self.width - indent)):
            self._print(" " * indent + each, style)

    def command(self, text: str, indent: int = 0) -> None:
        """A line that is not wrapped: the terminal does it, and a copy of it is whole."""
        self._print(" " * indent + text, "command")

    def labelled(self, label: str, lines: Sequence[tuple[str, str]], width: int, style: str = "") -> None:
        """(text, style) lines beside `label`, which takes `width` columns; below it on a narrow terminal."""
        indent = width + 2
        if self.narrow:
            self.line(label, style)
            indent = 2
        head = padded(label, width) + "  "
        for number, (text, text_style) in enumerate(lines):
            room = None if self.width is None else max(20, self.width - indent)
            for part, each in enumerate(wrap(text, room)):
                first = number == part == 0 and not self.narrow
                self._print((head if first else " " * indent), style if first else "", (each, text_style))

    def _print(self, text: str, style: str, tail: tuple[str, str] | None = None) -> None:
        from rich.text import Text

        line = Text(text, style) if tail is None else Text.assemble((text, style), tail)
        line.rstrip()
        self.console.print(line, soft_wrap=True)


def interactive() -> bool:
    """Whether a question can be asked: somebody types, and sees what is asked."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def agreed(question: str, otherwise: bool) -> bool:
    """Ask on standard error (standard output may be JSON); an empty answer means `otherwise`, no answer means no."""
    print(f"{question} [{'Y/n' if otherwise else 'y/N'}] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        print(file=sys.stderr)
        return False
    answer = answer.strip().lower()
    return otherwise if not answer else answer in ("y", "yes", "是", "好")
