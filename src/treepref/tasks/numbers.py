"""Numbers as people and models write them, in exact fractions: signs, currencies, groups of digits, exponents, LaTeX.

Pure text. Knows no problem, no solution and no unit. Whatever is longer than MAX_DIGITS is no number: text that a model
wrote must cost no more than a moment.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from treepref.arithmetic.expressions import format_fraction

MAX_DIGITS = 400
"""Most digits of a number, of its numerator and of its denominator."""
_MAX_CHARS = 600

_MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-", "‐": "-", "‑": "-", "–": "-", "⁄": "/"})
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_VULGAR = re.compile("([¼-¾⅐-⅞])")
_CURRENCY = "$£€¥₹"
_GROUPED = r"\d{1,3}(?:,\d{3})+(?!\d)|[1-9]\d{0,2}(?:[ ]\d{3})+(?![\d/]|\.\d{0,2}/)"
_PLAIN = rf"(?:{_GROUPED}|\d+)(?:\.\d*)?|\.\d+"
_FRACTION = r"\\frac\s?(?:\{\s?-?\d+(?:\.\d+)?\s?\}\s?\{\s?\d+(?:\.\d+)?\s?\}|\d\s?\d)"
NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s?[{_CURRENCY}]?\s?(?P<sign2>[-+]?)
    (?: (?P<frac>{_FRACTION})
      | (?P<whole>\d+)\ ?(?P<part>{_FRACTION})
      | (?P<whole2>\d+)\ (?P<part2>\d+/\d+)(?![\d/])
      | (?P<top>{_PLAIN})
        (?: [eE](?P<exp>[-+]?\d{{1,4}})(?!\w)
          | \s?[*xX]\s?10\s?\^\s?\{{?(?P<ten>[-+]?\d{{1,4}})\}}?
          | \s?\^\s?\{{?(?P<power>[-+]?\d{{1,4}})\}}?
          | \s?/\s?(?P<bottom>{_PLAIN}))?
    )(?:\s?%)?""",
    re.ASCII | re.VERBOSE,
)
"""A number at the start of a text that went through `tidy`."""

_LATEX_SPACE = re.compile(r"\\[,;:! ]|\\(?:q?quad|thinspace|left|right|displaystyle|big[lr]?|Big[lr]?)(?![A-Za-z])|~")
_WORD_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname|emph|bold)\s?\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s?\{?\\circ\}?|\\degree(?![A-Za-z])|°")
_BLANKS = re.compile(r"\s+")


def tidy(text: str) -> str:
    r"""One line of plain characters for reading numbers: single blanks, ASCII minus, no LaTeX around the digits.

    '\(9{,}500\)' → '9,500', '3 × 10⁸' → '3 * 10^8', '18\text{ dollars}' → '18 dollars', '$7$' → '7'.
    """
    text = _SUPERSCRIPT.sub(lambda found: "^" + found.group().translate(_SUPERSCRIPTS), text)
    text = unicodedata.normalize("NFKC", _VULGAR.sub(r" \1", text)).translate(_MINUS)
    if "\\" in text or "{" in text or "~" in text:
        text = text.replace("{,}", ",").replace(r"\$", "$").replace(r"\%", "%")
        text = _LATEX_SPACE.sub(" ", text)
        text = _DEGREES.sub("", text)
        text = _WORD_COMMAND.sub(r" \1 ", text)
        text = re.sub(r"\\[dtc]frac", r"\\frac", text)
        text = re.sub(r"\\(?:times|cdot|ast)(?![A-Za-z])", "*", text)
        text = re.sub(r"\\[()\[\]]", " ", text)
    text = text.replace("×", "*").replace("·", "*").replace("⋅", "*").replace("°", "")
    text = re.sub(r"\$(?!\s?[-+]?[\d.])", "", text)  # a closing '$'; what opens LaTeX reads like a currency sign
    return _BLANKS.sub(" ", text).strip()


