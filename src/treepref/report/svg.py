"""A still picture of a run for a README: accuracy over rounds beside accuracy against tokens, as one small SVG.

Hand-written markup, no library. Reads results.json's content only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from treepref.report import numbers

WIDTH, HEIGHT = 940, 372
_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_STYLE = f"""
  text {{ font: 12.5px {_FONT}; fill: #57606a; }}
  .title {{ font-size: 14.5px; font-weight: 600; fill: #1f2328; }}
  .end {{ font-weight: 600; }}
  .halo {{ paint-order: stroke; stroke: #ffffff; stroke-width: 3px; font-size: 11.5px; }}
  .paper {{ fill: #ffffff; stroke: #d8dee4; }}
  .grid {{ stroke: #e7eaee; }}
  .axis {{ stroke: #aab2bd; }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #9aa4b0; }} .title {{ fill: #e6edf3; }}
    .paper {{ fill: #12161c; stroke: #2b323b; }} .halo {{ stroke: #12161c; }}
    .grid {{ stroke: #222932; }} .axis {{ stroke: #56606c; }}
  }}
"""


@dataclass(frozen=True, slots=True)
class Series:
    """One method's points (x, accuracy, low, high), accuracies as shares."""

    name: str
    colour: str
    points: Sequence[tuple[float, float, float, float]]
    point_labels: Sequence[str] = ()


def picture(results: Mapping[str, Any]) -> str:
    """The run as SVG text. Raises ValueError where no round was evaluated."""
    rounds = results["rounds"]
    if not rounds:
        raise ValueError("results hold no round: there is nothing to draw")
    over_rounds = _over_rounds(rounds)
    against_tokens = _against_tokens(rounds[-1])
    panels = [_panel(over_rounds, "Accuracy over rounds", "round", 0, [entry["round"] for entry in rounds], log=False)]
    if against_tokens:
        last = rounds[-1]["round"]
        panels.append(
            _panel(
                against_tokens, f"Accuracy against tokens, round {last}", "tokens a problem", WIDTH / 2, None, log=True
            )
        )
    width = WIDTH if against_tokens else WIDTH / 2
    body = "\n".join(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {HEIGHT}" width="{width:g}" height="{HEIGHT}" '
        f'role="img" aria-label="Accuracy over rounds, and against tokens">\n<style>{_STYLE}</style>\n'
        f'<rect class="paper" x="0.5" y="0.5" width="{width - 1:g}" height="{HEIGHT - 1}" rx="10"/>\n{body}\n</svg>\n'
    )


def _point(x: float, entry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    low, high = entry["interval"]
    return x, entry["accuracy"], low, high


def _over_rounds(rounds: Sequence[Mapping[str, Any]]) -> list[Series]:
    out = []
    for method in ("greedy", "sc@8", numbers.sbs_method(rounds)):
        points = [_point(entry["round"], e) for entry in rounds if (e := entry["eval"].get(method))]
        if points:
            out.append(Series(_short(method), numbers.METHOD_COLOURS[numbers.family(method)], points))
    return out


def _against_tokens(entry: Mapping[str, Any]) -> list[Series]:
    out = []
    for method in ("sc", "bon", "wvote", "sbs"):
        found = [p for p in entry["curves"].get(method) or [] if p["tokens_per_problem"] > 0]
        labels = [f"({p['b1']},{p['b2']})" for p in found] if method == "sbs" else []
        if found:
            points = [_point(p["tokens_per_problem"], p) for p in found]
            out.append(Series(_short(method), numbers.METHOD_COLOURS[method], points, labels))
    return out


def _short(method: str) -> str:
    names = {
        "greedy": "greedy",
        "sc": "vote",
        "bon": "best-of-n",
        "wvote": "weighted vote",
        "sbs": "beam",
        "mcts": "MCTS",
    }
    kind = numbers.family(method)
    return names[kind] + method[len(kind) :]


def _panel(
    series: Sequence[Series], title: str, x_title: str, left: float, x_ticks: Sequence[float] | None, *, log: bool
) -> str:
    """Axes, grid, interval bars, lines, and each line's name at its end."""
    x0, x1, y0, y1 = left + 66, left + WIDTH / 2 - 116, HEIGHT - 56, 58
    xs = [p[0] for s in series for p in s.points]
    lows, highs = [p[2] for s in series for p in s.points], [p[3] for s in series for p in s.points]
    step = next(s for s in (0.02, 0.05, 0.1, 0.2) if (max(highs) - min(lows)) / s <= 6 or s == 0.2)
    bottom, top = math.floor(min(lows) / step + 1e-9) * step, math.ceil(max(highs) / step - 1e-9) * step
    first, last = (math.log(min(xs)), math.log(max(xs))) if log else (min(xs), max(xs))

    def px(x: float) -> float:
        position = math.log(x) if log else x
        return (x0 + x1) / 2 if last == first else x0 + 8 + (position - first) / (last - first) * (x1 - x0 - 16)

    def py(y: float) -> float:
        return y0 - (y - bottom) / (top - bottom) * (y0 - y1)

    parts = [f'<text class="title" x="{left + 24:g}" y="32">{escape(title)}</text>']
    for i in range(round((top - bottom) / step) + 1):
        y = bottom + i * step
        parts.append(f'<line class="grid" x1="{x0:g}" x2="{x1:g}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        parts.append(f'<text x="{x0 - 8:g}" y="{py(y) + 4:.1f}" text-anchor="end">{100 * y:.0f} %</text>')
    parts.append(f'<line class="axis" x1="{x0:g}" x2="{x1:g}" y1="{y0}" y2="{y0}"/>')
    if x_ticks is None:
        x_ticks = [a * 10**b for b in range(7) for a in (1, 2, 5) if min(xs) <= a * 10**b <= max(xs)]
    for x in x_ticks:
        parts.append(f'<text x="{px(x):.1f}" y="{y0 + 20}" text-anchor="middle">{numbers.count(x)}</text>')
    parts.append(f'<text x="{(x0 + x1) / 2:.1f}" y="{y0 + 41}" text-anchor="middle">{escape(x_title)}</text>')

    for s in series:
        for x, _, low, high in s.points:
            parts.append(
                f'<line x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{py(low):.1f}" y2="{py(high):.1f}" '
                f'stroke="{s.colour}" stroke-opacity="0.4" stroke-width="1.5"/>'
            )
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y, *_ in s.points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{s.colour}" stroke-width="2.4" stroke-linejoin="round"/>'
        )
        parts += [f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.6" fill="{s.colour}"/>' for x, y, *_ in s.points]
    for s in series:  # above every line
        for label, (x, y, *_) in zip(s.point_labels, s.points, strict=False):
            parts.append(
                f'<text class="halo" x="{px(x):.1f}" y="{py(y) - 9:.1f}" text-anchor="middle">{escape(label)}</text>'
            )

    ends = [(px(s.points[-1][0]), py(s.points[-1][1])) for s in series]
    for s, (end_x, end_y), y in zip(series, ends, _spread([y for _, y in ends], y1, y0), strict=True):
        if end_x < x1 - 12:  # a line that ends early is tied to its name
            parts.append(
                f'<path d="M{end_x + 6:.1f} {end_y:.1f}L{x1 + 5:g} {y:.1f}" fill="none" stroke="{s.colour}" '
                'stroke-opacity="0.45" stroke-dasharray="2 3"/>'
            )
        parts.append(
            f'<text class="end" x="{x1 + 8:g}" y="{y + 4:.1f}" style="fill:{s.colour}">{escape(s.name)}</text>'
        )
    return "\n".join(parts)


def _spread(ys: Sequence[float], top: float, bottom: float, gap: float = 16) -> list[float]:
    """Heights moved apart by at least `gap`, in their order, within the panel."""
    order = sorted(range(len(ys)), key=lambda i: ys[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(ys[i], placed[-1] + gap if placed else top))
    over = placed[-1] - bottom if placed else 0
    if over > 0:  # push back up from below
        placed[-1] -= over
        for i in range(len(placed) - 2, -1, -1):
            placed[i] = min(placed[i], placed[i + 1] - gap)
    out = [0.0] * len(ys)
    for i, y in zip(order, placed, strict=True):
        out[i] = y
    return out
