"""A user's checker that does not work is noticed before it costs anything, and told with its traceback."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from small_runs import copy_model, run_command
from treepref import progress
from treepref.config import TaskConfig
from treepref.errors import CheckerError, RecipeError
from treepref.loops.run import report_run
from treepref.loops.run import run as run_recipe
from treepref.loops.session import Session
from treepref.loops.summary import counted_events
from treepref.loops.unchecked import failure_counts, note_failure, take_back
from treepref.recipes.reading import load_recipe
from treepref.report.table import event_lines
from treepref.runs.stage import Stage, batch_policy, round_policy
from treepref.runs.store import Store
from treepref.tasks.own_checker import FAILED, IN_A_ROW, STOPPED_WORKING, Watch
from treepref.tasks.task import load_task
from treepref.tasks.trial import try_own_checker
from treepref.types import Problem, new_tree

RUN = Path("run")
SMALL = (
    "task.splits.train=8", "task.splits.eval=12", "search.simulations=4", "search.children=3", "eval.samples=2",
    "eval.samples_between=0", "eval.sbs=[]", "pairs.min_problems=1", "engine.threads=1", "task.check_seconds=5",
    "value.problems=0",
)  # fmt: skip
PROBLEMS = [Problem("a", "2 + 3 =", "5"), Problem("b", "1 + 1 =", "2")]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    progress.set_quiet(True)
    yield
    progress.set_quiet(False)


def write_checker(body: str, name: str = "mychecks") -> str:
    Path(f"{name}.py").write_text("def check(text, problem):\n" + textwrap.indent(textwrap.dedent(body), "    "))
    return f"task.checker={name}:check"


def run(*overrides: str) -> None:
    run_recipe(load_recipe("quickstart", [*SMALL, *overrides]), RUN)


def messages(stage: str) -> list[str]:
    with Store(RUN, read_only=True) as store:
        return [event.message for event in store.events() if event.stage == stage]


def tried(body: str, problems: list[Problem] = PROBLEMS, seconds: float = 5.0, kind: str = "jsonl") -> str | None:
    name = write_checker(body).partition("=")[2]
    task = load_task(TaskConfig(kind=kind, checker=name, check_seconds=seconds))
    with task.checker() as checker:
        return try_own_checker(task, checker, problems)


# --- before anything is spent


def test_a_checker_that_raises_stops_the_run_before_anything_is_spent() -> None:
    checker = write_checker("""
        def inner(found):
            return {"5": True}[found]
        return inner(text.upper() + "!")
    """)
    with pytest.raises(RecipeError) as stopped:
        run(checker)
    told = str(stopped.value)
    assert "task.checker mychecks:check fails on problem" in told and "Nothing more was spent" in told
    assert "Traceback (most recent call last)" in told and 'mychecks.py", line' in told and "in inner" in told
    assert "KeyError" in told and "worker.py" not in told and "functions.py" not in told, "the user's frames alone"
    with Store(RUN, read_only=True) as store:
        assert not store.costs() and not any(stage.status == "done" for stage in store.stages())


def test_a_checker_without_an_answer_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"problem a's own answer, given as '#### 5'(.|\n)*returned NoneType"):
        tried("text == problem.answer")
    with pytest.raises(RecipeError, match="the checking process died"):
        tried("import os\nos._exit(1)")
    with pytest.raises(RecipeError, match=r"took longer than 0\.5 s"):
        tried("while True: pass", seconds=0.5)
    assert tried("while problem.id == 'b': pass\nreturn True", seconds=0.5) is None, "one slow check is left to the run"


def test_a_checker_that_takes_no_own_answer_is_warned_of() -> None:
    warning = tried("return 'Final:' in text")
    assert warning is not None and "none of the 2 problems' own answers" in warning and "'#### 5'" in warning
    assert tried("return text == '#### 2'") is None, "one is enough: the others may be another form"


def test_own_answers_are_written_in_the_tasks_form() -> None:
    problem = Problem("p", "?", "7")
    for kind, line in (
        ("gsm8k", "#### 7"),
        ("math", r"\boxed{7}"),
        ("jsonl", "#### 7"),
        ("sciq", "The answer is (7)."),
    ):
        assert load_task(TaskConfig(kind=kind)).own_solution(problem) == line  # type: ignore[arg-type]
    assert load_task(TaskConfig(name="chain_sum")).own_solution(problem) == "7"
    written = Problem("p", "?", "7", "3 + 4 = 7\nSo it is 7.")
    assert load_task(TaskConfig(kind="jsonl")).own_solution(written).startswith("3 + 4 = 7\n")


# --- while it works


def test_the_watch_tells_a_broken_checker_from_one_that_fails_now_and_then() -> None:
    watch = Watch("m:f")
    for i in range(IN_A_ROW - 1):
        watch.note(f"p{i}", "no")
    with pytest.raises(CheckerError, match=r"5 of the 5 solutions(.|\n)*p0, p1, p2 and 2 more(.|\n)*\nno\nwhy"):
        watch.note("p9", "no\nwhy")
    now_and_then = Watch("m:f")
    for i in range(2000):
        now_and_then.note(str(i), "no" if i % 9 in (1, 2, 3) else None)
    late = Watch("m:f")
    for i in range(100):
        late.note(str(i), None)
    with pytest.raises(CheckerError, match=f"{STOPPED_WORKING} of the {100 + STOPPED_WORKING}"):
        for _ in range(100):
            late.note("p", "no")
    mostly = Watch("m:f")
    with pytest.raises(CheckerError, match=f"{FAILED} of the"):
        for i in range(100):
            mostly.note(str(i), None if i % 3 == 0 else "no")


@pytest.mark.parametrize(
    "body", ["while True: pass", "import os\nos._exit(1)", "return None", "raise ValueError(text)"]
)
def test_restarts_of_its_process_hide_no_checker_that_always_fails(body: str) -> None:
    name = write_checker(body).partition("=")[2]
    task = load_task(TaskConfig(kind="jsonl", checker=name, check_seconds=0.2))
    problems = [Problem(f"p{i}", "2 + 3 =", "5") for i in range(IN_A_ROW)]
    with task.checker() as checker:
        for _ in range(20):
            assert checker.check("the same", problems[0]).error, "one text that comes again and again counts once"
        with pytest.raises(CheckerError, match="5 solutions in a row"):
            for problem in problems:
                checker.check(f"text {problem.id}", problem)


def test_a_checker_that_breaks_later_stops_the_run_and_a_mended_one_goes_on_to_the_same_end() -> None:
    broken = write_checker("""
        import os
        if not os.path.exists("mended") and text.count("\\n"):
            raise LookupError("no table for " + problem.id)
        return text.rstrip().endswith("= " + problem.answer) or text == problem.answer
    """)
    with pytest.raises(CheckerError) as stopped:
        run(broken)
    told = str(stopped.value)
    assert "solutions it was asked about could not be checked" in told and "run the same command again" in told
    assert "Traceback" in told and "LookupError: no table for" in told and "on problem" in told
    with Store(RUN, read_only=True) as store:
        assert store.count_outcomes("round-0/eval/greedy") == 0, "nothing that could not be checked is kept as wrong"
        assert store.costs()["round-0/eval/greedy"].generated_tokens > 0, "what was paid is on record"
    assert messages("check") == []
    Path("mended").touch()
    run(broken)
    with Store(RUN, read_only=True) as store:
        mended = store.digest()
        assert not [event for event in store.events() if event.level == "error"]
    RUN.rename("first")
    run(broken)
    with Store(RUN, read_only=True) as store:
        assert store.digest() == mended, "as if it had never failed"


def test_a_checker_that_breaks_in_search_leaves_no_tree_with_its_failures() -> None:
    broken = write_checker("""
        import os
        if not os.path.exists("mended") and "\\n" in text and problem.id in open("train_ids").read().split():
            raise LookupError
        return text.rstrip().endswith("= " + problem.answer) or text == problem.answer
    """)
    Path("train_ids").touch()
    with Session(RUN, load_recipe("quickstart", [*SMALL, broken])) as session:
        Path("train_ids").write_text(" ".join(p.id for p in session.problems("train")))
    with pytest.raises(CheckerError, match="LookupError"):
        run(broken)
    with Store(RUN, read_only=True) as store:
        assert store.stage_done("round-0/eval") and store.count_trees("round-1/search") == 0
        assert store.meta("check_failures") == {}


def test_failures_are_listed_once_a_kind_with_their_count() -> None:
    with Store(RUN) as store:
        store.start_stage("round-0/eval/greedy")
        trace = "ValueError: bad '{}'\nTraceback\n  File \"m.py\", line 3, in check\n    int(text)\nValueError"
        for problem in ("p1", "p2", "p2"):
            note_failure(store, "round-0/eval/greedy", problem, trace.format(problem))
        note_failure(store, "round-0/eval/greedy", "p3", "the check took longer than 5 s")
        assert [e.message for e in store.events()] == [
            "problem p1: ValueError: bad 'p1'", "problem p3: the check took longer than 5 s",
        ]  # fmt: skip
        assert failure_counts(store) == {
            "problem p1: ValueError: bad 'p1'": (3, 2), "problem p3: the check took longer than 5 s": (1, 1),
        }  # fmt: skip
        lines = event_lines(counted_events(store))
    assert "       3 × check: problem p1: ValueError: bad 'p1' (and 1 more)" in lines
    assert "       1 × check: problem p3: the check took longer than 5 s" in lines


def test_only_unfinished_stages_are_taken_back() -> None:
    with Store(RUN) as store:
        row = {"problem_id": "p1", "correct": False, "answer": None}
        for stage in ("round-0/eval/greedy", "round-0/eval/samples"):
            store.start_stage(stage)
            note_failure(store, stage, "p1", "the check took longer than 5 s")
            store.put_outcomes(stage, [("p1", 0, row), ("p2", 0, row)])
            if stage.endswith("greedy"):
                store.finish_stage(stage)
        assert take_back(store, 0) == (1, 1)
        assert store.count_outcomes("round-0/eval/greedy") == 2 and store.count_outcomes("round-0/eval/samples") == 1
        assert json.loads(json.dumps(store.meta("check_failures")))["the check took longer than 5 s"]["stages"] == {
            "round-0/eval/greedy": {"p1": 1}
        }


def test_a_search_whose_trees_call_its_policy_otherwise_is_taken_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, every round's trees call the policy that grew them 0, whatever the engine calls it."""
    monkeypatch.setattr("treepref.tasks.own_checker.STOPPED_WORKING", 3)
    copy_model(Path("model"))
    checker = write_checker("""
        from pathlib import Path
        calls = Path("calls")
        if calls.exists():
            calls.write_text(calls.read_text() + "x")
            if not 1 < len(calls.read_text()) < 40:
                raise LookupError
        return text.rstrip().endswith(problem.answer)
    """)
    more = ["online.enabled=false", checker]
    assert run_command("mcts_dpo", *more, cwd=Path()).returncode == 0
    real = try_own_checker

    def tried_before_it_breaks(*arguments) -> str | None:
        warning = real(*arguments)
        Path("calls").touch()
        return warning

    with monkeypatch.context() as patch:
        patch.setattr("treepref.loops.answers.try_own_checker", tried_before_it_breaks)
        done = run_command("mcts_dpo", *more, "rounds=2", cwd=Path())
    assert done.returncode == 6 and "No solution that could not be checked was kept" in done.stderr, done
    with Store(RUN, read_only=True) as store:
        assert store.count_trees("round-2/search") > 0 and store.meta("check_failures") == {}
    Path("calls").unlink()
    assert run_command("mcts_dpo", *more, "rounds=2", cwd=Path()).returncode == 0
    with Store(RUN, read_only=True) as store:
        taken = store.digest("round-2/search")
        store.close()
    RUN.rename("first")
    for rounds in (1, 2):
        assert run_command("mcts_dpo", *more, f"rounds={rounds}", cwd=Path()).returncode == 0
    with Store(RUN, read_only=True) as store:
        assert store.digest("round-2/search") == taken, "as if it had never failed"


