"""The stages that change weights: the warm-up on labelled problems, and a round's training on its preferences."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from treepref.config import EpochsConfig, SvpoRecipe, TrainConfig
from treepref.errors import BudgetError, DataError
from treepref.loops.fit import Fit, cost_of, rows_per_pass
from treepref.loops.session import Session
from treepref.loops.values import refit
from treepref.models.policy import Policy
from treepref.models.text import encode_solution
from treepref.progress import stage_progress
from treepref.runs.stage import Stage, round_policy
from treepref.training.examples import Example, attach_reference, example_from_solution, example_from_tree
from treepref.training.forward import model_scorer
from treepref.training.pairs import best_outcomes, correct_paths, value_targets
from treepref.training.probe import probe_packing
from treepref.training.schedule import plan_steps
from treepref.training.settings import LearnerSettings
from treepref.training.tally import Metrics
from treepref.types import Cost, Pair, PolicyId, Problem, Tree

CHECKPOINT_STEPS = 200
"""Optimizer steps between two saved training states."""
VALUE_TARGETS = {"mean": value_targets, "best": best_outcomes}
"""What the value head learns of a tree's nodes, by `train.value_target`."""
SFT_SOLUTIONS = 4
"""Right solutions of a tree that rejection-sampling fine-tuning learns from, at most."""


def warm_up(session: Session) -> None:
    """SFT of the recipe's model on the labelled problems; the result is policy 0. Nothing to do where epochs is 0."""
    if session.recipe.warmup.epochs and session.begin(Stage(0, "sft")):
        fine_tune(session, Stage(0, "sft"), round_policy(0))


def fine_tune(session: Session, stage: Stage, makes: PolicyId, *, more: Sequence[Example] = ()) -> None:
    """SFT of the recipe's model, under its `warmup` section, on the labelled problems and `more`. It makes a policy.

    `more` holds each example once for every epoch. Raises DataError where no labelled problem fits into the context.
    """
    config = session.recipe.warmup
    policy = session.serving.base(lora=True)
    examples = _labelled(session, policy, config.epochs)
    if not examples:
        raise DataError(
            f"warm-up: every labelled problem is longer than the context of {policy.max_context} tokens; take a "
            "model with a longer context, or set warmup.epochs=0"
        )
    train = session.recipe.train
    settings = LearnerSettings.of(
        config,
        seed=session.recipe.seed,
        row_tokens=train.row_tokens,
        attention=train.attention,
        recompute=train.recompute,
        rows_per_pass=rows_per_pass(session),
    )
    every = [*examples, *more]
    _fit(session, stage, policy, settings, every, makes=makes, epochs=1, batch_tokens=config.batch_tokens)


def _labelled(session: Session, policy: Policy, epochs: int) -> list[Example]:
    """The labelled problems as prompt and solution, tokenised once and whole; each epoch draws its step sizes anew.

    What the recipe's tool would have forced is not trained on. A solution longer than the context is reported and left
    out.
    """
    examples = []
    for problem in session.problems("labelled"):
        prompt = session.text.encode(problem.question)
        for epoch in range(epochs):
            solution = written_solution(session, problem, epoch, policy)
            length, limit = len(prompt) + len(solution), policy.max_context
            if length <= limit:
                forced = session.text.forced(solution)
                examples.append(example_from_solution(prompt, solution, id=f"{epoch}/{problem.id}", forced=forced))
            else:
                message = (
                    f"problem {problem.id}: left out, {length} tokens are more than the model's context of {limit}"
                )
                session.store.event(Stage(0, "sft"), "warning", message)
    return examples


def written_solution(session: Session, problem: Problem, epoch: int, policy: Policy | None = None) -> tuple[int, ...]:
    """A labelled problem's rationale as the warm-up learns it in an epoch, EOS behind it."""
    text = session.task.solution_text(problem, random.Random(f"{session.recipe.seed}/{epoch}/{problem.id}"))
    return encode_solution(session.text.tokenizer, text, policy.eos_id if policy else session.text.end_of_turn)


def train_round(session: Session, round: int) -> None:
    """One round's update: from the policy of round − 1 and the round's preferences to the round's policy."""
    train(session, Stage(round, "train"), round_policy(round), refits=session.recipe_of(SvpoRecipe).has_fits)


