"""The problems that rows hold. Bad rows are set aside, each with its place.

Knows the columns of GSM8K, MATH, SVAMP and users' own files; rows come from sources.py. Knows no split and no seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from treepref.errors import DataError
from treepref.tasks.latex import last_boxed
from treepref.tasks.numbers import canonical_number, parse_number
from treepref.tasks.rationales import drop_annotations
from treepref.tasks.row_values import id_fault, number_text, unusable
from treepref.tasks.sources import LONGEST_REASON, Row, read_rows
from treepref.tasks.statements import MARK
from treepref.types import Problem

HUB_IDS = {
    "gsm8k": "openai/gsm8k",
    "math": "DigitalLearningGmbH/MATH-lighteval",
    "svamp": "ChilleD/SVAMP",
    "arc_easy": "allenai/ai2_arc",
    "arc_challenge": "allenai/ai2_arc",
    "openbookqa": "allenai/openbookqa",
    "commonsense_qa": "tau/commonsense_qa",
    "sciq": "allenai/sciq",
    "aqua": "deepmind/aqua_rat",
}
"""Read where a recipe names no path."""

HUB_SUBSETS = {
    "gsm8k": "main", "arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge", "openbookqa": "main", "aqua": "raw"
}  # fmt: skip
"""The part of the hub's data set that a kind means, where it comes in parts."""


@dataclass(frozen=True, slots=True)
class Item:
    """A problem and where it was found."""

    problem: Problem
    where: str


@dataclass(slots=True)
class Items:
    source: str
    items: list[Item] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class BadRow(Exception):
    """What is wrong with a row."""


