"""A search dies twenty times, by SIGKILL at planned events, is resumed, and equals the run that nobody killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kill_plans import check_same_run, killed_and_resumed, lives_of
from kill_resume_run import OUTCOMES, STAGE, TREES
from treepref.errors import StoreError
from treepref.runs.store import Store

HOLDER = Path(__file__).with_name("kill_resume_run.py")

DEATHS = [
    *[("before", f"submit {STAGE} ")] * 4,
    *[("after", f"submit {STAGE} ")] * 4,
    ("before", "row meta schema"),  # the tables are being made
    ("after", "row stages begin"),
    ("before", f"row journal {STAGE} "),
    *[("inside", f"row journal {STAGE} ")] * 2,
    *[("commit", f"row journal {STAGE} ")] * 2,
    ("after", f"row journal {STAGE} "),
    ("before", f"row trees {STAGE} "),
    ("inside", f"row trees {STAGE} "),
    ("commit", f"row outcomes {OUTCOMES} "),
    ("after", f"row outcomes {OUTCOMES} "),
]


@pytest.mark.parametrize("seed", [0])
def test_twenty_kills_give_the_digest_of_an_uninterrupted_run(tmp_path: Path, seed: int) -> None:
    with lives_of("kill_resume_run:main") as lives:
        deaths = killed_and_resumed(lives, tmp_path, seed, DEATHS)
    assert len(deaths) == 20
    check_same_run(tmp_path)
    with Store(tmp_path / "whole", read_only=True) as one, Store(tmp_path / "killed", read_only=True) as other:
        assert one.count_trees(STAGE) == other.count_trees(STAGE) == TREES  # no duplicate rows
        assert len(list(other.outcomes(OUTCOMES))) == TREES
        # Each expansion was paid for once, in the transaction that journalled it.
        assert other.cost(STAGE).generated_tokens == one.cost(STAGE).generated_tokens > 0
        assert other.stage_done(STAGE)


def test_second_process_is_refused_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(HOLDER), str(tmp_path / "run")], **pipes, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"in use by process {process.pid} on"):
            Store(tmp_path / "run")
        with Store(tmp_path / "run", read_only=True) as beside:  # a reader may stand beside
            assert beside.stage(STAGE).status == "running"
        process.kill()
        process.wait()
        Store(tmp_path / "run").close()


FORKS = """
import os, sys
from treepref.runs.store import Store
store = Store(sys.argv[1])
child = os.fork()
if child == 0:  # the worker; it tells that it runs, after what it must do to be no holder of the lock
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_an_orphaned_worker_does_not_keep_the_run_locked(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", FORKS, str(tmp_path / "run")], **pipes, text=True)
    orphan = int(process.stdout.readline())
    try:
        with pytest.raises(StoreError, match="in use"):
            Store(tmp_path / "run")
        process.kill()
        process.wait()
        assert Path(f"/proc/{orphan}").exists() or not Path("/proc").exists()
        Store(tmp_path / "run").close()
    finally:
        process.stdin.close()
        process.stdout.close()
        os.kill(orphan, signal.SIGKILL)
