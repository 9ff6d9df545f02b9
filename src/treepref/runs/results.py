"""What a run achieved and what several runs did side by side: results.json and compare.json, typed.

Everything that is stored, printed or drawn of results has one of these forms; docs/evaluation.md says what each number
means. Shares and intervals lie in [0, 1] (differences in [-1, 1]), intervals are (low, high) at 95 %. What does not
exist is None, never 0. Keys are added and none is taken away, so files of older versions read with None in their
place; what an older version has and this one does not is left out.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

import msgspec

from treepref.types import Cost, Join

RESULTS_SCHEMA = 1
"""Version of results.json."""
COMPARISON_SCHEMA = 1
"""Version of compare.json."""

Interval = tuple[float, float]
"""(low, high) at 95 %."""

Kind = Literal["search", "training", "evaluation"]
"""What tokens and FLOPs were spent on."""

Outcome = Literal["right", "wrong", "unreadable", "cut"]
"""`unreadable`: finished, and no answer can be read. `cut`: stopped at a limit before its end, or never came."""


class _Form(msgspec.Struct, frozen=True):
    """Base of all; each is immutable and made by keyword, which pyright and msgspec want said class by class."""


# ---- an accuracy, a difference ---------------------------------------------------------------------------------------


class Entry(_Form, frozen=True, kw_only=True):
    """A method's accuracy on held-out problems."""

    accuracy: float
    n: int
    """Problems."""
    interval: Interval
    tokens_per_problem: float
    strict_accuracy: float | None = None
    """By a reader that knows the task's own form alone; None where that was not asked."""
    unreadable: float | None = None
    """Share of the finished solutions in which no answer was read; None where none finished."""
    cut: float | None = None
    """Share of all solutions that did not finish."""


class Difference(_Form, frozen=True, kw_only=True):
    """Mean of paired differences b − a over n problems, with its interval and, for 0/1 scores, McNemar's test."""

    difference: float
    interval: Interval
    n: int
    better: int
    """Problems where b scores above a."""
    worse: int
    mcnemar_p: float | None
    """None where a score is not 0 or 1."""


class EqualTokens(_Form, frozen=True, kw_only=True):
    """A method against self-consistency at that method's own tokens a problem."""

    sc_accuracy: float
    difference: float
    interval: Interval
    n: int


class SampledEntry(Entry, frozen=True, kw_only=True):
    """A vote or best-of-n at k samples."""

    k: int


class GuidedEntry(Entry, frozen=True, kw_only=True):
    """A search guided by V."""

    equal_tokens: EqualTokens | None
    """None outside the range of tokens that was measured."""


class BeamEntry(GuidedEntry, frozen=True, kw_only=True):
    """Step beam search of one width."""

    b1: int
    b2: int

    @property
    def name(self) -> str:
        return f"sbs({self.b1},{self.b2})"


class Curves(_Form, frozen=True, kw_only=True):
    """Accuracy against tokens a problem; None where a method was not evaluated."""

    sc: list[SampledEntry] | None = None
    bon: list[SampledEntry] | None = None
    wvote: list[SampledEntry] | None = None
    sbs: list[BeamEntry] | None = None
    mcts: GuidedEntry | None = None


# ---- what a round's evaluation says beside it ------------------------------------------------------------------------


class CalibrationBin(_Form, frozen=True, kw_only=True):
    """Solutions whose predicted chance of being right lies in [low, high)."""

    low: float
    high: float
    predicted: float
    """Mean prediction in the bin."""
    observed: float
    """Share that was right."""
    interval: Interval
    n: int


class Auc(_Form, frozen=True, kw_only=True):
    """Chance that a right solution scores above a wrong one: over all, and its mean within problems with both."""

    auc: float | None
    auc_within: float | None


class ValueQuality(Auc, frozen=True, kw_only=True):
    """How well V tells right solutions from wrong ones."""

    calibration: list[CalibrationBin] | None
    calibration_error: float | None
    n: int
    """Samples with a value."""


class SelfEvaluation(Auc, frozen=True, kw_only=True):
    """How well C, the policy's own judgement, does so in a round's search trees."""

    auc_steps: float | None
    n: int
    n_steps: int
    mean_right: float | None
    mean_wrong: float | None
    calibration: list[CalibrationBin] | None
    calibration_error: float | None


