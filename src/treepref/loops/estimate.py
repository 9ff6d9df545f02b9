"""What a run of a recipe will cost, stage by stage: its own rules, tried on an engine that samples nothing.

Two figures each. *Expected*, under what `Assumptions` states; and an *upper bound*, where every simulation is spent,
every step and solution is as long as allowed, no two samples are equal and no cached prefix is ever reused.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from treepref.blocks import steps_of
from treepref.config import (
    DpoStRecipe,
    MctsDpoRecipe,
    PairConfig,
    Recipe,
    SvpoRecipe,
    TaskConfig,
    TrainConfig,
    TreeRecipe,
)
from treepref.errors import TreeprefError
from treepref.evaluation import decoding
from treepref.loops.collect import episodes_of, mcts_of, tree_pairs
from treepref.loops.dpo_st import sampling_of
from treepref.loops.dry_run import CONTEXT, DEEPEST, Lengths, Tried, Work, try_rules, try_search
from treepref.loops.grow import limits_of
from treepref.loops.learn import tree_example
from treepref.loops.text import Text
from treepref.models.policy import load_tokenizer
from treepref.models.text import encode_solution
from treepref.recipes.estimate import (
    Assumptions,
    Estimate,
    Price,
    StageEstimate,
    default_assumptions,
    disk,
    over_budget,
    step_limits,
)
from treepref.recipes.sizing import ModelInfo, Rates
from treepref.search.beam import StepBeam
from treepref.search.mcts import Mcts
from treepref.search.sampling import Sampling, StepSampling
from treepref.tasks.loading import load_splits, split_sizes
from treepref.tasks.task import load_task
from treepref.training.examples import Example
from treepref.types import Choice, Cost

BOUNDS = (False, True)
"""Expected; at the limits."""
_QUESTION = Choice((0,), ((1,), (2,)))
"""Stands for the question about a step; its length is assumed."""
Stages = Iterator[tuple[str, Callable[[bool], Cost]]]
"""A stage's name, and its cost: expected, or at the limits."""


def estimate(
    recipe: Recipe, *, model_info: ModelInfo, rates: Rates | None = None, assumptions: Assumptions | None = None
) -> Estimate:
    """Expected cost and upper bound of every stage of `recipe`. Without `rates` seconds are 0."""
    assumed = assumptions or default_assumptions(recipe)
    plan = _Plan(recipe, assumed, Price(recipe, model_info, rates))
    stages = [StageEstimate(name, *(cost(bound) for bound in BOUNDS)) for name, cost in plan.stages()]
    searched = [stage for stage in stages if stage.name.endswith(("search", "labels"))]
    result = Estimate(
        stages,
        disk_expected=disk(recipe, model_info, sum(s.expected.generated_tokens for s in searched)),
        disk_upper=disk(recipe, model_info, sum(s.upper.generated_tokens for s in searched)),
        assumptions=assumed,
        has_rates=rates is not None,
    )
    result.over_budget = over_budget(recipe, result)
    return result


@dataclass(slots=True)
class _Plan:
    """The stages of a recipe in order."""

    recipe: Recipe
    assumed: Assumptions
    price: Price

    def stages(self) -> Stages:
        recipe = self.recipe
        if recipe.warmup.epochs:
            yield "warm-up", self._warmup
        if isinstance(recipe, SvpoRecipe) and recipe.has_first_values:
            yield "round 0 values", _SvpoPlan(recipe, self.assumed, self.price).first_values
        yield "round 0 eval", lambda bound: self._evaluation(0, bound)
        for round in range(1, recipe.rounds + 1):
            work = list(self._round(round))
            if not work:  # dpo_st without pseudo-labels has no rounds
                break
            yield from ((f"round {round} {name}", cost) for name, cost in work)
            yield f"round {round} eval", lambda bound, round=round: self._evaluation(round, bound)

    def _round(self, round: int) -> Stages:
        recipe, rest = self.recipe, (self.assumed, self.price)
        if isinstance(recipe, DpoStRecipe):
            return _self_training(recipe, *rest, round)
        if isinstance(recipe, SvpoRecipe):
            return _SvpoPlan(recipe, *rest).round(round)
        assert isinstance(recipe, MctsDpoRecipe)
        return _episodes(recipe, *rest, round)

    def _warmup(self, bound: bool) -> Cost:
        """SFT: labelled problems × epochs × (prompt + solution) tokens, all run forward and backward."""
        sequences = self.recipe.task.splits.labelled * self.recipe.warmup.epochs
        return self.price(trained=sequences * _whole(lengths_of(self.recipe, self.assumed, bound)))

    def _evaluation(self, round: int, bound: bool) -> Cost:
        """Greedy and sampled solutions, and what values guide where there are some by then; by the decoders' rules."""
        recipe, config, problems = self.recipe, self.recipe.eval, self.recipe.task.splits.eval
        n = config.samples if round == recipe.rounds else config.samples_between
        values = _has_values(recipe, round)
        lengths = replace(lengths_of(recipe, self.assumed, bound), most=float(config.max_tokens))
        if not bound:
            lengths = replace(lengths, steps=max(1.0, min(lengths.steps, config.max_tokens / lengths.step)))
        search = recipe.search if isinstance(recipe, TreeRecipe) else None
        todo = decoding.decoders(config, search, n=n, values=values, context=CONTEXT, delimiter=recipe.task.delimiter)
        work = Work()
        for decoder in todo:
            rules, asked = decoder.search, {"problems": problems, "values": values}
            if isinstance(rules, Mcts):
                work += try_search(rules, lengths, runs_on=False, **asked).work
            elif isinstance(rules, StepBeam):
                work += try_rules(rules, lengths, runs_on=True, expansions=rules.b1, **asked).work
            elif isinstance(rules, Sampling):
                work += try_rules(rules, lengths, **asked).work
        return _priced(self.price, work, problems, min(recipe.engine.max_rows, problems * max(1, n)))


