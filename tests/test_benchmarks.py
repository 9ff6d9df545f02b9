"""Every benchmark runs, checks that both sides compute the same, and ends in the line that the table is made of."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
KEYS = {"name", "ratio", "spread", "ideal", "versions", "machine", "command", "quick"}


@pytest.fixture
def benchmark_module(monkeypatch):
    """Imports a script of benchmarks/ by name; the folder's names are gone afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = [path.stem for path in BENCHMARKS.glob("*.py")]
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in names:
        sys.modules.pop(name, None)


SLOW = ("search", "matrices", "training")


@pytest.mark.parametrize(
    "name",
    ["tree", "store", "calculator", *(pytest.param(name, marks=pytest.mark.long) for name in SLOW)],
)
def test_a_quick_run_ends_in_its_json_line(name, benchmark_module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / f"{name}.py"), "--quick"])
    benchmark_module(name).main()
    *_, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert set(found) >= KEYS, set(found) ^ KEYS
    assert found["quick"] is True
    compared = [found, *found.get("rows", [])]
    for row in compared:
        if row.get("ratio") is not None:
            low, high = row["spread"]
            assert 0 < low <= row["ratio"] <= high
    table = benchmark_module("table")
    assert found["name"] in table.table([found]) + table.provenance([found])


def test_the_two_sides_take_turns_and_the_median_ratio_is_told(benchmark_module, monkeypatch):
    common = benchmark_module("common")
    calls, clock = [], iter([3.0, 1.0, 8.0, 2.0, 5.0, 1.0])
    monkeypatch.setattr(common, "timed", lambda work: (work(), (next(clock), 7.0))[1])
    found = common.alternate(lambda: calls.append("a"), lambda: calls.append("b"), runs=3, warmup=0)
    assert calls == ["a", "b"] * 3
    assert found.ratios == [3.0, 4.0, 5.0]
    assert (found.ratio, found.spread) == (4.0, (3.0, 5.0))
    assert found.scaled(0.5).ratio == 2.0


def test_sides_that_differ_are_not_timed(benchmark_module):
    common = benchmark_module("common")
    common.same("numbers", 1e-6, 1e-5)
    for worst in (1e-4, float("nan")):
        with pytest.raises(SystemExit, match="nothing was timed"):
            common.same("numbers", worst, 1e-5)


PEAKS = """
import common
work = (lambda: None, lambda: bytearray(b"x") * (200 << 20), lambda: None)
print(*(common.timed(part)[1] for part in work))
"""


def test_peak_memory_is_that_of_the_work():
    """In a process that does nothing else: what other tests freed would serve the work, and not be seen."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr
    small, large, again = map(float, done.stdout.split())
    if not large:
        pytest.skip("this system tells no peak memory")
    assert large - small > 150
    assert again < large - 100 or again == large  # the latter where the peak may not be reset


def test_the_table_shows_each_comparison_with_what_was_skipped(benchmark_module):
    table = benchmark_module("table")
    result = {
        "name": "search",
        "versions": {"torch": "2"},
        "machine": {"cpu": "X", "cores": 2, "load": 0.1},
        "command": "python benchmarks/search.py",
        "rows": [
            {"name": "one", "ratio": 2.5, "spread": [2.0, 3.0], "ideal": 4.0, "peak_mb_theirs": 10, "peak_mb_ours": 5},
            {"name": "two", "ratio": None, "spread": None, "skipped": "not installed"},
        ],
    }
    lines = table.table([result]).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| one | 2.50x | 2.00 to 3.00 | 4.00 | 10 / 5 |")
    assert "not installed" in lines[3]
    assert "`python benchmarks/search.py`" in table.provenance([result])
