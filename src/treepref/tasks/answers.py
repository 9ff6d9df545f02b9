"""Finding the final answer in a solution's text, and writing it in one canonical form.

Pure text: knows no problem and no gold answer. What is found here is what votes count and what checks compare.
"""

from __future__ import annotations

import re
from fractions import Fraction

from treepref.tasks.expressions import ExpressionError, evaluate, format_fraction, numbers_in, parse_expression

MARK = "####"
"""Stands before the final answer in GSM8K's solutions."""

ANSWER_PHRASES = ("the final answer is", "the answer is", "final answer:", "answer:")
"""Where '#### N' is missing, the answer is what follows the last of these, up to the end of its line."""

_MAX_DIGITS = 400
_MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-", "‐": "-", "‑": "-", "–": "-", "\u00a0": " ", "\u202f": " "})
_CURRENCY = "$£€¥"
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*[{_CURRENCY}]?\s*(?P<sign2>[-+]?)(?P<top>{_PLAIN})(?:\s*/\s*(?P<bottom>{_PLAIN}))?\s*%?",
    re.ASCII,
)
_UNITS = re.compile(r"(?:\s*[A-Za-z°][A-Za-z°²³./ ]*)?\s*\.?")
_PHRASE = re.compile("|".join(re.escape(phrase) for phrase in ANSWER_PHRASES), re.IGNORECASE)
_CALCULATION = re.compile(r"<<[^<>=]*=[^<>]*>>")
_LATEX_FRACTION = re.compile(r"(?P<sign>-?)\\[dtc]?frac(?:\{(-?\d+)\}\{(-?\d+)\}|(\d)(\d))")


# --- numbers


def parse_number(text: str) -> Fraction | None:
    """The number that `text` is, the whole of it; None for anything else.

    Understood: thousands commas, one currency sign, %, decimals, fractions 'a/b', unicode minus. The sign counts.
    A % is dropped, not divided by 100: problems that ask for a percentage have plain numbers as answers.
    """
    text = text.translate(_MINUS).strip().replace("\\$", "$").replace("\\%", "%")
    if len(text) > 1 and text.startswith("$") and text.endswith("$"):  # inline LaTeX
        text = text[1:-1].strip()
    found = _NUMBER.fullmatch(text.removesuffix(".") or " ")
    return _value(found) if found else None


def _value(found: re.Match[str]) -> Fraction | None:
    if len(found.group()) > _MAX_DIGITS or (found["sign"] and found["sign2"]):
        return None
    top = Fraction(found["top"].replace(",", "").removesuffix("."))
    bottom = Fraction((found["bottom"] or "1").replace(",", "").removesuffix("."))
    if bottom == 0:
        return None
    return -top / bottom if "-" in (found["sign"], found["sign2"]) else top / bottom


def leading_number(text: str) -> Fraction | None:
    """The number that `text` starts with, where nothing but words (units) follows: '72 clips', '-$5.'."""
    text = text.translate(_MINUS).strip().replace("\\$", "$").replace("\\%", "%")
    found = _NUMBER.match(text)
    if not found or not _UNITS.fullmatch(text[found.end() :]):
        return None
    return _value(found)


def canonical_number(value: Fraction) -> str:
    """'72', '-0.5', '1/3': an integer, a decimal that ends, or a fraction in lowest terms."""
    twos = fives = 0
    rest = value.denominator
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest > 1 or value.denominator == 1:
        return format_fraction(value)
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


# --- extraction: text of a solution → the answer as written, or None


def last_line(text: str, delimiter: str = "\n") -> str | None:
    """The last line that is not blank; `delimiter` ends a line too."""
    lines = [line.strip() for part in text.split(delimiter) for line in part.splitlines()]
    return next((line for line in reversed(lines) if line), None)


def after_mark(text: str, *, whole: bool = False) -> str | None:
    """What follows the last '####' on its line (`whole`: up to the end of the text)."""
    _, mark, tail = text.rpartition(MARK)
    tail = tail.strip() if whole else tail.strip(" \t").partition("\n")[0].strip()
    return tail if mark and tail else None


def after_phrase(text: str) -> str | None:
    """What follows the last of ANSWER_PHRASES on its line."""
    found = list(_PHRASE.finditer(text))
    tail = text[found[-1].end() :].strip(" \t:").partition("\n")[0].strip() if found else ""
    return tail or None


def last_boxed(text: str) -> str | None:
    r"""Content of the last '\boxed{…}' with balanced braces; '\boxed 9' gives '9'. None where there is none."""
    start = text.rfind(r"\boxed")
    if start < 0:
        return None
    tail = text[start + len(r"\boxed") :].lstrip()
    if not tail.startswith("{"):
        return tail[0] if tail and tail[0].isalnum() else None
    depth = 0
    for place, sign in enumerate(tail):
        if sign in "{}" and (place == 0 or tail[place - 1] != "\\"):
            depth += 1 if sign == "{" else -1
            if depth == 0:
                return tail[1:place].strip() or None
    return None


def without_calculations(text: str) -> str:
    """GSM8K's calculator annotations taken out: 'it is <<48/2=24>>24' → 'it is 24'."""
    return _CALCULATION.sub("", text)


# --- canonical forms, as votes count them


def number_or_none(text: str | None) -> str | None:
    value = parse_number(text) if text is not None else None
    return None if value is None else canonical_number(value)


def bare_number(text: str) -> str | None:
    """Like `number_or_none`, but no fraction: '6/2' is a step still to be done."""
    return None if "/" in text else number_or_none(text)


def marked_number(text: str) -> str | None:
    """GSM8K style: the number after the last '####', else after the last answer phrase, units allowed behind it."""
    text = without_calculations(text)
    tail = after_mark(text) if MARK in text else after_phrase(text)
    value = leading_number(tail.rstrip(".")) if tail else None
    return None if value is None else canonical_number(value)


def plain_text(text: str) -> str:
    """A number in canonical form, other text with single blanks and in lower case."""
    return number_or_none(text) or " ".join(text.split()).casefold()


def canonical_latex(text: str) -> str:
    r"""LaTeX without what changes no meaning: blanks, sizes, '\left', units in '\text', style of fractions.

    Numbers and fractions of integers come out as canonical numbers. Two texts with one canonical form are equal;
    two forms may still mean the same ('x+1', '1+x'): a vote counts those apart.
    """
    text = text.translate(_MINUS).strip().strip("$").strip()
    text = re.sub(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])|\\[!,;: ]|\\q?quad(?![A-Za-z])|~", "", text)
    text = re.sub(r"\^\{?\\circ\}?|\\degree(?![A-Za-z])", "", text)
    text = re.sub(r"(?<=[\d}])\s*\\(?:text|mbox|mathrm)\s*\{[^{}]*\}\s*$", "", text)
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(\\[A-Za-z]+)\s+(?=[A-Za-z])", "\\1\0", text)  # this blank ends a command's name
    text = "".join(text.split()).rstrip(".").replace("\0", " ")
    found = _LATEX_FRACTION.fullmatch(text)
    if found:
        top, bottom = (int(part) for part in found.groups()[1:] if part)
        if bottom:
            return canonical_number(Fraction(-top if found["sign"] else top, bottom))
    return number_or_none(text) or text


def canonical_expression(text: str) -> str | None:
    """'164 from 6 34 54 66 98': value and numbers used, so that all solutions of a countdown are one answer."""
    try:
        expression = parse_expression(text)
        value, numbers = evaluate(expression), sorted(map(abs, numbers_in(expression)))
    except ExpressionError:
        return None
    return f"{format_fraction(value)} from {' '.join(map(format_fraction, numbers))}"
