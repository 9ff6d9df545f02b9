"""What is printed at the end of a run, in at most 100 columns of a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from treepref.report import numbers
from treepref.report.data import EventGroup, TitledOutcomes, group_events
from treepref.report.grid import Cell, Grid, for_terminal
from treepref.report.reading import example_line, summary_line
from treepref.runs.results import Auc, Difference, Entry, Kind, Results, ValueFit
from treepref.types import Cost

WIDTH = 100
SHOWN_EVENTS = 6
EXAMPLE_CHARS = 60
"""Of a solution that is shown as an example."""


def print_results(
    results: Results,
    events: Iterable[EventGroup] = (),
    console: Console | None = None,
    *,
    readings: Sequence[TitledOutcomes] = (),
    unfinished: Sequence[str] = (),
    stopped: str | None = None,
) -> None:
    """Rounds, what was read of solutions, cost, and what was skipped, failed or left `unfinished` (names of stages).

    `stopped` is what ended the run.
    """
    console = console or Console()
    if results.rounds:
        console.print(for_terminal(results_grid(results)))
    for line in footnotes(results):
        console.print(Text(line, style="dim"))
    for reading in readings:
        for line in reading_lines(reading):
            console.print(Text(line), overflow="fold")
    console.print(Text(cost_line(results.cost)))
    if split := kind_line(results.cost_by_kind):
        console.print(Text(split))
    for line in event_lines(events, unfinished, stopped):
        console.print(Text(line), overflow="fold")


def results_grid(results: Results) -> Grid:
    """A round a row: accuracy in percent, beneath it the interval or the tokens a problem."""
    rounds = results.rounds
    methods = ["sc@8", "bon@8", "wvote@8", numbers.sbs_method(rounds)]
    if any(entry.eval.get("mcts") for entry in rounds):
        methods.append("mcts")
    rows = []
    for entry in rounds:
        passed = entry.pass_at or {}
        rows.append(
            [
                Cell(str(entry.round)),
                _greedy_cell(entry.eval.get("greedy")),
                *(_method_cell(entry.eval.get(method)) for method in methods),
                Cell(f"{numbers.percent(passed.get('1'))}/{numbers.percent(passed.get('8'))}") if passed else Cell(),
                _change_cell(entry.paired.get("greedy_vs_previous")),
            ]
        )
    title = "Accuracy in % on held-out problems (beneath: 95 % interval; tokens a problem)"
    return Grid(["round", "greedy", *methods, "pass@1/8", "Δ greedy"], rows, title, words=())


def _greedy_cell(entry: Entry | None) -> Cell:
    if entry is None:
        return Cell()
    below = [numbers.percent_interval(entry.interval), f"{numbers.count(entry.tokens_per_problem)} tok"]
    return Cell(numbers.percent(entry.accuracy), below, "strong")


def _method_cell(entry: Entry | None) -> Cell:
    if entry is None:
        return Cell()
    return Cell(numbers.percent(entry.accuracy), ["", f"{numbers.count(entry.tokens_per_problem)} tok"])


def _change_cell(change: Difference | None) -> Cell:
    if change is None:
        return Cell()
    return Cell(numbers.points(change), [numbers.points_interval(change.interval)], numbers.tone(change))


def footnotes(results: Results) -> list[str]:
    """What the last row adds up to: the whole run's change, and step beam search at equal tokens."""
    if not results.rounds:
        return ["No round was evaluated."]
    last = results.rounds[-1]
    lines = ["Δ greedy: percentage points against the round before, on the same problems, 95 % paired interval."]
    lines += strict_and_unread(results)
    whole = last.paired.get("greedy_vs_first")
    if whole and len(results.rounds) > 2:
        lines.append(f"Over all rounds: greedy {numbers.points(whole)} {numbers.points_interval(whole.interval)}.")
    if judged := last.self_evaluation:
        lines.append(
            f"Self-evaluation in the last search: AUC {numbers.decimal(judged.auc)} over {judged.n} finished "
            f"solutions, {numbers.decimal(judged.auc_steps)} over {judged.n_steps} steps before the end."
        )
    if last.fit:
        lines.append(_fit_line(last.fit))
    if used := (last.tool_use or {}).get("greedy"):
        lines.append(f"Tool use: {numbers.percent(used.share)} % of the last round's greedy solutions.")
    for point in last.curves.sbs or []:
        equal = point.equal_tokens
        if equal and point.name == numbers.sbs_method(results.rounds):
            lines.append(
                f"{point.name} against self-consistency at equal tokens ({numbers.count(point.tokens_per_problem)} a "
                f"problem): {numbers.points(equal)} {numbers.points_interval(equal.interval)}."
            )
    return lines


