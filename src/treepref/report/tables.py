"""The tables of one run's page, each a `Grid`: results in, cells out. Knows no page and no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from treepref.report import numbers, plots
from treepref.report.data import EventGroup, TitledOutcomes
from treepref.report.grid import Cell, Grid
from treepref.runs.results import Difference, Entry, EqualTokens, Example, Kind, MeanCost, RoundResult
from treepref.types import Cost


def accuracy_grid(rounds: Sequence[RoundResult]) -> Grid:
    """Every method that any round evaluated, over rounds; below them the change of greedy from round to round."""
    names = dict.fromkeys(name for entry in rounds for name in entry.evaluated)
    rows = [
        [Cell(numbers.title(name), colour=_colour(name)), *(_accuracy(entry.eval.get(name)) for entry in rounds)]
        for name in names
    ]
    changes = [_change(entry.paired.get("greedy_vs_previous")) for entry in rounds]
    if rows:
        rows.append([Cell("Greedy, change from the round before, points", tone="soft"), *changes])
    noted = any(numbers.reading_notes(entry) for one in rounds for entry in one.evaluated.values())
    return Grid(["accuracy, %", *_round_heads(rounds)], rows, note=numbers.READING_NOTE if noted else "")


def _round_heads(rounds: Sequence[RoundResult]) -> list[str]:
    return [f"round {entry.round}" for entry in rounds]


def _colour(method: str) -> str:
    return numbers.METHOD_COLOURS.get(numbers.family(method), plots.NEUTRAL)


def _accuracy(entry: Entry | None) -> Cell:
    if entry is None:
        return Cell()
    size = f"{numbers.percent_interval(entry.interval)} · {numbers.count(entry.tokens_per_problem)} tokens"
    return Cell(numbers.percent(entry.accuracy), [size, *(f"{note} %" for note in numbers.reading_notes(entry))])


def _change(found: Difference | None) -> Cell:
    if found is None:
        return Cell()
    test = "" if found.mcnemar_p is None else f" · McNemar p = {found.mcnemar_p:.2g}"
    return Cell(numbers.points(found), [f"{numbers.points_interval(found.interval)}{test}"], numbers.tone(found))


def equal_grid(rounds: Sequence[RoundResult]) -> Grid:
    """Guided methods of the last round against self-consistency at equal tokens, where it was measured."""
    curves = rounds[-1].curves if rounds else None
    found = [(point.name, point) for point in (curves and curves.sbs) or []]
    rows = [_equal_row(name, point, point.equal_tokens) for name, point in found]
    if curves and curves.mcts:
        rows.append(_equal_row("mcts", curves.mcts, curves.mcts.equal_tokens))
    heads = ["method", "tokens a problem", "accuracy, %", "self-consistency there, %", "difference, points"]
    return Grid(heads, rows)


def _equal_row(name: str, point: Entry, equal: EqualTokens | None) -> list[Cell]:
    row = [
        Cell(numbers.title(name)),
        Cell(numbers.count(point.tokens_per_problem)),
        Cell(numbers.percent(point.accuracy)),
    ]
    if equal is None:
        return [*row, Cell(), Cell("outside the measured range", tone="soft")]
    gap = Cell(numbers.points(equal), [numbers.points_interval(equal.interval)], numbers.tone(equal))
    return [*row, Cell(numbers.percent(equal.sc_accuracy)), gap]


def search_grid(readings: Iterable[TitledOutcomes]) -> Grid:
    """What the trees of each search hold."""
    rows = [
        [Cell(reading.title), *(Cell(str(n)) for n in (found.trees, found.solved, found.mixed, found.unsolved))]
        for reading in readings
        if (found := reading.search)
    ]
    heads = ["trees of a search", "trees", "with a right solution", "right and wrong ones", "no right one"]
    return Grid(heads, rows)


def example_grid(examples: Sequence[Example]) -> Grid:
    """Solutions that are not right."""
    heads = ["problem", "what became of it", "solution", "read as", "right answer"]
    return Grid(heads, [_example(example) for example in examples], words=range(5))


def _example(example: Example) -> list[Cell]:
    text = Cell(example.text, tone="words") if example.text else None
    missing = Cell("not kept" if example.text is None else "empty", tone="nothing")
    read = Cell("nothing", tone="nothing") if example.read is None else Cell(example.read, tone="words")
    outcome = Cell(example.outcome, tone="chip wrong")
    return [Cell(example.problem_id), outcome, text or missing, read, Cell(example.answer, tone="words")]


def distinct_grid(rounds: Sequence[RoundResult]) -> Grid:
    rows = [
        [Cell(str(entry.round)), Cell(numbers.decimal(d.per_problem)), Cell(str(d.total)), Cell(str(d.solved_problems))]
        for entry in rounds
        if (d := entry.distinct_right)
    ]
    return Grid(["round", "a problem", "in all", "problems solved at least once"], rows)


def value_grid(rounds: Sequence[RoundResult]) -> Grid:
    """How well V tells right from wrong."""
    rows = [
        [Cell(str(entry.round)), *_decimals(v.auc, v.auc_within, v.calibration_error)]
        for entry in rounds
        for v in (entry.value,)
    ]
    return Grid(["round", "AUC", "within a problem", "calibration error"], rows)


def judged_grid(rounds: Sequence[RoundResult]) -> Grid:
    """How well C does so, in the searches that asked for it."""
    rows = [
        [
            Cell(str(entry.round)),
            *_decimals(c.auc, c.auc_within, c.auc_steps),
            Cell(f"{numbers.decimal(c.mean_right)}, {numbers.decimal(c.mean_wrong)}"),
            Cell(numbers.count(c.n)),
        ]
        for entry in rounds
        if (c := entry.self_evaluation)
    ]
    return Grid(["round", "AUC", "within a problem", "AUC of steps", "mean C: right, wrong", "n"], rows)


def tool_grid(rounds: Sequence[RoundResult]) -> Grid:
    """Tool use where decoding had a tool."""
    rows = [
        [
            Cell(str(entry.round)),
            Cell(name),
            Cell(numbers.percent(use.share)),
            Cell(numbers.decimal(use.forced_tokens)),
            Cell(numbers.percent(use.accuracy_with)),
            Cell(numbers.percent(use.accuracy_without)),
        ]
        for entry in rounds
        for name, use in (entry.tool_use or {}).items()
        if use
    ]
    heads = ["round", "decoded", "solutions with a call, %", "forced tokens a solution", "right with a call, %"]
    return Grid([*heads, "right without, %"], rows, words=(0, 1))


def pair_grid(stats: Sequence[Mapping[str, Any]]) -> Grid:
    """A round a row, every count that any round gives."""
    keys = dict.fromkeys(key for row in stats for key in row)
    rows = [[_any(row.get(key)) for key in keys] for row in stats]
    return Grid([key.replace("_", " ") for key in keys], rows)


def cost_grid(cost: Cost) -> Grid:
    """How much of what, and what that means."""
    rows = [
        ("Generated", cost.generated_tokens, "sampled by the policy, in search and evaluation"),
        ("Prefilled", cost.prefill_tokens, "prompts and prefixes computed"),
        ("Cached", cost.cached_tokens, "prefix tokens whose key-value cache was reused instead"),
        ("Scored", cost.scored_tokens, "run through the model for a value or a log-probability alone"),
        ("Trained", cost.training_tokens, "in optimizer steps, forward and backward"),
    ]
    shown = [(label, numbers.count(n), meaning) for label, n, meaning in rows]
    shown.append(("FLOPs", numbers.flops(cost.flops), "estimated from the parameter count"))
    shown.append(("Time", numbers.duration(cost.seconds), "wall clock"))
    cells = [[Cell(label), Cell(amount), Cell(meaning, tone="soft")] for label, amount, meaning in shown]
    return Grid(["tokens", "", ""], cells, words=(0, 2))


_KINDS: dict[Kind, str] = {
    "search": "Search: training data made",
    "training": "Training",
    "evaluation": "Evaluation: inference",
}


def kind_grid(kinds: Mapping[Kind, Cost] | None) -> Grid:
    """Search, training and evaluation apart."""
    rows = [
        [
            Cell(_KINDS[kind]),
            Cell(numbers.count(computed_tokens(cost))),
            Cell(numbers.flops(cost.flops)),
            Cell(numbers.duration(cost.seconds)),
        ]
        for kind, cost in (kinds or {}).items()
    ]
    return Grid(["spent on", "tokens computed", "FLOPs", "time"], rows)


def computed_tokens(cost: Cost | MeanCost) -> float:
    """All that ran through the model."""
    return cost.generated_tokens + cost.prefill_tokens + cost.scored_tokens + cost.training_tokens


def inference_grid(rounds: Sequence[RoundResult]) -> Grid:
    """FLOPs a problem: methods over rounds."""
    found = [entry.inference.flops_per_problem if entry.inference else {} for entry in rounds]
    names = dict.fromkeys(name for per_problem in found for name in per_problem)
    rows = [[Cell(numbers.title(n)), *(Cell(numbers.flops(each.get(n))) for each in found)] for n in names]
    return Grid(["FLOPs a problem, prompt and answer", *_round_heads(rounds)], rows)


def event_grid(events: Sequence[EventGroup], *, remarks: bool = False) -> Grid:
    """Skips and failures with their number, or remarks."""
    if remarks:
        return Grid(["stage", "what"], [[Cell(e.stage), Cell(e.message)] for e in events], words=(0, 1))
    rows = [[Cell(e.stage), Cell(str(e.count)), Cell(e.message, [e.level] if e.level else [])] for e in events]
    return Grid(["stage", "times", "what"], rows, words=(0, 2))


def _decimals(*found: float | None) -> list[Cell]:
    return [Cell(numbers.decimal(x)) for x in found]


def _any(value: Any) -> Cell:
    if value is None:
        return Cell()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Cell(str(value))
    return Cell(numbers.count(value) if isinstance(value, int) or abs(value) >= 100 else numbers.decimal(value))
