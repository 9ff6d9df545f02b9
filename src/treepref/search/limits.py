"""How a search samples, and how far a solution may go: the same for all searches."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

from treepref.search.base import Expansion
from treepref.types import Node, Tree


class StepSettings(Protocol):
    """What a recipe says of the steps of a search."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def max_depth(self) -> int: ...
    @property
    def max_step_tokens(self) -> int: ...


def check_at_least_1(rules: object, *names: str) -> None:
    """Raise ValueError for a number of a search that is below 1; None is no number."""
    for name in names:
        number = getattr(rules, name)
        if number is not None and number < 1:
            raise ValueError(f"{type(rules).__name__}.{name} is {number}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Raises ValueError for a limit below 1, and for steps without an end."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    max_depth: int = 8
    """Steps; a solution unfinished at this depth failed."""
    max_step_tokens: int = 64
    max_tokens: int | None = None
    """Longest solution in tokens; None: no limit but the others."""
    max_context: int | None = None
    """Longest prompt + solution in tokens, as the engine takes it; None: no limit."""
    delimiter: str = "\n"
    """The text that ends a step."""

    def __post_init__(self) -> None:
        check_at_least_1(self, "max_depth", "max_step_tokens", "max_tokens")
        if not self.delimiter:
            raise ValueError("Limits.delimiter is empty: steps would have no end")

    @classmethod
    def of(cls, settings: StepSettings, context: int, delimiter: str) -> Limits:
        """Those of a recipe's section, on an engine that takes `context` tokens."""
        return cls(
            temperature=settings.temperature, top_p=settings.top_p, max_depth=settings.max_depth,
            max_step_tokens=settings.max_step_tokens, max_context=context, delimiter=delimiter,
        )  # fmt: skip

    def room(self, tree: Tree, node: Node) -> int:
        """How many more tokens may follow a node."""
        used, left = 0, sys.maxsize
        step: Node | None = node
        while step is not None:  # the root has no tokens
            used += len(step.tokens)
            step = step.parent
        if self.max_tokens is not None:
            left = self.max_tokens - used
        if self.max_context is not None:
            left = min(left, self.max_context - len(tree.prompt) - used)
        return left

    def may_continue(self, tree: Tree, node: Node) -> bool:
        """Whether a step may follow a node."""
        return node.depth < self.max_depth and self.room(tree, node) > 0

    def step(self, tree: Tree, node: Node, n: int, **asked: Any) -> Expansion:
        """Sample `n` next steps of a node; `asked`: what else of an `Expansion` is asked with them."""
        room = min(self.max_step_tokens, self.room(tree, node))
        return Expansion(node, n, self.temperature, room, self.top_p, self.delimiter, **asked)

    def solution(self, tree: Tree, node: Node, n: int, max_tokens: int, **asked: Any) -> Expansion:
        """Sample the rest of a solution `n` times, `max_tokens` at most."""
        room = min(max_tokens, self.room(tree, node))
        return Expansion(node, n, self.temperature, room, self.top_p, None, **asked)


DEFAULT_LIMITS = Limits()
