"""Which choice does a solution state? Its letter, whether it is named as "(B)", as "B." or by the option's own text.

Pure text. Knows a problem's options and not which of them is right. What is unclear (two letters, a letter that the
problem does not have, "not (A)") states nothing: a lucky reading must not count as an answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from treepref.tasks.answers import last_line, plain_text

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_USUAL = "ABCDEFGH"
"""Letters of choices where the problem's options are not known."""

_PHRASE = re.compile(
    r"""\#{4}
    | \\boxed\s*\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?
    | \bans(?:wer)?\s*(?:is|:|=|-|–|(?:must|should|would|will)\s+be)
    | \b(?:correct|right|best|final)\s+(?:option|choice)\s*(?:is|:|=|-|–)""",
    re.IGNORECASE | re.VERBOSE,
)
_LEAD = re.compile(r"(?:[\s:=]|\b(?:the|correct|right|best|final|option|choice|letter|answer|is)\b)*", re.IGNORECASE)
_WRAPPED = re.compile(r"[\"'\s]*[(\[{]\s*([A-Za-z])\s*[)\]}]")
_BARE = re.compile(r"[\"'\s]*([A-Z])(?![\w'’+]|-\w)")
_SMALL = re.compile(r"[\"'\s]*([a-z])\W*")
_ALSO = re.compile(r"(?:\s*(?:,|/|&|\bor\b|\band\b))*\s*(?:[(\[]([A-Za-z])[)\]]|([A-Z])(?![\w'’]))")
_ARTICLE = re.compile(r"\s+(?!(?:because|since|as|for|is)\b)[a-z]")
_CLAUSE = re.compile(r"[,;:.]\s|\s(?:because|since|as)\s", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:['’.,/-][^\W_]+)*\+*")
_FILLERS = (
    "so hence thus therefore then the correct right best final ans answer option choice letter is it this that means "
    "gives us must will be"
)
_FILLER = frozenset(_FILLERS.split())


def read_choice(text: str, delimiter: str = "\n", options: Sequence[str] | None = None) -> str | None:
    """The letter of the choice that the text states last; None where it states none, or not clearly one.

    What counts: the rest of the line after the last "the answer is", "answer:", "####" or "\\boxed{" in the text; or a
    later last line that is nothing but a choice ("(B)", "B.", "So (B)", "(B) the option's text", the text alone).
    `options`: the texts of the problem's choices, (A) first; a letter beyond them states nothing. Without them option
    texts cannot be read, and letters go to H.
    """
    lines = [line for part in _plain(text).split(delimiter) for line in part.splitlines() if line.strip()]
    for place, line in enumerate(reversed(lines)):
        phrases = list(_PHRASE.finditer(line))
        if phrases:
            return _after_phrase(line[phrases[-1].end() :], options)
        if place == 0 and (found := whole_line(line, options)):
            return found
    return None


def whole_line(line: str, options: Sequence[str] | None) -> str | None:
    """The letter of a line that is nothing but the statement of one choice."""
    line = _plain(line)
    alone = re.fullmatch(r"\W*([A-Za-z])[^\w+-]*", line)
    if alone and alone[1].upper() in _letters(options):
        return alone[1].upper()
    if by_text := _by_text(line, options):
        return by_text
    wrapped = {found.upper() for found in re.findall(r"[(\[]\s*([A-Za-z])\s*[)\]]", line)}
    words = _WORD.findall(line)
    fits = []
    for place, letter in enumerate(_letters(options)):
        own = _words(options[place]) if options else set()
        named = letter in words or letter in wrapped
        rest = {word.casefold() for word in words if word.upper() != letter}
        if named and rest <= _FILLER | own:
            fits.append(letter)
    if len(fits) > 1:  # "(A) B", where A's text is "B"
        fits = [letter for letter in fits if letter in wrapped]
    if fits:
        return fits[0] if len(fits) == 1 else None
    return _by_text(_without_lead(line), options)


def _after_phrase(tail: str, options: Sequence[str] | None) -> str | None:
    """The choice that a line names after "the answer is"."""
    whole, tail = tail, _without_lead(tail)
    letter = _WRAPPED.match(tail)
    if letter is None:
        letter = _SMALL.fullmatch(tail) or _BARE.match(tail)
        known = letter is not None and letter[1].upper() in _letters(options)
        if letter is None or not known or tail[letter.end() :].strip(" .!"):  # perhaps an option's text: "K", "A dog"
            first = (_CLAUSE.split(text, maxsplit=1)[0] for text in (whole, tail))
            by_text = next(filter(None, (_by_text(text, options) for text in (whole, tail, *first))), None)
            if by_text or letter is None or (letter[1] == "A" and _ARTICLE.match(tail, letter.end())):
                return by_text
    found, end = letter[1].upper(), letter.end()
    while also := _ALSO.match(tail, end):  # "(A) or (B)", "A, B"
        if (also[1] or also[2]).upper() != found:
            return None
        end = also.end()
    return found if found in _letters(options) else None


def _without_lead(text: str) -> str:
    """The text behind words that lead up to a choice: "the correct option is"."""
    found = _LEAD.match(text)
    return text[found.end() :] if found else text


def _by_text(text: str, options: Sequence[str] | None) -> str | None:
    """The letter of the one option with this text; case, blanks and a full stop aside, numbers by value."""
    wanted = _text_key(text)
    fits = [letter for letter, option in zip(ALPHABET, options or (), strict=False) if _text_key(option) == wanted]
    return fits[0] if wanted and len(fits) == 1 else None


def same_text(first: str, second: str) -> bool:
    """Whether two options say the same."""
    return _text_key(first) == _text_key(second)


def _text_key(text: str) -> str:
    return plain_text(_plain(text).strip().strip("\"'“”").rstrip(".!").strip("\"'“”").strip())


def _letters(options: Sequence[str] | None) -> str:
    return _USUAL if options is None else ALPHABET[: len(options)]


def _words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(_plain(text))}


def _plain(text: str) -> str:
    """Full-width letters and the like as ASCII; Markdown's stars and backticks gone."""
    return unicodedata.normalize("NFKC", text).replace("*", "").replace("`", "")


def last_statement(text: str, options: Sequence[str]) -> str | None:
    """What the last line states, if it is nothing but the statement of a choice."""
    line = last_line(text)
    return whole_line(line, options) if line else None
