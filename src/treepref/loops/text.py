"""A run's problems and solutions as tokens, and tokens as text, by the tokenizer that all its policies share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from treepref.config import Recipe, TaskConfig
from treepref.loops.policies import Policies
from treepref.models.chat import OPENS_THINKING, Example, PromptForm, encode_prompt, end_of_turn, opens_thinking
from treepref.models.policy import load_tokenizer
from treepref.models.text import decode, finished_text, own_eos_id
from treepref.runs.store import Store
from treepref.tasks.task import Task
from treepref.tools import Tool, load_tool
from treepref.tools.masks import forced_mask
from treepref.types import Problem, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find_tokenizer(store: Store, recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer that the run's policies share. Raises StoreError where its folders hold none any more."""
    path, commit = Policies(store, recipe).tokenizer()
    return load_tokenizer(path, revision=commit)


def begun_on(store: Store) -> date | None:
    """The day that a run began; None where an older version began it."""
    known = store.meta("date")
    with store.sound("the day that the run began"):
        return None if known is None else date.fromisoformat(known)


class Text:
    """Needs no model. `load` reads the tokenizer, when it is first needed. Close it: a tool may hold processes."""

    def __init__(
        self,
        config: TaskConfig,
        task: Task,
        load: Callable[[], PreTrainedTokenizerBase],
        *,
        shown: Callable[[], Iterable[Problem]] = list,
        today: date | None = None,
        system: str | None = None,
    ) -> None:
        """`shown`: the problems of which the first `task.examples` stand before every prompt, and one more.

        `today`: the date for chat templates that write it. `system`: the task's message where the recipe has none.
        """
        self._config, self._task, self._load, self._shown = config, task, load, shown
        system = (system if config.system is None else config.system) if config.chat else None
        self.form = PromptForm(config.chat, system, config.chat_template_kwargs, today)
        self._tool: Tool | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._load()

    def encode(self, question: Question) -> tuple[int, ...]:
        """The question's prompt as token ids, behind the examples, none of which is the question itself."""
        examples = [example for id, example in self._examples if id != question.id][: self._config.examples]
        return encode_prompt(self.tokenizer, self._task.prompt(question), self.form, examples)

    @cached_property
    def _examples(self) -> list[tuple[str, Example]]:
        shown = islice(self._shown(), self._config.examples + 1) if self._config.examples else ()
        return [(p.id, (self._task.prompt(p.question), self._task.own_solution(p))) for p in shown]

    @cached_property
    def end_of_turn(self) -> int | None:
        """What ends an answer in the chat template; None: the tokenizer's EOS does."""
        return end_of_turn(self.tokenizer, self.form)

    def decode(self, tokens: tuple[int, ...]) -> str:
        own = own_eos_id(self.tokenizer)
        return decode(self.tokenizer, tokens, {id for id in (own, self.end_of_turn) if id is not None})

    def finished(self, tokens: tuple[int, ...]) -> str:
        """The text of a finished solution, up to what ended it; with the `<think>` that its prompt has opened."""
        text = finished_text(self.tokenizer, tokens, self._config.stop)
        return f"{OPENS_THINKING}{text}" if self._opens_thinking else text

    @cached_property
    def _opens_thinking(self) -> bool:
        return opens_thinking(self.tokenizer, self.form, self._config.prompt)

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
