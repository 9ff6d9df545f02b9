"""Make a language model reason better with preference data that it makes itself by tree search.

The public names, by room. Each is imported when it is first asked for, so that `import treepref` loads no torch and
takes no time. Everything else stands in its module: see the file map in README.md and docs/api.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES: dict[str, tuple[str, ...]] = {
    "errors": ("TreeprefError",),
    "types": ("Question", "Problem", "Request", "Completion", "Node", "Tree", "Pair", "new_tree"),
    "config": ("TaskConfig", "PairConfig"),
    "tasks": ("load_task", "load_splits"),
    "models.policy": ("load_policy", "save_policy"),
    "models.weights": ("PolicyWeights",),
    "models.text": ("encode_prompt", "decode"),
    "engines.base": ("generate",),
    "engines.scripted": ("ScriptedEngine",),
    "engines.torch_engine": ("TorchEngine",),
    "search": ("Limits", "Mcts", "StepBeam", "Sampling"),
    "runs.store": ("Store",),
    "driver": ("Job", "drive"),
    "training.pairs": ("sibling_pairs", "solution_pairs", "correct_paths", "value_targets"),
    "training.examples": ("example_from_tree", "example_from_solution", "attach_reference"),
    "training.forward": ("model_scorer",),
    "training.learner": ("Learner",),
    "training.settings": ("LearnerSettings",),
    "recipes.reading": ("load_recipe",),
    "loops.run": ("run",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'treepref' has no attribute {name!r}")
    found = getattr(import_module(f"treepref.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