def train(session: Session, stage: Stage, makes: PolicyId, *, refits: bool = False) -> None:
    """An update from the policy of the round before and the round's preferences; it makes a policy.

    `refits`: its value head is fitted anew, or held against a fit.
    """
    round = stage.round
    if not session.begin(stage):
        return
    config = session.recipe.train
    assert isinstance(config, EpochsConfig), "mcts_dpo trains batch by batch"
    policy = session.serving.policy(round_policy(round - 1), lora=True)
    examples = tree_examples(session, round)
    on_policy = config.objective == "sft" or _reference(session, round) == round_policy(round - 1)
    if config.objective != "sft":
        examples = _with_reference(session, stage, policy, examples)
    settings = LearnerSettings.of(config, seed=session.recipe.seed + round, rows_per_pass=rows_per_pass(session))
    _fit(
        session, stage, policy, settings, examples, makes=makes,
        epochs=config.epochs, batch_trees=config.batch_trees,
        reference_is_policy=on_policy and config.objective != "sft",
        then=partial(refit, session, round) if refits else None,
    )  # fmt: skip


def tree_examples(session: Session, round: int) -> list[Example]:
    """What the round's trees teach under the recipe's objective; trees that teach nothing are left out."""
    config, store = session.recipe.train, session.store
    by_tree = {key: list(found) for key, found in groupby(_by_tree(session, round), key=lambda pair: pair.tree)}
    trees = store.trees(Stage(round, "search"))
    examples = [tree_example(tree, by_tree.get(tree.key, []), config) for tree in trees]
    return [e for e in examples if e.pairs or e.counts.values or e.counts.tokens]


def _by_tree(session: Session, round: int) -> list[Pair]:
    return sorted(session.store.pairs(round), key=lambda pair: (pair.tree, pair.id))


def tree_example(tree: Tree, pairs: Sequence[Pair], config: TrainConfig) -> Example:
    """What a tree and its pairs teach under the recipe's `train` section."""
    if config.objective == "sft":  # rejection-sampling fine-tuning: NLL of right solutions, no preference
        return example_from_tree(tree, [], sft_paths=correct_paths(tree, SFT_SOLUTIONS))
    targets = VALUE_TARGETS[config.value_target](tree) if config.objective == "svpo" else {}
    smoothing = "none" if config.objective == "dpo" else config.smoothing
    return example_from_tree(tree, pairs, targets=targets, smoothing=smoothing)


def _reference(session: Session, round: int) -> PolicyId:
    return round_policy(0 if session.recipe.train.reference == "initial" else round - 1)


def _with_reference(session: Session, stage: Stage, policy: Policy, examples: list[Example]) -> list[Example]:
    """Reference log-probs: those recorded while sampling where they are the reference's, else computed here."""
    name = _reference(session, stage.round)
    reference = policy if name == policy.id else session.serving.policy(name)
    scorer = model_scorer(
        reference.model, row_tokens=session.recipe.train.row_tokens, rows_per_pass=rows_per_pass(session)
    )
    attached, report = attach_reference(examples, scorer, reference=name, seed=session.recipe.seed)
    session.store.event(
        stage,
        "info",
        f"reference log-probs: {report.recorded} trees as recorded, {report.recomputed} recomputed; "
        f"{report.checked} nodes checked, largest difference {report.worst:.1e}",
    )
    return attached


def _fit(
    session: Session,
    stage: Stage,
    policy: Policy,
    settings: LearnerSettings,
    examples: list[Example],
    *,
    makes: PolicyId,
    epochs: int,
    batch_trees: int | None = None,
    batch_tokens: int | None = None,
    reference_is_policy: bool = False,
    then: Callable[[Policy], tuple[dict[str, Any], Cost]] | None = None,
) -> None:
    """Train, save the folder of the policy that it makes, and publish the weights to the engine in memory.

    `then`: what is done to the trained policy before it is saved; what the stage's row says of it, and its cost.
    """
    probe_packing(policy.model, longest_path=max((e.longest_path for e in examples), default=None))
    fit = Fit(session, stage, policy, settings)
    stop = session.stop_reason(fit.cost_so_far)
    batches = {"batch_trees": batch_trees, "batch_tokens": batch_tokens}
    total = len(plan_steps(examples, epochs, settings.seed, **batches))
    with stage_progress(str(stage).replace("/", ": "), total, unit="steps") as bar:

        def show(metrics: Metrics) -> None:
            note = f"loss {metrics['loss']:.3f}"
            bar.update(done=int(metrics["step"]) + 1, tokens=int(metrics["total_tokens"]), note=note)

        result = fit.learner.train(
            examples,
            epochs=epochs,
            **batches,
            reference_is_policy=reference_is_policy,
            stop=lambda _: stop() is not None,
            **fit.keeping(CHECKPOINT_STEPS, show),
        )
    if result.stopped and result.steps < result.total_steps:
        raise BudgetError(stop() or "stopped")
    policy.id = makes
    if fit.learner.trains_values:
        policy.values_trained = True
    info, spent = ({}, Cost()) if then is None else then(policy)
    fit.finish(makes, cost_of(result) + spent, {"steps": result.steps, "examples": len(examples)} | info)
