"""kill -9 at twenty random moments, resume, and compare with the run that nobody killed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kill_resume_run import STAGE, TREES
from treepref.errors import StoreError
from treepref.store import Store

SCRIPT = Path(__file__).with_name("kill_resume_run.py")
KILLS = 20


def start(folder: Path, log: Path, latency: float = 0.0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder), str(log), str(latency)])


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def wait_for(condition, process: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def stored(folder: Path) -> tuple[set[str], set[str]]:
    """Expansions in the journal as `tree/path`, and keys of finished trees."""
    if not (folder / "run.db").exists():
        return set(), set()
    db = sqlite3.connect(f"{(folder / 'run.db').as_uri()}?mode=ro", uri=True)
    try:
        journal = {f"{tree}/{path or 'root'}" for tree, path in db.execute("SELECT tree, path FROM journal")}
        return journal, {key for (key,) in db.execute("SELECT key FROM trees")}
    except sqlite3.OperationalError as error:  # killed before the tables were made
        assert "no such table" in str(error)
        return set(), set()
    finally:
        db.close()


def test_twenty_kills_give_the_digest_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole, whole_log = tmp_path / "whole", tmp_path / "whole.log"
    assert start(whole, whole_log).wait(timeout=60) == 0
    needed = lines(whole_log)
    assert len(needed) == len(set(needed)) > 300

    folder, log = tmp_path / "killed", tmp_path / "killed.log"
    draw, sent, kills = random.Random(0), 0, 0
    while True:
        journalled, finished = stored(folder)
        process = start(folder, log, latency=0.002)
        if kills < KILLS:
            if kills % 5 == 0:  # at any moment of the start: imports, opening, replay
                time.sleep(draw.uniform(0.05, 0.4))
            else:
                goal = sent + draw.randint(1, len(needed) // KILLS)
                wait_for(lambda goal=goal: len(lines(log)) >= goal, process)
                time.sleep(draw.uniform(0, 0.01))
            process.kill()
        code = process.wait(timeout=60)
        this_life, sent = lines(log)[sent:], len(lines(log))
        assert not journalled.intersection(this_life), "a journalled expansion was requested again"
        assert not {line.split("/")[0] for line in this_life} & finished, "a finished tree was searched again"
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills == KILLS, f"only {kills} kills before the work was done"
    assert set(lines(log)) == set(needed)

    with Store(whole, read_only=True) as one, Store(folder, read_only=True) as other:
        assert other.digest() == one.digest()
        assert one.count_trees(STAGE) == other.count_trees(STAGE) == TREES  # no duplicate rows
        assert len(list(other.outcomes("round-1/eval/mcts"))) == TREES
        assert other.count_journal(STAGE) == 0
        # Each expansion was paid for once, in the transaction that journalled it.
        assert other.cost(STAGE).generated_tokens == one.cost(STAGE).generated_tokens > 0
        assert other.stage_done(STAGE)


def test_second_process_is_refused_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    process = start(tmp_path / "run", tmp_path / "log", latency=0.05)
    wait_for(lambda: lines(tmp_path / "log"), process)
    with pytest.raises(StoreError, match=f"in use by process {process.pid} on"):
        Store(tmp_path / "run")
    with Store(tmp_path / "run", read_only=True) as beside:  # a reader may stand beside
        assert beside.stage(STAGE).status == "running"
    process.kill()
    process.wait()
    Store(tmp_path / "run").close()


FORKS = """
import os, sys, time
from treepref.store import Store
store = Store(sys.argv[1])
child = os.fork()
if child == 0:
    time.sleep(20)
    os._exit(0)
print(child, flush=True)
time.sleep(20)
"""


def test_an_orphaned_worker_does_not_keep_the_run_locked(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", FORKS, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    orphan = int(process.stdout.readline())
    time.sleep(0.1)
    try:
        with pytest.raises(StoreError, match="in use"):
            Store(tmp_path / "run")
        process.kill()
        process.wait()
        assert Path(f"/proc/{orphan}").exists() or not Path("/proc").exists()
        Store(tmp_path / "run").close()
    finally:
        process.stdout.close()
        os.kill(orphan, signal.SIGKILL)
