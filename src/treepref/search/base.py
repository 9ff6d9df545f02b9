"""The ask/tell contract between a search and whoever runs it. Knows no engine, no tokenizer and no checker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from treepref.types import Choice, Completion, Node, Tree


@dataclass(frozen=True, slots=True, eq=False)
class Expansion:
    """A leaf to expand: sample `n` continuations of the node's state."""

    node: Node
    n: int
    temperature: float
    max_tokens: int
    top_p: float = 1.0
    delimiter: str | None = "\n"
    want_value: bool = False
    choice: Choice | None = None
    """Asked after each finished sample."""
    given: tuple[tuple[int, ...], ...] = ()
    """Continuations that are scored, not sampled; their completions come behind the `n` sampled ones."""


class Search(Protocol):
    """Stateless rules over a caller-owned tree: the same tree always gives the same answers.

    The caller alternates `ask` and `tell`, telling each tree in ask order; the same tells rebuild the same tree.
    """

    def ask(self, tree: Tree) -> list[Expansion]:
        """The leaves to expand next, at most `leaves_in_flight`; empty when the search is done or waits for a tell."""
        ...

    def tell(
        self,
        tree: Tree,
        expansion: Expansion,
        completions: Sequence[Completion],
        rewards: Sequence[float | None],
        prefix_value: float | None,
    ) -> None:
        """Take what came back: a reward for each finished completion (None where unknown or unfinished).

        Fewer completions than asked for (an engine set some aside) cost those children, nothing else.
        """
        ...

    def done(self, tree: Tree) -> bool: ...


Judge = Callable[[Tree, tuple[int, ...]], float | None]
"""Reward of a finished solution from its token ids (prompt excluded), or None where the outcome is not to be known."""


def path_nodes(node: Node) -> list[Node]:
    """The nodes from below the root down to `node`, `node` included."""
    nodes = []
    while node.parent is not None:
        nodes.append(node)
        node = node.parent
    return nodes[::-1]


def node_path(node: Node) -> str:
    """Name of a node within its tree: child indices from the root, as in `2.0.1`; the root is the empty string."""
    return ".".join(str(n.parent.children.index(n)) for n in path_nodes(node))  # type: ignore[union-attr]


def solution_tokens(node: Node) -> tuple[int, ...]:
    """Token ids from the end of the prompt through `node`."""
    return tuple(token for n in path_nodes(node) for token in n.tokens)
