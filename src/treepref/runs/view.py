"""A run to be read: no lock is taken and nothing is written, so it may be looked at while another process goes on.

What is read may be of different moments: each query sees all that was committed before it began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from treepref.config import Recipe
from treepref.errors import StoreError
from treepref.runs.store import Store
from treepref.runs.stored_recipe import stored_recipe
from treepref.tasks.task import Task, load_task
from treepref.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FindTokenizer = Callable[[Store, Recipe], "PreTrainedTokenizerBase"]
"""Loads the tokenizer that a run's policies share. Only text of steps needs it."""


class RunView:
    """The parts of a run that reading needs, each made when it is first wanted."""

    def __init__(self, store: Store, find_tokenizer: FindTokenizer) -> None:
        self.store, self._find_tokenizer = store, find_tokenizer

    @property
    def folder(self) -> Path:
        return self.store.folder

    @cached_property
    def recipe(self) -> Recipe:
        """Raises StoreError where there is none, or none that this version can read."""
        recipe = stored_recipe(self.store)
        if recipe is None:
            raise StoreError(f"{self.folder} holds no recipe: start it with `treepref run`")
        return recipe

    @cached_property
    def task(self) -> Task:
        return load_task(self.recipe.task)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises StoreError where the run's folders hold none any more."""
        return self._find_tokenizer(self.store, self.recipe)

    def problems(self, split: str) -> Iterator[Problem]:
        return self.store.problems(split)

    def searched_problem(self, problem_id: str) -> Problem | None:
        """A problem that is searched: one of the training split, or of the labelled one."""
        return self.store.problem("train", problem_id) or self.store.problem("labelled", problem_id)


@contextmanager
def open_view(folder: Path, find_tokenizer: FindTokenizer) -> Iterator[RunView]:
    """The run in `folder`. Raises StoreError where there is none."""
    with Store(folder, read_only=True) as store:
        yield RunView(store, find_tokenizer)
