"""Rows as they lie in files, in folders and on the hub: JSON lines, a JSON array, CSV, Parquet, each also gzipped.

Every row has its place. What is not a row is named with what it is. Knows no column, no split's size and no seed.
"""

from __future__ import annotations

import csv
import glob
import gzip
import importlib
import io
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from treepref.errors import DataError
from treepref.tasks.row_values import parse_json

LONGEST_REASON = 300
"""What is told of a bad row or a bad path is cut there: it may quote it."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MAX_CELL = 10_000_000
"""Characters of one cell of a CSV file; the library's own limit is below what a long solution has."""


@dataclass(frozen=True, slots=True)
class Row:
    where: str
    """'FILE:LINE', or 'ID[SPLIT]:ROW' for the hub."""
    number: int
    """Line in the file, or position in it, from 1."""
    data: Any
    file: str = ""
    """The file's name without its ending where a source has several, else nothing: lines of several files repeat."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a source holds."""

    source: str
    rows: list[Row]
    skipped: list[str]
    """A line for each that is no row."""


def read_rows(paths: str | Sequence[str], split: str, subset: str | None = None) -> Rows:
    """The rows of files, of a folder's `split`, of a pattern with `*`, or of a hub dataset's `split`.

    Several paths are read one after another. Raises DataError where there is nothing to read or it cannot be read.
    """
    found = [_read(path, split, subset) for path in ([paths] if isinstance(paths, str) else paths)]
    if len(found) == 1:
        return found[0]
    rows = [Row(r.where, r.number, r.data, r.file or _stem(Path(f.source))) for f in found for r in f.rows]
    return Rows(", ".join(f.source for f in found), rows, [line for f in found for line in f.skipped])


def has_splits(paths: str | Sequence[str]) -> bool:
    """Whether a source has splits by name, as a folder and a hub data set do; files have none."""
    if not isinstance(paths, str):
        return False
    try:
        place = Path(paths).expanduser()
        return place.is_dir() or (not place.exists() and bool(_HUB_ID.fullmatch(paths)))
    except (OSError, RuntimeError, ValueError):
        return False


def _read(path: str, split: str, subset: str | None) -> Rows:
    try:
        return _find(path, split, subset)
    except (OSError, RuntimeError, ValueError) as error:  # too long, not to be entered, ~ of nobody, NUL
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path[:LONGEST_REASON]}: cannot be read ({str(why)[:LONGEST_REASON]})") from error


def _find(path: str, split: str, subset: str | None) -> Rows:
    place = Path(path).expanduser()
    if place.is_dir():
        return _read_files(str(place / split), _files_of_split(place, split))
    if place.exists():
        return _read_files(str(place), [place])
    if any(mark in path for mark in "*?[") and (matched := sorted(glob.glob(str(place), recursive=True))):
        return _read_files(path, [Path(name) for name in matched if Path(name).is_file()])
    if _HUB_ID.fullmatch(path) and not path.startswith("."):
        return Rows(f"{path}[{split}]", _read_hub(path, split, subset), [])
    raise DataError(f"{path[:LONGEST_REASON]}: no such file or folder")


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """`train.jsonl`, `train.csv` …, or the shards `train-00000-of-00002.parquet`. Raises DataError for none or two."""
    known = sorted(file for file in folder.iterdir() if file.is_file() and _ending(file) in _READERS)
    whole = [file for file in known if _stem(file) == split]
    if len(whole) > 1:
        raise DataError(f"{folder}: {' and '.join(file.name for file in whole)} are both its {split}; name one as path")
    shards = [file for file in known if re.fullmatch(re.escape(split) + r"-\d+-of-\d+(?:-\w+)?", _stem(file))]
    if not whole and not shards:
        there = ", ".join(dict.fromkeys(map(_stem, known))) or "none"
        raise DataError(
            f"{folder}: has no {split}.jsonl (splits there: {there}); see task.train_split, task.eval_split"
        )
    return whole or shards


def _read_files(source: str, files: Sequence[Path]) -> Rows:
    if not files:
        raise DataError(f"{source}: no file matches")
    rows: list[Row] = []
    skipped: list[str] = []
    for file in files:
        found, bad = _read_file(file)
        name = _stem(file) if len(files) > 1 else ""
        rows += [Row(f"{file}:{number}", number, data, name) for number, data in found]
        skipped += bad
    return Rows(str(files[0]) if len(files) == 1 else source, rows, skipped)


# --- one file

Found = tuple[list[tuple[int, Any]], list[str]]
"""(line or position, value) of each row; what is no row."""


def _read_file(file: Path) -> Found:
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{file}: cannot be read ({why})") from error
    if foreign := _foreign(content):
        raise DataError(f"{file}: is {foreign}. {_WANTED}")
    reader = _READERS.get(_ending(file), _read_json)
    if content[:4] == b"PAR1":
        reader = _read_parquet
    return reader(file, content.removeprefix(b"\xef\xbb\xbf"))


_WANTED = "Give JSON lines (an object a line), a JSON array of objects, CSV with a head, or Parquet; gzipped or not"
_SIGNATURES = {
    b"PK\x03\x04": "a zip archive or an office document (.xlsx): unpack it, or save the sheet as CSV",
    b"\xff\xfe": "text in UTF-16: save it in UTF-8",
    b"\xfe\xff": "text in UTF-16: save it in UTF-8",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    b"BZh": "compressed with bzip2: unpack it",
    b"\xfd7zXZ": "compressed with xz: unpack it",
    b"SQLite format 3": "an SQLite database: export the table as CSV",
    b"ARROW1": "an Arrow file: save it as Parquet",
    b"%PDF": "a PDF",
    b"\x80\x04\x95": "a Python pickle, which is never read: it can run programs",
    b"\x80\x05\x95": "a Python pickle, which is never read: it can run programs",
}


