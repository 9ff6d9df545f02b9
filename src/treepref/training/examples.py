"""What the learner trains on: a pruned tree of token ids with pairs, value targets, SFT weights, reference log-probs.

Knows trees and pairs, but no tensor, no model and no loss. Which tokens need the LM head follows from the data: a
node's tokens are *trained* only if the node is in a pair or has an SFT weight; all other nodes are context.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from treepref.errors import DataError, ModelError
from treepref.training.objectives import Counts
from treepref.training.pairs import visit_smoothing
from treepref.types import Node, Pair, PolicyId, Tree


@dataclass(frozen=True, slots=True)
class ExampleNode:
    """A run of tokens below its parent. Its log-probs are aligned with its tokens."""

    tokens: tuple[int, ...]
    parent: int = -1
    """Index of the parent in `Example.nodes`, always smaller than its own; −1: the prompt."""
    logprobs: tuple[float, ...] | None = None
    """As recorded while sampling, by the policy `Example.policy`."""
    ref: tuple[float, ...] | None = None
    """The reference's; filled in by `attach_reference`."""
    forced: tuple[bool, ...] | None = None
    """True where a tool forced the token: it counts in no loss."""
    target: float | None = None
    """What V at the last token should be, in [-1, 1]."""
    sft: float = 0.0
    """Weight of the NLL of its tokens."""

    @property
    def free_tokens(self) -> int:
        return len(self.tokens) - sum(self.forced or ())


