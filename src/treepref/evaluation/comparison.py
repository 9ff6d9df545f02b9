"""Several runs side by side: what each round of each cost to train and to ask, and paired differences between them.

Works on plain scores. It reads no store and draws nothing (`loops/compare.py` and `report/compare.py` do), and knows
neither trees nor what a method of training is. docs/evaluation.md says what each number means.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from msgspec import structs

from treepref.evaluation import statistics
from treepref.evaluation.scores import EntryFacts, Scores
from treepref.runs.results import (
    ComparedEntry,
    ComparedRound,
    Comparison,
    Inference,
    Kind,
    MeanCost,
    Point,
    RunName,
    SeedDifference,
    StartPoint,
    Trade,
)
from treepref.types import Cost


@dataclass(frozen=True, slots=True)
class RoundScores:
    """A round's policy: how well it answers in each way, and what it took to get it."""

    round: int
    methods: Mapping[str, Scores]
    """By `greedy`, `sc@1` … `sc@n`, `bon@k`, `wvote@k`, `sbs(B1,B2)`, `mcts`. The keys of the scores stand for a
    problem with its content: an id that means another problem in another run must be another key."""
    spent: Mapping[Kind, Cost]
    """Search and training up to and with this round."""
    inference: Inference | None = None
    pass_at: Mapping[str, float] | None = None
    distinct_right: float | None = None
    """Distinct right solutions a problem, among its samples."""

    @property
    def training(self) -> Cost:
        return sum(self.spent.values(), Cost())


@dataclass(frozen=True, slots=True)
class RunScores:
    """A run as far as it was evaluated."""

    name: str
    folder: str
    recipe: str
    method: str
    seed: int
    identity: str
    """Equal for runs of one recipe that differ in nothing but their seed."""
    rounds: Sequence[RoundScores]
    """In order; never empty."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Problem id → the key that its scores have."""
    notes: Sequence[str] = ()

    def round(self, number: int) -> RoundScores | None:
        return next((found for found in self.rounds if found.round == number), None)

    @property
    def last(self) -> RoundScores:
        return self.rounds[-1]


@dataclass(frozen=True, slots=True)
class Entry:
    """One run, or several seeds of one recipe: a line of the tables and plots."""

    name: str
    runs: Sequence[RunScores]

    @property
    def numbers(self) -> list[int]:
        """Rounds that all its runs have evaluated."""
        return [r.round for r in self.runs[0].rounds if all(run.round(r.round) is not None for run in self.runs)]

    def at(self, number: int) -> list[RoundScores]:
        return [found for run in self.runs if (found := run.round(number)) is not None]


def compare_runs(runs: Sequence[RunScores], *, baseline: str | None = None, group: bool = True) -> Comparison:
    """The comparison. `baseline` is a run's name (None: the first run); `group` joins runs that differ in their seed.

    Raises ValueError without a run, where two share a name, or where no run has the baseline's name.
    """
    if not runs:
        raise ValueError("there is no run to compare")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"two runs share a name: {sorted(n for n, c in Counter(names).items() if c > 1)}")
    baseline = names[0] if baseline is None else baseline
    if baseline not in names:
        raise ValueError(f"no run is called {baseline!r}; there are {', '.join(names)}")
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    entries = grouped(runs, notes) if group else [Entry(run.name, [run]) for run in runs]
    base = next(entry for entry in entries if any(run.name == baseline for run in entry.runs))
    compared = [_entry(entry, base, notes) for entry in entries]  # adds to the notes
    return Comparison(baseline=base.name, entries=compared, notes=list(dict.fromkeys(notes)))


def grouped(runs: Sequence[RunScores], notes: list[str]) -> list[Entry]:
    """Runs that differ in their seed alone become one entry; a seed that comes again stays by itself, with a note."""
    members: dict[str, list[RunScores]] = {}
    for run in runs:
        found = members.setdefault(run.identity, [])
        if any(other.seed == run.seed for other in found):
            notes.append(f"{run.name} has recipe and seed of another run: it is shown by itself")
            members[f"{run.identity} again {run.name}"] = [run]
        else:
            found.append(run)
    return [Entry(found[0].name if len(found) == 1 else _group_name(found), found) for found in members.values()]


def _group_name(runs: Sequence[RunScores]) -> str:
    """`seed-*-low` of `seed-0-low` and `seed-1-low`; the recipe's name where the runs' names share nothing."""
    names = [run.name for run in runs]
    start = _common_start(names)
    end = _common_start([name[len(start) :][::-1] for name in names])[::-1]
    return f"{start}*{end}" if start or end else f"{runs[0].recipe}, {len(runs)} seeds"


def _common_start(texts: Sequence[str]) -> str:
    columns = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in columns)


# ---------------- an entry


