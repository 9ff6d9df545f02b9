"""How numbers are written for people: one place, so that the table, the page and the picture agree. No layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
_SHARES = (("unread", "unreadable"), ("cut", "cut"))


def strict_differs(entry: Mapping[str, Any]) -> bool:
    """Whether the strict reader is known to find other answers right than the lenient one."""
    strict = entry.get("strict_accuracy")
    return strict is not None and abs(strict - entry["accuracy"]) > 1e-9


def reading_notes(entry: Mapping[str, Any]) -> list[str]:
    """What belongs beneath an accuracy: the strict one where it differs, and the shares unread and cut above zero."""
    notes = [f"strict {percent(entry['strict_accuracy'])}"] if strict_differs(entry) else []
    return notes + [f"{name} {percent(entry[key])}" for name, key in _SHARES if entry.get(key)]


def points(difference: Mapping[str, Any] | None) -> str:
    """A difference of shares in percentage points."""
    return NONE if difference is None else signed(100 * difference["difference"])


def points_interval(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return NONE
    low, high = difference["interval"]
    return f"[{signed(100 * low)}, {signed(100 * high)}]"


def is_clear(difference: Mapping[str, Any] | None) -> bool:
    """The interval excludes zero."""
    return difference is not None and (difference["interval"][0] > 0 or difference["interval"][1] < 0)


def count(x: float | None) -> str:
    """1234567 → 1.23 M; whole numbers below ten thousand as they are."""
    if x is None:
        return NONE
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
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


def sbs_method(rounds: Sequence[Mapping[str, Any]]) -> str:
    """The width of step beam search to show where there is room for one: (2,4), else the last one evaluated."""
    evaluated = [name for entry in rounds for name, found in entry["eval"].items() if found and family(name) == "sbs"]
    return "sbs(2,4)" if not evaluated or "sbs(2,4)" in evaluated else evaluated[-1]


def width_of(method: str) -> str:
    """`(2,4)` of `sbs(2,4)`."""
    return method.removeprefix("sbs")
