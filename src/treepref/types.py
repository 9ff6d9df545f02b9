"""The nouns that every room shares: problems, requests and completions, trees and pairs.

Plain data. This file knows no torch, no tokenizer, no file and no rule of any search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NewType

Finish = Literal["step", "eos", "length", "stop"]
"""Why a completion ended: the step delimiter was completed, EOS was sampled, the length limit cut it, or one of the
request's `stops` was completed (no tree holds such a one: only `engines/with_tools.py` asks for stops)."""


PolicyId = NewType("PolicyId", str)
"""A policy's name, e.g. `round-1`: as its folder, in the journal, with what it sampled and for people."""
BASE = PolicyId("base")
"""What a policy is called that nobody has named."""


@dataclass(frozen=True, slots=True)
class Question:
    """What decoding and evaluation may see of a problem. It has no answer field, so ground truth cannot leak."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A question whose answers can be checked. Search for training sees this; evaluation sees `.question`."""

    id: str
    text: str
    answer: str
    rationale: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> Question:
        return Question(self.id, self.text)


@dataclass(frozen=True, slots=True)
class Choice:
    """A multiple-choice question put to the model right after a completion; what it answers is weighed, not sampled.

    The model reads prefix + completion (without EOS) + `suffix`, and the next token's probabilities are summed over
    the variants of each option. Only the suffix is new to it: the rest stands in the cache.
    """

    suffix: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    """For each option the ids of the single tokens that mean it, e.g. those of "A" and " A"."""
    after_eos: tuple[int, ...] = ()
    """Ids put before the suffix where the completion ended in EOS: the delimiter that it lacks."""


@dataclass(frozen=True, slots=True)
class Join:
    """V and the mean log-prob of a solution so far as one value: tanh((value·2·atanh(V) + logprob·mean + bias) / 2).

    The weights of a logistic regression of being right on both (`training/value_fit.py`); 2·atanh(V) is V's log-odds.
    """

    value: float = 1.0
    logprob: float = 0.0
    bias: float = 0.0


@dataclass(frozen=True, slots=True)
class SoFar:
    """What a value head that reads a mean found in a solution's tokens up to a prefix's end."""

    score: float = 0.0
    """Sum of w·h over them."""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """Continue `prefix` `n` times. One seed a sample, so a sample never depends on what else is in the batch."""

    id: str
    prefix: tuple[int, ...]
    n: int
    seeds: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    delimiter: str | None = "\n"
    """A sample ends at the first token whose cumulative decoding contains this text. None: run on to EOS."""
    want_value: bool = False
    """Ask for V of each finished sample and of the prefix (None where the engine has no value head)."""
    choice: Choice | None = None
    """Ask this after each finished sample (not after one that was cut)."""
    given: tuple[tuple[int, ...], ...] = ()
    """Continuations to score instead of sampling: each becomes a completion, behind the `n` sampled ones."""
    stops: tuple[str, ...] = ()
    """A sample ends at the first token whose decoding with those sampled before it contains one of these texts, too."""
    ends: tuple[str, ...] = ()
    """A solution ends, as at EOS, at the first token whose decoding with those before it holds one of these texts."""
    begun: int = 0
    """How many tokens at the prefix's end the sample has already: its seed's random numbers go on behind them."""
    step_tokens: int = 0
    """How many tokens at the prefix's end belong to the step that goes on: the delimiter may begin in them."""
    tool: str | None = None
    """Name of a tool that watches the samples and forces its results into them (treepref.tools)."""
    prompt_tokens: int = 0
    """How many tokens of the prefix are the problem's prompt: a tool looks at what the model wrote, not at that."""
    group: str = ""
    """What shares prefixes with it, e.g. a tree's key: an engine among several keeps a group together."""
    so_far: SoFar = SoFar()
    """What the value head found in the solution before, as the completions that it is made of had it in `score`."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample. `logprobs` are the untempered policy's; `behaviour` the sampler's where T ≠ 1 or top-p < 1 and they
    are known."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    behaviour: tuple[float, ...] | None = None
    forced: tuple[bool, ...] | None = None
    """True where a tool forced the token: such a token counts in no loss, prior or ratio. None: none was forced."""
    value: float | None = None
    """V at the last token, in [-1, 1]."""
    choice_probs: tuple[float, ...] | None = None
    """Probability mass of each option of the request's `choice`, at most 1 in sum. None: not asked, cut, no room."""
    score: float | None = None
    """Sum of w·h over its tokens, where the value head reads a mean: for `SoFar` of what continues it."""


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a request: its completions in sample order, or the reason that there are none."""

    request_id: str
    completions: tuple[Completion, ...]
    prefix_value: float | None = None
    error: str | None = None
    policy: PolicyId | None = None
    """Which policy answered."""
    cost: Cost = field(default_factory=lambda: Cost(), compare=False)
    """What this request cost; a prefix that several share is paid for by the one that had it computed."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One expansion of an unfinished tree, as it arrived."""

    tree: str
    path: str
    """Name of the node that was expanded (`search.base.node_path`)."""
    request: str
    """Fingerprint of what was asked; an entry serves a replay only where it is asked again to the letter."""
    completions: tuple[Completion, ...]
    rewards: tuple[float | None, ...]
    prefix_value: float | None


