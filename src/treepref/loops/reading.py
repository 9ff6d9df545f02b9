"""What was read of a run's stored solutions: those of its evaluations and of its search trees. Needs no model.

Knows the store and the run's task; what is counted and shown of it is in `treepref/report/reading.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from treepref.evaluation.scores import Solution
from treepref.loops.session import Session
from treepref.loops.stored import stored_solutions
from treepref.report.reading import Attempt, Outcome, Reading
from treepref.runs.stage import Stage
from treepref.search.base import solution_tokens
from treepref.training.pairs import is_right
from treepref.types import Node, Problem, Tree

READ_TREES = 256
"""Trees of a search whose solutions are read again; of larger ones the first by key."""


def evaluation_reading(session: Session, stage: Stage) -> Reading:
    """The stored solutions of one decoder, e.g. `round-0/eval/greedy`, as far as it has come."""
    gold = {problem.id: problem.answer for problem in session.problems("eval")}
    rows = stored_solutions(session.store, stage)
    return Reading.of(
        Attempt(row.problem_id, _outcome(session, row), row.text, row.answer, gold.get(row.problem_id, ""))
        for row in rows
    )


def _outcome(session: Session, row: Solution) -> Outcome:
    if row.correct:
        return "right"
    if not row.finished:
        return "cut"
    return _missed(session, row.answer)


def _missed(session: Session, read: str | None) -> Outcome:
    """A user's checker is given the whole text: to it nothing is unreadable."""
    return "unreadable" if read is None and session.task.own_checker is None else "wrong"


def search_summary(session: Session, stage: Stage) -> dict[str, Any] | None:
    """What a search has found so far, as results.json has it; None where it has no tree yet.

    `stage`: `round-K/search`, or `round-K/labels` of dpo_st.
    """
    rows = list(session.store.tree_rows(stage))
    if not rows:
        return None
    solved, mixed = sum(row.right > 0 for row in rows), sum(row.mixed for row in rows)
    tokens = session.store.cost(stage).generated_tokens
    return {
        "stage": str(stage),
        "round": stage.round,
        "trees": len(rows),
        "solved": solved,
        "mixed": mixed,
        "unsolved": len(rows) - solved,
        "tokens": tokens,
        "right_per_1000_tokens": _per_1000(sum(row.right for row in rows), tokens),
        "wrong_per_1000_tokens": _per_1000(sum(row.wrong for row in rows), tokens),
        "trees_read": min(len(rows), READ_TREES),
    } | search_reading(session, stage).as_dict()


def _per_1000(solutions: int, tokens: int) -> float | None:
    """Different solutions of a tree for every 1,000 tokens sampled."""
    return 1000 * solutions / tokens if tokens else None


def search_reading(session: Session, stage: Stage) -> Reading:
    """The solutions of a search's trees, equal ones of a tree counted once; of its first `READ_TREES` trees."""
    trees = islice(session.store.trees(stage), READ_TREES)
    return Reading.of(attempt for tree in trees for attempt in _attempts(session, tree))


def _attempts(session: Session, tree: Tree) -> Iterator[Attempt]:
    problem, seen = problem_of(session, tree.problem_id), set()
    for node in tree.nodes:
        if problem is None or not node.terminal or node.reward is None or (tokens := solution_tokens(node)) in seen:
            continue
        seen.add(tokens)
        if is_right(node):
            yield Attempt(tree.problem_id, "right", None, None, problem.answer)
        elif node.finish != "eos":
            yield Attempt(tree.problem_id, "cut", _text(session, node), None, problem.answer)
        else:
            text = _text(session, node)
            read = session.task.canonical(text, problem)
            yield Attempt(tree.problem_id, _missed(session, read), text, read, problem.answer)


def _text(session: Session, node: Node) -> str:
    tokens = solution_tokens(node)
    return session.text.finished(tokens) if node.finish == "eos" else session.text.decode(tokens)


def problem_of(session: Session, problem_id: str) -> Problem | None:
    """A problem that is searched; dpo_st searches the labelled ones too."""
    store = session.store
    return store.problem("train", problem_id) or store.problem("labelled", problem_id)