def parse_number(text: str) -> Fraction | None:
    """The number that `text` is, the whole of it; None for anything else.

    Understood: thousands commas and blanks, one currency sign, %, decimals, fractions 'a/b' and '\\frac', mixed
    numbers, exponents, unicode minus, LaTeX's delimiters. The sign counts. A % is dropped, not divided by 100:
    problems that ask for a percentage have plain numbers as answers.
    """
    if len(text) > 2 * _MAX_CHARS:
        return None
    text = tidy(text)
    found = NUMBER.fullmatch(text.removesuffix(".").rstrip() or " ")
    return value_of(found) if found else None


def value_of(found: re.Match[str]) -> Fraction | None:
    """The value of what NUMBER matched; None for two signs, a division by zero, or more than MAX_DIGITS digits."""
    if len(found.group()) > _MAX_CHARS or (found["sign"] and found["sign2"]):
        return None
    try:
        value = _unsigned(found)
    except ZeroDivisionError:
        return None
    if value is None or max(abs(value.numerator), value.denominator) >= 10**MAX_DIGITS:
        return None
    return -value if "-" in (found["sign"], found["sign2"]) else value


def _unsigned(found: re.Match[str]) -> Fraction | None:
    if found["frac"]:
        return _fraction(found["frac"])
    if found["whole"]:
        part = _fraction(found["part"])
        return None if part < 0 else _decimal(found["whole"]) + part
    if found["whole2"]:
        return _decimal(found["whole2"]) + Fraction(found["part2"])
    top = _decimal(found["top"])
    if found["exp"] or found["ten"]:
        exponent = int(found["exp"] or found["ten"])
        return None if abs(exponent) > MAX_DIGITS else top * Fraction(10) ** exponent
    if found["power"]:
        return power(top, int(found["power"]))
    return top / _decimal(found["bottom"]) if found["bottom"] else top


def _fraction(text: str) -> Fraction:
    parts = re.findall(r"-?\d+(?:\.\d+)?", text)
    if len(parts) == 1:  # \frac12
        parts = list(parts[0])
    return Fraction(parts[0]) / Fraction(parts[1])


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", "").removesuffix(".") or "0")


def power(base: Fraction, exponent: int, digits: int = MAX_DIGITS) -> Fraction | None:
    """`base ** exponent` where it has no more than about so many digits, else None. Raises ZeroDivisionError."""
    size = max(abs(base.numerator), base.denominator).bit_length()
    return None if size > 1 and abs(exponent) * size > 4 * digits else base**exponent


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


def number_or_none(text: str | None) -> str | None:
    """The canonical form of a text that is a number as a whole."""
    value = parse_number(text) if text is not None else None
    return None if value is None else canonical_number(value)


def bare_number(text: str) -> str | None:
    """Like `number_or_none`, but nothing that is still to be computed: '6/2' is a step, and so is '2^3'."""
    return None if re.search(r"[/^*{]", text) else number_or_none(text)


# --- numbers in words

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_ONES = {word: value for value, word in enumerate(_SMALL.split())}
_DECADES = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 20 + 10 * place for place, word in enumerate(_DECADES.split())}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}


def spelled_number(words: list[str]) -> tuple[int, int] | None:
    """(value, words used) of a number spelled out at the start of `words` (lower case): 'twenty-one', 'two hundred'."""
    total = current = used = 0
    for place, word in enumerate(words):
        parts = word.split("-")
        if all(part in _ONES or part in _TENS for part in parts) and len(parts) <= 2:
            current += sum(_ONES.get(part, 0) + _TENS.get(part, 0) for part in parts)
        elif word in _SCALES and used:
            current = max(current, 1) * _SCALES[word]
            if _SCALES[word] > 100:
                total, current = total + current, 0
        elif not (word == "and" and used and place + 1 < len(words) and words[place + 1].split("-")[0] in _ONES):
            break
        used = place + 1
    return (total + current, used) if used else None
