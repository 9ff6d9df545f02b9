"""Arithmetic as people write it: `$1,200 × 15%` to an exact value, and a value to the digits that a calculator shows.

Rewrites what tasks/expressions.py does not know (currency signs, thousands commas, percentages, `5.`, `x`) into what
it does. Never evaluates text as code, and knows no token and no model.
"""

from __future__ import annotations

import re
from fractions import Fraction

from treepref.tasks.expressions import ExpressionError, evaluate, parse_expression

MAX_DIGITS = 15
"""A result with more digits before the point is not shown."""

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>\d{1,3}(?:,\d{3})+(?:\.\d*)?(?![\d,]) | \d+\.?\d* | \.\d+)
      | (?P<percent>%)
      | (?P<currency>[$€£¥₹])
      | (?P<times>[xX✕✖*×·∙⋅](?!\*))
      | (?P<over>[/÷∕⁄](?!/))
      | (?P<minus>[-−–‐‑])
      | (?P<symbol>[+()])
    )\s*""",
    re.ASCII | re.VERBOSE,
)


def calculate(text: str) -> Fraction:
    """The exact value of an expression: + − × ÷, signs, parentheses, decimals, thousands commas, percentages.

    `20%` is 20/100, as GSM8K's annotations write it (`20*.01`); `%` stands behind a number or a closing parenthesis.
    Currency signs say nothing. Raises ExpressionError: anything else, or a division by zero.
    """
    return evaluate(parse_expression(_plain(text)))


def show(value: Fraction) -> str | None:
    """Digits as the calculator writes them: an integer as such, else two decimals, half away from zero.

    None where that would say something else: more than MAX_DIGITS digits, or a value that would show as 0.00.
    """
    over, under = abs(value.numerator), value.denominator
    if over >= under * 10**MAX_DIGITS:
        return None
    if under == 1:
        return str(value.numerator)
    cents = (200 * over + under) // (2 * under)
    return f"{'-' if value < 0 else ''}{cents // 100}.{cents % 100:02d}" if cents else None


def _plain(text: str) -> str:
    """The same expression in numbers, + - * / and parentheses, with spaces between them."""
    parts: list[str] = []
    opened: list[int] = []
    operand = -1  # where the operand that ends here begins; -1: none ends here
    start = 0
    while start < len(text):
        found = _TOKEN.match(text, start)
        if found is None:
            raise ExpressionError(f"unexpected {text[start : start + 10]!r}")
        start, kind, written = found.end(), found.lastgroup, found.group().strip()
        before, operand = operand, -1
        match kind:
            case "number":
                operand = len(parts)
                parts.append(_number(written))
            case "percent":
                if before < 0:
                    raise ExpressionError("a % without a number")
                parts[before:] = ["(", *parts[before:], "/", "100", ")"]
            case "currency":
                operand = before
            case "times" | "over" | "minus":
                parts.append({"times": "*", "over": "/", "minus": "-"}[kind])
            case _:
                if written == "(":
                    opened.append(len(parts))
                elif written == ")" and opened:
                    operand = opened.pop()
                parts.append(written)
    return " ".join(parts)


def _number(written: str) -> str:
    """Without commas, and with a point only between digits."""
    whole, _, decimals = written.replace(",", "").partition(".")
    return f"{whole or '0'}.{decimals}" if decimals else whole
