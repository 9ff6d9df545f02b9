"""An open run: its recipe, store, task and limits, and the parts that its stages work with.

    text      prompts and solutions as tokens            answers   whether a solution is right
    policies  where policies are kept                    serving   the engine, and policies loaded

Knows which stages are done; the stages (collect.py, learn.py, evaluate.py and the methods' own) know what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch

from treepref.config import Recipe, SvpoRecipe
from treepref.driver import DriveReport
from treepref.errors import BudgetError, DataError, EngineError, StoreError
from treepref.keys import plain
from treepref.loops.answers import Answers
from treepref.loops.policies import Policies, begun
from treepref.loops.scores import score_of
from treepref.loops.serving import Serving
from treepref.loops.text import Text, begun_on, find_tokenizer
from treepref.progress import set_log
from treepref.recipes.reading import LoadedRecipe, check_resume, dump_recipe
from treepref.runs.budget import Budget
from treepref.runs.run_folder import disk_errors, land_file
from treepref.runs.run_log import RunLog
from treepref.runs.stage import Stage
from treepref.runs.store import Store
from treepref.runs.stored_recipe import dropped_keys, stored_recipe
from treepref.runs.view import RunView
from treepref.tasks.loading import load_splits
from treepref.tasks.task import Task, load_task
from treepref.training.checkpoints import remove_checkpoints
from treepref.training.objectives import objective_of
from treepref.types import Cost, Problem

READER = 2
"""Which rules read answers; a run keeps the number that it began with. Raise it where a change reads them otherwise."""
_READING = ("search", "labels", "eval")
"""Stages that read answers."""
DISK_CHECK_TREES = 64
"""The run's size on disk is measured once in so many stops asked for: walking the folder costs more than a token."""


Method = TypeVar("Method", bound=Recipe)


