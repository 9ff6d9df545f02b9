"""Arithmetic as people write it: `$1,200 × 15%` to an exact value, and a value to the digits that a calculator shows.

What people may read in two ways has no value: `2x+10` (an equation's side, or 2 times +10) and `200-20%` (less 0.2, or
less a fifth of it).

Rewrites what expressions.py does not know (currency signs, thousands commas, percentages, `5.`, `x`) into what it does.
Never evaluates text as code, and knows no token and no model.
"""

from __future__ import annotations

import re
from fractions import Fraction

from treepref.arithmetic.expressions import ExpressionError, evaluate, parse_expression

MAX_DIGITS = 15
"""A result with more digits before the point is not shown."""

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>\d{1,3}(?:,\d{3})+(?:\.\d*)?(?![\d,]) | \d+\.?\d* | \.\d+)
      | (?P<percent>%)
      | (?P<currency>[$€£¥₹])
      | (?P<times>[xX](?![\s$€£¥₹]*[-+−–‐‑*]) | [✕✖*×·∙⋅](?!\*))
      | (?P<over>[/÷∕⁄](?!/))
      | (?P<minus>[-−–‐‑])
      | (?P<symbol>[+()])
    )\s*""",
    re.ASCII | re.VERBOSE,
)


def calculate(text: str) -> Fraction:
    """The exact value of an expression: + − × ÷, signs, parentheses, decimals, thousands commas, percentages.

    `20%` is 20/100, as GSM8K's annotations write it (`20*.01`); `%` stands behind a number or a closing parenthesis.
    Where it is added or subtracted, it must be from 1 or from another percentage (`1-20%`): there all readings agree.
    The letter x multiplies unless a sign follows. Currency signs say nothing. Raises ExpressionError: anything else, or
    a division by zero.
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
    unclear = False  # a percentage was just added to something: it must be a factor of what follows
    while start < len(text):
        found = _TOKEN.match(text, start)
        if found is None:
            raise ExpressionError(f"unexpected {text[start : start + 10]!r}")
        if unclear and found.lastgroup not in ("times", "over", "currency"):
            raise ExpressionError("a percentage added to a number: of 1, or of that number?")
        unclear = unclear and found.lastgroup == "currency"
        start, kind, written = found.end(), found.lastgroup, found.group().strip()
        before, operand = operand, -1
        match kind:
            case "number":
                operand = len(parts)
                parts.append(_number(written))
            case "percent":
                if before < 0:
                    raise ExpressionError("a % without a number")
                unclear = _is_added(parts, before)
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
    if unclear:
        raise ExpressionError("a percentage added to a number: of 1, or of that number?")
    return " ".join(parts)


def _is_added(parts: list[str], operand: int) -> bool:
    """Whether the operand from there on is added to or subtracted from anything but 1 or a percentage."""
    if operand < 2 or parts[operand - 1] not in ("+", "-"):
        return False
    left = parts[operand - 2]
    if left in ("+", "-", "*", "/", "("):  # the sign is the operand's own
        return False
    from_one = left == "1" and (operand == 2 or parts[operand - 3] == "(")
    return not from_one and parts[max(0, operand - 4) : operand - 1] != ["/", "100", ")"]


def _number(written: str) -> str:
    """Without commas, and with a point only between digits."""
    whole, _, decimals = written.replace(",", "").partition(".")
    return f"{whole or '0'}.{decimals}" if decimals else whole
