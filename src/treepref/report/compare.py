"""What compare.json says, as a table for a terminal, as markdown, and as `compare.html`. Reads that document alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console
from rich.text import Text

from treepref.report import numbers, plots
from treepref.report.grid import Cell, Grid, escaped, for_markdown, for_terminal
from treepref.report.html import Plot, render_page, write_page
from treepref.runs.results import ComparedEntry, Comparison, Entry, Point, SeedDifference, Trade

SHOWN_K = 8
"""The k of votes and best-of-n in tables, where it was evaluated; else the largest."""
NARROW = 128
"""Columns of a terminal below which best-of-n and weighted votes are left to the page."""


def write_comparison(document: Comparison, path: Path) -> Path:
    """Write compare.html; it appears whole or not at all. Raises StoreError where it cannot be written."""
    return write_page(render_comparison(document), path)


def render_comparison(document: Comparison) -> str:
    """The page as text."""
    drawn = (
        ("training", "Accuracy against training tokens", accuracy_against_training(document)),
        ("inference", "Accuracy against tokens a problem", accuracy_against_inference(document)),
        ("total", "FLOPs in all against the number of problems answered", total_flops(document)),
    )
    figures = [(name, title, figure) for name, title, figure in drawn if figure is not None]
    for _, _, figure in figures:  # names are long and many: beside the plot, not above it
        legend = {"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"}
        figure.update_layout(height=440, legend=legend)
    return render_page(
        "compare.html",
        document=document,
        plots={name: Plot(f"plot-{name}", title, title, figure) for name, title, figure in figures},
        table=accuracy_grid(document),
        whole=accuracy_grid(document, every_method=True),
        trades=list(trade_grids(document)),
        runs=run_grid(document),
    )


def print_comparison(document: Comparison, console: Console) -> None:
    """The tables and notes; a narrow terminal gets fewer methods."""
    narrow = console.width < NARROW
    for grid in grids(document, without=("bon", "wvote") if narrow else ()):
        console.print(for_terminal(grid))
        if grid.note:
            console.print(Text(grid.note, style="dim"))
    for note in document.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


def comparison_markdown(document: Comparison) -> str:
    """The tables and notes, to be pasted into a page."""
    blocks = []
    for grid in grids(document):
        lines = [f"**{escaped(grid.title)}**", "", *for_markdown(grid)]
        blocks.append("\n".join([*lines, "", escaped(grid.note)] if grid.note else lines))
    notes = [f"- {escaped(note)}" for note in document.notes]
    return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])])


def grids(document: Comparison, without: Sequence[str] = ()) -> Iterator[Grid]:
    yield accuracy_grid(document, without=without)
    yield from trade_grids(document)


# ---------------- tables


def accuracy_grid(document: Comparison, *, every_method: bool = False, without: Sequence[str] = ()) -> Grid:
    """Runs and their rounds × methods, with what training took and the change from the start and the baseline."""
    entries = document.entries
    methods = shown_methods(entries, every_method=every_method)
    methods = [method for method in methods if numbers.family(method) not in without]
    others = len(entries) > 1
    rows = []
    for entry in entries:
        for round in entry.rounds:
            points = {point.method: point for point in round.points}
            row = [
                Cell(entry.name, [f"{len(entry.runs)} seeds"] if len(entry.runs) > 1 else []),
                Cell(str(round.round)),
                Cell(numbers.count(round.training["all"].tokens)),
                *(_accuracy(points.get(method)) for method in methods),
                _change(round.vs_start),
            ]
            if others:
                row.append(_change(round.vs_baseline))
            rows.append(row)
    heads = ["run", "round", "training\ntokens", *methods, "Δ start"]
    note = (
        "Beneath an accuracy: 95 % interval (t: over seeds, Student's t) and tokens a problem. "
        "Δ: greedy in percentage points, paired on the same problems, against round 0 of the same run"
    )
    if others:
        heads.append("Δ baseline")
        note += f" and the last round of {document.baseline}"
    shown = [point for entry in entries for round in entry.rounds for point in round.points]
    explained = f" {numbers.READING_NOTE}" if any(map(numbers.reading_notes, shown)) else ""
    return Grid(heads, rows, "Accuracy in % on held-out problems", f"{note}.{explained}")


def trade_grids(document: Comparison) -> Iterator[Grid]:
    """For each trained run: its greedy answer against what the start policy makes of more samples."""
    for entry in document.entries:
        if entry.training_against_samples is not None:
            yield _trade_grid(entry.name, entry.training_against_samples)


def _trade_grid(name: str, trade: Trade) -> Grid:
    trained, spent = trade.greedy, trade.training
    rows = [
        [
            Cell(row.method),
            Cell(numbers.percent(row.accuracy), [numbers.percent_interval(row.interval)]),
            Cell(numbers.count(row.tokens_per_problem)),
            Cell(numbers.flops(row.flops_per_problem)),
            _difference(row.trained_minus_this),
            Cell(_payback(row.break_even_problems, less=row.accuracy > trained.accuracy)),
        ]
        for row in trade.start
    ]
    if trade.reached_by:
        reach = f"The start policy is as accurate by {trade.reached_by}."
    elif len(trade.start) > 1:
        reach = "No number of samples that was evaluated makes the start policy as accurate."
    else:
        reach = "The start policy's samples were not evaluated (eval.samples_between)."
    heads = ["start policy", "accuracy, %", "tokens a problem", "FLOPs a problem", "trained − this"]
    return Grid(
        [*heads, "training is cheaper after"],
        rows,
        f"{name}: training against samples of the start policy",
        f"Trained, round {trade.round}, greedy: {numbers.percent(trained.accuracy)} % at "
        f"{numbers.count(trained.tokens_per_problem)} tokens and "
        f"{numbers.flops(trained.flops_per_problem)} FLOPs a problem, after search and training of "
        f"{numbers.count(spent.tokens)} tokens and {numbers.flops(spent.flops)} FLOPs. {reach}",
    )


def run_grid(document: Comparison) -> Grid:
    """Which folders stand behind each name."""
    rows = [
        [
            Cell(entry.name),
            Cell(entry.recipe),
            Cell(entry.method),
            Cell(", ".join(f"{run.folder} ({run.seed})" for run in entry.runs)),
        ]
        for entry in document.entries
    ]
    return Grid(["name", "recipe", "method", "runs, with their seeds"], rows, words=range(4))


def _payback(problems: float | None, *, less: bool) -> str:
    if problems is not None:
        return f"{numbers.count(problems)} problems"
    return "less accurate" if less else "never"


def shown_methods(entries: Sequence[ComparedEntry], *, every_method: bool) -> list[str]:
    """Methods that any round has, in the house's order; of `sc@k` and its like one k, unless all are asked for."""
    found = dict.fromkeys(p.method for e in entries for r in e.rounds for p in r.points)
    out = []
    for kind in numbers.METHOD_NAMES:
        own = [method for method in found if numbers.family(method) == kind]
        if "@" in "".join(own):
            own.sort(key=_k)
            own = own if every_method else [m for m in own if _k(m) == SHOWN_K] or own[-1:]
        elif kind == "sbs":
            own = sorted(own) if every_method else [m for m in own if m == "sbs(2,4)"] or own[-1:]
        out += own
    return out


