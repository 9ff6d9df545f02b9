"""DPO-ST (arXiv 2407.18248, Algorithm 1): self-training, each round's pseudo-labels sampled from a DPO-tuned model.

    L: labelled problems (question, rationale, answer);  U: questions with answers only, those of L among them
    π₀ ← SFT of the base model on L                                                      (learn.warm_up)
    for r = 1 … rounds:
        DPO step  trees ← solutions of U sampled from π_{r−1}; L's rationales and earlier samples beside them (sample)
                  pairs ← right over wrong, near-duplicates dropped, the least similar kept                (make_pairs)
                  π_d   ← minimise L_DPO from π_{r−1}, which is the reference too                             (prefer)
        SFT step  P     ← P ∪ right solutions of U sampled from π_d, near-duplicates dropped                   (label)
                  π_r   ← SFT of the base model on L ∪ P, so many solutions a problem at most                (retrain)
        evaluate π_r; stop once greedy accuracy no longer improves

Plain self-training (self_training.dpo=false) leaves the DPO step out and samples P from π_{r−1}. Every stage finds out
for itself what is done already, so running the loop again goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from treepref.config import DpoStRecipe, SelfTrainingConfig
from treepref.driver import Job
from treepref.loops import collect, learn
from treepref.loops.evaluate import evaluate
from treepref.loops.grow import grow, tree_job
from treepref.loops.order import Order
from treepref.loops.session import Session
from treepref.loops.stored import stored_summary
from treepref.runs.stage import Stage, dpo_policy, round_policy
from treepref.search.limits import Limits
from treepref.search.sampling import Sampling
from treepref.training.examples import example_from_solution
from treepref.training.pairs import is_right
from treepref.training.selection import distinct, least_similar_pairs, solutions_cap
from treepref.types import Node, Pair, PolicyId, Problem, Tree

Tokens = tuple[int, ...]
POOLS = ("labelled", "train")
"""The splits whose questions are sampled: U holds the labelled questions too, read there without their rationales."""
_SEEDS = {"search": 0, "labels": 500_009}
"""Keeps the samples of a round's two stages independent of each other."""


def dpo_st(session: Session) -> None:
    """The algorithm."""
    config = session.recipe_of(DpoStRecipe).self_training
    learn.warm_up(session)
    evaluate(session, 0)
    for round in range(1, session.recipe.rounds + 1 if config.pseudo_labels else 1):
        if config.dpo:
            sample(session, round)
            make_pairs(session, round)
            prefer(session, round)
        label(session, round)
        retrain(session, round)
        evaluate(session, round)
        if _stop(session, round):
            break


# ---- the DPO step ----------------------------------------------------------------------------------------------------


def sample(session: Session, round: int) -> None:
    """Solutions of every question from the SFT model of round − 1: trees of depth one in `round-R/search`.

    Beside the samples stand, scored by the same model, a labelled problem's gold rationale and the finished solutions
    of the rounds before: the pool grows, and what is recorded with it are the reference's log-probs.
    """
    config = session.recipe_of(DpoStRecipe).self_training

    def given(problem: Problem) -> tuple[Tokens, ...]:
        gold = _gold(session, problem) if config.gold_positive else ()
        return tuple(dict.fromkeys((*gold, *_earlier(session, problem, round))))

    _sample(session, Stage(round, "search"), policy=round_policy(round - 1), n=config.dpo_samples, given=given)


def make_pairs(session: Session, round: int) -> None:
    """The round's preferences: right over wrong, the least similar ones of each problem."""
    config = session.recipe_of(DpoStRecipe).self_training

    def rule(session: Session, tree: Tree) -> list[Pair]:
        gold = _gold(session, _problem(session, tree.problem_id)) if config.gold_positive else ()
        return least_similar_pairs(
            tree,
            at_most=config.similarity,
            limit=config.pairs_per_problem,
            first=gold,
            text_of=session.text.decode,
        )

    keys = collect.AdviceKeys(
        samples="self_training.dpo_samples", variety="self_training.temperature", filters="self_training.similarity",
        lengths="self_training.max_tokens",
    )  # fmt: skip
    collect.make_pairs(session, round, rule, keys)