@dataclass(frozen=True, slots=True)
class ExamplePair:
    """Winner over loser: two lists of node indices, each from upper to lower node."""

    winner: tuple[int, ...]
    loser: tuple[int, ...]
    alpha: float = 0.0
    """Label smoothing, 0 to 0.5."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Example:
    """A tree to train on. Immutable; checked when made.

    Raises:
        DataError: an empty prompt or node, a parent after its child, misaligned log-probs or masks, a pair of unknown
            nodes, smoothing outside [0, 0.5], or a value target outside [-1, 1].
    """

    id: str
    prompt: tuple[int, ...]
    nodes: tuple[ExampleNode, ...]
    pairs: tuple[ExamplePair, ...] = ()
    root_target: float | None = None
    """What V at the prompt's last token should be."""
    policy: PolicyId | None = None
    """Which policy recorded `ExampleNode.logprobs`."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise DataError(f"example {self.id!r}: the prompt has no tokens, so nothing can follow it")
        for index, node in enumerate(self.nodes):
            _check_node(self.id, index, node)
        _check_target(self.id, "the prompt", self.root_target)
        for pair in self.pairs:
            _check_pair(self.id, pair, len(self.nodes))

    @property
    def trained(self) -> tuple[bool, ...]:
        """For each node, whether its tokens need log-probs."""
        in_pairs = {n for pair in self.pairs for n in (*pair.winner, *pair.loser)}
        return tuple(index in in_pairs or node.sft != 0 for index, node in enumerate(self.nodes))

    @property
    def trained_tokens(self) -> int:
        """Tokens that need a log-prob; forced ones do not."""
        return sum(n.free_tokens for n, trained in zip(self.nodes, self.trained, strict=True) if trained)

    @property
    def size(self) -> int:
        """Tokens that it takes in a row."""
        return len(self.prompt) + sum(len(n.tokens) for n in self.nodes)

    @property
    def longest_path(self) -> int:
        """Tokens of the longest prompt + path."""
        ends: list[int] = []
        for node in self.nodes:
            ends.append(len(node.tokens) + (len(self.prompt) if node.parent < 0 else ends[node.parent]))
        return max(ends, default=len(self.prompt))

    @property
    def counts(self) -> Counts:
        """What it adds to the denominators of an optimizer step."""
        return Counts(
            pairs=sum(p.weight for p in self.pairs),
            values=sum(n.target is not None for n in self.nodes) + (self.root_target is not None),
            tokens=sum(n.sft * n.free_tokens for n in self.nodes),
        )


def _check_node(example: str, index: int, node: ExampleNode) -> None:
    where = f"example {example!r}, node {index}"
    if not node.tokens:
        raise DataError(f"{where}: it has no tokens")
    if not -1 <= node.parent < index:
        raise DataError(f"{where}: its parent is {node.parent}; parents come before their children")
    for name in ("logprobs", "ref", "forced"):
        values = getattr(node, name)
        if values is not None and len(values) != len(node.tokens):
            raise DataError(f"{where}: {len(node.tokens)} tokens but {len(values)} entries in {name}")
    _check_target(example, f"node {index}", node.target)


def _check_target(example: str, where: str, target: float | None) -> None:
    if target is not None and not -1 <= target <= 1:  # also refuses NaN
        raise DataError(
            f"example {example!r}, {where}: value target {target} is outside the value head's range [-1, 1]; "
            "scale Q by the tree's q_range first"
        )


def _check_pair(example: str, pair: ExamplePair, n_nodes: int) -> None:
    if not pair.winner or not pair.loser:
        raise DataError(f"example {example!r}: a pair has an empty side: {pair}")
    if not all(0 <= n < n_nodes for n in (*pair.winner, *pair.loser)):
        raise DataError(f"example {example!r}: a pair names a node that is not there: {pair}")
    if not 0 <= pair.alpha <= 0.5:
        raise DataError(f"example {example!r}: label smoothing {pair.alpha} is outside [0, 0.5]")


# ---------------------------------------------------------------------------------------------------------------------
# Builders
# ---------------------------------------------------------------------------------------------------------------------


def example_from_tree(
    tree: Tree,
    pairs: Sequence[Pair],
    *,
    targets: Mapping[int, float] | None = None,
    sft_paths: Sequence[Sequence[int]] | None = None,
    smoothing: Literal["none", "visits"] = "none",
    id: str | None = None,
) -> Example:
    """The part of a searched tree that training needs: nodes in pairs, with targets, on SFT paths, and all above them.

    Args:
        targets: value target by node index (0: the root), already in the value head's range.
        sft_paths: paths (node indices) whose tokens get an SFT weight of 1; None takes the winners of the pairs, which
            is NLL(w) of the SVPO loss, each token once however often its node wins.
        smoothing: "visits" sets α = 1/(N_w/N_l + 1), at most 0.5 (MCTS-DPO, arXiv 2405.00451; methods §2).

    Raises:
        DataError: as `Example`.
    """
    targets = targets or {}
    paths = [p.winner for p in pairs] if sft_paths is None else sft_paths
    sft = {n for path in paths for n in path} - {0}
    wanted = sft | set(targets) | {n for p in pairs for n in (*p.winner, *p.loser)}
    kept = _with_ancestors(tree, wanted)
    place = {n: i for i, n in enumerate(kept)}
    nodes = tuple(_example_node(tree.nodes[n], place, targets.get(n), float(n in sft)) for n in kept)
    return Example(
        id=tree.key if id is None else id,
        prompt=tuple(tree.prompt),
        nodes=nodes,
        pairs=tuple(
            ExamplePair(
                tuple(place[n] for n in p.winner),
                tuple(place[n] for n in p.loser),
                visit_smoothing(p.visits_winner, p.visits_loser) if smoothing == "visits" else 0.0,
            )
            for p in pairs
        ),
        root_target=targets.get(0),
        policy=tree.policy,
    )


def _with_ancestors(tree: Tree, wanted: set[int]) -> list[int]:
    kept: set[int] = set()
    for index in wanted:
        node: Node | None = tree.nodes[index]
        while node is not None and node.index not in kept:
            kept.add(node.index)
            node = node.parent
    return sorted(kept - {0})  # order of creation: a parent always comes before its children


def _example_node(node: Node, place: Mapping[int, int], target: float | None, sft: float) -> ExampleNode:
    return ExampleNode(
        tokens=tuple(node.tokens),
        parent=place.get(node.parent.index, -1) if node.parent is not None else -1,
        logprobs=tuple(node.logprobs) if node.logprobs else None,
        forced=tuple(node.forced) if node.forced is not None else None,
        target=target,
        sft=sft,
    )


def example_from_solution(
    prompt: Sequence[int], tokens: Sequence[int], *, id: str = "", forced: Sequence[bool] | None = None
) -> Example:
    """A prompt and its solution, for SFT: one node whose every token has weight 1.

    Raises:
        DataError: the prompt or the solution is empty.
    """
    node = ExampleNode(tuple(tokens), forced=None if forced is None else tuple(forced), sft=1.0)
    return Example(id=id, prompt=tuple(prompt), nodes=(node,))


def fingerprint(examples: Sequence[Example]) -> str:
    """A hash of ids, tokens and what is trained (no log-probs): tells whether a checkpoint belongs to these data."""
    digest = hashlib.sha256()
    for example in sorted(examples, key=lambda e: e.id):
        nodes = [(n.tokens, n.parent, n.forced, n.target, n.sft) for n in example.nodes]
        digest.update(repr((example.id, example.prompt, nodes, example.pairs, example.root_target)).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Reference log-probs
# ---------------------------------------------------------------------------------------------------------------------

NodeLogprobs = list[list[tuple[float, ...] | None]]
"""[example][node] → log-probs aligned with the node's tokens (0 where forced), None for nodes that are not trained."""
Scorer = Callable[[Sequence[Example]], NodeLogprobs]


