r"""LaTeX answers: what stands in boxes, canonical forms, exact values of what is rational, parts of lists and sets.

Pure text. Knows no problem; comparing what is not rational is math_compare.py's. Bounded in length, depth and digits.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from math import isqrt

from treepref.tasks.numbers import canonical_number, power, tidy

MAX_CHARS = 4000
"""A longer answer is not looked into."""
_MAX_DEPTH = 40
_MAX_DIGITS = 8000
"""Most digits of an exact value; canonical forms show shorter ones alone."""
_SHOWN_DIGITS = 400
_MOST_BOXES = 50
"""An answer has no more parts than this."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_SIGNS = str.maketrans({"−": "-", "﹣": "-", "－": "-", "‐": "-", "‑": "-", "–": "-", "\u00a0": " ", "\u202f": " "})
_WORDS = r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)"
_UNIT = re.compile(
    r"\s*\\(?P<command>text|textit|textrm|mbox|mathrm|operatorname)\s?\{(?P<words>[^{}]*)\}\s*(?:\^\{?[23]\}?)?\s*\.?\Z"
)
_NO_UNIT = re.compile(
    r"\d|\b(?:base|and|or|half|third|quarter|hundred|thousand|million|billion|dozen|squared|cubed|more|less|mod|pi|[a-z])\b",
    re.IGNORECASE,
)
"""What makes the words behind a number more than its unit."""
_SYMBOL_NAMES = "cm mm km m kg g mg s min h hr L ml mL ft in mi mph yd lb oz cal J N W V Hz"
_SYMBOLS = frozenset(_SYMBOL_NAMES.split())
_ASSIGNMENT = re.compile(
    r"\A(?:\\?[A-Za-z][A-Za-z0-9]*(?:_\{?[A-Za-z0-9]+\}?)?(?:\([a-z](?:,[a-z])*\))?|\([a-z](?:,[a-z])+\))=(?=[^=])"
)
_BASE_NAMES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_BASE_WORDS = {word: str(value) for value, word in enumerate(_BASE_NAMES.split(), start=2)}
_IN_BASE = re.compile(
    rf"(?<=[0-9A-F])\s*(?:_\s*\{{?\s*(?:{_WORDS}\s?\{{)?|(?:{_WORDS}\s?\{{)?\s*\(?\s*(?:in\s)?base\s?\}}?[\s~-]*)"
    rf"(?P<base>\d{{1,2}}|{'|'.join(_BASE_WORDS)})\s*\)?\}}{{0,2}}",
    re.IGNORECASE,
)
_BASE = re.compile(r"(-?[0-9A-F.]+)_(\d{1,2})")
_REPEATING = re.compile(r"(-?)(\d{0,20})\.(\d{0,20})\\overline\{?(\d{1,20})\}?")
_JOINED = re.compile(
    r"""(?:[\s$.,;&:()\[\]]|\\[()\[\],;:!\ ]|\\\\|\\q?quad|\\(?:text|mbox)\{|\}|\band\b|\bor\b
    |\\?[A-Za-z]\w?(?:_\{?\w+\}?)?\s*=|\^\{?\\circ\}?)*""",
    re.VERBOSE,
)
"""What may stand between boxes that are one answer: punctuation, 'and', 'or', 'x ='."""


