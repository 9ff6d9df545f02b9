"""Reading the final answer of a solution as a number, as LaTeX or as text, and its one canonical form.

One reader serves verdicts and votes alike. Pure text: knows no problem and no gold answer. What is no clear answer
('5 or 6', '5 + 3', 'not 7') reads as none.
"""

from __future__ import annotations

import re
from fractions import Fraction

from treepref.arithmetic.expressions import ExpressionError, evaluate, format_fraction, numbers_in, parse_expression
from treepref.tasks import latex
from treepref.tasks.number_sentences import (
    CLAUSE_END,
    CONCLUSION,
    MAX_SENTENCE,
    has_digit,
    has_number,
    leading_number,
    sentence_number,
    spelled_number_in,
    stated_number,
    without_lead,
    without_numbering,
)
from treepref.tasks.numbers import canonical_number, tidy
from treepref.tasks.statements import (
    MARK,
    Statement,
    doubted,
    final_part,
    in_brackets,
    lines_of,
    retracted,
    sentences,
    statements,
    tail,
    without_emphasis,
    without_remarks,
)

_CALCULATION = re.compile(r"<<[^<>=]*=[^<>]*>>")
_MATH_SEGMENT = re.compile(r"\$\$(.+?)\$\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|(?<!\\)\$((?:\\.|[^$\\])+)\$")
_GOES_ON = re.compile(r"\A\W*(?:then|next|now|after\s(?:that|this)|but|however|first|second|finally)\b", re.IGNORECASE)
_CIRCUMSTANCE = re.compile(
    r"\s*(?:i\.e\.|that is|attained|achieved|obtained|reached|when|where|with|half|twice|since|because|which|for|if|as"
    r"|while|by|using)\b",
    re.IGNORECASE,
)
_NUMERIC_FRACTION = re.compile(r"\\[dtc]?frac\s?\{\s?\d+\s?\}\s?\{\s?\d+\s?\}")
_ALTERNATIVES = re.compile(r",|;|\\q?quad(?![A-Za-z])|\\text\s?\{\s?,?\s?(?:and|or)\s?\}|\s(?:and|or)\s")
_DENIED = re.compile(
    r"\b(?:not|less\sthan|more\sthan|greater\sthan|at\s(?:least|most)|wrong|incorrect)\b", re.IGNORECASE
)
_DOUBTFUL = re.compile(
    r"\b(?:not|never|could|may|might|maybe|perhaps|possibly|probably|if|whether|no longer)\b|n['’]t\b", re.IGNORECASE
)
_COMMAND = re.compile(
    r"\\(?!text|mathrm|textbf|textit|mbox|mathbf|times|cdot|circ|left|right|approx|quad|qquad)[A-Za-z]+"
)
_JOINS = re.compile(r"[\s,;.&]*(?:\b(?:and|or)\b)?[\s,]*")
_ITEM = re.compile(r"(?:\d{1,2}[.)]|[-*•+])\s+(\S.{0,60})")
_QUOTES = "\"'“”‘’`«»"


# --- numbers


def read_number(text: str, delimiter: str = "\n") -> str | None:
    """The number that a solution states, in canonical form; None where it states none, or not clearly one.

    The last statement counts (behind '####', in a box, behind "the answer is" …). Where nothing states an answer, the
    last line with a number is read: what follows its last '=', its only number, or the number behind its verb.
    """
    text = without_emphasis(without_calculations(final_part(text)))
    for statement in reversed(statements(text)):
        said = _statement_text(text, statement)
        if said is None or (statement.kind == "mark" and not said):
            return None
        if not has_number(said) or (statement.kind == "mark" and re.match(r"(?:step|part|case)\b", said, re.I)):
            continue
        value = boxed_number(said) if statement.kind == "box" else stated_number(said)
        rest = _behind(text, statement, said)
        if _taken_back(statement, rest):
            value = _unstated_number(rest, delimiter)
        return None if value is None else canonical_number(value)
    value = _unstated_number(text, delimiter)
    return None if value is None else canonical_number(value)


def _statement_text(text: str, statement: Statement) -> str | None:
    """What a statement says: the boxes, the line behind it, or the sentence before it. None: a box that never ends."""
    if statement.kind == "box":
        return latex.last_boxed(text)
    if statement.kind == "postfix":
        before = text[: statement.start].rpartition("\n")[2]
        if r"\boxed" in before:
            return latex.last_boxed(text)
        return sentences(before)[-1] if before.strip() else ""
    return tail(text, statement)


def _behind(text: str, statement: Statement, said: str) -> str:
    """The text after what a statement says in its first clause."""
    start = text.find(said, statement.end) if said else -1
    if start < 0:
        return text[statement.end :]
    cut = CLAUSE_END.search(said)
    return text[start + (cut.start() if cut else len(said)) :]


def _taken_back(statement: Statement, rest: str) -> bool:
    """Whether what follows a statement doubts it; what a box or '####' holds stands until it is retracted."""
    return retracted(rest) if statement.kind in ("box", "mark", "tag") else doubted(rest)