def _entry(entry: Entry, base: Entry, notes: list[str]) -> ComparedEntry:
    first = entry.runs[0]
    numbers = entry.numbers
    partners = _partners(entry, base, notes)
    rounds = []
    for number in numbers:
        found = entry.at(number)
        start = entry.at(0) if number else None
        alone = partners is None or entry is base or (number == 0 and len(numbers) > 1)
        against = None if alone else [run.last for run in partners or ()]
        rounds.append(_round(found, start, against))
    return ComparedEntry(
        name=entry.name,
        recipe=first.recipe,
        method=first.method,
        runs=[RunName(name=run.name, folder=run.folder, seed=run.seed) for run in entry.runs],
        rounds=rounds,
        training_against_samples=_trade(entry),
    )


def _round(
    found: Sequence[RoundScores], start: Sequence[RoundScores] | None, against: Sequence[RoundScores] | None
) -> ComparedRound:
    """A round of one run, or of each seed's; `start` and `against` are the rounds it is paired with, seed by seed."""
    shared = [name for name in found[0].methods if all(name in one.methods for one in found)]
    tries = found[0].pass_at or {}
    passed = {k: _mean([one.pass_at[k] for one in found if one.pass_at and k in one.pass_at]) for k in tries}
    return ComparedRound(
        round=found[0].round,
        training={kind: _mean_cost([one.spent[kind] for one in found]) for kind in found[0].spent}
        | {"all": _mean_cost([one.training for one in found])},
        inference=_mean_inference(found),
        points=[_point(name, found) for name in shared],
        pass_at={k: share for k, share in passed.items() if share is not None} or None,
        distinct_right=_mean([one.distinct_right for one in found if one.distinct_right is not None]),
        vs_start=None if start is None else _differences(start, found, shared),
        vs_baseline=None if against is None else _differences(against, found, shared),
    )


def _point(method: str, found: Sequence[RoundScores]) -> Point:
    """A method's accuracy with its interval, its tokens and its FLOPs a problem."""
    scores = [one.methods[method] for one in found]
    inference = [one.inference for one in found]
    flops = [i.flops(s.tokens_per_problem) for i, s in zip(inference, scores, strict=True) if i is not None]
    a_problem = _mean(flops) if len(flops) == len(scores) else None
    if len(scores) == 1:
        facts, per_seed, seed_interval = scores[0].facts(), [scores[0].accuracy], None
    else:
        # A mean accuracy is the mean difference from nothing: its interval counts a problem that seeds share once.
        mean = statistics.mean_over_seeds([(dict.fromkeys(s.score, 0.0), s.score) for s in scores])
        facts, per_seed, seed_interval = _mean_facts(scores, mean), list(mean.per_seed), _within(mean.seed_interval)
    return Point(method=method, seed_interval=seed_interval, per_seed=per_seed, flops_per_problem=a_problem, **facts)


def _mean_facts(scores: Sequence[Scores], mean: statistics.SeedMean) -> EntryFacts:
    """Of one method over seeds; a share is None where it is not known of one of them."""
    facts = [one.facts() for one in scores]
    return {
        "accuracy": mean.difference,
        "n": mean.n,
        "interval": _within(mean.interval) or (0.0, 1.0),
        "tokens_per_problem": math.fsum(one["tokens_per_problem"] for one in facts) / len(facts),
        "strict_accuracy": _mean_known([one["strict_accuracy"] for one in facts]),
        "unreadable": _mean_known([one["unreadable"] for one in facts]),
        "cut": _mean_known([one["cut"] for one in facts]),
    }


