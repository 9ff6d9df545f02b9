"""What an engine is: something that continues token sequences. Knows no tree, no problem and no file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from treepref.types import Choice, Cost, PolicyId, Request, Result


class Engine(Protocol):
    """Any number of requests may be in flight; the engine batches them. Results come in order of completion.

    `submit` returns at once. `poll` works or waits until at least one request is finished and returns all that are;
    it returns an empty list only when nothing is in flight.
    """

    deterministic: bool
    """Same results whatever the concurrency, the batch and the restarts (on one machine and thread count)."""
    policy_id: PolicyId
    has_values: bool
    """False until a trained value head is loaded: then every `value` is None."""
    max_context: int
    """Longest prompt + continuation in tokens."""
    cost: Cost
    """Running total of this engine's work."""

    def submit(self, requests: Iterable[Request]) -> None: ...

    def poll(self) -> list[Result]: ...

    def values(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """V at the last token of each sequence. Raises ModelError without a value head."""
        ...

    def choice_probs(self, prefixes: Sequence[Sequence[int]], choice: Choice) -> list[tuple[float, ...]]:
        """Probability mass of each option of `choice` right after each prefix and the choice's suffix.

        A prefix that ends in EOS is read without it, with `choice.after_eos` in its place. Raises ModelError for a
        prefix that cannot be asked.
        """
        ...

    def update(self, weights: Mapping[str, Any], policy_id: PolicyId) -> None:
        """Drain, drop the cache, publish the new weights."""
        ...


def generate(engine: Engine, requests: Sequence[Request]) -> list[Result]:
    """Submit, wait for all, and return the results in the order of the requests."""
    engine.submit(requests)
    found: dict[str, Result] = {}
    while len(found) < len(requests):
        results = engine.poll()
        if not results:
            raise RuntimeError("the engine has nothing in flight although requests are unanswered")
        found.update((r.request_id, r) for r in results)
    return [found[r.id] for r in requests]
