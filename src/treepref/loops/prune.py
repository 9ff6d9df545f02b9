"""`treepref prune`: removes the models of a run that nothing needs any more. What they found stays in the database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from treepref.loops.session import Session
from treepref.loops.stored import best_round
from treepref.runs.run_folder import disk_errors
from treepref.runs.stage import round_policy
from treepref.types import PolicyId


def prune(folder: Path, *, dry: bool = False) -> tuple[list[PolicyId], int]:
    """Remove the folders of policies that no stage, further round or fork would load, but for the best round's.

    Returns the policies and the bytes that they took. `dry`: only say so. Raises StoreError where the run is in use.
    """
    with Session(folder) as session:
        session.policies.check_all()
        best = best_round(session.store)
        keep = {round_policy(best.round)} if best else set()
        gone = [policy for policy in session.policies.unneeded() if policy not in keep]
        size = sum(_bytes(session.policies.folder(policy)) for policy in gone)
        if not dry and gone:
            session.policies.note_removed(gone)  # first: a folder that is left over harms nobody
            with disk_errors(folder):
                for policy in gone:
                    shutil.rmtree(session.policies.folder(policy))
    return gone, size


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
