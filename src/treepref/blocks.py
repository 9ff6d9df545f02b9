r"""Blocks in a text that no step ends inside: fenced code, LaTeX environments, Asymptote drawings.

A fence is a whole line of three or more backticks or tildes; it is closed by a line of as many (CommonMark 0.31,
section 4.5). `\begin{align*}` is closed by its own `\end{align*}`, and `[asy]` by `[/asy]`. Knows nothing but text.
"""

from __future__ import annotations

import re

_OPENING = re.compile(
    r"^[ \t]*(?P<fence>`{3,}(?=[^`\n]*\n)|~{3,}(?=[^\n]*\n))[^\n]*"
    r"|\\begin\{(?P<environment>[A-Za-z]+\*?)\}|(?P<drawing>\[asy\])",
    re.MULTILINE,
)
_SIGNS = ("```", "~~~", "\\begin{", "[asy]")
"""A text without one of these has no block."""


def step_end(text: str, delimiter: str) -> int | None:
    """Where a step that begins with the text ends: behind the first delimiter that is in no block; None: nowhere yet.

    In a block that is never closed no step ends.
    """
    place, plain = 0, _is_plain(text)
    while (found := text.find(delimiter, place)) >= 0:
        opening = None if plain else _opening(text, place)
        if opening is None or found <= opening.start():
            return found + len(delimiter)
        closed = _closed(text, opening)
        if closed is None:
            return None
        place = closed
    return None


def steps_of(text: str, delimiter: str) -> list[str]:
    """A whole solution cut into its steps, each with the delimiter that ends it."""
    found = []
    while text:
        end = step_end(text, delimiter) or len(text)
        found.append(text[:end])
        text = text[end:]
    return found


def lines_and_blocks(text: str) -> list[str]:
    """The lines of a text without blanks around them and without empty ones; a block is one of them, as it is written.

    A block begins with the line that opens it and ends with the line that closes it.
    """
    found: list[str] = []
    rest = "\n".join(text.splitlines())
    if _is_plain(rest):
        return _lines(rest)
    while (block := _first_block(rest)) is not None:
        opening, end = block
        while (more := _opening(rest, end)) is not None and "\n" not in rest[end : more.start()]:
            closed = _closed(rest, more)  # of another that opens on the line where the one before is closed
            if closed is None:
                break
            end = closed
        begin = rest.rfind("\n", 0, opening) + 1
        tail, _, after = rest[end:].partition("\n")
        written = rest[begin:end] + tail.rstrip()
        found += [*_lines(rest[:begin]), written if "\n" in written else written.strip()]
        rest = after
    return [*found, *_lines(rest)]


def _first_block(text: str) -> tuple[int, int] | None:
    """Where the first block begins and ends; an opening that is never closed is a line like others."""
    place, open_for_ever = 0, set[str]()
    while (opening := _opening(text, place)) is not None:
        kind = opening["fence"] or opening.group()
        closed = None if kind in open_for_ever else _closed(text, opening)
        if closed is not None:
            return opening.start(), closed
        open_for_ever.add(kind)  # what is not closed from here on is not closed later either
        place = opening.end()
    return None


def _is_plain(text: str) -> bool:
    """Without any sign of a block: told at once, for most steps are."""
    return not any(sign in text for sign in _SIGNS)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _opening(text: str, start: int) -> re.Match[str] | None:
    return _OPENING.search(text, start)


def _closed(text: str, opening: re.Match[str]) -> int | None:
    """Where the block ends that `opening` opens; None where it stays open."""
    if fence := opening["fence"]:
        closing = re.compile(rf"^[ \t]*{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$", re.MULTILINE)
        found = closing.search(text, opening.end())
        return found.end() if found else None
    end = "[/asy]" if opening["drawing"] else f"\\end{{{opening['environment']}}}"
    place = text.find(end, opening.end())
    return None if place < 0 else place + len(end)
