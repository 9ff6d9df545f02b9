"""Files and folders that land whole or not at all: written under another name, synced to disk, then renamed.

What goes on the way proves by what is in it that an attempt of ours left it, never by its name: a folder that may be
removed holds `MARK`. Names that something else has are left to it.

Knows nothing of what is in them. Raises OSError; what that means to a person, the caller says.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

MARK = ".treepref-part"
"""The file in a folder that may be removed. It holds the name that we gave the folder: a copy under another name is
nobody's to remove."""


def is_leftover(folder: Path) -> bool:
    """Whether an attempt of ours made or named this very folder as one that may go."""
    try:
        return not folder.is_symlink() and (folder / MARK).read_text(encoding="utf-8") == folder.name
    except (OSError, UnicodeDecodeError):
        return False


def fresh_folder(parent: Path, name: str) -> Path:
    """A new, empty folder in `parent`, marked as one that may go; what an attempt before left of it goes first.

    It is called `name`, or `name-2` and so on where something that is not ours has that name.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for candidate in _names(name):
        folder = parent / candidate
        if is_leftover(folder):
            _remove(folder)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            _mark(folder, candidate)
            return folder
    raise AssertionError("names never end")


def clear(folder: Path) -> None:
    """Remove what `fresh_folder` made, if it is still there."""
    if is_leftover(folder):
        with contextlib.suppress(OSError):
            _remove(folder)


def move_file(tmp: Path, final: Path) -> None:
    """Move a finished file to its name: there is the old content or the new one, never half."""
    _sync(tmp)
    os.replace(tmp, final)
    _sync(final.parent)


@contextlib.contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """Yield a path beside `final` to write to; when the block succeeds, that file takes its name. Else it goes."""
    part = _new_part(final)
    try:
        yield part
        move_file(part, final)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _new_part(final: Path) -> Path:
    """A file beside `final` that was not there before. What a kill leaves of it stays: no mark fits into a file."""
    for name in _names(f"{final.name}.part"):
        with contextlib.suppress(FileExistsError):
            part = final.with_name(name)
            part.open("x").close()
            return part
    raise AssertionError("names never end")


@contextlib.contextmanager
def new_folder(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `final`; when the block succeeds it takes `final`'s name. Else it goes.

    `replace`: it may take the place of a folder that is there. Whose that one is, the caller knows.
    """
    part = fresh_folder(final.parent, f"{final.name}.tmp")
    try:
        yield part
        move_folder(part, final, replace=replace)
    finally:
        clear(part)


def move_folder(tmp: Path, final: Path, *, replace: bool = False) -> None:
    """Move a finished folder to its name; with `replace` in place of one that is there.

    A rename replaces no full folder, so that one is first marked and renamed aside, and removed afterwards: a kill
    between the two renames leaves it there, and `recover` puts it back.
    """
    for root, _, names in os.walk(tmp):
        for name in names:
            _sync(Path(root) / name)
        _sync(Path(root))
    aside = None
    if replace and final.is_dir() and any(final.iterdir()):
        aside = next(p for p in map(final.with_name, _names(f"{final.name}.old")) if not os.path.lexists(p))
        _mark(final, aside.name)
        final.rename(aside)
    tmp.rename(final)
    _sync(final.parent)
    (final / MARK).unlink(missing_ok=True)
    if aside is not None:
        clear(aside)


def recover(final: Path) -> None:
    """Put back the folder that `move_folder` had set aside where a kill kept the new one from taking its place."""
    if os.path.lexists(final):
        return
    for previous in set_aside(final)[:1]:
        with contextlib.suppress(OSError):  # whoever needs the folder says that it is not there
            previous.rename(final)
            (final / MARK).unlink(missing_ok=True)


def set_aside(final: Path) -> list[Path]:
    """What `move_folder` had set aside of `final` and a kill kept it from removing."""
    taken = itertools.takewhile(os.path.lexists, map(final.with_name, _names(f"{final.name}.old")))
    return [folder for folder in taken if is_leftover(folder)]


def _names(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def _mark(folder: Path, name: str) -> None:
    mark = folder / MARK
    mark.write_text(name, encoding="utf-8")
    _sync(mark)


def _remove(folder: Path) -> None:
    """Remove a marked folder, its mark last: killed midway it is still known as one that may go."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    (folder / MARK).unlink()
    folder.rmdir()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