# ---- svpo, mcts_dpo --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _SvpoPlan:
    recipe: SvpoRecipe
    assumed: Assumptions
    price: Price

    def first_values(self, bound: bool) -> Cost:
        """Solutions of some training problems, sampled step by step, and the fit's forward over them."""
        config, lengths = self.recipe.value, lengths_of(self.recipe, self.assumed, bound)
        problems = min(config.problems, self.recipe.task.splits.train)
        rules = StepSampling(n=config.samples, limits=limits_of(self.recipe, 1, CONTEXT))
        tried = try_rules(rules, lengths, problems=problems, values=False, runs_on=True, expansions=config.samples)
        work = tried.work + Work(scored=_read_once(tried, lengths))
        in_flight = self.recipe.search.trees_in_flight * config.samples
        return _priced(self.price, work, problems, min(self.recipe.engine.max_rows, in_flight))

    def round(self, round: int) -> Stages:
        values = _has_values(self.recipe, round - 1)
        rules = mcts_of(self.recipe, limits_of(self.recipe, round, CONTEXT))
        found = {bound: self._tried(rules, values, bound) for bound in BOUNDS}
        search = self.recipe.search
        in_flight = search.trees_in_flight * search.leaves_in_flight * search.children
        yield "search", _searched(self.recipe, self.price, found, in_flight)
        yield "train", _trained(self.recipe, self.assumed, self.price, found, round, self.recipe.train.epochs)

    def _tried(self, rules: Mcts, values: bool, bound: bool) -> Tried:
        lengths = lengths_of(self.recipe, self.assumed, bound)
        problems = self.recipe.task.splits.train
        return try_search(rules, lengths, problems=problems, values=values, runs_on=False)


def _episodes(recipe: MctsDpoRecipe, assumed: Assumptions, price: Price, round: int) -> Stages:
    """Search and training by turns or one after the other cost the same."""
    config, problems = recipe.search, recipe.task.splits.train
    rules = replace(
        episodes_of(recipe, limits_of(recipe, round, CONTEXT)),
        choice=_QUESTION if config.self_evaluation else None,
        weight=config.self_evaluation.weight if config.self_evaluation else 0.0,
        reference=_reference(recipe, assumed) if config.inject_reference else (),
    )
    found = {
        bound: try_search(rules, lengths_of(recipe, assumed, bound), problems=problems, values=False, runs_on=True)
        for bound in BOUNDS
    }
    in_flight = min(config.trees_in_flight, recipe.online.batch_problems) * config.children
    yield "search", _searched(recipe, price, found, in_flight)
    yield "train", _trained(recipe, assumed, price, found, round, 1)


def _reference(recipe: MctsDpoRecipe, assumed: Assumptions) -> tuple[tuple[int, ...], ...]:
    """The steps of a rationale, as the dry run writes steps: one token each, the last one odd."""
    steps = max(1, round(min(assumed.steps, recipe.search.max_depth, DEEPEST)))
    return tuple((2 * (step + 1) + (step == steps - 1),) for step in range(steps))


Found = dict[bool, Tried]
"""A search as it was tried: expected, and at the limits."""


def _searched(recipe: TreeRecipe, price: Price, found: Found, in_flight: int) -> Callable[[bool], Cost]:
    rows = min(recipe.engine.max_rows, in_flight)

    def cost(bound: bool) -> Cost:
        return _priced(price, found[bound].work, recipe.task.splits.train, rows)

    return cost


