"""Judges the stored solutions of a run anew, in a copy: the problems, the first search and round 0 with other verdicts.

Nothing is sampled again. What follows from verdicts (pairs, training, later rounds) is then made anew in the copy; the
values that guided the first search stay those that it had, fitted to the verdicts of then.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from treepref.config import SvpoRecipe
from treepref.errors import RecipeError
from treepref.loops.answers import outcome_of
from treepref.loops.evaluate import summarise
from treepref.loops.fork import copy_first_search
from treepref.loops.serving import join_of
from treepref.loops.session import Session
from treepref.loops.stored import stored_solutions
from treepref.progress import stage_progress
from treepref.runs.results import plain
from treepref.runs.stage import Stage, round_policy
from treepref.search.base import path_nodes, solution_tokens
from treepref.types import Node

FREE = ("name", "rounds", "budget.", "task.checker", "task.answer", "task.pass_score", "task.check_seconds")
"""Keys (or their sections) in which a rejudged run may differ."""


def rejudge(run: Path, out: Path, overrides: list[str]) -> None:
    """Copy `run` as it stood after its first search to `out`, judged by the recipe's checker with `overrides`.

    Raises RecipeError for a change outside `FREE`, for a checker that fails, and for a search whose outcomes were
    sampled and not kept; StoreError as `fork` does.
    """
    copy_first_search(run, out, overrides, FREE, "only how answers are judged may change", _judge_anew)


def _judge_anew(folder: Path) -> None:
    with Session(folder) as session:
        if isinstance(session.recipe, SvpoRecipe) and session.recipe.search.evaluate == "rollout":
            raise RecipeError("search.evaluate is rollout: what its samples answered was not kept, only their outcome")
        judged = changed = 0
        stages = [row.stage for row in session.store.stages() if row.stage is not None and row.done]
        for stage in stages:
            if stage.name in ("values", "search", "labels"):
                found = _trees(session, stage)
            elif stage.name == "eval" and stage.part is not None:
                found = _evaluation(session, stage)
            else:
                continue
            judged, changed = judged + found[0], changed + found[1]
        _summary(session, [stage.part for stage in stages if stage.name == "eval" and stage.part is not None])
        said = f"answers were judged anew: of {judged:,} solutions {changed:,} have another outcome now"
        session.store.event("run", "info", said)


def _trees(session: Session, stage: Stage) -> tuple[int, int]:
    """(solutions, those with another outcome now) of a stage's trees; their nodes' Q follows."""
    judged = changed = 0
    store = session.store
    with stage_progress(f"judge {stage}", store.count_trees(stage), unit="trees") as bar:
        for tree in store.trees(stage):
            problem = session.view.searched_problem(tree.problem_id)
            assert problem is not None, f"{tree.problem_id} is searched and no problem of the run"
            before = changed
            for node in tree.nodes:
                if not node.terminal or node.finish != "eos" or node.reward is None:
                    continue
                tokens = solution_tokens(node)
                verdict = session.answers.check(tokens, problem, stage=stage, policy=tree.policy)[1]
                judged, changed = judged + 1, changed + _set_reward(node, outcome_of(verdict))
            if changed > before:
                store.replace_tree(stage, tree)
            bar.advance()
    return judged, changed


def _set_reward(node: Node, reward: float) -> bool:
    """Every visit of a finished solution backed its outcome up the tree: the difference goes the same way."""
    assert node.reward is not None
    difference = reward - node.reward
    if not difference:
        return False
    node.reward = reward
    root = node
    while root.parent is not None:
        root = root.parent
    for above in (root, *path_nodes(node)):
        above.total += difference * node.visits
    return True


def _evaluation(session: Session, stage: Stage) -> tuple[int, int]:
    problems = {problem.id: problem for problem in session.problems("eval")}
    checker, rows, changed = session.answers.checker, [], 0
    found = stored_solutions(session.store, stage)
    for one in found:
        if one.finished and one.text is not None:
            verdict = checker.check(one.text, problems[one.problem_id])
            changed += verdict.correct != one.correct
            one = replace(one, correct=verdict.correct, answer=verdict.answer, strict=verdict.strict)
        rows.append((one.problem_id, one.sample, one.as_row()))
    session.store.put_outcomes(stage, rows)
    return len(found), changed


def _summary(session: Session, decoders: list[str]) -> None:
    join = join_of(session.serving.policy(round_policy(0)))
    session.store.set_meta("summary/0", plain(summarise(session, 0, decoders, join)))