def test_what_cannot_be_taken_back_is_told() -> None:
    with Store(RUN) as store:
        store.start_stage("round-1/search")
        store.start_stage("round-1/train")
        for problem, policy in (("p1", round_policy(0)), ("p2", batch_policy(1, 1))):
            note_failure(store, "round-1/search", problem, "the check took longer than 5 s")
            store.finish_tree("round-1/search", new_tree(problem, problem, (1,), policy))
        assert take_back(store, batch_policy(1, 1)) == (1, 1)
        assert [row.key for row in store.tree_rows("round-1/search")] == ["p1"]
        assert failure_counts(store) == {"problem p1: the check took longer than 5 s": (1, 1)}


def test_a_failure_belongs_to_the_stage_that_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treepref.loops.answers.try_own_checker", lambda *_: None)  # as if it had broken later
    with Session(RUN, load_recipe("quickstart", [*SMALL, write_checker("return [][0]")])) as session:
        session.store.start_stage("round-1/search")
        session.store.start_stage("round-0/eval/greedy")  # begun later, and left undone by a limit
        session.serving.serve(round_policy(0))
        problem = next(session.problems("train"))
        judge = session.answers.judge(Stage(1, "search"), "train")
        assert judge(new_tree(problem.id, problem.id, (1,)), (5, 6)) == -1.0
        (kind,) = session.store.meta("check_failures").values()
        assert kind["stages"] == {"round-1/search": {problem.id: 1}}


def test_the_report_needs_no_checker() -> None:
    with pytest.raises(RecipeError):
        run(write_checker("raise KeyError(text)"))
    report_run(RUN)
