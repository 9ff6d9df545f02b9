"""Multiple-choice problems: rows of six public data sets, the question with its choices, and solutions that end in one.

Knows the columns of ARC, OpenBookQA, CommonsenseQA, SciQ and AQuA. Knows no file, no split and no prompt. How a stated
choice is read from a text stands in choice_answers.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from treepref.blocks import lines_and_blocks
from treepref.tasks.choice_answers import ALPHABET, last_statement, read_choice, same_text, strict_choice
from treepref.tasks.files import BadRow, Parse, further, row_id, row_text
from treepref.tasks.rules import AnswerRule
from treepref.tasks.sources import Row
from treepref.types import Problem

_LABELLED = re.compile(r"\s*\(?([A-Za-z])\s*[).:]\s*(.*)", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\"“])")

SELF_EVALUATION = (
    "\nA teacher reads the reasoning above. These letters are verdicts, not choices of the question.\n"
    "(A) The reasoning is sound so far and leads to the right choice.\n"
    "(B) The reasoning has a mistake in it, or leads to a wrong choice.\n"
    "The teacher's verdict is ("
)


# --- one row → a problem


def parse_arc(row: Row, prefix: str) -> Problem:
    """ARC and CommonsenseQA: `question`, `choices` = {`text`: […], `label`: […]}, `answerKey`; also as their own files
    have it: `question` = {`stem`, `choices`: [{`text`, `label`}, …]}."""
    row = _as_on_the_hub(row)
    options, key = _listed(row)
    return _problem(row, prefix, row_text(row.data, "question"), options, key, [])


def parse_openbookqa(row: Row, prefix: str) -> Problem:
    """`question_stem`, `choices`, `answerKey`; `fact1`, the fact behind the question, in the subset `additional`."""
    options, key = _listed(row)
    fact = row.data.get("fact1")
    steps = [_sentence(fact)] if isinstance(fact, str) and fact.strip() else []
    return _problem(row, prefix, row_text(row.data, "question_stem"), options, key, steps)


def parse_sciq(row: Row, prefix: str) -> Problem:
    """`question`, `correct_answer`, `distractor1` to `distractor3`, `support` (may be empty).

    The data set has no order of choices: they are shuffled by a seed made of the row's own text, so the same row shows
    them in the same order in every file, split and run.
    """
    question = row_text(row.data, "question")
    right, *wrong = (row_text(row.data, key) for key in ("correct_answer", "distractor1", "distractor2", "distractor3"))
    options = [right, *wrong]
    Random("\n".join(["sciq", question, *options])).shuffle(options)
    support = row.data.get("support")
    steps = _SENTENCE_END.split(_one_line(support)) if isinstance(support, str) and support.strip() else []
    return _problem(row, prefix, question, options, options.index(right), steps)


def parse_aqua(row: Row, prefix: str) -> Problem:
    """`question`, `options` = ["A)…", …], `correct` (a letter), `rationale`.

    A last line of the rationale that only states the choice ("ANSWER:C") gives way to ours. A rationale that states
    another choice than `correct` is no solution: the problem keeps its answer alone.
    """
    question, written = row_text(row.data, "question"), row.data.get("options")
    if not isinstance(written, list) or not all(isinstance(option, str) for option in written):
        raise BadRow("'options' is not a list of texts")
    labels, options = [], []
    for option in written:
        found = _LABELLED.fullmatch(option)
        if found is None:
            raise BadRow(f"its choice {option[:40]!r} has no letter in front")
        labels.append(found[1])
        options.append(found[2])
    key = _position(labels, options, row.data.get("correct"), "correct")
    rationale = row.data.get("rationale")
    lines = lines_and_blocks(rationale) if isinstance(rationale, str) else []
    stated = last_statement("\n".join(lines), options)
    if stated is not None:
        lines = lines[:-1]
    problem = _problem(row, prefix, question, options, key, [])
    if stated not in (None, problem.answer):
        return Problem(problem.id, problem.text, problem.answer, None, problem.meta)
    if not lines:  # it was a letter alone
        return problem
    return Problem(problem.id, problem.text, problem.answer, _ending(lines, problem.answer), problem.meta)


PARSERS: Mapping[str, Parse] = {
    "arc_easy": parse_arc,
    "arc_challenge": parse_arc,
    "openbookqa": parse_openbookqa,
    "commonsense_qa": parse_arc,
    "sciq": parse_sciq,
    "aqua": parse_aqua,
}


def _listed(row: Row) -> tuple[list[str], int]:
    """Texts of the row's `choices`, and the position of the right one."""
    choices = row.data.get("choices") if isinstance(row.data, Mapping) else None
    if not isinstance(choices, Mapping):
        raise BadRow("has no 'choices' with 'text' and 'label'")
    texts, labels = (_texts(choices, key) for key in ("text", "label"))
    return texts, _position(labels, texts, row.data.get("answerKey"), "answerKey")


