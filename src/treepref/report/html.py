"""`report.html`: a page that opens offline, its plotting library beside it. Turns `ReportData` into what it lays out.

Model-written text reaches the page through Jinja2's autoescape alone; the only markup passed as such is JSON in which
every `<` is escaped.
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
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from treepref.errors import StoreError
from treepref.report import numbers, plots, tables
from treepref.report.data import ReportData, group_events
from treepref.report.reading import summary_line
from treepref.report.tree_view import colour_of, tree_view
from treepref.runs.landing import new_file
from treepref.runs.results import Difference, Results, RoundResult

MAX_TREES = 10
PLOTLY = f"plotly-{get_plotlyjs_version()}.min.js"
"""The plotting library as it lies beside the pages of a folder: 5 MB, once."""


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
    """Write the report, and beside it what it plots with; each appears whole or not at all.

    Raises StoreError where a file cannot be written.
    """
    return write_page(render_report(data), Path(path))


def write_page(text: str, path: Path) -> Path:
    """Write a page, and beside it what it plots with; each appears whole or not at all.

    Raises StoreError where a file cannot be written.
    """
    try:
        with new_file(path) as part:
            part.write_text(text, encoding="utf-8")
        _put_library(path.parent)
    except OSError as error:
        raise StoreError(
            f"cannot write the report to {path}: {error.strerror or error}. Free space or give --out"
        ) from error
    return path


def _put_library(folder: Path) -> None:
    """Put plotly.js into a folder of pages, where it is not there yet, or another. Raises OSError."""
    code, place = get_plotlyjs().encode(), folder / PLOTLY
    if not place.is_file() or place.read_bytes() != code:
        with new_file(place) as part:
            part.write_bytes(code)


def render_page(template: str, **values: Any) -> str:
    """A template of this folder as text, everything escaped; it loads plotly.js from its own folder."""
    environment = Environment(
        loader=PackageLoader("treepref.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": lambda x: numbers.signed(x, 2),
        "decimal": numbers.decimal,
        "reading": summary_line,
        "colour": lambda q: colour_of(q) or "transparent",
    }
    return environment.get_template(template).render(plotly=PLOTLY, **values)


def render_report(data: ReportData) -> str:
    """The page as text."""
    results, rounds = data.results, data.results.rounds
    skipped = group_events(e for e in data.events if e.level not in ("info", "error"))
    remarks = group_events(e for e in data.events if e.level == "info")
    return render_page(
        "report.html",
        recipe=data.recipe,
        run=data.run,
        recipe_yaml=yaml.safe_dump(_plain(data.recipe), sort_keys=False, allow_unicode=True),
        results=results,
        rounds=rounds,
        cards=headline(results),
        plots=result_plots(results),
        tables={
            "accuracy": tables.accuracy_grid(rounds),
            "equal": tables.equal_grid(rounds),
            "searches": tables.search_grid(data.readings),
            "distinct": tables.distinct_grid(rounds),
            "value": tables.value_grid(rounds),
            "judged": tables.judged_grid(rounds),
            "tools": tables.tool_grid(rounds),
            "pairs": tables.pair_grid(data.pair_stats),
            "cost": tables.cost_grid(results.cost),
            "kinds": tables.kind_grid(results.cost_by_kind),
            "inference": tables.inference_grid(rounds),
            "skipped": tables.event_grid(skipped),
            "remarks": tables.event_grid(remarks, remarks=True),
        },
        readings=[(reading, tables.example_grid(reading.found.examples)) for reading in data.readings],
        panels=[
            Plot(f"panel-{i}", title, title + " over optimizer steps", figure)
            for i, (title, figure) in enumerate(plots.training_panels(data.steps))
        ],
        trees=[tree_view(tree) for tree in data.trees[:MAX_TREES]],
        stopped=data.stopped,
        unfinished=data.unfinished,
    )


def headline(results: Results) -> list[Card]:
    """Where the run ended, what it gained, what guided decoding adds, and what it cost."""
    cards = _headline_of(results.rounds) if results.rounds else []
    cost = results.cost
    tokens = f"{numbers.count(cost.generated_tokens)} tokens generated"
    return [*cards, Card("Time", numbers.duration(cost.seconds), "", tokens)]


def _headline_of(rounds: Sequence[RoundResult]) -> list[Card]:
    cards: list[Card] = []
    last = rounds[-1]
    if greedy := last.eval.get("greedy"):
        note = f"95 % interval {numbers.percent_interval(greedy.interval)}; {greedy.n} held-out problems"
        cards.append(Card("Greedy accuracy, last round", numbers.percent(greedy.accuracy), "%", note))
    if change := last.paired.get("greedy_vs_first") or last.paired.get("greedy_vs_previous"):
        cards.append(_difference_card("Gain over the start", change, "greedy, same problems"))
    method = numbers.sbs_method(rounds)
    guided, gain = last.eval.get(method), last.paired.get(f"{method}_vs_greedy")
    if guided and gain:
        note = f"reaches {numbers.percent(guided.accuracy)} %"
        cards.append(_difference_card(f"Step beam {numbers.width_of(method)} over greedy", gain, note))
    if last.value.auc is not None:
        within = f"within a problem {numbers.decimal(last.value.auc_within)}"
        cards.append(Card("AUC of the value head", numbers.decimal(last.value.auc), "", within))
    return cards


def result_plots(results: Results) -> dict[str, Plot | None]:
    """The figures of the results, by name; None where there is nothing to draw."""
    last = results.rounds[-1] if results.rounds else None
    judged = [found for entry in results.rounds if (found := entry.self_evaluation)]
    figures = {
        "rounds": ("Accuracy over rounds", plots.accuracy_over_rounds(results)),
        "tokens": ("Accuracy against tokens, last round", last and plots.accuracy_against_tokens(last)),
        "pass": ("pass@k", plots.pass_at_k(results)),
        "calibration": ("Calibration of the value head", last and plots.calibration(last.value.calibration)),
        "confidence": (
            "Calibration of the policy's own judgement",
            plots.calibration(judged[-1].calibration, "C: how sure the policy says it is", "self-evaluation")
            if judged
            else None,
        ),
    }
    return {
        name: Plot(f"plot-{name}", title, title, figure) if figure is not None else None
        for name, (title, figure) in figures.items()
    }


def _difference_card(label: str, found: Difference, note: str) -> Card:
    tone = numbers.tone(found)
    doubt = "" if tone else ", not clear of zero"
    interval = f"95 % interval {numbers.points_interval(found.interval)}{doubt}"
    return Card(label, numbers.points(found), "points", f"{interval}; {note}", tone)


def _plain(recipe: Mapping[str, Any]) -> Any:
    """Tuples and the like as lists, so that YAML writes them plainly."""
    return json.loads(json.dumps(recipe, default=str))


def _script_safe(text: str | None) -> str:
    """`<`, `>` and `&` as JSON escapes: nothing in it can close a script element or open a comment."""
    text = text or "null"
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
