"""The stages that make training data: search the training problems, then turn the trees into preferences.

Ground truth in the search (a hint, injected reference steps) is put in here, problem by problem, and nowhere else:
decoding and evaluation are given questions and make their own searches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace

from treepref.config import MctsDpoRecipe, PairConfig, SelfEvaluationConfig, SvpoRecipe, TreeRecipe
from treepref.driver import Job
from treepref.errors import RecipeError, TooFewPairs
from treepref.loops.grow import grow, search_limits, tree_job
from treepref.loops.reading import search_reading
from treepref.loops.scores import score_of
from treepref.loops.session import Session
from treepref.loops.values import FIRST
from treepref.models.steps import split_steps
from treepref.models.text import choice_of, encode_solution
from treepref.report.reading import Reading, example_line, summary_line
from treepref.runs.stage import Stage, round_policy
from treepref.runs.store import Store
from treepref.search.base import Judge, Search
from treepref.search.episodes import EpisodeMcts
from treepref.search.limits import Limits
from treepref.search.mcts import Mcts
from treepref.training.pairs import PairStats, TextOf, sibling_pairs, solution_pairs, trace_pairs
from treepref.types import Choice, Join, Pair, PolicyId, Problem, Tree

Rules = Callable[[Problem], Search]
"""The search of a problem."""


def mcts_rules(session: Session, round: int) -> Rules:
    """SVPO's search of a round, for each problem."""
    rules = mcts_of(session.recipe_of(SvpoRecipe), search_limits(session, round), session.serving.join())
    return lambda problem: rules


def mcts_of(recipe: SvpoRecipe, limits: Limits, join: Join | None = None) -> Mcts:
    """SVPO's search as a recipe has it."""
    config = recipe.search
    return Mcts(
        simulations=config.simulations, children=config.children, root_children=config.root_children, c=config.c,
        leaves_in_flight=config.leaves_in_flight, evaluate=config.evaluate, score=score_of(config.score), join=join,
        seed=recipe.seed, limits=limits,
    )  # fmt: skip


def episode_rules(session: Session, round: int) -> Rules:
    """MCTS-DPO's search of a round for each problem: with its question, and its reference where that is wanted."""
    recipe, context = session.recipe_of(MctsDpoRecipe), session.serving.engine.limits.max_context
    config = recipe.search
    plain = episodes_of(recipe, search_limits(session, round))
    asked, weight = _questions(session), config.self_evaluation.weight if config.self_evaluation else 0.0

    def rules(problem: Problem) -> EpisodeMcts:
        choice = asked(problem)
        room = context - len(choice.suffix) - len(choice.after_eos) if choice else context
        steps = reference_steps(session, problem) if config.inject_reference else ()
        return replace(
            plain, choice=choice, weight=weight, limits=replace(plain.limits, max_context=room), reference=steps
        )

    return rules


def episodes_of(recipe: MctsDpoRecipe, limits: Limits) -> EpisodeMcts:
    """MCTS-DPO's search as a recipe has it, without what a problem adds."""
    config = recipe.search
    return EpisodeMcts(
        simulations=config.simulations, children=config.children, root_children=config.root_children, c=config.c,
        length_power=config.length_power, seed=recipe.seed, limits=limits,
    )  # fmt: skip


def _questions(session: Session) -> Callable[[Problem], Choice | None]:
    """The self-evaluation question of each problem: the same for all, but for a hint."""
    config, tokenizer, delimiter = (
        session.recipe_of(MctsDpoRecipe).search.self_evaluation,
        session.text.tokenizer,
        session.task.delimiter,
    )
    if config is None:
        return lambda problem: None

    def choice(problem: Problem | None) -> Choice:
        text = self_evaluation_text(config, session.task.self_evaluation, problem)
        return choice_of(tokenizer, text, (config.right, config.wrong), after_eos=delimiter)

    if config.hint:
        return choice
    common = choice(None)
    return lambda problem: common


