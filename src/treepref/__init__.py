"""Make a language model reason better with preference data that it makes itself by tree search.

The public names, by room. Each is imported when it is first asked for, so that `import treepref` loads no torch and
takes no time. Everything else stands in its module: see the file map in README.md and docs/api.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what a type checker sees; at run time each comes from its module when it is first asked for
    from treepref.config import PairConfig, TaskConfig
    from treepref.driver import Job, drive
    from treepref.engines.base import generate
    from treepref.engines.scripted import ScriptedEngine
    from treepref.engines.torch_engine import TorchEngine
    from treepref.errors import TreeprefError
    from treepref.loops.run import run
    from treepref.models.chat import encode_prompt
    from treepref.models.policy import load_policy, save_policy
    from treepref.models.text import decode
    from treepref.models.weights import PolicyWeights
    from treepref.recipes.reading import load_recipe
    from treepref.runs.store import Store
    from treepref.search import Limits, Mcts, Sampling, StepBeam
    from treepref.tasks import load_splits, load_task
    from treepref.training.examples import attach_reference, example_from_solution, example_from_tree
    from treepref.training.forward import model_scorer
    from treepref.training.learner import Learner
    from treepref.training.pairs import correct_paths, sibling_pairs, solution_pairs, value_targets
    from treepref.training.settings import LearnerSettings
    from treepref.types import Completion, Node, Pair, Problem, Question, Request, Tree, new_tree

_MODULES: dict[str, tuple[str, ...]] = {
    "errors": ("TreeprefError",),
    "types": ("Question", "Problem", "Request", "Completion", "Node", "Tree", "Pair", "new_tree"),
    "config": ("TaskConfig", "PairConfig"),
    "tasks": ("load_task", "load_splits"),
    "models.policy": ("load_policy", "save_policy"),
    "models.weights": ("PolicyWeights",),
    "models.chat": ("encode_prompt",),
    "models.text": ("decode",),
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

__all__ = [
    "Completion",
    "Job",
    "Learner",
    "LearnerSettings",
    "Limits",
    "Mcts",
    "Node",
    "Pair",
    "PairConfig",
    "PolicyWeights",
    "Problem",
    "Question",
    "Request",
    "Sampling",
    "ScriptedEngine",
    "StepBeam",
    "Store",
    "TaskConfig",
    "TorchEngine",
    "Tree",
    "TreeprefError",
    "attach_reference",
    "correct_paths",
    "decode",
    "drive",
    "encode_prompt",
    "example_from_solution",
    "example_from_tree",
    "generate",
    "load_policy",
    "load_recipe",
    "load_splits",
    "load_task",
    "model_scorer",
    "new_tree",
    "run",
    "save_policy",
    "sibling_pairs",
    "solution_pairs",
    "value_targets",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'treepref' has no attribute {name!r}")
    found = getattr(import_module(f"treepref.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
