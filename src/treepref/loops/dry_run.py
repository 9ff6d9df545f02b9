"""The rules of a recipe driven on an engine that samples nothing, to count what they would ask for.

A step is one token here, whatever its length: searches, decoders and pair rules are those of the run, and what each
request would cost in tokens is counted beside them. Two ways: as expected, and at every limit that the recipe sets,
where no solution ends early, no two samples are equal and no cached prefix is reused. Knows no price and no machine.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TypeVar

from treepref.driver import Job, drive
from treepref.engines.base import EngineLimits
from treepref.engines.scripted import ScriptedEngine
from treepref.search.base import Search
from treepref.search.beam import StepBeam
from treepref.search.episodes import EpisodeMcts
from treepref.search.mcts import Mcts
from treepref.search.sampling import Sampling, StepSampling
from treepref.types import BASE, Choice, Completion, Finish, Request, Result, Tree, new_tree

TREES = 16
"""As many trees are grown for a search; more say little more."""
EXPANSIONS = 500
"""And as many expansions, together: a larger search is tried on fewer trees, down to one."""
DEEPEST = 32
"""Steps of a solution that are taken one by one."""
WIDEST = 16
"""Samples of an expansion that are drawn one by one."""
CONTEXT = sys.maxsize
"""Nothing is cut by the context: a model's is known only when it is loaded."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """What a token of the dry run stands for."""

    prompt: float
    """Tokens."""
    step: float
    """Tokens."""
    steps: float
    """Of a typical solution; infinity: none ends before its limit."""
    longest: int
    """Steps that a solution may have."""
    differ: float = 1.0
    """Different samples of an expansion, as a share of all."""
    question: float = 0.0
    """Tokens of the question about a step."""
    most: float = math.inf
    """Tokens of a whole solution, at most."""

    @property
    def at_limits(self) -> bool:
        return math.isinf(self.steps)

    @property
    def solution(self) -> float:
        """Tokens of a whole solution."""
        return self.most if self.at_limits else min(self.steps * self.step, self.most)


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens by what is done for them."""

    generated: float = 0.0
    prefill: float = 0.0
    cached: float = 0.0
    scored: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: float) -> Work:
        return Work(*(factor * getattr(self, f.name) for f in fields(self)))


class Meter:
    """An engine that answers with steps of one token each and counts what they stand for.

    A prompt is computed once; what follows it stands in the cache, except at the limits, where each request computes
    the longest prefix there is anew. A finished step's value costs a token, as the question about it costs its own.
    """

    tokenizer = None
    policy_id = BASE

    def __init__(self, lengths: Lengths, *, values: bool) -> None:
        self.lengths, self.work = lengths, Work()
        self._values, self._ends = values, _chance_to_end(lengths)
        self._open: dict[str, Request] = {}
        self._prompts: set[int] = set()
        self._engine = ScriptedEngine(
            self._sample, value=_worth, choice=_judged, score=lambda prefix, tokens: [-0.5] * len(tokens),
            has_values=values, max_context=CONTEXT,
        )  # fmt: skip

    @property
    def limits(self) -> EngineLimits:
        return self._engine.limits

    def submit(self, requests: Iterable[Request]) -> None:
        asked = list(requests)
        self._open.update((request.id, request) for request in asked)
        self._engine.submit(asked)

    def poll(self, timeout: float | None = None) -> list[Result]:
        results = self._engine.poll(timeout)
        for result in results:
            self._count(self._open.pop(result.request_id), result)
        return results

    def load(self, weights: object) -> None:
        """There are none."""

    def close(self) -> None:
        self._engine.close()

    def _sample(self, prefix: tuple[int, ...], seed: int, request: Request) -> Completion:
        """A step, or the rest of a solution: one token either way."""
        draw, whole = random.Random(seed), request.delimiter is None
        if seed != request.seeds[0] and draw.random() >= self._chance_to_differ(request.n):
            draw = random.Random(request.seeds[0])
        word = draw.getrandbits(40)
        ends = not self.lengths.at_limits and (whole or self._is_last(draw))
        tokens = (2 * word + ends,)
        finish: Finish = "eos" if ends else "length" if whole else "step"
        logprob = -0.5 if self.lengths.at_limits else -draw.random()  # equal priors: no child is preferred
        return Completion(tokens, (logprob,), finish, value=_worth(prefix + tokens))

    def _chance_to_differ(self, n: int) -> float:
        """For each of n samples but the first, so that the share of different ones among all is as assumed."""
        return (n * self.lengths.differ - 1) / (n - 1)

    def _is_last(self, draw: random.Random) -> bool:
        """Whether a step ends its solution: as likely at every step, so that early ends and long ways both occur."""
        return draw.random() < self._ends

    def _count(self, request: Request, result: Result) -> None:
        lengths, before = self.lengths, len(request.prefix) - 1
        self._count_prefix(request, before)
        each = lengths.step
        if request.delimiter is None:
            left = (lengths.longest if lengths.at_limits else lengths.steps) - before
            each = max(1.0, left) * lengths.step if before else lengths.solution
        values = request.want_value and self._values
        asked = lengths.question * (request.choice is not None)
        given = lengths.solution if request.delimiter is None else lengths.step
        scored = given * len(request.given) + (request.n + len(request.given)) * (values + asked)
        self.work += Work(generated=request.n * each, scored=scored)

    def _count_prefix(self, request: Request, before: int) -> None:
        lengths, whole = self.lengths, request.delimiter is None
        if lengths.at_limits:
            state = lengths.prompt if whole and not before else lengths.prompt + lengths.longest * lengths.step
            self.work += Work(prefill=state * (request.n if whole else 1))
            return
        again = request.prefix[0] in self._prompts
        self._prompts.add(request.prefix[0])
        cached = before * lengths.step + lengths.prompt * (request.n - (not again))
        self.work += Work(prefill=0.0 if again else lengths.prompt, cached=cached)


def _chance_to_end(lengths: Lengths) -> float:
    """Of each step, so that solutions of `longest` steps at most have the mean that is assumed."""
    if lengths.at_limits:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(40):  # the mean, Σ (1 − p)^k over k < longest, falls in p
        middle = (low + high) / 2
        going_on = 1 - middle
        mean = (1 - going_on**lengths.longest) / middle
        low, high = (middle, high) if mean > lengths.steps else (low, middle)
    return high


def _worth(prefix: Sequence[int]) -> float:
    """A value in (−1, 1) that is the same whenever it is asked for."""
    return (hash(tuple(prefix)) % 2001 - 1000) / 1001


def _judged(prefix: Sequence[int], choice: Choice) -> tuple[float, ...]:
    right = (1 + _worth(prefix)) / 2
    return (right, *[(1 - right) / max(1, len(choice.options) - 1)] * (len(choice.options) - 1))


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """What a search asks for on a problem, and some trees that it grew."""

    work: Work
    trees: tuple[Tree, ...]
    scale: float
    """How many times as many nodes the recipe's own trees have: large searches are tried in small."""

    @property
    def nodes(self) -> float:
        """Of a tree, without its root."""
        return self.scale * sum(len(tree.nodes) - 1 for tree in self.trees) / len(self.trees)


