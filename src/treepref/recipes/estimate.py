"""What a recipe will cost, before anything is spent: tokens, FLOPs, seconds and disk of each stage.

Two figures each: *expected*, under the assumptions that `Assumptions` states and `render` prints, and an *upper
bound*, where every simulation is spent, every step and solution is as long as allowed, no two samples are equal and no
cached prefix is ever reused. Only a model's config is read, no weights; no problem is solved. Seconds come from a short
probe of the machine and are rough: a factor of two either way.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from treepref.config import (
    DpoStRecipe,
    EpochsConfig,
    MctsDpoRecipe,
    Recipe,
    SearchConfig,
    SvpoRecipe,
    TaskConfig,
    TreeRecipe,
)
from treepref.errors import TreeprefError
from treepref.recipes.sizing import ModelInfo, Rates
from treepref.runs.budget import GIGABYTE, budget_tokens
from treepref.types import Cost

if TYPE_CHECKING:
    from rich.console import RenderableType

UTILISATION = 0.5
"""Share of the probe's matrix-multiplication rate that a whole model reaches (attention, norms, memory traffic)."""
OPS_PER_LAYER = 100
"""Small tensor operations' worth of overhead a layer and forward pass; it is what tiny models spend their time on."""
ROW_SECONDS = 1e-5
"""Bookkeeping of one sampled token outside the model."""
TOKEN_BYTES = 16
"""Disk of one stored token: id, log-prob, the sampler's log-prob, and its share of the index."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the expected figures rest on."""

    prompt_tokens: float
    step_tokens: float
    steps: float
    """Steps of a typical solution."""
    origin: str = "assumed: half of what the recipe allows"
    """Where the three lengths come from."""
    simulated: float = 0.8
    """Share of the allowed samples that are drawn and differ: trees run out of open leaves, siblings coincide."""
    useful: float = 0.5
    """Share of the problems whose tree holds right and wrong solutions, and so gives pairs."""
    labels: float = 0.5
    """dpo_st: share of the solutions sampled for pseudo-labels that are right, and differ."""
    question_tokens: float = 60
    """mcts_dpo: length of the self-evaluation question."""

    @property
    def solution(self) -> float:
        """Tokens of a typical solution."""
        return self.steps * self.step_tokens

    def lines(self, recipe: Recipe) -> list[str]:
        """The assumptions in words, those that the recipe's method rests on."""
        own = f"{self.useful:.0%} of the problems give pairs"
        if isinstance(recipe, DpoStRecipe):
            own += f", {self.labels:.0%} of the samples become pseudo-labels, every round is run"
        else:
            own = f"{self.simulated:.0%} of the simulations are spent, {own}"
        if recipe.self_evaluation:
            own += f", a question about a step has {self.question_tokens:.0f} tokens"
        return [
            f"a prompt has {self.prompt_tokens:.0f} tokens, a step {self.step_tokens:.0f}, a solution {self.steps:.1f} "
            f"steps ({self.origin})",
            f"{own}; shared prefixes are computed once",
            "FLOPs: 2 a weight and token forward, 6 in training, 4 with LoRA (Kaplan et al. 2020, arXiv 2001.08361, "
            "section 2.1); attention is left out",
            "upper bound: every simulation spent, every step as long as allowed, no prefix ever reused",
        ]


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """One stage of one round, e.g. `round 1 search`."""

    name: str
    expected: Cost
    upper: Cost


@dataclass(slots=True)
class Estimate:
    """The cost of a whole run."""

    stages: list[StageEstimate]
    disk_expected: int
    """Bytes."""
    disk_upper: int
    assumptions: Assumptions
    has_rates: bool
    """False: no rates were given, and every `seconds` is 0."""
    over_budget: list[str] = field(default_factory=list)
    """One line a budget that the expected figures or the upper bound exceed."""

    @property
    def expected(self) -> Cost:
        return sum((stage.expected for stage in self.stages), Cost())

    @property
    def upper(self) -> Cost:
        return sum((stage.upper for stage in self.stages), Cost())


# ---- the formulas ----------------------------------------------------------------------------------------------------