def self_evaluation_text(config: SelfEvaluationConfig, default: str, hinted: Problem | None) -> str:
    """What is asked after the solution so far: a worked example, if the recipe has one, and the question.

    `hinted`: the problem whose reference answer is shown, in the place of `{answer}` or in a line before the question.
    Raises RecipeError where the question wants an answer and no hint is allowed.
    """
    question = default if config.question is None else config.question
    if hinted is None:
        if "{answer}" in question:
            raise RecipeError(
                "search.self_evaluation.question shows {answer}, the ground truth, but search.self_evaluation.hint is "
                "false: allow it, or take {answer} out"
            )
    elif "{answer}" in question:
        question = question.replace("{answer}", hinted.answer)
    else:
        question = f"The correct answer is {hinted.answer}.\n{question}"
    return question if config.example is None else config.example.rstrip("\n") + "\n" + question


def reference_steps(session: Session, problem: Problem) -> tuple[tuple[int, ...], ...]:
    """The steps of the problem's own rationale as the policy would write them, EOS in the last; none without one."""
    if problem.rationale is None:
        return ()
    tokenizer = session.text.tokenizer
    text = session.task.solution_text(problem, random.Random(f"{session.recipe.seed}/reference/{problem.id}"))
    tokens = encode_solution(tokenizer, text, session.serving.eos_id)
    steps, start = [], 0
    for length in split_steps(tokenizer, tokens, session.task.delimiter):
        steps.append(tokens[start : start + length])
        start += length
    return tuple(steps)


def search(session: Session, round: int, rules_of: Callable[[Session, int], Rules]) -> None:
    """Grow a tree on every training problem with the policy that round − 1 ended with, by the method's rules.

    Resumes at the expansion. Raises BudgetError where a limit stops it.
    """
    stage, policy, store = Stage(round, "search"), round_policy(round - 1), session.store
    if not session.begin(stage):
        return
    session.serving.serve(policy)
    rules, judge = rules_of(session, round), session.answers.judge(stage, "train")
    grow(
        session, stage, search_jobs(session, round, session.problems("train"), rules, judge, policy),
        policy=policy, seed=search_seed(round), at_once=session.recipe_of(TreeRecipe).search.trees_in_flight,
        title=f"round {round}: search", total=store.count_problems("train"), done=store.count_trees(stage),
    )  # fmt: skip
    finish_search(session, round)


def search_seed(round: int) -> int:
    """What is added to the run's seed, so that rounds draw apart."""
    return 1_000_003 * round


def search_jobs(
    session: Session, round: int, problems: Iterable[Problem], rules: Rules, judge: Judge, policy: PolicyId
) -> Iterator[Job]:
    """The trees of those `problems` that have none yet in this round."""
    stage = Stage(round, "search")
    for problem in problems:
        if not session.store.has_tree(stage, problem.id):
            yield tree_job(session, problem, rules(problem), judge, policy)


def finish_search(session: Session, round: int) -> None:
    """Every problem of the round has its tree."""
    stage, store = Stage(round, "search"), session.store
    if round == 1 and (said := against_plain_samples(store)):
        store.event(stage, "info", said)
    store.finish_stage(stage, {"trees": store.count_trees(stage), "mixed": store.count_trees(stage, mixed=True)})


def against_plain_samples(store: Store) -> str | None:
    """What the first search found for its tokens, beside the plain samples of the first values; None without these."""
    lines: list[str] = []
    shares: list[float] = []
    for name, stage in (("search", Stage(1, "search")), ("plain samples", FIRST)):
        rows, tokens = list(store.tree_rows(stage)), store.cost(stage).generated_tokens
        if not rows or not tokens:
            return None
        solved, mixed = sum(row.right > 0 for row in rows) / len(rows), sum(row.mixed for row in rows) / len(rows)
        right, wrong = (1000 * sum(n) / tokens for n in ((row.right for row in rows), (row.wrong for row in rows)))
        shares.append(mixed)
        lines.append(
            f"{name}: {solved:.0%} of {len(rows)} problems solved, {mixed:.0%} with right and wrong solutions, at "
            f"{tokens / len(rows):.0f} tokens each; {right:.1f} right and {wrong:.1f} wrong solutions per 1,000 tokens"
        )
    more = ". The search found less than plain samples do: search.evaluate=rollout, more search.simulations or more "
    more = "" if shares[0] >= shares[1] else f"{more}value.problems may find more"
    return f"{'; '.join(lines)}{more}"


