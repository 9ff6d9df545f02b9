"""What a stage shows while it runs, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest

from treepref import progress as module
from treepref.progress import PLAIN_SECONDS, Progress, Status, clock_time, set_quiet, stage_progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_one_line_every_ten_seconds_and_one_at_the_end() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress("round 1: search", 100, unit="trees", stream=out, clock=clock, quiet=False) as progress:
        for second in range(1, 26):
            clock.now = 100.0 + second
            progress.update(done=2 * second, tokens=1000 * second)
    assert PLAIN_SECONDS == 10
    assert out.getvalue().splitlines() == [
        "round 1: search: 20/100 trees · 2.00 trees/s · 10.0k tokens · 1.00k tokens/s · 0:10 elapsed · 0:40 left",
        "round 1: search: 40/100 trees · 2.00 trees/s · 20.0k tokens · 1.00k tokens/s · 0:20 elapsed · 0:30 left",
        "round 1: search: 50/100 trees · 2.00 trees/s · 25.0k tokens · 1.00k tokens/s · 0:25 elapsed · 0:25 left",
    ]


def test_work_of_an_earlier_life_counts_in_the_bar_but_not_in_the_rate() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress("s", 100, done=80, stream=out, clock=clock, quiet=False) as progress:
        clock.now += 10
        progress.advance(5, tokens=30, note="two skipped")
    assert out.getvalue().splitlines()[0] == (
        "s: 85/100 items · 0.5 items/s · 30 tokens · 3.00 tokens/s · two skipped · 0:10 elapsed · 0:30 left"
    )


def test_an_unknown_total_and_an_unknown_rate() -> None:
    assert Status("s", "rows", None, done=7, elapsed=2.0).line() == "s: 7 rows · 3.50 rows/s · 0:02 elapsed"
    assert Status("s", "rows", 10, elapsed=2.0).line() == "s: 0/10 rows · 0:02 elapsed · ? left"
    assert Status("s", "rows", 10, done=10, first_done=10).remaining == 0


def test_an_error_passes_on_and_leaves_the_last_state() -> None:
    out = io.StringIO()
    with pytest.raises(ZeroDivisionError), Progress("s", 3, stream=out, clock=Clock(), quiet=False) as progress:
        progress.update(done=2)
        raise ZeroDivisionError
    assert out.getvalue() == "s: 2/3 items · 0:00 elapsed · ? left (stopped)\n"


def test_a_terminal_gets_a_bar() -> None:
    clock, out = Clock(), Terminal()
    with Progress("search [x]", 4, unit="trees", stream=out, clock=clock, quiet=False) as progress:
        clock.now += 2
        progress.update(done=4, tokens=80, note="[red]")
    shown = out.getvalue()
    assert "4/4 trees · 2.00 trees/s · 80 tokens · 40.0 tokens/s · [red]" in shown
    assert "search [x]" in shown
    assert "━" in shown


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    set_quiet(True)
    try:
        with stage_progress("s", 2, unit="trees") as progress:
            progress.update(done=2)
    finally:
        set_quiet(False)
    assert capsys.readouterr().out == ""
    with stage_progress("s", 2, unit="trees", done=1) as progress:
        progress.update(done=2)
    assert capsys.readouterr().out.startswith("s: 2/2 trees")
    assert module._quiet is False


def test_clock_times() -> None:
    assert [clock_time(x) for x in (None, 0, 59.6, 3599, 3723)] == ["?", "0:00", "1:00", "59:59", "1:02:03"]