# --- boxes


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of every '\boxed{…}' with balanced braces; '\boxed 9' holds '9'. Linear in the text."""
    found: list[tuple[int, int, str]] = []
    opened: list[tuple[int, int]] = []  # (start of the command, depth of its brace)
    starts = {match.end(): match.start() for match in _BOX.finditer(text)}
    contents: list[int] = []
    depth = 0
    place = 0
    while place < len(text):
        sign = text[place]
        if sign == "\\" and place + 1 < len(text) and text[place + 1] in "{}\\":
            place += 2
            continue
        if sign == "{":
            depth += 1
            if place in starts:
                opened.append((starts[place], depth))
                contents.append(place + 1)
        elif sign == "}":
            if opened and opened[-1][1] == depth:
                start, _ = opened.pop()
                inner = text[contents.pop() : place].strip()
                if inner and not (found and found[-1][0] > start):  # of nested boxes the innermost
                    found.append((start, place + 1, inner))
            depth = max(0, depth - 1)
        elif place in starts and sign.isalnum():
            found.append((starts[place], place + 1, sign))
        place += 1
    return found


def boxed(text: str) -> list[str]:
    r"""The last boxed answer: the content of the last box and of those right before it that are joined to it.

    '\boxed{3}, \boxed{5} and \boxed{7}' is one answer of three parts; boxes with sentences between them are several
    answers, of which the last counts. A content comes once; empty where there is no box, or the last one never ends.
    """
    found = boxes(text)
    last = [match.start() for match in _BOX.finditer(text)][-1:]
    if not found or last[0] >= found[-1][1]:  # a box that was cut is what the text ends with
        return []
    parts = [found[-1]]
    for box in reversed(found[-_MOST_BOXES:-1]):
        if _JOINED.fullmatch(text[box[1] : parts[0][0]][:200]) is None or parts[0][0] - box[1] > 60:
            break
        parts.insert(0, box)
    return [content for form, content in {canonical_latex(c): c for _, _, c in parts}.items() if form]


@lru_cache(maxsize=8)  # a reader asks once for every box of a text
def last_boxed(text: str) -> str | None:
    r"""`boxed` as one text, its parts joined by ', '. None where there is no box."""
    return ", ".join(boxed(text)) or None


# --- canonical forms


def canonical_latex(text: str) -> str:
    r"""LaTeX without what changes no meaning: blanks, sizes, '\left', units in '\text', style of fractions, 'x ='.

    What is rational comes out as a canonical number; the parts of a list are joined by ';' in order of size. Two texts
    with one canonical form are equal; two forms may still mean the same ('x+1', '1+x'): a vote counts those apart.
    """
    text = _plain_latex(text[:MAX_CHARS])
    kind, parts = members(text)
    if kind == "set" or (kind == "" and len(parts) > 1):
        joined = ";".join(form for _, _, form in sorted(_sortable(part) for part in parts))
        return rf"\{{{joined}\}}" if kind else joined
    if kind and len(parts) > 1:
        return kind[0] + ",".join(_number_form(part) or part for part in parts) + kind[1]
    return _number_form(text) or text


def _sortable(part: str) -> tuple[bool, Fraction, str]:
    """What orders the parts of a list: numbers by value, then texts."""
    form, value = _number_form(part), rational(part)
    return (True, Fraction(0), _ASSIGNMENT.sub("", part)) if form is None or value is None else (False, value, form)


def pending(text: str) -> bool:
    """Whether a text is a computation still to be done: '5+3', '90/3', '4 \\cdot 6'. Factors ('2^3*5') are none."""
    text = re.sub(r"\\(?:cdot|times|div|ast)(?![A-Za-z])", "*", text)
    if re.search(r"\\[dt]?binom|\\(?:sum|prod|int)(?![A-Za-z])|\d!", text):
        return True
    flat, depth = [], 0
    for sign in text:
        depth -= sign in ")}"
        flat.append(sign if depth == 0 else "#")
        depth += sign in "({"
    flat_text = "".join(flat).replace(" ", "")
    if re.search(r"[\d)}][-+][\d(\\]", flat_text) and not re.search(r"[\^_][-+]", flat_text):
        return True
    if re.search(r"[\d)]\(#|\)\d", flat_text) and not re.search(r"[A-Za-z]", text):
        return True
    if re.search(r"[\d)}]\*[\d(\\]", flat_text) and "^" not in flat_text:
        return True
    whole = re.fullmatch(r"-?(\d{1,9})/(\d{1,9})", flat_text)
    return whole is not None and int(whole[2]) > 0 and int(whole[1]) % int(whole[2]) == 0


def _plain_latex(text: str) -> str:
    text = re.sub(r"\s+", " ", text.translate(_SIGNS)).strip().strip("$").strip()
    text = text.replace("{,}", ",").replace(r"\$", "").replace(r"\%", "").replace("%", "")
    text = re.sub(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])", " ", text)
    text = _IN_BASE.sub(lambda found: "_" + _BASE_WORDS.get(found["base"].lower(), found["base"]), text)
    text = re.sub(rf"(?<=[\w}})])\s?(?:\\q?quad\s?)*{_WORDS}\s?\{{\s?(?:and|or)\s?\}}\s?(?:\\q?quad\s?)*", ", ", text)
    text = re.sub(r"(?<=\d)\s(?:and|or)\s(?=[-\d\\])", ", ", text)
    text = _with_lists_marked(re.sub(r"\\q?quad(?![A-Za-z])", ", ", text))
    text = re.sub(r"(?<!\\)\\[!,;: ]|~", " ", text)
    text = re.sub(r"\s*\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|°", "", text)
    text = _without_unit(text)
    text = re.sub(rf"{_WORDS}\s?\{{([^{{}}]*)\}}", r"\1", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt\s*(\w)(?!\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"([\^_])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"(\d) (?=\d{3}(?!\d))", r"\1", text)  # 9 500
    text = re.sub(r"(\\[A-Za-z]+)\s+(?=[A-Za-z])", "\\1\0", text)  # this blank ends a command's name
    text = "".join(text.split()).rstrip(".,;").replace("\0", " ")
    text = _ASSIGNMENT.sub("", text)
    if len(re.findall(r"\\pm(?![a-z])", text)) == 1 and not re.search(r"[,;]", text):
        text = ";".join(re.sub(r"\\pm(?![a-z])\s?", sign, text).removeprefix("+") for sign in "-+")
    return text.casefold() if re.fullmatch(r"[A-Za-z]{2,}", text) else text


def _with_lists_marked(text: str) -> str:
    """A comma with a blank behind it outside all brackets parts a list, whatever the digits: '81, 256' → '81;256'."""
    depth, signs = 0, list(text)
    for place, sign in enumerate(signs):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and sign == "," and text[place + 1 : place + 2] == " ":
            signs[place] = ";"
    return "".join(signs)


def _without_unit(text: str) -> str:
    """A number without the unit in words behind it; words that change its value stay ('5\\text{ million}')."""
    found = _UNIT.search(text)
    if not found or not re.search(r"[\d}]\s*\Z", text[: found.start()]):
        return text
    words = found["words"].strip()
    if found["command"] in ("mathrm", "operatorname") or (" " not in words and words in _SYMBOLS):
        return text[: found.start()] if words in _SYMBOLS else text
    return text if _NO_UNIT.search(words) else text[: found.start()]


def _number_form(text: str) -> str | None:
    text = _ASSIGNMENT.sub("", text)
    value = None if pending(text) else rational(text)
    if value is None or max(abs(value.numerator), value.denominator) >= 10**_SHOWN_DIGITS:
        return None
    return form if len(form := canonical_number(value)) <= _SHOWN_DIGITS else None


# --- parts


def split_list(text: str, *, grouped: bool = True) -> list[str]:
    """A text's parts between top-level commas; where `grouped`, digits in groups of three ('9,500') are one part."""
    if grouped and re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return [text]
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign in ",;" and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [part for part in (part.strip() for part in [*parts, text[start:]]) if part]


