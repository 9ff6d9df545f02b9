"""The table fits a terminal, the page is self-contained and safe, and the trees show what was preferred."""

from __future__ import annotations

import io
import json
import random
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from msgspec import structs
from rich.console import Console

from treepref.errors import StoreError
from treepref.evaluation.scores import Solution, round_summary
from treepref.report import html, numbers, plots, table
from treepref.report.data import EventGroup, ReportData, group_events
from treepref.report.grid import Cell, Grid, for_terminal
from treepref.report.tree_view import MAX_TEXT, colour_of, tree_view
from treepref.runs.results import Entry, EqualTokens, Results
from treepref.types import Cost

NASTY = "</script><script>alert(1)</script> ]]> --> </svg> \"'&{{ 7*7 }} {% raw %} [/bold][red]"


# ---------------- synthetic run


def synthetic_results(rounds=3, problems=80, n=16, seed=0):
    """A run whose skill grows by the round; values from round 1 on."""
    generator = random.Random(seed)
    difficulty = [generator.random() for _ in range(problems)]
    entries, first, previous = [], None, None
    for number in range(rounds):
        skill = 0.32 + 0.13 * number
        valued = number > 0

        def solve(p, sample, chance, tokens, scored=0, valued=valued):
            right = generator.random() < chance
            value = max(-1.0, min(1.0, (0.5 if right else -0.3) + generator.gauss(0, 0.45))) if valued else None
            answer = "7" if right else str(generator.randrange(8, 14))
            return Solution(
                str(p), sample, right, answer, tokens, scored, value, text=f"{answer} {generator.random():.1f}"
            )

        chances = [min(0.97, max(0.02, 1.6 * skill * (1.3 - d))) for d in difficulty]
        greedy = [solve(p, 0, min(0.98, 1.15 * c), 36) for p, c in enumerate(chances)]
        samples = [solve(p, i, 0.75 * c, generator.randrange(30, 42)) for p, c in enumerate(chances) for i in range(n)]
        beams = {
            (b1, b2): [
                solve(p, 0, min(0.98, c + 0.05 * b1 + 0.04 * b2), 28 * b1 * b2, 3) for p, c in enumerate(chances)
            ]
            for b1, b2 in ((1, 2), (1, 4), (2, 4), (4, 4))
        }
        entries.append(
            round_summary(greedy, samples, beams if valued else None, None, previous, number=number, first=first)
        )
        first, previous = first or greedy, greedy
    cost = Cost(12_345_678, 3_456_789, 8_901_234, 56_789, 4_567_890, 3.14e15, 492.0)
    recipe = {"name": "quickstart", "method": "svpo", "seed": 0, "model": {"path": "builtin:tiny-base"}}
    recipe["task"] = {"kind": "reasoning_gym", "name": "countdown"}
    return Results(recipe=recipe, seed=0, rounds=entries, cost=cost)


def synthetic_tree(breadth=4, depth=3, seed=1, words=None, question="Use 3, 8, 11 and 25 to make 38."):
    generator = random.Random(seed)
    nodes = [
        {
            "id": 0,
            "parent": None,
            "text": "",
            "q": 0.1,
            "visits": 40,
            "value": 0.05,
            "prior": 1.0,
            "reward": None,
            "terminal": False,
        }
    ]
    level = [0]
    for d in range(depth):
        below = []
        for parent in level:
            for _ in range(generator.randrange(2, breadth + 1)):
                a, b = generator.randrange(2, 30), generator.randrange(2, 12)
                end = d == depth - 1
                visits = generator.choice([0, 1, 2, 5, 9])
                right = generator.random() < 0.25
                nodes.append(
                    {
                        "id": len(nodes),
                        "parent": parent,
                        "text": words or f"{a} {generator.choice('+-×')} {b} = {a + b}",
                        "q": None if not visits else (1.0 if right else -1.0) if end else generator.uniform(-0.9, 0.8),
                        "visits": visits,
                        "value": generator.uniform(-1, 1),
                        "prior": generator.random(),
                        "reward": (1.0 if right else -1.0) if end else None,
                        "terminal": end,
                    }
                )
                below.append(len(nodes) - 1)
        level = below
    pairs = []
    for parent in (0, 1, level[0] and nodes[level[0]]["parent"]):
        siblings = sorted((x for x in nodes if x["parent"] == parent and x["q"] is not None), key=lambda x: -x["q"])
        if len(siblings) > 1 and siblings[0]["q"] > siblings[-1]["q"]:
            best, worst = siblings[0], siblings[-1]
            pair = {"winner": best["id"], "loser": [worst["id"]]}
            pairs.append({**pair, "q_winner": best["q"], "q_loser": worst["q"]})
    return {"question": question, "answer": "38", "round": 1, "nodes": nodes, "pairs": pairs}