def _texts(choices: Mapping[str, Any], key: str) -> list[str]:
    found = choices.get(key)
    if not isinstance(found, list) or not all(isinstance(part, str) for part in found):
        raise BadRow(f"its choices' {key!r} is not a list of texts")
    return found


def _as_on_the_hub(row: Row) -> Row:
    """A row of ARC's own files with the columns that the hub has."""
    question = row.data.get("question") if isinstance(row.data, Mapping) else None
    if not isinstance(question, Mapping):
        return row
    choices = question.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
        raise BadRow("'question' has no 'choices' that are a list of objects with 'text' and 'label'")
    listed = {key: [choice.get(key) for choice in choices] for key in ("text", "label")}
    return replace(row, data={**row.data, "question": question.get("stem"), "choices": listed})


def _position(labels: Sequence[str], options: Sequence[str], right: Any, key: str) -> int:
    """Position of the right option. Labels may be any distinct ones ('1', 'F'): shown are letters from A on."""
    if len(labels) != len(options):
        raise BadRow(f"has {len(options)} choices and {len(labels)} labels")
    if len(set(labels)) < len(labels):
        raise BadRow(f"two of its choices have one label ({' '.join(labels)})")
    if right not in labels:
        raise BadRow(f"{key!r} is {right!r}, none of its choices' labels ({' '.join(labels)})")
    return labels.index(right)


CHOICE_COLUMNS = (
    "id", "question", "question_stem", "choices", "answerKey", "fact1", "correct_answer", "distractor1", "distractor2",
    "distractor3", "support", "options", "correct", "rationale",
)  # fmt: skip
"""What is read of the data sets' rows."""


def _problem(row: Row, prefix: str, question: str, options: list[str], key: int, steps: list[str]) -> Problem:
    options = [_one_line(option) for option in options]
    if not 2 <= len(options) <= len(ALPHABET):
        raise BadRow(f"has {len(options)} choices")
    if not all(options):
        raise BadRow(f"its choice ({ALPHABET[options.index('')]}) is empty")
    for place, option in enumerate(options):
        if place != key and same_text(option, options[key]):
            raise BadRow(f"its choices ({ALPHABET[key]}) and ({ALPHABET[place]}) both are the right answer's text")
    letter = ALPHABET[key]
    lines = [*steps, f"Of the choices, {options[key].rstrip('.')} fits best."]
    return Problem(
        row_id(row, prefix),
        question_text(question, options),
        letter,
        _ending(lines, letter),
        further(row.data, *CHOICE_COLUMNS) | {"choices": options},
    )


# --- text


def question_text(question: str, options: Sequence[str]) -> str:
    """The question, and below it a line '(A) …' for each option."""
    return "\n".join([question, *(f"({letter}) {text}" for letter, text in zip(ALPHABET, options, strict=False))])


def _ending(lines: Sequence[str], letter: str) -> str:
    """The lines of a solution and, last, its answer."""
    return "\n".join([*lines, f"The answer is ({letter})."])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _sentence(text: str) -> str:
    """A fact written without capital and full stop ('the sun is a star'), as a sentence."""
    text = _one_line(text)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


# --- checking


def _read(text: str, delimiter: str, problem: Problem | None) -> str | None:
    return read_choice(text, delimiter, None if problem is None else problem.meta["choices"])


def _letter(text: str) -> str | None:
    return text if len(text) == 1 and text in ALPHABET else None


CHOICE = AnswerRule(_read, _letter, strict=strict_choice)