def members(text: str) -> tuple[str, list[str]]:
    r"""(kind, parts) of a plain text: 'set' for '\{1,2\}', '()', '(]' … for brackets, '' for a bare list."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return "set", split_list(text[2:-2], grouped=False)
    if len(text) > 1 and text[0] in "([" and text[-1] in ")]" and _encloses(text):
        return text[0] + text[-1], split_list(text[1:-1], grouped=False)
    return "", split_list(text)


def _encloses(text: str) -> bool:
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0:
            return place == len(text) - 1
    return False


def base_of(text: str) -> tuple[str, str] | None:
    """(digits, base) of a canonical number with its base: '12_7' → ('12', '7'); None for others."""
    found = _BASE.fullmatch(text)
    return (found[1].lstrip("0") or "0", found[2]) if found else None


def has_base(text: str) -> bool:
    return re.search(r"\d_\d", text) is not None


# --- exact values


class _NotRational(Exception):
    """The text is not a rational number that can be computed here."""


def rational(text: str) -> Fraction | None:
    r"""The exact value of LaTeX made of numbers, + − · / \frac, powers, whole roots and brackets; None for all else."""
    if len(text) > MAX_CHARS or not re.search(r"\d", text) or "_" in text:
        return None
    if repeating := _REPEATING.fullmatch(text.strip()):
        return _repeating(*repeating.groups())
    text = tidy(text).replace("[", " ").replace("{", "(").replace("}", ")")
    try:
        return _Value(text).whole()
    except (_NotRational, ZeroDivisionError):
        return None


def _repeating(sign: str, whole: str, digits: str, period: str) -> Fraction:
    """'0.1\\overline{6}' → 1/6."""
    value = Fraction(int(whole or "0")) + Fraction(int(digits or "0"), 10 ** len(digits))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits))
    return -value if sign else value


_TOKEN = re.compile(
    r"\s*(?:(\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+\.?\d*|\.\d+)|(\\frac|\\sqrt|\\div)(?![A-Za-z])|([-+*/^()!]))"
)


class _Value:
    """Recursive descent over tokens. A product needs its sign, but for a number before a bracket or a root."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        place = 0
        text = text.rstrip()
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                raise _NotRational
            self.tokens.append(next(part for part in found.groups() if part is not None))
            place = found.end()
        self.place = 0
        self.depth = 0

    def whole(self) -> Fraction:
        value = self._sum()
        if self.place < len(self.tokens):
            raise _NotRational
        return value

    def _peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def _take(self, *wanted: str) -> bool:
        if self._peek() in wanted and self._peek():
            self.place += 1
            return True
        return False

    def _sum(self) -> Fraction:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _NotRational
        value = self._product()
        while self._peek() in ("+", "-") and self._peek():
            value = value + self._product() if self._take("+") else value - (self._take("-") and self._product())
            self._check(value)
        self.depth -= 1
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while True:
            if self._take("*"):
                value *= self._signed()
            elif self._take("/", r"\div"):
                value /= self._signed()
            elif self._peek() in ("(", r"\sqrt"):
                value *= self._power()
            else:
                return value
            self._check(value)

    def _signed(self) -> Fraction:
        if self._take("-"):
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise _NotRational
            value = -self._signed()
            self.depth -= 1
            return value
        self._take("+")
        return self._power()

    def _power(self) -> Fraction:
        base = self._atom()
        if self._take("!"):
            raise _NotRational
        if not self._take("^"):
            return base
        exponent = self._atom() if self._peek() != "-" else self._signed()
        if exponent.denominator != 1 or abs(exponent) > 10**6 or (base == 0 and exponent <= 0):
            raise _NotRational
        value = power(base, int(exponent), _MAX_DIGITS)
        if value is None:
            raise _NotRational
        return value

    def _atom(self) -> Fraction:
        if self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise _NotRational
            return value
        if self._peek() in (r"\frac", r"\sqrt"):
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise _NotRational
            root = self._take(r"\sqrt") or not self._take(r"\frac")
            value = _root(self._atom()) if root else self._mixed(self._atom() / self._atom())
            self.depth -= 1
            return value
        token = self._peek()
        if not token or not (token[0].isdigit() or token[0] == "."):
            raise _NotRational
        if len(token) > _SHOWN_DIGITS:
            raise _NotRational
        self.place += 1
        number = Fraction(token.replace(",", "").removesuffix(".") or "0")
        if self._peek() == r"\frac":  # 1\frac{1}{2} is one and a half
            if number.denominator != 1:
                raise _NotRational
            return number + self._atom()
        return number

    def _mixed(self, value: Fraction) -> Fraction:
        if self._peek() == r"\frac" or (self._peek() and self._peek()[0].isdigit()):
            raise _NotRational
        return value

    def _check(self, value: Fraction) -> None:
        if max(abs(value.numerator), value.denominator).bit_length() > 4 * _MAX_DIGITS:
            raise _NotRational


def _root(value: Fraction) -> Fraction:
    """The square root of a square. Raises _NotRational for others."""
    if value < 0 or value.numerator.bit_length() > 4 * _MAX_DIGITS:
        raise _NotRational
    root = Fraction(isqrt(value.numerator), isqrt(value.denominator))
    if root * root != value:
        raise _NotRational
    return root