def estimate(
    recipe: Recipe, *, model_info: ModelInfo, rates: Rates | None = None, assumptions: Assumptions | None = None
) -> Estimate:
    """Expected cost and upper bound of every stage of `recipe`. Without `rates` seconds are 0."""
    assumed = assumptions or default_assumptions(recipe)
    spend = _Spender(recipe, model_info, rates)
    stages = []
    if recipe.warmup.epochs:
        stages.append(StageEstimate("warm-up", *_warmup(recipe, assumed, spend)))
    if isinstance(recipe, SvpoRecipe) and recipe.has_first_values:
        stages.append(StageEstimate("round 0 values", *_value_samples(recipe, assumed, spend)))
    stages.append(StageEstimate("round 0 eval", *_evaluation(recipe, assumed, spend, round=0)))
    for round in range(1, recipe.rounds + 1):
        work = _work(recipe, assumed, spend, round)
        if not work:  # dpo_st without pseudo-labels has no rounds
            break
        stages += [StageEstimate(f"round {round} {name}", *costs) for name, costs in work.items()]
        stages.append(StageEstimate(f"round {round} eval", *_evaluation(recipe, assumed, spend, round)))
    searched = [stage for stage in stages if stage.name.endswith(("search", "labels"))]
    result = Estimate(
        stages,
        disk_expected=_disk(recipe, model_info, sum(s.expected.generated_tokens for s in searched)),
        disk_upper=_disk(recipe, model_info, sum(s.upper.generated_tokens for s in searched)),
        assumptions=assumed,
        has_rates=rates is not None,
    )
    result.over_budget = _over_budget(recipe, result)
    return result


def default_assumptions(recipe: Recipe) -> Assumptions:
    """Lengths where nothing is known of the problems: half of what the recipe allows, prompts of 100 tokens."""
    steps = _steps(recipe)
    return Assumptions(100, max(1.0, steps.max_step_tokens / 2), max(1.0, (steps.max_depth + 1) / 2))


def _steps(recipe: Recipe) -> SearchConfig:
    """What a step and a solution may be; dpo_st, which samples whole solutions, is given the others' defaults."""
    return recipe.search if isinstance(recipe, TreeRecipe) else SearchConfig()


@dataclass(frozen=True, slots=True)
class _Spender:
    """Turns counts of tokens into a Cost."""

    recipe: Recipe
    info: ModelInfo
    rates: Rates | None

    def __call__(
        self,
        *,
        rows: float = 1,
        generated: float = 0,
        prefill: float = 0,
        cached: float = 0,
        scored: float = 0,
        trained: float = 0,
    ) -> Cost:
        """Cost of sampling `generated` tokens, `rows` at a time, and of the other tokens in large batches.

        FLOPs: 2 a weight and token forward, twice that again backward (arXiv 2001.08361, section 2.1); with LoRA the
        backward pass computes the gradients of activations only, which is half of it; with `train.recompute` the
        forward pass is made twice.
        Seconds: a decoding pass takes the longer of computing its rows and reading all weights, and the overhead of
        starting its operations; batched tokens take their FLOPs at the machine's rate.
        """
        forward, backward = (4 if self.recipe.train.recompute else 2), (2 if self.recipe.model.lora else 4)
        flops = self.info.active * (2 * (generated + prefill + scored) + (forward + backward) * trained)
        seconds = 0.0
        if self.rates:
            rate = self.rates.flops * UTILISATION
            overhead = self.rates.op_seconds * OPS_PER_LAYER * (self.info.layers + 1)
            read = self.info.params * self.info.bytes_per_param / self.rates.bytes_per_second
            passes = generated / max(1.0, rows)
            seconds += passes * (max(rows * 2 * self.info.active / rate, read) + overhead) + generated * ROW_SECONDS
            batched = 2 * (prefill + scored) + (forward + backward) * trained
            packs = (prefill + scored + 3 * trained) / self.recipe.train.row_tokens
            seconds += self.info.active * batched / rate + packs * overhead
        return Cost(round(generated), round(prefill), round(cached), round(scored), round(trained), flops, seconds)


def _warmup(recipe: Recipe, assumed: Assumptions, spend: _Spender) -> tuple[Cost, Cost]:
    """SFT: labelled problems × epochs × (prompt + solution) tokens, all run forward and backward."""
    sequences = recipe.task.splits.labelled * recipe.warmup.epochs
    longest = _steps(recipe).max_depth * _steps(recipe).max_step_tokens
    expected = spend(trained=sequences * (assumed.prompt_tokens + assumed.steps * assumed.step_tokens))
    return expected, spend(trained=sequences * (assumed.prompt_tokens + longest))


