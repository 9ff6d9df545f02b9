"""Which choice does a solution state? Its letter, whether it is named as "(B)", as "B." or by the option's own text.

Pure text. Knows a problem's options and not which of them is right. What is unclear (two letters, a letter that the
problem does not have, "not (A)") states nothing: a lucky reading must not count as an answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from treepref.tasks.number_sentences import CONCLUSION
from treepref.tasks.numbers import number_or_none
from treepref.tasks.statements import doubted, final_part, last_line, lines_of, sentences, unmeant, without_remarks
from treepref.tasks.texts import plain_text

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_USUAL = "ABCDEFGH"
"""Letters of choices where the problem's options are not known."""

_PHRASE = re.compile(
    r"""\#{4}
    | \\(?:boxed|fbox)\s*\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?
    | <answer> | 答案(?:是|为|:|：)
    | \bans(?:wer)?"?(?:\sto\s(?:the|this|that|your)\s(?:[\w-]+\s){0,3}?(?:question|problem))?\s*
      (?:is|was|:|=|-|–|(?:must|should|would|will)\s+be)(?![\w'’])(?:\s(?:therefore|thus|then|simply|just|clearly)\b,?)?
    | \b(?:correct|right|best|final)\s+(?:option|choice)\s*(?:is|:|=|-|–)
    | ^\W*(?:the\s+)?(?:final|correct)\s+answer\W*$""",
    re.IGNORECASE | re.VERBOSE,
)
_IS_RIGHT = re.compile(
    r"""(?:(?i:\b(?:option|choice|answer|letter))\s+[(\[]?(?P<named>[A-Z])\b|[(\[](?P<wrapped>[A-Za-z])[)\]]
        |(?:\A\W*|(?i:\b(?:so|thus|hence|therefore)),?\s+)(?P<bare>[A-Z])(?=[.):]\s|\s(?:is|seems|would)\b))
    [)\].:]*(?:\s+[^.;]{0,120}?)?\s(?:is|seems|would\ be)\s(?:the\ |my\ )?(?i:correct|right|best|answer)\b""",
    re.VERBOSE,
)
_LETTERED = re.compile(r"[\"'\s\W]*([A-Za-z])\s*[.):]\s+(\S.*)")
_NAMED = re.compile(
    r"(?:\b(?:option|choice|letter|answer|pick|choose|select|leaves|(?:it|that)(?:['’]s|\s+is))\s+|[(\[])\s*([A-Z])(?![\w'’+-])"
)
_HEDGED = re.compile(
    r"\b(?:either|neither|no|none|nothing|nobody|hardly|least|worst|could|might|may|maybe|perhaps|unclear|unsure|depends|need|more\s+information|question|all\s+of|wrong|incorrect|false|eliminated?|ruled?\s+out)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:not|never|rather\s+than|instead\s+of|nor|neither|except|without|unlike|isn['’]t|aren['’]t|doesn['’]t|don['’]t"
    r"|can['’]t|cannot|won['’]t)\b[^.;:]*",
    re.IGNORECASE,
)
_LEAD = re.compile(r"(?:[\s:=]|\b(?:the|correct|right|best|final|option|choice|letter|answer|is)\b)*", re.IGNORECASE)
_WRAPPED = re.compile(r"[\"'\s]*[(\[{<]\s*([A-Za-z])\s*[)\]}>]")
_BARE = re.compile(r"[\"'\s]*([A-Z])(?![\w'’+]|-\w)")
_SMALL = re.compile(r"[\"'\s]*([a-z])\W*")
_IN_LATEX = re.compile(r"(?:\$|\\\(|\\\[)[ ]?(\(?[A-Za-z]\)?|\\(?:boxed|text)[^\n$]{0,200}?)[ ]?(?:\$|\\\)|\\\])")
"""A letter, a box or words between LaTeX's delimiters."""
_SMALL_LETTERED = re.compile(r"[\"'\s]*([a-z])[.)]\s")
_ALSO = re.compile(
    r"\s*(?:(?:,|/|&|;|\(|\bor\b|\band\b|\bas\s+well\s+as\b)\s*(?:maybe\s|possibly\s|perhaps\s|also\s)?)+(?:[(\[]?([A-Za-z])[)\]]|([B-HJ-Z])(?![\w'’])|(A)(?!\s?[\w'’]))"
    r"|\s*[(\[]([A-Za-z])[)\]]"
)
_ARTICLE = re.compile(r"\s+(?!(?:because|since|as|for|is)\b)[a-z]")
_CLAUSE = re.compile(r"[,;:.]\s|\s\(|\s(?:because|since|as)\s|</", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:['’.,/-][^\W_]+)*\+*")
_FILLERS = (
    "so hence thus therefore then the correct right best final ans answer option choice letter is it this that means "
    "gives us must will be"
)
_FILLER = frozenset(_FILLERS.split())


def read_choice(text: str, delimiter: str = "\n", options: Sequence[str] | None = None) -> str | None:
    """The letter of the choice that the text states last; None where it states none, or not clearly one.

    What counts: the rest of the line after the last "the answer is", "answer:", "####" or "\\boxed{" in the text; or a
    later last line that is nothing but a choice ("(B)", "B.", "So (B)", "(B) the option's text", the text alone); or,
    where nothing states an answer, the only option that the last sentence names.
    `options`: the texts of the problem's choices, (A) first; a letter beyond them states nothing. Without them option
    texts cannot be read, and letters go to H.
    """
    lines = without_remarks(lines_of(_plain(final_part(text)), delimiter))
    for place in range(len(lines) - 1, -1, -1):
        line = lines[place]
        right = [found for found in _IS_RIGHT.finditer(line) if _letter_of(found) in _letters(options)]
        phrases = list(_PHRASE.finditer(line))
        if right and not (phrases and phrases[-1].start() > right[-1].start() and line[phrases[-1].end() :].strip()):
            return _letter_of(right[-1]) if _meant(line, right[-1], options) else None
        if phrases and unmeant(line, phrases[-1].start()):
            return None
        if phrases:
            said, rest = line[phrases[-1].end() :], lines[place + 1 :]
            if not re.search(r"\w", said) and rest:
                said, rest = rest[0], rest[1:]
            elif not re.search(r"\w", said) and len(phrases) > 1:  # the text was cut after "The answer is"
                said = line[phrases[-2].end() : phrases[-1].start()]
            if doubted(said) or any(map(doubted, rest)):
                return None
            return _after_phrase(said, options)
        if place == len(lines) - 1 and not _listing(lines) and (found := whole_line(line, options)):
            return found
    if not lines or _listing(lines) or _contradicted(lines[0], options) or _contradicted(lines[-1], options):
        return None
    if not _listing(lines[:2]) and (found := _led_by_choice(lines, options)):
        return found
    return _named(lines[-1], options) or (_first_said(lines[0], options) if len(lines) == 1 else None)


def _contradicted(line: str, options: Sequence[str] | None) -> bool:
    """Whether a line gives one option's letter and another option's text: "(B) Mars", where Mars is (C)."""
    lettered = _LETTERED.fullmatch(line)
    if not lettered or not options or lettered[1].upper() not in _letters(options):
        return False
    letter, said = lettered[1].upper(), _by_text(lettered[2], options)
    return said not in (None, letter) or (said is None and _tells_of_another(letter, lettered[2], options))


def _first_said(line: str, options: Sequence[str] | None) -> str | None:
    """The option that a paragraph's first sentence is about ("Axon is the part that …") or ends in; one alone."""
    sentence = sentences(line)[0]
    if not options or _DENIED.search(sentence) or _HEDGED.search(sentence) or sentence.endswith("?"):
        return None
    words = f" {' '.join(_words_of(sentence))} "
    named = [i for i, option in enumerate(options) if f" {' '.join(_words_of(option))} " in words]
    about = [i for i in named if words.startswith(f" {' '.join(_words_of(options[i]))} is ")]
    if len(named) == 1 and about:
        return ALPHABET[about[0]]
    stated = _stated_texts(sentence, options)
    return stated.pop() if len(stated) == 1 and not about else None


def _letter_of(found: re.Match[str]) -> str:
    return next(part for part in found.groups() if part).upper()


def _meant(line: str, found: re.Match[str], options: Sequence[str] | None) -> bool:
    """Whether "option B is correct" is said outright: not denied or doubted, and nothing is preferred behind it."""
    own = options[ALPHABET.index(_letter_of(found))] if options else ""
    denied = _DENIED.search(found.group().replace(own, " "))
    return not (denied or unmeant(line, found.start()) or _other_letters(line[found.end() :], _letter_of(found)))


def _other_letters(rest: str, letter: str) -> set[str]:
    """Letters of other choices named behind an answer, but for those that are denied or stand in a reason."""
    rest = _DENIED.sub(" ", re.split(r";|\b(?:because|since|as\s(?!well)|whereas|while|unlike)\b", rest, maxsplit=1)[0])
    rest = re.sub(r"[(\[]?\b[A-H]\b[)\].]?\s(?:is|was)\s(?:wrong|incorrect|false|too|only)\b", " ", rest)
    found = re.findall(r"(?<![\w'’])([A-H])(?![\w'’+-])(?!\s(?!is\b|are\b|was\b)[a-z])", rest)
    return set(found) - {letter}


def _led_by_choice(lines: Sequence[str], options: Sequence[str] | None) -> str | None:
    """The choice that a text begins with before it says why: a line of its own, or a letter and its option's words."""
    begun = (line for line in map(_LETTERED.fullmatch, lines) if line and line[1].upper() in _letters(options))
    if options and len({line[1].upper() for line in begun if _says_own(line, options)}) > 1:
        return None  # it goes through them
    if len(lines) > 1 and (found := whole_line(lines[0], options)):
        return found
    lettered = _LETTERED.fullmatch(lines[0])
    if not lettered or not options or lettered[1].upper() not in _letters(options):
        return None
    own = _words_of(options[ALPHABET.index(lettered[1].upper())])
    alone = len(set(re.findall(r"(?:\A|\s)([A-H])[.)]\s", lines[0]))) < 2 and not re.search(r"\bor\s\(", lines[0])
    said = _words_of(lettered[2])
    denied = re.search(r"\b(?:wrong|incorrect|false|not)\b", " ".join(said[len(own) : len(own) + 4]))
    return lettered[1].upper() if alone and own and said[: len(own)] == own and not denied else None


def _says_own(lettered: re.Match[str], options: Sequence[str]) -> bool:
    """Whether a line "B. wind …" goes on with its own option's words."""
    own = _words_of(options[ALPHABET.index(lettered[1].upper())])
    return bool(own) and _words_of(lettered[2])[: len(own)] == own


def _listing(lines: Sequence[str]) -> bool:
    """Whether the last lines only go through the options: each begins with a letter of its own."""
    found = [_LETTERED.fullmatch(line) or re.fullmatch(r"\W*([A-Z])\W*", line) for line in lines[-2:]]
    letters = [match[1].upper() if match else "" for match in found]
    return len(letters) == 2 and "" not in letters and letters[0] != letters[1]


_LISTED = re.compile(r"(?:\A|\s)\(?([A-H])[.)]\s")
_ASIDE = re.compile(r"\s?[;(]|,?\s(?:because|since|i\.e\.|as|which|even\s+though|although)\b", re.IGNORECASE)
_RETRACTED = re.compile(
    r".*\b(?:wrong|incorrect|not\s+right|a\s+mistake|scratch\s+that)[.!,:;]+\s+(\S.{0,80})", re.IGNORECASE
)


def _named(line: str, options: Sequence[str] | None) -> str | None:
    """The only option that a line's last sentence names, by letter or by text; what it denies is left out."""
    said = sentences(line)
    if retracted := _RETRACTED.fullmatch(line):
        return whole_line(retracted[1], options)
    if not said or doubted(line) or _HEDGED.search(said[-1]) or len(set(_LISTED.findall(line))) > 1:
        return None
    if len(said) > 1 and (by_text := _by_text(said[-1], options)):
        return by_text
    if said[-1].rstrip().endswith("?") or re.match(r"\W*(?:what|which)\b", said[-1], re.IGNORECASE):
        return None
    if predicate := re.search(r"\bis\s+(?:option\s+)?\(?([A-Z])\)?\W*\Z", said[-1]):
        return predicate[1] if predicate[1] in _letters(options) else None
    sentence = _DENIED.sub(" ", CONCLUSION.split(said[-1])[-1])
    letters = {found for found in _NAMED.findall(sentence) if found in _letters(options)}
    texts = _stated_texts(sentence, options or ())
    if letters:
        return letters.pop() if len(letters) == 1 and texts <= letters else None
    return texts.pop() if len(texts) == 1 else None


def _stated_texts(sentence: str, options: Sequence[str]) -> set[str]:
    """Letters of the options that a sentence ends in or says something to be; empty where it mentions several."""
    said_of = f" {' '.join(_words_of(_ASIDE.split(sentence, maxsplit=1)[0]))} "
    mentioned = [i for i, option in enumerate(options) if f" {' '.join(_words_of(option))} " in said_of]
    longest = [i for i in mentioned if not any(i != j and _within(options[i], options[j]) for j in mentioned)]
    stated = [i for i in longest if _predicate(" ".join(_words_of(options[i])), said_of)]
    return {ALPHABET[i] for i in stated} if len(stated) == 1 else set()


def _predicate(option: str, sentence: str) -> bool:
    """Whether a sentence ends in an option's words or says that something is it; beginning with them is not enough."""
    ending = sentence.endswith(f" {option} ") and sentence.strip() != option
    ending = ending and not sentence.endswith((f" and {option} ", f" or {option} ", f" and a {option} "))
    name = re.escape(option)
    is_it = re.search(
        rf" (?:is|are|was|were|called) (?:an? |the )?{name} | {name} (?:is|are|was|would be|must be) (?:the )?"
        r"(?:best|correct|right|answer|only|most)\b",
        sentence,
    )
    return bool(option) and (ending or is_it is not None)


def _tells_of_another(letter: str, said: str, options: Sequence[str]) -> bool:
    """Whether the words behind a letter are most of another option's, and fewer of its own."""
    words = set(_words_of(said))
    shares = [len(words & set(own := _words_of(option))) / max(1, len(set(own))) for option in options]
    own = shares[ALPHABET.index(letter)] if letter in _letters(options) else 0.0
    return max(shares) > max(own, 0.6)


def _within(option: str, other: str) -> bool:
    return f" {' '.join(_words_of(option))} " in f" {' '.join(_words_of(other))} "


def _words_of(text: str) -> list[str]:
    """A text's words for finding one text in another: lower case, no punctuation, no article in front."""
    words = re.findall(r"[^\W_]+(?:[.'’,-][^\W_]+)*|[°%$€£+]", _plain(text).casefold())
    return words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words


def strict_choice(text: str) -> str | None:
    """The letter where the last line is the ending of our own written solutions: "The answer is (B)."."""
    line = last_line(text)
    found = re.fullmatch(r"(?:.*[.!?]\s+)?the answer is \(?([A-Z])\)?\.?", line or "", re.IGNORECASE)
    return found[1].upper() if found else None


def whole_line(line: str, options: Sequence[str] | None) -> str | None:
    """The letter of a line that is nothing but the statement of one choice."""
    line = _plain(line)
    if re.match(r"\W*is\s+it\b.*\?\W*\Z", line, re.IGNORECASE):
        return None
    alone = re.fullmatch(r"\W*([A-Za-z])[^\w+-]*", line)
    if alone and alone[1].upper() in _letters(options):
        return alone[1].upper()
    if by_text := _by_text(line, options):
        return by_text
    lettered = _LETTERED.fullmatch(line)
    if lettered and options and lettered[1].upper() in _letters(options) and (said := _by_text(lettered[2], options)):
        return said if said == lettered[1].upper() else None
    if lettered and options and _tells_of_another(lettered[1].upper(), lettered[2], options):
        return None
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
    tail = tail.partition("</answer>")[0].rstrip(" ")
    tail = tail.rstrip("}") if "{" not in tail else tail
    whole, tail = tail, _without_lead(tail)
    letter = _WRAPPED.match(tail)
    if letter is None:
        letter = _SMALL.fullmatch(tail) or _BARE.match(tail) or _SMALL_LETTERED.match(tail)
        known = letter is not None and letter[1].upper() in _letters(options)
        if letter is None or not known or tail[letter.end() :].strip(" .!"):  # perhaps an option's text: "K", "A dog"
            first = (_CLAUSE.split(text, maxsplit=1)[0] for text in (whole, tail))
            by_text = next(filter(None, (_by_text(text, options) for text in (whole, tail, *first))), None)
            if by_text and not set(re.findall(r"[(\[]\s*([A-Z])\s*[)\]]", tail)) <= {by_text}:
                return None  # "wind (A)", where wind is (B)
            if by_text or letter is None or (letter[1] == "A" and _ARTICLE.match(tail, letter.end())):
                return by_text
    found, end = letter[1].upper(), letter.end()
    own = _words_of(options[ALPHABET.index(found)]) if options and found in _letters(options) else []
    if (
        own
        and _words_of(tail[end:])[: len(own)] == own
        and _by_text(tail[end:].strip(" .):"), options) in (None, found)
    ):
        return found  # its own option's words
    while also := _ALSO.match(tail, end):  # "(A) or (B)", "A, B"
        if next(part for part in also.groups() if part).upper() != found:
            return None
        end = also.end()
    if re.search(r"\b(?:which|that|it)\s(?:is|was)\s(?:wrong|false|incorrect)|\A\W*is\s(?:wrong|false)", tail[end:]):
        return None
    if _other_letters(tail[end:], found):  # "B, but C is better"
        return None
    rest = re.sub(r"\A[\s.):\]}*]*(?:[-–—]\s)?", "", tail[end:]).strip(" \t.*]}")
    other = _by_text(rest, options) or _by_text(_CLAUSE.split(rest, maxsplit=1)[0], options)
    if other not in (None, found):  # "(B) Mars", where Mars is (C)
        return None
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
    one, other = (" ".join(_plain(text).split()).rstrip(".!").casefold() for text in (first, second))
    return one == other or None is not number_or_none(one) == number_or_none(other)


def _text_key(text: str) -> str:
    return plain_text(_plain(text).strip().strip("\"'“”").rstrip(".!").strip("\"'“”").strip())


def _letters(options: Sequence[str] | None) -> str:
    return _USUAL if options is None else ALPHABET[: len(options)]


def _words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(_plain(text))}


def _plain(text: str) -> str:
    """Full-width letters and the like as ASCII; Markdown's stars, backticks and headings, and LaTeX's dollars gone."""
    text = re.sub(r"[ \t\u00a0]+", " ", unicodedata.normalize("NFKC", text)).replace("*", "").replace("`", "")
    text = re.sub(r"^ ?#{1,6} (?=[A-Za-z]{3})", "", text, flags=re.MULTILINE)
    text = _IN_LATEX.sub(r"\1", text)
    return re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s?\{([^{}]*)\}", r"\1", text)


def last_statement(text: str, options: Sequence[str]) -> str | None:
    """What the last line states, if it is nothing but the statement of a choice."""
    line = last_line(text)
    return whole_line(line, options) if line else None
