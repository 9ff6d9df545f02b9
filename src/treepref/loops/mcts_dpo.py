"""MCTS-DPO (arXiv 2405.00451): search some problems with the current policy, update on their pairs, search the next.

    policy π₀ ← SFT of the base model on labelled problems, or the base model itself
    for k = 1 … rounds:
        for each batch of training problems, in a seeded order:
            trees ← MCTS with the current policy; R = O + C                             (collect.search_jobs)
            pairs ← at each depth of a tree's selected trace: highest over lowest Q     (collect.pairs_of)
            π     ← one optimizer step on the batch's pairs, smoothed by visits         (LearnerRun.step)
        π_k ← π; evaluate π_k                                                           (evaluate.evaluate)

With online.enabled=false all trees of a round come from the policy that it started with; batches and updates are the
same. Every tree is stored when it is done, and the training state every so many updates. So a run that was killed
trains again, on stored trees, from its last state to where it stopped, and searches nothing twice.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

from treepref.config import MctsDpoRecipe
from treepref.errors import BudgetError, DataError, TooFewPairs
from treepref.loops import collect
from treepref.loops.evaluate import evaluate
from treepref.loops.fit import Fit, cost_of, rows_per_pass
from treepref.loops.grow import grow_some
from treepref.loops.learn import tree_example, warm_up
from treepref.loops.order import Order
from treepref.loops.reading import search_reading
from treepref.loops.session import Session
from treepref.models.lora import has_adapters
from treepref.models.policy import Policy, adapter_off
from treepref.progress import Progress, stage_progress
from treepref.runs.stage import Stage, batch_policy, round_policy
from treepref.training.examples import Example, NodeLogprobs, Scorer, attach_reference
from treepref.training.forward import model_scorer
from treepref.training.learner import LearnerRun
from treepref.training.pairs import PairStats
from treepref.training.settings import LearnerSettings
from treepref.types import Pair, PolicyId, Problem, Tree

CHECKED_NODES = 8
"""Recorded log-probs of so many nodes of each batch are compared with recomputed ones before they serve."""
FRUITLESS_BATCHES = 5
"""Batches without a single pair after which a round stops with advice instead of going on."""


def mcts_dpo(session: Session) -> None:
    """The algorithm."""
    warm_up(session)
    evaluate(session, 0)
    for round in range(1, session.recipe.rounds + 1):
        iterate(session, round)
        evaluate(session, round)


def iterate(session: Session, round: int) -> None:
    """A round: one pass over the training problems, an update a batch. From policy round − 1 to policy `round`.

    Its stages are search, pairs and train, by turns. Raises BudgetError where a limit stops it, and TooFewPairs, with
    advice, where too few problems give a pair; what is done stays done.
    """
    for name in ("search", "pairs", "train"):
        session.begin(Stage(round, name))
    if session.store.stage_done(Stage(round, "train")):
        return
    this = _Round(session, round)
    if not session.recipe_of(MctsDpoRecipe).online.enabled:
        session.serving.publish(this.policy, batch_policy(round, 0))
        collect.search(session, round, collect.episode_rules)
    with stage_progress(f"round {round}", len(this.problems), unit="trees", done=this.done) as bar:
        this.catch_up()
        for batch in range(this.run.steps, len(this.batches)):
            this.search(batch, bar)
            this.update(batch)
            bar.update(done=this.done, note=this.note)
    this.finish()


def order(recipe: MctsDpoRecipe) -> Order:
    """The stages of a round: search, pairs and training go by turns, so each of the three commands runs all of them."""
    return (("search", "pairs", "train"), ("eval",))


STAGES: dict[str, Callable[[Session, int], None]] = {
    "sft": lambda session, round: warm_up(session),
    "search": iterate,
    "pairs": iterate,
    "train": iterate,
    "eval": evaluate,
}


@dataclass(slots=True)
class _Found:
    """Trees so far, and what was preferred in them."""

    pairs: list[Pair] = field(default_factory=list)
    stats: PairStats = field(default_factory=PairStats)

    def add(self, tree: Tree, pairs: list[Pair]) -> None:
        self.pairs += pairs
        self.stats.add(tree, pairs)


class _Round:
    """A round in progress: the policy in training, the engine that searches with it, the batches."""

    def __init__(self, session: Session, round: int) -> None:
        self.session, self.round = session, round
        self.store, self.config = session.store, session.recipe_of(MctsDpoRecipe).online
        self.search_stage, self.train_stage = Stage(round, "search"), Stage(round, "train")
        self.problems = _ordered(session, round)
        size = self.config.batch_problems
        self.batches = [self.problems[i : i + size] for i in range(0, len(self.problems), size)]
        session.serving.serve(round_policy(round - 1))
        self.policy = session.serving.policy(round_policy(round - 1), lora=True)
        self.rules, self.judge = (
            collect.episode_rules(session, round),
            session.answers.judge(self.search_stage, "train"),
        )
        self.found = _Found()
        settings = LearnerSettings.of(
            session.recipe.train, seed=session.recipe.seed + round, rows_per_pass=rows_per_pass(session)
        )
        self.fit = Fit(session, self.train_stage, self.policy, settings)
        self.run = self._start()
        self.stop = session.stop_reason(lambda: cost_of(self.run.result))

    def _start(self) -> LearnerRun:
        """The training run, or where its last saved state left it."""
        ids = "\n".join(problem.id for problem in self.problems)
        identity = {
            "round": self.round,
            "problems": hashlib.sha256(ids.encode()).hexdigest(),
            "batch_problems": self.config.batch_problems,
            "online": self.config.enabled,
            "reference": self.session.recipe.train.reference,
        }
        keeping = self.fit.keeping(self.config.checkpoint_every)
        return self.fit.learner.start(len(self.batches), identity=identity, **keeping)

    @property
    def done(self) -> int:
        return self.store.count_trees(self.search_stage)

    @property
    def note(self) -> str:
        loss = self.fit.steps[-1].get("loss") if self.fit.steps else None
        return f"{self.found.stats.pairs:,} pairs" + ("" if loss is None else f", loss {loss:.3f}")

    # -- the three parts of a batch

    def search(self, batch: int, bar: Progress) -> None:
        """Grow the batch's trees with the policy as it stands; those that are stored stay as they are."""
        self.session.working_on = self.search_stage
        self._check_budget()
        todo = [p for p in self.batches[batch] if not self.store.has_tree(self.search_stage, p.id)]
        if not todo:
            return
        policy, recipe = batch_policy(self.round, batch), self.session.recipe_of(MctsDpoRecipe)
        self.session.serving.publish(self.policy, policy)
        done, tokens = self.done, bar.status.tokens
        report = grow_some(
            self.session, self.search_stage,
            collect.search_jobs(self.session, self.round, todo, self.rules, self.judge, policy),
            policy=policy, seed=collect.search_seed(self.round), at_once=recipe.search.trees_in_flight, stop=self.stop,
            on_progress=lambda p: bar.update(done=done + p.trees, tokens=tokens + p.tokens, note=self.note),
        )  # fmt: skip
        if report.stopped:
            self.run.stop()
        self.session.require_done(report, self.stop)

    def update(self, batch: int) -> None:
        """One optimizer step on the batch's pairs; a batch without any counts as a step that changes nothing."""
        self.session.working_on = self.train_stage
        train = self.session.recipe.train
        examples = []
        for tree, pairs in self._trees(batch):
            self.found.add(tree, pairs)
            examples.append(tree_example(tree, pairs, train))
        useful = [e for e in examples if e.pairs or e.counts.values or e.counts.tokens]
        if train.objective == "sft":
            self.run.step(useful, labels={"epoch": 0})
        else:
            on_policy = self._reference_is_policy(batch)
            self.run.step(self._with_reference(batch, useful), reference_is_policy=on_policy, labels={"epoch": 0})
        if batch + 1 == FRUITLESS_BATCHES and not self.found.pairs:
            self._too_few(f"The first {batch + 1} batches gave no pair at all, so the round was stopped there.")

    def catch_up(self) -> None:
        """Batches whose update is done already: their trees and pairs count in the round's numbers."""
        for batch in range(self.run.steps):
            for tree, pairs in self._trees(batch):
                self.found.add(tree, pairs)

    def finish(self) -> None:
        """Save the round's policy and hand it to the engine; pairs, learning curves and costs land together."""
        session, result = self.session, self.run.result
        if self.found.stats.paired < session.recipe.pairs.min_problems:
            self._too_few("The round's policy was not kept: so few would fit noise.")
        if self.fit.learner.trains_values:
            self.policy.values_trained = True
        info = {"steps": result.steps, "examples": self.found.stats.paired}

        def with_it() -> None:
            collect.finish_search(session, self.round)
            self.store.put_pairs(self.round, self.found.pairs)
            self.store.finish_stage(Stage(self.round, "pairs"), asdict(self.found.stats))

        self.fit.finish(round_policy(self.round), cost_of(result), info, with_it=with_it)

    # -- reference log-probs

    def _with_reference(self, batch: int, examples: list[Example]) -> list[Example]:
        """The reference's log-probs: as recorded while sampling where that was the reference, else computed."""
        if not examples:
            return examples
        attached, report = attach_reference(
            examples,
            self._scorer,
            reference=self._reference(batch),
            sample=CHECKED_NODES,
            seed=self.session.recipe.seed + batch,
        )
        if report.checked and not report.recorded:
            self.store.event(
                self.train_stage,
                "warning",
                "log-probs recorded while searching differ from recomputed ones and were not used (precision?)",
            )
        return attached

    def _reference(self, batch: int) -> PolicyId:
        """The policy that grew the batch, or the one that the run started from, by the recipe."""
        if self.session.recipe.train.reference == "previous":
            return batch_policy(self.round, batch if self.config.enabled else 0)
        return round_policy(0)

    def _reference_is_policy(self, batch: int) -> bool:
        """Whether the policy, as it stands before the batch's update, is the reference itself: then h = 0."""
        if self.session.recipe.train.reference == "previous" and self.config.enabled:
            return True
        return batch == 0 and self._reference(0) == round_policy(self.round - 1)

    @cached_property
    def _scorer(self) -> Scorer:
        """Log-probs under the reference.

        `previous`: the policy that grew the batch, which is the one in training (online) or the one before (offline).
        `initial`: the first round's start: in that round of a LoRA run the model without its adapters, else a copy.
        """
        if self.session.recipe.train.reference == "previous":
            return self._scorer_of(self.policy if self.config.enabled else self._before())
        if self.round == 1 and has_adapters(self.policy.model):
            score = self._scorer_of(self.policy)

            def without_adapters(examples: Sequence[Example]) -> NodeLogprobs:
                with adapter_off(self.policy):
                    return score(examples)

            return without_adapters
        return self._scorer_of(self.session.serving.policy(round_policy(0)))

    def _before(self) -> Policy:
        """The policy that the round started from."""
        return self.session.serving.policy(round_policy(self.round - 1))

    def _scorer_of(self, policy: Policy) -> Scorer:
        row_tokens = self.session.recipe.train.row_tokens
        return model_scorer(policy.model, row_tokens=row_tokens, rows_per_pass=rows_per_pass(self.session))

    # -- trees, limits

    def _trees(self, batch: int) -> list[tuple[Tree, list[Pair]]]:
        """The batch's trees and their pairs, read from the store, so that a resumed run trains on the very same."""
        found = []
        for problem in self.batches[batch]:
            tree = self.store.tree(self.search_stage, problem.id)
            if tree is None:
                raise DataError(f"{self.search_stage}: the tree of problem {problem.id} is not there; run the search")
            found.append((tree, collect.pairs_of(self.session, tree)))
        return found

    def _check_budget(self) -> None:
        if reason := self.stop():
            self.run.stop()
            raise BudgetError(reason)

    def _too_few(self, outcome: str) -> None:
        self.session.working_on = Stage(self.round, "pairs")
        self.store.put_pairs(self.round, self.found.pairs)
        wanted = self.session.recipe.pairs.min_problems
        read = search_reading(self.session.view, self.search_stage)
        raise TooFewPairs(collect.advice(self.found.stats, read, wanted, self.round, outcome))


def _ordered(session: Session, round: int) -> list[Problem]:
    """The training problems in the round's order: sorted ids, then a seeded shuffle."""
    problems = sorted(session.problems("train"), key=lambda p: p.id)
    random.Random(f"{session.recipe.seed}/{round}").shuffle(problems)
    return problems
