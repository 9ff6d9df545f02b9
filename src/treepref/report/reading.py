"""What was read of solutions, and why they are not right: counts, shares, and a few examples to look at.

Plain values in and out. Knows no store, no tree, no tokenizer and no task; docs/evaluation.md says what each number
means.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypedDict

from treepref.runs.results import Example, Outcome, Outcomes

EXAMPLES = 3
KEPT_CHARS = 600
"""Of an example's text in results.json and on the page."""
LINE_CHARS = 110
"""Of it in a line of a terminal."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A solution with what was read of it."""

    problem_id: str
    outcome: Outcome
    text: str | None
    """None where it was not kept."""
    read: str | None
    """The answer in canonical form; None where there is none that can be read."""
    gold: str
    """The problem's own answer."""

    def example(self) -> Example:
        """As it is kept and shown: long texts without their middle."""
        return Example(
            problem_id=self.problem_id,
            outcome=self.outcome,
            text=None if self.text is None else shortened(self.text, KEPT_CHARS),
            read=self.read if self.read is None else shortened(self.read, KEPT_CHARS),
            answer=shortened(self.gold, KEPT_CHARS),
        )


@dataclass(slots=True)
class Reading:
    """Solutions counted by what became of them. Start from `Reading.of`."""

    right: int = 0
    wrong: int = 0
    unreadable: int = 0
    cut: int = 0
    missed: list[Attempt] = field(default_factory=list)
    """Those that are not right, in the order in which they came."""

    @classmethod
    def of(cls, attempts: Iterable[Attempt]) -> Reading:
        found = cls()
        for attempt in attempts:
            setattr(found, attempt.outcome, getattr(found, attempt.outcome) + 1)
            if attempt.outcome != "right":
                found.missed.append(attempt)
        return found

    @property
    def total(self) -> int:
        return self.finished + self.cut

    @property
    def finished(self) -> int:
        return self.right + self.wrong + self.unreadable

    @property
    def mostly(self) -> Outcome | None:
        """What more than half of those that are not right are; None where nothing is."""
        missed = self.wrong + self.unreadable + self.cut
        kinds: tuple[tuple[Outcome, int], ...] = (
            ("unreadable", self.unreadable), ("cut", self.cut), ("wrong", self.wrong),
        )  # fmt: skip
        return next((kind for kind, count in kinds if 2 * count > missed), None)

    def examples(self) -> list[Attempt]:
        """Up to three that are not right, always the same: unreadable ones first, then wrong ones, then cut ones (cut
        ones first where they are the most), by problem, as many problems as there are."""
        order = {"unreadable": 0, "wrong": 1, "cut": -1 if self.mostly == "cut" else 2}
        ranked = sorted(self.missed, key=lambda attempt: (order[attempt.outcome], attempt.problem_id))
        first: dict[tuple[str, str], Attempt] = {}
        for attempt in ranked:
            first.setdefault((attempt.outcome, attempt.problem_id), attempt)
        chosen = list(first.values())
        again = [attempt for attempt in ranked if attempt not in chosen]
        return sorted([*chosen, *again][:EXAMPLES], key=lambda attempt: order[attempt.outcome])

    def outcomes(self) -> Outcomes:
        return Outcomes(**self.facts())

    def facts(self) -> OutcomeFacts:
        """Counts, shares and examples; a share of nothing is None."""
        return {
            "right": self.right,
            "wrong": self.wrong,
            "unreadable": self.unreadable,
            "cut": self.cut,
            "unreadable_share": self.unreadable / self.finished if self.finished else None,
            "cut_share": self.cut / self.total if self.total else None,
            "examples": [attempt.example() for attempt in self.examples()],
        }


class OutcomeFacts(TypedDict):
    """The fields of `Outcomes`."""

    right: int
    wrong: int
    unreadable: int
    cut: int
    unreadable_share: float | None
    cut_share: float | None
    examples: list[Example]


def shortened(text: str, limit: int) -> str:
    """The text, with what is too much of it left out in the middle: how a solution ends says what was read."""
    if len(text) <= limit:
        return text
    head, tail = limit // 3, limit - limit // 3
    return f"{text[:head]} … ({len(text) - head - tail:,} characters) … {text[-tail:]}"


def summary_line(found: Outcomes) -> str:
    """What became of solutions, in a sentence without its end."""
    line = f"{found.right:,} of {found.total:,} solutions are right"
    if found.unreadable:
        line += f"; no answer can be read in {found.unreadable:,} of the {found.finished:,} that finished"
        line += f" ({100 * found.unreadable / found.finished:.1f} %)"
    elif found.finished:
        line += f"; all {found.finished:,} that finished have an answer that can be read"
    if found.cut:
        line += f"; {found.cut:,} were cut at a length limit"
    return line


def example_line(example: Example, chars: int = LINE_CHARS) -> str:
    """It as one line of a terminal, without control characters: models write what they like."""
    text = "text not kept" if example.text is None else repr(shortened(example.text, chars))
    read = f", read as {shortened(example.read, 40)!r}" if example.read is not None else ""
    gold = repr(shortened(example.answer, 40))
    return f"{example.outcome}, problem {example.problem_id}: {text}{read} (right answer: {gold})"