def synthetic_report(**changes):
    generator = random.Random(5)
    steps = []
    for i in range(120):
        t = i / 120
        steps.append(
            {
                "round": 1 + i // 60,
                "step": i % 60,
                "loss": 0.8 - 0.3 * t + generator.gauss(0, 0.02),
                "loss_preference": 0.693 - 0.25 * t + generator.gauss(0, 0.02),
                "loss_value": 0.6 - 0.35 * t + generator.gauss(0, 0.02),
                "reward_margin": 0.9 * t + generator.gauss(0, 0.05),
                "reward_accuracy": 0.5 + 0.3 * t + generator.gauss(0, 0.03),
                "value_rank_accuracy": 0.5 + 0.35 * t + generator.gauss(0, 0.03),
                "chosen_logratio": -0.6 * t + generator.gauss(0, 0.1),
                "rejected_logratio": -4 * t + generator.gauss(0, 0.2),
                "chosen_fell": 0.3 * t + 0.2 + generator.gauss(0, 0.02),
                "kl": 0.05 * t**2 + abs(generator.gauss(0, 0.002)),
                "value_mse": 0.7 - 0.4 * t + generator.gauss(0, 0.02),
                "nll": 0.5 - 0.1 * t + generator.gauss(0, 0.01),
            }
        )
    fields = {
        "recipe": {"name": "quickstart", "method": "svpo", "model": {"path": "builtin:tiny-base"}},
        "results": synthetic_results(),
        "steps": steps,
        "pair_stats": [
            {"round": 1, "problems": 3000, "mixed": 1421, "pairs": 5210, "mean_gap": 0.71, "failed_samples": 12},
            {"round": 2, "problems": 3000, "mixed": 1688, "pairs": 6042, "mean_gap": 0.77, "failed_samples": 9},
        ],
        "trees": [synthetic_tree(seed=s, breadth=3 + s % 3) for s in range(12)],
        "events": [EventGroup("search", "skip", "a sample was cut at 64 tokens", 21)],
    }
    return ReportData(**{**fields, **changes})


# ---------------- numbers


def test_numbers_for_people():
    assert [numbers.count(x) for x in (None, 0, 36.25, 9999, 12345, 1234567, 2.5e9)] == [
        "–", "0", "36.2", "9999", "12.3 k", "1.23 M", "2.5 G",
    ]  # fmt: skip
    assert [numbers.signed(x) for x in (5.14, -3.0, -0.01, None)] == ["+5.1", "−3.0", "0.0", "–"]
    assert numbers.flops(3.14e15) == "3.1×10¹⁵"
    assert [numbers.duration(s) for s in (3.21, 492, 7384)] == ["3.2 s", "8 min 12 s", "2 h 3 min"]
    assert numbers.title("sbs(2,4)") == "Step beam search (2,4)"
    gap = EqualTokens(sc_accuracy=0.5, difference=0.1, interval=(0.01, 0.2), n=9)
    assert numbers.is_clear(gap) and numbers.tone(gap) == "good"
    doubtful = structs.replace(gap, interval=(-0.01, 0.2))
    assert not numbers.is_clear(doubtful) and numbers.tone(doubtful) == ""


def test_sbs_width_shown_is_one_that_was_evaluated():
    (last,) = synthetic_results(rounds=2).rounds[1:]
    narrow = structs.replace(last, eval={"sbs(1,2)": last.eval["greedy"], "sbs(2,4)": None})
    assert numbers.sbs_method([narrow]) == "sbs(1,2)"
    assert numbers.sbs_method([last]) == "sbs(2,4)"
    assert numbers.sbs_method([]) == "sbs(2,4)"


# ---------------- table


