"""Runs benchmarks one after the other and prints one table of what they found.

    python benchmarks/table.py [--quick] [--model FOLDER] [--out FILE] [NAME …]

NAME is a script of this folder without `.py`; none runs them all. Each script's last line of output is one JSON object;
all of them go to FILE, one a line. `--read FILE` prints the table of such a file and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = ("training", "search", "tree", "store", "calculator", "matrices")


def run(name: str, arguments: Sequence[str]) -> dict[str, Any] | None:
    """The script's result, its other output passed on; None where it failed."""
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    print(f"\n== {' '.join(['python', f'benchmarks/{name}.py', *arguments])}", flush=True)
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):
                print(line, end="", flush=True)
            last = line
    if process.returncode:
        print(f"benchmarks/{name}.py failed with exit status {process.returncode}", flush=True)
        return None
    return json.loads(last)


def keep(results: Sequence[dict[str, Any] | None], out: Path | None) -> None:
    """Write the results so far, one a line, where a file is wanted."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(result) + "\n" for result in results if result is not None))


def table(results: Sequence[dict[str, Any]]) -> str:
    """One row a comparison: the benchmark's main one, then the others that it lists under `rows`."""
    lines = [("benchmark", "ratio", "spread", "ideal", "peak MiB theirs / ours", "seconds theirs / ours")]
    for result in results:
        rows = [row for row in result.get("rows", []) if isinstance(row, dict) and "name" in row]
        for row in rows or [result]:
            note = " (quick: no figure)" if result.get("quick") else ""
            lines.append(
                (
                    f"{row['name']}{note}",
                    _ratio(row),
                    " to ".join(_number(s) for s in row.get("spread") or ()) or "",
                    _number(row.get("ideal")),
                    _both(row, "peak_mb"),
                    _both(row, "seconds"),
                )
            )
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])


def provenance(results: Sequence[dict[str, Any]]) -> str:
    """Below the table: both sides' versions, the machine and the command of each benchmark."""
    lines = []
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
        machine = result.get("machine", {})
        where = f"{machine.get('cpu')}, {machine.get('cores')} cores, load {machine.get('load')} at the end"
        lines.append(f"- {result['name']}: `{result.get('command')}`; {versions}; {where}")
    return "\n".join(lines)


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.2f}x" if row.get("ratio") is not None else row.get("skipped", "")


def _number(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"


def _both(row: dict[str, Any], name: str) -> str:
    theirs, ours = row.get(f"{name}_theirs"), row.get(f"{name}_ours")
    return "" if theirs is None or ours is None else f"{theirs:g} / {ours:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default=None, help="folder or hub id for the benchmarks that run a model")
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON objects, one a line")
    parser.add_argument("--read", type=Path, default=None, help="print the table of this file")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if options.read is not None:
        results: list[dict[str, Any] | None] = [json.loads(line) for line in options.read.read_text().splitlines()]
    else:
        arguments = ["--quick"] * options.quick + (["--model", options.model] if options.model else [])
        results = []
        for name in options.names or NAMES:
            results.append(run(name, arguments))
            keep(results, options.out)  # at once: a run that is stopped keeps what it found
    found = [result for result in results if result is not None]
    print("\n" + table(found) + "\n\n" + provenance(found))
    if len(found) < len(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
