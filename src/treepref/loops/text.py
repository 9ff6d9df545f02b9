"""A run's problems and solutions as tokens, and tokens as text, by the tokenizer that all its policies share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from treepref.config import Recipe, TaskConfig
from treepref.loops.policies import Policies
from treepref.models.policy import load_tokenizer
from treepref.models.text import decode, encode_prompt
from treepref.runs.store import Store
from treepref.tasks.task import Task
from treepref.tools import Tool, load_tool
from treepref.tools.masks import forced_mask
from treepref.types import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find_tokenizer(store: Store, recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer that the run's policies share. Raises StoreError where its folders hold none any more."""
    path, commit = Policies(store, recipe).tokenizer()
    return load_tokenizer(path, revision=commit)


class Text:
    """Needs no model. `load` reads the tokenizer, when it is first needed. Close it: a tool may hold processes."""

    def __init__(self, config: TaskConfig, task: Task, load: Callable[[], PreTrainedTokenizerBase]) -> None:
        self._config, self._task, self._load = config, task, load
        self._tool: Tool | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._load()

    def encode(self, question: Question) -> tuple[int, ...]:
        """The question's prompt as token ids."""
        return encode_prompt(self.tokenizer, self._task.prompt(question), self._config.chat)

    def decode(self, tokens: tuple[int, ...]) -> str:
        return decode(self.tokenizer, tokens)

    def finished(self, tokens: tuple[int, ...]) -> str:
        """The text of a finished solution: its last token ended it, whichever of the model's EOS tokens that is."""
        return decode(self.tokenizer, tokens, tokens[-1:])

    def forced(self, tokens: tuple[int, ...]) -> tuple[bool, ...] | None:
        """Which tokens of a solution the recipe's tool would have forced: those are not for learning. None: none."""
        if self._config.tool is None:
            return None
        if self._tool is None:
            self._tool = load_tool(self._config.tool, self.tokenizer)
        return forced_mask(self._tool, tokens)

    def close(self) -> None:
        if self._tool is not None:
            self._tool.close()