class Session:
    """A run directory in use by this process alone. A context manager.

    Raises, when opened: StoreError (locked, unsafe or foreign folder), RecipeError (the recipe may not change so),
    DataError (problems that cannot be read).
    """

    def __init__(self, out: Path, loaded: LoadedRecipe | None = None) -> None:
        """Open or begin the run in `out`; without a recipe the run must exist, and its own is used."""
        self._open = ExitStack()
        self.store = self._open.enter_context(Store(out, create=loaded is not None))
        self.out = self.store.folder
        self.log = RunLog(self.out)
        try:
            self.recipe = self._settle_recipe(loaded)
            self.policies = Policies(self.store, self.recipe)
            if self.recipe.engine.threads is not None:
                torch.set_num_threads(self.recipe.engine.threads)
            self.task: Task = load_task(self.recipe.task)
            self._store_problems()
            self.view = RunView(self.store, lambda *_: self.text.tokenizer)
            self.text = Text(
                self.recipe.task,
                self.task,
                lambda: find_tokenizer(self.store, self.recipe),
                shown=lambda: self.problems("labelled" if self.recipe.task.examples_path is None else "examples"),
                today=begun_on(self.store),
                system=self.store.meta("system"),
            )
            self.answers = Answers(self.store, self.task, self.text)
            self.serving = Serving(self.store, self.recipe, self.policies, self.text)
            for part in (self.text, self.answers, self.serving):
                self._open.callback(part.close)
            set_log(self.log.line)
            self._open.callback(set_log, None)
        except BaseException:
            self._open.close()
            raise
        self.budget = Budget(self.recipe.budget)
        self.working_on: Stage | None = None
        """The stage that was begun or gone on with last; a method whose stages go by turns says whose turn it is."""
        self._since_disk_check = 0
        self._disk_bytes = self.store.disk_bytes()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    # -- recipe and problems

    def recipe_of(self, kind: type[Method]) -> Method:
        """The run's recipe as that of the method whose stages ask: a stage runs for its own method alone."""
        assert isinstance(self.recipe, kind), f"{type(self.recipe).__name__} is no {kind.__name__}"
        return self.recipe

    def _settle_recipe(self, loaded: LoadedRecipe | None) -> Recipe:
        """The run's recipe; a changed one is taken over where that is allowed, elsewhere refused with a diff."""
        known = stored_recipe(self.store)
        if known is not None and (dropped := dropped_keys(self.store)):
            self.store.event("run", "info", f"left out of the recipe, for they did nothing: {', '.join(dropped)}")
            self.store.set_meta("recipe", plain(known))
        if loaded is None:
            if known is None:
                raise StoreError(f"{self.store.folder} holds no recipe: start it with `treepref run`")
            return known
        if known is not None and begun(self.store):  # until then it may change freely: its first try had a wrong path
            trained = any(row.stage is not None and row.stage.name in ("train", "dpo") for row in self.store.stages())
            for change in check_resume(known, loaded.recipe, untrained=not trained):
                self.store.event("run", "info", f"resumed with {change}")
                if change.key.startswith("pairs."):
                    self.store.forget_pairs()
        elif known is not None and known != loaded.recipe:
            self.store.forget_problems()
        scratch = self.store.scratch("recipe") / "recipe.yaml"
        with disk_errors(self.store.folder):
            scratch.write_text(dump_recipe(loaded.recipe), encoding="utf-8")
        land_file(scratch, self.store.folder / "recipe.yaml")
        if known is None:
            self.store.set_meta("reader", READER)
            self.store.set_meta("date", date.today().isoformat())
        self.store.set_meta("recipe", plain(loaded.recipe))
        return loaded.recipe

    def _store_problems(self) -> None:
        """Read the problems once; the run keeps them, so later lives do not depend on the source."""
        if self.store.meta("problems") is not None:
            return
        splits = load_splits(self.recipe.task, self.recipe.seed, train_rationales=self.recipe.keeps_rationales)
        for name in ("train", "eval"):
            if not getattr(splits, name):
                raise DataError(f"the {name} split has no problems: see task.path and task.splits in the recipe")
        with self.store.transaction():
            for name in ("labelled", "train", "eval", "examples"):
                self.store.put_problems(name, getattr(splits, name))
            self.store.set_meta("system", splits.system)
            for line in splits.skipped:
                self.store.event("problems", "warning", line)
            self.store.set_meta("problems", {n: len(getattr(splits, n)) for n in ("labelled", "train", "eval")})

    def problems(self, split: str) -> Iterator[Problem]:
        return self.store.problems(split)

    def note_reader(self) -> None:
        """Say, once, where the run goes on whose answers so far were read by an older version's rules."""
        if self.store.meta("reader") is not None:
            return
        read = [row.name for row in self.store.stages() if row.stage is not None and row.stage.name in _READING]
        with self.store.transaction():
            self.store.set_meta("reader", READER)
            if read:
                said = (
                    f"answers of {', '.join(read)} were read by an older reader; accuracy before and after is not "
                    "comparable: start anew with another --out, or compare only what is read from here on"
                )
                self.store.event("run", "warning", said)

    # -- stages and limits

    def begin(self, stage: Stage) -> bool:
        """Start a stage, or go on with it; False where it is done already.

        Raises RecipeError where the user's checker fails on the problems' own answers.
        """
        if not self.store.stage_done(stage):  # before the stage spends anything
            self.answers.try_own()
            objective_of(self.recipe.train.objective)
            if isinstance(self.recipe, SvpoRecipe):
                score_of(self.recipe.search.score)
            for problem in islice(self.problems("train"), 1):
                self.text.encode(problem.question)
        if not self.store.start_stage(stage).done:
            self.working_on = stage
            return True
        # The life that ended the stage removes its training state, unless it was killed before it came to that.
        remove_checkpoints(self.checkpoints(stage))
        return False

    def checkpoints(self, stage: Stage) -> Path:
        """Where a stage keeps its training state."""
        return self.out / "checkpoints" / str(stage).replace("/", "-")

    def spent(self) -> Cost:
        return self.store.spent()

    def require_done(self, report: DriveReport, stop: Callable[[], str | None]) -> None:
        """Raises BudgetError or EngineError where `drive` stopped early."""
        if report.stopped:
            raise BudgetError(report.stopped) if stop() else EngineError(report.stopped)

    def stop_reason(self, running: Callable[[], Cost] = Cost) -> Callable[[], str | None]:
        """A `stop` for long work: the budget's reason, where a limit is reached.

        `running`: what is spent and not stored yet, such as a training in progress.
        """

        def stop() -> str | None:
            self._since_disk_check += 1
            if self.recipe.budget.disk_gb is not None and self._since_disk_check >= DISK_CHECK_TREES:
                self._since_disk_check, self._disk_bytes = 0, self.store.disk_bytes()
            return self.budget.check(self.spent() + running(), self._disk_bytes)

        return stop
