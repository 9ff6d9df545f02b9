"""Rows of JSON-lines files and hub datasets, and the problems they hold. Bad rows are set aside, each with its place.

Knows the columns of GSM8K, MATH, SVAMP and users' own files. Knows no split and no seed.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treepref.errors import DataError
from treepref.tasks.latex import last_boxed
from treepref.tasks.numbers import canonical_number, parse_number
from treepref.tasks.rationales import drop_annotations
from treepref.tasks.row_values import id_fault, number_text, parse_json, unusable
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

_LONGEST_REASON = 300
"""What is told of a bad row is cut there: it may quote the row."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Row:
    where: str
    """'FILE:LINE', or 'ID[SPLIT]:ROW' for the hub."""
    number: int
    """Line in the file, from 1."""
    data: Any


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


def read_items(path: str, split: str, parse: Parse, prefix: str, subset: str | None = None) -> Items:
    """Every good row of a JSON-lines file, of a folder's `split`.jsonl or of a hub dataset's split.

    Rows that cannot be used are named in `skipped`. Raises DataError where there is nothing to read, nothing usable,
    or one id stands for two different rows.
    """
    source, rows, skipped = _rows(path, split, subset)
    if not rows and not skipped:
        raise DataError(f"{source}: is empty")
    found = Items(source, skipped=skipped)
    total = len(rows) + len(skipped)
    ids: dict[str, tuple[Row, Item]] = {}
    for row in rows:
        try:
            if reason := unusable(row.data):
                raise BadRow(reason)
            problem = parse(row, prefix)
        except BadRow as error:
            found.skipped.append(f"{row.where}: {str(error)[:_LONGEST_REASON]}")
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
        raise DataError(f"{source}: none of its {total} rows can be used; the first:\n  {listed}")
    return found


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
    return Problem(
        row_id(row, prefix), question, canonical_number(value), f"{steps.strip()}\n{MARK} {last.strip()}".strip()
    )


def parse_math(row: Row, prefix: str) -> Problem:
    r"""`problem`, `solution`, perhaps `level` and `type`; the answer is the last '\boxed{…}'."""
    question, solution = row_text(row.data, "problem"), row_text(row.data, "solution")
    answer = last_boxed(solution)
    if answer is None:
        raise BadRow(r"'solution' has no \boxed{…} that holds an answer")
    meta = {key: row.data[key] for key in ("level", "type") if isinstance(row.data.get(key), str)}
    return Problem(row_id(row, prefix), question, answer, solution, meta)


def parse_svamp(row: Row, prefix: str) -> Problem:
    """`Body`, `Question`, `Answer` (a number as text), `ID`; there are no rationales."""
    question = f"{row_text(row.data, 'Body')} {row_text(row.data, 'Question')}"
    written = row_text(row.data, "Answer")
    value = parse_number(written)
    if value is None:
        raise BadRow(f"'Answer' {written[:40]!r} is not a number")
    own = "ID" if isinstance(row.data.get("ID"), str) and row.data["ID"] else "id"
    return Problem(row_id(row, prefix, own), question, canonical_number(value))


def parse_plain(row: Row, prefix: str) -> Problem:
    """A user's own: `question`, `answer` (text or number), perhaps `rationale` and `id`.

    A number becomes the decimal that it is written as: 1e-05 is the answer '0.00001'.
    """
    question = row_text(row.data, "question")
    answer = row.data.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        try:
            answer = number_text(answer)
        except ValueError as error:
            raise BadRow(f"'answer' {error}") from None
    elif "answer" in row.data:
        answer = row_text(row.data, "answer")
    else:
        raise BadRow("has no 'answer'")
    rationale = row.data.get("rationale")
    if rationale is not None and not isinstance(rationale, str):
        raise BadRow(f"'rationale' is {type(rationale).__name__}, not text")
    return Problem(row_id(row, prefix), question, answer, rationale if rationale and rationale.strip() else None)


Parse = Callable[[Row, str], Problem]


def row_text(data: Any, key: str) -> str:
    """The row's text under `key`, without blanks at its ends. Raises BadRow where there is none."""
    if not isinstance(data, Mapping):
        raise BadRow(f"is {type(data).__name__}, not an object with keys")
    if key not in data:
        raise BadRow(f"has no {key!r}")
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
        return f"{prefix}-{row.number:06d}"
    if isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip():
        raise BadRow(
            f"{key!r} is {type(given).__name__}, not text or an integer" if given != "" else f"{key!r} is empty"
        )
    found = str(given).strip()
    if fault := id_fault(found):
        raise BadRow(f"{key!r} {fault}")
    return found


# --- where rows come from


def _rows(path: str, split: str, subset: str | None) -> tuple[str, list[Row], list[str]]:
    try:
        return _find_rows(path, split, subset)
    except (OSError, RuntimeError, ValueError) as error:  # too long, not to be entered, ~ of nobody, NUL
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path[:_LONGEST_REASON]}: cannot be read ({str(why)[:_LONGEST_REASON]})") from error


def _find_rows(path: str, split: str, subset: str | None) -> tuple[str, list[Row], list[str]]:
    place = Path(path).expanduser()
    if place.is_dir():
        file = place / f"{split}.jsonl"
        if not file.is_file():
            there = ", ".join(sorted(p.stem for p in place.glob("*.jsonl"))) or "none"
            raise DataError(
                f"{place}: has no {split}.jsonl (splits there: {there}); see task.train_split, task.eval_split"
            )
        return str(file), *_read_jsonl(file)
    if place.exists():
        return str(place), *_read_jsonl(place)
    if _HUB_ID.fullmatch(path) and not path.startswith("."):
        return f"{path}[{split}]", _read_hub(path, split, subset), []
    raise DataError(f"{path[:_LONGEST_REASON]}: no such file or folder")


def _read_jsonl(file: Path) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    skipped: list[str] = []
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            rows.append(Row(where, number, parse_json(line.decode("utf-8"))))
        except UnicodeDecodeError as error:
            skipped.append(f"{where}: is not UTF-8 (byte {error.start + 1} of the line)")
        except RecursionError:
            skipped.append(f"{where}: is not JSON that can be read (nested too deeply)")
        except json.JSONDecodeError as error:
            skipped.append(f"{where}: is not JSON ({error})")
        except ValueError as error:
            skipped.append(f"{where}: {error}")
    return rows, skipped


def _read_hub(path: str, split: str, subset: str | None) -> list[Row]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DataError(
            f"{path}: is neither a file nor a folder here; to read it from the Hugging Face hub, "
            "install the extra: pip install 'treepref[hub]'"
        ) from None
    try:
        loaded = datasets.load_dataset(path, subset, split=split)
    except Exception as error:  # network, unknown id, unknown split: the library's own words say which
        raise DataError(f"{path}[{split}]: cannot be loaded from the hub: {type(error).__name__}: {error}") from error
    return [Row(f"{path}[{split}]:{number}", number, dict(row)) for number, row in enumerate(loaded, start=1)]
