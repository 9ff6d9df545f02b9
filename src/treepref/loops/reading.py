"""What was read of a run's stored solutions: those of its evaluations and of its search trees. Needs no model.

Knows the store and the run's task; what is counted and shown of it is in `treepref/report/reading.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from weakref import WeakKeyDictionary

from treepref.evaluation.scores import Solution
from treepref.loops.stored import stored_solutions
from treepref.loops.text import Text
from treepref.report.reading import Attempt, Reading
from treepref.runs.results import Outcome
from treepref.runs.stage import Stage
from treepref.runs.view import RunView
from treepref.search.base import solution_tokens
from treepref.training.pairs import is_right
from treepref.types import Node, Tree

_texts: WeakKeyDictionary[RunView, Text] = WeakKeyDictionary()
"""Of each view one, for it looks into the chat template."""
READ_TREES = 256
"""Trees of a search whose solutions are read again; of larger ones the first by key."""


def evaluation_reading(view: RunView, stage: Stage) -> Reading:
    """The stored solutions of one decoder, e.g. `round-0/eval/greedy`, as far as it has come."""
    gold = {problem.id: problem.answer for problem in view.problems("eval")}
    rows = stored_solutions(view.store, stage)
    return Reading.of(
        Attempt(row.problem_id, _outcome(view, row), row.text, row.answer, gold.get(row.problem_id, "")) for row in rows
    )


def _outcome(view: RunView, row: Solution) -> Outcome:
    if row.correct:
        return "right"
    if not row.finished:
        return "cut"
    return _missed(view, row.answer)


def _missed(view: RunView, read: str | None) -> Outcome:
    """A user's checker is given the whole text: to it nothing is unreadable."""
    return "unreadable" if read is None and view.task.own_checker is None else "wrong"


def search_reading(view: RunView, stage: Stage) -> Reading:
    """The solutions of a search's trees, equal ones of a tree counted once; of its first `READ_TREES` trees."""
    trees = islice(view.store.trees(stage), READ_TREES)
    return Reading.of(attempt for tree in trees for attempt in attempts_of(view, tree))


def attempts_of(view: RunView, tree: Tree, *, right_too: bool = False) -> Iterator[Attempt]:
    """What was read of a tree's solutions, equal ones once. `right_too`: the text of right ones as well."""
    problem, seen = view.searched_problem(tree.problem_id), set()
    for node in tree.nodes:
        if problem is None or not node.terminal or node.reward is None or (tokens := solution_tokens(node)) in seen:
            continue
        seen.add(tokens)
        if is_right(node):
            yield Attempt(tree.problem_id, "right", _text(view, node) if right_too else None, None, problem.answer)
        elif node.finish != "eos":
            yield Attempt(tree.problem_id, "cut", _text(view, node), None, problem.answer)
        else:
            text = _text(view, node)
            read = view.task.canonical(text, problem)
            yield Attempt(tree.problem_id, _missed(view, read), text, read, problem.answer)


def _text(view: RunView, node: Node) -> str:
    tokens = solution_tokens(node)
    if (text := _texts.get(view)) is None:
        text = _texts[view] = Text(view.recipe.task, view.task, lambda: view.tokenizer)
    return text.finished(tokens) if node.finish == "eos" else text.decode(tokens)
