"""What an engine is: something that continues token sequences. Knows no tree, no problem and no file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from treepref.types import PolicyId, Request, Result

if TYPE_CHECKING:
    from treepref.models.weights import Weights

Asked = Literal["value", "choice", "given"]
"""What a request may ask for besides samples."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    max_context: int
    """Longest prompt + continuation in tokens."""
    deterministic: bool
    """Same results whatever the concurrency, the batch and the restarts (on one machine and thread count)."""
    scores: frozenset[Asked]
    """What it answers. Without "value" (there is no trained value head) every `value` is None."""


class Engine(Protocol):
    """Any number of requests may be in flight; the engine batches them. Results come in order of completion.

    Nothing of an engine needs to be in this process: what a request cost and which policy answered come with its
    result, and a request that was lost comes back as an error, to be sent again.
    """

    tokenizer: Any
    """Of the ids that it takes and gives: a `PreTrainedTokenizerBase`, or None where ids have no text."""
    policy_id: PolicyId
    """The policy that requests sent now are answered by."""

    @property
    def limits(self) -> EngineLimits: ...

    def submit(self, requests: Iterable[Request]) -> None:
        """Returns at once."""
        ...

    def poll(self, timeout: float | None = None) -> list[Result]:
        """Work or wait until at least one request is finished, or for `timeout` seconds; all that are finished.

        Empty where nothing is in flight, or the time was up.
        """
        ...

    def load(self, weights: Weights) -> None:
        """Finish what is in flight, drop what was cached, go on with these weights."""
        ...

    def close(self) -> None:
        """End what it runs. What is in flight is lost."""
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