def boxed_number(text: str) -> Fraction | None:
    """The number in a box, units aside; None for several, and for what a command makes of it ('\\sqrt{5}')."""
    value = latex.rational(text) if not latex.pending(text) else None
    if value is not None and len(latex.split_list(text)) < 2:
        return value
    return None if _COMMAND.search(_NUMERIC_FRACTION.sub("", text)) else stated_number(text)


def _unstated_number(text: str, delimiter: str) -> Fraction | None:
    """What the last line with a number comes to; None where what follows doubts it or goes on."""
    for line in reversed(without_remarks(lines_of(text, delimiter))):
        line = without_numbering(tidy(line[-MAX_SENTENCE:]))
        said = [part for part in sentences(line) if has_digit(part) and not in_brackets(part)]
        if said:
            after = line.rpartition(said[-1])[2]
            return None if doubted(after) or _GOES_ON.match(after) else sentence_number(said[-1])
        if (value := spelled_number_in(line)) is not None:
            return value
        if doubted(line):
            return None
    return None


# --- LaTeX


def read_latex(text: str, delimiter: str = "\n") -> str | None:
    r"""The LaTeX that a solution states, as written: the last boxes, else what follows the last "the answer is".

    Where nothing states an answer: what follows the last '=' of the last line with a formula, or its only formula.
    """
    text = without_emphasis(without_calculations(final_part(text)))
    found = statements(text)
    boxed = any(statement.kind == "box" for statement in found)
    for statement in reversed(found):
        said = _statement_text(text, statement)
        if said is None:
            return None
        if statement.kind != "box":
            said = _formula(said)
        if said and not (boxed and statement.kind == "phrase" and not re.search(r"[\d\\$]", said)):
            rest = _behind(text, statement, said)
            return _unstated_formula(rest, delimiter) if _taken_back(statement, rest) else said
    return _unstated_formula(text, delimiter)


def _formula(line: str) -> str:
    """The formula that a line states: the LaTeX of its first sentence, else its first clause, if it holds a number."""
    line = next(iter(sentences(line)), line)[:MAX_SENTENCE]
    segments = list(_MATH_SEGMENT.finditer(line))
    if not segments:
        bare = without_lead(line)
        if re.match(r"not\b", bare, re.IGNORECASE):
            return ""
        cut = CLAUSE_END.split(bare, maxsplit=1)[0].strip(_QUOTES + " .")
        value = leading_number(cut)
        return cut if value is None or not re.search(r"\s[A-Za-z]", cut) else canonical_number(value)
    if _DENIED.search(line[: segments[0].start()]) or re.match(r"\s*is\s(?:not|wrong)", line[segments[0].end() :]):
        return ""
    content = _formulas(line)
    joined = [content[0]]
    for before, found, part in zip(segments, segments[1:], content[1:], strict=False):
        if not _JOINS.fullmatch(line[before.end() : found.start()]):
            break
        joined.append(part)
    return ", ".join(_right_side(part) for part in joined)


