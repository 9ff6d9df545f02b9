"""The number that a sentence states: at its start, behind its last '=', alone in it, or behind its verb.

Pure text. Knows no solution and no statement. A sentence with two numbers that it does not decide between states none.
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import gcd

from treepref.tasks.numbers import NUMBER, spelled_number, tidy, value_of

MAX_SENTENCE = 2000
"""Longer sentences are cut."""

CLAUSE_END = re.compile(
    r"""\s?;|\s\(|,\s(?=[a-z])|\s(?:because|since|which|as\ (?!well)|so\ that|after|when|if|given|but|although|though
    |while|where|considering|for\ (?!each|every|all|the))\b|[.!?…](?=\s|\Z)|\s[-–—]\s(?=[A-Za-z])""",
    re.IGNORECASE | re.VERBOSE,
)
"""Where the first clause behind "the answer is" ends."""
CONCLUSION = re.compile(
    r""",?\s(?:so|thus|therefore|hence|and\ since|and\ so|this\ means|meaning|which\ (?:means|makes|leaves|gives|brings)
    )\b    (?:\ that\b)?|,\sfor\sa\s(?:grand\s)?total\sof\b|:\s(?=[A-Za-z])""",
    re.IGNORECASE | re.VERBOSE,
)
"""What stands before a sentence's conclusion."""
_REASON = re.compile(
    r"""\s?;|\s\(|\s(?:because|since)\b|,\s(?:as|although|though|while|whereas|who|whose|whom|where|when)\b
    |,?\s(?:i\.e\.|that\ is,|or\ equivalently|or\ about)""",
    re.IGNORECASE | re.VERBOSE,
)
_ASIDE = re.compile(r",\s(?:which|this)\s(?:is|equals|gives|comes\sto|are)\s", re.IGNORECASE)
_RESTATED = re.compile(r"\A(?P<first>.*\d\S*\s[A-Za-z][^,\d]*),\sor\s(?P<second>[-\d.,$/]+\s[A-Za-z][^,\d]*)\Z")
_IN_TOTAL = re.compile(r",\s([$€£]?\d[\d,.]*)(?:\s\w+){0,2}\s(?:in\stotal|altogether|in\sall)\W*\Z", re.IGNORECASE)
_LEAD = re.compile(
    r"""(?:=>|->|[→⇒\s:=,"'“”‘’*]|\b(?:a|the|an|grand|total|sum|of|equal|to|simply|just|exactly|therefore|thus|then|still|that
    |indeed|also|approximately|about|around|roughly|usd|us|rs\.?|eur|is|be|it|there|are|number|value|answer|final|so
    |hence|overall|altogether|finally|in\ (?:total|all|the\ end|conclusion))\b|≈|[A-Za-z]\w?\ ?=)*""",
    re.IGNORECASE | re.VERBOSE,
)
"""What may stand before a number that a statement begins with."""
_SPELLED = r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty)\b"
_OTHER_NUMBER = re.compile(
    rf"""\A\s?[(,;]?\s?(?:[A-Za-z°%]+\s){{0,4}}?
        (?:or|and|to|plus|minus|times|through|vs|versus|divided\ by|out\ of(?!\ (?:the|all)\b))
        \s(?:maybe\s|possibly\s|perhaps\s|even\s|the\s)?\(?[$€£]?(?:\d|{_SPELLED})
    |\A(?:\s[A-Za-z]+){{0,3}}[,;]\s?(?:possibly\s|maybe\s|perhaps\s)?[$€£]?\d
    |\A\s?(?:hours?|hrs?|h|feet|foot|ft|minutes?|min|m|pounds?|lbs?|days?|weeks?|years?|dollars?)\s?(?:and\s)?\d
    |\A(?:\s[A-Za-z]+){{0,3}}\s[+*×]\s?\d|\A\s(?:in|per|of)\s\d|\A(?:\s\w+){{0,2}}\s(?:less|more|fewer|greater)\sthan\s\d""",
    re.IGNORECASE | re.VERBOSE,
)
"""A second number beside the first: '5 or 6', '5 (or six)', '5 feet 6 inches', '2 less than 10'."""
_MORE_OF_IT = re.compile(
    r"""\A\s?(?:and\ (?:a\s)?)?(?:half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?
    |tenths?
    |dozens?|squared|cubed|remainder|R\s?\d|pi\b|π|√|or\ (?:more|less|so)|times\ (?:the|as)|%\ of)\b
    |\A(?:st|nd|rd|th|k|K|M|B|bn|am|pm)\b|\A\s(?:is|was)\ (?:wrong|incorrect|not)\b""",
    re.VERBOSE,
)
"""What makes a number another one: '5 dozen', '5 and a half', '5th', '5k', '5π'."""
_GOES_ON_AS_SUM = re.compile(
    r"\A\s?(?:[+*^=×÷<>≤≥±√'’]|/\s?[\d(\\]|-\s?[\d$(\\]|x\s?\d|:\s?\d|!\w|,\s?\d|\\(?!text)|_\d|π)|\A\s\d"
)
_IN_A_WORD = re.compile(r"[A-Za-z]{4,}|[xyznieabc](?![A-Za-z])|\.\d|\d")
_BEFORE_IT = re.compile(
    r"""(?:[<>≤≥±√~]|\\(?:sqrt|pm|ge|geq|le|leq|gt|lt|log|ln|overline|sin|cos|tan)\b\{?
    |\b(?:log|ln|sqrt|half\ of|twice|double
    |square\ of|never|anything\ but|page|steps?|chapter|problem|question|line|than|over|under
    |within(?:\ another)?|\w\()\s?)\s?\Z""",
    re.IGNORECASE | re.VERBOSE,
)
"""What stands before a number that is not the answer itself: '> 5', '√5', 'twice 5', 'step 5'."""
_NEGATIVE = re.compile(r"(?:minus|negative)\s(?=[$€£]?\d|[a-z])", re.IGNORECASE)
_SCALE = re.compile(r"\s(hundred|thousand|million|billion)\b", re.IGNORECASE)
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_HEDGED = re.compile(
    r"""\b(?:not\ (?:the\ (?:answer|right|correct)|enough|sure|possible|clear|certain
    |given|specified|known|necessarily|equal|how|[$€£]?\d)
    |(?:do|does|did)(?:\ not|n['’]?t)\ (?:know|have\ enough|give|provide|say|tell|specify)
    |either|neither|nor|unknown|cannot|unclear|maybe|perhaps|possibly|between|somewhere|at\ (?:least|most)
    |(?:more|less|fewer|greater|larger|smaller|rather)\ than|up\ to|depends?|suppose|assum\w+
    |think\ the|undefined|impossible|sorry|wrong|incorrect|doubt
    |enough\ information|might|could|if|instead|(?:can|couldn|isn|aren|wasn|won)['’]?t)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_CONTRAST = re.compile(r"\bnot\s[^.;]*?\bbut\s(?:rather\s)?", re.IGNORECASE)
_VERB = re.compile(
    r"""(?:\b(?:is|are|was|were|be|equals?|makes?|totals?|gives?|leaves?|has|have|had|gets?|costs?|pays?|paid|earns?
    |earned|needs?|spent|spends?|takes?|took|sold|bought|saves?|saved|left|remain(?:s|ing)?|total\ of|in\ total
    )\b|:)\s?""",
    re.IGNORECASE | re.VERBOSE,
)
_CIRCUMSTANCE = re.compile(
    r"""\S+\s[^.,\d+*/-]*\b(?:for|in|after|from|of|per|on|with|at|by|over|during|within|across|each|than
    |every|to\ [a-z]+)\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""A number with words behind it that lead to another one, of the circumstances: '11 players on Team 2'."""
_RESOLVED = re.compile(
    r"=|\b(?:in total|altogether|in all|total of|so|thus|therefore|which (?:is|makes|equals))\b", re.IGNORECASE
)
_SUBJECT = re.compile(
    r"\S+(?:\s(?:out\sof\s(?:the|all)\s\d+\s)?\w+){1,4}?\s(?:are|were|is|was|remain|will|can)\b(?!\s(?:left\s)?[$€£]?\d)",
    re.IGNORECASE,
)
"""A number that a sentence begins with, and a verb behind it: '8 toys are given to each of the 5 children'."""
_NUMBERING = re.compile(r"\A\W*(?:(?:step|part)\s\d+\s?[:.)-]|\d{1,2}[.)](?=\s\S))\s*", re.IGNORECASE)


def leading_number(text: str) -> Fraction | None:
    """The number that a text starts with, where what follows it are words: '72 clips', '-$5.', '72, in total'.

    None where a computation goes on ('5 + 3') or is still to be done ('40/5'), or a second number stands beside it
    ('5 or 6', '3 to 4').
    """
    text = tidy(text[:MAX_SENTENCE])
    if negative := _NEGATIVE.match(text):
        value = leading_number(text[negative.end() :])
        return None if value is None else -abs(value)
    found = NUMBER.match(text)
    if found and found["bottom"] and _unreduced(found):
        return None
    value, end = (value_of(found), found.end()) if found else (spelled_lead(text) or (None, 0))
    if value is None:
        return None
    if scale := _SCALE.match(text[end:]):
        value, end = value * _SCALES[scale[1].lower()], end + scale.end()
    rest = text[end:]
    if any(form.match(rest) for form in (_GOES_ON_AS_SUM, _OTHER_NUMBER, _IN_A_WORD, _MORE_OF_IT)):
        return None
    return value


def _unreduced(found: re.Match[str]) -> bool:
    """Whether 'a/b' is a division that was not carried out: '40/5', '125/10'."""
    parts = [found[side].removesuffix(".") for side in ("top", "bottom")]
    if not all(map(str.isdigit, parts)) or len(found.group()) > 40:
        return False
    top, bottom = map(int, parts)
    return bottom > 1 and top > bottom and gcd(top, bottom) > 1


def stated_number(text: str) -> Fraction | None:
    """The number that stands behind "the answer is": at the start of the text, else as `sentence_number` finds it."""
    text = tidy(text[:MAX_SENTENCE])
    bare = without_lead(text)
    if re.match(r"not\b", bare, re.IGNORECASE):
        contrast = _CONTRAST.match(bare)
        return leading_number(bare[contrast.end() :]) if contrast else None
    value = leading_number(bare)
    if value is None and (NUMBER.match(bare) or spelled_lead(bare)) and not _RESOLVED.search(text):
        return None  # the number that it begins with is not all: '5 or 6'
    return sentence_number(text) if value is None else value


def sentence_number(text: str) -> Fraction | None:
    """The one number that a sentence comes to: behind its last '=', alone in it, or behind its verb.

    A conclusion counts before what it is drawn from ("…, so she needs 7 boxes"); reasons and asides do not count.
    """
    text = without_numbering(tidy(text[:MAX_SENTENCE]))
    if total := _IN_TOTAL.search(text):
        return leading_number(total[1])
    parts = [part for part in CONCLUSION.split(text) if has_digit(part)]
    clause = parts[-1] if parts else text
    last = clause.rpartition(", ")[2]
    if has_digit(last) and _HEDGED.search(clause):
        clause = last
    return _clause_number(clause)


def without_numbering(line: str) -> str:
    """A line without the number that a list or a step gives it: '2. …', 'Step 2: …'."""
    return _NUMBERING.sub("", line) or line


def _clause_number(clause: str) -> Fraction | None:
    clause = re.sub(r"=>|->|→|⇒|\\(?:rightarrow|implies|Rightarrow)", " ", clause)
    if restated := _RESTATED.match(clause.rstrip(".! ")):
        return leading_number(restated["second"])
    head = _REASON.split(clause, maxsplit=1)[0]
    clause = head if has_digit(head) else clause
    if (contrast := _CONTRAST.search(clause)) and has_digit(contrast.group()):
        return leading_number(clause[contrast.end() :])
    if _HEDGED.search(clause) or re.search(r"\d\s?or\s\D{0,3}\d", clause):
        return None
    aside = _ASIDE.search(clause)
    if aside:
        value = _clause_number(clause[: aside.start()])  # '$50, which is 25 % off'
        return leading_number(clause[aside.end() :]) if value is None else value  # '5 + 3, which is 8'
    if "=" in clause:
        return leading_number(clause.rpartition("=")[2])
    starts = number_starts(clause)
    if len(starts) == 1:
        if _BEFORE_IT.search(clause[: starts[0]]):
            return None
        sign = re.search(r"(?:minus|negative)\s\Z", clause[: starts[0]], re.IGNORECASE)
        return leading_number(clause[sign.start() if sign else starts[0] :])
    bare = without_lead(re.sub(r"\A.{0,60}?\bthat\s(?=[$€£]?\d)", "", clause))
    if _SUBJECT.match(bare) and NUMBER.match(bare):
        return leading_number(bare)
    return _behind_verb(clause, starts)


def _behind_verb(clause: str, starts: list[int]) -> Fraction | None:
    """The number right behind the clause's last verb or colon, if no other counts: 'The 3 pens cost $45.'"""
    for verb in reversed(list(_VERB.finditer(clause))):
        bare = without_lead(clause[verb.end() :])
        if NUMBER.match(bare):
            later = sum(start >= verb.end() for start in starts)
            return leading_number(bare) if later == 1 or _CIRCUMSTANCE.match(bare) else None
    return None


def without_lead(text: str) -> str:
    """A text behind words that only lead up to a number: 'a total of 5' → '5'."""
    found = _LEAD.match(text)
    return text[found.end() :] if found else text


def has_digit(text: str) -> bool:
    return re.search(r"\d", text) is not None


def has_number(text: str) -> bool:
    """Whether a text holds digits, or starts with a number in words."""
    text = _NEGATIVE.sub("", text, count=1) if _NEGATIVE.match(text) else text
    return re.search(r"\d|[¼-¾⅐-⅞]", text) is not None or spelled_lead(text) is not None


def number_starts(text: str) -> list[int]:
    """Where numbers start in a tidy text; letters stuck to digits ('x2', 'B12') make none."""
    starts = [found.end() - len(found.group().lstrip()) for found in NUMBER.finditer(text)]
    return [start for start in starts if not re.match(r"[\w^_]", text[max(0, start - 1) : start])]


def spelled_lead(text: str) -> tuple[Fraction, int] | None:
    """(value, end) of a number in words at the start of the text: 'twenty-one apples'. 'one of them' is none."""
    words = [word.casefold() for word in re.findall(r"[A-Za-z]+(?:-[A-Za-z]+)*", text[:80])]
    found = spelled_number(words)
    if found is None or not re.match(r"[A-Za-z]", text):
        return None
    end = 0
    for word in words[: found[1]]:
        end = text.casefold().index(word, end) + len(word)
    if found[0] in (0, 1) and re.match(r"\s(?:of|who|that|which|can|could|should|more|way|thing|to)\b", text[end:]):
        return None
    return Fraction(found[0]), end


def spelled_number_in(line: str) -> Fraction | None:
    """The only number in words of a line without digits; 'one' says too little."""
    line = line[-MAX_SENTENCE:]
    values, end = [], 0
    for word in re.finditer(r"[A-Za-z]+(?:-[A-Za-z]+)*", line):
        if word.start() >= end and (found := spelled_lead(line[word.start() :])) is not None:
            negative = re.search(r"\b(?:minus|negative)\s\Z", line[: word.start()], re.IGNORECASE)
            values.append(-found[0] if negative else found[0])
            end = word.start() + found[1]
    return values[0] if len(values) == 1 and values[0] not in (0, 1) and not _HEDGED.search(line) else None
