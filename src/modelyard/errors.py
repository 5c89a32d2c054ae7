"""Every error that modelyard raises on purpose.

    ModelyardError           problem, hint, exit_code
    ├── InputError           1  what the person gave is wrong: a recipe, data, a checkpoint, a run folder
    │   ├── RecipeError         a key or value of the recipe (carries file, line and column)
    │   ├── DataError           a row, column or file of the data (carries file and row)
    │   └── NonFiniteLoss       training/steps.py: a loss that is infinite or no number
    ├── UsageError           2  the command line itself
    ├── MachineError         3  the machine or the environment cannot do it: no CUDA, no space, no framework
    └── TrainingInterrupted 130  training/interrupt.py: Ctrl-C or SIGTERM, after a checkpoint

Each says the problem with the value that was met, what was expected, and in ``hint`` the next command to type.
``assert`` is kept for our own mistakes.
"""

from __future__ import annotations


class ModelyardError(Exception):
    """Base of the tree. ``problem`` is one or two sentences; ``hint`` the next thing to type or change."""

    exit_code = 1

    def __init__(self, problem: str, *, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}\nhint: {self.hint}"


class InputError(ModelyardError):
    """What the person gave is wrong."""


class RecipeError(InputError):
    """A recipe that cannot be used. ``where`` is ``file:line:column`` or the override that carried the value."""

    def __init__(self, problem: str, *, hint: str, where: str = "") -> None:
        super().__init__(f"{where}: {problem}" if where else problem, hint=hint)
        self.where = where


class DataError(InputError):
    """A row, column or file of the data that cannot be used. ``where`` is ``file`` or ``file:row``."""

    def __init__(self, problem: str, *, hint: str, where: str = "") -> None:
        super().__init__(f"{where}: {problem}" if where else problem, hint=hint)
        self.where = where


class UsageError(ModelyardError):
    """The command line is wrong."""

    exit_code = 2


class MachineError(ModelyardError):
    """The machine or the environment is not able to do what was asked."""

    exit_code = 3
