"""A table before it is drawn anywhere, and its forms for a terminal and for markdown; `grid.html` has that of a page.

Knows nothing of what its cells say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from treepref.report.numbers import NONE


@dataclass(frozen=True, slots=True)
class Cell:
    """A number or a word, and beneath it what belongs to it."""

    text: str = NONE
    below: Sequence[str] = ()
    tone: str = ""
    """`good` or `bad` where an interval excludes zero, `strong`, `soft`; or a class of the page's own."""
    colour: str = ""
    """Of a dot before it on a page."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows of cells beneath their heads."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""
    words: Collection[int] = (0,)
    """Numbers of the columns that hold words; the others hold numbers."""

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.rows)


_STYLES = {"good": "green", "bad": "red", "strong": "bold", "soft": "dim"}
_WIDEST = 20
"""Columns of a terminal that a word is given whole before it is broken."""


def for_terminal(grid: Grid) -> Table:
    """The table for a rich console; numbers are never cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_justify="left", title_style="bold")
    table.title = Text(grid.title) if grid.title else None  # a run's name is no markup
    for position, head in enumerate(grid.heads):
        words = position in grid.words
        longest = max((len(row[position].text) for row in grid.rows), default=0)
        table.add_column(
            Text(head),
            justify="left" if words else "right",
            no_wrap=not words,
            overflow="fold",
            min_width=min(longest, _WIDEST) if words else None,
        )
    for row in grid.rows:
        table.add_row(*map(_text, row))
    return table


def _text(cell: Cell) -> Text:
    text = Text(cell.text, style="dim" if cell.text == NONE and not cell.below else _STYLES.get(cell.tone, ""))
    for line in cell.below:
        text.append(f"\n{line}", style="not bold dim")
    return text


def for_markdown(grid: Grid) -> list[str]:
    """The table's lines, without title and note."""
    rule = ["---" if i in grid.words else "---:" for i in range(len(grid.heads))]
    rows = [["<br>".join(map(escaped, (cell.text, *cell.below))) for cell in row] for row in grid.rows]
    return ["| " + " | ".join(row) + " |" for row in ([escaped(head) for head in grid.heads], rule, *rows)]


def escaped(text: str) -> str:
    """Names of folders may hold what markdown reads as its own."""
    for mark in "\\|*_<`":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
