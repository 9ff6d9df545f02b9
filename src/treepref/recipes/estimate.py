"""What an estimate of a recipe's cost rests on, what its tokens cost, and how it is printed.

The tokens themselves are counted by a dry run of the recipe's own rules (`loops/estimate.py`). Only a model's config is
read, no weights; no problem is solved. Seconds come from a short probe of the machine and are rough: a factor of two
either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from treepref.config import DpoStRecipe, Recipe, SearchConfig, TreeRecipe
from treepref.recipes.sizing import ModelInfo, Rates
from treepref.report.grid import Cell, Grid, for_terminal
from treepref.report.numbers import count, duration
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
    differ: float = 0.8
    """Different samples of an expansion, as a share of all: where few differ, trees run out of open leaves."""
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
            own = f"{self.differ:.0%} of the samples differ from their siblings, {own}"
        if recipe.self_evaluation:
            own += f", a question about a step has {self.question_tokens:.0f} tokens"
        return [
            f"a prompt has {self.prompt_tokens:.0f} tokens, a step {self.step_tokens:.0f}, a solution {self.steps:.1f} "
            f"steps ({self.origin})",
            f"{own}; shared prefixes are computed once",
            "FLOPs: 2 a weight and token forward, 6 in training, 4 with LoRA (Kaplan et al. 2020, arXiv 2001.08361, "
            "section 2.1); attention is left out",
            "upper bound: every simulation spent, every step as long as allowed, no prefix ever reused",
            "counted by a dry run of the recipe's own rules, a search on up to 16 made-up problems",
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


def default_assumptions(recipe: Recipe) -> Assumptions:
    """Lengths where nothing is known of the problems: half of what the recipe allows, prompts of 100 tokens."""
    steps = step_limits(recipe)
    return Assumptions(100, max(1.0, steps.max_step_tokens / 2), max(1.0, (steps.max_depth + 1) / 2))


def step_limits(recipe: Recipe) -> SearchConfig:
    """What a step and a solution may be; dpo_st, which samples whole solutions, is given the others' defaults."""
    return recipe.search if isinstance(recipe, TreeRecipe) else SearchConfig()


@dataclass(frozen=True, slots=True)
class Price:
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


def disk(recipe: Recipe, info: ModelInfo, searched_tokens: int) -> int:
    """Bytes: a model folder a round (dpo_st: two; and one after a warm-up), the last two training states (weights and
    AdamW's two float32 moments; small with LoRA), the stored trees, and a few megabytes of tokenizer, report and log a
    round."""
    weights = info.params * info.bytes_per_param
    a_round = 2 if isinstance(recipe, DpoStRecipe) and recipe.self_training.dpo else 1
    folders = recipe.rounds * a_round + (recipe.warmup.epochs > 0)
    state = 0 if recipe.model.lora else weights + 8 * info.params
    return folders * (weights + 5_000_000) + (2 * state if folders else 0) + searched_tokens * TOKEN_BYTES + 5_000_000


def over_budget(recipe: Recipe, result: Estimate) -> list[str]:
    limits = recipe.budget
    figures: list[tuple[str, float | None, float, float, Callable[[float], str]]] = [
        ("tokens", limits.tokens, budget_tokens(result.expected), budget_tokens(result.upper), count),
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


# ---- printing --------------------------------------------------------------------------------------------------------


def render(recipe: Recipe, result: Estimate, info: ModelInfo) -> RenderableType:
    """The estimate as a table with its assumptions below, for a rich console."""
    from rich.console import Group
    from rich.text import Text

    heads = ["stage", "tokens generated", "read", "trained", "FLOPs", "time"]
    rows = [_row(stage.name, stage.expected, stage.upper) for stage in result.stages]
    rows.append(_row("whole run", result.expected, result.upper, "strong"))
    table = for_terminal(Grid(heads, rows, f"{recipe.name}: expected cost, beneath it the upper bound"))
    lines = [
        f"model: {count(info.params)} weights, {count(info.kv_bytes_per_token)}B of key-value cache a token",
        f"tokens together: {count(budget_tokens(result.expected))} (≤ {count(budget_tokens(result.upper))})",
        f"disk: {result.disk_expected / GIGABYTE:.3g} GB (≤ {result.disk_upper / GIGABYTE:.3g} GB)",
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


def _row(name: str, expected: Cost, upper: Cost, tone: str = "") -> list[Cell]:
    figures: list[tuple[float, float, Callable[[float], str]]] = [
        (expected.generated_tokens, upper.generated_tokens, count),
        (expected.prefill_tokens + expected.scored_tokens, upper.prefill_tokens + upper.scored_tokens, count),
        (expected.training_tokens, upper.training_tokens, count),
        (expected.flops, upper.flops, count),
        (expected.seconds, upper.seconds, duration),
    ]
    cells = [Cell(show(likely), [f"≤ {show(most)}"], tone) if most else Cell() for likely, most, show in figures]
    return [Cell(name, tone=tone), *cells]
