"""What tests look up in a run's database that no product code asks for."""

from __future__ import annotations

from treepref.runs.stage import Stage
from treepref.runs.store import Store


def count_journal(store: Store, stage: Stage | str) -> int:
    """Expansions of unfinished trees that a stage has journalled."""
    return store._count("journal WHERE stage = ?", stage)
