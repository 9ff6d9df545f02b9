"""What a report wants of a run's search trees, read in one pass over each stage: no tree is decoded twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from treepref.evaluation.scores import JudgedNode, self_evaluation_quality
from treepref.loops.reading import READ_TREES, attempts_of
from treepref.models.text import decode
from treepref.report.reading import Attempt, Reading
from treepref.runs.results import SearchOutcomes, SelfEvaluation
from treepref.runs.stage import Stage
from treepref.runs.store import Store, TreeRow
from treepref.runs.view import RunView
from treepref.types import Node, Pair, Tree

DRAWN_TREES = 10


@dataclass(frozen=True, slots=True)
class SearchFound:
    """A stage that has grown trees: `round-K/search`, or `round-K/labels` of dpo_st."""

    stage: Stage
    rows: list[TreeRow]
    reading: Reading
    """What was read of the solutions of its first `READ_TREES` trees by key."""
    self_evaluation: SelfEvaluation | None
    """How good C was; None where it was not asked."""
    drawn: list[dict[str, Any]]
    """Trees as plain data, with their problems, in the order in which they are shown."""


def read_searches(view: RunView) -> list[SearchFound]:
    """Every stage that has grown trees, in order."""
    rows = {stage: list(view.store.tree_rows(stage)) for stage in search_stages(view)}
    rows = {stage: found for stage, found in rows.items() if found}
    pairs = {stage: _pairs_by_tree(view, stage) for stage in rows}
    chosen = _choose(view, rows, pairs)
    return [_read(view, stage, rows[stage], pairs[stage], chosen.get(stage, [])) for stage in rows]


def search_stages(view: RunView) -> list[Stage]:
    """Stages that grow trees, in order."""
    return [Stage(r, name) for r in range(1, view.recipe.rounds + 1) for name in ("search", "labels")]


def search_summary(store: Store, found: SearchFound) -> SearchOutcomes:
    """What a search has found so far."""
    stage, rows = found.stage, found.rows
    solved, mixed = sum(row.right > 0 for row in rows), sum(row.mixed for row in rows)
    tokens = store.cost(stage).generated_tokens
    return SearchOutcomes(
        stage=str(stage),
        round=stage.round,
        trees=len(rows),
        solved=solved,
        mixed=mixed,
        unsolved=len(rows) - solved,
        tokens=tokens,
        right_per_1000_tokens=_per_1000(sum(row.right for row in rows), tokens),
        wrong_per_1000_tokens=_per_1000(sum(row.wrong for row in rows), tokens),
        trees_read=min(len(rows), READ_TREES),
        **found.reading.facts(),
    )


def _per_1000(solutions: int, tokens: int) -> float | None:
    """Different solutions of a tree for every 1,000 tokens sampled."""
    return 1000 * solutions / tokens if tokens else None


def _pairs_by_tree(view: RunView, stage: Stage) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for pair in view.store.pairs(stage.round) if stage.name == "search" else ():
        found.setdefault(pair.tree, []).append(pair)
    return found


def _choose(
    view: RunView, rows: dict[Stage, list[TreeRow]], pairs: Mapping[Stage, Mapping[str, Sequence[Pair]]]
) -> dict[Stage, list[str]]:
    """Keys of the trees to draw, the last round's first: those with most pairs, then mixed ones, then those without a
    right solution, then the others."""
    left, chosen = DRAWN_TREES, {}
    for stage in reversed(rows):

        def rank(row: TreeRow, own: Mapping[str, Sequence[Pair]] = pairs[stage]) -> tuple[int, bool, bool, str]:
            return -len(own.get(row.key, ())), not row.mixed, row.right > 0, row.key

        known = (row for row in sorted(rows[stage], key=rank)[:left] if view.searched_problem(row.problem_id))
        chosen[stage] = [row.key for row in known]
        left -= len(chosen[stage])
    return chosen


@dataclass(slots=True)
class _Reader:
    """The pass over one stage."""

    view: RunView
    pairs: Mapping[str, list[Pair]]
    stage: Stage
    attempts: list[Attempt] = field(default_factory=list)
    ends: list[JudgedNode] = field(default_factory=list)
    steps: list[JudgedNode] = field(default_factory=list)
    drawn: dict[str, dict[str, Any]] = field(default_factory=dict)

    def draw(self, tree: Tree) -> None:
        problem = self.view.searched_problem(tree.problem_id)
        assert problem is not None
        facts = {"question": problem.text, "answer": problem.answer, "problem_id": problem.id}
        plain = plain_tree(tree, self.pairs.get(tree.key, []), self.view.tokenizer)
        self.drawn[tree.key] = plain | facts | {"round": self.stage.round}

    def judge(self, tree: Tree) -> None:
        ends, steps = judged_nodes(tree)
        self.ends += ends
        self.steps += steps


def _read(
    view: RunView, stage: Stage, rows: list[TreeRow], pairs: Mapping[str, list[Pair]], chosen: Sequence[str]
) -> SearchFound:
    asked = stage.name == "search" and view.recipe.self_evaluation is not None
    reader = _Reader(view, pairs, stage)
    for number, row in enumerate(rows):
        if number >= READ_TREES and not asked and row.key not in chosen:
            continue
        tree = view.store.tree(stage, row.key)
        if tree is None:  # taken back meanwhile
            continue
        if number < READ_TREES:
            reader.attempts += attempts_of(view, tree)
        if asked:
            reader.judge(tree)
        if row.key in chosen:
            reader.draw(tree)
    quality = self_evaluation_quality(reader.ends, reader.steps) if asked else None
    drawn = [reader.drawn[key] for key in chosen if key in reader.drawn]
    return SearchFound(stage, rows, Reading.of(reader.attempts), quality, drawn)


def judged_nodes(tree: Tree) -> tuple[list[JudgedNode], list[JudgedNode]]:
    """(finished solutions, steps before the end) that have both a C and an outcome.

    A step's outcome is the mean reward of the finished solutions below it, each counted once however often it was
    visited: visits follow the search's own preferences, and C among them.
    """
    total: dict[int, float] = {}
    count: dict[int, int] = {}
    for end in tree.nodes:
        if end.terminal and end.reward is not None:
            node: Node | None = end
            while node is not None:
                total[node.index] = total.get(node.index, 0.0) + end.reward
                count[node.index] = count.get(node.index, 0) + 1
                node = node.parent
    ends, steps = [], []
    for node in tree.nodes:
        if node.confidence is not None and node.index in count:
            judged = JudgedNode(tree.problem_id, node.confidence, total[node.index] / count[node.index])
            (ends if node.terminal else steps).append(judged)
    return ends, steps


def plain_tree(tree: Tree, pairs: list[Pair], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A tree and its pairs with decoded steps."""
    nodes = [
        {
            "id": node.index,
            "parent": None if node.parent is None else node.parent.index,
            "text": decode(tokenizer, node.tokens).strip("\n"),
            "pieces": text_pieces(node, tokenizer),
            "q": node.q,
            "visits": node.visits,
            "value": node.value,
            "confidence": node.confidence,
            "prior": node.prior,
            "reward": node.reward,
            "terminal": node.terminal,
            "finish": node.finish,
        }
        for node in tree.nodes
    ]
    sides = [
        {"winner": list(p.winner), "loser": list(p.loser), "q_winner": p.q_winner, "q_loser": p.q_loser} for p in pairs
    ]
    return {"nodes": nodes, "pairs": sides, "q_range": list(tree.q_range)}


def text_pieces(node: Node, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]] | None:
    """A step's text cut where tokens that a tool forced begin and end, each piece with whether it was forced.

    None where none was. The pieces together are the decoded step; a character that spans a cut goes to the piece
    that completes it.
    """
    if not node.forced or not any(node.forced):
        return None
    text, start, pieces = decode(tokenizer, node.tokens), 0, []
    for i, forced in enumerate(node.forced):
        last = i + 1 == len(node.tokens)
        if not last and node.forced[i + 1] == forced:
            continue
        # Half a character decodes to U+FFFD.
        end = len(text) if last else len(decode(tokenizer, node.tokens[: i + 1]).rstrip("\ufffd"))
        pieces.append((text[start:end], forced))
        start = max(start, end)
    return pieces