def printed(results, events=(), width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    table.print_results(results, events, console)
    return console.file.getvalue()


def test_table_fits_100_columns_and_cuts_no_number():
    results = synthetic_results(rounds=3)
    results.rounds[-1].eval["mcts"] = results.rounds[-1].eval["greedy"]
    text = printed(results, [EventGroup("search", "skip", "x" * 300)])
    assert max(map(len, text.splitlines())) <= 100
    body = text.split("Skipped")[0]
    assert "…" not in body
    last = results.rounds[-1]
    assert numbers.percent(last.eval["greedy"].accuracy) in body
    assert numbers.percent(last.eval["sbs(2,4)"].accuracy) in body
    assert numbers.points_interval(last.paired["greedy_vs_previous"].interval) in body
    assert "12.3 M generated" in body and "8 min 12 s" in body


def test_table_shows_a_dash_for_what_does_not_exist():
    row = next(line for line in printed(synthetic_results(rounds=1)).splitlines() if line.strip().startswith("0 "))
    assert row.count("–") == 4  # no values in round 0: bon, wvote, sbs; and no round before
    assert "No round was evaluated" in printed(Results(recipe={}, seed=0, rounds=[], cost=Cost()))


def test_event_text_is_not_read_as_markup():
    text = printed(synthetic_results(rounds=1), [EventGroup("tasks", "skip", "row 3: [/bold] [red]x")] * 3)
    assert "3 × tasks: row 3: [/bold] [red]x" in text
    assert "Nothing was skipped" in printed(synthetic_results(rounds=1))


def test_equal_events_are_grouped_and_the_most_frequent_comes_first():
    rare, often = EventGroup("a", "skip", "rare"), EventGroup("b", "skip", "often", 2)
    groups = group_events([rare, often, often])
    assert [(g.message, g.count) for g in groups] == [("often", 4), ("rare", 1)]


# ---------------- trees


def node(key, parent, q=None, visits=1, *, terminal=False, reward=None, text=None):
    return {"id": key, "parent": parent, "text": text or f"step {key}", "q": q, "visits": visits, "value": None,
            "prior": 0.5, "reward": reward, "terminal": terminal}  # fmt: skip


def wide_tree():
    """Root with ten children; a pair 3 over 7; the best answer under 5; four more steps under 9."""
    nodes = [node(0, None, 0.0, 30), *(node(i, 0, 0.05 * (5 - i)) for i in range(1, 11))]
    nodes += [node(11, 5, 1.0, terminal=True, reward=1.0), *(node(12 + i, 9, -0.1) for i in range(4))]
    return {"question": "q", "nodes": nodes, "pairs": [{"winner": 3, "loser": 7, "q_winner": 0.1, "q_loser": -0.1}]}


def test_a_wide_tree_is_pruned_to_pairs_and_the_best_answer():
    view = tree_view(wide_tree())
    assert [row.node["id"] if row.node else None for row in view.rows] == [3, 5, 11, 7, None]
    assert [row.side for row in view.rows] == ["won", "", "", "lost", ""]
    assert [row.on_best for row in view.rows] == [False, True, True, False, False]
    # hidden siblings: 1, 2, 4, 6, 8, 9, 10; below them the four steps under 9
    assert (view.rows[-1].hidden_here, view.rows[-1].hidden_below) == (7, 4)
    assert (view.steps, view.hidden, view.finished, view.right) == (15, 11, 1, 1)
    assert view.rows[0].marks[0].gap == pytest.approx(0.2)
    assert len(view.dots) == 16 and sum(dot.shown for dot in view.dots) == 5  # the map shows all of it


def test_a_small_tree_is_shown_whole_best_q_first():
    nodes = [node(0, None), node(1, 0, -0.5), node(2, 0, None, 0), node(3, 0, 0.5)]
    view = tree_view({"question": "q", "nodes": nodes, "pairs": []})
    assert [row.node["id"] for row in view.rows] == [3, 1, 2]
    assert view.hidden == 0 and [row.last for row in view.rows] == [False, False, True]


def test_a_shown_step_says_what_is_hidden_below_it():
    tree = wide_tree()
    tree["pairs"] = [{"winner": [3], "loser": [9], "q_winner": 0.1, "q_loser": -0.2}]
    assert [row.hidden_below for row in tree_view(tree).rows if row.node and row.node["id"] == 9] == [4]


def test_solution_pairs_mark_their_whole_path_and_name_it_once():
    nodes = [node(0, None), node(1, 0, 1.0), node(2, 1, 1.0, terminal=True, reward=1.0), node(3, 0, -1.0)]
    pair = {"winner": [1, 2], "loser": [3], "q_winner": 1.0, "q_loser": -1.0}
    rows = tree_view({"question": "q", "nodes": nodes, "pairs": [pair]}).rows
    assert [(row.side, len(row.marks)) for row in rows] == [("won", 1), ("won", 0), ("lost", 1)]


def test_q_bars_use_the_range_of_the_tree():
    nodes = [node(0, None), node(1, 0, 1.0), node(2, 0, 0.0)]
    rows = tree_view({"question": "q", "nodes": nodes, "pairs": [], "q_range": [0.0, 2.0]}).rows
    assert [row.q_scaled for row in rows] == [0.0, -1.0]
    assert colour_of(-1) == "#d64541" and colour_of(1) == "#16a06e" and colour_of(None) is None


# ---------------- page


class Page(HTMLParser):
    """Tags, scripts and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.words, self._in = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag in ("script", "style"):
            self._in.append(tag)
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        if self._in and self._in[-1] == tag:
            self._in.pop()

    def handle_data(self, data):
        if self._in:
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        else:
            self.words.append(data)


@pytest.fixture(scope="module")
def page_text():
    return html.render_report(synthetic_report())


def test_page_loads_nothing_but_the_library_beside_it(page_text):
    page = Page(page_text)
    loaded = [a for a in page.attributes if a[1] in ("src", "href", "action", "data", "poster")]
    assert loaded == [("link", "href", "data:,"), ("script", "src", html.PLOTLY)]
    own_style = next(text for _, text in page.scripts if ":root" in text)
    assert "@import" not in own_style and "url(" not in own_style
    assert page_text.count("Plotly.react(place") == 1 and len(page_text) < 1_000_000
    assert "prefers-color-scheme: dark" in own_style


def test_page_shows_every_section_and_ten_trees(page_text):
    words = " ".join(Page(page_text).words)
    for heading in (
        "Accuracy",
        "pass@k",
        "Value head",
        "Training",
        "Pairs",
        "Trees",
        "Cost",
        "Skipped and failed",
        "Recipe",
    ):
        assert heading in words
    assert page_text.count('<details class="tree"') == 10
    for number in ("12.3 M", "3.1×10¹⁵", "5210", "a sample was cut at 64 tokens", "preferred, Q gap +"):
        assert number in words
    figures = [json.loads(text) for attrs, text in Page(page_text).scripts if attrs.get("data-for")]
    assert len(figures) == 4 + 8  # four of the results; training panels of what was logged


def test_model_text_cannot_leave_its_place(page_text):
    tree = synthetic_tree(words=NASTY, question=NASTY)
    tree["answer"] = NASTY
    report = synthetic_report(
        trees=[tree],
        recipe={"name": NASTY, "method": NASTY, "task": {"kind": NASTY}},
        events=[EventGroup(NASTY, NASTY, NASTY)],
        pair_stats=[{"round": 1, NASTY: NASTY}],
        steps=[{"round": 1, "step": 1, "loss": 0.5, NASTY: 1.0}],
    )
    text = html.render_report(report)
    page = Page(text)
    assert "alert(1)" in "".join(page.words)  # it is shown …
    assert not any("alert(1)" in script for _, script in page.scripts)  # … and is in no script
    assert not any("alert(1)" in (value or "") and name.startswith("on") for _, name, value in page.attributes)
    assert "{{ 7*7 }}" in "".join(page.words)  # nor is it a template
    # the structure is that of a harmless page: no tag more, none closed early
    assert page.tags.count("script") == 2 + len([1 for attrs, _ in page.scripts if attrs.get("data-for")])
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(drawing)  # well-formed: the text broke nothing


def test_figure_json_cannot_end_its_script():
    figure = plots.blank(NASTY, None)
    figure.add_trace(
        plots.with_intervals(
            [1.0], [Entry(accuracy=0.5, n=9, interval=(0.4, 0.6), tokens_per_problem=1.0)], NASTY, "#3b7ddd"
        )
    )
    safe = str(html.Plot("x", "t", "d", figure).json)
    assert not set(safe) & set("<>&")
    assert json.loads(safe)["data"][0]["name"] == NASTY


def test_page_of_a_run_without_anything_says_so():
    named = html.render_report(ReportData(recipe={"name": "r"}, run="my-run", results=Results(
        recipe={}, seed=0, rounds=[], cost=Cost())))  # fmt: skip
    assert "<h1>my-run</h1>" in named and "<title>my-run · treepref report</title>" in named
    text = html.render_report(ReportData(recipe={}, results=Results(recipe={}, seed=0, rounds=[], cost=Cost())))
    words = " ".join(Page(text).words)
    for line in (
        "No round was evaluated",
        "No pairs were made",
        "No trees were kept",
        "No training steps",
        "Nothing was skipped",
    ):
        assert line in words
    warmup_only = html.render_report(synthetic_report(results=synthetic_results(rounds=1), steps=[], trees=[]))
    assert "There were no values to evaluate" in warmup_only


def test_remarks_are_not_counted_as_failures():
    remark = EventGroup("run", "info", "resumed with eval.samples=16")
    assert "Nothing was skipped" in printed(synthetic_results(rounds=1), [remark])
    words = " ".join(Page(html.render_report(synthetic_report(trees=[], steps=[], events=[remark]))).words)
    assert "Nothing was skipped" in words and "1 remark" in words and "resumed with eval.samples=16" in words


def test_long_steps_and_very_large_trees_stay_readable():
    view = tree_view({"question": "q", "nodes": [node(0, None), node(1, 0, text="x" * 5000)], "pairs": []})
    assert view.rows[0].text.endswith("(4300 more characters)") and len(view.rows[0].text) < MAX_TEXT + 40
    many = tree_view(
        {"question": "q", "nodes": [node(0, None), *(node(i, 0, 0.0) for i in range(1, 2000))], "pairs": []}
    )
    assert many.dots == [] and many.steps == 1999


def test_report_is_written_whole_or_not_at_all(tmp_path):
    path = html.write_report(synthetic_report(trees=[]), tmp_path / "report.html")
    library = tmp_path / html.PLOTLY
    assert path.read_text().rstrip().endswith("</html>") and set(tmp_path.iterdir()) == {path, library}
    assert "Plotly" in library.read_text() and library.stat().st_size > 3_000_000
    library.write_text("x" * library.stat().st_size)
    html.write_report(synthetic_report(trees=[]), tmp_path / "second.html")
    assert "Plotly" in library.read_text()  # once a folder, and this one
    with pytest.raises(StoreError, match="cannot write the report"):
        html.write_report(synthetic_report(trees=[]), tmp_path / "absent" / "report.html")


# ---------------- plots and picture


def test_accuracy_plot_holds_the_results():
    results = synthetic_results()
    greedy = plots.accuracy_over_rounds(results).data[0]
    entry = results.rounds[1].eval["greedy"]
    assert greedy.x[1] == 1 and greedy.y[1] == pytest.approx(100 * entry.accuracy)
    assert greedy.y[1] + greedy.error_y.array[1] == pytest.approx(100 * entry.interval[1])
    assert greedy.y[1] - greedy.error_y.arrayminus[1] == pytest.approx(100 * entry.interval[0])
    beams = next(t for t in plots.accuracy_against_tokens(results.rounds[-1]).data if t.name == "Step beam search")
    assert list(beams.text) == ["(1,2)", "(1,4)", "(2,4)", "(4,4)"]


def test_training_panels_leave_gaps_for_what_is_not_finite():
    steps = [
        {"round": 1, "loss": 1.0},
        {"round": 1, "loss": float("nan")},
        {"round": 2, "loss": 0.5, "kl": float("nan")},
    ]
    panels = plots.training_panels(steps)
    assert [title for title, _ in panels] == ["Loss and its terms"]
    assert list(panels[0][1].data[0].y) == [1.0, None, 0.5]
    assert len(panels[0][1].layout.shapes) == 1  # one line between the rounds
    assert plots.training_panels([]) == []


@pytest.mark.parametrize("width", [110, 80, 60, 40])
def test_a_terminals_table_cuts_no_number(width: int) -> None:
    cells = [Cell("26.2/83.3", ["24.2–47.6", f"{n}22.9 tok"]) for n in range(5)]
    rows = [[Cell("first"), *cells, Cell("+8.3", ["[−11.4, +18.0]"])]]
    grid = Grid(["a run's name", *["tokens a problem"] * 5, "Δ greedy"], rows, "A title")
    console = Console(file=io.StringIO(), width=width)
    console.print(for_terminal(grid))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("[−11.4,", "+18.0]", *(f"{n}22.9 tok" for n in range(5)), "first"):
        assert text in shown
    assert shown.count("26.2/83.3") == shown.count("24.2–47.6") == 5
    assert width < 80 or all(len(line) <= width for line in shown.splitlines())