Costs = tuple[Cost, Cost]
"""Expected cost, and upper bound."""


def _work(recipe: Recipe, assumed: Assumptions, spend: _Spender, round: int) -> dict[str, Costs]:
    if isinstance(recipe, DpoStRecipe):
        return _self_training(recipe, assumed, spend, round)
    assert isinstance(recipe, TreeRecipe)
    return _learning(recipe, assumed, spend, round)


def _learning(recipe: TreeRecipe, assumed: Assumptions, spend: _Spender, round: int) -> dict[str, Costs]:
    """A round of svpo or mcts_dpo: search and training, by turns or one after the other, cost the same."""
    if isinstance(recipe, MctsDpoRecipe):
        found = _episodes(recipe, assumed, spend)
    else:
        assert isinstance(recipe, SvpoRecipe)
        found = _search(recipe, assumed, spend, round)
    return {"search": found, "train": _training(recipe, assumed, spend, round)}


def _search(recipe: SvpoRecipe, assumed: Assumptions, spend: _Spender, round: int) -> tuple[Cost, Cost]:
    """MCTS on every training problem.

    generated = trees × simulations × children × step tokens; with `evaluate: rollout` one continuation of up to
    `max_depth` steps more a simulation. Expected: × `simulated`, steps of `step_tokens`.
    prefill: expected, each prompt once a tree; upper, the whole state of each expanded leaf anew.
    scored: one token a finished step, for its value, where there is a value head (`_has_values`).
    """
    search, trees = recipe.search, recipe.task.splits.train
    samples = trees * search.simulations * search.children
    in_flight = search.trees_in_flight * search.leaves_in_flight * search.children
    rows = min(recipe.engine.max_rows, in_flight)
    rollouts = trees * search.simulations if search.evaluate == "rollout" else 0
    longest = search.max_depth * search.max_step_tokens
    values = _has_values(recipe, round - 1)

    drawn = assumed.simulated * samples
    state = assumed.prompt_tokens + assumed.steps / 2 * assumed.step_tokens
    expected = spend(
        rows=rows,
        generated=drawn * assumed.step_tokens + assumed.simulated * rollouts * assumed.steps / 2 * assumed.step_tokens,
        prefill=trees * assumed.prompt_tokens,
        cached=max(0.0, drawn * state - trees * assumed.prompt_tokens),
        scored=drawn * values,
    )
    upper = spend(
        rows=rows,
        generated=samples * search.max_step_tokens + rollouts * longest,
        prefill=(trees * search.simulations + rollouts) * (assumed.prompt_tokens + longest),
        scored=samples * values,
    )
    return expected, upper


def _episodes(recipe: MctsDpoRecipe, assumed: Assumptions, spend: _Spender) -> Costs:
    """mcts_dpo: simulations that run to the end of a solution, on every training problem.

    A simulation expands one node after another, down to the end: below the root (expanded once, `root_children` steps)
    at most `max_depth` − 1 nodes of `children` steps each, one a step of its solution. Expected: `steps` − 1, in the
    simulations that are spent; each begins at a node of its own, which is near the root while simulations are few.
    scored: the question of the self-evaluation, once a finished step. The batches cost the same on- and offline.
    """
    search, trees = recipe.search, recipe.task.splits.train
    most = _most_nodes(recipe)
    width = search.root_children or search.children
    below = search.simulations * (min(assumed.steps, search.max_depth) - 1)
    drawn = trees * (width + assumed.simulated * below * search.children)
    question = assumed.question_tokens if search.self_evaluation else 0
    rows = min(recipe.engine.max_rows, min(search.trees_in_flight, recipe.online.batch_problems) * search.children)
    longest = search.max_depth * search.max_step_tokens
    expansions = 1 + search.simulations * (search.max_depth - 1)
    state = assumed.prompt_tokens + assumed.solution / 2
    expected = spend(
        rows=rows,
        generated=drawn * assumed.step_tokens,
        prefill=trees * assumed.prompt_tokens,
        cached=max(0.0, drawn * state - trees * assumed.prompt_tokens),
        scored=drawn * question,
    )
    upper = spend(
        rows=rows,
        generated=trees * most * search.max_step_tokens,
        prefill=trees * expansions * (assumed.prompt_tokens + longest),
        scored=trees * most * question,
    )
    return expected, upper