def pairs_of(session: Session, tree: Tree) -> list[Pair]:
    """The tree's preferences, as the recipe asks for them."""
    return tree_pairs(tree, session.recipe_of(TreeRecipe).pairs, session.text.decode)


def tree_pairs(tree: Tree, config: PairConfig, text: TextOf) -> list[Pair]:
    """A tree's preferences at the level and by the rule of the configuration; `text` decodes a step."""
    if config.level == "solution":
        return solution_pairs(tree, config, text)
    return trace_pairs(tree, config, text) if config.rule == "trace" else sibling_pairs(tree, config, text)


@dataclass(frozen=True, slots=True)
class AdviceKeys:
    """The recipe keys that advice names."""

    samples: str = "search.simulations, search.children"
    """For more samples."""
    variety: str = "search.temperature"
    """For more various ones."""
    filters: str = "pairs.min_gap, pairs.min_visits"
    """For more pairs of them."""
    lengths: str = "search.max_step_tokens, search.max_depth"
    """What cuts a solution."""


SEARCH_KEYS = AdviceKeys()


def make_pairs(
    session: Session,
    round: int,
    rule: Callable[[Session, Tree], list[Pair]] = pairs_of,
    keys: AdviceKeys = SEARCH_KEYS,
) -> None:
    """Turn the round's trees into preferences. Raises TooFewPairs, with advice, where too few problems give any."""
    stage = Stage(round, "pairs")
    if not session.begin(stage):
        return
    store, config = session.store, session.recipe.pairs
    stats = PairStats()
    pairs: list[Pair] = []
    for tree in store.trees(Stage(round, "search")):
        found = rule(session, tree)
        pairs += found
        stats.add(tree, found)
    with store.transaction():
        store.put_pairs(round, pairs)
        if stats.paired >= config.min_problems:
            store.finish_stage(stage, asdict(stats))
    if stats.paired < config.min_problems:
        outcome = "Nothing was trained: so few would fit noise."
        read = search_reading(session.view, Stage(round, "search"))
        raise TooFewPairs(advice(stats, read, config.min_problems, round, outcome, keys))


def advice(
    stats: PairStats, read: Reading, wanted: int, round: int, outcome: str, keys: AdviceKeys = SEARCH_KEYS
) -> str:
    """Why there is too little to learn from, what was read of the solutions, and what to do about it.

    `read`: the solutions of the round's trees. `outcome` says what became of the round.
    """
    unsolved, always = stats.trees - stats.solved, stats.solved - stats.mixed
    more = f"More problems (task.splits.train) or looser filters ({keys.filters}) help too."
    after = f"Only then do more samples ({keys.samples}), more problems or looser filters ({keys.filters}) help."
    if unsolved > always and read.mostly == "unreadable":
        why, more = (
            "answers cannot be read: see task.answer (in most wrong solutions none was found)",
            after,
        )
    elif unsolved > always and read.mostly == "cut":
        why, more = f"most wrong solutions were cut before their end: raise {keys.lengths}", after
    elif unsolved > always:
        why = (
            f"most others were never solved: take easier problems, more samples ({keys.samples}), "
            "or a stronger warm-up (warmup.epochs, task.splits.labelled)"
        )
    else:
        why = f"most others were never missed: take harder problems, or a higher {keys.variety}"
    lines = [
        f"round {round}: only {stats.paired} problems gave a pair, pairs.min_problems asks for {wanted}. Of "
        f"{stats.trees} trees {unsolved} found no right solution and {always} no wrong one; {why}. {more} {outcome}",
        f"What was read: {summary_line(read.outcomes())}.",
        *(f"  {example_line(example)}" for example in read.outcomes().examples),
    ]
    return "\n".join(lines)