def prefer(session: Session, round: int) -> None:
    """The round's DPO model, from the SFT model of round − 1 and the round's pairs. It is kept in `round-R-dpo`."""
    learn.train(session, Stage(round, "dpo"), dpo_policy(round))


# ---- the SFT step ----------------------------------------------------------------------------------------------------


def label(session: Session, round: int) -> None:
    """Solutions of every question from the DPO model (without DPO from the SFT model): trees in `round-R/labels`."""
    config = session.recipe_of(DpoStRecipe).self_training
    policy = dpo_policy(round) if config.dpo else round_policy(round - 1)
    _sample(session, Stage(round, "labels"), policy=policy, n=config.label_samples)


def retrain(session: Session, round: int) -> None:
    """SFT of the base model, as in the warm-up, on the labelled problems and the pseudo-labels of all rounds so far."""
    stage = Stage(round, "train")
    if not session.begin(stage):
        return
    labels = pseudo_labels(session, round)
    examples = [
        example_from_solution(tree.prompt, node.tokens, id=f"{epoch}/{tree.problem_id}/{i}", forced=node.forced)
        for tree, nodes in labels
        for i, node in enumerate(nodes)
        for epoch in range(session.recipe.warmup.epochs)
    ]
    session.store.event(
        stage, "info", f"{sum(len(nodes) for _, nodes in labels)} pseudo-labels of {len(labels)} problems"
    )
    learn.fine_tune(session, stage, round_policy(round), more=examples)


def pseudo_labels(session: Session, round: int) -> list[tuple[Tree, list[Node]]]:
    """Right solutions sampled up to a round, by problem: near-duplicates dropped, as many a problem as the cap allows.

    A labelled problem's rationale comes first and counts; then the older rounds before the newer.
    """
    config = session.recipe_of(DpoStRecipe).self_training
    found: list[tuple[Tree, int, list[Node]]] = []
    for problem in _problems(session):
        trees = _trees(session, problem, "labels", range(1, round + 1))
        nodes = [node for tree in trees for node in tree.root.children if is_right(node)]
        gold = _gold(session, problem)
        kept = distinct([*gold, *(node.tokens for node in nodes)], config.similarity)
        if kept:
            found.append((trees[0], len(gold), [nodes[i - len(gold)] for i in kept if i >= len(gold)]))
    cap = solutions_cap((gold + len(nodes) for _, gold, nodes in found), config.cap_percentile)
    return [(tree, nodes[: cap - gold]) for tree, gold, nodes in found if nodes[: cap - gold]]


def _stop(session: Session, round: int) -> bool:
    """Whether the rounds end here, and say so. Judged on the eval split, as the paper judges on a validation set."""
    patience = session.recipe_of(DpoStRecipe).self_training.patience
    accuracies = [_greedy_accuracy(session, k) for k in range(round + 1)]
    if round == session.recipe.rounds or improves(accuracies, patience):
        return False
    best = max(range(round + 1), key=lambda k: (accuracies[k], -k))
    session.store.event(
        Stage(round, "eval"), "info",
        f"stopped after round {round}: no better greedy accuracy in {patience} round(s); round {best} is the best",
    )  # fmt: skip
    return True


def _greedy_accuracy(session: Session, round: int) -> float:
    found = stored_summary(session.store, round)
    with session.store.sound(f"the summary of round {round}"):
        greedy = found.eval.get("greedy") if found else None
        if greedy is None:
            raise ValueError("it has no greedy accuracy")
        return greedy.accuracy


