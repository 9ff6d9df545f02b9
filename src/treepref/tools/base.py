"""What a tool is: something that watches a sample token by token and forces its results into it.

Knows token ids alone: no engine, no model and no request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Forced:
    """Tokens that take the place of sampled ones, one after the other. Never EOS."""

    tokens: tuple[int, ...]
    ends_step: bool = False
    """The step ends after the last of them, whatever the delimiter."""


class ToolState(Protocol):
    """What a tool knows of one sample. Rows share nothing mutable."""

    open: bool
    """Inside a call (an open code block): the step delimiter does not end the step now."""
    busy: bool
    """A result is awaited: ask `result()` until it is there, and sample nothing meanwhile."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that an engine out of reach should stop at and ask again: without one of them, nothing happens next.

        One character each, so that a text cannot begin before the place where it stopped. Where something happens
        elsewhere after all, the tokens sampled behind it are for nothing, but nothing goes wrong.
        """
        ...

    def feed(self, token: int) -> Forced | None:
        """Take the sample's next token, sampled or forced; what to force after it. None: nothing, or not yet (`busy`).

        Forced tokens are fed too, all of them and before anything else; they never force anything themselves.
        """
        ...

    def result(self) -> Forced | None:
        """While `busy`: what to force, or None while it is not there. Does not wait.

        Nothing to force after all is None with `busy` False.
        """
        ...

    def close(self) -> None:
        """The sample ended, perhaps while `busy`: drop what is running."""
        ...


class Tool(Protocol):
    """One an engine, shared by all its rows."""

    def begin(self, written: Sequence[int]) -> ToolState:
        """The state of a new sample. `written` [T]: the solution's tokens so far, prompt excluded; may be empty."""
        ...

    def close(self) -> None:
        """End the tool's processes, if it has any."""
        ...
