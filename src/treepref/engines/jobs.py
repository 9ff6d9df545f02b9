"""What the torch engine keeps of its work: requests in flight, their rows, the questions put after them. No logic."""

from __future__ import annotations

from dataclasses import dataclass, field

from treepref.engines.guide import Guide
from treepref.engines.kv_cache import Match
from treepref.models.steps import SampleEnd, StepEnd
from treepref.types import Choice, Completion, Cost, Finish, PolicyId, Request


@dataclass(slots=True, eq=False)
class Job:
    """A request in flight and what has come back of it."""

    request: Request
    max_tokens: int
    policy: PolicyId
    completions: list[Completion | None]
    missing: int
    longest: int
    """Most tokens of its own that a row of it may come to hold."""
    admitted: int = 0
    """Rows that it has been given so far."""
    prefix_value: float | None = None
    cost: Cost = field(default_factory=Cost)
    """What it has cost so far."""
    questions: dict[tuple[int, ...], Question] = field(default_factory=dict)
    """What was asked after its samples, by the sample's tokens: equal ones are asked once."""

    @property
    def rows(self) -> int:
        """A row a sample; a request for the prefix's value alone has a row too, which samples nothing."""
        return max(1, len(self.completions))


@dataclass(slots=True, eq=False)
class Question:
    """A choice to be weighed after `state`, and who waits for the answer."""

    state: tuple[int, ...]
    """Prefix and completion, without EOS: what the cache may hold."""
    ids: tuple[int, ...]
    """All that the model reads: the state, glue and the suffix."""
    choice: Choice
    job: Job
    samples: list[int] = field(default_factory=list)
    answer: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Samples of one request that get their rows together and share a slot; what the cache holds of their prefix."""

    job: Job
    first: int
    rows: int
    match: Match
    held: int
    """Tokens of the prefix that need not be computed."""


@dataclass(slots=True, eq=False)
class Row:
    """One sample being decoded. The row's place in the batch is its index in the engine's list of rows."""

    job: Job
    sample: int
    seed: int
    step_end: StepEnd | SampleEnd | None
    guide: Guide | None = None
    """None: every token is sampled."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    behaviour: list[float] = field(default_factory=list)
    finish: Finish | None = None
    waits: bool = False
    """It got no token in this round, for it awaits a tool: the pass runs its newest one once more."""
    passes: int = 0
    """Passes of the model that it took part in."""
    score: float | None = None
    """Sum of w·h over its tokens, once they have all been run, where the value head reads a mean."""
