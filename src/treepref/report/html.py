"""`report.html`: one self-contained file that opens offline. Turns `ReportData` into what `report.html` lays out.

Model-written text reaches the page through Jinja2's autoescape alone; the only markup passed as such is plotly.js and
JSON in which every `<` is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from treepref.errors import StoreError
from treepref.report import numbers, plots
from treepref.report.data import ReportData, group_events
from treepref.report.reading import summary_line
from treepref.report.tree_view import colour_of, tree_view
from treepref.runs.landing import new_file

MAX_TREES = 10


@dataclass(frozen=True, slots=True)
class Card:
    """A headline number."""

    label: str
    number: str
    unit: str
    note: str
    tone: str = ""
    """`good` or `bad` where an interval excludes zero."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure with its place in the page."""

    id: str
    title: str
    description: str
    figure: go.Figure

    @property
    def json(self) -> Markup:
        """The figure as JSON that cannot end the script element which holds it."""
        return Markup(_script_safe(self.figure.to_json()))


def write_report(data: ReportData, path: str | Path) -> Path:
    """Write the report; it appears whole or not at all. Raises StoreError where the file cannot be written."""
    return write_page(render_report(data), Path(path))


def write_page(text: str, path: Path) -> Path:
    """Write a page; it appears whole or not at all. Raises StoreError where the file cannot be written."""
    try:
        with new_file(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"cannot write the report to {path}: {error.strerror or error}. Free space or give --out"
        ) from error
    return path