@dataclass(frozen=True, slots=True)
class ReferenceReport:
    """Where the reference log-probs came from."""

    recorded: int
    """Examples whose recorded log-probs serve."""
    recomputed: int
    checked: int
    """Nodes recomputed as a sample."""
    worst: float
    """Largest |recorded − recomputed| of a token in the sample."""


def attach_reference(
    examples: Sequence[Example],
    scorer: Scorer | None,
    *,
    reference: PolicyId,
    sample: int = 64,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> tuple[list[Example], ReferenceReport]:
    """Give every trained node the reference's log-probs: the recorded ones where they may serve, else recomputed.

    Recorded ones serve where their policy is the reference and a seeded sample of nodes recomputed by
    `scorer` agrees within `tolerance` for every token (design: Reference log-probs). Without a scorer the sample cannot
    be checked and nothing can be recomputed.

    Raises:
        ModelError: log-probs must be recomputed but there is no scorer.
    """
    own = [i for i, e in enumerate(examples) if e.policy == reference and _has_recorded(e)]
    checked, worst = 0, 0.0
    if own and scorer is not None:
        checked, worst = check_recorded([examples[i] for i in own], scorer, sample=sample, seed=seed)
        if not worst <= tolerance:
            own = []
    serving = set(own)
    rest = [i for i in range(len(examples)) if i not in serving]
    if rest and scorer is None:
        raise ModelError(
            f"{len(rest)} examples (first: {examples[rest[0]].id!r}) have no log-probs of the reference policy "
            f"({reference}), and no reference model was given to recompute them"
        )
    found: dict[int, Example] = {i: _with_reference(examples[i], [n.logprobs for n in examples[i].nodes]) for i in own}
    if rest and scorer is not None:
        scores = scorer([examples[i] for i in rest])
        found |= {i: _with_reference(examples[i], logp) for i, logp in zip(rest, scores, strict=True)}
    attached = [found[i] for i in range(len(examples))]
    return attached, ReferenceReport(len(own), len(rest), checked, worst)


def check_recorded(
    examples: Sequence[Example], scorer: Scorer, *, sample: int = 64, seed: int = 0
) -> tuple[int, float]:
    """Recompute a seeded sample of trained nodes. (nodes checked, largest |recorded − recomputed| of a token)"""
    places = [(i, n) for i, e in enumerate(examples) for n, trained in enumerate(e.trained) if trained]
    chosen = sorted(random.Random(seed).sample(places, min(sample, len(places))))
    rows = sorted({i for i, _ in chosen})
    scores = dict(zip(rows, scorer([examples[i] for i in rows]), strict=True)) if rows else {}
    worst = 0.0
    for i, n in chosen:
        node = examples[i].nodes[n]
        forced = node.forced or (False,) * len(node.tokens)
        for recorded, computed, skip in zip(node.logprobs or (), scores[i][n] or (), forced, strict=True):
            difference = 0.0 if skip else abs(recorded - computed)
            worst = max(worst, math.inf if math.isnan(difference) else difference)
    return len(chosen), worst


def _has_recorded(example: Example) -> bool:
    return all(n.logprobs is not None for n, trained in zip(example.nodes, example.trained, strict=True) if trained)


def _with_reference(example: Example, logprobs: Sequence[tuple[float, ...] | None]) -> Example:
    nodes = tuple(
        replace(node, ref=logp) if trained else node
        for node, trained, logp in zip(example.nodes, example.trained, logprobs, strict=True)
    )
    return replace(example, nodes=nodes)