def _fit_line(fit: ValueFit) -> str:
    """How well the value head, the log-prob and both tell right from wrong, on problems that the fit did not see."""
    found: list[tuple[str, Auc | None]] = [
        ("V", fit.value),
        ("V as training left it", fit.before),
        ("log-prob", fit.logprob),
        ("V and log-prob joined", fit.joint),
    ]
    shown = [
        f"{name} {numbers.decimal(one.auc)} ({numbers.decimal(one.auc_within)} within a problem)"
        for name, one in found
        if one is not None
    ]
    where = f"{'the last layer' if fit.read.layer < 0 else f'layer {fit.read.layer}'}, {fit.read.pool}"
    return f"AUC on training problems held back: {', '.join(shown)}; V reads {where}."


def strict_and_unread(results: Results) -> list[str]:
    """Where the strict reader differs, and how many solutions could not be read or were cut; nothing where none is."""
    lines = []
    for entry in results.rounds:
        shown = list(entry.evaluated.items())
        strict = [(n, e.strict_accuracy) for n, e in shown if numbers.strict_differs(e)]
        if strict:
            lines.append(f"Round {entry.round}, strict (in the task's own form alone), %: {_listed(strict)}.")
        own = [(n, e) for n, e in shown if numbers.family(n) not in ("bon", "wvote")]  # of the same samples as sc
        if unread := [(n, e.unreadable) for n, e in own if e.unreadable]:
            lines.append(f"Round {entry.round}, finished without an answer that can be read, %: {_listed(unread)}.")
        if cut := [(n, e.cut) for n, e in own if e.cut]:
            lines.append(f"Round {entry.round}, cut before the end, %: {_listed(cut)}.")
    return lines


def _listed(shares: Iterable[tuple[str, float | None]]) -> str:
    return ", ".join(f"{name} {numbers.percent(share)}" for name, share in shares)


def reading_lines(reading: TitledOutcomes) -> list[str]:
    """What was read of some solutions, with the examples among those that are not right."""
    lines, found, title = [], reading.found, reading.title
    if trees := reading.search:
        lines.append(
            f"{title}: of {trees.trees} trees {trees.solved} found a right solution, "
            f"{trees.mixed} right and wrong ones, {trees.unsolved} no right one."
        )
        title = "Solutions"
    lines.append(f"{title}: {summary_line(found)}." + (" Not right:" if found.examples else ""))
    return lines + [f"  {example_line(example, EXAMPLE_CHARS)}" for example in found.examples]


def cost_line(cost: Cost) -> str:
    """Tokens by what was done for them, FLOPs, time."""
    kinds = (
        (cost.generated_tokens, "generated"),
        (cost.prefill_tokens, "prefilled"),
        (cost.cached_tokens, "cached"),
        (cost.scored_tokens, "scored"),
        (cost.training_tokens, "trained"),
    )
    tokens = ", ".join(f"{numbers.count(n)} {label}" for n, label in kinds)
    return f"Cost: {tokens} tokens; {numbers.flops(cost.flops)} FLOPs; {numbers.duration(cost.seconds)}"


def kind_line(kinds: Mapping[Kind, Cost] | None) -> str | None:
    """FLOPs of search, training and evaluation apart."""
    found = ", ".join(f"{kind} {numbers.flops(cost.flops)}" for kind, cost in (kinds or {}).items() if cost.flops)
    return f"FLOPs: {found}" if found else None


def event_lines(events: Iterable[EventGroup], unfinished: Sequence[str] = (), stopped: str | None = None) -> list[str]:
    """Skips and failures, equal ones together, the most frequent first; before them, where the run stands still, and
    what stopped it in a line."""
    groups = group_events(e for e in events if e.level not in ("info", "error"))
    lines = [f"Not finished: {', '.join(unfinished)}."] if unfinished else []
    lines += [f"Stopped: {stopped.splitlines()[0]}"] if stopped else []
    if not groups:
        return lines or ["Nothing was skipped and nothing failed."]
    lines += [f"Skipped or failed: {sum(g.count for g in groups)} (all of them are in report.html)"]
    for group in groups[:SHOWN_EVENTS]:
        message = " ".join(group.message.split())
        line = f"  {group.count:>6} × {group.stage}: {message}"
        lines.append(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…")
    if len(groups) > SHOWN_EVENTS:
        lines.append(f"         and {len(groups) - SHOWN_EVENTS} other kinds")
    return lines
