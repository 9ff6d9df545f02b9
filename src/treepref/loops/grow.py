"""Growing a stage's trees: many at a time on the run's engine, journalled, until done or a limit is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from treepref.config import TreeRecipe
from treepref.driver import DriveReport, Job, Progress, drive
from treepref.loops.session import Session
from treepref.progress import stage_progress
from treepref.runs.stage import Stage
from treepref.search.base import Judge, Search
from treepref.search.limits import Limits
from treepref.types import PolicyId, Problem, Tree, new_tree

Keep = Callable[[Job], None]
"""Stores a tree that is done."""


def tree_job(session: Session, problem: Problem, rules: Search, judge: Judge, policy: PolicyId) -> Job:
    """A tree to grow on a problem."""
    tree = new_tree(problem.id, problem.id, session.text.encode(problem.question), policy)
    return job(session, tree, rules, judge)


def job(session: Session, tree: Tree, rules: Search, judge: Judge) -> Job:
    """A tree to grow as the run's task has it."""
    task = session.recipe.task
    return Job(tree, rules, judge, tool=task.tool, ends=tuple(task.stop))


def search_limits(session: Session, round: int) -> Limits:
    """How a round's search samples with the run's engine."""
    return limits_of(session.recipe_of(TreeRecipe), round, session.serving.engine.limits.max_context)


def limits_of(recipe: TreeRecipe, round: int, context: int) -> Limits:
    """How a round's search samples: the first may have a temperature of its own. `context`: what the engine takes."""
    limits = Limits.of(recipe.search, context, recipe.task.delimiter)
    first = recipe.search.first_temperature if round == 1 else None
    return limits if first is None else replace(limits, temperature=first)


def grow(
    session: Session,
    stage: Stage,
    jobs: Iterable[Job],
    *,
    policy: PolicyId,
    seed: int,
    at_once: int,
    title: str,
    total: int,
    done: int,
    unit: str = "trees",
    keep: Keep | None = None,
) -> None:
    """Grow trees with the policy that serves, under a bar. `jobs` leaves out the `done` of `total` that are stored.

    `seed`: what is added to the run's, so that stages draw apart. `at_once`: trees in flight. `keep`: what is done with
    a tree; None stores it in the stage. Raises BudgetError where a limit stops it, EngineError where the engine fails.
    """
    stop = session.stop_reason()
    with stage_progress(title, total, unit=unit, done=done) as bar:
        report = grow_some(
            session, stage, jobs, policy=policy, seed=seed, at_once=at_once, keep=keep, stop=stop,
            on_progress=lambda p: bar.update(done=done + p.trees, tokens=p.tokens),
        )  # fmt: skip
    session.require_done(report, stop)


def grow_some(
    session: Session,
    stage: Stage,
    jobs: Iterable[Job],
    *,
    policy: PolicyId,
    seed: int,
    at_once: int,
    stop: Callable[[], str | None],
    on_progress: Callable[[Progress], None],
    keep: Keep | None = None,
) -> DriveReport:
    """The same under a bar and a limit of the caller's own, which must look at why it stopped."""
    store = session.store
    return drive(
        jobs,
        session.serving.engine,
        run_seed=session.recipe.seed + seed,
        trees_in_flight=at_once,
        journal=store.journal(stage, policy),
        on_done=keep or (lambda job: store.finish_tree(stage, job.tree)),
        on_progress=on_progress,
        stop=stop,
    )
