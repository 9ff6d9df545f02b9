"""The stages that make training data: search the training problems, then turn the trees into preferences."""

from __future__ import annotations

from dataclasses import asdict

from treepref.driver import Job, drive
from treepref.errors import TooFewPairs
from treepref.loops.session import Session
from treepref.preferences import PairStats, sibling_pairs, solution_pairs
from treepref.progress import stage_progress
from treepref.search.mcts import Mcts
from treepref.types import Cost, Pair, Tree, new_tree


def search_rules(session: Session, round: int) -> Mcts:
    """The search of a round, from the recipe."""
    config, task = session.recipe.search, session.recipe.task
    first = config.first_temperature if round == 1 else None
    return Mcts(
        simulations=config.simulations, children=config.children, c=config.c, temperature=first or config.temperature,
        top_p=config.top_p, max_depth=config.max_depth, max_step_tokens=config.max_step_tokens,
        max_context=session.engine.max_context, leaves_in_flight=config.leaves_in_flight, delimiter=task.delimiter,
        evaluate=config.evaluate, seed=session.recipe.seed,
    )  # fmt: skip


def search(session: Session, round: int) -> None:
    """Grow a tree on every training problem with the policy that round − 1 ended with.

    Resumes at the expansion. Raises BudgetError where a limit stops it.
    """
    stage = f"round-{round}/search"
    if not session.begin(stage):
        return
    version = round - 1
    engine, store, recipe = session.serve(version), session.store, session.recipe
    rules = search_rules(session, round)
    total = store.count_problems("train")
    done = store.count_trees(stage)
    before, judge = engine.cost + Cost(), session.judge("train")
    stop = session.stop_reason(lambda: engine.cost - before)
    with stage_progress(f"round {round}: search", total, unit="trees", done=done) as bar:
        todo = (p for p in session.problems("train") if not store.has_tree(stage, p.id))
        report = drive(
            (Job(new_tree(p.id, p.id, session.encode(p.question), version), rules, judge) for p in todo),
            engine,
            run_seed=recipe.seed + 1_000_003 * round,
            trees_in_flight=recipe.search.trees_in_flight,
            journal=store.journal(stage, version),
            on_done=lambda job: store.finish_tree(stage, job.tree),
            on_progress=lambda p: bar.update(done=done + p.trees, tokens=p.tokens),
            stop=stop,
        )
    session.require_done(report, stop)
    store.finish_stage(stage, {"trees": store.count_trees(stage), "mixed": store.count_trees(stage, mixed=True)})


def pairs_of(session: Session, tree: Tree) -> list[Pair]:
    """The tree's preferences at the level that the recipe asks for."""
    config = session.recipe.pairs
    return solution_pairs(tree, config) if config.level == "solution" else sibling_pairs(tree, config)


def make_pairs(session: Session, round: int) -> None:
    """Turn the round's trees into preferences. Raises TooFewPairs, with advice, where too few problems give any."""
    stage = f"round-{round}/pairs"
    if not session.begin(stage):
        return
    store, config = session.store, session.recipe.pairs
    stats = PairStats()
    pairs: list[Pair] = []
    for tree in store.trees(f"round-{round}/search"):
        found = pairs_of(session, tree)
        pairs += found
        stats.add(tree, found)
    with store.transaction():
        store.put_pairs(round, pairs)
        if stats.paired >= config.min_problems:
            store.finish_stage(stage, asdict(stats))
    if stats.paired < config.min_problems:
        raise TooFewPairs(_advice(stats, config.min_problems, round))


def _advice(stats: PairStats, wanted: int, round: int) -> str:
    """Why there is too little to learn from, and what to do about it."""
    unsolved, always = stats.trees - stats.solved, stats.solved - stats.mixed
    if unsolved > always:
        why = (
            "most others were never solved: take easier problems, more samples (search.simulations, search.children), "
            "or a stronger warm-up (warmup.epochs, task.splits.labelled)"
        )
    else:
        why = "most others were never missed: take harder problems, or a higher search.temperature"
    return (
        f"round {round}: only {stats.paired} problems gave a pair, pairs.min_problems asks for {wanted}. Of "
        f"{stats.trees} trees {unsolved} found no right solution and {always} no wrong one; {why}. More problems "
        "(task.splits.train) or looser filters (pairs.min_gap, pairs.min_visits) help too. Nothing was trained: so few "
        "would fit noise."
    )
