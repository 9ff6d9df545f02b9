"""What seeded runs of each method find is what it was when these hashes were taken; see golden_runs.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from golden_runs import METHODS, found, play

KNOWN = Path(__file__).parent / "golden" / "runs.json"


@pytest.mark.parametrize("method", METHODS)
def test_a_run_finds_what_it_always_found(method, tmp_path):
    assert found(play(method, tmp_path)) == json.loads(KNOWN.read_text())[method]
