"""Decoding with what was learned: greedy, sampling, step-level beam search and MCTS as uses of one driver.

Everything here is given a `Question`, which has no answer: no outcome can reach a prompt or a choice. Checking what
comes back is evaluation's business.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from treepref.config import EvalConfig, GuidedEvalConfig, MctsConfig, SearchConfig
from treepref.search.base import Search, path_nodes, solution_tokens
from treepref.search.beam import StepBeam
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.search.sampling import Sampling
from treepref.search.tree import path_mean_logprob
from treepref.types import Join, Node, PolicyId, Question, Tree, new_tree

INFERENCE_C = 1.25
"""PUCT constant at inference (AlphaMath, arXiv 2405.03553, public code)."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A named way to answer a question."""

    name: str
    search: Search
    answers: Callable[[Tree], list[Node | None]]
    """The solutions that a finished tree stands for, one a sample; None where it has none."""

    def tree(self, question: Question, prompt: tuple[int, ...], policy: PolicyId) -> Tree:
        return new_tree(question.id, question.id, prompt, policy)


@dataclass(frozen=True, slots=True)
class Answer:
    """A solution as tokens, with what it took to find it."""

    tokens: tuple[int, ...]
    value: float | None
    finish: str
    generated: int
    scored: int
    forced: int = 0
    """Tokens of it that a tool forced."""
    logprob: float | None = None
    """Mean log-prob of its tokens."""


def decoders(
    config: EvalConfig,
    search: SearchConfig | None,
    *,
    n: int,
    values: bool,
    context: int,
    delimiter: str,
    join: Join | None = None,
) -> list[Decoder]:
    """The decoders of an evaluation: greedy, `n` samples, and with a value head SBS at each width and MCTS.

    `search`: what beams and MCTS take their steps from. `join`: how V and log-prob are joined where the recipe does not
    say.
    """
    found = [greedy(config, context)]
    if n:
        found.append(sampled(config, n, context))
    if values and search is not None and isinstance(config, GuidedEvalConfig):
        limits = step_limits(config, search, context, delimiter)
        join = join if config.sbs_likelihood is None else None
        found += [beam(config, limits, *widths, join) for widths in config.sbs]
        if config.mcts:
            found.append(mcts(search, limits, join))
    return found


def beam_name(b1: int, b2: int) -> str:
    return f"sbs({b1},{b2})"


def greedy(config: EvalConfig, context: int) -> Decoder:
    limits = Limits(temperature=0.0, max_tokens=config.max_tokens, max_context=context)
    search = Sampling(n=1, limits=limits, want_value=False)
    return Decoder("greedy", search, lambda tree: [_only(tree)])


def sampled(config: EvalConfig, n: int, context: int) -> Decoder:
    """`n` independent solutions: self-consistency, best-of-n, weighted votes and pass@k are read off them."""
    limits = Limits(
        temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens, max_context=context
    )
    return Decoder("samples", Sampling(n=n, limits=limits), _each_sample)


def step_limits(config: EvalConfig, search: SearchConfig, context: int, delimiter: str) -> Limits:
    """Steps as the search has them, sampled as evaluation does."""
    sampled = {"temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_tokens}
    return replace(Limits.of(search, context, delimiter), **sampled)


def beam(config: GuidedEvalConfig, limits: Limits, b1: int, b2: int, join: Join | None = None) -> Decoder:
    rules = StepBeam(b1=b1, b2=b2, likelihood=config.sbs_likelihood or 0.0, join=join, limits=limits)
    return Decoder(beam_name(b1, b2), rules, lambda tree: [rules.answer(tree)])


def mcts(search: SearchConfig, limits: Limits, join: Join | None = None) -> Decoder:
    """MCTS at inference: terminals are scored by V, for no outcome is known."""
    rules = Mcts(
        simulations=search.simulations, children=search.children, c=INFERENCE_C,
        leaves_in_flight=search.leaves_in_flight if isinstance(search, MctsConfig) else 1, limits=limits, join=join,
    )  # fmt: skip
    return Decoder("mcts", rules, lambda tree: [rules.answer(tree)])


def answers(decoder: Decoder, tree: Tree) -> list[Answer | None]:
    """What a finished tree answers. Costs of a guided search are those of all its candidates."""
    nodes = decoder.answers(tree)
    if len(nodes) > 1 or decoder.name == "greedy":
        return [None if n is None else _answer(n, _sampled(n), int(n.value is not None)) for n in nodes]
    generated, scored = tree_tokens(tree)
    return [None if node is None else _answer(node, generated, scored) for node in nodes]


def tree_tokens(tree: Tree) -> tuple[int, int]:
    """(generated, scored) tokens of all samples of a tree, repeated samples included; forced ones are neither."""
    generated = sum(_sampled(node) * node.samples for node in tree.nodes)
    scored = sum(node.samples for node in tree.nodes if node.value is not None and node.parent is not None)
    return generated, scored


def trees(
    decoder: Decoder, questions: Iterable[Question], encode: Callable[[Question], tuple[int, ...]], policy: PolicyId
) -> Iterator[Tree]:
    for question in questions:
        yield decoder.tree(question, encode(question), policy)


def _answer(node: Node, generated: int, scored: int) -> Answer:
    forced = sum(sum(n.forced or ()) for n in path_nodes(node))
    return Answer(solution_tokens(node), node.value, node.finish, generated, scored, forced, path_mean_logprob(node))


def _sampled(node: Node) -> int:
    """Its tokens that the policy sampled."""
    return len(node.tokens) - sum(node.forced or ())


def _only(tree: Tree) -> Node | None:
    return tree.root.children[0] if tree.root.children else None


def _each_sample(tree: Tree) -> list[Node | None]:
    """All samples in a seeded random order: equal ones were merged into one child, and votes of k want any k."""
    drawn: list[Node | None] = [child for child in tree.root.children for _ in range(child.samples)]
    random.Random(tree.key).shuffle(drawn)
    return drawn