def _k(method: str) -> int:
    return int(method.partition("@")[2])


def _accuracy(point: Point | None) -> Cell:
    if point is None:
        return Cell()
    below = [numbers.percent_interval(point.interval)]
    if point.seed_interval:
        below.append(f"t {numbers.percent_interval(point.seed_interval)}")
    below.append(f"{numbers.count(point.tokens_per_problem)} tok")
    return Cell(numbers.percent(point.accuracy), [*below, *numbers.reading_notes(point)])


def _change(differences: Mapping[str, SeedDifference] | None) -> Cell:
    return _difference((differences or {}).get("greedy"))


def _difference(found: SeedDifference | None) -> Cell:
    if found is None:
        return Cell()
    below = [numbers.points_interval(found.interval)]
    if found.seed_interval:
        below.append(f"t {numbers.points_interval(found.seed_interval)}")
    return Cell(numbers.points(found), below, numbers.tone(found))


# ---------------- plots


def accuracy_against_training(document: Comparison) -> go.Figure | None:
    """Each run's rounds at what search and training had run through the model by then; greedy, others on request."""
    figure = plots.blank("tokens of search and training", "accuracy, %")
    for entry, colour in coloured(document):
        for method in shown_methods([entry], every_method=False):
            found = [
                (round.training["all"].tokens, points[method])
                for round in entry.rounds
                if method in (points := {point.method: point for point in round.points})
            ]
            trace = _trace(found, f"{entry.name}, {method}", colour, method)
            trace.visible = True if method == "greedy" else "legendonly"
            figure.add_trace(trace)
    return figure if figure.data else None