def _foreign(content: bytes) -> str | None:
    """What a file is that holds no rows for us, by its first bytes."""
    return next((what for start, what in _SIGNATURES.items() if content.startswith(start)), None)


def _read_json(file: Path, content: bytes) -> Found:
    """An object a line, or one array of them."""
    return _read_array(file, content) if content.lstrip()[:1] == b"[" else _read_lines(file, content)


def _read_lines(file: Path, content: bytes) -> Found:
    rows: list[tuple[int, Any]] = []
    skipped: list[str] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        value, fault = _json_value(line)
        if fault is None:
            rows.append((number, value))
        else:
            skipped.append(f"{file}:{number}: {fault}")
    if skipped and isinstance(whole := _json_value(content)[0], Mapping):  # no lines of JSON are JSON together
        lists = [key for key, value in whole.items() if isinstance(value, list)]
        has = f"; its key {lists[0]!r} holds a list: save that as the file" if lists else ""
        raise DataError(f"{file}: is one JSON object over several lines{has}. {_WANTED}")
    return rows, skipped


def _json_value(text: bytes) -> tuple[Any, str | None]:
    """The value, or why there is none."""
    try:
        return parse_json(text.decode("utf-8")), None
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8 (byte {error.start + 1} of the line)"
    except RecursionError:
        return None, "is not JSON that can be read (nested too deeply)"
    except json.JSONDecodeError as error:
        return None, f"is not JSON ({error})"
    except ValueError as error:
        return None, str(error)


def _read_array(file: Path, content: bytes) -> Found:
    """One JSON array: rows are numbered by their position.

    One value that no row may hold (NaN, say) spoils its row alone: then the array is read value by value.
    """
    text = _decoded(file, content)
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)  # where each value ends; what it is, is read below
    rows: list[tuple[int, Any]] = []
    skipped: list[str] = []
    at, number = text.index("[") + 1, 0
    while True:
        at = _after_blanks(text, at)
        if text[at : at + 1] == "]":
            return rows, skipped
        number += 1
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            where = f"position {number} of its array"
            raise DataError(f"{file}: is not JSON that can be read ({where}: {error})") from error
        value, fault = _json_value(text[at:end].encode("utf-8", "surrogatepass"))
        if fault is None:
            rows.append((number, value))
        else:
            skipped.append(f"{file}:{number}: {fault}")
        at = _after_blanks(text, end)
        at += text[at : at + 1] == ","


def _after_blanks(text: str, at: int) -> int:
    found = re.compile(r"[ \t\r\n]*").match(text, at)
    return found.end() if found else at


def _read_csv(file: Path, content: bytes) -> Found:
    """A head and rows; an empty cell is no value. Cells are parted by commas, or by what parts the head (; or tab)."""
    text = _decoded(file, content)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    csv.field_size_limit(_MAX_CELL)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, Any]] = []
    skipped: list[str] = []
    head: list[str] | None = None
    while True:
        start = lines.line_num + 1
        try:
            cells = next(lines)
        except StopIteration:
            return rows, skipped
        except csv.Error as error:
            raise DataError(f"{file}:{start}: is not CSV that can be read ({error})") from error
        if not any(cell.strip() for cell in cells):
            continue
        if head is None:
            head = _csv_head(file, cells)
        elif len(cells) != len(head):
            skipped.append(f"{file}:{start}: has {len(cells)} cells where the head has {len(head)}")
        else:
            rows.append((start, {key: cell for key, cell in zip(head, cells, strict=True) if cell.strip()}))


def _csv_head(file: Path, cells: Sequence[str]) -> list[str]:
    head = [cell.strip() for cell in cells]
    if len(set(head)) < len(head):
        twice = next(name for name in head if head.count(name) > 1)
        raise DataError(f"{file}: two columns of its head are called {twice!r}")
    return head


def _decoded(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{line}: is not UTF-8: save the file in UTF-8") from error


def _read_parquet(file: Path, content: bytes) -> Found:
    parquet = _library("pyarrow.parquet", f"{file}: to read Parquet files")
    try:
        table = parquet.read_table(io.BytesIO(content))
    except Exception as error:  # damaged files fail in every way there is
        raise DataError(f"{file}: is not Parquet that can be read ({str(error)[:LONGEST_REASON]})") from error
    return list(enumerate(table.to_pylist(), start=1)), []


def _library(name: str, purpose: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(f"{purpose}, install the extra: pip install 'treepref[hub]'") from None


_READERS: dict[str, Callable[[Path, bytes], Found]] = {
    ".jsonl": _read_json, ".ndjson": _read_json, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv,
    ".parquet": _read_parquet,
}  # fmt: skip


def _ending(file: Path) -> str:
    """`.csv` of `rows.csv` and of `rows.csv.gz`."""
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _stem(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).stem


# --- the hub


def _read_hub(path: str, split: str, subset: str | None) -> list[Row]:
    datasets = _library("datasets", f"{path}: is no file and no folder here; to read it from the Hugging Face hub")
    try:
        loaded = datasets.load_dataset(path, subset, split=split)
    except Exception as error:  # network, unknown id, unknown split: the library's own words say which
        raise DataError(f"{path}[{split}]: cannot be loaded from the hub: {type(error).__name__}: {error}") from error
    return [Row(f"{path}[{split}]:{number}", number, dict(row)) for number, row in enumerate(loaded, start=1)]
