"""modelyard: from a bare machine to a trained, honestly evaluated and deployed Transformer.

The same as a library::

    import modelyard

    recipe = modelyard.load_recipe("recipe.yaml")
    modelyard.train(recipe, "runs/reviews")
    evaluation = modelyard.evaluate("runs/reviews")
    modelyard.export("runs/reviews")
    modelyard.serve("runs/reviews")

Importing this package loads nothing heavy; each name below is looked up when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.version import __version__

if TYPE_CHECKING:
    from modelyard.errors import ModelyardError
    from modelyard.workflow.stages import evaluate, export, load_recipe, prepare, run, serve, train

_HOMES = {
    "ModelyardError": "modelyard.errors",
    "load_recipe": "modelyard.workflow.stages",
    "prepare": "modelyard.workflow.stages",
    "train": "modelyard.workflow.stages",
    "evaluate": "modelyard.workflow.stages",
    "export": "modelyard.workflow.stages",
    "serve": "modelyard.workflow.stages",
    "run": "modelyard.workflow.stages",
}

__all__ = [
    "ModelyardError",
    "__version__",
    "evaluate",
    "export",
    "load_recipe",
    "prepare",
    "run",
    "serve",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'modelyard' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