def _within(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """An interval of shares: what lies outside 0 and 1 is cut off."""
    return None if interval is None else (min(1.0, max(0.0, interval[0])), min(1.0, max(0.0, interval[1])))


# ---------------- paired differences


def difference(pairs: Sequence[tuple[Scores, Scores]]) -> SeedDifference | None:
    """b − a of one run, or the mean over seeds, on the problems that both scored; None where they share none."""
    if not pairs or any(not (a.score.keys() & b.score.keys()) for a, b in pairs):
        return None
    if len(pairs) == 1:
        found = statistics.paired_difference(pairs[0][0].score, pairs[0][1].score)
        if found is None:
            return None
        return SeedDifference(
            difference=found.difference, interval=found.interval, n=found.n, better=found.better, worse=found.worse,
            mcnemar_p=found.mcnemar_p, seed_interval=None, per_seed=[found.difference],
        )  # fmt: skip
    mean = statistics.mean_over_seeds([(a.score, b.score) for a, b in pairs])
    return SeedDifference(
        difference=mean.difference, interval=mean.interval, n=mean.n, seed_interval=mean.seed_interval,
        per_seed=list(mean.per_seed),
    )  # fmt: skip


def _differences(
    earlier: Sequence[RoundScores], later: Sequence[RoundScores], methods: Iterable[str]
) -> dict[str, SeedDifference] | None:
    """By method that both sides have in every seed."""
    if len(earlier) != len(later):
        return None
    found = {
        name: difference([(a.methods[name], b.methods[name]) for a, b in zip(earlier, later, strict=True)])
        for name in methods
        if all(name in a.methods for a in earlier)
    }
    return {name: d for name, d in found.items() if d is not None} or None


def _partners(entry: Entry, base: Entry, notes: list[str]) -> list[RunScores] | None:
    """For each run of the entry the run of the baseline to pair it with: that of its seed, or the only one there is."""
    if entry is base:
        return list(base.runs)
    if len(entry.runs) == len(base.runs) == 1:
        partners = list(base.runs)
    else:
        by_seed = {run.seed: run for run in base.runs}
        if missing := [run.seed for run in entry.runs if run.seed not in by_seed]:
            notes.append(f"{entry.name} is not compared with {base.name}: that has no seed {_list(missing)}")
            return None
        partners = [by_seed[run.seed] for run in entry.runs]
    for run, other in zip(entry.runs, partners, strict=True):
        if problem := _mismatch(run, other):
            notes.append(problem)
    if any(_mismatch(run, other).endswith("not compared") for run, other in zip(entry.runs, partners, strict=True)):
        return None
    return partners


def _mismatch(run: RunScores, other: RunScores) -> str:
    """What is to be said of two runs' evaluation problems; nothing where they are the same."""
    ids = run.problems.keys() & other.problems.keys()
    differ = sorted(key for key in ids if run.problems[key] != other.problems[key])
    same = len(ids) - len(differ)
    if differ:
        return (
            f"{run.name} and {other.name} have different problems under the same ids ({len(differ)} of {len(ids)}, "
            f"e.g. {differ[0]}: other seed or task?), so they are not compared"
        )
    if not same:
        return f"{run.name} and {other.name} share no evaluation problem, so they are not compared"
    if same < max(len(run.problems), len(other.problems)):
        return (
            f"{run.name} ({len(run.problems)} problems) and {other.name} ({len(other.problems)}) are compared on the "
            f"{same} evaluation problems that they share"
        )
    return ""


# ---------------- training against samples at inference


def _trade(entry: Entry) -> Trade | None:
    """Does training pay, or more samples of the start policy? The last round's greedy answer against the start's.

    methods: MCTS-DPO compares training compute with self-consistency@k at inference. With T the cost of search and
    training since the start, c₁ the cost of a trained greedy answer and c_k of a vote of k by the start policy, N
    problems cost T + N·c₁ against N·c_k: training has paid back from N = T / (c_k − c₁) on; never where c_k ≤ c₁,
    nor where the start's votes are more often right.
    None where the run has no trained round or no start.
    """
    last = entry.numbers[-1] if entry.numbers else 0
    start, trained = entry.at(0), entry.at(last)
    if not last or len(start) != len(entry.runs) or any("greedy" not in one.methods for one in [*start, *trained]):
        return None
    methods = [m for m in start[0].methods if m == "greedy" or re.match(r"sc@(?!1$)", m)]
    methods = [m for m in methods if all(m in one.methods for one in start)]
    spent = [b.training - a.training for a, b in zip(start, trained, strict=True)]
    extra = _mean_cost(spent)
    answer = _point("greedy", trained)
    rows = []
    for method in methods:
        point = _point(method, start)
        pairs = [(a.methods[method], b.methods["greedy"]) for a, b in zip(start, trained, strict=True)]
        pays = point.accuracy <= answer.accuracy
        after = break_even(extra.flops, point.flops_per_problem, answer.flops_per_problem) if pays else None
        rows.append(
            StartPoint(trained_minus_this=difference(pairs), break_even_problems=after, **structs.asdict(point))
        )
    reached = [row.method for row in rows if row.accuracy >= answer.accuracy]
    return Trade(round=last, training=extra, greedy=answer, start=rows, reached_by=reached[0] if reached else None)


def break_even(training: float, start: float | None, trained: float | None) -> float | None:
    """Problems from which on training has cost less in all; None where an answer of the start is not dearer."""
    if start is None or trained is None or start <= trained:
        return None
    return training / (start - trained)


# ---------------- means


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _mean_known(values: Sequence[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


def _mean_cost(costs: Sequence[Cost]) -> MeanCost:
    total = sum(costs, Cost())
    mean = {name: value / len(costs) for name, value in total.as_dict().items()}
    tokens = math.fsum(mean[f"{kind}_tokens"] for kind in ("generated", "prefill", "scored", "training"))
    return MeanCost(tokens=tokens, **mean)


def _mean_inference(found: Sequence[RoundScores]) -> Inference | None:
    known = [one.inference for one in found if one.inference is not None]
    if len(known) < len(found):
        return None
    return Inference(
        flops_per_token=math.fsum(i.flops_per_token for i in known) / len(known),
        prompt_tokens=math.fsum(i.prompt_tokens for i in known) / len(known),
    )


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