class Joined(_Form, frozen=True, kw_only=True):
    """What V, the log-prob and both joined make of the same samples."""

    join: Join
    eval: dict[str, Entry | None]
    paired: dict[str, Difference | None]
    auc: dict[str, Auc]


class FitAuc(Auc, frozen=True, kw_only=True):
    n: int


class DepthAuc(FitAuc, frozen=True, kw_only=True):
    depth: int


class Place(_Form, frozen=True, kw_only=True):
    """Where a value head reads: the hidden states after `layer` (−1: the last), pooled over the solution so far."""

    layer: int
    pool: str


class TriedPlace(Place, frozen=True, kw_only=True):
    loss: float


class ValueFit(_Form, frozen=True, kw_only=True):
    """What the fit of a value head found on training problems that were held back."""

    by_depth: list[DepthAuc]
    value: FitAuc
    logprob: FitAuc
    joint: FitAuc
    before: FitAuc | None = None
    """V as training left it; None where there was no head before."""
    calibration_error: float | None
    steps: int
    problems: int
    read: Place
    penalty: float
    join: tuple[float, float, float]
    reads_tried: list[TriedPlace]


class ToolUse(_Form, frozen=True, kw_only=True):
    """How often solutions called a tool, and how they fared with and without."""

    share: float
    forced_tokens: float
    """A solution."""
    accuracy_with: float | None
    accuracy_without: float | None
    n: int


class DistinctRight(_Form, frozen=True, kw_only=True):
    """Right solutions among the samples that differ in more than white space."""

    total: int
    per_problem: float
    solved_problems: int
    """Those with at least one."""


class Inference(_Form, frozen=True, kw_only=True):
    """What answering costs, as measured in greedy decoding: enough to price any method by its tokens a problem."""

    flops_per_token: float
    prompt_tokens: float
    """Prompt tokens computed a problem (once, however many samples share it); tokens forced by a tool among them."""

    def flops(self, tokens_per_problem: float) -> float:
        """FLOPs a problem of a method that generates and scores so many tokens."""
        return self.flops_per_token * (self.prompt_tokens + tokens_per_problem)


class RoundInference(Inference, frozen=True, kw_only=True):
    flops_per_problem: dict[str, float]
    """By method."""


class Example(_Form, frozen=True, kw_only=True):
    """A solution that is not right, to look at."""

    problem_id: str
    outcome: Outcome
    text: str | None
    """None where it was not kept."""
    read: str | None
    """The answer in canonical form; None where none can be read."""
    answer: str
    """The problem's own."""


class Outcomes(_Form, frozen=True, kw_only=True):
    """Solutions counted by what became of them."""

    right: int
    wrong: int
    unreadable: int
    cut: int
    unreadable_share: float | None
    """Of the finished; None where none is."""
    cut_share: float | None
    """Of all."""
    examples: list[Example]

    @property
    def finished(self) -> int:
        return self.right + self.wrong + self.unreadable

    @property
    def total(self) -> int:
        return self.finished + self.cut


class SearchOutcomes(Outcomes, frozen=True, kw_only=True):
    """What a stage that grows trees has found so far; the counts are of its first `trees_read` trees."""

    stage: str
    round: int
    trees: int
    solved: int
    """Trees with a right solution."""
    mixed: int
    """Trees with right and wrong ones."""
    unsolved: int
    tokens: int | None = None
    right_per_1000_tokens: float | None = None
    wrong_per_1000_tokens: float | None = None
    trees_read: int


# ---- a round, a run --------------------------------------------------------------------------------------------------


class RoundResult(_Form, frozen=True, kw_only=True):
    """One round's policy. The fields from `examples` on are added when the run is read."""

    round: int
    eval: dict[str, Entry | None]
    """By method: `greedy`, `sc@8`, `bon@8`, `wvote@8`, `sbs(2,4)` and every other width evaluated, `mcts`."""
    pass_at: dict[str, float] | None = msgspec.field(name="pass@k")
    """By k as text."""
    distinct_right: DistinctRight | None = None
    paired: dict[str, Difference | None]
    """`greedy_vs_previous`, `greedy_vs_first`, and `METHOD_vs_greedy` of every method in `eval`."""
    value: ValueQuality
    joined: Joined | None = None
    tool_use: dict[str, ToolUse | None] | None = None
    """By `greedy` and `samples`; None without a tool."""
    curves: Curves
    examples: list[Example] = []
    self_evaluation: SelfEvaluation | None = None
    fit: ValueFit | None = None
    inference: RoundInference | None = None

    @property
    def evaluated(self) -> dict[str, Entry]:
        """The methods that were evaluated."""
        return {name: entry for name, entry in self.eval.items() if entry is not None}


