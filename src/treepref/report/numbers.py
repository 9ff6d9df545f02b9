"""How numbers are written for people: one place, so that the table, the page and the picture agree. No layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from treepref.runs.results import Entry, Interval, RoundResult

NONE = "–"
"""Stands for what does not exist."""

METHOD_NAMES = {
    "greedy": "Greedy",
    "sc": "Self-consistency",
    "bon": "Best-of-n by value",
    "wvote": "Value-weighted vote",
    "sbs": "Step beam search",
    "mcts": "MCTS",
}

METHOD_COLOURS = {
    "greedy": "#3b7ddd",
    "sc": "#8b93a1",
    "bon": "#d98a1f",
    "wvote": "#9b5de5",
    "sbs": "#12a37f",
    "mcts": "#d6457a",
}
"""Mid-tones that can be told apart on white and on near-black."""


def family(method: str) -> str:
    """`sbs` of `sbs(2,4)`, `sc` of `sc@8`."""
    return method.split("@")[0].split("(")[0]


def title(method: str) -> str:
    """`Step beam search (2,4)` of `sbs(2,4)`."""
    kind = family(method)
    return f"{METHOD_NAMES.get(kind, kind)} {method[len(kind) :]}".strip()


def signed(x: float | None, digits: int = 1) -> str:
    """With its sign, a true minus, and no sign for what rounds to zero."""
    if x is None:
        return NONE
    text = f"{abs(x):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if x > 0 else '−'}{text}"


def decimal(x: float | None, digits: int = 2) -> str:
    return NONE if x is None else f"{x:.{digits}f}".replace("-", "−")


def percent(x: float | None) -> str:
    """A share as percent with one decimal, without the sign."""
    return NONE if x is None else f"{100 * x:.1f}"


def percent_interval(interval: Sequence[float] | None) -> str:
    return NONE if interval is None else f"{percent(interval[0])}–{percent(interval[1])}"


READING_NOTE = (
    "strict: right for a reader that knows the task's own form alone; unread: share of finished solutions, in %, in "
    "which no answer was read; cut: share of all that did not come to their end."
)
"""Explains `reading_notes`."""


def strict_differs(entry: Entry) -> bool:
    """Whether the strict reader is known to find other answers right than the lenient one."""
    return entry.strict_accuracy is not None and abs(entry.strict_accuracy - entry.accuracy) > 1e-9


def reading_notes(entry: Entry) -> list[str]:
    """What belongs beneath an accuracy: the strict one where it differs, and the shares unread and cut above zero."""
    notes = [f"strict {percent(entry.strict_accuracy)}"] if strict_differs(entry) else []
    shares = (("unread", entry.unreadable), ("cut", entry.cut))
    return notes + [f"{name} {percent(share)}" for name, share in shares if share]


class Gap(Protocol):
    """A difference of shares with its interval."""

    @property
    def difference(self) -> float: ...

    @property
    def interval(self) -> Interval: ...


def points(gap: Gap | None) -> str:
    """A difference of shares in percentage points."""
    return NONE if gap is None else signed(100 * gap.difference)


def points_interval(interval: Interval | None) -> str:
    if interval is None:
        return NONE
    low, high = interval
    return f"[{signed(100 * low)}, {signed(100 * high)}]"


def is_clear(gap: Gap | None) -> bool:
    """The interval excludes zero."""
    return gap is not None and (gap.interval[0] > 0 or gap.interval[1] < 0)


def tone(gap: Gap | None) -> str:
    """`good` or `bad` where the interval excludes zero."""
    if gap is None or not is_clear(gap):
        return ""
    return "good" if gap.difference > 0 else "bad"


def count(x: float | None) -> str:
    """1234567 → 1.23 M; whole numbers below ten thousand as they are."""
    if x is None:
        return NONE
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(x) >= size:
            scaled = x / (1e3 if unit == "k" else size)
            return f"{scaled:.3g} {unit}" if scaled < 1000 else f"{scaled:.0f} {unit}"
    return f"{x:.0f}" if float(x).is_integer() or abs(x) >= 100 else f"{x:.1f}"


def flops(x: float | None) -> str:
    """3.1×10¹⁵."""
    if x is None:
        return NONE
    if x == 0:
        return "0"
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa}×10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def duration(seconds: float | None) -> str:
    """8 min 12 s."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def sbs_method(rounds: Sequence[RoundResult]) -> str:
    """The width of step beam search to show where there is room for one: (2,4), else the last one evaluated."""
    evaluated = [name for entry in rounds for name in entry.evaluated if family(name) == "sbs"]
    return "sbs(2,4)" if not evaluated or "sbs(2,4)" in evaluated else evaluated[-1]


def width_of(method: str) -> str:
    """`(2,4)` of `sbs(2,4)`."""
    return method.removeprefix("sbs")