@dataclass(slots=True, eq=False)
class Node:
    """A reasoning step. Its state is the tree's prompt and the tokens of every node from the root down to it."""

    index: int
    """Position in `Tree.nodes`: the order of creation. The root is 0 and has no tokens."""
    parent: Node | None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    behaviour: tuple[float, ...] | None = None
    forced: tuple[bool, ...] | None = None
    finish: Finish = "step"
    depth: int = 0
    children: list[Node] = field(default_factory=list)
    samples: int = 1
    """How many equal samples this child stands for (siblings with equal tokens are one child); 0: given alone."""
    visits: int = 0
    total: float = 0.0
    """Sum of the backed-up returns; Q = total / visits, and a node without visits has no Q."""
    prior: float = 0.0
    value: float | None = None
    score: float | None = None
    """As its completion had it; never stored, for a tree that was stored is not searched on."""
    confidence: float | None = None
    """C: probability mass that the policy gives to "this is right" when asked (self-evaluation); None: not asked."""
    reward: float | None = None
    """Outcome of a finished solution; None for an unfinished one."""
    terminal: bool = False
    """Nothing can follow: the solution is finished, was cut, or stands at the depth limit."""
    expanded: bool = False
    exhausted: bool = False
    """Terminal, or expanded with every child exhausted: selection passes it over."""
    pending: int = 0
    """Expansions in flight below it (virtual loss); never stored."""

    @property
    def q(self) -> float | None:
        return self.total / self.visits if self.visits else None


@dataclass(slots=True, eq=False)
class Tree:
    """Everything searched on one problem. Owned by the caller; search rules are stateless functions over it."""

    key: str
    """Unique in a run's stage, e.g. the problem's id."""
    problem_id: str
    prompt: tuple[int, ...]
    policy: PolicyId
    """Which policy grew it."""
    nodes: list[Node]
    q_range: tuple[float, float] = (-1.0, 1.0)
    simulations: int = 0
    failed: int = 0
    """Samples that were cut, unparseable or set aside: each costs one child, never the tree."""

    @property
    def root(self) -> Node:
        return self.nodes[0]


def new_tree(key: str, problem_id: str, prompt: Sequence[int], policy: PolicyId = BASE) -> Tree:
    """A tree that holds its root alone."""
    return Tree(key, problem_id, tuple(prompt), policy, [Node(index=0, parent=None)])


@dataclass(frozen=True, slots=True)
class Pair:
    """Winner over loser: two runs of nodes (by index) of one tree that part at a common parent.

    A step pair names one node a side, a solution pair the path below the parent. The shared prefix is context only.
    """

    tree: str
    winner: tuple[int, ...]
    loser: tuple[int, ...]
    q_winner: float
    q_loser: float
    visits_winner: int
    visits_loser: int

    @property
    def id(self) -> str:
        return f"{self.tree}:{'.'.join(map(str, self.winner))}>{'.'.join(map(str, self.loser))}"


@dataclass(slots=True)
class Cost:
    """What work cost. Tokens are counted by what was done for them; flops are estimates from the parameter count."""

    generated_tokens: int = 0
    prefill_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose key-value cache was reused instead of computed."""
    scored_tokens: int = 0
    """Tokens run through the model for a value or a log-prob alone."""
    training_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def as_dict(self) -> dict[str, float]:
        return {f.name: getattr(self, f.name) for f in fields(self)}
