"""What keeps a run's folder sound: whose it is, its lock, a check of its file system, files that land by rename.

Knows of what is in the folder only what tells that it is a run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import sqlite3
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    raise ImportError("treepref runs on Linux and macOS; on Windows use it inside WSL")
import fcntl

from treepref.errors import StoreError
from treepref.runs.landing import MARK, clear, fresh_folder, move_file

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "davfs", "vboxsf", "prl_fs", "fuse.sshfs", "fuse.s3fs"}
    | {"fuse.rclone", "fuse.gcsfuse", "fuse.davfs2", "fuse.smbnetfs", "fuse.vmhgfs-fuse"}
)
"""Types (third column of /proc/mounts) on which SQLite's WAL (shared memory between processes) or locks do not hold."""


def mount_type(path: Path, mounts: str) -> str | None:
    """Type of the file system that holds `path`, from the text of /proc/mounts; None where no line fits."""
    best, found = -1, None
    for line in mounts.splitlines():
        columns = line.split()
        if len(columns) < 3:
            continue
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), columns[1])  # a space stands as \040
        if (path == Path(point) or Path(point) in path.parents) and len(point) >= best:
            best, found = len(point), columns[2]
    return found


def refuse_network(folder: Path) -> None:
    mounts = Path("/proc/mounts")
    if not mounts.is_file():  # not Linux: the probes of lock and WAL have to do
        return
    kind = mount_type(folder.resolve(), mounts.read_text(errors="replace"))
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"{folder} lies on a file system of type {kind}, where locks and SQLite's write-ahead log do not hold: "
            "choose an --out folder on a local disk and copy the run afterwards"
        )


_STARTED = frozenset({"run.lock", "run.db", "run.db-wal", "run.db-shm", "run.db-journal", MARK})
"""All that is in a run that was killed before its first table was made."""
_TABLE, _BLOCK = b"CREATE TABLE stages (name TEXT PRIMARY KEY, status", 2**20
_HOLDER = re.compile(r"process \d+ on .+\n?")
"""What run.lock says of who holds it, or held it last."""


def refuse_foreign(folder: Path) -> None:
    """Raises StoreError, the folder untouched, where it holds anything and is no run."""
    with disk_errors(folder):
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if names <= {MARK} or _HOLDER.fullmatch(_text(folder / "run.lock")) or is_run_db(folder / "run.db"):
            return
        if "run.lock" in names and names <= _STARTED and not (folder / "run.lock").stat().st_size:
            return
    raise StoreError(
        f"{folder} holds {min(names - {MARK})} and no run of treepref: give a folder that is empty or not there yet. "
        "Nothing in it was changed"
    )


def is_run_db(path: Path) -> bool:
    """Whether the file is a run's database. Nothing is written, and so its write-ahead log is not put into it."""
    if not path.is_file():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        return False
    return tables >= {"meta", "problems", "journal", "trees", "stages"} or _in_log(path.with_name(path.name + "-wal"))


def _in_log(log: Path) -> bool:
    """Whether a write-ahead log makes a run's tables: one that was killed early has them nowhere else."""
    before = b""
    with contextlib.suppress(OSError), log.open("rb") as file:
        while block := file.read(_BLOCK):
            if _TABLE in before + block:
                return True
            before = block[-len(_TABLE) :]
    return False


def _text(path: Path) -> str:
    """The beginning of a text file; empty where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(400)
    except OSError:
        return ""


_held_locks: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """An exclusive flock on `run.lock`, whose text names the holder. The kernel frees it however the process ends."""

    def __init__(self, path: Path) -> None:
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(path)
        except BaseException:
            self.close()
            raise
        _held_locks.add(self)

    def _take(self, path: Path) -> None:
        assert self._fd is not None
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # perhaps somebody only looks who holds it
                time.sleep(0.05)
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text(errors="replace").strip() or "another process"
            raise StoreError(
                f"the run {path.parent} is in use by {holder}: wait until it ends, or stop it, or choose another --out"
            ) from None
        except OSError as error:
            raise StoreError(f"{path} cannot be locked ({error.strerror}): choose a folder on a local disk") from error
        second = os.open(path, os.O_RDWR)
        try:  # the lock must keep a second holder out, or two processes could write the same run
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            raise StoreError(f"locks on {path} keep nobody out on this file system: choose a folder on a local disk")
        finally:
            os.close(second)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def lock_holder(folder: Path) -> str | None:
    """Who holds a run; None where nobody does, or it cannot be told."""
    try:
        fd = os.open(folder / "run.lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once, with the file
    except BlockingIOError:
        return _text(folder / "run.lock").strip() or "another process"
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def _forget_locks_in_child() -> None:
    # A forked worker shares the lock; if it outlived a killed parent, it would keep the run locked.
    for lock in list(_held_locks):
        lock.close()


os.register_at_fork(after_in_child=_forget_locks_in_child)


_KEPT = "Everything committed before is kept"


def _full(folder: Path) -> str:
    return f"the disk that holds {folder} is full. {_KEPT}: free some space and run the same command again"


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What the operating system says of the folder, as a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(_full(folder)) from error
        where = error.filename2 or error.filename or folder  # of a move, where to
        raise StoreError(f"{where}: {error.strerror or error}") from error


@contextlib.contextmanager
def sqlite_errors(folder: Path) -> Iterator[None]:
    """What SQLite says of the folder's run.db, as a StoreError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "disk is full" in text:
            said = _full(folder)
        elif "disk I/O error" in text:
            said = f"{folder}/run.db could not be read or written ({text}): check the disk and its free space. {_KEPT}"
        elif re.search("not a database|malformed|no such (table|column)|decode to UTF-8", text):
            said = (
                f"{folder}/run.db is not a sound treepref database ({text}): restore run.db from a copy, or start "
                "another run with another --out"
            )
        elif "unable to open" in text:
            said = (
                f"{folder}/run.db cannot be opened ({text}): where run.db-wal is left, reading needs a folder that may "
                "be written; copy the whole folder to such a place"
            )
        elif "locked" in text:
            said = f"{folder}/run.db is locked by a program that does not belong to this run"
        elif isinstance(error, sqlite3.IntegrityError):
            said = f"{folder}/run.db has that row already ({text})"
        else:
            said = f"{folder}/run.db: {text}"
        raise StoreError(said) from error


def land_file(tmp: Path, final: Path) -> Path:
    """Move a finished file to its name: there is the old content or the new one, never half. Raises StoreError."""
    with disk_errors(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        move_file(tmp, final)
    return final


@contextlib.contextmanager
def report_scratch(folder: Path) -> Iterator[Path]:
    """A folder for what a report builds before it lands, in a run that another process may hold.

    It bears this process's number, so two reports keep apart and whoever opens the run knows whether it is in use. What
    a killed one left goes when the run is opened next. Raises StoreError where the disk refuses.
    """
    with disk_errors(folder):
        scratch = fresh_folder(folder / "scratch", f"report-{os.getpid()}")
        try:
            yield scratch
        finally:
            clear(scratch)


def sweep_scratch(folder: Path) -> None:
    """Remove what killed attempts left in `scratch`; reports that are being written stay."""
    for path in (folder / "scratch").iterdir() if (folder / "scratch").is_dir() else ():
        if not _being_written(path.name):
            clear(path)


def _being_written(name: str) -> bool:
    found = re.fullmatch(r"report-(\d+)", name)
    if found is None or int(found[1]) == os.getpid():
        return False
    try:
        os.kill(int(found[1]), 0)
    except PermissionError:  # somebody else's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
