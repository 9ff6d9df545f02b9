"""Progress of a stage on the terminal: a live bar, or a plain line now and then where the output is a file or a pipe.

Knows counts and clocks. Knows nothing of what is counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_SECONDS = 10.0
"""Least time between two plain lines."""
LOG_SECONDS = 60.0
"""The same for the log, which gets lines whatever the terminal shows."""

_quiet = False
_log: Callable[[str], None] | None = None


def set_quiet(quiet: bool) -> None:
    """Silence every stage's progress from here on (the command line's `--quiet`)."""
    global _quiet
    _quiet = quiet


def set_log(log: Callable[[str], None] | None) -> None:
    """Where every stage's state is written as plain lines from here on, beside the terminal."""
    global _log
    _log = log


@dataclass(slots=True)
class Status:
    """Where a stage stands. `first_done` was there before this life began, so it counts in no rate."""

    name: str
    unit: str
    total: int | None
    done: int = 0
    first_done: int = 0
    tokens: int = 0
    note: str = ""
    elapsed: float = 0.0
    """Seconds."""

    @property
    def rate(self) -> float:
        """Units a second in this life."""
        return (self.done - self.first_done) / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def token_rate(self) -> float:
        return self.tokens / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def remaining(self) -> float | None:
        """Estimated seconds to the end; None where unknown."""
        if self.total is None or (self.rate <= 0 and self.done < self.total):
            return None
        return max(0, self.total - self.done) / self.rate if self.done < self.total else 0.0

    def counts(self) -> str:
        """`1,200/3,000 trees · 12.3 trees/s · 48.1k tokens · 5.2k tokens/s · note`"""
        of = "" if self.total is None else f"/{self.total:,}"
        parts = [f"{self.done:,}{of} {self.unit}"]
        if self.rate > 0:
            parts.append(f"{_count(self.rate)} {self.unit}/s")
        if self.tokens:
            parts += [
                f"{_count(self.tokens) if self.tokens >= 1000 else self.tokens} tokens",
                f"{_count(self.token_rate)} tokens/s",
            ]
        return " · ".join([*parts, self.note] if self.note else parts)

    def line(self) -> str:
        """The whole state as one plain line."""
        parts = [self.counts(), f"{clock_time(self.elapsed)} elapsed"]
        if self.total is not None and self.done < self.total:
            parts.append(f"{clock_time(self.remaining)} left")
        return f"{self.name}: {' · '.join(parts)}"


class Progress:
    """Context manager that shows one stage: `update` as often as you like.

    A terminal gets a bar that is drawn a few times a second; anything else a line about every ten seconds and one at
    the end. An exception leaves the last state on the screen and passes on.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        *,
        unit: str = "items",
        done: int = 0,
        quiet: bool | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`done`: what an earlier life had finished already. `quiet=None` follows `set_quiet`."""
        self.status = Status(name, unit, total, done=done, first_done=done)
        self._quiet = _quiet if quiet is None else quiet
        self._stream = stream or sys.stdout
        self._clock = clock
        self._start = self._last_line = self._last_logged = clock()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        self._start = self._last_line = self._last_logged = self._clock()
        self._write_log(" · begun")
        if not self._quiet and self._stream.isatty():
            self._bar = _bar(self._stream)
            status = self.status
            self._task = self._bar.add_task(
                status.name, total=status.total, completed=status.done, counts=status.counts(), left=""
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._look()
        self._write_log("" if kind is None else " (stopped)")
        if self._bar is not None:
            self._draw()
            self._bar.stop()
        elif not self._quiet:
            self._print("" if kind is None else " (stopped)")

    def update(self, done: int | None = None, tokens: int | None = None, note: str | None = None) -> None:
        """Set what has been reached: units done and tokens so far (totals, not increments), and a short remark."""
        if done is not None:
            self.status.done = done
        if tokens is not None:
            self.status.tokens = tokens
        if note is not None:
            self.status.note = note
        self._look()
        if self._clock() - self._last_logged >= LOG_SECONDS:
            self._write_log()
        if self._bar is not None:
            self._draw()
        elif not self._quiet and self._clock() - self._last_line >= PLAIN_SECONDS:
            self._print()

    def advance(self, done: int = 1, tokens: int = 0, note: str | None = None) -> None:
        """Add to what has been reached."""
        self.update(self.status.done + done, self.status.tokens + tokens, note)

    def _look(self) -> None:
        self.status.elapsed = self._clock() - self._start

    def _draw(self) -> None:
        assert self._bar is not None and self._task is not None
        status = self.status
        left = "" if status.total is None or status.done >= status.total else f"{clock_time(status.remaining)} left"
        self._bar.update(self._task, completed=status.done, counts=status.counts(), left=left)

    def _write_log(self, end: str = "") -> None:
        self._last_logged = self._clock()
        if _log is not None:
            _log(self.status.line() + end)

    def _print(self, end: str = "") -> None:
        self._last_line = self._clock()
        print(self.status.line() + end, file=self._stream, flush=True)


@contextmanager
def stage_progress(
    name: str, total: int | None, unit: str = "items", *, done: int = 0, quiet: bool | None = None
) -> Iterator[Progress]:
    """`with stage_progress("search", 1500, unit="trees") as p: p.update(done=…, tokens=…, note="…")`."""
    with Progress(name, total, unit=unit, done=done, quiet=quiet) as progress:
        yield progress


def clock_time(seconds: float | None) -> str:
    """`1:02:03`, `4:05`; `?` where unknown."""
    if seconds is None:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _count(number: float) -> str:
    """Three digits that mean something: `0.52`, `12.3`, `48.1k`, `1.20M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")):
        if number >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{letter}"
    return f"{number:.2g}"


def _bar(stream: TextIO) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[counts]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(file=stream),
        refresh_per_second=4,
    )