def render_page(template: str, **values: Any) -> str:
    """A template of this folder as text, with plotly.js inside and everything else escaped."""
    environment = Environment(
        loader=PackageLoader("treepref.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": numbers.percent,
        "signed": lambda x: numbers.signed(x, 2),
        "decimal": numbers.decimal,
        "count": numbers.count,
        "flops": numbers.flops,
        "reading": summary_line,
        "colour": lambda q: colour_of(q) or "transparent",
    }
    environment.globals["n"] = numbers
    return environment.get_template(template).render(plotly_js=Markup(get_plotlyjs()), **values)


def render_report(data: ReportData) -> str:
    """The page as text."""
    rounds = data.results["rounds"]
    return render_page(
        "report.html",
        recipe=data.recipe,
        recipe_yaml=yaml.safe_dump(_plain(data.recipe), sort_keys=False, allow_unicode=True),
        results=data.results,
        rounds=rounds,
        cards=headline(data.results),
        method_rows=method_rows(rounds),
        noted=any(numbers.reading_notes(e) for entry in rounds for e in entry["eval"].values() if e),
        equal_rows=equal_rows(rounds),
        plots=result_plots(data.results),
        judged=[entry for entry in rounds if entry.get("self_evaluation")],
        tool_rows=tool_rows(rounds),
        panels=[
            Plot(f"panel-{i}", title, title + " over optimizer steps", figure)
            for i, (title, figure) in enumerate(plots.training_panels(data.steps))
        ],
        pair_table=pair_table(data.pair_stats),
        trees=[tree_view(tree) for tree in data.trees[:MAX_TREES]],
        cost_rows=cost_rows(data.results["cost"]),
        kind_rows=kind_rows(data.results.get("cost_by_kind")),
        inference_rows=inference_rows(rounds),
        readings=data.readings,
        searches=[reading for reading in data.readings if reading["search"]],
        stopped=data.stopped,
        events=group_events(e for e in data.events if e.get("level") not in ("info", "error")),
        remarks=group_events(e for e in data.events if e.get("level") == "info"),
        unfinished=data.unfinished,
    )


def headline(results: Mapping[str, Any]) -> list[Card]:
    """Where the run ended, what it gained, what guided decoding adds, and what it cost."""
    cards: list[Card] = []
    rounds = results["rounds"]
    if rounds:
        last = rounds[-1]
        greedy = last["eval"].get("greedy")
        if greedy:
            note = f"95 % interval {numbers.percent_interval(greedy['interval'])}; {greedy['n']} held-out problems"
            cards.append(Card("Greedy accuracy, last round", numbers.percent(greedy["accuracy"]), "%", note))
        change = last["paired"].get("greedy_vs_first") or last["paired"].get("greedy_vs_previous")
        if change:
            cards.append(_difference_card("Gain over the start", change, "greedy, same problems"))
        method = numbers.sbs_method(rounds)
        gain = last["paired"].get(f"{method}_vs_greedy")
        if gain:
            note = f"reaches {numbers.percent(last['eval'][method]['accuracy'])} %"
            cards.append(_difference_card(f"Step beam {numbers.width_of(method)} over greedy", gain, note))
        if last["value"]["auc"] is not None:
            within = numbers.decimal(last["value"]["auc_within"])
            cards.append(
                Card("AUC of the value head", numbers.decimal(last["value"]["auc"]), "", f"within a problem {within}")
            )
    cost = results["cost"]
    cards.append(
        Card(
            "Time",
            numbers.duration(cost.get("seconds")),
            "",
            f"{numbers.count(cost.get('generated_tokens'))} tokens generated",
        )
    )
    return cards


def method_rows(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rounds × methods for the table of accuracies: every method that any round evaluated."""
    names: list[str] = []
    for entry in rounds:
        names += [name for name, found in entry["eval"].items() if found and name not in names]
    return [
        {
            "name": numbers.title(name),
            "colour": numbers.METHOD_COLOURS.get(numbers.family(name), plots.NEUTRAL),
            "entries": [entry["eval"].get(name) for entry in rounds],
        }
        for name in names
    ]


def equal_rows(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Guided methods of the last round against self-consistency at equal tokens, where it was measured."""
    if not rounds:
        return []
    curves = rounds[-1]["curves"]
    found = [(f"sbs({p['b1']},{p['b2']})", p) for p in curves.get("sbs") or []]
    if curves.get("mcts"):
        found.append(("mcts", curves["mcts"]))
    return [{"name": numbers.title(name), "point": p, "equal": p["equal_tokens"]} for name, p in found]


def result_plots(results: Mapping[str, Any]) -> dict[str, Plot | None]:
    """The figures of the results, by name; None where there is nothing to draw."""
    last = results["rounds"][-1] if results["rounds"] else None
    judged = [found for entry in results["rounds"] if (found := entry.get("self_evaluation"))]
    figures = {
        "rounds": ("Accuracy over rounds", plots.accuracy_over_rounds(results)),
        "tokens": ("Accuracy against tokens, last round", last and plots.accuracy_against_tokens(last)),
        "pass": ("pass@k", plots.pass_at_k(results)),
        "calibration": ("Calibration of the value head", last and plots.calibration(last["value"])),
        "confidence": (
            "Calibration of the policy's own judgement",
            judged and plots.calibration(judged[-1], "C: how sure the policy says it is", "self-evaluation"),
        ),
    }
    return {
        name: Plot(f"plot-{name}", title, title, figure) if figure is not None else None
        for name, (title, figure) in figures.items()
    }


def pair_table(stats: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Column heads and rows: a round a row, every count that any round gives."""
    keys: list[str] = []
    for row in stats:
        keys += [key for key in row if key not in keys]
    heads = [key.replace("_", " ") for key in keys]
    return heads, [[_cell(row.get(key)) for key in keys] for row in stats]


def cost_rows(cost: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """(what, how much, meaning)."""
    kinds = (
        ("generated_tokens", "Generated", "sampled by the policy, in search and evaluation"),
        ("prefill_tokens", "Prefilled", "prompts and prefixes computed"),
        ("cached_tokens", "Cached", "prefix tokens whose key-value cache was reused instead"),
        ("scored_tokens", "Scored", "run through the model for a value or a log-probability alone"),
        ("training_tokens", "Trained", "in optimizer steps, forward and backward"),
    )
    rows = [(label, numbers.count(cost.get(key)), meaning) for key, label, meaning in kinds]
    rows.append(("FLOPs", numbers.flops(cost.get("flops")), "estimated from the parameter count"))
    rows.append(("Time", numbers.duration(cost.get("seconds")), "wall clock"))
    return rows


def kind_rows(kinds: Mapping[str, Mapping[str, float]] | None) -> list[tuple[str, str, str, str]]:
    """(what for, tokens, FLOPs, time) of search, training and evaluation apart."""
    labels = {
        "search": "Search: training data made",
        "training": "Training",
        "evaluation": "Evaluation: inference",
    }
    rows = []
    for kind, cost in (kinds or {}).items():
        tokens = sum(cost[f"{what}_tokens"] for what in ("generated", "prefill", "scored", "training"))
        rows.append(
            (
                labels.get(kind, kind),
                numbers.count(tokens),
                numbers.flops(cost["flops"]),
                numbers.duration(cost["seconds"]),
            )
        )
    return rows


def inference_rows(rounds: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """FLOPs a problem: methods × rounds."""
    found = [(entry.get("inference") or {}).get("flops_per_problem", {}) for entry in rounds]
    names = dict.fromkeys(name for per_problem in found for name in per_problem)
    return [(numbers.title(name), [numbers.flops(per_problem.get(name)) for per_problem in found]) for name in names]


def tool_rows(rounds: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, Mapping[str, Any]]]:
    """(round, decoder, tool use) where decoding had a tool."""
    return [
        (entry["round"], name, found)
        for entry in rounds
        for name, found in (entry.get("tool_use") or {}).items()
        if found
    ]


def _difference_card(label: str, found: Mapping[str, Any], note: str) -> Card:
    tone = ("good" if found["difference"] > 0 else "bad") if numbers.is_clear(found) else ""
    doubt = "" if tone else ", not clear of zero"
    interval = f"95 % interval {numbers.points_interval(found)}{doubt}"
    return Card(label, numbers.points(found), "points", f"{interval}; {note}", tone)


def _cell(value: Any) -> str:
    if value is None:
        return numbers.NONE
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return numbers.count(value) if isinstance(value, int) or abs(value) >= 100 else numbers.decimal(value)


def _plain(recipe: Mapping[str, Any]) -> Any:
    """Tuples and the like as lists, so that YAML writes them plainly."""
    return json.loads(json.dumps(recipe, default=str))


def _script_safe(text: str | None) -> str:
    """`<`, `>` and `&` as JSON escapes: nothing in it can close a script element or open a comment."""
    text = text or "null"
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
