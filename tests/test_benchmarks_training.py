"""The training benchmark at toy size: it runs, both sides have the same gradient, and its last line is what is read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "training.py"


def test_quick_run_checks_gradients_and_ends_in_json() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--against", "unpacked", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["name"], result["quick"]) == ("training", True)
    assert [row["name"] for row in result["rows"]] == [
        "best and worst by depth, unpacked",
        "all visited siblings, unpacked",
    ]
    for row in result["rows"]:
        assert row["gradient_distance"] <= 1e-4
        assert row["ideal"] > 1
        assert row["ratio"] > 0
    assert {(cell["siblings"], cell["ideal"]) for cell in result["sweep"]} >= {(2, 1.2), (3, 3.0)}
