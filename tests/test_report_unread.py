"""A run that reports nothing right says what was read of its solutions, and why; so does one that stopped early."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from test_report import NASTY, Page, synthetic_report, synthetic_results
from treepref import progress
from treepref.errors import BudgetError, TooFewPairs
from treepref.evaluation.comparison import RoundScores, RunScores, compare_runs
from treepref.evaluation.scores import Samples, Solution, round_summary, sampled_scores, single_scores
from treepref.loops import svpo
from treepref.loops.run import report_run
from treepref.loops.run import run as run_recipe
from treepref.recipes.reading import load_recipe
from treepref.report import html, table
from treepref.report.compare import accuracy_grid
from treepref.report.data import TitledOutcomes
from treepref.report.reading import KEPT_CHARS, Attempt, Reading, example_line, shortened, summary_line
from treepref.runs.results import Results, plain
from treepref.runs.store import Store
from treepref.types import Cost

RUN = Path("run")
SMALL = (
    "task.splits.train=12", "task.splits.eval=10", "search.simulations=4", "search.children=3", "eval.samples=4",
    "eval.samples_between=4", "eval.sbs=[]", "pairs.min_problems=10", "pairs.min_gap=1.9", "engine.threads=1",
    "value.problems=0",
)  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    progress.set_quiet(True)
    yield
    progress.set_quiet(False)


def run(*overrides: str, recipe: str = "quickstart") -> None:
    run_recipe(load_recipe(recipe, [*SMALL, *overrides]), RUN)


def colours() -> str:
    """Questions of choice, put to the model as a sum: it answers in numbers, which is no choice."""
    choices = {"text": ["red", "wood"], "label": ["A", "B"]}
    rows = [
        {"question": f"Which is a colour ({i})?", "choices": choices, "answerKey": "A", "id": f"c{i:02}"}
        for i in range(40)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("asks.py").write_text("def ask(question):\n    return '4 + 9 - 3 + 7 + 1 - 2 + 5 =\\n'\n")
    Path("colours.yaml").write_text(
        "method: svpo\nmodel: {path: 'builtin:tiny-base', dtype: float32, device: cpu}\n"
        "task: {kind: arc_easy, path: rows.jsonl, prompt: 'asks:ask', splits: {labelled: 0, train: 12, eval: 10}}\n"
    )
    return "colours.yaml"


def results() -> dict:
    return json.loads((RUN / "results.json").read_text())


def words() -> str:
    return "".join(Page((RUN / "report.html").read_text()).words)


# --- shares and the strict reader


def solution(problem: str, sample: int, answer: str | None, right: bool, strict: bool | None, end: str = "eos"):
    return Solution(problem, sample, right, answer, 10, finish=end, strict=strict)


def test_entries_hold_strict_accuracy_and_the_shares_unread_and_cut() -> None:
    rows = [
        solution("a", 0, "7", True, True), solution("b", 0, "7", True, False), solution("c", 0, None, False, False),
        solution("d", 0, None, False, False, "length"),
    ]  # fmt: skip
    entry = single_scores(rows).entry()
    assert (entry.accuracy, entry.strict_accuracy) == (0.5, 0.25)
    assert entry.unreadable == pytest.approx(1 / 3), "of those that finished"
    assert entry.cut == 0.25
    samples = [solution("a", i, answer, answer == "7", i == 1) for i, answer in enumerate(["7", "7", None, "8"])]
    vote = sampled_scores(Samples(samples), "sc", 2).entry()
    assert (vote.accuracy, vote.strict_accuracy, vote.unreadable) == (0.5, 0.0, 0.25)
    assert single_scores([rows[3]]).entry().unreadable is None, "nothing finished: no share"


def test_stored_rows_of_an_older_version_load_and_say_nothing_of_strictness() -> None:
    row = solution("a", 0, "7", True, True).as_row()
    del row["strict"]
    old = Solution.from_row(row)
    assert old.strict is None
    assert single_scores([old]).entry().strict_accuracy is None
    assert Solution.from_row(solution("a", 0, "7", True, True).as_row()).strict is True


def test_strict_and_unread_are_shown_where_they_are_above_zero() -> None:
    rows = [solution(str(i), 0, "7" if i < 6 else None, i < 4, i < 3) for i in range(10)]
    shown = Results(recipe={}, seed=0, rounds=[round_summary(rows, None, None, None, None)], cost=Cost())
    lines = table.footnotes(shown)
    assert "Round 0, strict (in the task's own form alone), %: greedy 30.0." in lines
    assert "Round 0, finished without an answer that can be read, %: greedy 40.0." in lines
    assert not any("cut" in line for line in lines)
    page = "".join(Page(html.render_report(synthetic_report(results=shown, trees=[], steps=[]))).words)
    assert "strict 30.0 %" in page and "unread 40.0 %" in page and "knows the task's own form alone" in page
    simple = synthetic_results(rounds=1)
    assert not any("strict" in line or "read" in line for line in table.footnotes(simple))
    assert "unread" not in "".join(Page(html.render_report(synthetic_report(results=simple, trees=[], steps=[]))).words)


def compared(name: str, seed: int, rows: list[Solution]) -> RunScores:
    scores = {"greedy": single_scores(rows, needs_value=False)}
    spent = {"search": Cost(), "training": Cost()}
    return RunScores(name, name, "demo", "svpo", seed, "demo", [RoundScores(0, scores, spent)])  # type: ignore[arg-type]


def test_compare_shows_strict_and_unread_beneath_an_accuracy() -> None:
    rows = [solution(str(i), 0, "7" if i < 6 else None, i < 4, i < 3) for i in range(10)]
    other = [solution(str(i), 0, "7" if i < 8 else None, i < 4, i < 1) for i in range(10)]
    one = compare_runs([compared("one", 0, rows)])
    (cell,) = (cell for cell in accuracy_grid(one).rows[0] if cell.text == "40.0")
    assert cell.below[-2:] == ["strict 30.0", "unread 40.0"]
    assert "knows the task's own form alone" in accuracy_grid(one).note
    (entry,) = compare_runs([compared("a-0", 0, rows), compared("a-1", 1, other)]).entries
    (point,) = entry.rounds[0].points
    assert (point.strict_accuracy, point.unreadable) == (pytest.approx(0.2), pytest.approx(0.3))
    simple = compare_runs([compared("one", 0, [solution("a", 0, "7", True, True)])])
    assert "strict" not in accuracy_grid(simple).note


# --- examples


def attempt(problem: str, outcome: str, text: str | None = "text", read: str | None = None) -> Attempt:
    return Attempt(problem, outcome, text, read, "7")  # type: ignore[arg-type]


def test_three_examples_unread_ones_first_of_different_problems() -> None:
    found = Reading.of(
        [attempt("d", "cut"), attempt("c", "wrong", read="8"), attempt("b", "wrong", read="9"), attempt("b", "right"),
         attempt("b", "wrong", "again", "9"), attempt("z", "unreadable")]
    )  # fmt: skip
    assert [(e.outcome, e.problem_id) for e in found.examples()] == [
        ("unreadable", "z"), ("wrong", "b"), ("wrong", "c"),
    ]  # fmt: skip
    assert (found.total, found.finished, found.mostly) == (6, 5, "wrong")
    cut = Reading.of([attempt("b", "wrong", read="9"), *(attempt(p, "cut") for p in "wxyz")])
    assert [e.problem_id for e in cut.examples()] == ["w", "x", "y"] and cut.mostly == "cut"
    assert plain(Reading.of([attempt("a", "right")]).outcomes()) == {
        "right": 1, "wrong": 0, "unreadable": 0, "cut": 0, "unreadable_share": 0.0, "cut_share": 0.0, "examples": [],
    }  # fmt: skip
    assert "2 of" not in summary_line(found.outcomes()) and "1 of the 5 that finished (20.0 %)" in summary_line(
        found.outcomes()
    )


def test_long_texts_lose_their_middle_and_terminals_get_no_control_characters() -> None:
    text = shortened("a" * 1000 + "end", 90)
    assert text.startswith("aaa") and text.endswith("end") and "(913 characters)" in text
    example = attempt("p", "wrong", "\x1b[2J" + "x" * 2000, "8\x07").example()
    assert len(example.text) < KEPT_CHARS + 40
    line = example_line(example)
    assert line.isprintable() and r"\x1b[2J" in line and r"'8\x07'" in line and "right answer: '7'" in line


def test_hostile_text_stays_in_its_place() -> None:
    reading = TitledOutcomes(0, NASTY, Reading.of([Attempt(NASTY, "wrong", NASTY, NASTY, NASTY)]).outcomes())
    page = Page(html.render_report(synthetic_report(trees=[], readings=[reading], stopped=NASTY, unfinished=[NASTY])))
    assert "".join(page.words).count("alert(1)") >= 7
    assert not any("alert(1)" in script for _, script in page.scripts)
    console = Console(file=io.StringIO(), width=100)
    table.print_results(synthetic_results(rounds=1), [], console, readings=[reading], stopped=NASTY)
    assert "[red]" in console.file.getvalue(), "nor is it markup"


# --- whole runs


def test_a_run_that_reads_nothing_says_so_in_its_error_and_on_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TooFewPairs) as stopped:
        run(recipe=colours())
    told = str(stopped.value)
    assert "answers cannot be read: see task.answer" in told and "take easier problems" not in told
    assert "no answer can be read in" in told and "(100.0 %)" in told
    assert told.count("unreadable, problem c") == 3 and "right answer: 'A'" in told
    greedy = results()["rounds"][0]
    assert greedy["eval"]["greedy"]["unreadable"] == 1.0 and greedy["eval"]["greedy"]["accuracy"] == 0
    assert [e["outcome"] for e in greedy["examples"]] == ["unreadable"] * 3
    assert all(e["read"] is None and e["answer"] == "A" and e["text"] for e in greedy["examples"])
    (search,) = results()["search"]
    assert (search["trees"], search["solved"], search["unsolved"], search["unreadable_share"]) == (12, 0, 12, 1.0)
    assert len(search["examples"]) == 3
    assert results()["unfinished"] == ["round-1/pairs"] and results()["stopped"] == told
    printed = capsys.readouterr().out
    assert "Round 0, finished without an answer that can be read, %: greedy 100.0" in printed
    assert printed.count("unreadable, problem c") == 6 and "Round 1, search: of 12 trees 0 found" in printed
    page = words()
    assert "It stopped:" in page and "see task.answer" in page and "Not finished: round-1/pairs" in page
    assert (RUN / "report.html").read_text().count('<details class="tree"') == 10, "unsolved trees are drawn"
    report_run(RUN)
    assert words() == page, "the report says the same at any later time"


def test_most_cut_solutions_name_the_limit() -> None:
    with pytest.raises(TooFewPairs) as stopped:
        run("search.max_step_tokens=2", "eval.max_tokens=4")
    assert "raise search.max_step_tokens, search.max_depth" in str(stopped.value)
    assert "cut, problem" in str(stopped.value) and "take easier problems" not in str(stopped.value)
    entry = results()["rounds"][0]
    assert entry["eval"]["greedy"]["cut"] == 1.0 and entry["eval"]["greedy"]["unreadable"] is None
    assert entry["examples"][0]["outcome"] == "cut" and entry["examples"][0]["text"], "what there was of it is kept"
    assert "✗ cut" in words()


def test_a_budget_stop_before_any_round_was_evaluated_has_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BudgetError, match=r"budget\.tokens"):
        run("budget.tokens=1200", "engine.max_rows=2", "pairs.max_tokens=1")
    with Store(RUN, read_only=True) as store:
        assert not store.stage_done("round-0/eval")
    page = words()
    assert "No round was evaluated" in page and "budget.tokens" in page and "Not finished: round-0/eval" in page
    assert " of 10 problems)" in page
    assert "budget.tokens" in results()["stopped"] and results()["rounds"] == []
    assert "report:" in capsys.readouterr().out
    with pytest.raises(TooFewPairs):
        run("budget.tokens=100000000", "engine.max_rows=2", "pairs.max_tokens=1")
    with Store(RUN, read_only=True) as store:
        levels = {e.message.partition("\n")[0][:24]: e.level for e in store.events() if e.level != "warning"}
    assert "budget.tokens" not in results()["stopped"], "a stop of an earlier life is past"
    assert levels["stopped here before: bud"] == "info"


def test_ctrl_c_in_the_search_leaves_a_page_with_the_trees_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Store.finish_tree

    def interrupted(store: Store, stage: str, tree, **more) -> None:
        if store.count_trees("round-1/search") == 3:
            raise KeyboardInterrupt
        finish(store, stage, tree, **more)

    monkeypatch.setattr(Store, "finish_tree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("search.trees_in_flight=2")
    page, document = words(), (RUN / "report.html").read_text()
    assert "Ctrl-C" in page and "Not finished: round-1/search (3 trees)" in page
    assert document.count('<details class="tree"') == 3 and results()["search"][0]["trees"] == 3
    monkeypatch.setattr(Store, "finish_tree", finish)
    monkeypatch.setattr(svpo, "make_pairs", lambda session, round: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("search.trees_in_flight=2")
    assert "ZeroDivisionError" in results()["stopped"] and results()["search"][0]["trees"] == 12


def test_a_report_of_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with Store(RUN) as store:
        store.set_meta("recipe", load_recipe("quickstart", SMALL).recipe.model_dump(mode="json"))
    report_run(RUN)
    assert "nothing to report" in capsys.readouterr().out and not (RUN / "report.html").exists()