def _most_nodes(recipe: TreeRecipe) -> int:
    """Steps that a tree can hold."""
    search = recipe.search
    if isinstance(recipe, MctsDpoRecipe):
        width = search.root_children or search.children
        return width + search.simulations * (search.max_depth - 1) * search.children
    return search.simulations * search.children


def _has_values(recipe: Recipe, round: int) -> bool:
    """Whether the policy that a round ended with has a value head: fitted, or trained beside it."""
    train = recipe.train
    if round == 0:
        return isinstance(recipe, SvpoRecipe) and recipe.has_first_values
    fitted = isinstance(recipe, SvpoRecipe) and recipe.value.fit
    joint = isinstance(recipe, TreeRecipe) and train.value_weight + train.margin_weight > 0
    return train.objective == "svpo" and (fitted or joint)


def _value_samples(recipe: Recipe, assumed: Assumptions, spend: _Spender) -> Costs:
    """Solutions of some training problems, sampled step by step, and the fit's forward over them.

    generated = problems × samples × solution tokens; scored: each prompt and solution once more.
    """
    problems = min(recipe.value.problems, recipe.task.splits.train)
    rows = min(recipe.engine.max_rows, recipe.search.trees_in_flight * recipe.value.samples)
    longest = _steps(recipe).max_depth * _steps(recipe).max_step_tokens

    def cost(solution: float, prefill: float) -> Cost:
        sampled = problems * recipe.value.samples * solution
        return spend(rows=rows, generated=sampled, prefill=prefill, scored=sampled + problems * assumed.prompt_tokens)

    prompts = problems * assumed.prompt_tokens
    states = problems * recipe.value.samples * recipe.search.max_depth * (assumed.prompt_tokens + longest)
    return cost(assumed.solution, prompts), cost(longest, states)


def _self_training(recipe: Recipe, assumed: Assumptions, spend: _Spender, round: int) -> dict[str, Costs]:
    """A round of dpo_st on all labelled and training problems; empty where the recipe has no rounds.

    search, labels: problems × samples × solution tokens. scored: gold rationales, and the samples of the rounds before,
    under the model that samples. dpo: as for other trees, of whole solutions: two a pair, at most those there are.
    train: SFT of the base on the labelled problems and the pseudo-labels of all rounds so far, warmup.epochs times.
    """
    config, splits = recipe.self_training, recipe.task.splits
    problems, most = splits.labelled + splits.train, config.max_tokens
    solution = min(assumed.solution, most)
    if not config.pseudo_labels:
        return {}

    def sampled(n: int, given: float = 0) -> Costs:
        rows, drawn = min(recipe.engine.max_rows, problems * n), problems * n
        prompts = problems * assumed.prompt_tokens
        return (
            spend(
                rows=rows,
                generated=drawn * solution,
                prefill=prompts,
                cached=(n - 1) * prompts,
                scored=given * solution,
            ),
            spend(rows=rows, generated=drawn * most, prefill=n * prompts, scored=given * most),
        )

    def trained(count: float, length: float) -> float:
        return count * (assumed.prompt_tokens + length)

    found: dict[str, Costs] = {}
    if config.dpo:
        gold = splits.labelled * config.gold_positive
        found["search"] = sampled(config.dpo_samples, gold + problems * config.dpo_samples * (round - 1))
        pool = config.dpo_samples * round + 1
        nodes = min(2 * config.pairs_per_problem, pool)
        small = problems * assumed.useful * (assumed.prompt_tokens + nodes * solution)
        large = problems * (assumed.prompt_tokens + nodes * most)
        epochs = recipe.train.epochs
        found["dpo"] = spend(trained=epochs * small), spend(trained=epochs * large, scored=large)
    found["labels"] = sampled(config.label_samples)
    labels, epochs = problems * config.label_samples * round, recipe.warmup.epochs
    found["train"] = (
        spend(trained=epochs * trained(splits.labelled + assumed.labels * labels, solution)),
        spend(trained=epochs * (trained(splits.labelled + labels, most))),
    )
    return found