def _right_side(formula: str) -> str:
    """What a formula comes to: 'a = 2 + 3 = 5' → '5', 'x = 5 \\text{ or } x = 6' → '5, 6'; other equations stay."""
    parts = [part for part in _ALTERNATIVES.split(formula) if part.strip()]
    if len(parts) > 1 and all("=" in part for part in parts):
        return ", ".join(map(_right_side, parts))
    head, sign, last = formula.rpartition("=")
    if not sign or head.endswith(("\\n", "<", ">", "!")):
        return formula
    variables = re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", last))
    left = re.sub(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|\\[A-Za-z]+", "", head)
    computed = "=" in head or not re.search(r"[A-Za-z]", left)
    return last.strip() if computed or not (variables or re.search(r"[+-]", left)) else formula


def _unstated_formula(text: str, delimiter: str) -> str | None:
    """What the last line with a number or a formula comes to: what stands behind its last verb, or its only formula."""
    for line in reversed(without_remarks(lines_of(text, delimiter))):
        said = [part for part in sentences(line[-MAX_SENTENCE:]) if not in_brackets(part)]
        if not said or doubted(said[-1]):
            return None
        if re.search(r"\bis not the\b|\bnot\s\$", said[-1]):
            return None
        parts = re.split(r",\s(?=[a-z])", CONCLUSION.split(said[-1])[-1])
        parts = [part for part in parts if has_digit(part) or _formulas(part)]
        parts = [part for part in parts if not _CIRCUMSTANCE.match(part)] or parts
        parts = [part for part in parts if re.search(r"=|\b(?:is|are|get|have|has|equals?)\b", part)] or parts[:1]
        if parts:
            return _stated_formula(parts[-1])
    return None


def _stated_formula(clause: str) -> str | None:
    """The formula that a clause states: behind its last verb, alone in it, or the last one where it is 'n = 6'."""
    formulas = _formulas(clause)
    for verb in reversed(list(re.finditer(r"\b(?:is|are|equals?|be|gives?|get|has|have)\b\s?", clause))):
        behind = without_lead(clause[verb.end() :])
        if _DENIED.match(behind):
            return None
        if found := _MATH_SEGMENT.match(behind):
            return None if _formulas(behind[found.end() :]) else _right_side(_formulas(behind)[0])
        if (value := leading_number(behind)) is not None:
            return canonical_number(value)
    assigned = [re.match(r"\\?[A-Za-z]\w*\s*=", formula) is not None for formula in formulas]
    if len(formulas) == 1 or (formulas and assigned[-1] and not any(assigned[:-1])):
        return _right_side(formulas[-1])
    value = None if formulas else sentence_number(clause)
    return None if value is None else canonical_number(value)


def _formulas(text: str) -> list[str]:
    """Contents of a text's LaTeX delimiters."""
    found = _MATH_SEGMENT.findall(text)
    return [next(part for part in parts if part).strip() for parts in found]


# --- text


def stated_words(text: str) -> str | None:
    """What a solution states that is no number: the answer 'none' where a number is asked for. None: it states none."""
    text = without_emphasis(without_calculations(final_part(text)))
    found = statements(text)
    said = _statement_text(text, found[-1]) if found else None
    return None if not said or has_number(said) else first_clause(said)


def read_text(text: str, delimiter: str = "\n") -> str | None:
    """What a solution states, as text: behind the last '####', in the last box, behind "the answer is", else its last
    line. A reason behind it (", because …", "; …", "(…)") and further sentences are left out."""
    text = without_emphasis(without_calculations(final_part(text)))
    for statement in reversed(statements(text)):
        said = _statement_text(text, statement)
        if said is None:
            return None
        if statement.kind == "mark":
            return said.strip() or None
        if said:
            rest = _behind(text, statement, said)
            return (
                None
                if _taken_back(statement, rest)
                else (said if statement.kind == "box" else _yes_or_no(said) or first_clause(said))
            )
    lines = without_remarks(lines_of(text, delimiter))
    if not lines or doubted(sentences(lines[-1])[-1]):
        return None
    items = [found[1] for line in lines if (found := _ITEM.fullmatch(line))]
    if len(items) > 1 and _ITEM.fullmatch(lines[-1]) and not any(map(_ITEM.fullmatch, lines[: -len(items)])):
        return ", ".join(items)
    return _unstated_text(lines[-1])


def _unstated_text(line: str) -> str:
    """What a line says that states its answer in no such words: all of a short one, else what follows its last verb."""
    if word := _yes_or_no(line):
        return word
    said = CONCLUSION.split(sentences(line)[-1])[-1].strip()
    if _DOUBTFUL.search(said):
        return line  # what it denies or leaves open is not its answer
    parts = re.split(r"(?:\s(?:is|are|was|were|be|called|named|at|on|leaves)|\s?[=:])(?=\s)", first_clause(said))
    return parts[-1] if len(parts) > 1 and len(said.split()) > 2 and parts[-1].strip() else line


def _yes_or_no(text: str) -> str | None:
    """The 'yes' or 'no' that a text begins with."""
    found = re.match(r"\W*(yes|no|true|false)\b(?=[,.;:!]|\s[-–—])", text, re.IGNORECASE)
    return found[1] if found else None


def first_clause(text: str) -> str:
    """A text up to where a reason, an aside or the next sentence begins; one clause stays as it is."""
    said = next(iter(sentences(text)), text).strip()
    cut = re.split(
        r"\s?;\s|,?\s(?:because|since|as\s(?!well))\b|\s\(|,\s(?=(?:which|so|who|whose|where|when)\b)|\s[–—]\s",
        said,
        maxsplit=1,
    )[0]
    return cut.strip() or said


# --- strict: only the form in which a task's own solutions state their answer


def after_mark(text: str, *, whole: bool = False) -> str | None:
    """What follows the last '####' on its line (`whole`: up to the end of the text)."""
    _, mark, rest = text.rpartition(MARK)
    rest = rest.strip() if whole else rest.strip(" \t").partition("\n")[0].strip()
    return rest if mark and rest else None


def after_phrase(text: str) -> str | None:
    """What follows the last "the answer is", "answer:" and the like."""
    found = [statement for statement in statements(text) if statement.kind == "phrase"]
    return (tail(text, found[-1]) or None) if found else None


def marked_number(text: str) -> str | None:
    """GSM8K's own form: the number behind the last '####'."""
    said = after_mark(without_calculations(text))
    value = leading_number(said) if said else None
    return None if value is None else canonical_number(value)


def without_calculations(text: str) -> str:
    """GSM8K's calculator annotations taken out: 'it is <<48/2=24>>24' → 'it is 24'."""
    return _CALCULATION.sub("", text)


# --- countdown


def canonical_expression(text: str) -> str | None:
    """'164 from 6 34 54 66 98': value and numbers used, so that all solutions of a countdown are one answer."""
    try:
        expression = parse_expression(text)
        value, numbers = evaluate(expression), sorted(map(abs, numbers_in(expression)))
    except ExpressionError:
        return None
    return f"{format_fraction(value)} from {' '.join(map(format_fraction, numbers))}"