def read_items(
    paths: str | Sequence[str],
    split: str,
    parse: Parse,
    prefix: str,
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Items:
    """Every good row of a source (`sources.read_rows`). `columns`: our name of a column → the source's.

    What else a row holds is in its problem's `meta`. Rows that cannot be used are named in `skipped`. Raises DataError
    where there is nothing to read, nothing usable, or one id stands for two different rows.
    """
    read = read_rows(paths, split, subset)
    if not read.rows and not read.skipped:
        raise DataError(f"{read.source}: is empty")
    found = Items(read.source, skipped=read.skipped)
    total = len(read.rows) + len(read.skipped)
    rows = _renamed(read.source, read.rows, columns or {})
    ids: dict[str, tuple[Row, Item]] = {}
    for row in rows:
        try:
            if reason := unusable(row.data):
                raise BadRow(reason)
            problem = parse(row, prefix)
        except BadRow as error:
            found.skipped.append(f"{row.where}: {str(error)[:LONGEST_REASON]}")
            continue
        item = Item(problem, row.where)
        if problem.id in ids:
            earlier, same = ids[problem.id]
            if earlier.data != row.data:
                raise DataError(f"{row.where}: id {problem.id!r} is that of {same.where} too, with other content")
            found.skipped.append(f"{row.where}: same row as {same.where}")
            continue
        ids[problem.id] = (row, item)
        found.items.append(item)
    if not found.items:
        listed = "\n  ".join(found.skipped[:5])
        raise DataError(f"{read.source}: none of its {total} rows can be used; the first:\n  {listed}")
    return found


def _renamed(source: str, rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """The rows with the columns called as we call them. Raises DataError for a column that no row has."""
    if not columns:
        return list(rows)
    there = dict.fromkeys(str(key) for row in rows if isinstance(row.data, Mapping) for key in row.data)
    for ours, theirs in columns.items():
        if rows and theirs not in there:
            raise DataError(f"{source}: task.columns.{ours}: no row has a column {theirs!r} (there are {_few(there)})")
    return [replace(row, data=_with_names(row.data, columns)) for row in rows]


def _with_names(data: Any, columns: Mapping[str, str]) -> Any:
    if not isinstance(data, Mapping):
        return data
    taken = set(columns.values()) | columns.keys()
    kept = {key: value for key, value in data.items() if key not in taken}
    return kept | {ours: data[theirs] for ours, theirs in columns.items() if theirs in data}


def _few(names: Mapping[str, Any]) -> str:
    shown = [repr(str(name)[:40]) for name in list(names)[:12]]
    return ", ".join(shown) + (" …" if len(names) > 12 else "") or "none"


# --- one row → a problem; the rationale ends in the answer where the data set's own does


def parse_gsm8k(row: Row, prefix: str, *, keep_annotations: bool = False) -> Problem:
    """`question`, `answer` = 'rationale\\n#### N'."""
    question, text = row_text(row.data, "question"), row_text(row.data, "answer")
    steps, mark, last = text.rpartition(MARK)
    if not mark:
        raise BadRow(f"'answer' does not end in '{MARK} N'")
    value = parse_number(last)
    if value is None:
        raise BadRow(f"the final answer {last.strip()[:40]!r} is not a number")
    if not keep_annotations:
        steps = drop_annotations(steps)
    rationale = f"{steps.strip()}\n{MARK} {last.strip()}".strip()
    meta = further(row.data, "question", "answer")
    return Problem(row_id(row, prefix), question, canonical_number(value), rationale, meta)


def parse_math(row: Row, prefix: str) -> Problem:
    r"""`problem`, `solution`, whose last '\boxed{…}' is the answer; or `problem` and `answer`, as in AIME's rows."""
    question = row_text(row.data, "problem")
    if row.data.get("solution") is None and "answer" in row.data:
        meta = further(row.data, "problem", "solution", "answer")
        return Problem(row_id(row, prefix), question, _answer(row.data, "answer"), meta=meta)
    solution = row_text(row.data, "solution")
    answer = last_boxed(solution)
    if answer is None:
        raise BadRow(r"'solution' has no \boxed{…} that holds an answer")
    return Problem(row_id(row, prefix), question, answer, solution, further(row.data, "problem", "solution"))


def parse_svamp(row: Row, prefix: str) -> Problem:
    """`Body`, `Question`, `Answer` (a number, perhaps as text), `ID`; there are no rationales."""
    question = f"{row_text(row.data, 'Body')} {row_text(row.data, 'Question')}"
    written = _answer(row.data, "Answer")
    value = parse_number(written)
    if value is None:
        raise BadRow(f"'Answer' {written[:40]!r} is not a number")
    own = "ID" if isinstance(row.data.get("ID"), str) and row.data["ID"] else "id"
    meta = further(row.data, "Body", "Question", "Answer", own)
    return Problem(row_id(row, prefix, own), question, canonical_number(value), meta=meta)


def parse_plain(row: Row, prefix: str, *, needs_answer: bool = True) -> Problem:
    """A user's own: `question` (or `problem`), `answer` (text or number), perhaps `rationale` and `id`.

    A number becomes the decimal that it is written as: 1e-05 is the answer '0.00001'. Where a checker of the user's own
    judges, there may be no answer: it is '' then.
    """
    asked = "problem" if isinstance(row.data, Mapping) and "question" not in row.data and "problem" in row.data else ""
    question = row_text(row.data, asked or "question")
    given = row.data.get("answer")
    blank = given is None or (isinstance(given, str) and not given.strip())
    answer = "" if blank and not needs_answer else _answer(row.data, "answer")
    rationale = row.data.get("rationale")
    if rationale is not None and not isinstance(rationale, str):
        raise BadRow(f"'rationale' is {type(rationale).__name__}, not text")
    meta = further(row.data, asked or "question", "answer", "rationale")
    return Problem(row_id(row, prefix), question, answer, rationale if rationale and rationale.strip() else None, meta)


def _answer(data: Mapping[str, Any], key: str) -> str:
    """A text, or a number as the decimal that it is written as."""
    answer = data.get(key)
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return row_text(data, key)
    try:
        return number_text(answer)
    except ValueError as error:
        raise BadRow(f"{key!r} {error}") from None


Parse = Callable[[Row, str], Problem]
COLUMNS = {
    "jsonl": ("id", "question", "answer", "rationale"),
    "gsm8k": ("id", "question", "answer"),
    "math": ("id", "problem", "solution", "answer"),
    "svamp": ("ID", "Body", "Question", "Answer"),
}
"""What is read of the rows of each kind."""


def further(data: Mapping[str, Any], *own: str) -> dict[str, Any]:
    """The columns that a kind does not read itself: they stand in the problem's `meta`, where a checker sees them."""
    return {key: value for key, value in data.items() if key not in own and key != "id"}


def row_text(data: Any, key: str) -> str:
    """The row's text under `key`, without blanks at its ends. Raises BadRow where there is none."""
    if not isinstance(data, Mapping):
        raise BadRow(f"is {type(data).__name__}, not an object with keys")
    if key not in data:
        raise BadRow(f"has no {key!r}; its keys are {_few(data)}: task.columns says which of them it is")
    if not isinstance(data[key], str):
        raise BadRow(f"{key!r} is {type(data[key]).__name__}, not text")
    if not data[key].strip():
        raise BadRow(f"{key!r} is empty")
    return data[key].strip()


def row_id(row: Row, prefix: str, key: str = "id") -> str:
    """The row's own `id`, or one made of `prefix` and its line. Raises BadRow for an id that is no text or integer.

    An id is one line, for it stands in messages and names.
    """
    given = row.data.get(key)
    if given is None:
        return f"{prefix}-{row.file}-{row.number:06d}" if row.file else f"{prefix}-{row.number:06d}"
    if isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip():
        raise BadRow(
            f"{key!r} is {type(given).__name__}, not text or an integer" if given != "" else f"{key!r} is empty"
        )
    found = str(given).strip()
    if fault := id_fault(found):
        raise BadRow(f"{key!r} {fault}")
    return found
