"""A table before it is drawn anywhere, and its forms for a terminal and for markdown; `grid.html` has that of a page.

Knows nothing of what its cells say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
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


@dataclass(frozen=True, slots=True)
class TerminalTable:
    """A grid for a rich console: numbers are never cut.

    Where it is too wide, an interval takes two lines; and where that is not enough, the table comes in several parts,
    each with the first column.
    """

    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def fits(table: Table) -> bool:
            return console.measure(table, options=options.update(max_width=10_000)).minimum <= options.max_width

        for narrow in (False, True):
            if fits(table := _table(self.grid, narrow)):
                yield table
                return
        columns = list(range(1, len(self.grid.heads)))
        while columns:
            count = next((n for n in range(len(columns), 1, -1) if fits(_table(self._part(columns[:n]), True))), 1)
            yield _table(self._part(columns[:count]), True)
            columns = columns[count:]

    def _part(self, columns: Sequence[int]) -> Grid:
        """The grid with its first column and some others."""
        kept, grid = [0, *columns], self.grid
        words = {place for place, column in enumerate(kept) if column in grid.words}
        rows = [[row[column] for column in kept] for row in grid.rows]
        return Grid([grid.heads[column] for column in kept], rows, grid.title, words=words)


def for_terminal(grid: Grid) -> TerminalTable:
    """The table for a rich console; numbers are never cut."""
    return TerminalTable(grid)


def _table(grid: Grid, narrow: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_justify="left", title_style="bold")
    table.title = Text(grid.title) if grid.title else None  # a run's name is no markup
    for position, head in enumerate(grid.heads):
        words = position in grid.words
        cells = [row[position] for row in grid.rows]
        longest = max((len(line) for cell in cells for line in (cell.text, *_below(cell, narrow))), default=0)
        table.add_column(
            Text(head if words else _broken(head, longest)),
            justify="left" if words else "right",
            no_wrap=not words,
            overflow="fold",
            min_width=min(longest, _WIDEST) if words else max(longest, *map(len, head.split() or [""])),
        )
    for row in grid.rows:
        table.add_row(*(_text(cell, narrow) for cell in row))
    return table


def _broken(head: str, width: int) -> str:
    """A head of numbers no wider than they are, where its words allow."""
    return "\n".join(wrap(head, max(width, *map(len, head.split())), break_long_words=False)) if head else head


def _below(cell: Cell, narrow: bool) -> list[str]:
    lines = (line.replace(", ", ",\n", 1) if narrow else line for line in cell.below)
    return [part for line in lines for part in line.split("\n")]


def _text(cell: Cell, narrow: bool) -> Text:
    text = Text(cell.text, style="dim" if cell.text == NONE and not cell.below else _STYLES.get(cell.tone, ""))
    for line in _below(cell, narrow):
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
