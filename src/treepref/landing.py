"""Files and folders that land whole or not at all: written under another name, synced to disk, then renamed.

Knows nothing of what is in them. Raises OSError; what that means to a person, the caller says.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def move_file(tmp: Path, final: Path) -> None:
    """Move a finished file to its name: there is the old content or the new one, never half."""
    _sync(tmp)
    os.replace(tmp, final)
    _sync(final.parent)


@contextlib.contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """Yield a path beside `final` to write to; when the block succeeds, that file takes its name. Else it goes."""
    part = final.with_name(f"{final.name}.part")
    try:
        yield part
        move_file(part, final)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def move_folder(tmp: Path, final: Path, *, aside: Path) -> None:
    """Move a finished folder to its name, in place of one that is there.

    A rename replaces no full folder, so that one is first renamed to `aside`, and removed afterwards: a kill between
    the two renames leaves it there.
    """
    for root, _, names in os.walk(tmp):
        for name in names:
            _sync(Path(root) / name)
        _sync(Path(root))
    if final.exists():
        final.rename(aside)
    tmp.rename(final)
    _sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
