"""How often the reader of answers errs: labelled statements in, errors per kind and direction out.

    python benchmarks/answers.py [FILE …] [--data FOLDER] [--show]

FILE: JSON lines as in tests/statements (the default). `--data`: where the benchmark rows lie whose choices the real
statements name. A false right is a statement judged right that is not; a false wrong is the other way round.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from treepref.config import TaskConfig
from treepref.tasks import load_task
from treepref.types import Problem

STATEMENTS = Path(__file__).parents[1] / "tests" / "statements"
DATA = Path(__file__).parents[2] / "shared" / "data"
CHOICE_KINDS = ("choice", "arc_easy")


def options_of(rows: Path) -> dict[str, list[str]]:
    """Choices by row id of an ARC split."""
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    return {row["id"]: row["choices"]["text"] for row in found}


def problem_of(statement: dict, data: Path, known: dict[str, dict[str, list[str]]]) -> tuple[str, Problem] | None:
    """(kind of task, problem) of a statement; None where its choices cannot be looked up here."""
    kind, meta = statement.get("kind", "choice"), {}
    if kind in CHOICE_KINDS:
        choices = statement.get("choices")
        if choices is None:
            split, _, row = statement["row"].rpartition(":")
            file = data / f"{split}.jsonl"
            if not file.is_file():
                return None
            choices = known.setdefault(split, options_of(file))[row]
        kind, meta = "arc_easy", {"choices": list(choices.values()) if isinstance(choices, dict) else choices}
    return kind, Problem("p", "?", statement["gold"], None, meta)


def judge(statements: list[dict], data: Path = DATA) -> list[tuple[dict, object]]:
    """Every statement that can be judged here with its verdict."""
    known: dict[str, dict[str, list[str]]] = {}
    checkers, found = {}, []
    try:
        for statement in statements:
            pair = problem_of(statement, data, known)
            if pair is None:
                continue
            kind, problem = pair
            if kind not in checkers:
                checkers[kind] = load_task(TaskConfig(kind=kind, check_seconds=60)).checker().__enter__()
            found.append((statement, checkers[kind].check(statement["text"], problem)))
    finally:
        for checker in checkers.values():
            checker.__exit__(None, None, None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--show", action="store_true", help="print every error")
    arguments = parser.parse_args()
    for file in arguments.files or sorted(STATEMENTS.glob("*.jsonl")):
        statements = [json.loads(line) for line in file.read_text().splitlines()]
        judged = judge(statements, arguments.data)
        counts: Counter[tuple[str, bool]] = Counter()
        errors: Counter[tuple[str, bool]] = Counter()
        for statement, verdict in judged:
            key = statement.get("kind", "choice"), statement["right"]
            counts[key] += 1
            if verdict.correct != statement["right"]:
                errors[key] += 1
                if arguments.show:
                    print(f"{key} gold {statement['gold']!r} read {verdict.answer!r}: {statement['text'][-300:]!r}")
        print(f"{file.name}: {len(judged)} of {len(statements)} statements judged")
        print("| kind | right ones | judged wrong | others | judged right |\n|---|---|---|---|---|")
        for kind in sorted({kind for kind, _ in counts}):
            cells = (counts[kind, True], errors[kind, True], counts[kind, False], errors[kind, False])
            print(f"| {kind} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