def _training(recipe: Recipe, assumed: Assumptions, spend: _Spender, round: int) -> tuple[Cost, Cost]:
    """Packed trees × epochs: every token of a tree that goes into a row, once.

    Nodes of a tree, expected: with value targets about 1.5 a simulation (the visited ones), else those of its pairs and
    their ancestors; at most all sampled steps (upper). Only problems with right and wrong solutions give pairs.
    The reference is the sampler itself, whose log-probs are recorded; in later rounds (online: in later batches) under
    `reference: initial` it is not, and scores the same tokens once more. mcts_dpo trains on each tree once.
    """
    search, trees = recipe.search, recipe.task.splits.train
    most_nodes, online = _most_nodes(recipe), isinstance(recipe, MctsDpoRecipe) and recipe.online.enabled
    if recipe.train.objective == "svpo" and recipe.train.value_weight:
        nodes = 1.5 * search.simulations * assumed.simulated
    else:
        nodes = 2 * recipe.pairs.max_per_tree + assumed.steps
    nodes = min(nodes, most_nodes)
    small = trees * assumed.useful * (assumed.prompt_tokens + nodes * assumed.step_tokens)
    large = trees * (assumed.prompt_tokens + most_nodes * search.max_step_tokens)
    rescored = recipe.train.reference == "initial" and (round > 1 or online) and recipe.train.objective != "sft"
    epochs = recipe.train.epochs if isinstance(recipe.train, EpochsConfig) else 1
    return spend(trained=epochs * small, scored=small * rescored), spend(trained=epochs * large, scored=large)


def _evaluation(recipe: Recipe, assumed: Assumptions, spend: _Spender, round: int) -> tuple[Cost, Cost]:
    """Greedy and sampled solutions each round; what needs values (SBS, MCTS, scored samples) from round 1 on.

    A problem: greedy 1 solution; `samples` (on the last round) or `samples_between` (before) solutions; SBS(B1, B2)
    B1·B2 steps at each depth; MCTS simulations × children steps.
    prefill: expected, the prompt once a method; upper, the whole state at each expansion.
    """
    ev, problems = recipe.eval, recipe.task.splits.eval
    n = ev.samples if round == recipe.rounds else ev.samples_between
    values = _has_values(recipe, round)
    guided, search = recipe if values and isinstance(recipe, TreeRecipe) else None, _steps(recipe)
    beams = guided.eval.sbs if guided else []
    widths = [b1 * b2 for b1, b2 in beams]
    mcts = search.simulations * search.children if guided and guided.eval.mcts else 0
    methods = 1 + (n > 0) + len(widths) + (mcts > 0)
    rows = min(recipe.engine.max_rows, problems * max(1, n))
    longest = search.max_depth * search.max_step_tokens

    solution = min(ev.max_tokens, assumed.steps * assumed.step_tokens)
    steps = sum(widths) * assumed.steps + assumed.simulated * mcts
    expected = spend(
        rows=rows,
        generated=problems * ((1 + n) * solution + steps * assumed.step_tokens),
        prefill=problems * methods * assumed.prompt_tokens,
        cached=problems * n * assumed.prompt_tokens,
        scored=problems * (n + steps) * values,
    )
    most_steps = sum(widths) * search.max_depth + mcts
    expansions = sum(b1 for b1, _ in beams) * search.max_depth + (search.simulations if mcts else 0)
    upper = spend(
        rows=rows,
        generated=problems * ((1 + n) * ev.max_tokens + most_steps * search.max_step_tokens),
        prefill=problems * ((1 + n) * assumed.prompt_tokens + expansions * (assumed.prompt_tokens + longest)),
        scored=problems * (1 + n + most_steps) * values,
    )
    return expected, upper


def _disk(recipe: Recipe, info: ModelInfo, searched_tokens: int) -> int:
    """Bytes: a model folder a round (dpo_st: two; and one after a warm-up), the last two training states (weights and
    AdamW's two float32 moments; small with LoRA), the stored trees, and a few megabytes of tokenizer, report and log a
    round."""
    weights = info.params * info.bytes_per_param
    a_round = 2 if isinstance(recipe, DpoStRecipe) and recipe.self_training.dpo else 1
    folders = recipe.rounds * a_round + (recipe.warmup.epochs > 0)
    state = 0 if recipe.model.lora else weights + 8 * info.params
    return folders * (weights + 5_000_000) + (2 * state if folders else 0) + searched_tokens * TOKEN_BYTES + 5_000_000


