"""What tests of runs as users meet them share: a run of seconds on a copy of the shipped model, and the command."""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from treepref import cli
from treepref.models.policy import BUILTIN
from treepref.progress import set_quiet

SEARCHED = [
    "eval.sbs=[]", "search.simulations=6", "search.children=4", "search.trees_in_flight=2", "pairs.min_problems=1",
]  # fmt: skip
SMALL = [
    "model.path=model", "seed=3", "rounds=1", "engine.threads=1", "engine.max_rows=64", "budget.seconds=null",
    "task.params={min_terms: 4, max_terms: 5, min_digits: 1, max_digits: 1}", "task.splits.train=10",
    "task.splits.eval=4", "eval.samples=1", "eval.samples_between=0",
]  # fmt: skip
METHODS = {
    "svpo": ["quickstart", *SMALL, *SEARCHED, "value.problems=0"],
    "mcts_dpo": ["mcts_dpo", *SMALL, *SEARCHED, "online.batch_problems=4"],
    "dpo_st": [
        "dpo_st", *SMALL, "task.splits.labelled=8", "warmup.epochs=1", "self_training.dpo_samples=6",
        "self_training.label_samples=4", "self_training.max_tokens=60", "pairs.min_problems=1",
    ],
}  # fmt: skip
"""Recipe and overrides of a run of a few seconds, by method."""
WARM = ["task.splits.labelled=8", "warmup.epochs=1"]


ONLY_FOR_DPO = ("self_training.dpo_", "self_training.pairs", "self_training.gold", "pairs.", "train.")
"""Keys of dpo_st that self_training.dpo=false leaves without effect."""


def apart_from(overrides: list[str], *keys: str) -> list[str]:
    """The overrides of other keys than those that begin so."""
    return [override for override in overrides if not override.startswith(keys)]


def copy_model(folder: Path) -> Path:
    """The shipped model as a user's own folder, without the note that treepref leaves in what it saves."""
    shutil.copytree(BUILTIN["builtin:tiny-base"], folder)
    (folder / "treepref.json").unlink(missing_ok=True)
    return folder


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def treepref_command(*arguments: str, cwd: Path, said: str = "") -> Done:
    """`treepref ARGUMENTS` in this process, `said` on its stdin. What would be a traceback is raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setenv("COLUMNS", "300")
        patch.setattr(sys, "argv", ["treepref", *arguments])
        patch.setattr(sys, "stdin", io.StringIO(said))
        patch.setattr(sys, "stdout", out := io.StringIO())
        patch.setattr(sys, "stderr", errors := io.StringIO())
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            set_quiet(False)
    return Done(code, out.getvalue(), errors.getvalue())


def run_command(method: str, *more: str, cwd: Path, out: str = "run") -> Done:
    """`treepref run` of the small run of a method."""
    recipe, *overrides = METHODS[method]
    return treepref_command("run", recipe, "-q", "--out", out, *overrides, *more, cwd=cwd)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with a hash of what is in it, and every empty folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            found[path.relative_to(folder).as_posix()] = "empty"
    return found
