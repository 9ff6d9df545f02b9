"""Where in a solution its answer is stated: behind '####', in a box, behind "the answer is", or nowhere in words.

Pure text. Knows no kind of answer and no gold: what a statement says is for answers.py and choice_answers.py to read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MARK = "####"
"""Stands before the final answer in GSM8K's solutions."""

PHRASE = re.compile(
    r"""(?<!\w)(?:final[ ]|correct[ ]|right[ ]|best[ ]|numerical[ ]|exact[ ])?
    (?:answer|ans)
    (?:[ ]to[ ](?:the|this|that|your|our)[ ](?:[\w-]+[ ]){0,4}?(?:question|problem|exercise|puzzle)|[ ]here)?
    (?:"?[ ]?(?:[:=]|[ ][-–][ ])
      |[ ](?:therefore[ ]|then[ ]|thus[ ]|simply[ ]|just[ ])?(?:is|was|are|must[ ]be|should[ ]be|would[ ]be|will[ ]be|
        comes?[ ](?:out[ ])?to|equals?|becomes?)(?![\w'’])
      |[ ]?\#*[ ]?$)
    [ ]?:?
    |答案(?:是|为|:|：)|\br[ée]ponse[ ](?:est|:)|\brespuesta[ ](?:es|:)|\bantwort[ ](?:ist|lautet|:)""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
"""Introduces an answer: what follows on its line states it, or the next line where nothing follows."""
_STATEMENT = re.compile(
    rf"(?P<mark>{re.escape(MARK)}(?!\#))|(?P<box>\\(?:boxed|fbox)(?![A-Za-z]))|(?P<tag><answer>)|(?P<phrase>{PHRASE.pattern})"
    r"|(?P<postfix>(?<=\s)(?:is|are)[ ](?:the|our|my)[ ](?:final[ ]|correct[ ]|right[ ])?answer(?![ ]?[\w:=]))",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_NEXT_PROBLEM = re.compile(
    r"^[^\w\n]{0,12}(?:(?:new|next|another|follow[- ]up)[ ])?"
    r"(?:question|problem|exercise|q|user|human|instruction|input)"
    r"[ ]?\#?\d*[ ]?(?:[:.]|$)",
    re.IGNORECASE | re.MULTILINE,
)
_NEXT_TURN = re.compile(r"(?:<\|im_start\|>|<\|user\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\])")
_SHOWN = re.compile(
    r"=\s*[-$€£\\({]*\d|\b(?:correct|right|best)[ ](?:option|choice|answer)\b|\([A-H]\)|^[ ]*[A-H](?:[.)]|[ ]*$)", re.M
)
"""A result or a choice: what a solution shows without stating it in so many words."""
_SPECIAL = re.compile(r"<\|[\w ]{1,40}\|>|</?s>|<(?:eos|end_of_turn|endoftext)>|</?answer>\s*\Z")
_THINKING = re.compile(r"\A.*</think>", re.DOTALL | re.IGNORECASE)
_DOUBT = re.compile(
    r"""\b(?:wait|hmm+|oops|actually|correction|scratch[ ]that|on[ ]second[ ]thought|not[ ]sure|unsure|my[ ]mistake
    |(?:i|we)[ ](?:have[ ])?(?:made|forgot|miscounted|misread)|mistake
    |that(?:[ ]i|['’])s[ ](?:wrong|not[ ]right|incorrect)
    |let[ ]me[ ](?:re|double|check|correct|fix|try)|(?<!\w)no[,:]?[ ](?=(?:it|that|the|wait)\b)
    |sorry|i[ ]mean|or[ ]rather)\b|[.?!,;][ ]no[,.]""",
    re.IGNORECASE | re.VERBOSE,
)
_RETRACTION = re.compile(
    r"\b(?:wait|oops|scratch that|my mistake|(?:i|we) (?:have )?made an? (?:mistake|error)"
    r"|that(?: i|['’])s (?:wrong|incorrect|not right)|sorry)\b"
    r"|(?:[.?!\n]|\A)\s?actually\b|(?:[.?!,;\n]|\A)\s?no[,.]",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"(?:\b(?:not|never|doubt|suppos\w+|assum\w+|if|whether|unless|wrong|incorrect"
    r"|(?:may|might|could) think)|n['’]t)\b",
    re.IGNORECASE,
)
_CHECK = re.compile(
    r"\W*(?:(?:let['’]?s|let us|to|we can|now)\s(?:check|verify|double[- ]check)|check(?:ing)?|verif(?:ication|y|ying)"
    r"|double[- ]check(?:ing)?)\b",
    re.IGNORECASE,
)
"""Begins a paragraph that checks an answer."""
_REMARK = re.compile(
    r"\W*(?:note|n\.b\.|check|checking|verification|verify|verifying|explanation|remark|p\.s|let me know"
    r"|i hope|hope this|feel free"
    r"|if you (?:have|need|want|would)|please|thank|good luck|is there anything|would you like|happy to)\b",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"`+|\*{1,3}|(?<!\w)__+(?=\S)|(?<=\S)__+(?!\w)")
_HEADING = re.compile(r"^[ \t]*\#{1,6}(?:[ \t]+|$)", re.MULTILINE)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|rs|no|approx|vs|dr|mr|mrs|ms|st|mt|jr|sr|fig|eq|[ap]\.m|e\.g|i\.e|u\.s)\.$", re.I
)
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)]{0,2}\s+(?![=+*/^-]\s?[\d$\\])")


MAX_CHARS = 40_000
"""Only so much of a text's end is read."""
MOST_STATEMENTS = 20
"""Only so many statements are looked at, from the last on: an answer is not hidden among more."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A place that states an answer."""

    kind: str
    """`mark` ('####'), `box`, `tag` ('<answer>'), `phrase` ("the answer is") or `postfix` ("18 is the answer")."""
    start: int
    """Where it begins in the text."""
    end: int
    """Where what introduces the answer ends; the answer follows."""


def final_part(text: str) -> str:
    """The part of a model's text that counts: no thinking, no end-of-text tokens, no further problem of its own making.

    What a model goes on with after its answer ('Question: …', a new turn) is another problem's, and is cut off where
    what stands before it states an answer or shows a result.
    """
    text = _THINKING.sub("", text)
    text = text.partition("<think>")[0][-MAX_CHARS:]  # thinking that never ended is no answer
    text = _NEXT_TURN.split(text.strip(), maxsplit=1)[0] or text
    ends = []
    if stated := next((found for found in _STATEMENT.finditer(text) if not _mentioned(found)), None):
        ends += [found.start() for found in (_NEXT_PROBLEM.search(text, stated.end()),) if found]
    if shown := _SHOWN.search(text):  # a result on the way is no answer: here only a new paragraph is a new problem
        after = (found.start() for found in _NEXT_PROBLEM.finditer(text, shown.end()))
        ends += [start for start in after if text[max(0, start - 2) : start].count("\n") > 1 or start == 0][:1]
    text = text[: min(ends, default=len(text))]
    return _SPECIAL.sub("", text).strip()


def without_emphasis(text: str) -> str:
    """Markdown's stars, underlines, backticks and heading signs gone; GSM8K's '####' before an answer stays."""
    text = _EMPHASIS.sub(lambda found: found.group() if _is_sign(text, *found.span()) else "", text)
    return _HEADING.sub(lambda found: f"{MARK} " if found.group().strip() == MARK else "", text)


def _is_sign(text: str, start: int, end: int) -> bool:
    """Whether stars are a product or a power: '12 * 5', '2**3', '5* 100', 'x**2'; not in '40 **40**'."""
    if text[start] != "*":
        return False
    before, behind = text[start - 1 : start], text[end : end + 1]
    if (before + behind).isspace() and len(before + behind) == 2:
        return True  # ' * ' is emphasis of nothing
    left, right = text[max(0, start - 3) : start].rstrip(" ")[-1:], text[end : end + 3].lstrip(" ")[:1]
    if end - start > 1 and (not before.strip() or not behind.strip()):
        return False  # '**' opens or closes at a blank
    product = (left.isdigit() or left in list(")}")) and (right.isdigit() or right in list("(\\{"))
    return product or (before.isalnum() and behind.isalnum() and end - start < 3)


def statements(text: str) -> list[Statement]:
    """The places that state an answer, in order; of many the last MOST_STATEMENTS."""
    found = (match for match in _STATEMENT.finditer(text) if not _mentioned(match))
    return [Statement(match.lastgroup or "", *match.span()) for match in found][-MOST_STATEMENTS:]


def _mentioned(match: re.Match[str]) -> bool:
    """Whether an answer is spoken of and not stated: denied, doubted, supposed, or at a line's end and no heading."""
    if match.lastgroup == "phrase" and unmeant(match.string, match.start()):
        return True
    if match.lastgroup != "phrase" or re.search(r"[:=]|[ ](?:[-–]|[a-z]+)[ ]?:?\Z", match.group(), re.IGNORECASE):
        return False
    line = match.string[match.string.rfind("\n", 0, match.start()) + 1 : match.end()]
    return re.fullmatch(r"\W*(?:(?:the|final|correct)[ ])*answer\W*", line, re.IGNORECASE) is None


def unmeant(text: str, start: int) -> bool:
    """Whether the clause before `start` denies, doubts or supposes what follows: "I doubt that the answer is"."""
    before = re.split(r"[.!?;:\n]|,?\s(?:so|thus|therefore|hence|but|then)\b", text[max(0, start - 120) : start])[-1]
    return _SUPPOSED.search(before) is not None


def tail(text: str, statement: Statement) -> str:
    """What follows a statement's introduction: the rest of its line, or the next line that is not blank."""
    rest = text[statement.end :]
    if statement.kind == "tag":
        return rest.partition("</answer>")[0].strip()
    line, _, below = rest.partition("\n")
    line = line.strip(" \t:")
    if not re.search(r"\w", line) and statement.kind != "mark":
        line = next((part.strip(" \t>") for part in below.split("\n") if re.search(r"\w", part)), line)
        line = re.sub(r"\A(?:[-*•+]|\d{1,2}[.)])\s+(?=\S)", "", line)  # an item of a list
    return line


def doubted(text: str) -> bool:
    """Whether a text takes back what was said before it: "Wait, …", "Actually, …", "I made a mistake"."""
    return _DOUBT.search(text) is not None


def retracted(text: str) -> bool:
    """Whether a text takes back in so many words what was said before it; a remark that begins "Actually" does not."""
    return _RETRACTION.search(text) is not None


def sentences(line: str) -> list[str]:
    """A line's sentences. A full stop of an abbreviation, of an initial or in a number ends none."""
    found: list[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(line):
        if not _ABBREVIATION.search(line[max(start, end.start() - 10) : end.start()]):
            found.append(line[start : end.start()])
            start = end.end()
    return [part for part in [*found, line[start:]] if part.strip()]


def lines_of(text: str, delimiter: str = "\n") -> list[str]:
    """Lines that are not blank, without blanks at their ends; `delimiter` ends a line too."""
    lines = [line.strip() for part in text.split(delimiter) for line in part.splitlines()]
    return [line for line in lines if line]


def without_remarks(lines: list[str]) -> list[str]:
    """Lines without the pleasantries, notes and checks at their end; all of them where there is nothing else."""
    checks = (place for place, line in enumerate(lines) if place and _CHECK.match(line))
    end = next((place for place in checks if re.search(r"\d", "".join(lines[:place]))), len(lines))
    if _STATEMENT.search("\n".join(lines[end:])):  # the answer comes after the check
        end = len(lines)
    while end and (_REMARK.match(lines[end - 1]) or in_brackets(lines[end - 1])):
        end -= 1
    return lines[:end] or lines


def in_brackets(text: str) -> bool:
    """Whether a line or sentence is a remark in brackets as a whole; '(B)' is none."""
    text = text.strip().rstrip(".!")
    return len(text) > 14 and text.startswith("(") and text.endswith(")") and not re.match(r"\(\(?[A-Za-z]\)", text)


def last_line(text: str, delimiter: str = "\n") -> str | None:
    """The last line that is not blank."""
    return next(reversed(lines_of(text, delimiter)), None)