def _over_budget(recipe: Recipe, result: Estimate) -> list[str]:
    limits = recipe.budget
    figures: list[tuple[str, float | None, float, float, Callable[[float], str]]] = [
        ("tokens", limits.tokens, budget_tokens(result.expected), budget_tokens(result.upper), short),
        ("seconds", limits.seconds, result.expected.seconds, result.upper.seconds, duration),
        (
            "disk_gb",
            limits.disk_gb,
            result.disk_expected / GIGABYTE,
            result.disk_upper / GIGABYTE,
            lambda gigabytes: f"{gigabytes:.3g} GB",
        ),
    ]
    lines = []
    for key, limit, expected, upper, show in figures:
        if limit is None:
            continue
        if expected >= limit:
            lines.append(
                f"budget.{key} ({show(limit)}) is below the expected {show(expected)}: the run would stop early"
            )
        elif upper >= limit:
            lines.append(f"budget.{key} ({show(limit)}) holds as expected, but not the upper bound {show(upper)}")
    return lines


# ---- facts about the task -----------------------------------------------------------------


def measured_assumptions(recipe: Recipe, problems: int = 64) -> Assumptions:
    """Lengths of up to `problems` prompts, and of their rationales where the task has them, in the model's tokens.

    What cannot be measured (no data, no rationales) is assumed, and `origin` says why.
    """
    from treepref.models.policy import load_tokenizer
    from treepref.models.text import encode_prompt, encode_solution
    from treepref.tasks.loading import load_splits
    from treepref.tasks.task import load_task

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
        prompts = [len(encode_prompt(tokenizer, task.prompt(p.question), recipe.task.chat)) for p in asked]
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
    steps = sum(len([step for step in text.split(recipe.task.delimiter) if step]) for text in texts)
    origin = f"measured on {len(prompts)} prompts and {len(texts)} rationales"
    return replace(assumed, step_tokens=tokens / steps, steps=steps / len(texts), origin=origin)


# ---- printing --------------------------------------------------------------------------------------------------------


def short(number: float) -> str:
    """`1.23M` of 1,234,567."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """`2.1 h` of 7,500 seconds."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{1 if seconds < 9.95 * size else 0}f} {unit}"
    return f"{seconds:.0f} s"


def render(recipe: Recipe, result: Estimate, info: ModelInfo) -> RenderableType:
    """The estimate as a table with its assumptions below, for a rich console."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{recipe.name}: expected cost (upper bound)", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("stage")
    for column in ("tokens generated", "read", "trained", "FLOPs", "time"):
        table.add_column(column, justify="right")

    def row(name: str, expected: Cost, upper: Cost, style: str = "") -> None:
        def cell(figure: Callable[[Cost], float], show: Callable[[float], str] = short) -> str:
            return f"{show(figure(expected))} ({show(figure(upper))})" if figure(upper) else "–"

        table.add_row(
            name,
            cell(lambda cost: cost.generated_tokens),
            cell(lambda cost: cost.prefill_tokens + cost.scored_tokens),
            cell(lambda cost: cost.training_tokens),
            cell(lambda cost: cost.flops),
            cell(lambda cost: cost.seconds, duration),
            style=style,
        )

    for stage in result.stages:
        row(stage.name, stage.expected, stage.upper)
    table.add_section()
    row("whole run", result.expected, result.upper, "bold")
    lines = [
        f"model: {short(info.params)} weights, {short(info.kv_bytes_per_token)}B of key-value cache a token",
        f"tokens together: {short(budget_tokens(result.expected))} ({short(budget_tokens(result.upper))})",
        f"disk: {result.disk_expected / GIGABYTE:.3g} GB ({result.disk_upper / GIGABYTE:.3g} GB)",
        "· read: prompts computed and steps scored",
        *(f"· {line}" for line in result.assumptions.lines(recipe)),
    ]
    if result.has_rates:
        lines.append("· time from a probe of this machine: rough, a factor of two either way")
    set_limits = {key: value for key, value in recipe.budget.model_dump().items() if value is not None}
    if not set_limits:
        lines.append("budget: none set")
    elif not result.over_budget:
        lines.append("budget: the upper bound stays within it")
    return Group(table, Text("\n".join(lines)), *(Text(f"! {line}", style="yellow") for line in result.over_budget))
