"""A second run on the same samples: copies a run as it stood after its first search, to learn from it in another way.

What differs is then the pairs, the objective or their constants alone, never the luck of the search.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from treepref.config import Recipe
from treepref.errors import RecipeError, StoreError
from treepref.keys import plain
from treepref.loops.unchecked import forget_other_stages
from treepref.recipes.reading import FORKABLE, dump_recipe, load_recipe, recipe_changes
from treepref.runs.landing import new_folder
from treepref.runs.run_folder import disk_errors, sqlite_errors
from treepref.runs.stage import Stage, round_policy
from treepref.runs.store import STOPPED_BEFORE, Store

_KEPT = "name LIKE 'round-0/%' OR name = 'round-1/search'"


def fork(run: Path, out: Path, overrides: list[str]) -> None:
    """Copy the problems, the warm-up, the evaluation of round 0 and the first search of `run` to a new run `out`.

    Where `out` is such a copy already, under the very recipe that is asked for, it stays as it is. Raises RecipeError
    for a change outside `FORKABLE` or a run whose samples do not come before its training; StoreError where the first
    search is not done or `out` is anything else.
    """
    copy_first_search(run, out, overrides, FORKABLE, "a fork keeps the search of its origin")


Then = Callable[[Path], None]
"""What is done with a copy before it has its name."""


def copy_first_search(
    run: Path, out: Path, overrides: list[str], free: tuple[str, ...], why_not: str, then: Then = lambda copy: None
) -> None:
    """The same for changes of `free` keys; `why_not` others may change."""
    old, new = load_recipe(run / "recipe.yaml"), load_recipe(run / "recipe.yaml", overrides)
    if why := old.recipe.no_first_search():
        raise RecipeError(f"{run} cannot be copied after its first search: {why}. Start a run with `treepref run`")
    frozen = [str(c) for c in recipe_changes(old.recipe, new.recipe) if not c.key.startswith(free)]
    if frozen:
        raise RecipeError(f"{why_not}, so these keys cannot change:\n  " + "\n  ".join(frozen))
    if out.exists():
        _check_copy(run, out, new.recipe)
        return
    with Store(run, read_only=True) as store:
        for stage in (Stage(0, "eval"), Stage(1, "search")):
            if not store.stage_done(stage):
                raise StoreError(f"{run}: stage {stage} is not done yet, so there is nothing to fork from")
    with disk_errors(out.parent), new_folder(out) as part:
        _copy_database(run / "run.db", part / "run.db")
        first = round_policy(0)
        if (run / first).is_dir():
            shutil.copytree(run / first, part / first)
        (part / "recipe.yaml").write_text(dump_recipe(new.recipe), encoding="utf-8")
        with Store(part) as store:
            store.set_meta("recipe", plain(new.recipe))
            store.set_meta("forked_from", run.resolve().name)
            forget_other_stages(store)
        then(part)


def _check_copy(run: Path, out: Path, recipe: Recipe) -> None:
    """Raises StoreError unless `out` is a fork of `run` under `recipe`."""
    if not (out / "recipe.yaml").is_file():
        raise StoreError(f"{out} exists already and is no run: choose another folder")
    with Store(out, read_only=True) as store:
        origin = store.meta("forked_from")
    if origin != run.resolve().name:
        raise StoreError(f"{out} exists already and is no fork of {run}: choose another folder")
    if changes := recipe_changes(load_recipe(out / "recipe.yaml").recipe, recipe):
        raise StoreError(
            f"{out} was forked under another recipe:\n  "
            + "\n  ".join(map(str, changes))
            + f"\nGo on with it by `treepref run {out / 'recipe.yaml'} --out {out}`, or choose another folder"
        )


def _copy_database(source: Path, target: Path) -> None:
    """A consistent copy without what came after the first search."""
    uri = f"{source.resolve().as_uri()}?mode=ro"
    with (
        sqlite_errors(source.parent),
        closing(sqlite3.connect(uri, uri=True)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
        with new:
            new.execute(f"DELETE FROM stages WHERE NOT ({_KEPT})")
            new.execute("DELETE FROM pairs")
            new.execute("DELETE FROM journal")
            new.execute("DELETE FROM trees WHERE stage NOT IN ('round-1/search', 'round-0/values')")
            new.execute("DELETE FROM outcomes WHERE stage NOT LIKE 'round-0/%'")
            new.execute("DELETE FROM costs WHERE NOT (stage LIKE 'round-0/%' OR stage = 'round-1/search')")
            new.execute("DELETE FROM meta WHERE key LIKE 'steps/round-%' AND key NOT LIKE 'steps/round-0/%'")
            new.execute("DELETE FROM meta WHERE key LIKE 'summary/%' AND key != 'summary/0'")
            new.execute("DELETE FROM meta WHERE key LIKE 'policy/round-%' AND key != 'policy/round-0'")
            new.execute("DELETE FROM meta WHERE key = 'removed'")  # of models that the copy makes anew
            new.execute("DELETE FROM events WHERE stage LIKE 'round-%' AND stage NOT LIKE 'round-0/%'")
            new.execute(f"DELETE FROM events WHERE level = 'error' OR message LIKE '{STOPPED_BEFORE}%'")
        new.execute("VACUUM")