def _trained(
    recipe: SvpoRecipe | MctsDpoRecipe, assumed: Assumptions, price: Price, found: Found, round: int, epochs: int
) -> Callable[[bool], Cost]:
    """Packed trees × epochs: every token of an example that goes into a row, once.

    Expected: the examples of the tried trees, with pairs for the share of problems that give them; upper: all that was
    sampled.
    The reference is the sampler itself, whose log-probs are recorded; in later rounds (online: in later batches) under
    `reference: initial` it is not, and scores the same tokens once more. A fit reads the trees once.
    """
    online = isinstance(recipe, MctsDpoRecipe) and recipe.online.enabled
    rescored = recipe.train.reference == "initial" and (round > 1 or online) and recipe.train.objective != "sft"
    fits = isinstance(recipe, SvpoRecipe) and recipe.has_fits

    def cost(bound: bool) -> Cost:
        tried, lengths = found[bound], lengths_of(recipe, assumed, bound)
        whole = _read_once(tried, lengths)
        tokens = whole if bound else _example_tokens(tried, recipe.pairs, recipe.train, lengths, assumed.useful)
        tokens *= recipe.task.splits.train
        read = recipe.task.splits.train * whole * fits
        return price(trained=epochs * tokens, scored=read + tokens * (bound or rescored))

    return cost


@lru_cache(maxsize=64)
def _example_tokens(tried: Tried, pairs: PairConfig, train: TrainConfig, lengths: Lengths, useful: float) -> float:
    """Tokens of a tree's example, its prompt among them, where `useful` is the share of trees that give pairs.

    A tree without pairs may teach values.
    """
    alone, paired = [], []
    for tree in tried.trees:
        made = tree_pairs(tree, pairs, lambda tokens: " ".join(map(str, tokens)))
        alone.append(_size(tree_example(tree, [], train), lengths, tried.scale))
        if made:
            paired.append(_size(tree_example(tree, made, train), lengths, tried.scale))
    without = sum(alone) / len(alone)
    two_solutions = min(_read_once(tried, lengths), lengths.prompt + 2 * lengths.steps * lengths.step)
    with_pairs = sum(paired) / len(paired) if paired else max(without, two_solutions)
    return useful * with_pairs + (1 - useful) * without


def _size(example: Example, lengths: Lengths, scale: float) -> float:
    """Tokens that it takes in a row; none where it teaches nothing."""
    teaches = example.pairs or example.counts.values or example.counts.tokens
    return lengths.prompt + scale * len(example.nodes) * lengths.step if teaches else 0.0


def _read_once(tried: Tried, lengths: Lengths) -> float:
    """Tokens of a tried tree, its prompt among them."""
    return lengths.prompt + lengths.step * tried.nodes


# ---- dpo_st ----------------------------------------------------------------------------------------------------------


def _self_training(recipe: DpoStRecipe, assumed: Assumptions, price: Price, round: int) -> Stages:
    """A round on all labelled and training problems; nothing where the recipe has no rounds.

    dpo: as for other trees, of whole solutions: two a pair, at most those there are. train: SFT of the base on the
    labelled problems and the pseudo-labels of all rounds so far, `warmup.epochs` times.
    """
    config, splits = recipe.self_training, recipe.task.splits
    problems = splits.labelled + splits.train

    def sampled(n: int, given: float, bound: bool) -> Cost:
        """`given`: solutions beside the samples that are scored, a problem."""
        lengths = replace(lengths_of(recipe, assumed, bound), most=float(config.max_tokens))
        work = try_rules(sampling_of(config, n, CONTEXT), lengths, problems=problems, values=False).work
        work += Work(scored=given * lengths.solution)
        return _priced(price, work, problems, min(recipe.engine.max_rows, problems * n))

    def preferred(bound: bool) -> Cost:
        lengths = replace(lengths_of(recipe, assumed, bound), most=float(config.max_tokens))
        nodes = min(2 * config.pairs_per_problem, config.dpo_samples * round + 1)
        tokens = problems * (1.0 if bound else assumed.useful) * (lengths.prompt + nodes * lengths.solution)
        return price(trained=recipe.train.epochs * tokens, scored=tokens * bound)

    def retrained(bound: bool) -> Cost:
        lengths = replace(lengths_of(recipe, assumed, bound), most=float(config.max_tokens))
        labels = problems * config.label_samples * round * (1.0 if bound else assumed.labels)
        return price(trained=recipe.warmup.epochs * (splits.labelled + labels) * _whole(lengths))

    if not config.pseudo_labels:
        return
    if config.dpo:
        gold = splits.labelled * config.gold_positive / problems
        given = gold + config.dpo_samples * (round - 1)
        yield "search", lambda bound: sampled(config.dpo_samples, given, bound)
        yield "dpo", preferred
    yield "labels", lambda bound: sampled(config.label_samples, 0.0, bound)
    yield "train", retrained


