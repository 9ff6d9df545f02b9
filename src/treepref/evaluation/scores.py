"""What a round achieved: rows of checked solutions in, the numbers of `runs/results.py` out.

Works on plain rows. It never runs a model, checks an answer or reads a file, and knows no tree; the estimators
themselves are in `evaluation/statistics.py`. docs/evaluation.md says what each number means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypedDict

from treepref.evaluation import statistics
from treepref.evaluation.weighing import Weigh, by_both, by_logprob, by_value
from treepref.runs.results import (
    Auc,
    BeamEntry,
    Curves,
    Difference,
    DistinctRight,
    Entry,
    EqualTokens,
    GuidedEntry,
    Inference,
    Joined,
    Kind,
    RoundResult,
    SampledEntry,
    SelfEvaluation,
    ToolUse,
    ValueQuality,
)
from treepref.runs.stage import Stage
from treepref.types import Cost, Join

Method = Literal["sc", "bon", "wvote"]
"""Self-consistency (a vote), best-of-n by value, and the vote weighted by value."""

REPORTED_K = 8
"""The number of samples behind `sc@8`, `bon@8` and `wvote@8`."""


@dataclass(frozen=True, slots=True)
class Solution:
    """One finished attempt at a problem: a greedy decode, one of n samples, or what a guided search answered."""

    problem_id: str
    sample: int
    """0 … n−1; 0 where a method gives one solution a problem."""
    correct: bool
    answer: str | None
    """The final answer in canonical form, which is what votes count. None: there is none that can be read."""
    generated: int
    """Tokens sampled for it; for a search, those of every candidate."""
    scored: int = 0
    """Tokens run through the model for values alone; 0 where values come with generation."""
    value: float | None = None
    """V at the last token, in [-1, 1]. None: no value head yet, or the sample was cut."""
    finish: str = "eos"
    text: str | None = None
    forced: int = 0
    """Tokens of it that a tool forced; they are not among the generated ones."""
    strict: bool | None = None
    """Right also for a reader that knows the task's own form alone. None: stored before that was asked."""
    logprob: float | None = None
    """Mean log-prob of its tokens. None: stored before that was kept, or the sample was cut."""

    @property
    def finished(self) -> bool:
        """It came to its end: neither was it cut, nor had a search no answer to give."""
        return self.finish == "eos"

    @property
    def tokens(self) -> int:
        return self.generated + self.scored

    def as_row(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Solution:
        """Raises ValueError on a key that a solution does not have."""
        unknown = row.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(
                f"a stored solution of problem {row.get('problem_id')!r} has unknown keys {sorted(unknown)}"
            )
        return cls(**row)


@dataclass(frozen=True, slots=True)
class Scores:
    """A method on a set of problems: by problem id, the score in [0, 1] and the tokens it took."""

    score: Mapping[str, float]
    tokens: Mapping[str, float]
    draws: int
    """Independent tries behind all scores together; above the number of problems where blocks were averaged."""
    strict: Mapping[str, float] | None = None
    """The same score by the strict reader; None where it was not asked."""
    unreadable: float | None = None
    """Share of the finished solutions behind the scores in which no answer was read; None where none finished."""
    cut: float | None = None
    """Share of all of them that did not finish."""

    @property
    def accuracy(self) -> float:
        return math.fsum(self.score.values()) / len(self.score)

    @property
    def tokens_per_problem(self) -> float:
        return math.fsum(self.tokens.values()) / len(self.tokens)

    def entry(self) -> Entry:
        return Entry(**self.facts())

    def facts(self) -> EntryFacts:
        """What every kind of entry says of a method."""
        return {
            "accuracy": self.accuracy,
            "n": len(self.score),
            "interval": statistics.score_interval(list(self.score.values()), self.draws),
            "tokens_per_problem": self.tokens_per_problem,
            "strict_accuracy": _mean(self.strict.values()) if self.strict else None,
            "unreadable": self.unreadable,
            "cut": self.cut,
        }


class EntryFacts(TypedDict):
    """The fields of an `Entry`."""

    accuracy: float
    n: int
    interval: tuple[float, float]
    tokens_per_problem: float
    strict_accuracy: float | None
    unreadable: float | None
    cut: float | None


@dataclass(frozen=True, slots=True)
class JudgedNode:
    """A step that the policy judged while searching: how sure it was, and what came of it."""

    problem_id: str
    confidence: float
    """C in [0, 1]."""
    outcome: float
    """In [-1, 1]: a finished solution's reward, a step's mean over the finished solutions below it."""


# ---------------- one solution a problem


def single_scores(rows: Sequence[Solution] | None, *, needs_value: bool = True) -> Scores | None:
    """Scores of a method that answers once a problem (greedy, SBS, MCTS); None without rows.

    Scoring tokens count only where the method needs values. Raises ValueError where a problem comes twice.
    """
    if not rows:
        return None
    by_problem = {row.problem_id: row for row in rows}
    if len(by_problem) < len(rows):
        raise ValueError(f"{len(rows)} solutions for {len(by_problem)} problems: one a problem is expected")
    return Scores(
        score={key: float(row.correct) for key, row in by_problem.items()},
        tokens={key: float(row.tokens if needs_value else row.generated) for key, row in by_problem.items()},
        draws=len(by_problem),
        strict={key: float(row.strict or 0) for key, row in by_problem.items()} if _know_strict(rows) else None,
        **_shares(rows),
    )


class _Shares(TypedDict):
    unreadable: float | None
    cut: float | None


def _know_strict(rows: Iterable[Solution]) -> bool:
    return all(row.strict is not None for row in rows)


def _shares(rows: Sequence[Solution]) -> _Shares:
    """What `Scores` holds of solutions that could not be read and of those that did not finish."""
    finished = [row for row in rows if row.finished]
    return {
        "unreadable": _mean(float(row.answer is None) for row in finished),
        "cut": _mean(float(not row.finished) for row in rows),
    }


# ---------------- n samples a problem


class Samples:
    """n samples a problem. A sample that is missing (it failed) is a wrong one without answer, value or tokens."""

    def __init__(self, rows: Iterable[Solution]) -> None:
        """Raises ValueError where a sample of a problem comes twice."""
        found: dict[str, dict[int, Solution]] = {}
        for row in rows:
            if found.setdefault(row.problem_id, {}).setdefault(row.sample, row) is not row:
                raise ValueError(f"problem {row.problem_id!r}: sample {row.sample} is there twice")
        self.n: int = max((max(samples) + 1 for samples in found.values()), default=0)
        """Samples a problem."""
        self.rows: dict[str, list[Solution | None]] = {
            key: [samples.get(i) for i in range(self.n)] for key, samples in found.items()
        }
        """By problem id, in sample order; None where a sample is missing."""

    @property
    def present(self) -> list[Solution]:
        return [row for rows in self.rows.values() for row in rows if row is not None]

    @property
    def has_values(self) -> bool:
        return any(row.value is not None for row in self.present)

    @property
    def steps_of_k(self) -> list[int]:
        """1, 2, 4, 8 … and n itself."""
        powers = [2**i for i in range(self.n.bit_length()) if 2**i <= self.n]
        return powers if not powers or powers[-1] == self.n else [*powers, self.n]

    @property
    def tries(self) -> list[int]:
        """The k of pass@k: those of `steps_of_k`, and 10, which papers report."""
        return sorted({*self.steps_of_k, *([10] if self.n >= 10 else [])})


def pick(block: Sequence[Solution | None], method: Method, weigh: Weigh = by_value) -> Solution | None:
    """The solution that a method delivers out of a block of samples; None where no sample has a readable answer.

    `weigh` serves best-of-n and the weighted vote. For a vote it is the first sample with the winning answer. Ties go
    to what came first.
    """
    answered = [row for row in block if row is not None and row.answer is not None]
    if method == "sc":
        weighted = [(row, 1.0) for row in answered]
    else:
        weighted = [(row, weight) for row in answered if (weight := weigh(row)) is not None]
    if not weighted:
        return None
    if method == "bon":
        return max(weighted, key=lambda pair: pair[1])[0]
    votes: dict[str | None, float] = {}
    for row, weight in weighted:
        votes[row.answer] = votes.get(row.answer, 0.0) + weight
    winner = max(votes, key=lambda answer: votes[answer])
    return next(row for row, _ in weighted if row.answer == winner)


def sampled_scores(samples: Samples, method: Method, k: int, weigh: Weigh = by_value) -> Scores | None:
    """Scores of a method that has k samples a problem; None where there are fewer, or no values where it needs them.

    A problem's score is the mean over the ⌊n/k⌋ disjoint blocks of k consecutive samples. Samples are independent,
    so each block is an unbiased draw of the method at k, and none shares a sample with another. Self-consistency
    needs no values, and pays for none.
    """
    if not samples.rows or k > samples.n or (method != "sc" and not samples.has_values):
        return None
    blocks = samples.n // k
    score: dict[str, float] = {}
    strict: dict[str, float] = {}
    tokens: dict[str, float] = {}
    everything: list[Solution] = []
    for key, rows in samples.rows.items():
        picked = [pick(rows[i * k : (i + 1) * k], method, weigh) for i in range(blocks)]
        score[key] = sum(row is not None and row.correct for row in picked) / blocks
        strict[key] = sum(row is not None and bool(row.strict) for row in picked) / blocks
        used = [row for row in rows[: blocks * k] if row is not None]
        tokens[key] = sum(row.generated if method == "sc" else row.tokens for row in used) / blocks
        everything += used
    known = strict if _know_strict(everything) else None
    return Scores(score, tokens, blocks * len(score), known, **_shares(everything))


def pass_at(samples: Samples) -> dict[str, float] | None:
    """pass@k for k = 1, 2, 4, 8, 10 …, n, averaged over problems; None without samples."""
    if not samples.rows:
        return None
    right = [sum(row is not None and row.correct for row in rows) for rows in samples.rows.values()]
    return {str(k): math.fsum(statistics.pass_at_k(samples.n, c, k) for c in right) / len(right) for k in samples.tries}


def distinct_right(samples: Samples) -> DistinctRight | None:
    """Right solutions that differ in more than white space; None where texts were not kept.

    methods: DPO-ST reports it beside pass@k, as the variety that self-training lives on.
    """
    if not any(row.text is not None for row in samples.present):
        return None
    counts = [
        len({re.sub(r"\s+", " ", row.text).strip() for row in rows if row and row.correct and row.text is not None})
        for rows in samples.rows.values()
    ]
    return DistinctRight(
        total=sum(counts), per_problem=sum(counts) / len(counts), solved_problems=sum(c > 0 for c in counts)
    )


def value_quality(samples: Samples) -> ValueQuality:
    """How well V tells right solutions from wrong ones; every entry is None while there are no values.

    `auc` is over all samples, so it also rewards knowing hard problems from easy ones; `auc_within` is the mean over
    problems with both kinds, which is what best-of-n and SBS live on.
    """
    valued = [row for row in samples.present if row.value is not None]
    if not valued:
        return ValueQuality(auc=None, auc_within=None, calibration=None, calibration_error=None, n=0)
    within = []
    for rows in samples.rows.values():
        scored = [row for row in rows if row is not None and row.value is not None]
        within.append(statistics.auc([row.value or 0.0 for row in scored], [row.correct for row in scored]))
    mixed = [a for a in within if a is not None]
    values, outcomes = [row.value or 0.0 for row in valued], [row.correct for row in valued]
    bins = statistics.calibration(values, outcomes)
    return ValueQuality(
        auc=statistics.auc(values, outcomes),
        auc_within=_mean(mixed),
        calibration=bins,
        calibration_error=statistics.calibration_error(bins),
        n=len(valued),
    )


def joined_scores(samples: Samples, join: Join | None) -> Joined | None:
    """What V, the log-prob and both joined make of the same samples; None where nothing learned to join them.

    At `REPORTED_K` samples: best-of-n by each, the vote weighted by both, and each paired against the plain vote and
    against V alone; over all samples, the AUC of each and its mean within a problem.
    """
    if join is None or not samples.has_values:
        return None
    both, plain = by_both(join), sampled_scores(samples, "sc", REPORTED_K)
    found: dict[str, Scores | None] = {
        "bon_value": sampled_scores(samples, "bon", REPORTED_K),
        "bon_logprob": sampled_scores(samples, "bon", REPORTED_K, by_logprob),
        "bon_joint": sampled_scores(samples, "bon", REPORTED_K, both),
        "wvote_joint": sampled_scores(samples, "wvote", REPORTED_K, both),
    }
    kinds: dict[str, Weigh] = {"value": by_value, "logprob": by_logprob, "joint": both}
    return Joined(
        join=join,
        eval={f"{name}@{REPORTED_K}": None if s is None else s.entry() for name, s in found.items()},
        paired={f"{name}_vs_sc": _paired(plain, s) for name, s in found.items()}
        | {f"{name}_vs_value": _paired(found["bon_value"], s) for name, s in found.items() if name != "bon_value"},
        auc={name: _auc_of(samples, weigh) for name, weigh in kinds.items()},
    )


def _auc_of(samples: Samples, weigh: Weigh) -> Auc:
    """Over all samples, and the mean over the problems with right and wrong ones."""
    rows = [
        [(w, row.correct) for row in rows if row and (w := weigh(row)) is not None] for rows in samples.rows.values()
    ]
    within = [a for of in rows if (a := statistics.auc([w for w, _ in of], [right for _, right in of])) is not None]
    every = [pair for of in rows for pair in of]
    return Auc(auc=statistics.auc([w for w, _ in every], [right for _, right in every]), auc_within=_mean(within))


def self_evaluation_quality(ends: Sequence[JudgedNode], steps: Sequence[JudgedNode]) -> SelfEvaluation | None:
    """How well C, the policy's own judgement, tells right from wrong in a round's search trees; None without any C.

    methods: MCTS-DPO reports the AUC of C. `ends` are finished solutions; `steps` stand before the end, and count as
    right where the mean outcome of the finished solutions below them is above 0. Both are reported apart: at an end
    the whole solution is judged, at a step only its beginning.
    """
    if not ends and not steps:
        return None
    confidences, labels = [node.confidence for node in ends], [node.outcome > 0 for node in ends]
    # `calibration` reads a value in [-1, 1] as the chance (V + 1)/2; C is the chance itself.
    bins = statistics.calibration([2 * c - 1 for c in confidences], labels)
    by_problem: dict[str, list[JudgedNode]] = {}
    for node in ends:
        by_problem.setdefault(node.problem_id, []).append(node)
    return SelfEvaluation(
        auc=statistics.auc(confidences, labels),
        auc_within=_mean(
            a
            for found in by_problem.values()
            if (a := statistics.auc([n.confidence for n in found], [n.outcome > 0 for n in found])) is not None
        ),
        auc_steps=statistics.auc([n.confidence for n in steps], [n.outcome > 0 for n in steps]),
        n=len(ends),
        n_steps=len(steps),
        mean_right=_mean(c for c, right in zip(confidences, labels, strict=True) if right),
        mean_wrong=_mean(c for c, right in zip(confidences, labels, strict=True) if not right),
        calibration=bins or None,
        calibration_error=statistics.calibration_error(bins),
    )


def tool_use(rows: Sequence[Solution] | None) -> ToolUse | None:
    """How often solutions called a tool, and how they fared with and without; None without rows."""
    if not rows:
        return None
    used, alone = [row for row in rows if row.forced], [row for row in rows if not row.forced]
    return ToolUse(
        share=len(used) / len(rows),
        forced_tokens=sum(row.forced for row in rows) / len(rows),
        accuracy_with=_mean(float(row.correct) for row in used),
        accuracy_without=_mean(float(row.correct) for row in alone),
        n=len(rows),
    )


# ---------------- what it cost


def kind_of_stage(stage: str, cost: Cost) -> Kind:
    """What a stage's cost was for, by its name `round-K/…`: its first word tells evaluation from the rest, and what
    trained tokens is training."""
    found = Stage.read(stage)
    if found is not None and found.name == "eval":
        return "evaluation"
    return "training" if cost.training_tokens else "search"


def cost_by_kind(costs: Mapping[str, Cost]) -> dict[Kind, Cost]:
    """A run's stages added up by kind. `search` is all generation of training data, whole solutions included."""
    found: dict[Kind, Cost] = {"search": Cost(), "training": Cost(), "evaluation": Cost()}
    for stage, cost in costs.items():
        kind = kind_of_stage(stage, cost)
        found[kind] += cost
    return found


def cost_of_policy(costs: Mapping[str, Cost], round: int) -> dict[Kind, Cost]:
    """What it took to get the policy of a round: search and training up to and with it, without evaluation."""
    below = {name: cost for name, cost in costs.items() if (stage := Stage.read(name)) and stage.round <= round}
    return {kind: cost for kind, cost in cost_by_kind(below).items() if kind != "evaluation"}


def inference_of(costs: Mapping[str, Cost], round: int, problems: int) -> Inference | None:
    """From the cost of the round's greedy decoding over so many problems; None where it is not stored."""
    cost = costs.get(str(Stage(round, "eval", "greedy")), Cost())
    computed = cost.generated_tokens + cost.prefill_tokens + cost.scored_tokens
    if not problems or not computed or not cost.flops:
        return None
    return Inference(flops_per_token=cost.flops / computed, prompt_tokens=cost.prefill_tokens / problems)


# ---------------- at equal tokens


def scores_over_k(samples: Samples, method: Method) -> dict[int, Scores]:
    """Scores at every k of `steps_of_k` for which they exist."""
    return {k: s for k in samples.steps_of_k if (s := sampled_scores(samples, method, k)) is not None}


def at_equal_tokens(method: Scores, curve: Sequence[Scores]) -> EqualTokens | None:
    """A method against self-consistency at the same tokens a problem, on the same problems, with a paired interval.

    `curve` is self-consistency over increasing k. Between two measured k it is interpolated linearly in log tokens,
    problem by problem. None where the method's tokens lie outside the measured range.
    """
    position = statistics.log_position(method.tokens_per_problem, [s.tokens_per_problem for s in curve])
    if position is None:
        return None
    index, weight = position
    lower, upper = curve[index].score, curve[min(index + 1, len(curve) - 1)].score
    mixed = {key: (1 - weight) * lower[key] + weight * upper[key] for key in lower}
    found = statistics.paired_difference(mixed, method.score)
    if found is None:
        return None
    shared = mixed.keys() & method.score.keys()
    return EqualTokens(
        sc_accuracy=math.fsum(mixed[key] for key in shared) / len(shared),
        difference=found.difference,
        interval=found.interval,
        n=found.n,
    )


def curves(samples: Samples, sbs: Mapping[tuple[int, int], Scores | None], mcts: Scores | None) -> Curves:
    """Accuracy against tokens: points over k for the sampled methods, one a width for SBS, and MCTS."""
    sampled = {method: scores_over_k(samples, method) for method in ("sc", "bon", "wvote")}
    baseline = list(sampled["sc"].values())
    points = {method: [SampledEntry(k=k, **s.facts()) for k, s in of.items()] or None for method, of in sampled.items()}
    widths = [
        BeamEntry(b1=b1, b2=b2, equal_tokens=at_equal_tokens(s, baseline), **s.facts())
        for (b1, b2), s in sorted(sbs.items())
        if s is not None
    ]
    return Curves(
        **points,
        sbs=sorted(widths, key=lambda point: point.tokens_per_problem) or None,
        mcts=None if mcts is None else GuidedEntry(equal_tokens=at_equal_tokens(mcts, baseline), **mcts.facts()),
    )


# ---------------- a round, a run


def round_summary(
    greedy: Sequence[Solution] | None,
    samples: Sequence[Solution] | None,
    sbs: Mapping[tuple[int, int], Sequence[Solution] | None] | None,
    mcts: Sequence[Solution] | None,
    previous: Sequence[Solution] | None,
    *,
    number: int = 0,
    first: Sequence[Solution] | None = None,
    tools: bool = False,
    join: Join | None = None,
) -> RoundResult:
    """What a round's evaluation found.

    `samples` are n samples a problem; `sbs` maps (B1, B2) to one solution a problem; `previous` and `first` are the
    greedy solutions of the round before and of round 0; `tools` says that decoding had a tool at hand; `join` is how V
    and log-probs are joined.
    """
    drawn = Samples(samples or ())
    one = single_scores(greedy, needs_value=False)
    beams = {width: single_scores(rows) for width, rows in (sbs or {}).items()}
    beams.setdefault((2, 4), None)
    tree = single_scores(mcts)

    methods: dict[str, Scores | None] = {"greedy": one}
    for method in ("sc", "bon", "wvote"):
        methods[f"{method}@{REPORTED_K}"] = sampled_scores(drawn, method, REPORTED_K)
    methods |= {f"sbs({b1},{b2})": scores for (b1, b2), scores in sorted(beams.items())}
    methods["mcts"] = tree

    paired = {
        "greedy_vs_previous": _paired(single_scores(previous, needs_value=False), one),
        "greedy_vs_first": _paired(single_scores(first, needs_value=False), one),
    }
    paired |= {f"{name}_vs_greedy": _paired(one, scores) for name, scores in methods.items() if name != "greedy"}
    return RoundResult(
        round=number,
        eval={name: None if scores is None else scores.entry() for name, scores in methods.items()},
        pass_at=pass_at(drawn),
        distinct_right=distinct_right(drawn),
        paired=paired,
        value=value_quality(drawn),
        joined=joined_scores(drawn, join),
        tool_use={"greedy": tool_use(greedy), "samples": tool_use(samples)} if tools else None,
        curves=curves(drawn, beams, tree),
    )


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return math.fsum(found) / len(found) if found else None


def _paired(a: Scores | None, b: Scores | None) -> Difference | None:
    """b − a; None where one is missing, or they share no problem."""
    return None if a is None or b is None else statistics.paired_difference(a.score, b.score)
