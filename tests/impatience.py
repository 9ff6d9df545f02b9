"""Checks that hang, without waiting for their limit: what the tests of checkers that hang share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from treepref.workers import isolation


def no_patience_with(
    monkeypatch: pytest.MonkeyPatch, hangs: Callable[[dict[str, Any]], bool], hanging: Callable[[], object]
) -> list[tuple[str, str, float]]:
    """Where `hangs` says so of a request, its limit passes as soon as its process is at it.

    `hanging`: returns when the process is. Everything else has the time that it asks for. Returns a list that fills
    with (problem's id, text, limit) of what is asked.
    """
    asked: list[tuple[str, str, float]] = []
    ask = isolation.WorkerProcess.ask

    def impatient(self: isolation.WorkerProcess, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        asked.append((request["problem"]["id"], request["text"], seconds))
        if not hangs(request):
            return ask(self, request, seconds)
        try:
            return ask(self, request, 0.0)
        finally:
            hanging()

    monkeypatch.setattr(isolation.WorkerProcess, "ask", impatient)
    return asked