Searches = TypeVar("Searches", Mcts, EpisodeMcts)
Rules = TypeVar("Rules", Mcts, EpisodeMcts, StepBeam, StepSampling, Sampling)


@lru_cache(maxsize=64)  # most rounds search as the one before did
def try_search(rules: Searches, lengths: Lengths, *, problems: int, values: bool, runs_on: bool) -> Tried:
    """`try_rules` of a search by simulations, with fewer of them where there are very many.

    `runs_on`: a simulation goes on to a solution's end.
    """
    deep = min(DEEPEST, lengths.longest) if runs_on else 1
    fewer = max(1, min(rules.simulations, EXPANSIONS // deep))
    times = rules.simulations / fewer
    # At the limits no child is chosen twice before all were, so every simulation has a long way to go.
    smaller = replace(rules, simulations=fewer, c=1e6 if lengths.at_limits else rules.c)
    tried = try_rules(smaller, lengths, problems=problems, values=values, runs_on=runs_on, expansions=fewer)
    work = tried.work * times
    if not lengths.at_limits:
        work = replace(work, prefill=tried.work.prefill)  # a prompt is computed once a tree, however large that is
    return Tried(work, tried.trees, tried.scale * times)


@lru_cache(maxsize=64)
def try_rules(
    rules: Rules, lengths: Lengths, *, problems: int, values: bool, runs_on: bool = False, expansions: int = 1
) -> Tried:
    """Grow trees by the rules, up to `TREES`, and count a tree's work.

    `runs_on`: the rules go on to a solution's end. Where that is far, a step stands for several. `expansions`: how many
    a tree has at most, or of them a step.
    """
    narrow, wider = narrowed(rules)
    coarse = 1.0
    if runs_on:
        coarse = max(1.0, (lengths.longest if lengths.at_limits else lengths.steps) / DEEPEST)
        lengths = replace(
            lengths, step=lengths.step * coarse, steps=lengths.steps / coarse,
            longest=math.ceil(lengths.longest / coarse),
        )  # fmt: skip
        expansions *= min(DEEPEST, lengths.longest)
        narrow = replace(narrow, limits=replace(narrow.limits, max_depth=lengths.longest))
    work, trees = _grown(narrow, lengths, max(1, min(problems, TREES, EXPANSIONS // expansions)), values)
    more = 1.0 if isinstance(narrow, (Mcts, EpisodeMcts)) else wider  # wider expansions are not more of them
    prefill = work.prefill * more * (coarse if lengths.at_limits else 1.0)
    scaled = replace(work * wider, prefill=prefill, scored=work.scored * wider * coarse)
    return Tried(scaled, trees, wider)


def narrowed(rules: Rules) -> tuple[Rules, float]:
    """The rules with a few samples an expansion, and how many times as many the recipe's own draw."""
    if isinstance(rules, StepBeam):
        b1, b2 = min(rules.b1, WIDEST), min(rules.b2, WIDEST)
        return replace(rules, b1=b1, b2=b2), rules.b1 * rules.b2 / (b1 * b2)
    if isinstance(rules, (StepSampling, Sampling)):
        n = min(rules.n, WIDEST)
        return replace(rules, n=n), rules.n / n
    root = rules.root_children
    wider = max(1.0, rules.children / WIDEST, (root or 1) / WIDEST)
    children = max(1, round(rules.children / wider))
    return replace(rules, children=children, root_children=root and max(1, round(root / wider))), wider


def _grown(rules: Search, lengths: Lengths, count: int, values: bool) -> tuple[Work, tuple[Tree, ...]]:
    """So many trees, and the work of one."""
    meter = Meter(lengths, values=values)
    trees: list[Tree] = []
    jobs = (Job(new_tree(str(i), str(i), (i,)), rules, lambda tree, tokens: _outcome(tokens)) for i in range(count))
    drive(
        jobs, meter, run_seed=0, trees_in_flight=count, journal=None, on_done=lambda job: trees.append(job.tree)
    )  # fmt: skip
    return meter.work * (1 / count), tuple(trees)


def _outcome(tokens: Sequence[int]) -> float:
    """As many solutions are right as wrong."""
    return 1.0 if _worth(tokens) > 0 else -1.0