def accuracy_against_inference(document: Comparison) -> go.Figure | None:
    """What a budget of tokens a problem buys: samples of the start policy, and every method of the last round."""
    figure = plots.blank("tokens a problem (log scale)", "accuracy, %")
    drawn: list[object] = []
    for entry, colour in coloured(document):
        rounds = entry.rounds
        for round in [rounds[0], rounds[-1]] if len(rounds) > 1 else rounds:
            trained = round.round > 0
            for kind in ("greedy", "sc", "bon", "wvote", "sbs", "mcts"):
                points = [p for p in round.points if numbers.family(p.method) == kind]
                points.sort(key=lambda p: p.tokens_per_problem)
                # Forks share their start: one curve stands for all.
                same = [[p.method, p.accuracy, p.tokens_per_problem] for p in points]
                if not points or (not trained and same in drawn):
                    continue
                drawn.append(same)
                label = f"{entry.name}{'' if trained else ', start'}: {numbers.METHOD_NAMES[kind].lower()}"
                trace = _trace(
                    [(p.tokens_per_problem, p) for p in points], label, colour, kind, [p.method for p in points]
                )
                trace.update(visible=True if kind in ("greedy", "sc") else "legendonly")
                if not trained:
                    trace.update(line_dash="dot", marker_symbol=f"{_SYMBOLS[kind]}-open")
                figure.add_trace(trace)
    plots.log_ticks(figure, 7)
    return figure if figure.data else None


def total_flops(document: Comparison) -> go.Figure | None:
    """Training and inference together, over the number of problems that are answered: lines cross where training has
    paid back."""
    trades = [
        (e, c, t, each)
        for e, c in coloured(document)
        if (t := e.training_against_samples) is not None and (each := t.greedy.flops_per_problem) and t.training.flops
    ]
    if not trades:
        return None
    ends = [r.break_even_problems or 0 for _, _, t, _ in trades for r in t.start]
    most = max(100.0, 30 * max(ends, default=0))
    steps = 60
    xs = [most ** (i / steps) for i in range(steps + 1)]
    figure = plots.blank("problems answered (log scale)", "FLOPs in all (log scale)")
    drawn: list[object] = []
    for entry, colour, trade, trained in trades:
        for row in trade.start:
            each = row.flops_per_problem
            same = [row.method, row.accuracy, each]
            if each is None or same in drawn:
                continue
            drawn.append(same)
            label = f"{entry.name}, start: {row.method} ({numbers.percent(row.accuracy)} %)"
            figure.add_trace(_line(xs, [each * n for n in xs], label, plots.NEUTRAL, "dot"))
        answer, spent = trade.greedy, trade.training.flops
        label = f"{entry.name}: trained, greedy ({numbers.percent(answer.accuracy)} %)"
        figure.add_trace(_line(xs, [spent + trained * n for n in xs], label, colour, "solid"))
        crossings = [(n, row.method) for row in trade.start if (n := row.break_even_problems)]
        if crossings:
            figure.add_trace(
                go.Scatter(
                    x=[n for n, _ in crossings],
                    y=[spent + trained * n for n, _ in crossings],
                    text=[f"pays back against {method} after {numbers.count(n)} problems" for n, method in crossings],
                    mode="markers",
                    marker={"color": colour, "size": 9, "symbol": "circle-open", "line": {"width": 2}},
                    hovertemplate="%{text}<extra></extra>",
                    showlegend=False,
                )
            )
    plots.log_ticks(figure, 9)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    return figure


def coloured(document: Comparison) -> Iterator[tuple[ComparedEntry, str]]:
    """Entries with a colour of their own each."""
    palette = list(numbers.METHOD_COLOURS.values())
    palette.remove(plots.NEUTRAL)
    for position, entry in enumerate(document.entries):
        yield entry, palette[position % len(palette)]


_SYMBOLS = {"greedy": "diamond", "sc": "circle", "bon": "square", "wvote": "cross", "sbs": "triangle-up", "mcts": "x"}


def _trace(
    found: Iterable[tuple[float, Entry]], name: str, colour: str, method: str, labels: Sequence[str] = ()
) -> go.Scatter:
    points = list(found)
    trace = plots.with_intervals([x for x, _ in points], [point for _, point in points], name, colour, labels)
    return trace.update(marker_symbol=_SYMBOLS[numbers.family(method)], marker_size=10 if method == "greedy" else 7)


def _line(xs: Sequence[float], ys: Sequence[float], name: str, colour: str, dash: str) -> go.Scatter:
    return go.Scatter(
        x=list(xs), y=list(ys), name=name, mode="lines", line={"color": colour, "width": 2 if dash == "solid" else 1.4,
        "dash": dash}, hovertemplate="%{y:.2~e} FLOPs at %{x:.3~s} problems",
    )  # fmt: skip
