"""Watches a user's checker while it works, so that one that always fails does not cost a whole run.

Counts different solutions. Knows no text and no process.
"""

from __future__ import annotations

from treepref.errors import CheckerError

IN_A_ROW = 5
FAILED = 10
"""So many failures, in a row or in all, end a run where they are also more than half of all checks."""
STOPPED_WORKING = 25
"""So many in a row end it whatever went well before."""
NAMED = 3


class Watch:
    """Is the checker of use? It is told of every solution that the checker was asked about for the first time."""

    def __init__(self, name: str) -> None:
        self.name = name
        """`module:function`, for the message."""
        self.failed = 0
        self.worked = 0
        self._row: list[str] = []
        """Problem ids of the failures since the checker last worked."""

    def note(self, problem_id: str, error: str | None) -> None:
        """Take in a check and its failure, if it failed.

        Raises CheckerError, with what the last failure said, once more than half of all checks failed and ten of them
        or five in a row did, or once 25 in a row did. A few failures among many checks never raise.
        """
        if error is None:
            self.worked += 1
            self._row.clear()
            return
        self.failed += 1
        self._row.append(problem_id)
        row, mostly = len(self._row), self.failed > self.worked
        if row >= STOPPED_WORKING or (mostly and (row >= IN_A_ROW or self.failed >= FAILED)):
            raise CheckerError(self._message(error))

    def _message(self, error: str) -> str:
        ids = list(dict.fromkeys(self._row))
        names = ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")
        many = f"{len(self._row)} solutions in a row (problems {names})" if len(ids) > 1 else f"problem {names}"
        return (
            f"task.checker {self.name} fails: {self.failed} of the {self.failed + self.worked} solutions it was asked "
            f"about could not be checked, the last of them {many}. The last failure, on problem {ids[-1]}:\n{error}"
        )
