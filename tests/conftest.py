"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("kill_plans", "loop_runs")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real benchmark data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("TREEPREF_DATA") or Path(__file__).resolve().parents[1].parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no benchmark data at {folder} (set TREEPREF_DATA)")
    return folder
