"""The README's picture of a run: accuracy over rounds, and against the tokens that a problem costs.

python benchmarks/picture.py runs/demo/results.json docs/demo.svg
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

BLUE, GREY, GREEN, AMBER = "#3b7ddd", "#8b93a1", "#12a37f", "#d98a1f"
TOP, BOTTOM = 54.0, 316.0
STYLE = """
  text { font: 12.5px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #57606a; }
  .title { font-size: 14.5px; font-weight: 600; fill: #1f2328; }
  .end { font-weight: 600; }
  .paper { fill: #ffffff; stroke: #d8dee4; }
  .grid { stroke: #e7eaee; }
  @media (prefers-color-scheme: dark) {
    text { fill: #9aa4b0; } .title { fill: #e6edf3; }
    .paper { fill: #12161c; stroke: #2b323b; }
    .grid { stroke: #222932; }
  }
"""
Entry = dict[str, Any]
Point = tuple[float, Entry]


class Panel:
    """One diagram: a place on the page, a scale, and what was drawn so far."""

    def __init__(self, left: float, right: float, title: str, low: int, high: int) -> None:
        self.left, self.right, self.low, self.high = left, right, low, high
        self.parts = [f'<text class="title" x="{left - 42:g}" y="32">{title}</text>']
        for percent in range(low, high + 1, 10):
            y = self.y(percent / 100)
            self.parts.append(f'<line class="grid" x1="{left:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.parts.append(f'<text x="{left - 8:g}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>')

    def y(self, share: float) -> float:
        return BOTTOM - (100 * share - self.low) / (self.high - self.low) * (BOTTOM - TOP)

    def below(self, x: float, text: str, row: int = 0) -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{336 + 21 * row}" text-anchor="middle">{text}</text>')

    def line(self, points: list[Point], colour: str) -> None:
        """Points (x, entry) joined, each with its 95 % interval."""
        for x, entry in points:
            low, high = (self.y(limit) for limit in entry["interval"])
            self.parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" '
                'stroke-opacity="0.4" stroke-width="1.5"/>'
            )
        path = " ".join(f"{x:.1f},{self.y(entry['accuracy']):.1f}" for x, entry in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.4"/>')
        for x, entry in points:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{self.y(entry["accuracy"]):.1f}" r="3.6" fill="{colour}"/>')

    def names(self, ends: list[tuple[float, Entry, str, str]]) -> None:
        """A name behind the last point of each line, moved apart where neighbours would touch."""
        placed: list[tuple[float, float]] = []
        for x, entry, name, colour in sorted(ends, key=lambda end: self.y(end[1]["accuracy"])):
            above = [y for other, y in placed if abs(other - x) < 90]
            y = max([self.y(entry["accuracy"]) + 4, *(y + 15 for y in above)])
            placed.append((x, y))
            self.parts.append(f'<text class="end" x="{x + 12:.1f}" y="{y:.1f}" style="fill:{colour}">{name}</text>')


def picture(results: dict[str, Any]) -> str:
    rounds = results["rounds"]
    entries = [e for r in rounds for e in (*r["eval"].values(), *(r["curves"]["sbs"] or []), *r["curves"]["sc"]) if e]
    low = int(min(e["interval"][0] for e in entries) * 10) * 10
    high = math.ceil(max(e["interval"][1] for e in entries) * 10) * 10
    left, right = Panel(66, 354, "Accuracy over rounds", low, high), Panel(536, 824, "", low, high)
    _over_rounds(left, rounds)
    right.parts[0] = f'<text class="title" x="494" y="32">Accuracy against tokens, round {rounds[-1]["round"]}</text>'
    _over_tokens(right, rounds[-1])
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 372" width="940" height="372" role="img" '
            'aria-label="Accuracy over rounds, and against tokens">',
            f"<style>{STYLE}</style>",
            '<rect class="paper" x="0.5" y="0.5" width="939" height="371" rx="10"/>',
            *left.parts,
            *right.parts,
            "</svg>\n",
        ]
    )


def _widest(rounds: list[Entry]) -> str | None:
    """The beam search that takes most tokens."""
    beams = {name: e for name, e in rounds[-1]["eval"].items() if name.startswith("sbs") and e}
    return max(beams, key=lambda name: beams[name]["tokens_per_problem"], default=None)


def _over_rounds(panel: Panel, rounds: list[Entry]) -> None:
    places = [
        panel.left + 8 + i * (panel.right - panel.left - 16) / max(1, len(rounds) - 1) for i in range(len(rounds))
    ]
    for x, found in zip(places, rounds, strict=True):
        panel.below(x, str(found["round"]))
    panel.below((panel.left + panel.right) / 2, "round", row=1)
    beam = _widest(rounds)
    ends = []
    for method, name, colour in (
        ("greedy", "greedy", BLUE),
        ("sc@8", "vote of 8", GREY),
        (beam, (beam or "").replace("sbs", "beam"), GREEN),
    ):
        points = [(x, r["eval"][method]) for x, r in zip(places, rounds, strict=True) if r["eval"].get(method)]
        if points:
            panel.line(points, colour)
            ends.append((*points[-1], name, colour))
    panel.names(ends)


def _over_tokens(panel: Panel, found: Entry) -> None:
    lines = [
        ([found["eval"]["greedy"]], "greedy", BLUE),
        (found["curves"]["sc"], "vote", GREY),
        (found["curves"]["wvote"] or [], "weighted vote", AMBER),
        (found["curves"]["sbs"] or [], "beam search", GREEN),
    ]
    tokens = [e["tokens_per_problem"] for entries, _, _ in lines for e in entries]
    low, high = math.log(min(tokens)), math.log(max(tokens))

    def place(count: float) -> float:
        return panel.left + 8 + (math.log(count) - low) / (high - low) * (panel.right - panel.left - 16)

    for tick in (20, 50, 100, 200, 500, 1000, 2000):
        if math.exp(low) <= tick <= math.exp(high):
            panel.below(place(tick), str(tick))
    panel.below((panel.left + panel.right) / 2, "tokens a problem", row=1)
    ends = []
    for entries, name, colour in lines:
        if entries:
            points = [(place(e["tokens_per_problem"]), e) for e in entries]
            panel.line(points, colour)
            ends.append((*points[-1], name, colour))
    panel.names(ends)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    Path(sys.argv[2]).write_text(picture(json.loads(Path(sys.argv[1]).read_text())))
