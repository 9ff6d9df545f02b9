"""Plotly figures of results and of training steps. Makes figures only: no file, no page, no theme.

Text and grid colours are left to the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from treepref.report import numbers
from treepref.runs.results import CalibrationBin, Entry, Results, RoundResult

SECONDARY = "#d98a1f"
PRIMARY = "#3b7ddd"
NEUTRAL = "#8b93a1"
METHOD_VALUE = numbers.METHOD_COLOURS["sbs"]

PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Loss and its terms",
        (
            ("loss", "loss"),
            ("loss_preference", "preference"),
            ("loss_value", "value"),
            ("loss_margin", "ranking"),
            ("loss_sft", "SFT"),
        ),
    ),
    ("Reward margin β·h", (("reward_margin", "margin"),)),
    ("Share of pairs in the right order", (("reward_accuracy", "policy"), ("value_rank_accuracy", "value head"))),
    (
        "Change of log-probability",
        (("chosen_logratio", "chosen"), ("rejected_logratio", "rejected")),
    ),
    ("Chosen steps that became less likely", (("chosen_fell", "chosen fell"),)),
    ("KL from the reference, per token", (("kl", "KL"),)),
    ("Value head: mean (V − Q)²", (("value_mse", "error"),)),
    ("NLL of right steps, per token", (("nll", "NLL"),)),
    ("Tokens of a pair's sides", (("chosen_tokens", "chosen"), ("rejected_tokens", "rejected"))),
    ("Pairs of a step", (("pairs", "pairs"),)),
    ("Gradient norm before clipping", (("grad_norm", "norm"),)),
    ("Learning rate", (("lr", "rate"),)),
)
"""Title of a panel, and the names in a training step that it shows with their labels."""

SMOOTHED_STEPS = 150
"""More steps than this are drawn with their running mean."""

_LINES = (PRIMARY, SECONDARY, "#12a37f", "#9b5de5", NEUTRAL)


def accuracy_over_rounds(results: Results) -> go.Figure | None:
    """Learning curves with 95 % intervals; None without a round."""
    rounds = results.rounds
    figure = blank("round", "accuracy, %")
    for method in ("greedy", "sc@8", "bon@8", "wvote@8", numbers.sbs_method(rounds), "mcts"):
        found = [(entry.round, entry.eval.get(method)) for entry in rounds]
        points = [(number, e) for number, e in found if e]
        if points:
            figure.add_trace(
                with_intervals(
                    [number for number, _ in points],
                    [e for _, e in points],
                    numbers.title(method),
                    numbers.METHOD_COLOURS[numbers.family(method)],
                )
            )
    figure.update_xaxes(tickmode="array", tickvals=[entry.round for entry in rounds])
    return figure if figure.data else None


def accuracy_against_tokens(entry: RoundResult) -> go.Figure | None:
    """One round: what each method makes of a budget of tokens; None without samples and beams."""
    curves = entry.curves
    figure = blank("tokens a problem (log scale)", "accuracy, %")
    for method, points in (("sc", curves.sc), ("bon", curves.bon), ("wvote", curves.wvote)):
        if points:
            trace = with_intervals(
                [point.tokens_per_problem for point in points],
                points,
                numbers.METHOD_NAMES[method],
                numbers.METHOD_COLOURS[method],
                labels=[f"k = {point.k}" for point in points],
            )
            figure.add_trace(trace)
    if curves.sbs:
        widths = [point.tokens_per_problem for point in curves.sbs]
        trace = with_intervals(widths, curves.sbs, numbers.METHOD_NAMES["sbs"], METHOD_VALUE)
        labels = [f"({point.b1},{point.b2})" for point in curves.sbs]
        figure.add_trace(trace.update(text=labels, mode="lines+markers+text", textposition="top center"))
    for method, point in (("mcts", curves.mcts), ("greedy", entry.eval.get("greedy"))):
        if point:
            trace = with_intervals(
                [point.tokens_per_problem], [point], numbers.METHOD_NAMES[method], numbers.METHOD_COLOURS[method]
            )
            figure.add_trace(trace.update(mode="markers", marker_symbol="diamond", marker_size=11))
    if len(list(figure.select_traces())) < 2:
        return None
    log_ticks(figure, 7)
    return figure


def pass_at_k(results: Results) -> go.Figure | None:
    """pass@k over k, a line a round; None without samples."""
    figure = blank("samples k", "pass@k, %")
    rounds = [(entry.round, entry.pass_at) for entry in results.rounds if entry.pass_at]
    for position, (number, shares) in enumerate(rounds):
        ks = sorted(map(int, shares))
        last = position == len(rounds) - 1
        figure.add_trace(
            go.Scatter(
                x=ks,
                y=[100 * shares[str(k)] for k in ks],
                name=f"round {number}",
                mode="lines+markers",
                line={
                    "color": PRIMARY if last else NEUTRAL,
                    "width": 2.5 if last else 1.6,
                    "dash": _dash(position, last),
                },
            )
        )
    ticks = [2**i for i in range(11)]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(t) for t in ticks])
    return figure if figure.data else None


def calibration(
    bins: Sequence[CalibrationBin] | None,
    chance: str = "predicted chance of being right, (V + 1)/2",
    name: str = "value head",
) -> go.Figure | None:
    """Predicted chance against the share that was right; None while there are no predictions."""
    if not bins:
        return None
    figure = blank(chance, "share that was right")
    line = {"color": NEUTRAL, "width": 1.2, "dash": "dot"}
    figure.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, name="perfect", hoverinfo="skip"))
    most = max(b.n for b in bins)
    figure.add_trace(
        go.Scatter(
            x=[b.predicted for b in bins],
            y=[b.observed for b in bins],
            mode="lines+markers",
            name=name,
            text=[f"{b.n} solutions" for b in bins],
            marker={"size": [7 + 12 * math.sqrt(b.n / most) for b in bins], "color": METHOD_VALUE, "opacity": 0.9},
            line={"color": METHOD_VALUE, "width": 2},
            error_y=_bars([b.observed for b in bins], [b.interval for b in bins], METHOD_VALUE),
        )
    )
    figure.update_xaxes(range=[-0.03, 1.03])
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure


def training_panels(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, go.Figure]]:
    """(title, figure) of every panel for which something was logged; steps run on over rounds, marked by a line.

    Where there are many steps, each line is a running mean, with the steps themselves faint behind it.
    """
    stages = [(step.get("round"), step.get("stage")) for step in steps]
    starts = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]
    many = len(steps) > SMOOTHED_STEPS
    panels = []
    for panel, series in PANELS:
        figure = blank("optimizer step", None)
        present = [
            (name, label) for name, label in series if any(_finite(step.get(name)) is not None for step in steps)
        ]
        for position, (name, label) in enumerate(present):
            y = [_finite(step.get(name)) for step in steps]
            colour = _LINES[position % len(_LINES)]
            x = list(range(1, len(steps) + 1))
            if many:
                faint = {"color": colour, "width": 0.8}
                figure.add_trace(
                    go.Scatter(
                        x=x, y=y, mode="lines", line=faint, opacity=0.3, showlegend=False, hoverinfo="skip", name=label
                    )
                )
            figure.add_trace(
                go.Scatter(
                    x=x,
                    y=running_mean(y, [0, *starts]) if many else y,
                    # A step without pairs has no margin: a point between two such steps would be no line at all.
                    connectgaps=True,
                    mode="lines" if sum(v is not None for v in y) > 1 else "markers",
                    name=label,
                    line={"color": colour, "width": 1.8},
                )
            )
        if not present:
            continue
        for start in starts:
            figure.add_vline(x=start + 0.5, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
        figure.update_layout(showlegend=len(present) > 1, margin={"l": 48, "r": 12, "t": 8, "b": 40}, height=230)
        panels.append((panel, figure))
    return panels


def running_mean(values: Sequence[float | None], starts: Sequence[int]) -> list[float | None]:
    """Mean over a window of a twentieth of the steps, centred, of what is there; windows do not reach over `starts`."""
    half = max(1, len(values) // 40)
    edges = [*starts, len(values)]
    out: list[float | None] = []
    for low, high in pairwise(edges):
        for i in range(low, high):
            found = [v for v in values[max(low, i - half) : min(high, i + half + 1)] if v is not None]
            out.append(math.fsum(found) / len(found) if found and values[i] is not None else None)
    return out


def blank(x: str, y: str | None) -> go.Figure:
    """An empty figure with its axes named."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=360,
        margin={"l": 56, "r": 16, "t": 12, "b": 48},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_xaxes(
        title={"text": x, "standoff": 8, "font": {"size": 13}},
        zeroline=False,
        showline=True,
        ticks="outside",
        ticklen=4,
    )
    figure.update_yaxes(title={"text": y, "standoff": 6, "font": {"size": 13}}, zeroline=False, automargin=True)
    return figure