def improves(accuracies: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` rounds hold a better accuracy than all before them. 0: never asked, always true."""
    if not patience or len(accuracies) <= patience:
        return True
    return max(accuracies[-patience:]) > max(accuracies[:-patience])


# ---- sampling --------------------------------------------------------------------------------------------------------


def _sample(
    session: Session,
    stage: Stage,
    *,
    policy: PolicyId,
    n: int,
    given: Callable[[Problem], tuple[Tokens, ...]] = lambda problem: (),
) -> None:
    """Grow a tree of depth one on every question with a policy. Resumes at the problem.

    Raises BudgetError where a limit stops it.
    """
    if not session.begin(stage):
        return
    store, config = session.store, session.recipe_of(DpoStRecipe).self_training
    context, judge = session.serving.serve(policy).limits.max_context, session.answers.judge(stage, *POOLS)

    def job(problem: Problem) -> Job:
        room = min(config.max_tokens, context - len(session.text.encode(problem.question)))
        fitting = tuple(tokens for tokens in given(problem) if len(tokens) <= room)
        return tree_job(session, problem, sampling_of(config, n, context, fitting), judge, policy)

    def keep(job: Job) -> None:
        for node in job.tree.root.children:
            node.forced = node.forced or session.text.forced(node.tokens)  # given solutions come without a mask
        store.finish_tree(stage, job.tree)

    grow(
        session, stage, (job(problem) for problem in _problems(session) if not store.has_tree(stage, problem.id)),
        policy=policy, seed=collect.search_seed(stage.round) + _SEEDS[stage.name],
        at_once=session.recipe.engine.max_rows, title=f"round {stage.round}: {stage.name}", unit="problems",
        total=sum(map(store.count_problems, POOLS)), done=store.count_trees(stage), keep=keep,
    )  # fmt: skip
    right = sum(row.right for row in store.tree_rows(stage))
    trees, mixed = store.count_trees(stage), store.count_trees(stage, mixed=True)
    store.finish_stage(stage, {"trees": trees, "mixed": mixed, "distinct_right": right})


def sampling_of(config: SelfTrainingConfig, n: int, context: int, given: tuple[Tokens, ...] = ()) -> Sampling:
    """Whole solutions of a problem, and those that are `given` beside them."""
    limits = Limits(temperature=config.temperature, max_tokens=config.max_tokens, max_context=context)
    return Sampling(n=n, limits=limits, want_value=False, given=given)


def _problems(session: Session) -> Iterator[Problem]:
    """U. Its labelled questions keep their rationales, which nothing but `_gold` reads."""
    for split in POOLS:
        yield from session.problems(split)


def _problem(session: Session, problem_id: str) -> Problem:
    found = (session.store.problem(split, problem_id) for split in POOLS)
    return next(problem for problem in found if problem is not None)


def _gold(session: Session, problem: Problem) -> tuple[Tokens, ...]:
    """The problem's rationale as the warm-up's first epoch writes it; empty where there is none."""
    return () if problem.rationale is None else (learn.written_solution(session, problem, epoch=0),)


def _earlier(session: Session, problem: Problem, round: int) -> tuple[Tokens, ...]:
    """Finished solutions of the rounds before: the last round's tree has taken in those before it."""
    trees = _trees(session, problem, "search", range(round - 1, round)) if round > 1 else []
    return tuple(node.tokens for tree in trees for node in tree.root.children if node.finish == "eos")


def _trees(session: Session, problem: Problem, name: str, rounds: range) -> list[Tree]:
    found = [session.store.tree(Stage(round, name), problem.id) for round in rounds]
    return [tree for tree in found if tree is not None]


def order(recipe: DpoStRecipe) -> Order:
    """The stages of a round: those of the DPO step, where there is one, then those of the SFT step."""
    config = recipe.self_training
    if not config.pseudo_labels:
        return (("eval",),)
    tuning = (("search",), ("pairs",), ("dpo",)) if config.dpo else ()
    return (*tuning, ("labels",), ("train",), ("eval",))


STAGES: dict[str, Callable[[Session, int], None]] = {
    "sft": lambda session, round: learn.warm_up(session),
    "search": sample,
    "pairs": make_pairs,
    "dpo": prefer,
    "labels": label,
    "train": retrain,
    "eval": evaluate,
}