class Results(_Form, frozen=True, kw_only=True):
    """results.json."""

    schema: int = RESULTS_SCHEMA
    recipe: dict[str, Any]
    """As run."""
    seed: int
    rounds: list[RoundResult]
    search: list[SearchOutcomes] | None = None
    best_round: int | None = None
    """The round with the highest greedy accuracy, the first of equal ones."""
    unfinished: list[str] | None = None
    """Stages that were begun and are not done."""
    stopped: str | None = None
    """What ended the run's last life."""
    cost: Cost
    cost_by_kind: dict[Kind, Cost] | None = None


# ---- several runs ----------------------------------------------------------------------------------------------------


class SeedDifference(_Form, frozen=True, kw_only=True):
    """A paired difference of one run, or its mean over seeds."""

    difference: float
    interval: Interval
    """For other problems."""
    n: int
    better: int | None = None
    worse: int | None = None
    mcnemar_p: float | None = None
    seed_interval: Interval | None
    """For other seeds; None for a single one."""
    per_seed: list[float]


class Point(Entry, frozen=True, kw_only=True):
    """A method's accuracy and costs, of one run or as the mean over seeds."""

    method: str
    seed_interval: Interval | None
    per_seed: list[float]
    flops_per_problem: float | None


class MeanCost(_Form, frozen=True, kw_only=True):
    """A cost, or its mean over seeds."""

    tokens: float
    """All that ran through the model: generated, prefilled, scored, trained."""
    generated_tokens: float
    prefill_tokens: float
    cached_tokens: float
    scored_tokens: float
    training_tokens: float
    flops: float
    seconds: float


class StartPoint(Point, frozen=True, kw_only=True):
    """What the start policy makes of samples, against the trained greedy answer."""

    trained_minus_this: SeedDifference | None
    break_even_problems: float | None
    """Training has cost less in all from so many problems on; None where it never has."""


class Trade(_Form, frozen=True, kw_only=True):
    """Training against samples at inference."""

    round: int
    training: MeanCost
    """Since round 0."""
    greedy: Point
    start: list[StartPoint]
    reached_by: str | None
    """The first of the start's methods that is as accurate."""


class ComparedRound(_Form, frozen=True, kw_only=True):
    round: int
    training: dict[str, MeanCost]
    """By `search`, `training` and `all`, up to and with this round."""
    inference: Inference | None
    points: list[Point]
    pass_at: dict[str, float] | None = msgspec.field(name="pass@k")
    distinct_right: float | None
    """A problem."""
    vs_start: dict[str, SeedDifference] | None
    vs_baseline: dict[str, SeedDifference] | None


class RunName(_Form, frozen=True, kw_only=True):
    name: str
    folder: str
    seed: int


class ComparedEntry(_Form, frozen=True, kw_only=True):
    """One run, or several seeds of one recipe."""

    name: str
    recipe: str
    method: str
    runs: list[RunName]
    rounds: list[ComparedRound]
    training_against_samples: Trade | None


class Comparison(_Form, frozen=True, kw_only=True):
    """compare.json."""

    schema: int = COMPARISON_SCHEMA
    baseline: str
    entries: list[ComparedEntry]
    notes: list[str]


# ---- as JSON ---------------------------------------------------------------------------------------------------------

Form = TypeVar("Form", bound=_Form)


def plain(form: _Form) -> Any:
    """As JSON has it. Raises ValueError where a number is NaN or infinite."""
    return json.loads(as_json(form))


def as_json(form: _Form, indent: int | None = None) -> str:
    """Strict JSON. Raises ValueError where a number is NaN or infinite."""
    return json.dumps(msgspec.to_builtins(form, str_keys=True), indent=indent, allow_nan=False)


def from_plain(found: object, kind: type[Form]) -> Form:
    """What `plain` made, perhaps by an older version. Raises ValueError where it is of another form."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:  # a ValueError from msgspec 0.21 on
        raise ValueError(str(error)) from error