def log_ticks(figure: go.Figure, decades: int) -> None:
    """A log axis below, with a tick at 1, 2 and 5 of each decade."""
    ticks = [a * 10**b for b in range(decades) for a in (1, 2, 5)]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[numbers.count(t) for t in ticks])


def with_intervals(
    x: Sequence[float], entries: Sequence[Entry], name: str, colour: str, labels: Sequence[str] = ()
) -> go.Scatter:
    """A line through accuracies in percent, with their intervals; `labels` are shown where one points."""
    y = [100 * entry.accuracy for entry in entries]
    intervals = [[100 * bound for bound in entry.interval] for entry in entries]
    return go.Scatter(
        x=list(x),
        y=y,
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 2.4},
        marker={"color": colour, "size": 7},
        error_y=_bars(y, intervals, colour),
        text=list(labels) or None,
        hovertemplate="%{y:.1f} at %{x:.4~g}" + ("<br>%{text}" if labels else ""),
    )


def _bars(y: Sequence[float], intervals: Sequence[Sequence[float]], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - v) for v, (_, high) in zip(y, intervals, strict=True)],
        "arrayminus": [max(0.0, v - low) for v, (low, _) in zip(y, intervals, strict=True)],
        "color": colour,
        "thickness": 1.1,
        "width": 3,
    }


def _dash(position: int, last: bool) -> str:
    return "solid" if last else ("dot", "dash", "dashdot")[position % 3]


def _finite(x: float | None) -> float | None:
    """None for what was not measured in a step."""
    return x if x is not None and math.isfinite(x) else None