def at_real_size(recipe: Recipe) -> tuple[Recipe, str | None]:
    """The recipe with splits no larger than its files are, and what was cut; as it is where they cannot be read."""
    asked = recipe.task.splits.model_dump()
    try:
        there = split_sizes(recipe.task, recipe.seed)
    except TreeprefError:
        return recipe, None
    cut = [f"{name} has {there[name]:,} of {asked[name]:,}" for name in asked if there[name] < asked[name]]
    if not cut:
        return recipe, None
    splits = recipe.task.splits.model_copy(update=there)
    smaller = recipe.model_copy(update={"task": recipe.task.model_copy(update={"splits": splits})})
    return smaller, f"counted with the problems that there are: {', '.join(cut)}"


def measured_assumptions(recipe: Recipe, problems: int = 64) -> Assumptions:
    """Lengths of up to `problems` prompts, and of their rationales where the task has them, in the model's tokens.

    What cannot be measured (no data, no rationales) is assumed, and `origin` says why.
    """
    assumed = default_assumptions(recipe)

    def some(labelled: int) -> TaskConfig:
        counts = {"labelled": labelled, "train": min(recipe.task.splits.train, problems), "eval": 1}
        return recipe.task.model_copy(update={"splits": recipe.task.splits.model_copy(update=counts)})

    try:
        tokenizer, task = load_tokenizer(recipe.model.path), load_task(recipe.task)
        try:
            splits = load_splits(some(problems), recipe.seed)
        except TreeprefError:  # a task without rationales
            splits = load_splits(some(0), recipe.seed)
        asked = [*splits.train, *splits.labelled]
        shown = splits.examples or splits.labelled
        text = Text(recipe.task, task, lambda: tokenizer, shown=lambda: shown, system=splits.system)
        prompts = [len(text.encode(p.question)) for p in asked]
        texts = [task.solution_text(p, random.Random(p.id)) for p in splits.labelled]
        tokens = sum(len(encode_solution(tokenizer, text)) for text in texts)
    except TreeprefError as error:
        return replace(assumed, origin=f"{assumed.origin}; nothing measured: {str(error).partition(chr(10))[0]}")
    assumed = replace(assumed, prompt_tokens=sum(prompts) / len(prompts))
    if asked_of_steps := recipe.self_evaluation:
        question = (asked_of_steps.example or "") + (asked_of_steps.question or task.self_evaluation)
        assumed = replace(assumed, question_tokens=len(tokenizer(question, add_special_tokens=False)["input_ids"]))
    if not texts:
        return replace(assumed, origin=f"measured on {len(prompts)} prompts, steps half as long as the recipe allows")
    steps = sum(len(steps_of(text, recipe.task.delimiter)) for text in texts)
    origin = f"measured on {len(prompts)} prompts and {len(texts)} rationales"
    return replace(assumed, step_tokens=tokens / steps, steps=steps / len(texts), origin=origin)


# ---- shared ----------------------------------------------------------------------------------------------------------


def lengths_of(recipe: Recipe, assumed: Assumptions, bound: bool) -> Lengths:
    """What the dry run's tokens stand for, within the recipe's limits; or at them."""
    limits = step_limits(recipe)
    depth, longest_step = limits.max_depth, float(limits.max_step_tokens)
    if bound:
        return Lengths(
            assumed.prompt_tokens, longest_step, math.inf, depth, question=assumed.question_tokens,
            most=depth * longest_step,
        )  # fmt: skip
    return Lengths(
        assumed.prompt_tokens, min(assumed.step_tokens, longest_step), max(1.0, min(assumed.steps, depth)), depth,
        assumed.differ, assumed.question_tokens, depth * longest_step,
    )  # fmt: skip


def _whole(lengths: Lengths) -> float:
    """Tokens of a prompt and a solution."""
    return lengths.prompt + lengths.solution


def _priced(price: Price, work: Work, problems: int, rows: float) -> Cost:
    """The cost of so much work a problem."""
    all_of = work * problems
    return price(
        rows=rows, generated=all_of.generated, prefill=all_of.prefill, cached=all_of.cached, scored=all_of.scored
    )


def _has_values(recipe: Recipe, round: int) -> bool:
    """Whether the policy that a round ended with has a value head: fitted, or trained beside it."""
    if round == 0:
        return isinstance(recipe, SvpoRecipe) and recipe.has_first_values
    fitted = isinstance(recipe, SvpoRecipe) and recipe.value.fit
    joint = isinstance(recipe, TreeRecipe) and recipe.train.value_weight + recipe.train.margin_weight > 0
    return recipe.train.objective == "svpo" and (fitted or joint)
